"""What the runs of one process have in common: each thing is made once, for the first run that needs it.

The backbone with its tokenizer, the rows of the data files, and the token ids of each text. A run finds them
here whether others share them or not, so a single run is the case of one, and a run among several cannot
differ from it: nothing here depends on a seed or a rate.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ptuning.data import Example
from ptuning.data.stems import Stems, stems_of
from ptuning.data.tokens import TokenRow, TooLong
from ptuning.model.backbone import Backbone
from ptuning.model.config import Pooling
from ptuning.model.loading import load_backbone
from ptuning.model.ptuning import PTuningModel
from ptuning.task import Task
from ptuning.threads import ACCELERATE
from ptuning.training.config import DataConfig, TrainConfig
from ptuning.training.prepare import Examples, Gathered, Split, TrainingData, read_all, tokenised


class _Tokens(NamedTuple):
    """A row as the model takes it; ``example`` is held so that its ``id`` stays its own."""

    example: Example
    row: TokenRow
    target: NDArray[np.float64]


class RunCache:
    """What runs share. It holds on to everything that it was asked for, so it should not outlive them."""

    def __init__(self) -> None:
        self._backbones: dict[Hashable, tuple[Backbone, PreTrainedTokenizerBase | None]] = {}
        self._gathered: dict[DataConfig, Gathered] = {}
        self._told: set[DataConfig] = set()
        self._tokens: dict[Hashable, dict[int, _Tokens]] = {}
        self._stems: dict[str, Stems] = {}
        self.readings: dict[Hashable, Pooling | None] = {}  # :mod:`ptuning.training.pair_pooling`'s

    def examples(self, config: DataConfig, *, seed: int) -> tuple[Examples, Task]:
        """:func:`~ptuning.training.prepare.read`, with every file read once."""
        if config not in self._gathered:
            self._gathered[config] = read_all(config)
        found = self._gathered[config]
        return found.examples(fraction=config.validation_fraction, seed=seed), found.task

    def say_notes(self, config: DataConfig, say: Callable[[str], None]) -> None:
        """Say once what was found in the files; when nothing is refused any more, so errors stand alone."""
        if config in self._gathered and config not in self._told:
            self._told.add(config)
            for note in self._gathered[config].notes:
                say(note)

    def backbone(
        self, config: TrainConfig, task: Task, *, dtype: torch.dtype | None, device: torch.device
    ) -> tuple[Backbone, PreTrainedTokenizerBase | None]:
        """The backbone that ``config`` names, in ``dtype`` on ``device``, and its tokenizer."""
        key = (config.backbone, config.revision, task.num_labels, task.problem_type, dtype, device)
        if key not in self._backbones:
            backbone, tokenizer = load_backbone(
                config.backbone, task.num_labels, task.problem_type, None, config.revision, dtype
            )
            # Before the first task is made, so that the first finds it where the others do.
            self._backbones[key] = backbone.to(device), tokenizer
        return self._backbones[key]

    def split(self, model: PTuningModel, examples: Sequence[Example], too_long: TooLong) -> Split:
        """:func:`~ptuning.training.prepare.tokenised`, with every text tokenised once.

        Runs may deal the same rows out differently, as each seed splits off its own validation rows; so the
        token ids are kept by row, not by split.
        """
        known = self._tokens.setdefault(_reading(model, too_long), {})
        if new := [example for example in examples if id(example) not in known]:
            made = tokenised(model, new, too_long)
            known |= {
                id(example): _Tokens(example, row, target)
                for example, row, target in zip(new, made.rows, made.targets, strict=True)
            }
        found = [known[id(example)] for example in examples]
        return Split(
            rows=[each.row for each in found],
            targets=np.asarray([each.target for each in found], dtype=np.float64),
        )

    def data(self, model: PTuningModel, examples: Examples, too_long: TooLong) -> TrainingData:
        """Every split of ``examples``, as :meth:`split` gives it."""
        return TrainingData(
            train=self.split(model, examples.train, too_long),
            validation=self.split(model, examples.validation, too_long),
            test=self.split(model, examples.test, too_long) if examples.test else None,
        )

    def stems(
        self, model: PTuningModel, splits: Sequence[Split], on_rows: Callable[[int, int], None]
    ) -> Stems | None:
        """:func:`~ptuning.data.stems.stems_of` for the rows of these splits together.

        Together, because then it does not matter which of them a seed has put aside for validation.
        """
        rows = [row for split in splits for row in split.rows]
        return stems_of(model, rows, on_rows=on_rows, known=self._stems)


def _reading(model: PTuningModel, too_long: TooLong) -> Hashable:
    """All that decides how ``model`` reads a text and its label."""
    places: tuple[Any, ...] = (model.max_text_tokens, model.inserted_tokens, model.needs_segments)
    return (id(model.backbone.weights), id(model.tokenizer), *places, model.task, too_long)


def new_accelerator(*, cpu: bool = False) -> Accelerator:
    """A new one; threads make theirs one at a time."""
    with ACCELERATE:
        return Accelerator(cpu=cpu)
