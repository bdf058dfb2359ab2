"""How much a first step changes the logits, beside steps that are made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptuning import DeepPrompt, PTuningModel, Task
from ptuning.data.tokens import TokenRow
from ptuning.training.first_step import ROWS, FirstStep, first_step
from tiny import tiny

TASK = Task(problem_type="single_label_classification", labels=("a", "b", "c"))


def make(architecture: str, **choices: Any) -> PTuningModel:
    torch.manual_seed(0)
    config = DeepPrompt(num_virtual_tokens=4, **choices)
    return PTuningModel.from_backbone(tiny(architecture, num_labels=3), config, task=TASK)


def row(*ids: int) -> TokenRow:
    return TokenRow(input_ids=list(ids), token_type_ids=None, segment_ids=None)


def logits_of(model: PTuningModel, each: TokenRow) -> torch.Tensor:
    return model(input_ids=torch.tensor([each.input_ids])).logits[0]


@pytest.mark.parametrize(
    ("architecture", "choices"),
    [
        ("bert", {"pooling": "native"}),
        ("bert", {"pooling": "layers", "num_virtual_units": 3}),
        ("mpnet", {"pooling": "layers"}),  # a hidden layer in its head
        ("qwen2", {"pooling": "native"}),  # no bias in its head
    ],
)
def test_it_is_what_a_step_along_the_signs_of_the_slopes_does(
    architecture: str, choices: dict[str, Any]
) -> None:
    """Adam's first step by hand: each number by the learning rate, the way its slope says."""
    model = make(architecture, **choices).eval()
    rows, rate = [row(5, 9, 7), row(8, 6), row(9, 9, 5, 6)], 1e-5
    moved: dict[str, float] = {}
    for part in ("head", "prompt_encoder"):
        numbers = list(getattr(model, part).parameters())
        first = [value.detach().clone() for value in numbers]
        changes = []
        for number, each in enumerate(rows):  # class 0 of the first row, class 1 of the next, ...
            before = logits_of(model, each)[number]
            slopes = torch.autograd.grad(before, numbers)
            with torch.no_grad():
                for value, slope in zip(numbers, slopes, strict=True):
                    value.add_(slope.sign(), alpha=rate)
                changes.append(float(logits_of(model, each)[number] - before) / rate)
                for value, old in zip(numbers, first, strict=True):
                    value.copy_(old)
        moved[part] = sum(changes) / len(rows)
    with torch.no_grad():
        spread = float(torch.stack([logits_of(model, each) for each in rows]).std(dim=0).mean())
    found = first_step(model.train(), rows)
    assert found.head == pytest.approx(moved["head"], rel=0.03)
    assert found.prompt == pytest.approx(moved["prompt_encoder"] / spread, rel=0.05)
    assert model.training
    assert all(value.grad is None for value in model.parameters())


def test_the_size_of_an_untrained_linear_head_makes_no_difference() -> None:
    model, rows = make("bert", pooling="native"), [row(5, 9, 7), row(8, 6), row(9, 5, 6)]
    before = first_step(model, rows)
    model.head.copy_({name: value.detach() * 100 for name, value in model.head.named().items()})
    after = first_step(model, rows)
    assert after.prompt == pytest.approx(before.prompt, rel=1e-3)
    assert after.head == pytest.approx(before.head, rel=1e-3)  # what it reads is the same


def test_what_cannot_be_measured_is_zero() -> None:
    model = make("bert", pooling="native", train_head=False)
    rows = [row(5, 9, 7), row(8, 6)]
    assert first_step(model, rows).head == 0.0
    assert first_step(model, rows).prompt > 0.0
    model = make("bert", pooling="native")
    assert first_step(model, []) == first_step(model, rows[:1]) == FirstStep()
    model.head.copy_({name: value.detach() * float("nan") for name, value in model.head.named().items()})
    assert first_step(model, rows) == FirstStep()


def test_some_rows_are_enough_and_they_are_from_everywhere() -> None:
    model = make("bert", pooling="native")
    rows = [row(5 + i % 4, 5 + i % 3, 6) for i in range(2 * ROWS)]
    assert first_step(model, rows) == first_step(model, rows[::2])
