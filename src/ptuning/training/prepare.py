"""From a user's files to tokenised splits: reading, splitting off validation rows, labels, token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptuning import adapters
from ptuning.data import Example, Loaded, encode_labels, infer_task, load_examples, split_off
from ptuning.data.continued import Continued, continued_task
from ptuning.data.duplicates import repeats
from ptuning.data.label_oddities import label_oddities
from ptuning.data.memory import in_memory, named_splits
from ptuning.data.options import WINDOWS, TooLong
from ptuning.data.task_labels import Labelled, task_labels
from ptuning.data.token_cache import token_rows_of
from ptuning.data.tokenised import (
    TokenisedExample,
    TokenisedRows,
    is_tokenised,
    load_tokenised,
    token_rows,
)
from ptuning.data.tokens import Tokenise, TokenRow
from ptuning.errors import ConfigError
from ptuning.model.config import DeepPrompt
from ptuning.model.ptuning import PTuningModel
from ptuning.task import OVERLAP, Task
from ptuning.training.config import DataConfig

ONE_TEXT = "one text per row"
NAME_BOTH = "name the columns with --data.text and --data.text_b (text= and text_b= of DataConfig)"


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The rows of each split; ``test`` may be empty.

    Attributes:
        sources: What each split was read from, without local folders; a split-off split has no entry.
        notes: What the user should know about how the rows were read, one sentence each.
        left_out: The number of bad rows that were left out, by split.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    sources: Mapping[str, str]
    notes: Sequence[str] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, dict[str, Any]]:
        """What an adapter records: the source and the number of rows of each split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            name: {"source": self.sources.get(name, adapters.SPLIT_OFF), "rows": len(rows)}
            | ({"left_out": self.left_out[name]} if name in self.left_out else {})
            for name, rows in splits.items()
            if rows
        }


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The rows of every source, checked, before validation rows are split off.

    Attributes:
        train: The training rows, including those that will be split off.
        validation: ``None`` if the validation rows will be split off.
        test: May be empty.
        sources, notes, left_out: As in :class:`Examples`.
        task: What the labels mean.
        continues: With the task of an adapter: whether ``task`` is the same one, perhaps with more labels.
    """

    train: Sequence[Example]
    validation: Sequence[Example] | None
    test: Sequence[Example]
    sources: Mapping[str, str]
    task: Task
    continues: bool = False
    notes: Sequence[str] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def examples(self, *, fraction: float, seed: int) -> Examples:
        """The splits. Without a validation source, ``seed`` decides which rows are split off."""
        rows, validation = self.train, self.validation
        if validation is None:
            rows, validation = split_off(rows, self.task, fraction=fraction, seed=seed)
        return Examples(
            train=rows,
            validation=validation,
            test=self.test,
            sources=self.sources,
            notes=self.notes,
            left_out=self.left_out,
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split, tokenised.

    Attributes:
        rows: Token ids, as the model takes them.
        targets: ``[N]``, class indices or values in the data's unit; or ``[N, C]``.
    """

    rows: list[TokenRow]
    targets: NDArray[np.float64]

    @property
    def lengths(self) -> list[int]:
        """The places of each row in a padded batch: its tokens, or those of all its windows."""
        return [row.places() for row in self.rows]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The splits as a model takes them.

    Attributes:
        test: ``None`` if there are no test rows.
    """

    train: Split
    validation: Split
    test: Split | None = None

    @property
    def evaluated(self) -> dict[str, Split]:
        """The splits that are evaluated at the end of a run, by name."""
        return {"validation": self.validation} | ({"test": self.test} if self.test else {})


def read(config: DataConfig, *, seed: int) -> tuple[Examples, Task]:
    """The examples that a configuration names, and the task that is inferred from the training rows."""
    found = read_all(config)
    return found.examples(fraction=config.validation_fraction, seed=seed), found.task


def gather(
    data: Any, config: DataConfig, *, seed: int, task: Task | None = None, unnamed: bool = False
) -> tuple[Examples, Task]:
    """Like :func:`read`, for data in any form; see :func:`gather_all`."""
    found = gather_all(data, config, task=task, unnamed=unnamed)
    return found.examples(fraction=config.validation_fraction, seed=seed), found.task


def read_all(
    config: DataConfig, *, start: Task | None = None, head: Literal["auto", "new"] = "auto"
) -> Gathered:
    """The rows that a configuration names, and the task that is inferred from the training rows.

    Args:
        start: The task of the adapter that training starts from, if there is one.
        head: See :func:`~ptuning.data.continued.continued_task`.
    """
    sources = {"train": config.train, "validation": config.validation, "test": config.test}
    given = {name: source for name, source in sources.items() if source is not None}
    return gather_all(given, config, start=start, head=head)


def gather_all(
    data: Any,
    config: DataConfig,
    *,
    task: Task | None = None,
    unnamed: bool = False,
    start: Task | None = None,
    head: Literal["auto", "new"] = "auto",
) -> Gathered:
    """Like :func:`read_all`, for data in any form.

    Args:
        data: A mapping of splits, or the training split alone (:func:`~ptuning.data.memory.named_splits`),
            each in any form that :mod:`ptuning.data.memory` names.
        task: The model's task, if it has one; otherwise inferred from the training rows. With a task, rows
            in memory may also be tokenised: see :mod:`ptuning.data.tokenised`.
        unnamed: Whether nobody chose the task's labels, so that the names in the training rows replace them.
        start, head: See :func:`read_all`.
    """
    continued: Continued | None = None
    sources = {name: in_memory(source, f"data.{name}") for name, source in named_splits(data).items()}
    loaded: dict[str, Loaded | TokenisedRows] = {}
    kind = config.problem_type if task is None else task.problem_type
    known = None if unnamed else task  # what the labels mean; inferred from the training rows
    for name in sorted(sources, key=lambda name: name != "train"):
        split: Loaded | TokenisedRows
        if task is not None and is_tokenised(sources[name]):
            split = load_tokenised(sources[name], name, label=config.label)
        else:
            split = load_examples(sources[name], **config.reading(), problem_type=kind, task=known)
        loaded[name] = split
        if known is not None:
            continue
        if task is None and start is not None:
            asked, names = config.problem_type, split.label_names
            continued = continued_task(split.examples, start, problem_type=asked, head=head, names=names)
            length = config.max_length or continued.task.max_length
            known = replace(continued.task, max_length=length)
        elif task is None:
            known = infer_task(split.examples, problem_type=config.problem_type, names=split.label_names)
            known = replace(known, max_length=config.max_length)
        else:
            given = Labelled(examples=split.examples, names=split.label_names)
            known = task_labels({"train": given}, task, unnamed=unnamed)[1]
    assert known is not None  # the training rows came first
    if task is None:
        examples, task = {name: list(split.examples) for name, split in loaded.items()}, known
    else:
        splits = {
            name: Labelled(examples=split.examples, names=split.label_names) for name, split in loaded.items()
        }
        examples, task = task_labels(splits, task, unnamed=unnamed)
    train = loaded["train"]
    if isinstance(train, Loaded) and train.columns.pair != task.pair:
        if task.pair:
            raise ConfigError("data.train", got=ONE_TEXT, expected="two, as the task has", remedy=NAME_BOTH)
        task = replace(task, pair=True)  # the model's task was made without seeing the rows
    task = reading_long_texts(task, config)
    pair, source = (
        (train.columns.pair, "the training rows have")
        if isinstance(train, Loaded)
        else (task.pair, "the task has")
    )
    for name, split in loaded.items():
        encode_labels(examples[name], task)  # refuses labels that are not in the training rows
        if isinstance(split, Loaded) and split.columns.pair != pair:
            got, expected = (ONE_TEXT, "two") if pair else ("two texts per row", "one")
            raise ConfigError(f"data.{name}", got=got, expected=f"{expected}, as {source}", remedy=NAME_BOTH)
    texts = {name: split for name, split in loaded.items() if isinstance(split, Loaded)}
    return Gathered(
        train=examples["train"],
        validation=examples.get("validation"),
        test=examples.get("test", []),
        sources={name: public_name(split.origin.name) for name, split in loaded.items()},
        task=task,
        continues=continued is not None and continued.same,
        notes=[
            *(() if continued is None else continued.notes),
            *(note for name, each in texts.items() for note in _notes(each, task, training=name == "train")),
        ],
        left_out={name: len(split.problems) for name, split in texts.items() if split.problems},
    )


def reading_long_texts(task: Task, config: DataConfig) -> Task:
    """``task``, with what the configuration says about texts that are too long."""
    if config.too_long is None:
        return task
    if config.too_long != "windows":
        return replace(task, max_windows=1, window_overlap=OVERLAP)
    windows = config.max_windows or (task.max_windows if task.max_windows > 1 else WINDOWS)
    overlap = task.window_overlap if config.window_overlap is None else config.window_overlap
    return replace(task, max_windows=windows, window_overlap=overlap)


def _notes(split: Loaded, task: Task, *, training: bool) -> list[str]:
    """What the user should know about how a split was read, and about oddities in the training rows."""
    notes: list[str] = list(split.notes)
    if training:
        column = split.columns.label
        oddities: list[str] = list(label_oddities(split.examples, task, column))
        found = repeats(split.examples)
        if found.contradicting:
            oddities.append(found.contradiction if task.labels else found.difference)
        if found.again:
            oddities.append(found.repetition)
        notes += [f"{split.origin.name}: {message}" for message in oddities]
    return notes


def public_name(source: str) -> str:
    """A source's name for a published record: a data set's full name, a file's name without its folders."""
    name = source.removeprefix("hf:")
    if name != source and not name.startswith((".", "/", "~")) and "\\" not in name:
        return source
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def tokenised(model: PTuningModel, examples: Sequence[Example], too_long: TooLong | None = None) -> Split:
    """``examples`` as ``model`` takes them.

    Raises:
        ConfigError: single texts for a prompt that needs two texts per row.
    """
    labels = encode_labels(examples, model.task)
    tokens = [example for example in examples if isinstance(example, TokenisedExample)]  # all or none
    if examples and not tokens:
        _check_template(model, pair=examples[0].text_b is not None)
    if examples and not tokens and examples[0].text_b is None:
        _refuse_single_texts(model)
    rows = (
        token_rows(model, tokens, labels)
        if tokens
        else token_rows_of(Tokenise.for_model(model, too_long), examples, labels)
    )
    return Split(rows=rows, targets=np.asarray(labels, dtype=np.float64))


def about_long_rows(
    model: PTuningModel, examples: Sequence[Example], split: Split, batch_size: int
) -> str | None:
    """A sentence about the training rows that are cut or read in windows, and how many windows run at once.

    ``None`` if there are none, if ptuning did not tokenise the rows, or if there is no maximum length.
    """
    if model.tokenizer is None or any(isinstance(example, TokenisedExample) for example in examples[:1]):
        return None
    if (limit := Tokenise.for_model(model).limit) is None:
        return None
    rows, task = split.rows, model.task
    if task.max_windows == 1:
        if not (full := sum(len(row) >= limit for row in rows)):
            return None
        return (
            f"{full:,} of {len(rows):,} training rows have the maximum of {limit} tokens; longer texts are "
            "cut (data.too_long: error refuses them, windows reads all of them)"
        )
    counts = [len(row.windows) for row in rows if row.more]
    if not counts:
        return None
    cut, most = sum(row.cut for row in rows), max(counts)
    return (
        f"{len(counts):,} of {len(rows):,} training rows have more than {limit} tokens and are read in "
        f"windows, {sum(counts) / len(counts):.1f} on average"
        + (f"; the end of {cut:,} is cut (data.max_windows: {task.max_windows})" if cut else "")
        + (f"; one of {most} windows needs as much memory as {most} cut rows" if most > batch_size else "")
    )


def _check_template(model: PTuningModel, *, pair: bool) -> None:
    """Refuse rows with fewer or more texts than a template of words has."""
    prompt = model.prompt_config
    if prompt.depth == "deep" and prompt.pooling == "similarity":  # each text has the words
        wanted, expected = 1, "{text} alone, because prompt.pooling similarity reads each text for itself"
    elif pair:
        wanted, expected = 2, "{text_a} and {text_b}, because the rows are pairs of texts"
    else:
        wanted, expected = 1, "{text} without {text_b}, because the rows have one text"
    if prompt.template_texts not in (None, wanted):
        raise ConfigError(
            "prompt.template" if prompt.head is None else "prompt.head.template",
            got=repr(prompt.written),
            expected=expected,
        )


def _refuse_single_texts(model: PTuningModel) -> None:
    prompt = model.prompt_config
    if isinstance(prompt, DeepPrompt):
        needs_two = prompt.pooling == "similarity"
        option, got = "prompt.pooling", "'similarity', for rows of one text"
    else:
        needs_two = 1 in model.wanted_texts
        option, got = "prompt.placement", f"{prompt.placement!r}, for rows of one text"
    if needs_two:
        raise ConfigError(
            option,
            got=got,
            expected="a value that works without a second text",
            remedy="choose another, or name the column of the second text with --data.text_b (text_b= of "
            "DataConfig)",
        )
