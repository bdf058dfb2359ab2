"""The tasks that are served: as good as trained, because speed does not depend on what their numbers are."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ptuning import PTuningModel, Task, adapters
from ptuning.model import Backbone, DeepPrompt
from ptuning.model.table import TaskTable
from serving.names import name_of

VIRTUAL_TOKENS = 20
SENTIMENT = ("negative", "positive")


def default_prompt() -> DeepPrompt:
    """What ``ptuning`` makes if nothing else is asked for."""
    return DeepPrompt(num_virtual_tokens=VIRTUAL_TOKENS)


def native_prompt() -> DeepPrompt:
    """What PEFT's prefix tuning computes."""
    return DeepPrompt(num_virtual_tokens=VIRTUAL_TOKENS, pooling="native")


def like(backbone: Backbone, prompt: DeepPrompt, task: Task, count: int) -> TaskTable:
    """Tasks that differ in their numbers alone."""
    table = TaskTable(backbone)
    model = PTuningModel.from_backbone(backbone, prompt, task=task)
    for number, changed in zip(range(count), _varied(model), strict=False):
        table.put(name_of(number), changed)
    return table


def _varied(model: PTuningModel, seed: int = 0) -> Iterator[PTuningModel]:
    """The same model again and again, with other numbers each time."""
    generator = torch.Generator().manual_seed(seed)
    start = {name: value.detach().clone() for name, value in model.task_parameters().items()}
    while True:
        with torch.no_grad():
            for name, value in model.task_parameters().items():
                value.copy_(start[name] + 0.1 * torch.randn(value.shape, generator=generator))
        yield model


def kinds(backbone: Backbone, count: int, *, pair: bool) -> list[PTuningModel]:
    """Tasks that differ in virtual tokens, first layer, units, readout and classes.

    Args:
        pair: Whether they take pairs of texts.
    """
    layers = backbone.num_layers
    every = list(
        itertools.product((1, 5, 8, 20), (0, layers // 2), (0, 4, 16), _READOUTS, range(len(_TASKS)))
    )
    found = []
    for tokens, first, units, (pooling, queries), which in random.Random(0).sample(every, count):
        prompt = DeepPrompt(
            num_virtual_tokens=tokens,
            first_layer=first,
            num_virtual_units=units,
            pooling=pooling,
            num_queries=queries,
        )
        model = PTuningModel.from_backbone(backbone, prompt, task=replace(_TASKS[which], pair=pair))
        found.append(next(_varied(model)))
    return found


_READOUTS: tuple[tuple[Literal["native", "mean", "layers"], int], ...] = (
    ("native", 0),
    ("mean", 0),
    ("layers", 0),
    ("layers", 2),
)
_TASKS = (
    Task(problem_type="single_label_classification", labels=("no", "yes")),
    Task(problem_type="single_label_classification", labels=tuple("abcde")),
    Task(problem_type="single_label_classification", labels=tuple("abcdefghijklmnopqrst")),
    Task(problem_type="multi_label_classification", labels=("x", "y", "z")),
    Task(problem_type="regression", mean=2.0, scale=3.0),
)


def unlike(backbone: Backbone, models: Sequence[PTuningModel], count: int) -> TaskTable:
    """Tasks of all the kinds in turn."""
    table = TaskTable(backbone)
    endless = [_varied(model, seed) for seed, model in enumerate(models)]
    for number in range(count):
        table.put(name_of(number), next(endless[number % len(endless)]))
    return table


def save(backbone: Backbone, folder: Path, count: int) -> None:
    """Adapter folders of like tasks for single texts, in ``folder``."""
    task = Task(problem_type="single_label_classification", labels=SENTIMENT)
    model = PTuningModel.from_backbone(backbone, default_prompt(), task=task)
    adapter = model.to_adapter()

    def one(number: int) -> None:
        adapters.save(other_numbers(adapter, number), folder / name_of(number))

    with ThreadPoolExecutor(8) as pool:  # they wait for the disk
        list(pool.map(one, range(count)))


def other_numbers(adapter: adapters.Adapter, seed: int) -> adapters.Adapter:
    """The adapter with other numbers, always the same for a seed."""
    generator = torch.Generator().manual_seed(seed)

    def changed(value: Tensor) -> Tensor:
        return value + 0.1 * torch.randn(value.shape, generator=generator)

    head = {name: changed(value) for name, value in adapter.head.items()}
    return replace(adapter, prompt_tensor=changed(adapter.prompt_tensor), head=head)


def some(folder: Path, target: Path, count: int, first: int = 0) -> Path:
    """``count`` of the adapters in ``folder``, in another one: hard links."""
    for number in range(first, first + count):
        shutil.copytree(folder / name_of(number), target / name_of(number), copy_function=os.link)
    return target
