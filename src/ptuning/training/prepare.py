"""From a user's files to tokenised splits: reading, the validation split, labels, token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptuning import adapters
from ptuning.data import Example, Loaded, encode_labels, infer_task, load_examples, split_off
from ptuning.data.duplicates import repeats
from ptuning.data.label_oddities import label_oddities
from ptuning.data.memory import in_memory, named_splits
from ptuning.data.task_labels import Labelled, task_labels
from ptuning.data.token_cache import token_rows_of
from ptuning.data.tokenised import (
    TokenisedExample,
    TokenisedRows,
    is_tokenised,
    load_tokenised,
    token_rows,
)
from ptuning.data.tokens import Tokenise, TokenRow, TooLong
from ptuning.errors import ConfigError
from ptuning.model.config import DeepPrompt
from ptuning.model.ptuning import PTuningModel
from ptuning.task import Task
from ptuning.training.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The rows of each split; ``test`` may be empty.

    Attributes:
        sources: What each split was read from, without local folders; one that was split off is not there.
        notes: What the user should know of how they were read, a sentence each.
        left_out: By source, how many bad rows were left out.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    sources: Mapping[str, str]
    notes: Sequence[str] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, dict[str, Any]]:
        """What an adapter keeps of them: where each split's rows came from, and how many they were."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            name: {"source": self.sources.get(name, adapters.SPLIT_OFF), "rows": len(rows)}
            | ({"left_out": self.left_out[name]} if name in self.left_out else {})
            for name, rows in splits.items()
            if rows
        }


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The rows of every source, checked, before any are put aside for validation.

    Attributes:
        train: The training rows, those included that are yet to be split off.
        validation: ``None`` where they are to be split off.
        test: May be empty.
        sources, notes, left_out: As in :class:`Examples`.
        task: What the labels mean.
    """

    train: Sequence[Example]
    validation: Sequence[Example] | None
    test: Sequence[Example]
    sources: Mapping[str, str]
    task: Task
    notes: Sequence[str] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def examples(self, *, fraction: float, seed: int) -> Examples:
        """The splits; ``seed`` decides which rows are split off, where there is no validation source."""
        rows, held = self.train, self.validation
        if held is None:
            rows, held = split_off(rows, self.task, fraction=fraction, seed=seed)
        return Examples(
            train=rows,
            validation=held,
            test=self.test,
            sources=self.sources,
            notes=self.notes,
            left_out=self.left_out,
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split, tokenised.

    Attributes:
        rows: What the model takes.
        targets: ``[N]`` class indices or values in their own unit, or ``[N, C]``.
    """

    rows: list[TokenRow]
    targets: NDArray[np.float64]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]


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
        """The splits that a run's result has metrics of, by name."""
        return {"validation": self.validation} | ({"test": self.test} if self.test else {})


def read(config: DataConfig, *, seed: int) -> tuple[Examples, Task]:
    """The examples that a configuration names, and the task that the training rows describe."""
    found = read_all(config)
    return found.examples(fraction=config.validation_fraction, seed=seed), found.task


def gather(
    data: Any, config: DataConfig, *, seed: int, task: Task | None = None, unnamed: bool = False
) -> tuple[Examples, Task]:
    """As :func:`read`, for data in any form; see :func:`gather_all`."""
    found = gather_all(data, config, task=task, unnamed=unnamed)
    return found.examples(fraction=config.validation_fraction, seed=seed), found.task


def read_all(config: DataConfig) -> Gathered:
    """The rows that a configuration names, and the task that the training rows describe."""
    sources = {"train": config.train, "validation": config.validation, "test": config.test}
    return gather_all({name: source for name, source in sources.items() if source is not None}, config)


def gather_all(data: Any, config: DataConfig, *, task: Task | None = None, unnamed: bool = False) -> Gathered:
    """As :func:`read_all`, for data in any form.

    Args:
        data: A mapping of splits, or the training split alone (:func:`~ptuning.data.memory.named_splits`),
            each in any form that :mod:`ptuning.data.memory` names.
        task: Where the model has one already; inferred from the training rows otherwise. With it, rows
            in memory may also be tokenised: see :mod:`ptuning.data.tokenised`.
        unnamed: Whether nobody chose the task's labels, so that those of the training rows may replace them.
    """
    sources = {name: in_memory(source, f"data.{name}") for name, source in named_splits(data).items()}
    loaded: dict[str, Loaded | TokenisedRows] = {}
    kind = config.problem_type if task is None else task.problem_type
    known = None if unnamed else task  # what the labels mean, as soon as the training rows are read
    for name in sorted(sources, key=lambda name: name != "train"):
        split: Loaded | TokenisedRows
        if task is not None and is_tokenised(sources[name]):
            split = load_tokenised(sources[name], name, label=config.label)
        else:
            split = load_examples(sources[name], **config.reading(), problem_type=kind, task=known)
        loaded[name] = split
        if known is not None:
            continue
        if task is None:
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
            raise ConfigError(
                "data.train: one text a row, but the task has two; name the columns with --data.text "
                "and --data.text_b (text= and text_b= of DataConfig)"
            )
        task = replace(task, pair=True)  # a task that was made from its number of labels could not know
    pair, whose = (
        (train.columns.pair, "the training rows have")
        if isinstance(train, Loaded)
        else (task.pair, "the task has")
    )
    for name, split in loaded.items():
        encode_labels(examples[name], task)  # a label unseen in training is refused before anything else
        if isinstance(split, Loaded) and split.columns.pair != pair:
            got, expected = ("one text", "two") if pair else ("two texts", "one")
            raise ConfigError(
                f"data.{name}: {got} a row, but {whose} {expected}; name the columns with "
                "--data.text and --data.text_b (text= and text_b= of DataConfig)"
            )
    texts = {name: split for name, split in loaded.items() if isinstance(split, Loaded)}
    return Gathered(
        train=examples["train"],
        validation=examples.get("validation"),
        test=examples.get("test", []),
        sources={name: public_name(split.origin.name) for name, split in loaded.items()},
        task=task,
        notes=[
            note for name, split in texts.items() for note in _notes(split, task, training=name == "train")
        ],
        left_out={name: len(split.problems) for name, split in texts.items() if split.problems},
    )


def _notes(split: Loaded, task: Task, *, training: bool) -> list[str]:
    """What to tell the user of how a split was read, and of what is odd in the training rows."""
    said: list[str] = list(split.notes)
    if training:
        column = split.columns.label
        oddities: list[str] = list(label_oddities(split.examples, task, column))
        found = repeats(split.examples)
        if found.contradicting:
            oddities.append(found.contradiction if task.labels else found.difference)
        if found.again:
            oddities.append(found.repetition)
        said += [f"{split.origin.name}: {message}" for message in oddities]
    return said


def public_name(source: str) -> str:
    """A source's name as others may read it: a data set's whole, a file's without the folders above it."""
    name = source.removeprefix("hf:")
    if name != source and not name.startswith((".", "/", "~")) and "\\" not in name:
        return source
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def tokenised(model: PTuningModel, examples: Sequence[Example], too_long: TooLong = "truncate") -> Split:
    """``examples`` as ``model`` takes them.

    Raises:
        ConfigError: single texts for a prompt that needs two a row.
    """
    labels = encode_labels(examples, model.task)
    tokens = [example for example in examples if isinstance(example, TokenisedExample)]  # all, or none
    if examples and not tokens and examples[0].text_b is None:
        _refuse_single_texts(model)
    rows = (
        token_rows(model, tokens, labels)
        if tokens
        else token_rows_of(Tokenise.for_model(model, too_long), examples, labels)
    )
    return Split(rows=rows, targets=np.asarray(labels, dtype=np.float64))


def full_rows(model: PTuningModel, examples: Sequence[Example], split: Split) -> tuple[int, int] | None:
    """How many rows of a split take all the tokens that fit, so that what is longer was cut, and how many do.

    None where nothing was cut by this project, or no limit is known.
    """
    if model.tokenizer is None or any(isinstance(example, TokenisedExample) for example in examples[:1]):
        return None
    limit = Tokenise.for_model(model).limit
    return None if limit is None else (sum(length >= limit for length in split.lengths), limit)


def _refuse_single_texts(model: PTuningModel) -> None:
    prompt = model.prompt_config
    if isinstance(prompt, DeepPrompt):
        needed = prompt.pooling == "similarity"
        got = "prompt.pooling: got 'similarity', which is that of two texts"
    else:
        needed = 1 in model.wanted_texts
        got = f"prompt.placement: got {prompt.placement!r}, which stands before a second text"
    if needed:
        raise ConfigError(
            f"{got}, but the rows have one text each; choose another, or name the column of the second text "
            "with --data.text_b (text_b= of DataConfig)"
        )
