"""Rows of different tasks in one pass: each answer is the one that its task alone gives, unbatched."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from mixed import unlike
from ptuning.model import Backbone, PTuningModel
from ptuning.model.mixed import mixed_logits
from ptuning.model.packed import PackedTask, pack
from ptuning.model.sequence import Batch
from tiny import CASES, ragged, tiny_case


@cache
def tasks_of(case: str) -> tuple[Backbone, list[PTuningModel], list[PackedTask]]:
    torch.manual_seed(0)
    backbone = Backbone(tiny_case(case))
    models = unlike(backbone)
    return backbone, models, [pack(model, str(i)) for i, model in enumerate(models)]


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


@pytest.mark.parametrize("case", CASES)
def test_unlike_tasks_share_a_batch(case: str) -> None:
    backbone, models, packed = tasks_of(case)
    owners = [*range(len(models)), *reversed(range(len(models))), 0, 0, 0]
    batch = batch_of([4 + (3 * i) % 9 for i in range(len(owners))])
    with torch.inference_mode():
        found = mixed_logits(backbone, batch, [packed[owner] for owner in owners])
    for row, owner in enumerate(owners):
        what = f"{models[owner].prompt_config}, {models[owner].task}"
        assert_close(found[row], alone(models[owner], batch, row), what)
