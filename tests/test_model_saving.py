"""Saving what was loaded: what was measured of it stays with it as long as it is the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ptuning import DeepPrompt, InputPrompt, PTuningModel, Task
from ptuning.adapters import details, load
from ptuning.peft import PeftModel
from tiny import ragged, tiny

METRICS = {"test": {"accuracy": 0.75}, "baseline": {"accuracy": 0.5}, "baseline_rule": "always 'a'"}
EXTRA = {"note": "of a test", "license": "mit"}
TASKS = {
    "classes": Task(problem_type="single_label_classification", labels=("a", "b", "c")),
    "number": Task(problem_type="regression", mean=3.0, scale=2.0),
}
PROMPTS: dict[str, DeepPrompt | InputPrompt] = {
    "deep": DeepPrompt(num_virtual_tokens=4),
    "front": InputPrompt(num_virtual_tokens=4),
}
IDS, MASK = ragged([9, 4, 7])


@pytest.fixture(params=[(prompt, task) for prompt in PROMPTS for task in TASKS], ids="-".join)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An adapter with metrics, on a tiny BERT."""
    prompt, task = (PROMPTS[request.param[0]], TASKS[request.param[1]])
    model = PTuningModel.from_backbone(tiny("bert", num_labels=task.num_labels), prompt, task=task)
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(torch.randn_like(value) * 0.3)
    return model.save_pretrained(tmp_path / "first", metrics=METRICS, extra=EXTRA)


def loaded(folder: Path, **given: Any) -> PTuningModel:
    return PTuningModel.from_pretrained(
        folder, backbone=tiny("bert", num_labels=load(folder).task.num_labels), **given
    )


def step(model: PTuningModel, *, only: str = "", rate: float = 1e-2) -> None:
    """One step of an ordinary loop, over the parameters whose names begin so."""
    model.train()
    chosen = [value for name, value in model.task_parameters().items() if name.startswith(only)]
    optimizer = torch.optim.AdamW(chosen, lr=rate)
    labels = torch.tensor([0.0, 1.0, 5.0]) if model.task.is_regression else torch.tensor([0, 1, 2])
    loss = model(input_ids=IDS, attention_mask=MASK, labels=labels).loss
    loss.backward()
    optimizer.step()


def kept(folder: Path) -> bool:
    """Whether the folder holds the figures, whole; the card is asked too."""
    record, card = details(folder), (folder / "README.md").read_text()
    found = (record["metrics"], record["extra"])
    assert found in ((METRICS, EXTRA), ({}, {}))
    assert ("0.75" in card) == bool(record["metrics"])
    return bool(record["metrics"])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_untrained_it_keeps_them(saved: Path, tmp_path: Path, dtype: torch.dtype | None) -> None:
    """However the backbone is held: prompt and head are in fp32 always."""
    model = loaded(saved, dtype=dtype)
    assert kept(model.save_pretrained(tmp_path / "second"))
    model(input_ids=IDS, attention_mask=MASK)  # use changes nothing
    model.train()
    assert kept(model.save_pretrained(tmp_path / "second"))
    assert kept(loaded(tmp_path / "second").save_pretrained(tmp_path / "third"))  # and so on
    assert kept(loaded(saved).save_pretrained(saved))  # in place of itself
    assert torch.equal(load(tmp_path / "third").prompt_tensor, load(saved).prompt_tensor)


@pytest.mark.parametrize("only", ["", "prompt_encoder", "head"])
def test_trained_it_drops_them(saved: Path, tmp_path: Path, only: str) -> None:
    model = loaded(saved)
    step(model, only=only)
    assert not kept(model.save_pretrained(tmp_path / "second"))
    assert kept(saved)  # what was loaded stands as it stood


def change_the_prompt(model: PTuningModel) -> None:
    with torch.no_grad():
        next(model.prompt_encoder.parameters()).view(-1)[-1].add_(1e-6)


def change_the_head(model: PTuningModel) -> None:
    with torch.no_grad():
        model.head.named()["classifier.bias"].view(-1)[-1].add_(1e-6)


def take_another_state(model: PTuningModel) -> None:
    other = copy.deepcopy(model)
    change_the_prompt(other)
    model.load_state_dict(other.state_dict())


@pytest.mark.parametrize("change", [change_the_prompt, change_the_head, take_another_state])
def test_whatever_changed_a_number(
    saved: Path, tmp_path: Path, change: Callable[[PTuningModel], None]
) -> None:
    """It need not have been an optimizer."""
    model = loaded(saved)
    change(model)
    assert not kept(model.save_pretrained(tmp_path / "second"))


def test_a_step_that_was_taken_back(saved: Path, tmp_path: Path) -> None:
    """The numbers that were measured are there again, so the figures are true of them."""
    model = loaded(saved)
    before = {name: value.detach().clone() for name, value in model.task_parameters().items()}
    step(model)
    with torch.no_grad():
        for name, value in model.task_parameters().items():
            value.copy_(before[name])
    assert kept(model.save_pretrained(tmp_path / "second"))


def test_what_is_given_wins(saved: Path, tmp_path: Path) -> None:
    newer = {"test": {"accuracy": 0.875}}
    model = loaded(saved)
    record = details(model.save_pretrained(tmp_path / "second", metrics=newer))
    assert (record["metrics"], record["extra"]) == (newer, EXTRA)
    step(model)
    record = details(model.save_pretrained(tmp_path / "third", metrics=newer))
    assert (record["metrics"], record["extra"]) == (newer, {})
    record = details(model.save_pretrained(tmp_path / "third", extra={"note": "newer"}))
    assert (record["metrics"], record["extra"]) == ({}, {"note": "newer"})


def test_under_pefts_names(saved: Path, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(
        tiny("bert", num_labels=load(saved).task.num_labels), saved, is_trainable=True
    )
    model.save_pretrained(tmp_path / "second")
    assert kept(tmp_path / "second")
    step(model.active)
    model.save_pretrained(tmp_path / "second")
    assert not kept(tmp_path / "second")


def test_one_that_was_never_loaded_claims_nothing(tmp_path: Path) -> None:
    model = PTuningModel.from_backbone(tiny("bert"), PROMPTS["deep"], task=TASKS["classes"])
    model.save_pretrained(tmp_path / "first", metrics=METRICS, extra=EXTRA)
    assert not kept(model.save_pretrained(tmp_path / "second"))
