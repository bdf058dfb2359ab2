"""Labels that a model cannot take are said by us: in one's own loop, in the Trainer, under PEFT's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.errors import DataError, TrainingDiverged
from ptuning.model import PTuningModel
from ptuning.model.targets import loss_of
from ptuning.peft import PromptEncoderConfig, get_peft_model
from ptuning.task import Task
from tiny import ragged, tiny
from trainers import CONFIGS, examples, make, trainer

TWO = Task(problem_type="single_label_classification", labels=("bad", "good"))
THREE = Task(problem_type="single_label_classification", labels=(0, 1, 2))
MANY = Task(problem_type="single_label_classification", labels=tuple(range(40)))
SEVERAL = Task(problem_type="multi_label_classification", labels=("x", "y", "z"))
SCORE = Task(problem_type="regression", mean=1.0, scale=2.0)

TAKEN: dict[str, tuple[Task, Any, Callable[[Tensor], Tensor]]] = {
    "indices": (THREE, [0, 2, 1, 1], lambda x: F.cross_entropy(x, torch.tensor([0, 2, 1, 1]))),
    "small integers": (
        THREE,
        torch.tensor([0, 2, 1, 1], dtype=torch.int16),
        lambda x: F.cross_entropy(x, torch.tensor([0, 2, 1, 1])),
    ),
    "a column": (THREE, [[0], [2], [1], [1]], lambda x: F.cross_entropy(x, torch.tensor([0, 2, 1, 1]))),
    "rows that do not count": (
        THREE,
        [0, -100, 1, -100],
        lambda x: F.cross_entropy(x[::2], torch.tensor([0, 1])),
    ),
    "truth values": (
        TWO,
        [True, False, True, True],
        lambda x: F.cross_entropy(x, torch.tensor([1, 0, 1, 1])),
    ),
    "zeros and ones": (
        SEVERAL,
        [[0, 1, 1]] * 4,
        lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor([[0.0, 1.0, 1.0]] * 4)),
    ),
    "shares": (
        SEVERAL,
        [[0.0, 0.9, 0.5]] * 4,
        lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor([[0.0, 0.9, 0.5]] * 4)),
    ),
    "scores": (SCORE, [1, 2, 3, 4], lambda x: ((x[:, 0] - torch.arange(1.0, 5)) / 2).square().mean()),
    "a column of scores": (
        SCORE,
        [[1.0], [2.0], [3.0], [4.0]],
        lambda x: ((x[:, 0] - torch.arange(1.0, 5)) / 2).square().mean(),
    ),
}

REFUSED: dict[str, tuple[Task, Any, str]] = {
    "counted from 1": (
        TWO,
        [1, 2, 1, 1],
        "got 2 in row 1 of the batch, expected 0 or 1, the index of one of 'bad', 'good'; "
        "count the classes from 0, or make the model with as many labels as the data have (at least 3)",
    ),
    "far out": (
        THREE,
        [0, 1, 7, 1],
        "got 7 in row 2 of the batch, expected 0 to 2, a class index; make the model with as many "
        "labels as the data have (at least 8)",
    ),
    "many": (
        MANY,
        [0, 40, 1, 1],
        "got 40 in row 1 of the batch, expected 0 to 39, a class index; count the classes from",
    ),
    "no label": (
        THREE,
        [0, 1, 2, -1],
        "got -1 in row 3 of the batch, expected 0 to 2, a class index; if it means that the "
        "row has no label, leave the row out, or write -100 there",
    ),
    "floats": (
        THREE,
        [0.0, 1.0, 2.0, 1.0],
        "got float32 of shape [4], expected whole numbers (0 to 2, a class index); pass "
        "class indices as whole numbers, [B],",
    ),
    "truth values for three": (
        THREE,
        [True, False, True, True],
        "got bool of shape [4], expected whole numbers",
    ),
    "multi-hot, floats": (
        THREE,
        [[0.0, 1.0, 1.0]] * 4,
        "got float32 of shape [4, 3], several labels per row, expected one label per row",
    ),
    "multi-hot, integers": (
        THREE,
        [[0, 1, 1]] * 4,
        "got int64 of shape [4, 3], several labels per row, expected one label per row",
    ),
    "too few": (THREE, [0, 1], "got int64 of shape [2], expected one label for each of 4 rows"),
    "a width of its own": (
        THREE,
        [[0, 1]] * 4,
        "got int64 of shape [4, 2], expected one label for each of 4 rows",
    ),
    "a list": (THREE, None, "got a list, expected a tensor"),
    "indices for several": (
        SEVERAL,
        [0, 1, 2, 1],
        "got int64 of shape [4], expected zeros and ones of shape [4, 3], one for "
        "each label of each row; pass [B, C] zeros and ones, or make the model",
    ),
    "above 1": (SEVERAL, [[0, 1, 2]] * 4, "got 2 in row 0 of the batch, expected zeros and ones"),
    "below 0": (SEVERAL, [[0, 1, -100]] * 4, "got -100 in row 0 of the batch, expected zeros and ones"),
    "no score": (
        SCORE,
        [1.0, math.nan, 2.0, 3.0],
        "got nan in row 1 of the batch, expected a finite number; remove the row",
    ),
    "many scores": (
        SCORE,
        [[1.0, 2.0]] * 4,
        "got float32 of shape [4, 2], expected one label for each of 4 rows",
    ),
}


def labels_of(given: Any) -> Any:
    return [0, 1, 2, 1] if given is None else given if isinstance(given, Tensor) else torch.tensor(given)


@cache
def shared(task: Task) -> PTuningModel:
    return make(CONFIGS["deep"], task)


@pytest.mark.parametrize("name", TAKEN)
def test_what_a_task_can_take_gives_the_loss(name: str) -> None:
    task, given, expected = TAKEN[name]
    logits = torch.randn(4, task.num_labels)
    assert loss_of(logits, labels_of(given), task, None) == pytest.approx(float(expected(logits)), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_is_one_sentence(name: str, training: bool) -> None:
    task, given, message = REFUSED[name]
    model = shared(task).train(training)
    ids, mask = ragged([5, 6, 7, 4])
    if task is SCORE and "nan" in message and not training:  # an evaluation goes on, and says NaN
        assert bool(model(input_ids=ids, attention_mask=mask, labels=labels_of(given)).loss.isnan())
        return
    with pytest.raises(DataError) as caught:
        model(input_ids=ids, attention_mask=mask, labels=labels_of(given))
    assert str(caught.value).startswith(f"labels: {message}")
    assert "\n" not in str(caught.value)


class Elsewhere(Tensor):
    """A tensor that says it is on an accelerator, where a look at a value would wait for it."""

    @property
    def device(self) -> Any:  # type: ignore[override]
        return torch.device("cuda")

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return self.as_subclass(Tensor)


@pytest.mark.parametrize("name", [*TAKEN, *REFUSED])
def test_on_an_accelerator_the_loss_is_nan_and_no_value_is_looked_at(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class index out of range would end the process's use of the device."""
    task, given = (TAKEN.get(name) or REFUSED[name])[:2]
    labels = labels_of(given)
    if not isinstance(labels, Tensor):
        return
    logits = torch.randn(4, task.num_labels)

    def look(*_: Any) -> None:
        raise AssertionError("a value was looked at")

    monkeypatch.setattr(Tensor, "__bool__", look)
    monkeypatch.setattr(Tensor, "item", look)
    try:
        found = loss_of(logits, labels.as_subclass(Elsewhere), task, None).as_subclass(Tensor)
    except DataError:  # a kind or shape
        assert "row" not in REFUSED[name][2].split(",")[0]
        return
    monkeypatch.undo()
    assert bool(found.isnan()) == (name in REFUSED)
    if name in TAKEN:
        assert float(found) == pytest.approx(float(TAKEN[name][2](logits)), rel=1e-6)


@pytest.mark.parametrize(
    ("bad", "message", "peft"),
    [
        (3, "got 3 in row", False),
        (-1, "got -1 in row", True),
        (0.5, "got float", False),
        ([1, 0, 1], "several labels", True),
    ],
)
def test_the_trainer_says_it_too(tmp_path: Path, bad: Any, message: str, peft: bool) -> None:
    rows = examples(8)
    for row in rows[4 * isinstance(bad, int) :]:
        row["labels"] = bad
    config = PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    model: Any = get_peft_model(tiny("bert"), config) if peft else None
    made = trainer(tmp_path, CONFIGS["deep"], rows=rows, model=model)
    with pytest.raises(DataError, match=f"^labels: .*{message}"):
        made.train()


def test_a_loss_that_is_not_finite_for_another_reason_is_said_as_before() -> None:
    model = make(CONFIGS["deep"], THREE).train()
    ids, mask = ragged([5, 6])
    with torch.no_grad():
        next(iter(model.task_parameters().values())).fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="the loss: got nan"):
        model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1]))
    found = model.eval()(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1]))
    assert bool(found.loss.isnan())
