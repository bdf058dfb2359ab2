"""From a user's files to tokenised splits: reading, the validation split, labels, token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptuning.data import Example, encode_labels, infer_task, load_examples, split_off
from ptuning.data.tokens import Tokenise, TokenRow, TooLong
from ptuning.errors import ConfigError
from ptuning.model.ptuning import PTuningModel
from ptuning.task import Task
from ptuning.training.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The rows of each split; ``test`` may be empty."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


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


def read(config: DataConfig, *, seed: int) -> tuple[Examples, Task]:
    """The examples that a configuration names, and the task that the training rows describe."""
    sources = {"train": config.train, "validation": config.validation, "test": config.test}
    return gather({name: source for name, source in sources.items() if source is not None}, config, seed=seed)


def gather(
    sources: Mapping[str, Any], config: DataConfig, *, seed: int, task: Task | None = None
) -> tuple[Examples, Task]:
    """As :func:`read`, for sources of any kind: paths, ``datasets.Dataset``, lists of mappings.

    Args:
        task: Where the model has one already; inferred from the training rows otherwise.
    """
    if odd := set(sources) - {"train", "validation", "test"}:
        raise ConfigError(f"data: got a split {sorted(odd)[0]!r}, expected train, validation and test")
    if "train" not in sources:
        raise ConfigError("data: there is no split 'train'")
    loaded = {
        name: load_examples(
            source,
            text=config.text,
            text_b=config.text_b,
            label=config.label,
            label_separator=config.label_separator,
        )
        for name, source in sources.items()
    }
    train = loaded["train"]
    if task is None:
        task = infer_task(train.examples, problem_type=config.problem_type, names=train.label_names)
        task = replace(task, max_length=config.max_length)
    for name, split in loaded.items():
        encode_labels(
            split.examples, task
        )  # a label unseen in training is refused before anything is trained
        if split.columns.pair != train.columns.pair:
            got, expected = ("one text", "two") if train.columns.pair else ("two texts", "one")
            raise ConfigError(
                f"data.{name}: {got} a row, but the training rows have {expected}; name the columns with "
                "data.text and data.text_b"
            )
    if "validation" in loaded:
        rows, held = train.examples, loaded["validation"].examples
    else:
        rows, held = split_off(train.examples, task, fraction=config.validation_fraction, seed=seed)
    test = loaded["test"].examples if "test" in loaded else []
    return Examples(train=rows, validation=held, test=test), task


def tokenised(model: PTuningModel, examples: Sequence[Example], too_long: TooLong = "truncate") -> Split:
    """``examples`` as ``model`` takes them."""
    labels = encode_labels(examples, model.task)
    rows = Tokenise.for_model(model, too_long)(examples, labels)
    return Split(rows=rows, targets=np.asarray(labels, dtype=np.float64))
