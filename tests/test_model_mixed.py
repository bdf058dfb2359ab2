"""Rows of different tasks in one pass: each answer is the one that its task alone gives, unbatched."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from mixed import alone, assert_close, batch_of, unlike
from ptuning.model import Backbone, PTuningModel
from ptuning.model.mixed import mixed_logits
from ptuning.model.packed import PackedTask, pack
from tiny import SPECIFICS, THOROUGH, tiny_case


@cache
def tasks_of(case: str) -> tuple[Backbone, list[PTuningModel], list[PackedTask]]:
    torch.manual_seed(0)
    backbone = Backbone(tiny_case(case))
    models = unlike(backbone)
    return backbone, models, [pack(model, str(i)) for i, model in enumerate(models)]


@pytest.mark.parametrize("case", dict.fromkeys((*SPECIFICS, *THOROUGH)))
def test_unlike_tasks_share_a_batch(case: str) -> None:
    backbone, models, packed = tasks_of(case)
    owners = [*range(len(models)), *reversed(range(len(models))), 0, 0, 0]
    batch = batch_of([4 + (3 * i) % 9 for i in range(len(owners))])
    with torch.inference_mode():
        found = mixed_logits(backbone, batch, [packed[owner] for owner in owners])
    for row, owner in enumerate(owners):
        what = f"{models[owner].prompt_config}, {models[owner].task}"
        assert_close(found[row], alone(models[owner], batch, row), what)
