"""What several runs in one process share: backbone and tokenizer, the rows of the data files, the token ids.

Each is created once, for the first run that needs it. A single run uses the same cache, so a run among
several gives the same result: nothing here depends on the seed or the learning rates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ptuning.data import Example
from ptuning.data.options import TooLong
from ptuning.data.stems import Stems, stems_of
from ptuning.data.tokens import TokenRow
from ptuning.model.backbone import Backbone
from ptuning.model.config import Pooling
from ptuning.model.loading import load_backbone
from ptuning.model.ptuning import PTuningModel
from ptuning.task import Task
from ptuning.threads import ACCELERATE
from ptuning.training.config import TrainConfig
from ptuning.training.prepare import Examples, Gathered, Split, TrainingData, read_all, tokenised
from ptuning.training.warm_start import Source

Loaded = tuple[Backbone, PreTrainedTokenizerBase | None]
"""A backbone and its tokenizer."""
LoadBackbone = Callable[[TrainConfig, Task, torch.dtype | None, torch.device], Loaded]


def load_named(config: TrainConfig, task: Task, dtype: torch.dtype | None, device: torch.device) -> Loaded:
    """The backbone that ``config`` names, in ``dtype`` on ``device``, and its tokenizer."""
    backbone, tokenizer = load_backbone(
        config.backbone,
        task.num_labels,
        task.problem_type,
        None,
        config.revision,
        dtype,
        allow_pickle="backbone" not in config.left_open,  # else the adapter's author chose it
    )
    # Moved before the first task is created, so that all tasks see it on the same device.
    return backbone.to(device), tokenizer


class _Tokens(NamedTuple):
    """A row as the model takes it. Keeping ``example`` alive keeps its ``id`` unique."""

    example: Example
    row: TokenRow
    target: NDArray[np.float64]


class RunCache:
    """What runs share. Entries are never removed, so a cache should not outlive its runs.

    Args:
        load: Loads a backbone that no run had yet.
    """

    def __init__(self, *, load: LoadBackbone = load_named) -> None:
        self._load = load
        self._backbones: dict[Hashable, Loaded] = {}
        self._gathered: dict[Hashable, Gathered] = {}
        self._reported: set[Hashable] = set()
        self._sources: dict[str, Source] = {}
        self._tokens: dict[Hashable, dict[int, _Tokens]] = {}
        self._stems: dict[str, Stems] = {}
        self.poolings: dict[Hashable, Pooling | None] = {}  # measured by ptuning.training.pair_pooling

    def source(self, config: TrainConfig) -> Source | None:
        """The adapter that ``config`` starts from, read once; ``None`` if it starts from none."""
        if (name := config.init_from) is None:
            return None
        if name not in self._sources:
            self._sources[name] = Source.read(name)
        return self._sources[name]

    def gathered(self, config: TrainConfig) -> Gathered:
        """:func:`~ptuning.training.prepare.read_all`, with every file read once."""
        if (key := _data_key(config)) not in self._gathered:
            source = self.source(config)
            start = None if source is None else source.task
            self._gathered[key] = read_all(config.data, start=start, head=config.init_head)
        return self._gathered[key]

    def keep(self, config: TrainConfig, rows: Gathered, source: Source | None = None) -> None:
        """Take rows that are in memory in place of those that ``config`` names.

        Args:
            source: The adapter that ``config`` starts from, if it is in memory, too.
        """
        self._gathered[_data_key(config)] = rows
        if source is not None:
            self._sources[source.name] = source

    def say_notes(self, config: TrainConfig, say: Callable[[str], None]) -> None:
        """Report the notes about the data files once; called after all checks, so errors come alone."""
        if (key := _data_key(config)) in self._gathered and key not in self._reported:
            self._reported.add(key)
            for note in self._gathered[key].notes:
                say(note)

    def backbone(
        self, config: TrainConfig, task: Task, *, dtype: torch.dtype | None, device: torch.device
    ) -> Loaded:
        """The backbone that ``config`` names, in ``dtype`` on ``device``, and its tokenizer."""
        key = (config.backbone, config.revision, task.num_labels, task.problem_type, dtype, device)
        if key not in self._backbones:
            self._backbones[key] = self._load(config, task, dtype, device)
        return self._backbones[key]

    def split(self, model: PTuningModel, examples: Sequence[Example], too_long: TooLong | None) -> Split:
        """:func:`~ptuning.training.prepare.tokenised`, with every text tokenised once.

        Token ids are cached per row, not per split, because each seed splits off other validation rows.
        """
        known = self._tokens.setdefault(_tokens_key(model, too_long), {})
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

    def data(self, model: PTuningModel, examples: Examples, too_long: TooLong | None) -> TrainingData:
        """All splits of ``examples``, tokenised."""
        return TrainingData(
            train=self.split(model, examples.train, too_long),
            validation=self.split(model, examples.validation, too_long),
            test=self.split(model, examples.test, too_long) if examples.test else None,
        )

    def stems(
        self,
        model: PTuningModel,
        splits: Sequence[Split],
        on_rows: Callable[[int, int], None],
        *,
        mapped: bool = False,
    ) -> Stems | None:
        """:func:`~ptuning.data.stems.stems_of` for the rows of these splits together.

        Together, so that it does not matter which rows a seed has split off for validation.
        """
        rows = [row for split in splits for row in split.rows]
        return stems_of(model, rows, on_rows=on_rows, known=self._stems, mapped=mapped)


def _data_key(config: TrainConfig) -> Hashable:
    """Everything that the rows and their task depend on."""
    return config.data if config.init_from is None else (config.data, config.init_from, config.init_head)


def _tokens_key(model: PTuningModel, too_long: TooLong | None) -> Hashable:
    """Everything that the token ids and the label of a text depend on."""
    layout: tuple[Any, ...] = (model.max_text_tokens, model.inserted_tokens, model.needs_segments)
    return (id(model.backbone.weights), id(model.tokenizer), *layout, model.task, too_long)


def new_accelerator(*, cpu: bool = False) -> Accelerator:
    """A new ``Accelerator``; created by one thread at a time.

    Without ``cpu``, Accelerate takes each of several processes on a machine without a GPU for the only one.
    """
    several = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    with ACCELERATE:
        return Accelerator(cpu=cpu or several)
