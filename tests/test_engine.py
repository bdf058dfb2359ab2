"""The engine: each thing that it saves can be switched off, and neither logits nor gradients change."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedTokenizerFast

from ptuning.data.tokens import TokenRow, collate
from ptuning.errors import ConfigError, UnsupportedBackbone
from ptuning.inference.evaluate import logits_of
from ptuning.model import (
    Backbone,
    DeepMLPEncoder,
    DeepPrompt,
    InputPrompt,
    LSTMEncoder,
    PromptConfig,
    PTuningModel,
)
from ptuning.model.config import Engine
from ptuning.model.encoder import Encoder
from ptuning.task import Task
from tiny import FAMILIES, LAYERS, PAD, THOROUGH, VOCAB, tiny, tiny_case

P = 4
OFF = Engine(attention="fused", pooled_layer=False, shared_prompt=False, reuse_stem=False)
SWITCHES = {
    "as it is by default": Engine(),
    "plain attention": replace(OFF, attention="plain"),
    "one token in the last layer": replace(OFF, pooled_layer=True),
    "the prompt once a batch": replace(OFF, shared_prompt=True),
    "checkpointing": replace(OFF, checkpoint_activations=True),
    "everything": Engine(attention="plain", checkpoint_activations=True),
}
switches = pytest.mark.parametrize("engine", SWITCHES.values(), ids=SWITCHES)
ANCHORED = "{prompt:2} two words {prompt:2} {text_a} {text_b}"
BEHIND = "{text_a} {prompt:2} two words {prompt:2} {text_b}"
PLACEMENTS = ("start", "front", "between", "middle", "end", ANCHORED, BEHIND)
DECODERS = ("gpt2", "llama")
THREE = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
PAIRS = [(4, 3), (1, 1), (2, 3), (1, 2)]
"""Tokens of the first and the second text of each row."""


# ---------------------------------------------------------------------------------------- helpers


def prompt(depth: str, **choices: Any) -> PromptConfig:
    if depth == "deep":
        return DeepPrompt(num_virtual_tokens=P, **choices)
    count = None if "{" in choices.get("placement", "") else P
    return InputPrompt(num_virtual_tokens=count, **choices)


@cache
def backbone(case: str) -> Backbone:
    return Backbone(tiny_case(case))


class TwoWords:
    """A template's literal words."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [{"two": 11, "words": 12}[word] for word in text.split()]}


def task_on(held: Backbone | str, config: PromptConfig, task: Task = THREE, **given: Any) -> PTuningModel:
    """A task whose prompt is large enough to matter."""
    torch.manual_seed(1)
    held = backbone(held) if isinstance(held, str) else held
    if "words" in getattr(config, "placement", ""):
        given = {"tokenizer": TwoWords(), **given}
    model = PTuningModel(held, config, task, **given)
    with torch.no_grad():
        for value in model.prompt_encoder.parameters():
            value.normal_()
    return model.eval()


def batch(
    pairs: Sequence[tuple[int, int]] = PAIRS, *, left: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """``[CLS] a… [SEP] b… [SEP]``, as a collator would hand it over."""
    generator = torch.Generator().manual_seed(seed)
    width = max(first + second + 3 for first, second in pairs)

    def padded(values: list[int], fill: int) -> list[int]:
        padding = [fill] * (width - len(values))
        return [*padding, *values] if left else [*values, *padding]

    found: dict[str, list[list[int]]] = {
        name: [] for name in ("input_ids", "attention_mask", "token_type_ids", "segment_ids")
    }
    for first, second in pairs:
        words = torch.randint(13, VOCAB, (first + second,), generator=generator).tolist()
        found["input_ids"].append(padded([0, *words[:first], 2, *words[first:], 2], PAD))
        found["attention_mask"].append(padded([1] * (first + second + 3), 0))
        found["token_type_ids"].append(padded([0] * (first + 2) + [1] * (second + 1), 0))
        found["segment_ids"].append(padded([-1, *[0] * first, -1, *[1] * second, -1], -1))
    return {name: torch.tensor(rows) for name, rows in found.items()}


Learned = tuple[Tensor, dict[str, Tensor]]


def able(model: PTuningModel, engine: Engine) -> Engine:
    """``engine`` without what the architecture refuses."""
    refuses = not model.backbone.port.can.layers
    return replace(engine, checkpoint_activations=False) if refuses else engine


def learned(model: PTuningModel, engine: Engine, inputs: dict[str, Tensor], **given: Any) -> Learned:
    """The logits of a batch, and what each trained parameter would learn from it."""
    model.backbone.engine = able(model, engine)
    model.zero_grad()
    logits = model(**inputs, **given).logits
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits * weights + logits.square()).sum().backward()
    parameters = model.task_parameters()
    assert all(value.grad is not None for value in parameters.values())
    return logits.detach(), {name: value.grad.clone() for name, value in parameters.items()}  # type: ignore[union-attr]


def assert_same(got: Learned, expected: Learned, tolerance: float = 2e-5) -> None:
    scale = max(1.0, float(expected[0].abs().max()))
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=tolerance * scale)
    assert got[1].keys() == expected[1].keys()
    # A key's bias moves every score alike, so that parts of a gradient are rounding alone: one scale for all.
    largest = max(float(value.abs().max()) for value in expected[1].values())
    for name, value in expected[1].items():
        torch.testing.assert_close(got[1][name], value, rtol=0, atol=tolerance * largest, msg=name)


class Calls:
    """How often something ran, and on how many tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.rows: list[int] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        self.rows.append(inputs[0].shape[0] if inputs else 0)
        self.tokens.append(inputs[0].shape[-2] if inputs else 0)


@contextmanager
def watching(module: nn.Module) -> Iterator[Calls]:
    calls = Calls()
    handle = module.register_forward_hook(calls)
    try:
        yield calls
    finally:
        handle.remove()


def layers(held: Backbone) -> list[nn.Module]:
    return list(held.base.get_submodule(held.architecture.layers).children())


# ----------------------------------------------------------------------- the same, switch by switch


@pytest.mark.parametrize(
    ("case", "first_layer"),
    [
        *((case, 0) for case in THOROUGH),
        *((case, 1) for case in FAMILIES if case != "bloom"),  # which has a prompt in every layer or none
        *((case, LAYERS - 1) for case in ("bert", "deberta-v2", "llama")),
    ],
)
def test_deep_prompts_learn_the_same_with_each_switch(case: str, first_layer: int) -> None:
    model = task_on(case, prompt("deep", first_layer=first_layer))
    right, left = batch(), batch(left=True)
    expected = learned(model, OFF, right)
    assert expected[1]["prompt_encoder.weight"].abs().amax(dim=(1, 2, 3)).gt(0).all()
    for number, engine in enumerate(SWITCHES.values()):
        assert_same(learned(model, engine, (right, left)[number % 2]), expected)
    assert_same(learned(model, Engine(), left), expected)


@pytest.mark.parametrize(
    ("case", "placement"),
    [
        *((case, "front") for case in THOROUGH),
        *((case, BEHIND) for case in FAMILIES),
        *((case, placement) for case in ("bert", "llama") for placement in PLACEMENTS[:-1]),
    ],
)
def test_input_prompts_learn_the_same_with_each_switch(case: str, placement: str) -> None:
    model = task_on(case, prompt("input", placement=placement))
    right, left = batch(), batch(left=True)
    expected = learned(model, OFF, right)
    assert expected[1]["prompt_encoder.weight"].abs().amax(dim=1).gt(0).all()
    for number, engine in enumerate(SWITCHES.values()):
        assert_same(learned(model, engine, (left, right)[number % 2]), expected)


@pytest.mark.parametrize(
    "config",
    [prompt("deep"), prompt("deep", first_layer=1), prompt("input", placement="start"), prompt("input")],
    ids=["deep", "deep from 1", "start", "front"],
)
@pytest.mark.parametrize("case", ["bert", "deberta-v2", "gpt2", "llama"])
def test_a_prompt_for_each_row_is_the_same_with_each_switch(case: str, config: PromptConfig) -> None:
    model = task_on(case, config)
    inputs = batch()
    rows = torch.randn(len(PAIRS), *model.prompt_encoder().shape)
    found = {}
    for name, engine in {"off": OFF, **SWITCHES}.items():
        model.backbone.engine = able(model, engine)
        prompts = rows.clone().requires_grad_()
        logits = model(**inputs, prompt=prompts).logits
        logits.square().sum().backward()
        assert prompts.grad is not None
        found[name] = logits.detach(), {"prompts": prompts.grad}
    assert found["off"][1]["prompts"].flatten(1).abs().amax(1).gt(0).all()
    for got in found.values():
        assert_same(got, found["off"])


@pytest.mark.parametrize("case", ["bert", "modernbert", "llama", "mistral, sliding", "deberta-v2"])
@pytest.mark.parametrize("pairs", [[(3, 2), (2, 3)], [(4, 1)]], ids=["two rows", "one row"])
def test_without_padding_it_is_the_same_as_well(case: str, pairs: list[tuple[int, int]]) -> None:
    """Encoders then have no mask at all."""
    model = task_on(case, prompt("deep", first_layer=1))
    inputs = batch(pairs)
    expected = learned(model, OFF, inputs)
    for engine in SWITCHES.values():
        assert_same(learned(model, engine, inputs), expected)


@pytest.mark.parametrize(
    ("case", "depth"),
    [
        *((case, "deep") for case in (*FAMILIES, "gemma2")),
        ("bert", "input"),
        ("bloom", "input"),
        ("llama", "input"),
    ],
)
def test_a_bf16_backbone_learns_the_same_within_its_precision(case: str, depth: str) -> None:
    """A small spread of weights, as trained models have."""
    held = Backbone(tiny_case(case, initializer_range=0.05))
    held.to(torch.bfloat16)
    model = task_on(held, prompt(depth))
    expected = learned(model, OFF, batch())
    for engine in SWITCHES.values():
        assert_same(learned(model, engine, batch(left=True)), expected, tolerance=0.06)


@pytest.mark.parametrize(
    ("case", "depth"),
    [
        *((case, "deep") for case in ("bert", "modernbert", "gpt2", "llama")),
        ("bert", "input"),
        ("llama", "input"),
    ],
)
def test_under_autocast_it_is_the_same_within_bf16(case: str, depth: str) -> None:
    model = task_on(Backbone(tiny_case(case, initializer_range=0.05)), prompt(depth))
    full = learned(model, OFF, batch())
    for engine in (OFF, *SWITCHES.values()):
        with torch.autocast("cpu", torch.bfloat16):
            got = learned(model, engine, batch())
        assert_same(got, full, tolerance=0.06)
        assert not torch.equal(got[0], full[0]), "autocast did nothing"


@switches
@pytest.mark.parametrize("depth", ["deep", "input"])
def test_every_kind_of_task_learns_the_same(depth: str, engine: Engine) -> None:
    kinds = {
        Task(problem_type="regression", mean=3.0, scale=2.0): torch.tensor([3.5, 1.0, 4.0, 2.0]),
        Task(problem_type="multi_label_classification", labels=("a", "b")): torch.tensor([[0, 1]] * 4),
        THREE: torch.tensor([0, 1, 2, 1]),
    }
    for case in ("bert", "llama"):
        for task, labels in kinds.items():
            model = task_on(case, prompt(depth), task)
            found = []
            for each in (OFF, engine):
                model.backbone.engine = each
                model.zero_grad()
                out = model(**batch(), labels=labels)
                out.loss.backward()
                grads = {name: value.grad.clone() for name, value in model.task_parameters().items()}
                found.append((torch.stack([out.loss.detach(), out.logits.detach().sum()]), grads))
            assert_same(found[1], found[0])


@switches
@pytest.mark.parametrize("case", ["bert", "modernbert", "gpt2", "llama", "deberta-v2"])
def test_a_disabled_model_is_the_plain_backbone(case: str, engine: Engine) -> None:
    inputs = batch(left=case in DECODERS)
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if case in DECODERS:  # transformers counts padding as places
        plain["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = tiny_case(case)(**plain).logits
        for config in (prompt("deep", first_layer=1), prompt("input")):
            model = task_on(case, config)
            model.backbone.engine = able(model, engine)
            with model.disabled():
                got = model(plain["input_ids"], plain["attention_mask"]).logits
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("config", [prompt("deep"), prompt("input"), prompt("input", placement="start")])
@pytest.mark.parametrize("case", ["bert", "gpt2", "llama"])
def test_the_backbones_dropout_acts_at_the_same_places(
    case: str, config: PromptConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dropout that always takes the same from everything: the plain way, because a kernel's has its own."""

    def drop(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return x * (1 - p) if training else x

    monkeypatch.setattr(nn.functional, "dropout", drop)
    rates = {"attention_dropout": 0.2, "attention_probs_dropout_prob": 0.2, "attn_pdrop": 0.2}
    model = task_on(Backbone(tiny_case(case, **rates)), config)
    plain = replace(OFF, attention="plain")
    still = learned(model, plain, batch())
    model.backbone.dropout = True
    model.train()
    assert model.backbone.model.training
    expected = learned(model, plain, batch())
    assert not torch.allclose(expected[0], still[0], atol=1e-3)
    for engine in (Engine(attention="plain"), Engine(attention="plain", checkpoint_activations=True)):
        assert_same(learned(model, engine, batch(left=True)), expected)
    assert model.stem_layer == 0


# --------------------------------------------------------------------------------- the last layer

MLPS = {
    "bert": "intermediate",
    "roberta": "intermediate",
    "electra": "intermediate",
    "albert": "albert_layers.0.ffn",
    "distilbert": "ffn",
    "modernbert": "mlp",
    "llama": "mlp",
    "qwen2": "mlp",
    "gpt2": "mlp",
    "gpt_neox": "mlp",
}
WIDTH = max(first + second + 3 for first, second in PAIRS)


@pytest.mark.parametrize("depth", ["deep", "input"])
@pytest.mark.parametrize("case", MLPS)
def test_the_last_layer_runs_for_the_pooled_token_alone(case: str, depth: str) -> None:
    model = task_on(case, prompt(depth, **({} if depth == "deep" else {"placement": "end"})))
    whole = WIDTH + model.inserted_tokens
    with watching(layers(model.backbone)[-1].get_submodule(MLPS[case])) as calls:
        learned(model, OFF, batch())
        assert calls.tokens[-1] == whole
        learned(model, Engine(), batch())
        assert calls.tokens[-1] == 1
        assert calls.rows[-1] == len(PAIRS)
        with model.disabled(), torch.no_grad():
            model(**batch())
        assert calls.tokens[-1] == 1


def test_no_layer_but_the_last_is_cut() -> None:
    model = task_on("bert", prompt("deep"))
    with watching(layers(model.backbone)[-2].get_submodule("intermediate")) as calls:
        learned(model, Engine(), batch())
    assert calls.tokens == [WIDTH]


def test_a_head_that_reads_all_tokens_gets_all_tokens() -> None:
    model = task_on("modernbert, mean pooling", prompt("deep"))
    with watching(layers(model.backbone)[-1].get_submodule("mlp")) as calls:
        learned(model, Engine(), batch())
    assert calls.tokens == [WIDTH]


@pytest.mark.parametrize("depth", ["input", "disabled"])
def test_a_layer_that_attends_twice_is_not_cut(depth: str) -> None:
    """ALBERT may have several layers in a group, each with keys and values of its own."""
    model = task_on(Backbone(tiny("albert", inner_group_num=2)), prompt("input"))
    if depth == "input":
        expected = learned(model, OFF, batch())
        assert_same(learned(model, Engine(), batch()), expected)
        return
    found = []
    with model.disabled(), torch.no_grad():
        for engine in (OFF, Engine()):
            model.backbone.engine = able(model, engine)
            found.append(model(**batch()).logits)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


# -------------------------------------------------------------------- heads inside the transformer

INSIDE = {
    "the first layer": "bert.encoder.layer.0.output.dense.weight",
    "the last layer": f"bert.encoder.layer.{LAYERS - 1}.attention.self.key.weight",
    "the pooler": "bert.pooler.dense.weight",
}


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("name", INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize("depth", ["deep", "input"])
def test_a_head_inside_the_transformer_learns_the_same(name: str, depth: str, trained: bool) -> None:
    config = replace(prompt(depth, **({"first_layer": 1} if depth == "deep" else {})), train_head=trained)
    held = Backbone(tiny("bert"))
    changed = held.model.get_parameter(name).detach() + torch.randn(held.model.get_parameter(name).shape) / 4
    model = task_on(held, config, head={name: changed})
    again = PTuningModel.from_adapter(model.to_adapter(), Backbone(tiny("bert"))).eval()
    expected = learned(model, OFF, batch())
    assert ("head." + name.replace(".", "-") in expected[1]) is trained
    for each in (model, again):
        assert name in each.head.names
        above = depth == "deep" and name == INSIDE["the pooler"]  # it stands above every stem
        assert each.stem_layer == (1 if above else 0)
        for engine in SWITCHES.values():
            assert_same(learned(each, engine, batch()), expected)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_a_head_inside_a_decoder_is_met_by_the_prompt_in_front_of_the_text(trained: bool) -> None:
    """The prompt's keys and values are computed apart, and with the layers that the text meets."""
    name = "model.layers.0.mlp.down_proj.weight"
    held = Backbone(tiny("llama"))
    changed = held.model.get_parameter(name).detach() + torch.randn(held.model.get_parameter(name).shape) / 4
    config = replace(prompt("input", placement="start"), train_head=trained)
    model = task_on(held, config, head={name: changed})
    expected = learned(model, OFF, batch())
    assert_same(learned(model, Engine(), batch()), expected)
    assert model.prepared().leading is not None
    with torch.no_grad():
        got = model(**batch(), prompt=model.prepared()).logits
    torch.testing.assert_close(got, expected[0], rtol=0, atol=2e-5 * max(1.0, float(expected[0].abs().max())))


def test_what_a_checkpoint_lacked_inside_the_transformer_is_no_stem() -> None:
    """It is the task's to train, so it is not the same for every task."""
    held = Backbone(tiny("bert"), missing=frozenset({INSIDE["the first layer"]}))
    assert task_on(held, prompt("deep", first_layer=1)).stem_layer == 0


def test_a_pooler_that_a_checkpoint_lacked_stands_above_every_stem() -> None:
    held = Backbone(tiny("bert"), missing=frozenset({"bert.pooler.dense.weight", "bert.pooler.dense.bias"}))
    model = task_on(held, prompt("deep", first_layer=1))
    assert model.stem_layer == 1
    inputs = {name: value for name, value in batch().items() if name != "segment_ids"}
    stem = model.stem(**inputs)
    assert_same(learned(model, Engine(), inputs, stem=stem), learned(model, OFF, inputs))


# ------------------------------------------------------------------------------ copies and adoption


@pytest.mark.parametrize("case", ["bert", "gpt2", "deberta-v2", "albert"])
@pytest.mark.parametrize("copied", ["deepcopy", "torch.save"])
def test_a_copy_computes_with_its_own_weights(case: str, copied: str) -> None:
    model = task_on(Backbone(tiny_case(case)), prompt("deep", first_layer=1))
    expected = learned(model, Engine(), batch())
    if copied == "deepcopy":
        other = deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert_same(learned(other, Engine(), batch()), expected)
    with torch.no_grad():
        for value in model.backbone.parameters():
            value.mul_(0.5)
        for value in model.task_parameters().values():
            value.mul_(0.5)
    assert_same(learned(other, Engine(), batch()), expected)
    assert not torch.allclose(learned(model, Engine(), batch())[0], expected[0], atol=1e-3)


def test_a_copy_has_an_engine_of_its_own() -> None:
    model = task_on(Backbone(tiny("bert")), prompt("deep"))
    other = deepcopy(model)
    other.gradient_checkpointing_enable()
    assert not model.backbone.engine.checkpoint_activations
    assert other.backbone.engine.checkpoint_activations


@pytest.mark.parametrize("case", ["bert", "albert", "llama", "gpt2", "deberta-v2", "bloom"])
def test_a_model_may_be_adopted_twice(case: str) -> None:
    """Two tasks made from the same transformers model, as PEFT's users do."""
    config = prompt("deep", first_layer=0 if case == "bloom" else 1)
    hf = tiny_case(case)
    one = task_on(Backbone(hf), config)
    expected = learned(one, Engine(), batch())
    two = task_on(Backbone(hf), config)
    for model in (two, one):
        assert_same(learned(model, Engine(), batch()), expected)
        if case != "bloom":
            inputs = {name: value for name, value in batch().items() if name != "segment_ids"}
            assert_same(learned(model, Engine(), inputs, stem=model.stem(**inputs)), expected)


# ------------------------------------------------------------------------------------ checkpointing


def saved_bytes(model: PTuningModel, engine: Engine, inputs: dict[str, Tensor], **given: Any) -> int:
    """Of all that autograd keeps for the way back, but for parameters and what goes in."""
    model.backbone.engine = able(model, engine)
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    found: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in own:
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        logits = model(**inputs, **given).logits  # held, so that no storage is given away twice
    assert logits.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("depth", ["deep", "input"])
@pytest.mark.parametrize("case", [case for case in FAMILIES if case != "bloom"])
def test_checkpointing_learns_the_same_from_less(case: str, depth: str) -> None:
    model = task_on(case, prompt(depth)).train()
    wanted = replace(OFF, checkpoint_activations=True)
    expected, got = learned(model, OFF, batch()), learned(model, wanted, batch())
    assert torch.equal(got[0], expected[0])
    assert_same(got, expected, tolerance=1e-6)
    assert saved_bytes(model, wanted, batch()) < 0.6 * saved_bytes(model, OFF, batch())


@pytest.mark.parametrize("name", ["checkpoint_activations", "compile"])
def test_what_bloom_cannot_do_is_refused_and_not_left_out(name: str) -> None:
    model = task_on(Backbone(tiny("bloom")), prompt("deep"))
    before = model.backbone.engine
    with pytest.raises(UnsupportedBackbone, match=f"bloom .* leave engine.{name} out"):
        model.backbone.engine = Engine(**{name: True})
    with pytest.raises(UnsupportedBackbone, match=r"engine\.checkpoint_activations"):
        model.gradient_checkpointing_enable()
    assert model.backbone.engine is before


@pytest.mark.parametrize("case", ["bert", "gpt2", "llama"])
def test_checkpointing_draws_the_same_dropout_again(case: str) -> None:
    rates = {"attention_dropout": 0.2, "attention_probs_dropout_prob": 0.2, "attn_pdrop": 0.2}
    config = DeepPrompt(num_virtual_tokens=P, encoder=DeepMLPEncoder(dropout=0.3))
    model = task_on(Backbone(tiny_case(case, **rates)), config)
    model.backbone.dropout = True
    model.train()
    found = []
    for engine in (OFF, OFF, replace(OFF, checkpoint_activations=True)):
        torch.manual_seed(len(found) if not found else 5)
        found.append(learned(model, engine, batch()))
    assert not torch.equal(found[0][0], found[1][0]), "nothing was dropped"
    assert torch.equal(found[2][0], found[1][0])
    assert_same(found[2], found[1], tolerance=1e-6)


@pytest.mark.parametrize(
    ("case", "key"), [("bert", "attention.self.key"), ("modernbert", "attn.Wqkv"), ("llama", "mlp.up_proj")]
)
def test_checkpointing_keeps_no_layers_keys_and_values(case: str, key: str) -> None:
    """What autograd does not save may be held by somebody else."""
    fewer = replace(OFF, checkpoint_activations=True)
    for depth, engine, kept in (("input", OFF, True), ("input", fewer, False), ("deep", fewer, False)):
        model = task_on(case, prompt(depth)).train()
        model.backbone.engine = able(model, engine)
        seen: list[StorageWeakRef] = []

        def note(module: nn.Module, inputs: Any, output: Tensor, seen: list[Any] = seen) -> None:
            seen.append(StorageWeakRef(output.untyped_storage()))

        handles = [layer.get_submodule(key).register_forward_hook(note) for layer in layers(model.backbone)]
        logits = model(**batch()).logits
        for handle in handles:
            handle.remove()
        gc.collect()
        assert len(seen) == LAYERS
        assert [not each.expired() for each in seen] == [kept] * LAYERS
        assert logits.requires_grad


def test_checkpointing_runs_nothing_twice_where_nothing_is_learned() -> None:
    """Below the first prompt, and in evaluation."""
    model = task_on("bert", prompt("deep", first_layer=1)).train()
    with (
        watching(layers(model.backbone)[0].get_submodule("intermediate")) as below,
        watching(layers(model.backbone)[1].get_submodule("intermediate")) as above,
    ):
        learned(model, replace(OFF, checkpoint_activations=True), batch())
        assert (len(below.tokens), len(above.tokens)) == (1, 2)
        with torch.no_grad():
            model(**batch())
        assert (len(below.tokens), len(above.tokens)) == (2, 3)


# ------------------------------------------------------- a decoder's prompt in front, once for all


def bos_tokenizer(*, bos: bool = True, words: Sequence[str] = ("a",)) -> PreTrainedTokenizerFast:
    """``<s> word word``, numbers as words: ``13`` is token 13."""
    vocabulary = {"<s>": 0, "<pad>": 1, **{str(n): n for n in range(2, VOCAB - 1)}}
    vocabulary |= dict.fromkeys(words, VOCAB - 1)
    inner = Tokenizer(models.BPE(vocabulary, []))  # what is not in it is nothing, not <unk>
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", pad_token="<pad>")


def token_rows(lengths: Sequence[int], *, bos: bool = True, seed: int = 0) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        words = torch.randint(13, VOCAB, (length,), generator=generator).tolist()
        ids, segments = ([0, *words], [-1, *[0] * length]) if bos else (words, [0] * length)
        found.append(TokenRow(input_ids=ids, token_type_ids=None, segment_ids=segments))
    return found


@pytest.fixture
def leading(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the prompts that were computed by themselves."""
    found: list[int] = []
    made: Callable[..., Tensor] = Encoder.leading

    def noted(self: Encoder, inputs_embeds: Tensor) -> Tensor:
        found.append(len(inputs_embeds))
        return made(self, inputs_embeds)

    monkeypatch.setattr(Encoder, "leading", noted)
    return found


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("placement", ["start", "front"])
@pytest.mark.parametrize("case", ["gpt2", "llama", "gemma2", "opt", "gpt_neox"])
def test_a_decoders_prompt_is_computed_once_for_many_batches(
    case: str, placement: str, bos: bool, leading: list[int]
) -> None:
    config = InputPrompt(num_virtual_tokens=P, placement=placement, encoder=LSTMEncoder())
    model = task_on(case, config, tokenizer=bos_tokenizer(bos=bos))
    rows = token_rows([3, 9, 4, 1, 7, 2], bos=bos)
    model.backbone.engine = OFF
    expected = logits_of(model, rows, batch_size=6)
    assert leading == []
    model.backbone.engine = Engine()
    with watching(model.prompt_encoder) as encoder:
        got = logits_of(model, rows, batch_size=1)
    assert leading == [P + (placement == "front" and bos)]
    assert len(encoder.tokens) == 1
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("case", ["gpt2", "opt", "gpt_neox", "bloom", "llama", "gemma2"])
def test_a_prompt_stands_behind_a_decoders_first_token_whoever_calls(
    case: str, bos: bool, left: bool
) -> None:
    """A Trainer's batches say nothing of segments, and the predictor's do: the prompt has one place."""
    held = Backbone(tiny_case(case, bos_token_id=0))
    model = task_on(held, prompt("input", placement="front"), tokenizer=bos_tokenizer(bos=bos))
    inputs = collate(token_rows([3, 9, 1, 4], bos=bos), pad_id=PAD)
    if left:
        order = inputs["attention_mask"].argsort(dim=1, stable=True)
        inputs = {name: values.gather(1, order) for name, values in inputs.items()}
    expected = model(**inputs).logits.detach()
    del inputs["segment_ids"]
    torch.testing.assert_close(model(**inputs).logits.detach(), expected)


@pytest.mark.parametrize("case", ["bert", "bloom", "roberta"])
@pytest.mark.parametrize("depth", ["deep", "input"])
def test_any_prompts_encoder_runs_once_for_many_batches(case: str, depth: str, leading: list[int]) -> None:
    model = task_on(case, prompt(depth))
    rows = token_rows([3, 9, 4, 1, 7, 2])
    with watching(model.prompt_encoder) as encoder:
        got = logits_of(model, rows, batch_size=2)
    assert len(encoder.tokens) == 1
    assert leading == []
    model.backbone.engine = OFF
    expected = torch.cat([logits_of(model, [row]) for row in rows])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(
    ("placement", "shared"),
    [("start", P), ("front", 1 + P), (ANCHORED, 1 + P + 2), ("between", 0), ("end", 0), (BEHIND, 0)],
)
def test_only_a_prompt_in_front_of_all_text_is_shared(
    placement: str, shared: int, leading: list[int]
) -> None:
    model = task_on("llama", prompt("input", placement=placement))
    expected = learned(model, OFF, batch())
    assert leading == []
    assert_same(learned(model, Engine(), batch()), expected)
    assert leading == ([shared] if shared else [])


def test_rows_that_begin_differently_are_run_whole(leading: list[int]) -> None:
    """The token in front of the prompt is not the same in all of them, or not in all of them there."""
    model = task_on("llama", prompt("input"))
    one = batch()
    one["input_ids"][2, 0] = 5
    two = batch()
    two["segment_ids"][2, 0] = 0
    for inputs in (one, two):
        expected = learned(model, OFF, inputs)
        assert_same(learned(model, Engine(), inputs), expected)
    assert leading == []


def test_a_prepared_prompt_that_stands_behind_other_tokens_is_computed_again(leading: list[int]) -> None:
    """The tokenizer says ``<s>``; these rows begin with another token, or with none."""
    model = task_on("gpt2", prompt("input"), tokenizer=bos_tokenizer())
    with torch.no_grad():
        model.backbone.engine = Engine()
        ready = model.prepared()
        assert ready.tokens == (0,)
        assert ready.leading is not None
        other, none = batch(), batch()
        other["input_ids"][:, 0] = 5
        none["segment_ids"][:, 0] = 0
        for inputs in (batch(), other, none):
            model.backbone.engine = Engine()
            got = model(**inputs, prompt=ready).logits
            model.backbone.engine = OFF
            torch.testing.assert_close(got, model(**inputs).logits, rtol=0, atol=1e-4)
    assert leading == [1 + P, 1 + P, P]


def test_a_row_without_any_text_is_refused_as_it_was() -> None:
    model = task_on("llama", prompt("input"))
    inputs = batch()
    inputs["segment_ids"][1] = -1
    for engine in (OFF, Engine()):
        model.backbone.engine = able(model, engine)
        with pytest.raises(Exception, match="row 1 of the batch has no first text"):
            model(**inputs)


@pytest.mark.parametrize("case", ["mistral", "gemma2", "gemma3_text", "phi3"])
@pytest.mark.parametrize("window", [WIDTH + P - 1, WIDTH + P])
def test_a_window_that_would_lose_sight_of_the_prompt_is_run_whole(
    case: str, window: int, leading: list[int]
) -> None:
    model = task_on(Backbone(tiny(case, sliding_window=window)), prompt("input"), tokenizer=bos_tokenizer())
    expected = learned(model, OFF, batch())
    assert_same(learned(model, Engine(), batch()), expected)
    assert leading == ([] if window < WIDTH + P else [1 + P])
    with torch.no_grad():
        got = model(**batch(), prompt=model.prepared()).logits
    torch.testing.assert_close(got, expected[0], rtol=0, atol=2e-5 * float(expected[0].abs().max()))


@pytest.mark.parametrize("case", ["llama", "bert"])
def test_a_tokenizer_that_knows_no_letter_a_is_no_reason_to_fail(case: str) -> None:
    """What stands in front of the prompt then shows in the batches alone."""
    model = task_on(case, prompt("input"), tokenizer=bos_tokenizer(words=()))
    rows = token_rows([3, 5])
    model.backbone.engine = Engine()
    got = logits_of(model, rows)
    model.backbone.engine = OFF
    torch.testing.assert_close(got, torch.cat([model(**alone(row)).logits for row in rows]).detach())


def alone(row: TokenRow) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([row.input_ids]), "segment_ids": torch.tensor([row.segment_ids])}


def test_a_prompt_that_was_trained_on_is_not_answered_with_from_before() -> None:
    """``prepared`` is a value, kept nowhere."""
    model = task_on("llama", prompt("input"), tokenizer=bos_tokenizer())
    rows = token_rows([3, 5])
    before = logits_of(model, rows)
    with torch.no_grad():
        model.prompt_encoder.weight.add_(1)
    assert not torch.allclose(logits_of(model, rows), before, atol=1e-3)


# ------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("name", ["stem_memory", "stem_disk", "packed_memory"])
def test_there_is_no_negative_room(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: got -1, expected greater than or equal to 0"):
        Engine(**{name: -1})


# ------------------------------------------------------------- decoders that are not, and rows that are not


@pytest.mark.parametrize(
    ("case", "overrides"),
    [("gemma3_text", {"use_bidirectional_attention": True}), ("qwen2", {"is_causal": False})],
)
def test_a_decoder_made_into_an_encoder_shows_its_prompt_the_text(
    case: str, overrides: dict[str, Any]
) -> None:
    """As embedding models are made of them: a prompt in front is then not the same for every text."""
    hf = tiny(case, **{name: value for name, value in overrides.items() if name != "is_causal"})
    for name, value in overrides.items():
        setattr(hf.config, name, value)
    model = task_on(Backbone(hf), prompt("input", placement="start"))
    expected = learned(model, OFF, batch())
    assert_same(learned(model, Engine(), batch()), expected)
    causal = task_on(Backbone(tiny(case)), prompt("input", placement="start"))
    assert not torch.allclose(learned(causal, OFF, batch())[0], expected[0], atol=1e-3), "it is causal still"


@pytest.mark.parametrize("case", ["gpt2", "qwen2"])
def test_a_row_without_a_token_is_the_prompt_alone(case: str) -> None:
    model = task_on(case, prompt("input", placement="start"))
    inputs = batch()
    inputs["attention_mask"][1] = 0
    assert_same(learned(model, Engine(), inputs), learned(model, OFF, inputs))
