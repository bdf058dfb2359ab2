"""``Engine.compile``: the same numbers, and as few compilations for any length and any number of layers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ptuning.model import Backbone, DeepPrompt, InputPrompt, PromptConfig, PTuningModel
from ptuning.model.config import Engine
from ptuning.task import Task
from tiny import ragged, tiny_case

pytestmark = [
    pytest.mark.slow,
    # What torch's compiler warns of while it works is between it and its parts.
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]
dynamo = pytest.importorskip("torch._dynamo")
testing = pytest.importorskip("torch._dynamo.testing")

P = 4
OFF = Engine(attention="fused", pooled_layer=False, shared_prompt=False, reuse_stem=False)
ON = Engine(compile=True)
THREE = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
LENGTHS = [[9, 3, 6, 2], [5, 4], [12, 7, 7], [20, 3, 3, 3, 3], [6, 2, 4]]
"""Of the rows of each batch, none of them without padding."""


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    dynamo.reset()
    yield
    dynamo.reset()


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Torch's compiler up to the graph, which is then run as it is: quick, and it counts the graphs."""
    backend = testing.CompileCounterWithBackend("eager")
    compiled: Callable[..., Any] = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled(function, backend=backend, **how))
    with dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield backend


def task_on(case: str, config: PromptConfig, layers: int = 3, **given: Any) -> PTuningModel:
    torch.manual_seed(1)
    model = PTuningModel(Backbone(tiny_case(case, num_hidden_layers=layers)), config, THREE, **given).eval()
    with torch.no_grad():
        for name, value in model.task_parameters().items():
            if not name.startswith("head."):
                value.normal_()
    return model


CONFIGS: dict[str, PromptConfig] = {
    "deep": DeepPrompt(num_virtual_tokens=P),
    "deep from 1": DeepPrompt(num_virtual_tokens=P, first_layer=1),
    "units": DeepPrompt(num_virtual_tokens=P, first_layer=1, num_virtual_units=3),
    "input": InputPrompt(num_virtual_tokens=P),
}


Learned = tuple[Tensor, dict[str, Tensor]]


def learned(model: PTuningModel, engine: Engine, lengths: list[int], **given: Any) -> Learned:
    model.backbone.engine = engine
    model.zero_grad()
    ids, mask = ragged(lengths)
    logits = model(ids, mask, **given).logits
    logits.square().sum().backward()
    return logits.detach(), {
        name: value.grad.clone()  # type: ignore[union-attr]
        for name, value in model.task_parameters().items()
    }


def assert_same(got: Learned, expected: Learned, tolerance: float = 2e-5) -> None:
    scale = max(1.0, float(expected[0].abs().max()))
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=tolerance * scale)
    largest = max(float(value.abs().max()) for value in expected[1].values())
    assert largest > 0
    for name, value in expected[1].items():
        torch.testing.assert_close(got[1][name], value, rtol=0, atol=tolerance * largest, msg=name)


def test_compiled_layers_learn_the_same() -> None:
    """With torch's own compiler, to machine code."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no C++ compiler here, and torch.compile needs one")
    model = task_on("bert", CONFIGS["deep from 1"])
    for lengths in LENGTHS[:2]:
        assert_same(learned(model, ON, lengths), learned(model, OFF, lengths), tolerance=1e-4)


@pytest.mark.parametrize(
    ("case", "config"),
    [("bert", "deep from 1"), ("modernbert", "deep from 1"), ("bert", "units")],
)
def test_new_lengths_are_not_compiled_anew(case: str, config: str, counter: Any) -> None:
    """Neither batches that are longer nor ones of more rows, once two of them were met."""
    model = task_on(case, CONFIGS[config])
    seen = []
    for lengths in LENGTHS:
        assert_same(learned(model, ON, lengths), learned(model, OFF, lengths))
        seen.append(counter.frame_count)
    assert seen[0] > 0
    assert seen[1:] == seen[1:2] * (len(LENGTHS) - 1)


@pytest.mark.parametrize(("case", "config"), [("bert", "deep from 1"), ("bert", "units")])
def test_more_layers_are_not_more_compilations(case: str, config: str, counter: Any) -> None:
    seen = []
    for layers in (4, 6):  # with 3 there is none that has both a prompt and a gradient from below
        dynamo.reset()
        counter.clear()
        model = task_on(case, CONFIGS[config], layers)
        for lengths in LENGTHS[:3]:
            assert_same(learned(model, ON, lengths), learned(model, OFF, lengths))
        seen.append(counter.frame_count)
    assert seen[0] == seen[1] > 0


@pytest.mark.parametrize(("case", "config"), [("bert", "deep")])
def test_a_whole_life_stays_below_torchs_limit_of_compilations(case: str, config: str, counter: Any) -> None:
    """Training, evaluation, rows without padding, a single row. Beyond the limit torch compiles no more and
    runs as if it had never been asked, which nobody would notice.
    """
    model = task_on(case, CONFIGS[config], layers=6)
    for lengths in (*LENGTHS, [7, 7], [8], [2]):
        assert_same(learned(model, ON, lengths), learned(model, OFF, lengths))
        with torch.inference_mode():
            ids, mask = ragged(lengths)
            model.backbone.engine = ON
            model(ids, mask)
    assert counter.frame_count > 0


def test_with_checkpointing_it_learns_the_same(counter: Any) -> None:
    model = task_on("bert", CONFIGS["deep"]).train()
    for lengths in LENGTHS[:2]:
        got = learned(model, replace(ON, checkpoint_activations=True), lengths)
        assert_same(got, learned(model, OFF, lengths))
    assert counter.frame_count > 0


def test_a_stem_goes_through_compiled_layers(counter: Any) -> None:
    model = task_on("llama", DeepPrompt(num_virtual_tokens=P, first_layer=2), layers=4)
    ids, mask = ragged(LENGTHS[0])
    expected = learned(model, OFF, LENGTHS[0])
    plain = model.stem(ids, mask)
    model.backbone.engine = ON
    stem = model.stem(ids, mask)
    assert counter.frame_count > 0
    torch.testing.assert_close(stem, plain, rtol=0, atol=1e-4)
    assert_same(learned(model, ON, LENGTHS[0], stem=stem), expected)


def test_a_head_inside_the_transformer_reaches_compiled_layers(counter: Any) -> None:
    """Its parameters take the place of the backbone's for one call."""
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    own = tiny_case("bert").get_parameter(name)
    model = task_on("bert", CONFIGS["deep"], head={name: torch.randn_like(own) / 4})
    other = PTuningModel(model.backbone, CONFIGS["deep"], THREE).eval()
    for each in (model, other, model):
        expected = learned(each, OFF, LENGTHS[0])
        assert_same(learned(each, ON, LENGTHS[0]), expected)
    assert counter.frame_count > 0


def test_a_copy_of_a_compiled_model_computes_and_learns_by_itself(counter: Any) -> None:
    model = task_on("bert", CONFIGS["deep"])
    expected = learned(model, ON, LENGTHS[0])
    other = deepcopy(model)
    assert other.backbone.engine.compile
    with torch.no_grad():
        for value in model.backbone.parameters():
            value.mul_(0.5)
    before = {name: value.detach().clone() for name, value in model.task_parameters().items()}
    optimizer = torch.optim.SGD(other.task_parameters().values(), lr=0.1)
    assert_same(learned(other, ON, LENGTHS[0]), expected)
    optimizer.step()
    assert not torch.allclose(learned(other, ON, LENGTHS[0])[0], expected[0], atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.task_parameters().items())
    assert_same(learned(model, ON, LENGTHS[0]), learned(model, OFF, LENGTHS[0]))
