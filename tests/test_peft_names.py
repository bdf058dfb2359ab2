"""``ptuning.peft``: PEFT's names, PEFT's habits, our mathematics."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

import ptuning.peft
from ptuning import PTuningModel
from ptuning.adapters import load, verify, why_not_peft
from ptuning.errors import AdapterError, AdapterMismatch, ConfigError, DataError, UnsupportedBackbone
from ptuning.peft import (
    AutoPeftModelForSequenceClassification,
    PeftConfig,
    PeftModel,
    PeftType,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_config,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from tiny import HIDDEN, LAYERS, ragged, tiny

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # raised by what PEFT calls

IDS, MASK = ragged([9, 4, 7])
LABELS = torch.tensor([0, 2, 1])

CONFIGS: dict[str, dict[str, Any]] = {
    "mlp": {"peft_type": "P_TUNING", "encoder_hidden_size": 8},
    "lstm": {
        "peft_type": "P_TUNING",
        "encoder_hidden_size": 8,
        "encoder_reparameterization_type": "LSTM",
        "encoder_dropout": 0.1,
    },
    "plain": {"peft_type": "PROMPT_TUNING"},
    "start": {"peft_type": "P_TUNING", "placement": "start"},
    "prefix": {"peft_type": "PREFIX_TUNING"},
    "projected": {"peft_type": "PREFIX_TUNING", "prefix_projection": True, "encoder_hidden_size": 8},
    "upper": {"peft_type": "PREFIX_TUNING", "first_layer": 1},
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def config(name: str = "mlp", **given: Any) -> PromptLearningConfig:
    return get_peft_config({"task_type": "SEQ_CLS", "num_virtual_tokens": 4, **CONFIGS[name], **given})


def model(name: str = "mlp", kind: str = "bert", **given: Any) -> PeftModel:
    return get_peft_model(tiny(kind), config(name, **given))


def logits(made: torch.nn.Module, **given: Any) -> Tensor:
    made.eval()
    with torch.no_grad():
        found: Tensor = made(input_ids=IDS, attention_mask=MASK, **given).logits
    return found


def train(made: PeftModel, steps: int = 3) -> list[float]:
    made.train()
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = made(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# ------------------------------------------------------------------------------------ configurations


@every_config
def test_a_configuration_makes_the_prompt_that_it_names(name: str) -> None:
    made = model(name)
    assert made.active_peft_config.num_virtual_tokens == 4
    assert made.active.prompt_config.virtual_tokens == 4
    losses = train(made, steps=8)
    assert losses[-1] < losses[0]


def test_the_guides_figure() -> None:
    """roberta-large, 20 tokens, width 128: what the guide prints, every number counted once."""
    with torch.device("meta"):
        large = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(
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
        )
    wanted = PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=20, encoder_hidden_size=128)
    made = get_peft_model(large, wanted)
    assert made.get_nb_trainable_parameters() == (1_351_938, 355_662_082)


def test_print_trainable_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    made = model()
    made.print_trainable_parameters()
    trained, total = made.get_nb_trainable_parameters()
    expected = f"trainable params: {trained} || all params: {total} || trainable%: {100 * trained / total}\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"peft_type": "LORA"}, r"peft_type: got 'LORA', expected one of P_TUNING, PROMPT_TUNING, PREFIX"),
        ({}, r"peft_type: got None"),
        ({"peft_type": "P_TUNING", "num_virtual_token": 4}, r"no 'num_virtual_token'; did you mean 'num_vi"),
        ({"peft_type": "P_TUNING", "r": 8}, r"PromptEncoderConfig has no 'r'; expected one of peft_type, "),
        ({"peft_type": "P_TUNING"}, r"num_virtual_tokens: got None, expected at least 1"),
        ({"peft_type": "P_TUNING", "num_virtual_tokens": 0}, r"num_virtual_tokens: got 0"),
        (
            {"peft_type": "P_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"},
            r"task_type: got 'CAUSAL_LM', expected one of SEQ_CLS",
        ),
        (
            {"peft_type": "P_TUNING", "num_virtual_tokens": 4, "num_transformer_submodules": 2},
            r"got 2, expected 1, because ptuning has no encoder-decoder",
        ),
        (
            {"peft_type": "P_TUNING", "num_virtual_tokens": 4, "encoder_num_layers": 3},
            r"encoder_num_layers 3 .* are options of the LSTM",
        ),
        (
            {
                "peft_type": "P_TUNING",
                "num_virtual_tokens": 4,
                "encoder_reparameterization_type": "TRANSFORMER",
            },
            r"got 'TRANSFORMER', expected one of MLP, LSTM",
        ),
        ({"peft_type": "P_TUNING", "num_virtual_tokens": 4, "placement": "behind"}, "behind"),
        (
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "prompt_tuning_init": "TEXT"},
            r"needs prompt_tuning_init_text and tokenizer_name_or_path",
        ),
        (
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "tokenizer_kwargs": {"use_fast": False}},
            "tokenizer_kwargs are not supported",
        ),
        (
            {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "init_weights": "one"},
            r"init_weights: got 'one', expected 'zero'",
        ),
    ],
)
def test_wrong_configurations(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_peft_config(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_layers": 12}, r"num_layers: got 12, expected 3, as bert has; leave it out"),
        ({"num_attention_heads": 12}, r"num_attention_heads: got 12, expected 4"),
        ({"token_dim": 768}, r"token_dim: got 768, expected 32"),
        ({"modules_to_save": ["poler"]}, r"modules_to_save: bert has no module 'poler'; did you mean 'pool"),
        ({"modules_to_save": ["embeddings"]}, r"word embeddings cannot be trained"),
    ],
)
def test_choices_that_are_not_the_backbones(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(**given)
    facts = {"num_layers": LAYERS, "num_attention_heads": 4, "token_dim": HIDDEN}
    assert model(**facts).active_peft_config.num_layers == LAYERS


def test_what_is_no_model_and_no_configuration() -> None:
    with pytest.raises(ConfigError, match=r"got a Linear, expected an AutoModelForSequenceClassification"):
        get_peft_model(torch.nn.Linear(2, 2), config())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"use model.add_adapter"):
        get_peft_model(model(), config())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"expected one of ptuning.peft's PromptEncoderConfig"):
        get_peft_model(tiny("bert"), PeftConfig())
    bart = AutoConfig.for_model("bart", vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1)
    with pytest.raises(UnsupportedBackbone, match="bart"):
        get_peft_model(AutoModelForSequenceClassification.from_config(bart), config())


def test_init_from_text(tiny_folder: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    given = PromptTuningConfig(
        num_virtual_tokens=3,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="good bad",
        tokenizer_name_or_path=str(tiny_folder),
    )
    made = get_peft_model(base, given)
    ids = made.active.tokenizer("good bad good", add_special_tokens=False, return_tensors="pt").input_ids[0]
    assert torch.equal(made.active.prompt_encoder(), base.get_input_embeddings()(ids))


@pytest.mark.parametrize("name", ["prefix", "projected"])
def test_a_prefix_of_nought(name: str) -> None:
    made = model(name, init_weights="zero")
    assert not made.active.prompt_encoder().any()
    assert train(made)  # and it learns from there
    assert made.active.prompt_encoder().any()


@every_config
def test_configurations_round_trip(name: str, tmp_path: Path) -> None:
    given = config(name)
    assert get_peft_config(given.to_dict()) == given
    made = model(name)
    made.save_pretrained(tmp_path / "adapter")
    back = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert type(back) is type(given)
    assert back.base_model_name_or_path == "bert"
    for field in CONFIGS[name]:
        assert getattr(back, field) == getattr(given, field)
    given.save_pretrained(tmp_path / "alone")
    assert type(given).from_pretrained(tmp_path / "alone") == given


def test_enumerations_are_their_names() -> None:
    assert PeftType.P_TUNING == "P_TUNING"
    assert TaskType("SEQ_CLS") is TaskType.SEQ_CLS
    assert config().peft_type is PeftType.P_TUNING


def test_labels_come_from_the_backbone() -> None:
    base = tiny("bert")
    base.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    assert get_peft_model(base, config()).active.task.labels == ("no", "maybe", "yes")
    assert get_peft_model(tiny("bert"), config()).active.task.labels == (0, 1, 2)
    assert get_peft_model(tiny("bert", num_labels=1), config()).active.task.is_regression
    several = tiny("bert", problem_type="multi_label_classification")
    assert get_peft_model(several, config()).active.task.problem_type == "multi_label_classification"


def test_further_modules_are_trained_and_saved(tmp_path: Path) -> None:
    made = model("start", modules_to_save=["pooler", "classifier", "score"])
    before = made.active.head.named()["bert.pooler.dense.weight"].detach().clone()
    untouched = made.base_model.bert.pooler.dense.weight.clone()
    train(made)
    after = made.active.head.named()["bert.pooler.dense.weight"]
    assert not torch.equal(after, before)
    assert torch.equal(made.base_model.bert.pooler.dense.weight, untouched)
    made.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(tiny("bert"), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(made))


# ---------------------------------------------------------------------------------------- adapters


def test_adapters_stand_side_by_side(tmp_path: Path) -> None:
    made = model("mlp")
    first = logits(made)
    made.add_adapter("other", config("prefix"))
    assert made.active_adapter == "default"  # adding does not switch
    assert torch.equal(logits(made), first)
    made.set_adapter("other")
    train(made)
    second = logits(made)
    assert not torch.allclose(second, first)
    made.set_adapter("default")
    assert torch.equal(logits(made), first)  # training one leaves the other as it was
    assert {n.split(".")[1] for n, p in made.named_parameters() if p.requires_grad} == {"default"}
    made.save_pretrained(tmp_path / "all")
    back = PeftModel.from_pretrained(tiny("bert"), tmp_path / "all")
    back.load_adapter(tmp_path / "all" / "other", "other")
    assert torch.equal(logits(back), first)
    back.set_adapter("other", inference_mode=True)
    assert torch.equal(logits(back), second)
    assert not any(p.requires_grad for p in back.parameters())
    back.delete_adapter("other")
    assert back.active_adapters == ["default"]
    assert list(back.peft_config) == ["default"]
    assert torch.equal(logits(back), first)


def test_a_loaded_adapter_is_frozen_unless_asked(tmp_path: Path) -> None:
    made = model()
    made.save_pretrained(tmp_path / "adapter")
    frozen = PeftModel.from_pretrained(tiny("bert"), tmp_path / "adapter")
    assert frozen.get_nb_trainable_parameters()[0] == 0
    assert not frozen.training
    going_on = PeftModel.from_pretrained(tiny("bert"), tmp_path / "adapter", is_trainable=True)
    assert torch.equal(logits(going_on), logits(made))
    assert train(going_on, steps=5)[-1] < train(made, steps=1)[0]


def test_a_frozen_head_stays_frozen() -> None:
    made = model(inference_mode=True)
    assert made.get_nb_trainable_parameters()[0] == 0
    made.set_adapter("default")
    assert made.get_nb_trainable_parameters()[0] > 0


def test_disable_adapter() -> None:
    made = model()
    plain = tiny("bert").eval()
    trained = (train(made), logits(made))[1]
    with made.disable_adapter():
        torch.testing.assert_close(logits(made), logits(plain), atol=1e-5, rtol=0)
    assert torch.equal(logits(made), trained)


def test_each_row_its_own_adapter() -> None:
    made = model("mlp")
    made.add_adapter("deep", config("prefix"))
    made.add_adapter("plain", config("plain", num_virtual_tokens=7))
    alone = {}
    for name in ("default", "deep", "plain"):
        made.set_adapter(name)
        alone[name] = logits(made)
    with made.disable_adapter():
        alone["__base__"] = logits(made)
    for names in (
        ["deep", "default", "plain"],
        ["__base__", "deep", "__base__"],
        ["plain", "plain", "plain"],
    ):
        mixed = logits(made, adapter_names=names)
        expected = torch.stack([alone[name][row] for row, name in enumerate(names)])
        torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)
    assert made.active_adapter == "plain"


def test_rows_of_different_adapters_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("mlp").eval()
    made.add_adapter("deep", config("prefix"))
    made.add_adapter("longer", config("prefix", num_virtual_tokens=7))
    for name in ("deep", "longer"):
        made.set_adapter(name)
    passes = []
    base = type(made.base_model.base_model)
    forward = base.forward
    monkeypatch.setattr(base, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    mixed = logits(made, adapter_names=["deep", "longer", "deep"])
    assert len(passes) == 1
    labelled = made.eval()
    with torch.no_grad():
        out = labelled(
            input_ids=IDS, attention_mask=MASK, labels=LABELS, adapter_names=["deep", "longer", "deep"]
        )
    torch.testing.assert_close(out.logits, mixed)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(mixed, LABELS))


def test_the_plain_backbone_counts_its_own_logits(tmp_path: Path) -> None:
    made = model("mlp")
    PTuningModel.from_backbone(tiny("bert"), num_labels=2).save_pretrained(tmp_path / "two")
    made.load_adapter(tmp_path / "two", "two")
    made.set_adapter("two")
    with pytest.raises(ConfigError, match=r"got adapters with \[2, 3\] logits per row"):
        logits(made, adapter_names=["two", "__base__", "two"])


def test_the_loss_of_a_mixed_batch_is_the_mean_over_its_rows() -> None:
    made = model("mlp").eval()
    made.add_adapter("deep", config("prefix"))
    out = made(input_ids=IDS, attention_mask=MASK, labels=LABELS, adapter_names=["deep", "default", "deep"])
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, LABELS))
    out.loss.backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


def test_what_cannot_be_mixed(tmp_path: Path) -> None:
    made = model("mlp")
    with pytest.raises(ConfigError, match=r"got 2 names, expected one for each of 3 rows"):
        logits(made, adapter_names=["default", "default"])
    with pytest.raises(ConfigError, match=r"no adapter 'other'; this model has 'default'"):
        logits(made, adapter_names=["default", "other", "default"])
    PTuningModel.from_backbone(tiny("bert"), num_labels=2).save_pretrained(tmp_path / "two")
    made.load_adapter(tmp_path / "two", "two")
    with pytest.raises(ConfigError, match=r"got adapters with \[2, 3\] logits per row"):
        logits(made, adapter_names=["default", "two", "default"])
    assert logits(made, adapter_names=["two", "two", "two"]).shape == (3, 2)


@pytest.mark.parametrize("name", ["", "a.b", "__base__", "keys", "/tmp/evil", "../evil", "a/b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid adapter name"):
        model().add_adapter(name, config())


def test_names_that_are_taken_or_unknown(tmp_path: Path) -> None:
    made = model()
    with pytest.raises(ConfigError, match="there is an adapter 'default' already"):
        made.add_adapter("default", config())
    for call in (made.set_adapter, made.delete_adapter):
        with pytest.raises(ConfigError, match="there is no adapter 'other'"):
            call("other")
    with pytest.raises(ConfigError, match="'default' is the only adapter"):
        made.delete_adapter("default")
    with pytest.raises(AdapterError, match="no adapter at"):
        made.load_adapter(tmp_path / "nowhere", "other")
    made.save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterMismatch, match="num_layers 3"):
        PeftModel.from_pretrained(tiny("bert", num_hidden_layers=2), tmp_path / "adapter")


# -------------------------------------------------------------------------------------------- state


@every_config
def test_getting_and_setting_changes_nothing(name: str) -> None:
    made = model(name)
    train(made)
    before = logits(made)
    state = {key: value.clone() for key, value in get_peft_model_state_dict(made).items()}
    assert set_peft_model_state_dict(made, state) == ([], [])
    assert torch.equal(logits(made), before)
    fresh = model(name)
    set_peft_model_state_dict(fresh, state)
    assert torch.equal(logits(fresh), before)
    bare = PTuningModel.from_backbone(tiny("bert"), config(name).prompt())
    set_peft_model_state_dict(bare, state)
    assert torch.equal(logits(bare), before)


def test_states_that_do_not_fit_change_nothing() -> None:
    made = model()
    before = logits(made)
    state = get_peft_model_state_dict(model())
    with pytest.raises(AdapterError, match=r"lacks 'base_model.classifier.bias'"):
        set_peft_model_state_dict(made, {k: v for k, v in state.items() if k != "base_model.classifier.bias"})
    with pytest.raises(AdapterError, match=r"has an unexpected 'stray'"):
        set_peft_model_state_dict(made, {**state, "stray": torch.zeros(1)})
    with pytest.raises(AdapterError, match=r"prompt_encoder.weight has the shape \[5, 32\]"):
        set_peft_model_state_dict(made, {**state, "prompt_encoder.weight": torch.zeros(5, 32)})
    assert torch.equal(logits(made), before)


def test_the_state_dict_holds_the_adapters_alone() -> None:
    made = model()
    made.add_adapter("deep", config("prefix"))
    assert {name.split(".")[0] for name in made.state_dict()} == {"adapters"}
    assert not any("backbone" in name for name in made.state_dict())
    other = model()
    other.add_adapter("deep", config("prefix"))
    assert not any(other.load_state_dict(made.state_dict()))
    assert torch.equal(logits(other), logits(made))


@pytest.mark.parametrize("peft_name", ["start", "prefix"])
def test_what_pefts_function_returns_is_taken(peft_name: str) -> None:
    peft = pytest.importorskip("peft")
    kinds = {"start": peft.PromptEncoderConfig, "prefix": peft.PrefixTuningConfig}
    wanted: dict[str, Any] = {"task_type": "SEQ_CLS", "num_virtual_tokens": 4}
    if peft_name == "start":
        wanted["encoder_hidden_size"] = 8
    theirs = peft.get_peft_model(tiny("bert"), kinds[peft_name](**wanted)).eval()
    state = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    ours = model(peft_name)
    set_peft_model_state_dict(ours, state)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=0)
    with pytest.raises(AdapterError, match="prompt_embeddings have the shape"):
        set_peft_model_state_dict(ours, {**state, "prompt_embeddings": torch.zeros(3, 32)})


# --------------------------------------------------------------------------------------------- save


def test_saving_writes_nothing_elsewhere_than_asked(tmp_path: Path) -> None:
    made = model()
    made.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    made.add_adapter("deep", config("prefix"))
    made.save_pretrained(tmp_path / "one", selected_adapters=["deep"])
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["deep"]
    made.save_pretrained(tmp_path / "all")
    made.save_pretrained(tmp_path / "all")  # in place of itself
    assert load(tmp_path / "all").virtual_tokens == 4
    assert load(tmp_path / "all" / "deep").deep


@pytest.mark.parametrize("name", ["start", "prefix", "projected"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
def test_peft_gives_our_logits(name: str, kind: str, tmp_path: Path) -> None:
    """The other direction: what stands at PEFT's place, PEFT reads."""
    peft = pytest.importorskip("peft")
    base = tiny(kind)
    made = get_peft_model(deepcopy(base), config(name))
    train(made)
    made.save_pretrained(tmp_path / "adapter")
    assert why_not_peft(load(tmp_path / "adapter")) is None
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    ids, mask = ragged([8, 8])
    with torch.no_grad():
        expected = made.eval()(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(
            theirs(input_ids=ids, attention_mask=mask).logits, expected, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", ["mlp", "plain"])
def test_another_placement_than_start_is_nothing_that_peft_loads(name: str, tmp_path: Path) -> None:
    """PEFT's own error names no placement, so ours does, before training is lost."""
    peft = pytest.importorskip("peft")
    made = model(name)
    made.save_pretrained(tmp_path / "default")
    with pytest.raises(KeyError, match="PTUNING"):
        peft.PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "default"))
    with pytest.raises(AdapterError, match=r"placed at 'front'.* train again with prompt.placement 'start'"):
        made.save_pretrained(tmp_path / "asked", peft=True)
    assert not (tmp_path / "asked").exists()
    model(name, placement="start").save_pretrained(tmp_path / "start", peft=True)
    peft.PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "start"))


def test_adapters_that_stand_there_are_kept(tmp_path: Path) -> None:
    """Whichever is saved first, and whichever alone."""
    made = model()
    made.add_adapter("deep", config("prefix"))
    for number, order in enumerate((["default"], ["deep"], ["default", "deep"])):
        folder = tmp_path / str(number)
        made.save_pretrained(folder, selected_adapters=order[:1])
        for name in ("deep", "default", "deep"):
            made.save_pretrained(folder, selected_adapters=[name])
        assert not load(folder).deep
        assert load(folder / "deep").deep
        back = PeftModel.from_pretrained(tiny("bert"), folder, "other", subfolder="deep")
        made.set_adapter("deep")
        assert torch.equal(logits(back), logits(made))
        made.set_adapter("default")


def test_what_was_not_selected_stays_to_the_byte(tmp_path: Path) -> None:
    """Its card was edited, and a file of the user's lies beside it."""
    made = model()
    made.add_adapter("deep", config("prefix"))
    made.save_pretrained(tmp_path)
    (tmp_path / "deep" / "README.md").write_text("edited")
    (tmp_path / "deep" / "notes.txt").write_text("mine")
    before = {file: file.read_bytes() for file in (tmp_path / "deep").iterdir()}
    made.save_pretrained(tmp_path, selected_adapters=["default"])
    assert {file: file.read_bytes() for file in (tmp_path / "deep").iterdir()} == before
    verify(tmp_path)  # the one is no part of the other
    shutil.rmtree(tmp_path / "deep")
    verify(tmp_path)


@pytest.mark.parametrize("selected", [None, ["deep"]])
@pytest.mark.parametrize("strange", ["notes.txt", "resume/state.pt"])
def test_what_would_be_lost_below_is_refused(
    strange: str, selected: list[str] | None, tmp_path: Path
) -> None:
    made = model()
    made.add_adapter("deep", config("prefix"))
    made.save_pretrained(tmp_path)
    kept = tmp_path / "deep" / strange
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(
        AdapterError, match=f"deep contains {strange}, which is not part of the adapter there"
    ):
        made.save_pretrained(tmp_path, selected_adapters=selected)
    with pytest.raises(AdapterError, match=r"contains deep/.*, which is not part of the adapter there"):
        made.active.save_pretrained(tmp_path)
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_does_not_spoil_the_adapter_that_it_is_of(name: str, tmp_path: Path) -> None:
    made = model(name)
    made.save_pretrained(tmp_path)
    made.active_peft_config.save_pretrained(tmp_path)  # as programs written for PEFT may do
    assert torch.equal(logits(PeftModel.from_pretrained(tiny("bert"), tmp_path)), logits(made))
    made.active_peft_config.num_virtual_tokens = 5
    with pytest.raises(ConfigError, match=r"has an adapter with num_virtual_tokens 4: got 5; choose"):
        made.active_peft_config.save_pretrained(tmp_path)
    verify(tmp_path)


def test_training_goes_on_as_fast_as_before(tmp_path: Path) -> None:
    made = model()
    made.save_pretrained(tmp_path / "adapter")
    config_there = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert isinstance(config_there, PromptEncoderConfig)
    assert (config_there.prompt_rate_scale, config_there.head_rate_scale) == (30.0, 10.0)
    back = PeftModel.from_pretrained(tiny("bert"), tmp_path / "adapter", is_trainable=True)
    assert back.active.learning_rate_scales == (30.0, 10.0)
    assert torch.equal(logits(back), logits(made))
    frozen = PeftModel.from_pretrained(tiny("bert"), tmp_path / "adapter")
    assert frozen.active.learning_rate_scales == (1.0, 1.0)


def test_a_prompt_that_pefts_function_gave_is_a_prompt_like_any_other(tmp_path: Path) -> None:
    made = model("start", inference_mode=True)
    state = {"prompt_embeddings": torch.randn(4, HIDDEN)}
    state |= {k: v for k, v in get_peft_model_state_dict(made).items() if k.startswith("base_model")}
    set_peft_model_state_dict(made, state)
    assert not any(p.requires_grad for p in made.parameters())  # frozen as it was
    assert torch.equal(made.active.prompt_encoder(), state["prompt_embeddings"])
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    opened = PTuningModel.from_pretrained(tmp_path, backbone=tiny("bert"))
    assert torch.equal(logits(opened), logits(made))


@pytest.mark.parametrize("modules", [["LayerNorm"], ["query"], ["pooler"]])
def test_modules_inside_a_bf16_backbone(modules: list[str]) -> None:
    made = get_peft_model(tiny("bert").bfloat16(), config("prefix", modules_to_save=modules))
    assert made.active.head.named()["classifier.weight"].dtype == torch.float32
    losses = train(made, steps=6)
    assert losses[-1] < losses[0]


def test_what_pefts_programs_say_besides() -> None:
    made = model()
    with pytest.raises(ConfigError, match="ptuning writes no pickles"):
        made.save_pretrained("anywhere", safe_serialization=False)
    with pytest.raises(ConfigError, match="a given state dict is not supported"):
        get_peft_model_state_dict(made, {})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got someone/film, expected a local folder"):
        PeftModel.from_pretrained(tiny("bert"), "someone/film", subfolder="deep")
    several = tiny("bert", problem_type="regression")
    with pytest.raises(ConfigError, match="num_labels of the backbone's configuration") as caught:
        get_peft_model(several, config())
    assert (caught.value.got, caught.value.remedy) == (
        3,
        "load it with num_labels=1, or make one task per number",
    )
    with pytest.raises(DataError, match="several labels per row, expected one label per row"):
        made(input_ids=IDS, attention_mask=MASK, labels=torch.ones(3, 3))
    shared = config()
    get_peft_model(tiny("bert"), shared)
    assert shared.base_model_name_or_path is None  # the caller's stays as it was


def test_switching_inside_a_disabled_block_does_not_switch_on() -> None:
    made = model()
    made.add_adapter("deep", config("prefix"))
    with made.disable_adapter():
        plain = logits(made)
        made.set_adapter("deep")
        assert torch.equal(logits(made), plain)
    assert not torch.equal(logits(made), plain)


def test_arguments_that_programs_pass(tiny_folder: Path, tmp_path: Path) -> None:
    """What changes no number is taken; what would is refused by name, rather than forgotten."""
    made = get_peft_model(tiny("bert"), config(), autocast_adapter_dtype=True, low_cpu_mem_usage=False)
    made.save_pretrained(tmp_path / "adapter", state_dict={}, save_embedding_layers="auto")
    back = PeftModel.from_pretrained(tiny("bert"), tmp_path / "adapter", low_cpu_mem_usage=True)
    assert torch.equal(logits(back), logits(made))
    assert back.peft_type == "P_TUNING"
    with pytest.raises(ConfigError, match=r"from_pretrained: cache_dir .* is not supported by ptuning.peft"):
        PeftModel.from_pretrained(tiny("bert"), tmp_path / "adapter", cache_dir="elsewhere")
    with pytest.raises(ConfigError, match="mixed adapters"):
        get_peft_model(tiny("bert"), config(), mixed=True)


def test_an_adapter_finds_its_backbone(tiny_folder: Path, tmp_path: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    made = get_peft_model(base, config())
    made.save_pretrained(tmp_path / "adapter")
    found = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[1, 20, 30, 2]])
    with torch.no_grad():
        assert torch.equal(found(input_ids=ids).logits, made.eval()(input_ids=ids).logits)
    assert found.get_nb_trainable_parameters()[0] == 0


@pytest.mark.parametrize("name", ["LoraConfig", "PeftModelForCausalLM", "prepare_model_for_kbit_training"])
def test_what_is_pefts_alone(name: str) -> None:
    with pytest.raises(ImportError, match=f"ptuning.peft has no {name}.*import it from peft"):
        getattr(ptuning.peft, name)
    assert not hasattr(ptuning.peft, "nothing")


def test_a_model_can_be_copied() -> None:
    made = model()
    copied = deepcopy(made)
    assert torch.equal(logits(copied), logits(made))
    train(copied)
    assert not torch.equal(logits(copied), logits(made))
