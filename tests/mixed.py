"""Unlike tasks on one tiny backbone, for the tests of passes that they share."""

from __future__ import annotations

import random
from typing import Any

import torch

from ptuning import Task
from ptuning.errors import UnsupportedBackbone
from ptuning.model import Backbone, DeepPrompt, InputPrompt, PTuningModel

KINDS: tuple[Task, ...] = (
    Task(problem_type="single_label_classification", labels=("no", "yes")),
    Task(problem_type="single_label_classification", labels=tuple("abcde")),
    Task(problem_type="multi_label_classification", labels=("x", "y", "z")),
    Task(problem_type="regression", mean=2.0, scale=3.0),
)

PROMPTS: tuple[Any, ...] = (
    DeepPrompt(num_virtual_tokens=4, pooling="native"),
    DeepPrompt(num_virtual_tokens=1, pooling="native", first_layer=1, position_offset=0),
    DeepPrompt(num_virtual_tokens=7, pooling="mean", num_virtual_units=3),
    DeepPrompt(num_virtual_tokens=3, pooling="layers"),
    DeepPrompt(num_virtual_tokens=3, pooling="layers", num_queries=2, first_layer=2),
    DeepPrompt(num_virtual_tokens=5, pooling="layers", num_queries=1, num_virtual_units=2, position_offset=2),
    DeepPrompt(num_virtual_tokens=2, pooling="similarity", num_virtual_units=2, first_layer=1),
    InputPrompt(num_virtual_tokens=3, placement="start"),
    InputPrompt(num_virtual_tokens=2, placement="start"),
    InputPrompt(num_virtual_tokens=3, placement="front"),
    InputPrompt(num_virtual_tokens=4, placement="middle"),
)
"""One of each thing in which tasks can differ."""


def unlike(backbone: Backbone, seed: int = 0) -> list[PTuningModel]:
    """A trained-looking task with each of :data:`PROMPTS` that the backbone can have."""
    draw = random.Random(seed)
    found = []
    for config in PROMPTS:
        kind = draw.choice(KINDS)
        if getattr(config, "pooling", None) == "similarity":
            kind = Task(**{**kind.to_dict(), "labels": kind.labels, "pair": True})
        try:
            model = PTuningModel.from_backbone(backbone, config, task=kind)
        except UnsupportedBackbone:
            continue
        found.append(shaken(model))
    return found


def shaken(model: PTuningModel) -> PTuningModel:
    """Every parameter is large enough to matter, as if it had been trained."""
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(torch.randn_like(value) * 0.3)
    return model.eval()
