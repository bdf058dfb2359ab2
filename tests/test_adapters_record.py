"""The record of a trained task; :func:`an_adapter` makes the ones that the other adapter tests use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ptuning import adapters
from ptuning.adapters import Adapter
from ptuning.errors import AdapterError
from ptuning.task import Task

FACTS: dict[str, Any] = {
    "name": "someone/tiny-bert",
    "revision": None,
    "model_type": "bert",
    "num_layers": 3,
    "hidden_size": 16,
    "embedding_size": 16,
    "key_value_size": 8,
    "vocab_size": 40,
    "fingerprint": "ab" * 32,
}
TASK = Task(problem_type="single_label_classification", labels=("no", "yes"))
INPUT: dict[str, Any] = {
    "depth": "input",
    "num_virtual_tokens": 4,
    "placement": "start",
    "encoder": {"kind": "embedding"},
    "init": {"kind": "vocabulary"},
    "train_head": True,
}
DEEP: dict[str, Any] = {
    "depth": "deep",
    "num_virtual_tokens": 4,
    "first_layer": 0,
    "position_offset": 4,
    "encoder": {"kind": "embedding"},
    "train_head": True,
}


def an_adapter(
    prompt: dict[str, Any] | None = None, *, facts: dict[str, Any] | None = None, **given: Any
) -> Adapter:
    """A random adapter: choices over :data:`INPUT` or :data:`DEEP`, facts over :data:`FACTS`."""
    choices = {**(DEEP if (prompt or {}).get("depth") == "deep" else INPUT), **(prompt or {})}
    backbone = {**FACTS, **(facts or {})}
    tokens = choices["num_virtual_tokens"] or 4
    if choices["depth"] == "deep":
        shape: tuple[int, ...] = (
            backbone["num_layers"] - choices["first_layer"],
            2,
            tokens,
            backbone["key_value_size"],
        )
    else:
        shape = (tokens, backbone["embedding_size"])
    generator = torch.Generator().manual_seed(0)
    task = given.get("task", TASK)
    made: dict[str, Any] = {
        "task": task,
        "prompt_tensor": torch.randn(shape, generator=generator),
        "head": {
            "classifier.weight": torch.randn(task.num_labels, 16, generator=generator),
            "classifier.bias": torch.randn(task.num_labels, generator=generator),
        },
    }
    return Adapter(prompt=choices, backbone=backbone, **{**made, **given})


def test_counts() -> None:
    adapter = an_adapter()
    assert (adapter.virtual_tokens, adapter.prompt_parameters, adapter.head_parameters) == (4, 64, 34)
    deep = an_adapter({"depth": "deep", "first_layer": 1, "train_head": False})
    assert (deep.deep, deep.virtual_tokens, deep.prompt_parameters, deep.head_parameters) == (True, 4, 128, 0)


def test_a_template_counts_its_own_tokens() -> None:
    template = {"placement": "{prompt:4} {text_a}", "num_virtual_tokens": None}
    assert an_adapter(template, prompt_tensor=torch.zeros(9, 16)).virtual_tokens == 9


@pytest.mark.parametrize(
    ("prompt", "tensor", "message"),
    [
        (
            {},
            torch.zeros(4, 15),
            r"the shape \[4, 15\], expected \[4, 16\] for depth 'input' on someone/tiny-bert",
        ),
        ({}, torch.zeros(5, 16), r"the shape \[5, 16\], expected \[4, 16\]"),
        ({"depth": "deep"}, torch.zeros(4, 16), r"expected \[3, 2, 4, 8\] for depth 'deep'"),
        ({"depth": "deep", "first_layer": 1}, torch.zeros(3, 2, 4, 8), r"expected \[2, 2, 4, 8\]"),
        ({}, torch.zeros(4, 16, dtype=torch.bfloat16), r"bfloat16, expected torch.float32; convert it"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    prompt: dict[str, Any], tensor: torch.Tensor, message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        an_adapter(prompt, prompt_tensor=tensor)


def test_this_room_stands_below_the_model() -> None:
    """``PTuningModel.save_pretrained`` calls it, so it may know choices and tasks, and nothing above."""
    files = sorted(Path(adapters.__file__).parent.glob("*.py"))
    imported = {
        name for file in files for name in re.findall(r"^from (ptuning\S*) import", file.read_text(), re.M)
    }
    assert {name for name in imported if not name.startswith("ptuning.adapters.")} == {
        "ptuning.errors",
        "ptuning.files",
        "ptuning.kinds",
        "ptuning.model.config",  # choices alone: no backbone, no torch
        "ptuning.model.template",  # nor here
        "ptuning.paths",
        "ptuning.task",
        "ptuning.validation",
        "ptuning.visible",
    }


def test_public_names() -> None:
    assert sorted(adapters.__all__, key=lambda name: (not name.isupper(), name)) == adapters.__all__
    assert all(getattr(adapters, name).__doc__ for name in adapters.__all__)
