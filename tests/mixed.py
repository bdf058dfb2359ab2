"""Unlike tasks on one tiny backbone, for the tests of passes that they share."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from ptuning import Task
from ptuning.errors import UnsupportedBackbone
from ptuning.model import Backbone, DeepPrompt, InputPrompt, PTuningModel
from ptuning.model.batch import Batch
from tiny import ragged

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


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    """Rows of two texts, of these lengths."""
    ids, mask = ragged(lengths, seed=seed)
    segments = torch.full_like(ids, -1)
    for row, length in enumerate(lengths):
        segments[row, 1 : 1 + (length - 1) // 2] = 0
        segments[row, 1 + (length - 1) // 2 : length] = 1
        segments[row, length - 1] = -1 if length > 3 else segments[row, length - 1]
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        token_type_ids=(segments == 1).long(),
        segment_ids=segments,
    )


def alone(model: PTuningModel, batch: Batch, row: int) -> Tensor:
    """The row's logits from its own task, without other rows and without padding."""
    length = int(batch.attention_mask[row].sum())
    inputs = {name: value[row : row + 1, :length] for name, value in vars(batch).items() if value is not None}
    with torch.inference_mode():
        found: Tensor = model(**inputs).logits[0]
    return found


def assert_close(found: Tensor, expected: Tensor, what: str = "") -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale, msg=lambda text: f"{what}: {text}")
