"""Packed weights: the answers and gradients of the layers' own products, never those of an old weight."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from ptuning.data import stems
from ptuning.data.tokens import TokenRow
from ptuning.inference.mixed import mixed_logits
from ptuning.model import Backbone, DeepPrompt, InputPrompt, PromptConfig, PTuningModel, packed_weights
from ptuning.model.config import Engine
from ptuning.model.packed import pack
from ptuning.model.packed_weights import PackedLinear, PackedWeights
from ptuning.task import Task
from tiny import CASES, FAMILIES, ragged, tiny_case

BF16 = 2**-4
"""How far two ways to round in bf16 may be apart, as a share of the largest value: three layers and their
gradients, where one rounding is 2**-8."""
ON = Engine()
OFF = Engine(packed_memory=0)
THREE = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
DEEP, INPUT = DeepPrompt(num_virtual_tokens=4, pooling="native"), InputPrompt(num_virtual_tokens=4)
LENGTHS = [5, 9, 2, 3]
MIB = 2**20

Learned = tuple[Tensor, dict[str, Tensor]]


@pytest.fixture(autouse=True)
def able() -> Iterator[bool]:
    """Whether this processor multiplies by packed weights; asked again in every test."""
    packed_weights.is_supported.cache_clear()
    yield packed_weights.is_supported(torch.bfloat16)
    packed_weights.is_supported.cache_clear()


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the inputs that were multiplied by a packed weight."""
    seen: list[torch.Size] = []
    multiply = packed_weights._multiply

    def watched(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(x.shape)
        return multiply(x, packed, bias)

    monkeypatch.setattr(packed_weights, "_multiply", watched)
    return seen


def backbone_of(case: str, dtype: torch.dtype = torch.bfloat16) -> Backbone:
    return Backbone(tiny_case(case).to(dtype))


def view_of(backbone: Backbone, engine: Engine) -> Backbone:
    made = backbone.view()
    made.engine = engine
    return made


def task_on(backbone: Backbone, config: PromptConfig = DEEP, seed: int = 1, **given: Any) -> PTuningModel:
    torch.manual_seed(seed)
    model = PTuningModel(backbone, config, THREE, **given).eval()
    with torch.no_grad():
        for value in model.prompt_encoder.parameters():
            value.normal_()
    return model


def learned(model: PTuningModel, engine: Engine, lengths: list[int] = LENGTHS) -> Learned:
    """Logits, and the gradient of everything that is trained."""
    model.backbone.engine = engine
    model.zero_grad()
    logits = model(*ragged(lengths, left=model.backbone.architecture.causal)).logits
    logits.square().sum().backward()
    gradients = {
        name: value.grad.clone() for name, value in model.task_parameters().items() if value.grad is not None
    }
    return logits.detach(), gradients


def logits_of(model: PTuningModel, engine: Engine | None = None) -> Tensor:
    model.backbone.engine = engine or model.backbone.engine
    with torch.no_grad():
        return model(*ragged(LENGTHS, left=model.backbone.architecture.causal)).logits


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        got, expected, rtol=0, atol=BF16 * max(float(expected.detach().abs().max()), 1e-6)
    )


def assert_same(got: Learned, expected: Learned) -> None:
    assert_close(got[0], expected[0])
    assert got[1].keys() == expected[1].keys() != set()
    for name, value in expected[1].items():
        assert_close(got[1][name], value)


def linear(outputs: int = 48, inputs: int = 32, *, bias: bool = True, ways: int = 2) -> nn.Linear:
    """A frozen bf16 layer that uses packed weights."""
    made = nn.Linear(inputs, outputs, bias=bias).bfloat16().requires_grad_(False)
    held = nn.ModuleList([made])
    PackedWeights(held).install(held, ways)
    return made


def own(module: nn.Module, x: Tensor) -> Tensor:
    """What the layer's own code computes."""
    found: Tensor = type(module).forward(module, x)
    return found


def replacement(module: nn.Module) -> PackedLinear:
    found = vars(module)["forward"]
    assert isinstance(found, PackedLinear)
    return found


def slots_of(backbone: Backbone) -> list[list[Any]]:
    """The copies that there are, layer by layer."""
    return [list(weight._copies.values()) for weight in backbone.packed_weights._weights.values()]


def linears(backbone: Backbone) -> list[nn.Module]:
    return [module for module in backbone.model.modules() if type(module) in (nn.Linear, Conv1D)]


# ------------------------------------------------------------------------------- the same answers


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("config", [DEEP, INPUT], ids=["deep", "input"])
def test_any_architecture_answers_and_learns_the_same(
    case: str, config: PromptConfig, products: list[torch.Size], able: bool
) -> None:
    model = task_on(backbone_of(case), config)
    expected = learned(model, OFF)
    assert products == []
    assert_same(learned(model, ON), expected)
    assert (len(products) > 0) == able


@pytest.mark.parametrize("case", FAMILIES)
def test_the_error_is_that_of_rounding(case: str) -> None:
    """Against the same weights in fp64, packed products are as exact as torch's own."""
    exact = backbone_of(case)
    model = task_on(exact)
    plain, packed = learned(model, OFF), learned(model, ON)
    reference = learned(task_on(Backbone(deepcopy(exact.model).double())), OFF)

    def error(got: Learned) -> float:
        pairs = [(got[0], reference[0]), *((got[1][name], reference[1][name]) for name in got[1])]
        return sum(float((a - b).square().sum() / b.square().sum().clamp(min=1e-12)) for a, b in pairs) ** 0.5

    assert error(packed) <= 1.25 * error(plain) + 1e-3


@pytest.mark.parametrize("case", FAMILIES)
def test_in_fp32_nothing_is_packed(case: str, products: list[torch.Size]) -> None:
    model = task_on(backbone_of(case, torch.float32))
    expected, got = learned(model, OFF), learned(model, ON)
    assert torch.equal(got[0], expected[0])
    assert all(torch.equal(got[1][name], value) for name, value in expected[1].items())
    assert (products, model.backbone.packed_weights.nbytes, model.backbone.packs) == ([], 0, False)


@pytest.mark.parametrize("case", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_packs_what_it_computes_in(
    case: str, dtype: torch.dtype, products: list[torch.Size], able: bool
) -> None:
    """transformers' Trainer does this with ``bf16=True``: fp32 weights, products in bf16."""
    model = task_on(backbone_of(case, dtype))
    with torch.autocast("cpu", torch.bfloat16):
        expected = learned(model, OFF)
        assert_same(learned(model, ON), expected)
    assert (len(products) > 0) == able
    count = len(products)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert_same(learned(model, ON), learned(model, OFF))
    assert (len(products) > count) == (able and dtype == torch.bfloat16)


@pytest.mark.parametrize("case", ["bert", "llama"])
def test_checkpointed_layers_learn_the_same(case: str) -> None:
    model = task_on(backbone_of(case))
    expected = learned(model, replace(OFF, checkpoint_activations=True))
    assert_same(learned(model, replace(ON, checkpoint_activations=True)), expected)


def test_units_read_and_add_as_before() -> None:
    config = replace(DEEP, num_virtual_units=3)
    model = task_on(backbone_of("bert"), config)
    assert model.units is not None
    with torch.no_grad():
        model.units.weight.normal_()
    assert_same(learned(model, ON), learned(model, OFF))


def test_training_works_after_the_first_call_was_in_inference_mode() -> None:
    model = task_on(backbone_of("bert"))
    expected = learned(model, OFF)
    model.backbone.engine = ON
    with torch.inference_mode():
        first = model(*ragged(LENGTHS)).logits
    assert not any(copy.packed.is_inference() for slot in slots_of(model.backbone) for copy in slot)
    assert_same(learned(model, ON), expected)
    torch.testing.assert_close(logits_of(model), first.clone(), rtol=0, atol=0)


def test_rows_of_unlike_tasks_in_one_pass(products: list[torch.Size], able: bool) -> None:
    held = backbone_of("bert")
    inputs = [PTuningModel.from_backbone(held, config, task=THREE).eval() for config in (DEEP, INPUT)]
    tasks = [pack(model, str(number)) for number, model in enumerate(inputs)]
    rows = [
        TokenRow(
            input_ids=[0, *range(3, length), 2], token_type_ids=None, segment_ids=[-1, *[0] * (length - 2)]
        )
        for length in (6, 9, 4)
    ]
    owners = [tasks[0], tasks[1], tasks[0]]
    expected = mixed_logits(view_of(held, OFF), rows, owners)
    assert products == []
    got = mixed_logits(view_of(held, ON), rows, owners)
    assert (len(products) > 0) == able
    assert_close(torch.stack(got), torch.stack(expected))


# --------------------------------------------------------------------------------- shapes and products

SHAPES: dict[str, Callable[[], Tensor]] = {
    "one row": lambda: torch.randn(1, 32),
    "a vector": lambda: torch.randn(32),
    "four dimensions": lambda: torch.randn(2, 3, 4, 32),
    "every other column": lambda: torch.randn(5, 64)[:, ::2],
    "column by column": lambda: torch.randn(32, 7).t(),
    "one row for all": lambda: torch.randn(1, 32).expand(6, 32),
    "not at the start": lambda: torch.randn(5 * 32 + 1)[1:].view(5, 32),
    "no row": lambda: torch.randn(0, 32),
    "no token": lambda: torch.randn(2, 0, 32),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_and_its_gradient(shape: str, kind: str, bias: bool) -> None:
    if kind == "Linear":
        layer: nn.Module = linear(bias=bias)
    else:
        layer = Conv1D(48, 32).bfloat16().requires_grad_(False)
        held = nn.ModuleList([layer])
        PackedWeights(held).install(held, 2)
    x = SHAPES[shape]().bfloat16()
    if kind == "Conv1D" and x.numel() == 0:
        return  # torch's own code cannot view it
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, expected = layer(one), own(layer, two)
    assert got.shape == expected.shape
    assert got.dtype == torch.bfloat16
    if x.numel() == 0:
        return
    assert_close(got, expected)
    assert_close(layer(x), expected.detach())
    weights = torch.randn_like(got)
    for loss in (
        Tensor.sum,
        lambda out: (out * weights).sum(),
    ):  # the gradient of a sum is one value, expanded
        (got_gradient,) = torch.autograd.grad(loss(got), one, retain_graph=True)
        (expected_gradient,) = torch.autograd.grad(loss(expected), two, retain_graph=True)
        assert_close(got_gradient, expected_gradient)


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (1, 33), (17, 1), (20, 30), (130, 7)])
def test_odd_sizes(outputs: int, inputs: int) -> None:
    layer = linear(outputs, inputs)
    for rows in (1, 2, 31, 200):
        x = torch.randn(rows, inputs).bfloat16()
        assert_close(layer(x), own(layer, x))


def test_a_second_derivative() -> None:
    layer = linear()
    x = torch.randn(5, 32).bfloat16()
    found = []
    for forward in (layer, lambda given: own(layer, given)):
        one = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(forward(one).float().pow(3).sum(), one, create_graph=True)
        (second,) = torch.autograd.grad(first.float().pow(2).sum(), one)
        found.append(second)
    assert_close(*found)


def test_a_wrong_width_or_dtype_is_the_layers_own_error() -> None:
    layer = linear()
    for x in (torch.randn(5, 31).bfloat16(), torch.randn(5, 32), torch.randn(5, 32).half()):
        with pytest.raises(RuntimeError) as got:
            layer(x)
        with pytest.raises(RuntimeError) as expected:
            own(layer, x)
        assert str(got.value) == str(expected.value)


def test_without_room_for_the_transposes_the_gradient_is_the_layers_own(products: list[torch.Size]) -> None:
    layer = linear(ways=1)
    x = torch.randn(5, 32).bfloat16().requires_grad_()
    out = layer(x)
    count = len(products)
    (got,) = torch.autograd.grad(out.square().sum(), x)
    assert len(products) == count
    (expected,) = torch.autograd.grad(own(layer, x).square().sum(), x)
    assert_close(got, expected)


# --------------------------------------------------------------------------------------- stale weights


def _data_is(weight: nn.Parameter, value: Tensor) -> None:
    weight.data = value


CHANGES: dict[str, Callable[[nn.Linear], Any]] = {
    "in place": lambda layer: layer.weight.add_(1),
    "a row in place": lambda layer: layer.weight[1].add_(50),
    "one value in place": lambda layer: layer.weight[1, 1].add_(500),
    "copy_": lambda layer: layer.weight.copy_(torch.randn(32, 32)),
    "through data": lambda layer: layer.weight.data.mul_(-1),
    "through data, LoRA's merge": lambda layer: layer.weight.data.add_(torch.randn(32, 32)),
    "other data": lambda layer: _data_is(layer.weight, torch.randn(32, 32).bfloat16()),
    "transposed data": lambda layer: _data_is(layer.weight, layer.weight.data.t()),
    "another parameter": lambda layer: setattr(
        layer, "weight", nn.Parameter(torch.randn(32, 32).bfloat16(), requires_grad=False)
    ),
    "a state dict": lambda layer: layer.load_state_dict(
        {"weight": torch.randn(32, 32), "bias": torch.randn(32)}
    ),
    "an assigned state dict": lambda layer: layer.load_state_dict(
        {"weight": torch.randn(32, 32).bfloat16(), "bias": torch.randn(32).bfloat16()}, assign=True
    ),
    "the bias": lambda layer: layer.bias.data.add_(5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_seen_at_once(change: str) -> None:
    layer = linear(32, 32)
    x = torch.randn(4, 32).bfloat16().requires_grad_()
    before = layer(x).detach()
    torch.autograd.grad(layer(x).sum(), x)
    with torch.no_grad():
        CHANGES[change](layer)
        layer.requires_grad_(False)
        assert not torch.allclose(own(layer, x), before, atol=0.5), "the change changes nothing"
        assert_close(layer(x), own(layer, x))
    (got,) = torch.autograd.grad(layer(x).sum(), x)
    (expected,) = torch.autograd.grad(own(layer, x).sum(), x)
    assert_close(got, expected)


def test_many_swaps_of_data_never_meet_an_old_address() -> None:
    layer = linear(32, 32)
    x = torch.randn(4, 32).bfloat16()
    for _ in range(50):
        layer(x)
        layer.weight.data = torch.randn(32, 32).bfloat16()
        layer.weight.data = torch.randn(32, 32).bfloat16()
        assert_close(layer(x), own(layer, x))


def test_another_parameter_over_the_same_memory_is_another_weight() -> None:
    """With as many changes as the old one had, and its sample unchanged."""
    layer = linear(32, 32)
    x = torch.randn(4, 32).bfloat16()
    with torch.no_grad():
        layer.weight.add_(1)
        layer(x)
        version = layer.weight._version
        layer.weight = nn.Parameter(layer.weight.data, requires_grad=False)
        while layer.weight._version < version:
            layer.weight[1, 1].add_(500)
        assert layer.weight._version == version
        assert_close(layer(x), own(layer, x))


def test_a_weight_of_nan_is_compared_by_its_bits() -> None:
    layer = linear()
    with torch.no_grad():
        layer.weight.fill_(torch.nan)
    x = torch.randn(4, 32).bfloat16()
    assert layer(x).isnan().all()
    packed = replacement(layer).weight.packed(layer.weight, torch.bfloat16, False)
    assert replacement(layer).weight.packed(layer.weight, torch.bfloat16, False) is packed


def test_a_weight_that_was_changed_before_the_backward_pass_is_torchs_error() -> None:
    layer = linear()
    x = torch.randn(4, 32).bfloat16().requires_grad_()
    loss = layer(x).sum()
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_weight_that_was_replaced_before_the_backward_pass_gives_the_gradient_of_the_old_one() -> None:
    layer = linear()
    x = torch.randn(4, 32).bfloat16().requires_grad_()
    (expected,) = torch.autograd.grad(own(layer, x).sum(), x)
    loss = layer(x).sum()
    layer.weight = nn.Parameter(torch.randn(48, 32).bfloat16(), requires_grad=False)
    assert_close(torch.autograd.grad(loss, x)[0], expected)
    assert len(replacement(layer).weight._copies) <= 1, "the old weight's transpose was kept"


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_what_the_user_trains_gets_its_gradient(name: str, products: list[torch.Size]) -> None:
    layer = linear()
    x = torch.randn(4, 32).bfloat16()
    layer(x)
    layer.get_parameter(name).requires_grad_()
    products.clear()
    layer(x).sum().backward()
    assert products == []
    assert layer.get_parameter(name).grad is not None


# -------------------------------------------------------------------------- views, moves, copies


def test_tasks_share_the_copies_and_not_the_choice(products: list[torch.Size], able: bool) -> None:
    held = backbone_of("bert")
    one, two, off = task_on(held), task_on(held, INPUT, 2), task_on(held, seed=3)
    off.backbone.engine = OFF
    assert logits_of(off) is not None
    assert (products, held.packed_weights.nbytes) == ([], 0)
    first = logits_of(one)
    size = held.packed_weights.nbytes
    assert size == held.packed_weights.needed * able
    logits_of(two)
    assert (
        held.packed_weights.nbytes
        == one.backbone.packed_weights.nbytes
        == two.backbone.packed_weights.nbytes
        == size
    )
    assert torch.equal(logits_of(one), first), "another task changed an answer"
    products.clear()
    logits_of(off)
    assert products == []


def test_a_tasks_own_weight_in_a_layer_is_its_own() -> None:
    """As PEFT's ``modules_to_save`` has it: another task, and the backbone, keep the shared weight."""
    name = "bert.encoder.layer.1.output.dense.weight"
    held = backbone_of("bert")
    shared = task_on(held)
    before = logits_of(shared)
    own_weight = torch.randn_like(held.model.get_parameter(name)) / 4
    task = task_on(held, head={name: own_weight})
    assert_same(learned(task, ON), learned(task, OFF))
    assert not torch.allclose(logits_of(task), before, atol=0.05)
    assert torch.equal(logits_of(shared), before)
    packed = {id(copy.weight) for slot in slots_of(held) for copy in slot}
    assert packed <= {id(value) for value in held.model.parameters()}


def test_a_tasks_own_weight_in_a_layer_is_its_own_under_autocast() -> None:
    """In fp32 like the backbone's, frozen like the backbone's."""
    name = "bert.encoder.layer.1.output.dense.weight"
    held = backbone_of("bert", torch.float32)
    own_weight = torch.randn_like(held.model.get_parameter(name)) / 4
    task = task_on(held, replace(DEEP, train_head=False), head={name: own_weight})
    exact = logits_of(task, OFF)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(logits_of(task, ON).float(), exact)
        assert not torch.allclose(logits_of(task_on(held)), exact, atol=0.05)


def test_a_move_drops_the_copies_of_all_views(able: bool) -> None:
    held = backbone_of("bert")
    one, two = task_on(held), task_on(held, INPUT, 2)
    before = logits_of(one)
    assert (held.packed_weights.nbytes > 0) == able
    two.to(torch.float32)
    assert held.packed_weights.nbytes == 0
    assert torch.equal(logits_of(one), logits_of(one, OFF))
    assert held.packed_weights.nbytes == 0
    one.to(torch.bfloat16)
    assert torch.equal(logits_of(one, ON), before)
    held.half()
    assert held.packed_weights.nbytes == 0
    assert_close(logits_of(one), before)


def test_a_move_of_the_adopted_model_itself_is_seen() -> None:
    held = backbone_of("bert")
    task = task_on(held)
    logits_of(task)
    held.model.float()
    held.model.bfloat16()
    with torch.no_grad():
        for value in held.base.encoder.parameters():
            value.data.mul_(1.5)
    assert_close(logits_of(task), logits_of(task, OFF))


def test_a_layer_on_another_device_computes_there(products: list[torch.Size]) -> None:
    layer = linear()
    layer(torch.randn(4, 32).bfloat16())
    products.clear()
    layer.to("meta")
    out = layer(torch.randn(4, 32, device="meta").bfloat16())
    assert (out.shape, out.device.type, products) == ((4, 48), "meta", [])


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("what", ["backbone", "task"])
def test_a_copy_has_its_own_weights_and_packs_them_itself(how: str, what: str) -> None:
    held = backbone_of("bert")
    task = task_on(held)
    before = logits_of(task)
    given: Any = held if what == "backbone" else task
    made = deepcopy(given) if how == "deepcopy" else pickle.loads(pickle.dumps(given))
    copied = task_on(made) if what == "backbone" else made
    assert copied.backbone.packed_weights is not held.packed_weights
    assert copied.backbone.packed_weights.nbytes == 0
    assert torch.equal(logits_of(copied), before)
    with torch.no_grad():
        for value in copied.backbone.base.encoder.parameters():
            value.mul_(1.5)
    assert_close(logits_of(copied), logits_of(copied, OFF))
    assert not torch.allclose(logits_of(copied), before, atol=0.01)
    assert torch.equal(logits_of(task), before)


def test_state_dicts_and_parameters_are_as_before() -> None:
    plain = tiny_case("bert").bfloat16()
    held = Backbone(deepcopy(plain))
    task = task_on(held)
    logits_of(task)
    state = held.model.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    assert [name for name, _ in task.named_parameters()] == [
        name for name, _ in task_on(Backbone(plain)).named_parameters()
    ]
    assert held.fingerprint() == Backbone(plain).fingerprint()


def test_a_twin_and_a_second_adoption_pack_too(products: list[torch.Size], able: bool) -> None:
    held = backbone_of("bert")
    task = task_on(held)
    expected = logits_of(task)
    products.clear()
    assert torch.equal(logits_of(task.twin()), expected)
    assert (len(products) > 0) == able
    again = Backbone(held.model)
    again.engine = OFF
    products.clear()
    with torch.no_grad():
        again.model(*ragged(LENGTHS))
    assert products == []


# --------------------------------------------------------------------------------------------- memory


def test_the_memory_is_what_the_docs_say(able: bool) -> None:
    """2 bytes per parameter of the layers' linear layers; as much again once there are gradients."""
    held = backbone_of("bert")
    inside = [module for module in held.base.encoder.modules() if isinstance(module, nn.Linear)]
    assert held.packed_weights.needed == sum(2 * module.weight.numel() for module in inside)
    task = task_on(held)
    logits_of(task)
    assert held.packed_weights.nbytes == held.packed_weights.needed * able
    learned(task, ON)
    assert (
        held.packed_weights.needed * able
        < held.packed_weights.nbytes + able
        <= 2 * held.packed_weights.needed + able
    )


@pytest.mark.parametrize(("share", "ways"), [(0.0, 0), (0.99, 0), (1.0, 1), (1.99, 1), (2.0, 2), (9.0, 2)])
def test_the_limit_is_kept(share: float, ways: int, able: bool) -> None:
    held = backbone_of("bert")
    limit = share * held.packed_weights.needed / 2**30
    task = task_on(held)
    assert_same(learned(task, Engine(packed_memory=limit)), learned(task, OFF))
    assert held.packed_weights.nbytes <= limit * 2**30
    assert held.packed_weights.ways(limit) == ways
    assert (held.packed_weights.nbytes > 0) == (able and ways > 0)


def test_a_backbone_without_linear_layers_has_nothing_to_pack() -> None:
    assert PackedWeights(nn.ModuleList([nn.LayerNorm(3)])).ways(1.0) == 0


# ------------------------------------------------------------------------------------- several threads


def test_threads_that_make_the_copies_at_the_same_time_answer_alike() -> None:
    held = backbone_of("bert")
    tasks = [task_on(held, seed=seed) for seed in range(4)]
    expected = [logits_of(task_on(backbone_of("bert"), seed=seed)) for seed in range(4)]
    begin, got = threading.Barrier(len(tasks)), {}

    def work(number: int) -> None:
        begin.wait()
        got[number] = [logits_of(tasks[number]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, expected[number]) for number in got for each in got[number])
    assert len(got) == len(tasks)
    assert held.packed_weights.nbytes <= held.packed_weights.needed


# ------------------------------------------------------------------ where there is nothing to pack with


def _broken(*_: Any) -> Any:
    raise RuntimeError("could not create a primitive")


@pytest.mark.parametrize(
    "operators",
    [
        SimpleNamespace(),
        SimpleNamespace(_is_mkldnn_bf16_supported=lambda: False),
        SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True),
        SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True, _reorder_linear_weight=_broken),
        SimpleNamespace(
            _is_mkldnn_bf16_supported=lambda: True,
            _reorder_linear_weight=lambda weight: weight,
            _linear_pointwise=lambda x, weight: x @ weight.t(),
        ),
        SimpleNamespace(
            _is_mkldnn_bf16_supported=lambda: True,
            _reorder_linear_weight=lambda weight: weight,
            _linear_pointwise=lambda x, weight, *_: x @ weight.t() + 1,
        ),
    ],
    ids=["no operators", "an old processor", "no reordering", "it fails", "other arguments", "it is wrong"],
)
def test_without_torchs_operators_the_layers_own_products_are_used(
    operators: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = task_on(backbone_of("bert"))
    expected = learned(model, OFF)
    packed_weights.is_supported.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    got = learned(model, ON)
    assert torch.equal(got[0], expected[0])
    assert all(torch.equal(got[1][name], value) for name, value in expected[1].items())
    assert (model.backbone.packed_weights.nbytes, model.backbone.packs) == (0, False)


def test_without_onednn_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed_weights.is_supported.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not packed_weights.is_supported(torch.bfloat16)
    assert not packed_weights.is_supported(torch.float16)


def test_whoever_turns_onednn_off_gets_none_of_it(products: list[torch.Size]) -> None:
    layer = linear()
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        layer(torch.randn(4, 32).bfloat16())
    finally:
        torch._C._set_mkldnn_enabled(before)
    assert products == []


@pytest.mark.parametrize("name", ["_len_torch_dispatch_stack", "_are_functorch_transforms_active"])
def test_a_torch_that_cannot_be_asked_who_watches_packs_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, products: list[torch.Size]
) -> None:
    layer = linear()
    monkeypatch.delattr(torch._C, name)
    layer(torch.randn(4, 32).bfloat16())
    assert products == []


# ------------------------------------------------------------------ whoever else looks at the layers


def test_hooks_see_and_change_what_they_did() -> None:
    layer = linear()
    x = torch.randn(4, 32).bfloat16()
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    assert_close(layer(x), own(layer, x * 2) + 1)


def test_only_plain_layers_are_packed() -> None:
    class Sub(nn.Linear):
        pass

    replaced = nn.Linear(4, 4)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    held = nn.ModuleList([Sub(4, 4), replaced, nn.Linear(4, 4), nn.Embedding(4, 4)])
    PackedWeights(held).install(held, 2)
    found = [isinstance(vars(module).get("forward"), PackedLinear) for module in held]
    assert found == [False, False, True, False]
    PackedWeights(held).install(held, 0)
    assert [vars(module).get("forward") is not None for module in held] == [False, True, False, False]


def test_a_parametrised_or_pruned_layer_is_read_as_it_is() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    layer = linear()
    x = torch.randn(4, 32).bfloat16()
    expected = 2 * (own(layer, x) - layer.bias) + layer.bias
    layer(x)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    assert_close(layer(x), expected)


def test_torchs_own_tools_see_the_layers_own_products(products: list[torch.Size]) -> None:
    layer, x = linear(), torch.randn(4, 32).bfloat16()
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 4 * 32 * 48
    rows = torch.func.vmap(layer)(x)
    assert_close(rows, own(layer, x))
    out, tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    assert_close(tangent, own(layer, torch.ones_like(x)) - layer.bias)
    assert_close(out, rows)
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    assert products == []


@pytest.mark.filterwarnings("ignore::UserWarning:torch.*", "ignore::FutureWarning:torch.*")
def test_compiled_layers_have_their_own_code(products: list[torch.Size]) -> None:
    held = backbone_of("bert")
    task = task_on(held)
    task.backbone.engine = Engine(compile=True)
    assert not task.backbone.packs
    assert [module for module in linears(task.backbone) if "forward" in vars(module)] == []
    layer, x = linear(), torch.randn(4, 32).bfloat16()
    assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), own(layer, x))
    assert products == []


# ------------------------------------------------------------------------------------- the option


def test_stems_that_were_computed_otherwise_are_not_reused(able: bool) -> None:
    """Their last bits may differ, and a run must not depend on what was cached before."""
    task = task_on(backbone_of("bert"), replace(DEEP, first_layer=1))
    keys = []
    for engine in (ON, OFF):
        task.backbone.engine = engine
        keys.append(stems._digest(task, 1, [b"1"]))
    assert (keys[0] != keys[1]) == able


def test_by_default_it_is_on_for_small_models() -> None:
    """BERT-base trains with packed weights; of RoBERTa-large's 0.6 GB there is not a second copy."""
    limit = Engine().packed_memory * 2**30
    assert 2 * 2 * 85e6 <= limit < 2 * 302e6
