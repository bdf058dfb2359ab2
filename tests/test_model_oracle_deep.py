"""Oracle, deep: PEFT's ``PREFIX_TUNING``, and for every architecture the slow float64 reference."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ptuning.adapters import MIX
from ptuning.errors import ConfigError, DataError, UnsupportedBackbone
from ptuning.model import ARCHITECTURES, Backbone, DeepPrompt, InputPrompt, PTuningModel
from ptuning.model.config import Engine
from ptuning.model.ports.interface import attention
from ptuning.task import Task
from reference import SlowReference
from tiny import CASES, DISTINCT, FAMILIES, HEADS, HIDDEN, LAYERS, SPECIFICS, ragged, tiny, tiny_case

P = 4
LENGTHS = [9, 3, 6, 2]

NO_CACHE = (
    *("distilbert", "albert", "modernbert", "deberta-v2", "mpnet"),
    *("eurobert", "nomic_bert", "gte", "jina_embeddings_v3", "ultrabert"),
)
"""PEFT's PREFIX_TUNING is a key/value cache, and their forward takes none."""
HAS_NO_POSITIONS = {"bloom"}
HAS_SEGMENTS = {"bert", "electra", "albert", "albert, own weights a layer", "ernie", "nomic_bert"} | {
    "ernie, task ids",
    "gte, two segments",
    "jina_embeddings_v3, two segments",
    "roberta, two segments",
    "deberta-v2, segments and places",
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------- helpers


@cache
def backbone(case: str) -> Backbone:
    return Backbone(tiny_case(case))


@cache
def reference(case: str) -> SlowReference:
    return SlowReference(tiny_case(case))


def deep(case: str, **choices: Any) -> PTuningModel:
    """A deep task whose prompt is large enough to matter, with the backbone's own head."""
    config = DeepPrompt(num_virtual_tokens=P, **choices)
    model = PTuningModel.from_backbone(backbone(case), config, num_labels=3).eval()
    with torch.no_grad():
        model.prompt_encoder.weight.normal_()
    return model


def moved(case: str) -> int:
    """The position offset that PEFT's cache implies."""
    return 0 if case in HAS_NO_POSITIONS else P


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=0, atol=tolerance * scale)


# ----------------------------------------------------------------------------------- PEFT as oracle


def prefix_tuned(case: str, prompt: Tensor, **facts: Any) -> Any:
    """PEFT's ``PREFIX_TUNING``. Its row is ``[P, L·2·H_kv]``: layer by layer, keys then values."""
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P, **facts)
    model = peft.get_peft_model(tiny_case(case), config)
    packed = torch.cat([layer[which] for layer in prompt for which in (0, 1)], dim=1)
    model.prompt_encoder["default"].embedding.weight.data.copy_(packed)
    return model.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("case", [kind for kind in SPECIFICS if kind not in NO_CACHE])
def test_logits_are_those_of_pefts_prefix_tuning(case: str) -> None:
    """Ragged, padded behind: there PEFT pools and places rightly, decoders included."""
    model = deep(case, position_offset=moved(case))
    ids, mask = ragged(LENGTHS)
    with torch.no_grad():
        peers = prefix_tuned(case, model.prompt_encoder.weight)
        assert_close(model(ids, mask).logits, peers(input_ids=ids, attention_mask=mask).logits)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("case", NO_CACHE)
def test_peft_still_cannot_do_these(case: str) -> None:
    """If this fails, PEFT has learned it: move the architecture to the test above."""
    model = deep(case)
    ids, mask = ragged(LENGTHS)
    peers = prefix_tuned(
        case, model.prompt_encoder.weight, token_dim=HIDDEN, num_attention_heads=HEADS, num_layers=LAYERS
    )
    with pytest.raises(ValueError, match="does not support past key values"):
        peers(input_ids=ids, attention_mask=mask)


# --------------------------------------------------------------------- the slow reference as oracle


@pytest.mark.parametrize("case", CASES)
def test_the_reference_without_a_prompt_is_plain_transformers(case: str) -> None:
    """The oracle's own oracle."""
    ids, _ = ragged([9])
    with torch.no_grad():
        plain = tiny_case(case)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    assert_close(plain, reference(case).logits(ids[0].tolist(), None))


@pytest.mark.parametrize(
    ("case", "first_layer", "position_offset"),
    [
        *((case, *choice) for case in CASES for choice in ((0, P), (1, 0))),
        *((case, *choice) for case in FAMILIES for choice in ((0, 0), (1, P))),
    ],
)
def test_logits_are_those_of_the_slow_reference(case: str, first_layer: int, position_offset: int) -> None:
    """A ragged batch, padded on either side, against each row alone in float64."""
    if case == "bloom" and (first_layer or position_offset):
        with pytest.raises(
            UnsupportedBackbone, match=r"bloom .*set prompt\.(first_layer|position_offset) to 0"
        ):
            deep(case, first_layer=first_layer, position_offset=position_offset)
        return
    model = deep(case, first_layer=first_layer, position_offset=position_offset)
    ids, mask = ragged(LENGTHS)
    left_ids, left_mask = ragged(LENGTHS, left=True)
    types = segments(case, mask)
    expected = torch.stack(
        [
            reference(case).logits(
                row[:length].tolist(),
                model.prompt_encoder.weight,
                first_layer=first_layer,
                position_offset=position_offset,
                token_type_ids=None if types is None else types[n, :length].tolist(),
            )
            for n, (row, length) in enumerate(zip(ids, LENGTHS, strict=True))
        ]
    )
    with torch.no_grad():
        assert_close(model(ids, mask, types).logits, expected)
        left_types = None if types is None else segments_on_the_left(types, mask, left_mask)
        assert_close(model(left_ids, left_mask, left_types).logits, expected)


@pytest.mark.parametrize("case", DISTINCT)
def test_mean_pooling_is_the_slow_references(case: str) -> None:
    """The mean of a row's own tokens, whatever padding stands on either side of them."""
    if case == "bloom":
        with pytest.raises(UnsupportedBackbone, match=r"bloom .*set prompt\.pooling to native"):
            deep(case, pooling="mean")
        return
    model, native = deep(case, pooling="mean"), deep(case)
    native.set_prompt(model.prompt_encoder.weight.detach())
    ids, mask = ragged(LENGTHS)
    left_ids, left_mask = ragged(LENGTHS, left=True)
    expected = torch.stack(
        [
            reference(case).logits(
                row[:length].tolist(),
                model.prompt_encoder.weight,
                position_offset=model.position_offset,
                mean=True,
            )
            for row, length in zip(ids, LENGTHS, strict=True)
        ]
    )
    with torch.no_grad():
        assert_close(model(ids, mask).logits, expected)
        assert_close(model(left_ids, left_mask).logits, expected)
        if backbone(case).reads_first_token or backbone(case).architecture.causal:
            assert not torch.allclose(native(ids, mask).logits, model(ids, mask).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "first_layer", "queries"),
    [
        *((case, 0, 2) for case in FAMILIES),
        *((case, 1, 1) for case in DISTINCT),
        *((case, 1, 0) for case in ("bert", "llama")),
    ],
)
def test_a_mix_of_layers_is_the_slow_references(case: str, first_layer: int, queries: int) -> None:
    """Means and greatest values of a row's own tokens, and what queries find among them, from what enters
    the first prompted layer on.
    """
    if case == "bloom":
        with pytest.raises(UnsupportedBackbone, match=r"bloom .*set prompt\.(first_layer|pooling) to"):
            deep(case, pooling="layers", num_queries=queries, first_layer=first_layer)
        return
    model = deep(case, pooling="layers", num_queries=queries, first_layer=first_layer)
    mean = deep(case, pooling="mean", first_layer=first_layer)
    mean.set_prompt(model.prompt_encoder.weight.detach())
    ids, mask = ragged(LENGTHS)
    left_ids, left_mask = ragged(LENGTHS, left=True)
    mix = dict(model.head.named())[MIX]
    with torch.no_grad():
        assert torch.equal(model(ids, mask).logits, mean(ids, mask).logits)  # so it begins, to the bit
        mix += torch.randn(mix.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    expected = torch.stack(
        [
            reference(case).logits(
                row[:length].tolist(),
                model.prompt_encoder.weight,
                first_layer=first_layer,
                position_offset=model.position_offset,
                mean=True,
                mix=mix,
            )
            for row, length in zip(ids, LENGTHS, strict=True)
        ]
    )
    with torch.no_grad():
        assert_close(model(ids, mask).logits, expected)
        assert_close(model(left_ids, left_mask).logits, expected)
        if model.stem_layer:
            stem = model.stem(ids, mask)
            assert torch.equal(model(ids, mask, stem=stem).logits, model(ids, mask).logits)
    loss = model(ids, mask, labels=torch.zeros(len(ids), dtype=torch.long)).loss
    loss.backward()
    assert mix.grad is not None
    assert bool((mix.grad.abs().sum(-1) > 0).all())


@pytest.mark.parametrize(
    ("case", "first_layer"), [*((case, 0) for case in DISTINCT), *((case, 1) for case in FAMILIES)]
)
def test_virtual_units_are_the_slow_references(case: str, first_layer: int) -> None:
    """Beside the hidden units of every prompted layer, whatever its feed-forward network looks like."""
    if case == "bloom":
        with pytest.raises(
            UnsupportedBackbone, match=r"bloom .*set prompt\.(first_layer|num_virtual_units) to"
        ):
            deep(case, num_virtual_units=3, first_layer=first_layer)
        return
    model, without = (deep(case, num_virtual_units=units, first_layer=first_layer) for units in (3, 0))
    without.set_prompt(model.prompt_encoder.weight.detach())
    ids, mask = ragged(LENGTHS)
    left_ids, left_mask = ragged(LENGTHS, left=True)
    assert model.units is not None
    assert model.units.weight.shape == (LAYERS - first_layer, 2, 3, HIDDEN)
    with torch.no_grad():
        assert torch.equal(model(ids, mask).logits, without(ids, mask).logits)  # they begin as nothing
        model.units.weight.copy_(torch.randn(model.units.weight.shape) * 0.5)
    expected = torch.stack(
        [
            reference(case).logits(
                row[:length].tolist(),
                model.prompt_encoder.weight,
                first_layer=first_layer,
                position_offset=model.position_offset,
                units=model.units.weight,
            )
            for row, length in zip(ids, LENGTHS, strict=True)
        ]
    )
    with torch.no_grad():
        assert_close(model(ids, mask).logits, expected)
        assert_close(model(left_ids, left_mask).logits, expected)
        assert not torch.allclose(model(ids, mask).logits, without(ids, mask).logits, atol=1e-4)
        if model.stem_layer:
            stem = model.stem(ids, mask)
            assert torch.equal(model(ids, mask, stem=stem).logits, model(ids, mask).logits)
    loss = model(ids, mask, labels=torch.zeros(len(ids), dtype=torch.long)).loss
    loss.backward()
    assert model.units.weight.grad is not None
    assert bool((model.units.weight.grad.abs().sum(-1) > 0).all())


def test_a_virtual_unit_is_a_hidden_unit() -> None:
    """BERT's own are GELUs too: a network that is as many units wider gives the same."""
    narrow, wide = tiny("bert"), tiny("bert", intermediate_size=51)
    model = PTuningModel.from_backbone(
        narrow, DeepPrompt(num_virtual_tokens=P, num_virtual_units=3), num_labels=3
    ).eval()
    assert model.units is not None
    state = {**wide.state_dict(), **narrow.state_dict()}
    with torch.no_grad():
        model.units.weight.normal_()
        read = model.units.weight * 2 / HIDDEN**0.5
        for layer, (keys, values) in enumerate(read):
            inner, outer = (f"bert.encoder.layer.{layer}.{part}.dense" for part in ("intermediate", "output"))
            state[f"{inner}.weight"] = torch.cat((state[f"{inner}.weight"], keys))
            state[f"{inner}.bias"] = torch.cat((state[f"{inner}.bias"], torch.zeros(3)))
            state[f"{outer}.weight"] = torch.cat((state[f"{outer}.weight"], values.T), dim=1)
        wide.load_state_dict(state)
        other = PTuningModel.from_backbone(wide, DeepPrompt(num_virtual_tokens=P), num_labels=3).eval()
        other.set_prompt(model.prompt_encoder.weight.detach())
        ids, mask = ragged(LENGTHS)
        assert_close(model(ids, mask).logits, other(ids, mask).logits)


PAIRS = [([5], [9, 6], [7, 8, 11], [4]), ([5], [6], [10, 7, 8, 12, 9], [4]), ([5], [8, 8, 9], [6], [4])]
"""What a row begins with, its texts, and what it ends with."""


@pytest.mark.parametrize(
    ("case", "first_layer"), [*((case, 0) for case in DISTINCT), *((case, 1) for case in FAMILIES)]
)
def test_similarity_pooling_reads_each_text_by_itself(case: str, first_layer: int) -> None:
    """A ragged batch of pairs, padded on either side, against each text alone in float64."""
    held = backbone(case)
    causal = held.architecture.causal
    if not held.port.can.layers or not (causal or held.reads_first_token):
        with pytest.raises(UnsupportedBackbone, match=r"no head that reads one token.* set prompt"):
            deep(case, pooling="similarity")
        return
    model = deep(case, pooling="similarity", first_layer=first_layer)
    assert model.stem_layer == 0
    assert model.needs_segments
    expected = []
    for lead, first, second, end in PAIRS:
        if causal:
            expected.append(
                last_tokens_compared(
                    model, case, first_layer, ([*lead, *each, *end] for each in (first, second))
                )
            )
            continue
        slow, others = reference(case), []
        for text in (first, second):
            logits = slow.logits(
                [*lead, *text, *end],
                model.prompt_encoder.weight,
                first_layer=first_layer,
                position_offset=model.position_offset,
                mean=True,
                beside=others[0] if others else None,
            )
            others.append(slow.left)
        expected.append(logits)
    rows = [[*lead, *first, *end, *second, *end] for lead, first, second, end in PAIRS]
    marks = [
        [-1] * len(lead) + [0] * len(first) + [-1] * len(end) + [1] * len(second) + [-1] * len(end)
        for lead, first, second, end in PAIRS
    ]
    longest = max(map(len, rows)) + 2
    for left in (False, True):
        ids, mask, places = (
            torch.tensor([[by] * n * left + own + [by] * n * (not left) for own, n in padded])
            for by, padded in (
                (0, [(row, longest - len(row)) for row in rows]),
                (0, [([1] * len(row), longest - len(row)) for row in rows]),
                (-1, [(mark, longest - len(mark)) for mark in marks]),
            )
        )
        types = (places.eq(1).int().cummax(1).values * mask).long()  # as tokenizers give them
        each_its_own = model.prompt_encoder.weight.detach().expand(len(rows), -1, -1, -1, -1)
        with torch.no_grad():
            assert_close(model(ids, mask, segment_ids=places).logits, torch.stack(expected))
            assert_close(
                model(ids, mask, segment_ids=places, prompt=each_its_own).logits, torch.stack(expected)
            )
            if case in HAS_SEGMENTS:
                assert_close(model(ids, mask, types).logits, torch.stack(expected))
        with pytest.raises(DataError, match=r"no row of the batch has a second text .*another pooling"):
            model(ids, mask)


def last_tokens_compared(model: Any, case: str, first_layer: int, texts: Any) -> Tensor:
    """``[C]``: a decoder's, dimension by dimension, of what leaves its last layer."""
    slow, ends = reference(case), []
    for text in texts:
        slow.logits(
            text,
            model.prompt_encoder.weight,
            first_layer=first_layer,
            position_offset=model.position_offset,
            mean=True,
        )
        end = slow.left[-1]
        for name in model.backbone.architecture.final:
            if model.backbone.has_module(name):
                end = slow.model.base_model.get_submodule(name)(end)
        ends.append(end / end.square().mean().sqrt())
    one, other = ends
    alike = torch.stack([a * b - abs(a - b) for a, b in zip(one, other, strict=True)])
    return slow.model.score.weight @ (alike + 5 * alike.mean())


def test_both_texts_of_a_pair_have_the_prompt_of_their_row() -> None:
    """A prompt per row and similarity: as each row by itself with its own prompt."""
    model = deep("bert", pooling="similarity")
    ids, _ = ragged([7, 7, 7])
    places = torch.tensor([[-1, 0, 0, -1, 1, 1, -1]]).expand_as(ids)
    prompts = torch.randn(3, *model.prompt_encoder.weight.shape)
    with torch.no_grad():
        together = model(ids, segment_ids=places, prompt=prompts).logits
        for row in range(3):
            one = slice(row, row + 1)
            assert_close(together[one], model(ids[one], segment_ids=places[one], prompt=prompts[row]).logits)


def test_a_text_that_the_tokenizer_drops_is_its_special_tokens_alone() -> None:
    """One such row does not end a run of many, and changes no other row."""
    model = deep("bert", pooling="similarity")
    ids = torch.tensor([[5, 9, 4, 7, 4], [5, 9, 6, 4, 4]])
    places = torch.tensor([[-1, 0, -1, 1, -1], [-1, 0, 0, -1, -1]])
    mask = torch.ones_like(ids)
    slow, others = reference("bert"), []
    for text in ([5, 9, 6, 4, 4], [5, 4, 4]):
        expected = slow.logits(
            text,
            model.prompt_encoder.weight,
            position_offset=model.position_offset,
            mean=True,
            beside=others[0] if others else None,
        )
        others.append(slow.left)
    with torch.no_grad():
        both = model(ids, mask, segment_ids=places).logits
        assert_close(both[1], expected)
        for row in (slice(0, 1), slice(1, 2)):
            assert_close(both[row], model(ids[row], mask[row], segment_ids=places[row]).logits)


def test_similarity_is_for_comparing_pairs_where_texts_have_means() -> None:
    """What a sentence embedding model gets for which task, unless one says otherwise."""
    held = Backbone(tiny_case("bert"), pooling="mean")
    plain, pair = (Task(problem_type="regression", pair=pair) for pair in (False, True))
    two, three, single = (
        Task(problem_type="single_label_classification", labels=tuple("abc"[:n]), pair=pair)
        for n, pair in ((2, True), (3, True), (2, False))
    )
    several = Task(problem_type="multi_label_classification", labels=("a", "b"), pair=True)

    def chosen(task: Task, on: Backbone = held, **choices: Any) -> str | None:
        config = DeepPrompt(num_virtual_tokens=P, **choices)
        settled = PTuningModel.from_backbone(on, config, task=task).prompt_config
        assert isinstance(settled, DeepPrompt)
        return settled.pooling

    assert [chosen(task) for task in (pair, two)] == ["similarity", "similarity"]
    assert [chosen(task) for task in (plain, three, single, several)] == ["layers"] * 4
    assert chosen(pair, pooling="mean") == "mean"
    assert chosen(pair, on=Backbone(tiny_case("bert"))) == "native"
    assert chosen(pair, on=Backbone(tiny_case("gpt2"), pooling="mean")) == "layers"


def segments(case: str, mask: Tensor) -> Tensor | None:
    """The second half of each row is its second text."""
    if case not in HAS_SEGMENTS:
        return None
    return ((mask.cumsum(1) * 2 > mask.sum(1, keepdim=True)) & mask.bool()).long()


def segments_on_the_left(types: Tensor, mask: Tensor, left_mask: Tensor) -> Tensor:
    moved_types = torch.zeros_like(types)
    moved_types[left_mask.bool()] = types[mask.bool()]
    return moved_types


@pytest.mark.parametrize("case", DISTINCT)
def test_every_layers_keys_and_values_are_read(case: str) -> None:
    """The oracles could agree on ignoring a layer; a gradient cannot."""
    model = deep(case)
    ids, mask = ragged([5, 7])
    model(ids, mask).logits.square().sum().backward()
    gradient = model.prompt_encoder.weight.grad
    assert gradient is not None
    per_layer = gradient.abs().amax(dim=(2, 3))  # [L, 2]
    assert (per_layer > 0).all(), per_layer


@pytest.mark.parametrize("case", ["bert", "llama", "deberta-v2", "distilbert"])
def test_layers_below_the_first_have_no_prompt(case: str) -> None:
    assert deep(case, first_layer=2).prompt_encoder().shape[0] == LAYERS - 2
    with pytest.raises(ConfigError, match=rf"prompt\.first_layer: .* {LAYERS} layers") as refused:
        deep(case, first_layer=LAYERS)
    assert (refused.value.got, refused.value.expected) == (LAYERS, f"at most {LAYERS - 1}")


@pytest.mark.parametrize("depth", ["input", "deep"])
@pytest.mark.parametrize("case", ["bert", "deberta-v2", "gpt2", "bloom"])
def test_a_prompt_for_each_row_equals_separate_calls(case: str, depth: str) -> None:
    config = DeepPrompt(num_virtual_tokens=P) if depth == "deep" else InputPrompt(num_virtual_tokens=P)
    model = PTuningModel.from_backbone(backbone(case), config, num_labels=3).eval()
    ids, mask = ragged(LENGTHS)
    prompts = torch.randn(len(LENGTHS), *model.prompt_encoder().shape)
    with torch.no_grad():
        together = model(ids, mask, prompt=prompts).logits
        for row, prompt in enumerate(prompts):
            alone = model(ids[row : row + 1], mask[row : row + 1], prompt=prompt).logits[0]
            assert_close(together[row], alone)


@pytest.mark.parametrize("case", ["bert", "llama"])
def test_prompts_that_nobody_reads_are_refused_not_ignored(case: str) -> None:
    """Somebody set another attention implementation after the model was adopted: no layer sees a prompt."""
    model = PTuningModel.from_backbone(tiny(case), DeepPrompt(num_virtual_tokens=P))
    model.backbone.model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedBackbone, match=r"read the deep prompts of 0 of its 3 layers.*input-depth"):
        model(*ragged([4]))


def test_an_architecture_whose_attention_does_more_is_refused_not_half_obeyed() -> None:
    """Block-sparse attention would hand its blocks over as an argument."""
    states = torch.randn(1, HEADS, 3, HIDDEN // HEADS)
    with pytest.raises(UnsupportedBackbone, match="Linear passes block_table to its attention"):
        attention(torch.nn.Linear(1, 1), states, states, states, None, block_table=torch.zeros(HEADS))


# ------------------------------------------------------------------------------------------- bf16


@pytest.mark.parametrize(
    ("case", "depth"),
    [*((case, "deep") for case in SPECIFICS), *((case, "input") for case in FAMILIES if case in SPECIFICS)],
)
def test_a_bf16_backbone_stays_near_fp32(case: str, depth: str) -> None:
    """A small spread of weights, as trained models have: bf16 keeps eight bits."""
    config = DeepPrompt(num_virtual_tokens=P) if depth == "deep" else InputPrompt(num_virtual_tokens=P)
    ids, mask = ragged(LENGTHS)
    models = [
        PTuningModel.from_backbone(tiny_case(case, initializer_range=0.05), config, num_labels=3, dtype=dtype)
        for dtype in (None, torch.bfloat16)
    ]
    models[1].load_state_dict(models[0].state_dict())
    full, half = models[0](ids, mask).logits, models[1](ids, mask).logits
    assert models[1].backbone.dtype == torch.bfloat16
    assert half.dtype == torch.float32
    assert_close(half, full, tolerance=0.1)

    half.square().sum().backward()
    for name, value in models[1].task_parameters().items():
        assert value.dtype == torch.float32, name
        assert value.grad is not None, name
        assert value.grad.dtype == torch.float32, name
        assert 0 < value.grad.abs().max() < float("inf"), name


@pytest.mark.parametrize(
    "case", ["bert", "llama", "gemma2, sliding", "gemma2", "qwen2", "modernbert", "albert"]
)
def test_plain_attention_is_the_fused_one(case: str) -> None:
    """bf16 on a CPU takes the other way through the attention function; in fp32 both ways are one."""
    model = deep(case, first_layer=1)
    ids, mask = ragged(LENGTHS)
    found = {}
    for way in ("fused", "plain", "auto"):
        model.backbone.engine = Engine(attention=way)  # type: ignore[arg-type]
        with torch.no_grad():
            found[way] = model(ids, mask).logits
    assert_close(found["plain"], found["fused"])
    assert torch.equal(found["auto"], found["fused"])


def test_every_architecture_is_here() -> None:
    assert set(SPECIFICS) == set(ARCHITECTURES)
