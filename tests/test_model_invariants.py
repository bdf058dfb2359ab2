"""Invariants: neighbours, frozenness, state, limits, checkpoints, prompt encoders, refusals, losses."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import FrozenInstanceError
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from ptuning.errors import (
    AdapterError,
    AdapterMismatch,
    BackboneNotFound,
    ConfigError,
    DataError,
    UnsupportedBackbone,
)
from ptuning.model import (
    Backbone,
    DeepMLPEncoder,
    DeepPrompt,
    EmbeddingEncoder,
    InputPrompt,
    LSTMEncoder,
    MLPEncoder,
    PromptConfig,
    PTuningModel,
    RandomInit,
    ResidualEncoder,
    TextInit,
    VocabularyInit,
)
from ptuning.model.config import Engine, prompt_from_dict, prompt_to_dict
from ptuning.model.state import KEY
from ptuning.peft import PromptEncoderConfig, get_peft_model
from ptuning.task import Task
from tiny import FAMILIES, HIDDEN, LAYERS, PAD, THOROUGH, VOCAB, ragged, tiny, tiny_case

P = 4
DEPTHS: dict[str, PromptConfig] = {
    "input": InputPrompt(num_virtual_tokens=P),
    "deep": DeepPrompt(num_virtual_tokens=P),
}
THREE = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
depths = pytest.mark.parametrize("depth", DEPTHS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------- helpers


def task_on(case: str, depth: str = "deep", **given_: Any) -> PTuningModel:
    return PTuningModel.from_backbone(tiny_case(case), DEPTHS[depth], num_labels=3, **given_)


class WordTokenizer:
    """A word's id is its length."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [len(word) for word in text.split()]}


def train(model: PTuningModel, steps: int = 4) -> None:
    ids, mask = ragged([9, 3, 6, 4])
    labels = torch.tensor([0, 1, 2, 1])
    optimizer = torch.optim.AdamW(model.task_parameters().values(), lr=0.05, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        model(ids, mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: value.detach().clone() for name, value in tensors.items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def assert_close(got: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def answers(model: PTuningModel, seed: int = 0) -> Tensor:
    logits: Tensor = model(*ragged([9, 3, 6, 4], seed=seed)).logits
    return logits


# ------------------------------------------------------------------------------------- neighbours

TEXTS = [ragged([length], seed=length)[0][0] for length in (2, 3, 5, 8, 13)]


@cache
def watched(case: str, depth: str) -> tuple[PTuningModel, list[Tensor]]:
    """A model, and what it says of each text alone."""
    torch.manual_seed(0)
    model = task_on(case, depth)
    with torch.no_grad():
        model.prompt_encoder.weight.normal_()
        return model, [model(text[None]).logits[0] for text in TEXTS]


@depths
@pytest.mark.parametrize(
    "case", ["bert", "roberta", "gpt2", "bloom", "deberta-v2", "deberta-v2, convolution", "mistral, sliding"]
)
@settings(max_examples=8, deadline=None)
@given(
    order=st.lists(st.tuples(st.integers(0, len(TEXTS) - 1), st.integers(0, 9)), min_size=1, max_size=6),
    more=st.integers(0, 5),
)
def test_neighbours_and_padding_change_nothing(
    case: str, depth: str, order: list[tuple[int, int]], more: int
) -> None:
    """Any texts in any order, each with some padding in front and the rest behind."""
    model, alone = watched(case, depth)
    width = max(len(TEXTS[text]) + front for text, front in order) + more
    ids, mask = torch.full((len(order), width), PAD), torch.zeros(len(order), width, dtype=torch.long)
    for row, (text, front) in enumerate(order):
        ids[row, front : front + len(TEXTS[text])] = TEXTS[text]
        mask[row, front : front + len(TEXTS[text])] = 1
    with torch.no_grad():
        assert_close(model(ids, mask).logits, torch.stack([alone[text] for text, _ in order]))


@depths
@pytest.mark.parametrize("case", FAMILIES)
def test_padding_wider_than_the_position_table_is_harmless(case: str, depth: str) -> None:
    model = task_on(case, depth).eval()
    ids, mask = ragged([5, 3])
    wide_ids, wide_mask = (torch.nn.functional.pad(x, (0, 80), value=v) for x, v in ((ids, PAD), (mask, 0)))
    with torch.no_grad():
        assert_close(model(wide_ids, wide_mask).logits, model(ids, mask).logits)


@depths
def test_what_stands_in_the_padding_is_never_read(depth: str) -> None:
    for case in ("bert", "llama", "bloom", "deberta-v2"):
        model = task_on(case, depth).eval()
        ids, mask = ragged([5, 3])
        other = torch.where(mask.bool(), ids, 77)
        with torch.no_grad():
            assert_close(model(other, mask).logits, model(ids, mask).logits)


@depths
def test_without_a_mask_every_token_is_real(depth: str) -> None:
    model = task_on("bert", depth).eval()
    ids, mask = ragged([5, 5])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids, mask).logits)


# ----------------------------------------------------------------------------- frozenness and state


@depths
@pytest.mark.parametrize("case", FAMILIES)
def test_training_changes_the_task_alone_and_all_of_it(case: str, depth: str) -> None:
    model = task_on(case, depth)
    frozen, trained = snapshot(model.backbone), snapshot(model.head) | snapshot(model.prompt_encoder)
    train(model)
    assert same(frozen, snapshot(model.backbone))
    assert not any(p.requires_grad or p.grad is not None for p in model.backbone.parameters())
    for name, value in (snapshot(model.head) | snapshot(model.prompt_encoder)).items():
        assert not torch.equal(trained[name], value), f"{name} did not move"


def test_a_frozen_head_stays() -> None:
    for config in (InputPrompt(num_virtual_tokens=P, train_head=False), DeepPrompt(train_head=False)):
        model = PTuningModel.from_backbone(tiny("roberta"), config, num_labels=3)
        before = snapshot(model.head)
        train(model)
        assert same(before, snapshot(model.head))
        assert set(model.task_parameters()) == {"prompt_encoder.weight"}


@depths
def test_task_parameters_are_what_requires_a_gradient(depth: str) -> None:
    """So any optimizer that filters by ``requires_grad``, as transformers' Trainer does, sees just these."""
    model = task_on("roberta", depth)
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in model.task_parameters().values()} == wanted
    assert model.num_parameters(only_trainable=True) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_embeddings_can_be_left_out_of_the_count() -> None:
    """transformers' Trainer asks for that when it counts its floating-point operations."""
    plain, model = tiny("bert"), task_on("bert")
    embeddings = plain.num_parameters() - plain.num_parameters(exclude_embeddings=True)
    assert embeddings > 0
    assert model.num_parameters() - model.num_parameters(exclude_embeddings=True) == embeddings


@depths
def test_state_holds_the_task_alone(depth: str) -> None:
    model = task_on("roberta", depth)
    assert set(model.state_dict()) == {
        KEY,  # what the numbers are: see state.py
        "prompt_encoder.weight",
        "head.classifier-dense-weight",
        "head.classifier-dense-bias",
        "head.classifier-out_proj-weight",
        "head.classifier-out_proj-bias",
    }
    around = torch.nn.ModuleDict({"inner": model})
    assert set(around.state_dict()) == {f"inner.{name}" for name in model.state_dict()}
    assert not any(around.load_state_dict(around.state_dict()))


@depths
@pytest.mark.parametrize("case", FAMILIES)
def test_state_round_trips_to_the_bit(case: str, depth: str, tmp_path: Path) -> None:
    trained = task_on(case, depth)
    train(trained, steps=2)
    save_file(trained.state_dict(), tmp_path / "task.safetensors")
    fresh = task_on(case, depth)
    assert not torch.equal(answers(fresh.eval()), answers(trained))
    fresh.load_state_dict(load_file(tmp_path / "task.safetensors"), strict=True)
    assert torch.equal(answers(fresh), answers(trained))


def test_state_with_a_missing_or_an_unexpected_key_is_refused() -> None:
    """By the record, however it is loaded; without the record by torch, which is told to be strict."""
    model = task_on("bert")
    whole = model.state_dict()
    bare = {name: value for name, value in whole.items() if name != KEY}
    for strict in (True, False):
        for name in bare:
            with pytest.raises(AdapterError, match="altered or cut short"):
                model.load_state_dict({k: v for k, v in whole.items() if k != name}, strict)
        with pytest.raises(AdapterError, match="altered or cut short"):
            model.load_state_dict({**whole, "stray": torch.zeros(1)}, strict)
    for name in bare:
        with pytest.raises(RuntimeError, match=rf'Missing key.*"{name}"'):
            model.load_state_dict({k: v for k, v in bare.items() if k != name})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"stray"'):
        model.load_state_dict({**bare, "stray": torch.zeros(1)})


def test_what_else_stands_around_a_task_is_still_asked_for() -> None:
    """Only our backbone's keys are left out of what is missing, not those of a name that sounds like it."""
    around = torch.nn.ModuleDict({"inner": task_on("bert"), "vision_backbone": torch.nn.Linear(2, 2)})
    state = {name: value for name, value in around.state_dict().items() if name.startswith("inner.")}
    with pytest.raises(RuntimeError, match=r'Missing key.*"vision_backbone.weight"'):
        around.load_state_dict(state)


def test_threads_do_not_meet() -> None:
    """Two tasks on one backbone, some threads: each answer is the task's own, the backbone stays as it is."""
    model = task_on("bert")
    other = PTuningModel(model.backbone, DEPTHS["input"], model.task)
    train(other, steps=4)
    own = {name: value.clone() for name, value in model.backbone.model.named_parameters()}
    expected = {id(each): answers(each.eval()) for each in (model, other)}
    with model.disabled():
        plain = answers(model)
    wrong: list[int] = []

    def ask(each: PTuningModel, disabled: bool) -> None:
        for _ in range(20):
            with each.disabled() if disabled else nullcontext():
                found = answers(each)
            if not torch.equal(found, plain if disabled else expected[id(each)]):
                wrong.append(1)

    threads = [
        threading.Thread(target=ask, args=args)
        for args in ((model, False), (other, False), (model, True), (other, False))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for name, value in model.backbone.model.named_parameters():
        assert torch.equal(value, own[name])
        assert not value.requires_grad


def test_a_state_says_what_it_is_of() -> None:
    model = task_on("bert")
    state = model.state_dict()
    with pytest.raises(AdapterMismatch, match=r"its prompt.num_virtual_tokens is 4, and this model's is 5"):
        PTuningModel.from_backbone(tiny("bert"), DeepPrompt(num_virtual_tokens=5)).load_state_dict(state)
    with pytest.raises(AdapterError, match=r"altered or cut short: its sha256 is not the recorded one"):
        model.load_state_dict({**state, "prompt_encoder.weight": state["prompt_encoder.weight"] + 1e-6})
    with pytest.raises(AdapterError, match="is not a record of ptuning"):
        model.load_state_dict({**state, KEY: state[KEY][:-1]})
    del state[KEY]
    changed = {**state, "prompt_encoder.weight": state["prompt_encoder.weight"] + 1}
    model.load_state_dict(changed)  # whoever changed it on purpose says so by leaving the record out
    assert torch.equal(model.state_dict()["prompt_encoder.weight"], changed["prompt_encoder.weight"])


@pytest.mark.parametrize("strict", [True, False])
def test_no_state_reaches_the_backbone(strict: bool) -> None:
    """A state dict made around the model may contain the backbone: the shared one does not change."""
    model = task_on("bert")
    before = snapshot(model.backbone)
    name = "backbone.model.bert.embeddings.word_embeddings.weight"
    state = {**model.state_dict(), name: torch.zeros(VOCAB, HIDDEN)}
    if strict:
        with pytest.raises(RuntimeError, match=re.escape(name)):
            model.load_state_dict(state)
    else:
        model.load_state_dict(state, strict=False)
    assert same(before, snapshot(model.backbone))


@depths
def test_two_tasks_on_one_backbone_do_not_meet(depth: str) -> None:
    backbone = Backbone(tiny("bert"))
    one, two = (PTuningModel.from_backbone(backbone, DEPTHS[depth], num_labels=3) for _ in range(2))
    before = answers(two.eval())
    train(one)
    assert torch.equal(answers(two), before)
    assert not torch.equal(answers(one), before)
    after = answers(one)
    train(two)
    assert torch.equal(answers(one), after)


@pytest.mark.parametrize(
    ("case", "depth"), [*((case, "deep") for case in THOROUGH), *((case, "input") for case in FAMILIES)]
)
def test_disabled_is_plain_transformers_with_its_own_head(case: str, depth: str) -> None:
    plain, model = tiny_case(case), task_on(case, depth)
    train(model, steps=1)
    ids, _ = ragged([7])
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        with model.disabled():
            assert_close(model(ids).logits, expected)
        assert (model(ids).logits - expected).abs().max() > 1e-3


def test_disabled_ends_with_its_block_even_on_an_error() -> None:
    model = task_on("bert").eval()
    before = answers(model)
    with pytest.raises(KeyError), model.disabled():
        raise KeyError
    assert torch.equal(answers(model), before)


@pytest.mark.parametrize("case", ["bert", "gpt2", "deberta-v2", "bloom", "albert"])
def test_a_deep_copy_is_a_model_of_its_own(case: str) -> None:
    model = task_on(case).eval()
    before = answers(model)
    copy = deepcopy(model)
    assert torch.equal(answers(copy), before)
    train(copy)
    assert torch.equal(answers(model), before)
    assert not torch.equal(answers(copy), before)


# ------------------------------------------------------------------------------------ train and eval


@depths
@pytest.mark.parametrize("case", ["bert", "roberta", "gpt2", "deberta-v2", "bloom"])
def test_backbone_dropout_is_off_unless_asked_for(case: str, depth: str) -> None:
    own = {"hidden_dropout": 0.1} if case == "bloom" else {}  # the others' configurations begin with some
    model = PTuningModel.from_backbone(tiny(case, **own), DEPTHS[depth], num_labels=3)
    quiet = answers(model.eval())
    model.train()
    assert model.training
    assert model.prompt_encoder.training
    assert torch.equal(answers(model), quiet), "train() alone turned the backbone's dropout on"
    model.backbone.dropout = True
    model.train()
    assert not torch.equal(answers(model), answers(model))
    assert torch.equal(answers(model.eval()), quiet)


@depths
def test_the_same_seed_gives_the_same_task(depth: str) -> None:
    states = []
    for seed in (1, 1, 2):
        model = tiny("bert")
        torch.manual_seed(seed)
        states.append(PTuningModel.from_backbone(model, DEPTHS[depth], num_labels=3).state_dict())
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


# ----------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("case", "config", "limit"),
    [
        ("bert", InputPrompt(num_virtual_tokens=P), 64 - P),
        ("roberta", InputPrompt(num_virtual_tokens=P), 64 - (PAD + 1) - P),
        ("xlm-roberta", DeepPrompt(num_virtual_tokens=P, position_offset=0), 64 - (PAD + 1)),
        ("bert", DeepPrompt(num_virtual_tokens=P, first_layer=1), 64),
        ("bert", DeepPrompt(num_virtual_tokens=P), 64 - P),  # PEFT's offset, the default in every layer
        ("bert", DeepPrompt(num_virtual_tokens=P, position_offset=P), 64 - P),
        ("opt", InputPrompt(num_virtual_tokens=P), 64 - P),
        ("gpt2", DeepPrompt(num_virtual_tokens=P, position_offset=9), 64 - 9),
    ],
)
def test_the_longest_text_fits_and_one_token_more_is_refused(
    case: str, config: PromptConfig, limit: int
) -> None:
    model = PTuningModel.from_backbone(tiny(case), config, num_labels=3).eval()
    assert model.max_text_tokens == limit
    with torch.no_grad():
        assert model(*ragged([limit, 3])).logits.isfinite().all()
        with pytest.raises(DataError) as caught:
            model(*ragged([3, limit + 1]))
    error = caught.value
    assert str(error).startswith("row 1 ")
    assert error.got == f"{limit + 1} tokens"
    assert str(error.expected).startswith(f"at most {limit}: ")
    assert f"minus {model.inserted_tokens} inserted" in str(error.expected)
    assert str(error.remedy).startswith("truncate the text")


def test_transformers_own_positions_end_where_ours_do() -> None:
    """The limit of RoBERTa is its table's, not one of ours."""
    plain = tiny("roberta")
    plain(input_ids=ragged([62])[0])
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        plain(input_ids=ragged([63])[0])


def test_nothing_bounds_alibi() -> None:
    model = PTuningModel.from_backbone(
        tiny("bloom", max_position_embeddings=None), DEPTHS["input"], num_labels=3
    )
    assert model.max_text_tokens is None
    with torch.no_grad():
        assert model(*ragged([100])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (InputPrompt(num_virtual_tokens=P), 20 - P),  # "special tokens and input prompt included"
        (DeepPrompt(num_virtual_tokens=P), 20),
        (
            DeepPrompt(num_virtual_tokens=P, position_offset=P),
            20,
        ),  # an offset moves positions; it is no tokens
    ],
)
def test_the_tasks_own_limit_counts_tokens(config: PromptConfig, limit: int) -> None:
    task = Task(problem_type="single_label_classification", labels=("a", "b", "c"), max_length=20)
    assert PTuningModel.from_backbone(tiny("bert"), config, task=task).max_text_tokens == limit


@pytest.mark.parametrize(
    "config", [InputPrompt(num_virtual_tokens=62), DeepPrompt(num_virtual_tokens=4, position_offset=62)]
)
def test_a_prompt_that_leaves_no_room_is_refused(config: PromptConfig) -> None:
    with pytest.raises(ConfigError, match="of 64 places for the text") as raised:
        PTuningModel.from_backbone(tiny("bert"), config, num_labels=3)
    assert raised.value.got == 2
    assert raised.value.remedy == "use fewer virtual tokens"


def test_a_task_whose_limit_leaves_no_room_is_said_to() -> None:
    short = Task(problem_type="single_label_classification", labels=("a", "b", "c"), max_length=5)
    with pytest.raises(ConfigError, match="of 5 places for the text") as raised:
        PTuningModel.from_backbone(tiny("bert"), InputPrompt(num_virtual_tokens=4), task=short)
    assert raised.value.got == 1
    assert raised.value.remedy == "use fewer virtual tokens, or a longer max_length"


# ------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny BERT as it comes out of pretraining: with neither pooler nor classifier."""
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(tiny("bert").config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def loaded(folder: Path, seed: int = 0, **given_: Any) -> PTuningModel:
    torch.manual_seed(seed)
    return PTuningModel.from_backbone(
        str(folder), DEPTHS["deep"], num_labels=3, tokenizer=WordTokenizer(), **given_
    ).eval()


def test_a_pooler_that_the_checkpoint_lacks_is_trained_and_kept(checkpoint: Path) -> None:
    model, other = loaded(checkpoint, seed=1), loaded(checkpoint, seed=2)
    pooler = {"head.bert-pooler-dense-weight", "head.bert-pooler-dense-bias"}
    assert pooler <= set(model.task_parameters())
    assert pooler <= set(model.state_dict())
    before = snapshot(model.head)
    frozen = snapshot(model.backbone)
    train(model)
    assert all(not torch.equal(before[name], value) for name, value in snapshot(model.head).items())
    assert same(frozen, snapshot(model.backbone))
    # Another process drew another pooler: the task brings its own.
    assert not torch.equal(answers(other), answers(model))
    other.load_state_dict(model.state_dict())
    assert torch.equal(answers(other), answers(model))
    assert other.backbone.facts() == model.backbone.facts(), "a random pooler is no part of the backbone"


def test_a_pooler_of_the_checkpoint_is_frozen(tmp_path: Path) -> None:
    tiny("bert").save_pretrained(tmp_path)
    model = loaded(tmp_path)
    assert set(model.task_parameters()) == {
        "prompt_encoder.weight",
        "head.classifier-weight",
        "head.classifier-bias",
    }
    with torch.no_grad(), model.disabled():
        assert_close(model(ragged([5])[0]).logits, tiny("bert")(input_ids=ragged([5])[0]).logits)


def test_a_head_of_another_width_is_a_fresh_one(tmp_path: Path) -> None:
    tiny("bert", num_labels=7).save_pretrained(tmp_path)
    assert loaded(tmp_path).head.state_dict()["classifier-weight"].shape == (3, HIDDEN)


@pytest.mark.parametrize(
    "lost", ["bert.encoder.layer.1.attention.self.key.weight", "bert.embeddings.LayerNorm.bias"]
)
def test_a_checkpoint_without_all_of_the_transformer_is_refused(checkpoint: Path, lost: str) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights[lost]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedBackbone, match=rf"lacks 1 weights.*{re.escape(lost)}"):
        loaded(checkpoint)


def test_a_transformer_of_another_shape_is_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(UnsupportedBackbone, match=r"lacks \d+ weights"):
        loaded(checkpoint)


def test_a_backbone_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneNotFound, match=r"nowhere.*expected a folder with config.json"):
        loaded(tmp_path / "nowhere")


def test_an_architecture_outside_the_table_is_named() -> None:
    config = AutoConfig.for_model(
        "megatron-bert",
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
    )
    with pytest.raises(
        UnsupportedBackbone, match=r"not supported: got 'megatron-bert', expected one of \d+ architectures"
    ):
        Backbone(AutoModelForSequenceClassification.from_config(config))


@pytest.mark.parametrize("name", ["AutoModel", "AutoModelForMaskedLM", "AutoModelForTokenClassification"])
@pytest.mark.parametrize("depth", list(DEPTHS))
def test_a_model_for_something_else_is_named(name: str, depth: str) -> None:
    """The most common slip; some of them even gave logits."""
    other = getattr(transformers, name).from_config(tiny("bert").config)
    before = snapshot(other)
    for adopt in (
        lambda: PTuningModel.from_backbone(other, DEPTHS[depth], num_labels=3),
        lambda: get_peft_model(other, PromptEncoderConfig(num_virtual_tokens=4)),
    ):
        with pytest.raises(UnsupportedBackbone, match=r"got Bert\w*, .* AutoModelForSequenceClassification"):
            adopt()
    assert same(before, snapshot(other))
    assert all(value.requires_grad for value in other.parameters())


def test_a_class_of_ones_own_for_sequence_classification_is_adopted() -> None:
    class Own(transformers.BertForSequenceClassification):
        pass

    assert PTuningModel.from_backbone(Own(tiny("bert").config), DEPTHS["deep"], num_labels=3)


def test_layers_that_attend_twice_are_refused_for_deep_prompts() -> None:
    """ALBERT may run ``inner_group_num`` attentions in a layer; a prompt a layer is not defined there."""
    backbone = tiny("albert", inner_group_num=2)
    with pytest.raises(UnsupportedBackbone, match="inner_group_num"):
        PTuningModel.from_backbone(backbone, DEPTHS["deep"], num_labels=3)


def test_the_fingerprint_is_the_weights_and_not_their_precision() -> None:
    full, half = task_on("bert").backbone, task_on("bert", dtype=torch.bfloat16).backbone
    assert half.dtype == torch.bfloat16
    assert full.fingerprint() == half.fingerprint() == task_on("bert").backbone.fingerprint()
    saved_so = Backbone(tiny("bert").to(torch.bfloat16))  # as a checkpoint in bf16 is loaded
    assert saved_so.fingerprint() == full.fingerprint()
    other = tiny("bert")
    other.bert.encoder.layer[1].output.dense.bias.data[0] += 1
    assert Backbone(other).fingerprint() != full.fingerprint()
    head = tiny("bert")
    head.classifier.weight.data += 1
    assert Backbone(head).fingerprint() == full.fingerprint(), "the head is the task's"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("depth", list(DEPTHS))
def test_half_precision_is_the_backbones_alone(depth: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """``model.half()``, ``model.to(dtype)``: the task stays as it is, and its file fits the same backbone."""
    model = task_on("bert", depth, class_weights=[1.0, 2.0, 3.0])
    before = {name: value.detach().clone() for name, value in model.task_parameters().items()}
    fingerprint = task_on("bert").backbone.fingerprint()
    same_model = model.half() if dtype == torch.float16 else model.to(dtype)
    assert same_model is model
    assert {value.dtype for value in model.backbone.parameters()} == {dtype}
    assert {value.dtype for value in model.task_parameters().values()} == {torch.float32}
    assert model.class_weights is not None
    assert model.class_weights.dtype == torch.float32
    assert same(before, dict(model.task_parameters()))
    assert model.backbone.fingerprint() == fingerprint
    expected = task_on("bert", depth, dtype=dtype)
    expected.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(answers(model), answers(expected))
    model.save_pretrained(tmp_path / "adapter")
    back = PTuningModel.from_pretrained(tmp_path / "adapter", backbone=tiny("bert"), dtype=dtype)
    assert torch.equal(answers(back), answers(model))


def test_a_wider_precision_is_the_whole_models() -> None:
    """For checking gradients, and nothing is lost by it."""
    model = task_on("bert").double()
    assert {value.dtype for value in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("case", ["llama", "modernbert", "gpt_neox"])
def test_rotary_frequencies_stay_exact(case: str) -> None:
    """As where transformers loads a model in bf16; an angle is a frequency times the position."""
    held = Backbone(tiny(case))
    made = {name: value.clone() for name, value in held.named_buffers() if "inv_freq" in name}
    assert made
    held.to(torch.bfloat16)
    assert {value.dtype for value in held.parameters()} == {torch.bfloat16}
    for name, value in made.items():
        assert torch.equal(held.get_buffer(name), value)


# -------------------------------------------------------------------------------- prompt encoders


def encoder_of(config: PromptConfig, case: str = "bert", **given_: Any) -> Any:
    return PTuningModel.from_backbone(tiny(case), config, num_labels=3, **given_).prompt_encoder


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def lstm(inputs: int, width: int, layers: int) -> int:
    """Four gates, two biases each, two directions."""
    sizes = [inputs, *[2 * width] * (layers - 1)]
    return sum(2 * 4 * (size * width + width * width + 2 * width) for size in sizes)


E, H, W = HIDDEN, HIDDEN, 7
BOTH = LAYERS * 2 * HIDDEN


@pytest.mark.parametrize(
    ("config", "shape", "count"),
    [
        (InputPrompt(num_virtual_tokens=P), (P, E), P * E),
        (
            InputPrompt(num_virtual_tokens=P, encoder=MLPEncoder(width=W)),
            (P, E),
            P * E + linear(E, W) + linear(W, W) + linear(W, E),
        ),
        (InputPrompt(num_virtual_tokens=P, encoder=MLPEncoder()), (P, E), P * E + 3 * linear(E, E)),
        (
            InputPrompt(num_virtual_tokens=P, encoder=LSTMEncoder(width=W)),
            (P, E),
            P * E + lstm(E, W, 2) + linear(2 * W, 2 * W) + linear(2 * W, E),
        ),
        (
            InputPrompt(num_virtual_tokens=P, encoder=LSTMEncoder(num_layers=1)),
            (P, E),
            P * E + lstm(E, E, 1) + linear(2 * E, 2 * E) + linear(2 * E, E),
        ),
        (
            InputPrompt(num_virtual_tokens=P, encoder=ResidualEncoder(width=W)),
            (P, E),
            P * E + linear(E, W) + linear(W, E),
        ),
        (InputPrompt(placement="{prompt:2} {text} {prompt:3}"), (5, E), 5 * E),
        (DeepPrompt(num_virtual_tokens=P), (LAYERS, 2, P, H), LAYERS * 2 * P * H),
        (DeepPrompt(num_virtual_tokens=P, first_layer=2), (LAYERS - 2, 2, P, H), (LAYERS - 2) * 2 * P * H),
        (
            DeepPrompt(num_virtual_tokens=P, encoder=DeepMLPEncoder(width=W)),
            (LAYERS, 2, P, H),
            P * H + linear(H, W) + linear(W, BOTH),
        ),
        (
            DeepPrompt(num_virtual_tokens=P, encoder=DeepMLPEncoder()),
            (LAYERS, 2, P, H),
            P * H + linear(H, H) + linear(H, BOTH),
        ),
    ],
)
def test_shapes_and_counts(config: PromptConfig, shape: tuple[int, ...], count: int) -> None:
    encoder = encoder_of(config)
    assert encoder().shape == shape
    assert sum(value.numel() for value in encoder.parameters()) == count
    assert all(value.requires_grad and value.dtype == torch.float32 for value in encoder.parameters())


@pytest.mark.parametrize(
    ("case", "width"),
    [("electra", 20), ("albert", 20), ("opt", 20), ("llama", HIDDEN), ("distilbert", HIDDEN)],
)
def test_an_input_prompt_is_as_wide_as_the_word_embeddings(case: str, width: int) -> None:
    assert encoder_of(DEPTHS["input"], case)().shape == (P, width)


@pytest.mark.parametrize(("case", "width"), [("llama", 16), ("gemma", 16), ("albert", 32), ("bloom", 32)])
def test_a_deep_prompt_is_as_wide_as_the_keys(case: str, width: int) -> None:
    assert encoder_of(DEPTHS["deep"], case)().shape == (LAYERS, 2, P, width)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_encoders_compute_what_pefts_compute(kind: str) -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.PromptEncoder(
        peft.PromptEncoderConfig(
            num_virtual_tokens=P,
            token_dim=E,
            num_transformer_submodules=1,
            encoder_reparameterization_type=kind,
            encoder_hidden_size=W,
            encoder_num_layers=2,
        )
    )
    config = MLPEncoder(width=W) if kind == "MLP" else LSTMEncoder(width=W)
    ours = encoder_of(InputPrompt(num_virtual_tokens=P, encoder=config))
    renames = {"embedding.weight": "weight", "mlp_head": "layers", "lstm_head": "lstm"}
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in renames.items():
            name = name.replace(old, new)
        state[name] = value
    ours.load_state_dict(state)
    torch.testing.assert_close(ours(), theirs(torch.arange(P)[None])[0])


def test_an_lstm_has_gradients_in_eval_mode_on_a_gpu_too() -> None:
    """cuDNN would refuse them; it computes what it can: training, and what needs no gradient."""
    encoder = encoder_of(InputPrompt(num_virtual_tokens=P, encoder=LSTMEncoder(width=W)))
    lstm = next(module for module in encoder.modules() if isinstance(module, torch.nn.LSTM))
    seen: list[bool] = []
    lstm.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))
    encoder.train()()
    encoder.eval()().sum().backward()
    with torch.no_grad():
        encoder()
    assert seen == [True, False, True]
    assert torch.backends.cudnn.enabled


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_the_deep_encoder_computes_what_pefts_prefix_projection_computes() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=P, token_dim=H, num_layers=LAYERS, encoder_hidden_size=W, prefix_projection=True
    )
    theirs = peft.PrefixEncoder(config)
    ours = encoder_of(DeepPrompt(num_virtual_tokens=P, encoder=DeepMLPEncoder(width=W)))
    renames = {"embedding.": "", "transform.0": "layers.0", "transform.2": "layers.3"}
    state = {}
    for name, value in theirs.state_dict().items():
        old = next(old for old in renames if name.startswith(old))
        state[name.replace(old, renames[old])] = value
    ours.load_state_dict(state)
    blocks = theirs(torch.arange(P)[None])[0].split(H, dim=1)  # layer by layer, keys then values
    for layer, (keys, values) in enumerate(ours()):
        torch.testing.assert_close(keys, blocks[2 * layer])
        torch.testing.assert_close(values, blocks[2 * layer + 1])


def test_the_line_that_everyone_knows(capsys: pytest.CaptureFixture[str]) -> None:
    """The guide's own figures: roberta-large, 20 tokens, MLP of width 128; no weight is made for them."""
    config = AutoConfig.for_model(
        "roberta",
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=2,
    )
    with torch.device("meta"):
        large = AutoModelForSequenceClassification.from_config(config)
    prompt = InputPrompt(placement="start", encoder=MLPEncoder(width=128), num_virtual_tokens=20)
    model = PTuningModel.from_backbone(large, prompt)
    assert {p.device.type for p in (*model.parameters(), *model.backbone.parameters())} == {"meta"}
    model.print_trainable_parameters()
    assert capsys.readouterr().out == (
        "trainable params: 1351938 || all params: 355662082 || trainable%: 0.38011867680626127\n"
    )


@pytest.mark.parametrize(
    "config",
    [
        InputPrompt(num_virtual_tokens=P, encoder=ResidualEncoder(dropout=0.5)),
        InputPrompt(num_virtual_tokens=P, encoder=LSTMEncoder(dropout=0.5)),
        DeepPrompt(num_virtual_tokens=P, encoder=DeepMLPEncoder(dropout=0.5)),
    ],
)
def test_an_encoders_dropout_acts_in_training_alone(config: PromptConfig) -> None:
    encoder = encoder_of(config)
    with torch.no_grad():
        for value in encoder.parameters():
            value.normal_()  # the residual's way back up starts at nought and would hide it
    encoder.train()
    assert not torch.equal(encoder(), encoder())
    encoder.eval()
    assert torch.equal(encoder(), encoder())


@pytest.mark.parametrize("encoder", [EmbeddingEncoder(), ResidualEncoder(), ResidualEncoder(dropout=0.5)])
def test_embedding_and_residual_begin_as_exactly_the_initialisation(encoder: Any) -> None:
    config = InputPrompt(num_virtual_tokens=5, encoder=encoder, init=TextInit(text="a bbb cc"))
    model = PTuningModel.from_backbone(tiny("bert"), config, num_labels=3, tokenizer=WordTokenizer())
    expected = tiny("bert").get_input_embeddings().weight[torch.tensor([1, 3, 2, 1, 3])]
    model.train()
    assert torch.equal(model.prompt_encoder(), expected)


@pytest.mark.parametrize(("tokens", "ids"), [(2, [1, 3]), (3, [1, 3, 2]), (7, [1, 3, 2, 1, 3, 2, 1])])
def test_text_is_repeated_or_cut_to_fit(tokens: int, ids: list[int]) -> None:
    config = InputPrompt(num_virtual_tokens=tokens, init=TextInit(text="a bbb cc"))
    for case in ("bert", "electra", "gemma3_text"):  # Gemma 3 scales what it looks up
        found = encoder_of(config, case, tokenizer=WordTokenizer())()
        assert torch.equal(found, tiny(case).get_input_embeddings()(torch.tensor(ids)))


def test_vocabulary_rows_are_rows_of_the_vocabulary() -> None:
    vocabulary = tiny("bert").get_input_embeddings().weight
    rows = encoder_of(InputPrompt(num_virtual_tokens=P, init=VocabularyInit()))()
    assert all((vocabulary == row).all(dim=1).any() for row in rows)
    assert not torch.equal(rows[0], rows[1])


def test_random_rows_have_the_vocabularys_scale() -> None:
    model = tiny("bert", max_position_embeddings=2000)
    with torch.no_grad():
        vocabulary = model.get_input_embeddings().weight.normal_(mean=0.7, std=0.05)
    config = InputPrompt(num_virtual_tokens=1000, init=RandomInit())
    rows = PTuningModel.from_backbone(model, config, num_labels=3).prompt_encoder()
    assert not any((vocabulary == row).all(dim=1).any() for row in rows[:5])
    assert float(rows.detach().mean()) == pytest.approx(0.7, abs=0.01)
    assert float(rows.detach().std()) == pytest.approx(0.05, rel=0.05)


def test_an_initial_prompt_shares_no_memory_with_the_backbone() -> None:
    model = PTuningModel.from_backbone(tiny("bert"), DEPTHS["input"], num_labels=3)
    before = snapshot(model.backbone)
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(1)
    assert same(before, snapshot(model.backbone))


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: InputPrompt(placement="behind"),
            r"prompt\.placement: got 'behind', expected one of start, front",
        ),
        (lambda: InputPrompt(placement="{text_a} {text_b}"), r"no \{prompt:N\}"),
        (lambda: InputPrompt(placement="{prompt:3}"), r"got no \{text\}, expected \{text\} once"),
        (lambda: InputPrompt(placement="{prompt:3} {text_b}"), r"\{text_a\} once"),
        (lambda: InputPrompt(placement="{prompt:3} {text_b} {text_a}"), r"\{text_a\} once and then"),
        (lambda: InputPrompt(placement="{prompt:3} {text_a} {text_a}"), r"\{text_a\} once"),
        (lambda: InputPrompt(placement="{prompt:3} {text_a} {text_b} {text_b}"), r"\{text_b\} once"),
        (
            lambda: InputPrompt(placement="{prompt:0} {text_a}"),
            r"a number from 1 to 9999, such as \{prompt:4\}",
        ),
        (lambda: InputPrompt(placement="{prompt} {text_a}"), r"\{prompt\} has no valid count"),
        (lambda: InputPrompt(placement="{prompt:-1} {text_a}"), r"has no valid count"),
        (lambda: InputPrompt(placement="{promt:2} {text_a}"), r"unknown slot \{promt:2\}"),
        (lambda: InputPrompt(placement="{prompt:2} {text_a} {text_b"), r"unmatched brace near '\{text_b'"),
        (lambda: InputPrompt(placement="{prompt:2}} {text_a}"), r"unmatched brace"),
        (
            lambda: InputPrompt(placement="{prompt:2} {text_a}", num_virtual_tokens=3),
            r"num_virtual_tokens is 3, .*has 2; leave num_virtual_tokens out",
        ),
        (
            lambda: InputPrompt(num_virtual_tokens=0),
            r"num_virtual_tokens: got 0, expected greater than or equal to 1",
        ),
        (lambda: DeepPrompt(num_virtual_tokens=-1), r"num_virtual_tokens: got -1, expected greater"),
        (lambda: DeepPrompt(first_layer=-1), r"first_layer: got -1, expected greater than or equal to 0"),
        (lambda: DeepPrompt(position_offset=-1), r"position_offset: got -1, expected greater"),
        (lambda: MLPEncoder(width=0), r"width: got 0, expected greater than or equal to 1"),
        (lambda: LSTMEncoder(width=0), r"width: got 0, expected greater"),
        (lambda: LSTMEncoder(num_layers=0), r"num_layers: got 0, expected greater"),
        (lambda: LSTMEncoder(dropout=1.0), r"dropout: got 1.0, expected less than 1"),
        (
            lambda: LSTMEncoder(num_layers=1, dropout=0.1),
            r"encoder.dropout: got .*, expected 0 .*between LSTM layers",
        ),
        (lambda: ResidualEncoder(width=0), r"width: got 0, expected greater"),
        (lambda: ResidualEncoder(dropout=-0.1), r"dropout: got -0.1, expected greater"),
        (lambda: DeepMLPEncoder(width=0), r"width: got 0, expected greater"),
        (lambda: DeepMLPEncoder(dropout=2), r"dropout: got 2, expected less than 1"),
        (lambda: TextInit(text="  "), r"init.text: got '  ', expected words"),
        (lambda: prompt_from_dict({"depth": "middling"}), r"depth.*'middling'.*input.*deep"),
        (lambda: prompt_from_dict({"depth": "deep", "placement": "start"}), r"placement"),
        (lambda: prompt_from_dict({"depth": "input", "first_layer": 1}), r"first_layer"),
        (
            lambda: prompt_from_dict({"depth": "input", "encoder": {"kind": "mlp", "dropout": 0.1}}),
            r"dropout",
        ),
        (lambda: prompt_from_dict({"depth": "deep", "encoder": {"kind": "lstm"}}), r"'lstm'.*embedding.*mlp"),
        (lambda: prompt_from_dict({"depth": "input", "init": {"kind": "zeros"}}), r"'zeros'.*vocabulary"),
        (lambda: prompt_from_dict({"depth": "input", "init": {"kind": "text"}}), r"text"),
        (lambda: task_on("bert", class_weights=[1.0, 2.0]), r"class_weights.*expected 3 numbers above 0"),
        (lambda: task_on("bert", class_weights=[1.0, 2.0, 0.0]), r"class_weights.*above 0"),
        (
            lambda: PTuningModel(
                Backbone(tiny("bert")), InputPrompt(placement="{prompt:2} so {text_a}"), THREE, anchors=[]
            ),
            r"anchors",
        ),
        (
            lambda: PTuningModel(
                Backbone(tiny("bert")),
                InputPrompt(placement="{prompt:2} so {text_a}"),
                THREE,
                anchors=[[5], [6]],
            ),
            r"anchors",
        ),
        (
            lambda: encoder_of(InputPrompt(init=TextInit(text="some words"))),
            r"init\.text: got the words 'some words', expected a tokenizer",
        ),
        (
            lambda: PTuningModel.from_backbone(tiny("bert", num_labels=1), num_labels=1, class_weights=[1.0]),
            r"regression has no classes; leave it out",
        ),
        # Python's choices are held to their types as a file's are: none may mean another in silence.
        (lambda: DeepPrompt(pooling="CLS"), r"pooling: got 'CLS', expected 'native', 'mean', 'layers' or"),
        (lambda: DeepPrompt(num_virtual_tokens="many"), r"num_virtual_tokens: got 'many', expected integer"),
        (lambda: DeepPrompt(encoder=MLPEncoder()), r"encoder: got MLPEncoder.* instance of DeepMLPEncoder"),
        (lambda: InputPrompt(encoder=DeepMLPEncoder()), r"encoder: got DeepMLP.* instance of MLPEncoder"),
        (lambda: InputPrompt(encoder="mlp"), r"encoder: got 'mlp', expected a dictionary of options, or"),
        (lambda: InputPrompt(init="random"), r"init: got 'random', expected a dictionary of options, or"),
        (lambda: Engine(attention="flash"), r"attention: got 'flash', expected 'auto', 'plain' or 'fused'"),
        (
            lambda: Task(problem_type="multi_label", labels=("a", "b")),
            r"problem_type: got 'multi_label', expected 'single_label_classification', 'multi_label_cl",
        ),
        (
            lambda: PTuningModel.from_backbone(tiny("bert"), num_labels=3, problem_type="regression"),
            r"num_labels: got 3, expected 1, because a regression predicts one number",
        ),
        (
            lambda: PTuningModel.from_backbone(tiny("bert"), num_labels=2, task=THREE),
            r"got 2 and None, expected 3 and single_label_classification, as in task; leave them out",
        ),
        (
            lambda: PTuningModel.from_backbone(tiny("bert"), problem_type="regression", task=THREE),
            r"got None and regression, expected 3 and single_label_classification, as in task; leave them",
        ),
    ],
)
def test_a_bad_choice_is_refused_with_words_that_help(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_choice_may_be_written_as_a_file_writes_it() -> None:
    assert InputPrompt(encoder={"kind": "mlp", "width": "8"}) == InputPrompt(encoder=MLPEncoder(width=8))


def test_a_regression_is_one_number_wide_whatever_the_backbone_was() -> None:
    model = PTuningModel.from_backbone(tiny("bert", num_labels=3), problem_type="regression")
    assert answers(model).shape[1] == 1


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (EmbeddingEncoder, "width"),
        (MLPEncoder, "dropout"),
        (MLPEncoder, "num_layers"),
        (ResidualEncoder, "num_layers"),
        (DeepMLPEncoder, "num_layers"),
        (RandomInit, "text"),
        (VocabularyInit, "text"),
        (InputPrompt, "first_layer"),
        (InputPrompt, "position_offset"),
        (DeepPrompt, "placement"),
        (DeepPrompt, "init"),
    ],
)
def test_an_option_that_a_choice_does_not_take_cannot_be_written(kind: type, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__}: unknown option {option}"):
        kind(**{option: 1})


def test_choices_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        InputPrompt().placement = "end"  # type: ignore[misc]


widths, rates = st.none() | st.integers(1, 64), st.floats(0, 0.9)
input_encoders = st.one_of(
    st.builds(EmbeddingEncoder),
    st.builds(MLPEncoder, width=widths),
    st.builds(LSTMEncoder, width=widths, num_layers=st.integers(2, 4), dropout=rates),
    st.builds(ResidualEncoder, width=st.integers(1, 64), dropout=rates),
)
deep_encoders = st.builds(EmbeddingEncoder) | st.builds(DeepMLPEncoder, width=widths, dropout=rates)
inits = st.one_of(
    st.builds(RandomInit),
    st.builds(VocabularyInit),
    st.builds(TextInit, text=st.text(min_size=1).filter(str.strip)),
)
named = st.builds(
    InputPrompt,
    num_virtual_tokens=st.none() | st.integers(1, 99),
    placement=st.sampled_from(["start", "front", "between", "middle", "end"]),
    encoder=input_encoders,
    init=inits,
    train_head=st.booleans(),
)
templated = st.builds(
    InputPrompt,
    placement=st.builds(
        "{{prompt:{}}} {{text_a}} ? {{prompt:{}}}".format, st.integers(1, 9), st.integers(1, 9)
    ),
    encoder=input_encoders,
    init=inits,
)
deeps = st.builds(
    DeepPrompt,
    num_virtual_tokens=st.integers(1, 99),
    first_layer=st.integers(0, 9),
    position_offset=st.integers(0, 99),
    encoder=deep_encoders,
    train_head=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(config=named | templated | deeps)
def test_every_choice_survives_json(config: PromptConfig) -> None:
    assert prompt_from_dict(json.loads(json.dumps(prompt_to_dict(config)))) == config


# ----------------------------------------------------------------------------------------- losses


def log_softmax(logits: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in logits))
    return [x - total for x in logits]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return ragged([9, 3, 6, 4])


@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 0.5]])
def test_cross_entropy_weighs_each_class(weights: list[float] | None, batch: tuple[Tensor, Tensor]) -> None:
    model = task_on("bert", class_weights=weights).eval()
    labels = [0, 1, 2, 1]
    with torch.no_grad():
        out = model(*batch, labels=torch.tensor(labels))
    weigh = weights or [1.0] * 3
    terms = [-weigh[c] * log_softmax(row.tolist())[c] for row, c in zip(out.logits, labels, strict=True)]
    assert float(out.loss) == pytest.approx(sum(terms) / sum(weigh[c] for c in labels), rel=1e-5)


@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 0.5]])
def test_several_labels_are_as_many_yes_or_no_questions(
    weights: list[float] | None, batch: tuple[Tensor, Tensor]
) -> None:
    model = task_on("bert", problem_type="multi_label_classification", class_weights=weights).eval()
    labels = [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]
    with torch.no_grad():
        out = model(*batch, labels=torch.tensor(labels))
    weigh, terms = weights or [1.0] * 3, []
    for row, truth in zip(out.logits.tolist(), labels, strict=True):
        for x, yes, weight in zip(row, truth, weigh, strict=True):
            chance = 1 / (1 + math.exp(-x))
            terms.append(-weight * math.log(chance) if yes else -math.log(1 - chance))
    assert float(out.loss) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_weights_can_be_set_later(batch: tuple[Tensor, Tensor]) -> None:
    model, labels = task_on("bert").eval(), torch.tensor([0, 1, 2, 1])
    model.set_class_weights([1.0, 5.0, 0.5])
    with torch.no_grad():
        out = model(*batch, labels=labels)
        model.set_class_weights(None)
        plain = model(*batch, labels=labels).loss
    assert float(out.loss) == pytest.approx(
        float(torch.nn.functional.cross_entropy(out.logits, labels, weight=torch.tensor([1.0, 5.0, 0.5])))
    )
    assert float(plain) == pytest.approx(float(torch.nn.functional.cross_entropy(out.logits, labels)))
    assert "class_weights" not in model.state_dict()


@depths
def test_regression_speaks_in_the_targets_unit_and_learns_in_deviations(
    depth: str, batch: tuple[Tensor, Tensor]
) -> None:
    task = Task(problem_type="regression", mean=30.0, scale=4.0)
    model = PTuningModel.from_backbone(tiny("bert", num_labels=1), DEPTHS[depth], task=task).eval()
    plain = PTuningModel(model.backbone, DEPTHS[depth], Task(problem_type="regression")).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != KEY})
    targets = [31.0, 25.5, 30.0, 44.0]
    with torch.no_grad():
        out, standard = model(*batch, labels=torch.tensor(targets)), plain(*batch).logits
        assert_close(out.logits, standard * 4 + 30)
        errors = [float(z) - (t - 30) / 4 for z, t in zip(standard[:, 0], targets, strict=True)]
    assert out.logits.shape == (4, 1)
    assert float(out.loss) == pytest.approx(sum(e * e for e in errors) / 4, rel=1e-5)


def test_one_output_means_regression() -> None:
    model = PTuningModel.from_backbone(tiny("bert", num_labels=1), num_labels=1)
    assert model.task == Task(problem_type="regression")
    assert model(*ragged([3]), labels=torch.tensor([2])).loss.isfinite(), "whole numbers are targets too"


@depths
def test_no_labels_no_loss(depth: str, batch: tuple[Tensor, Tensor]) -> None:
    out = task_on("bert", depth)(*batch)
    assert out.loss is None
    assert out.logits.shape == (4, 3)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "gpt2"])
def test_tasks_of_any_width_share_a_backbone(kind: str) -> None:
    """A task wider than the backbone's head gets an output layer of its own; nothing else is fresh."""
    held = Backbone(tiny(kind, num_labels=3))
    before = {name: value.clone() for name, value in held.state_dict().items()}
    wide = Task(problem_type="single_label_classification", labels=tuple("abcde"))
    five, three = (
        PTuningModel(held, DeepPrompt(num_virtual_tokens=2), wide),
        PTuningModel(held, DeepPrompt(), THREE),
    )
    ids, mask = ragged([5, 9])
    loss = five(ids, mask, labels=torch.tensor([4, 0])).loss
    loss.backward()
    assert five(ids, mask).logits.shape == (2, 5)
    assert three(ids, mask).logits.shape == (2, 3)
    assert all(parameter.grad is not None for parameter in five.task_parameters().values())
    own = held.head_parameters()
    fresh = {name for name, value in five.head.named().items() if value.shape != own[name].shape}
    assert {name.rpartition(".")[0] for name in fresh} == {held.head_names[-1].rpartition(".")[0]}
    kept = {name: value for name, value in five.head.named().items() if name not in fresh}
    assert all(torch.equal(value, own[name].float()) for name, value in kept.items())
    assert all(torch.equal(value, before[name]) for name, value in held.state_dict().items())
