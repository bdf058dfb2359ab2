"""Oracle: the installed PEFT loads what we write, and uses the same prompt and the same head."""

from __future__ import annotations

import re
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ptuning import DeepPrompt, InputPrompt, PTuningModel
from ptuning.adapters import Adapter, for_peft, from_peft, load, save, to_peft, why_not_peft
from ptuning.adapters.peft_format import HEADS_NOT_FOUND, LAYOUTS, NO_CACHE, NO_POSITION_IDS
from ptuning.errors import AdapterError
from ptuning.model.architectures import ARCHITECTURES
from ptuning.model.backbone import Backbone
from ptuning.task import Task
from test_adapters_record import an_adapter
from tiny import REFERENCE_ONLY, SPECIFICS, ragged, tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

KINDS = list(SPECIFICS)
CACHED = [kind for kind in KINDS if kind not in NO_CACHE]
P = 4


def facts(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    embedding: Any = model.get_input_embeddings()
    vocabulary, width = embedding.weight.shape
    return {
        "name": "someone/tiny",
        "revision": None,
        "model_type": config.model_type,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "embedding_size": width,
        "key_value_size": heads * head_dim,
        "vocab_size": vocabulary,
        "fingerprint": None,
    }


def head_of(model: PreTrainedModel, *, pooler: bool) -> dict[str, torch.Tensor]:
    """Random numbers for all that stands outside the transformer, and its pooler."""
    inside = f"{model.base_model_prefix}."
    names = [
        n for n, _ in model.named_parameters() if not n.startswith(inside) or (pooler and ".pooler." in n)
    ]
    return {name: torch.randn_like(model.get_parameter(name)) for name in names}


def adapter_on(model: PreTrainedModel, prompt: dict[str, Any], *, pooler: bool = True) -> Adapter:
    task = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
    return an_adapter(prompt, facts=facts(model), task=task, head=head_of(model, pooler=pooler))


def through_peft(model: PreTrainedModel, adapter: Adapter, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", UserWarning
        )  # an unknown key of the configuration is only a warning to PEFT
        return peft.PeftModel.from_pretrained(deepcopy(model), str(save(adapter, folder)))


def assert_same_head(loaded: Any, adapter: Adapter) -> None:
    state = peft.get_peft_model_state_dict(loaded, save_embedding_layers=False)  # auto asks the network
    state.pop("prompt_embeddings")
    assert set(state) == {f"base_model.{name}" for name in adapter.head}
    assert all(torch.equal(state[f"base_model.{name}"], value) for name, value in adapter.head.items())


@pytest.mark.parametrize("kind", KINDS)
def test_p_tuning(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    adapter = adapter_on(model, {"placement": "start"})
    loaded = through_peft(model, adapter, tmp_path / "adapter")
    assert loaded.active_peft_config.peft_type == "P_TUNING"
    assert torch.equal(loaded.get_prompt(batch_size=1)[0], adapter.prompt_tensor)
    assert_same_head(loaded, adapter)

    ids = torch.tensor([[5, 6, 7, 8]])
    for name, value in adapter.head.items():
        model.get_parameter(name).data.copy_(value)
    embeddings = torch.cat((adapter.prompt_tensor[None], model.get_input_embeddings()(ids)), dim=1)
    mask = torch.ones(1, P + 4, dtype=torch.long)
    with torch.no_grad():
        expected = model(inputs_embeds=embeddings, attention_mask=mask).logits
        assert torch.equal(loaded(input_ids=ids, attention_mask=mask[:, P:]).logits, expected)


@pytest.mark.parametrize("kind", CACHED)
def test_prefix_tuning(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    offset = 0 if kind in NO_POSITION_IDS else P
    adapter = adapter_on(model, {"depth": "deep", "position_offset": offset})
    loaded = through_peft(model, adapter, tmp_path / "adapter")
    assert loaded.active_peft_config.peft_type == "PREFIX_TUNING"
    cache = loaded.get_prompt(batch_size=1)
    for layer, ours in zip(cache.layers, adapter.prompt_tensor, strict=True):
        for theirs, expected in zip((layer.keys, layer.values), ours, strict=True):
            heads, _, width = theirs[0].shape
            assert torch.equal(theirs[0], expected.view(P, heads, width).transpose(0, 1))
    assert_same_head(loaded, adapter)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("prompt", [{"placement": "start"}, {"depth": "deep"}])
def test_round_trip_through_their_format(kind: str, prompt: dict[str, Any], tmp_path: Path) -> None:
    adapter = adapter_on(tiny(kind), prompt)
    back = load(save(adapter, tmp_path / "adapter"))
    assert torch.equal(back.prompt_tensor, adapter.prompt_tensor)
    assert back.head.keys() == adapter.head.keys()
    assert all(torch.equal(back.head[name], value) for name, value in adapter.head.items())


def test_the_backbones_own_pooler_is_not_asked_for(tmp_path: Path) -> None:
    model = tiny("bert")
    adapter = adapter_on(model, {}, pooler=False)
    assert to_peft(adapter)[0]["modules_to_save"] is None
    assert_same_head(through_peft(model, adapter, tmp_path / "adapter"), adapter)
    assert to_peft(adapter_on(model, {}))[0]["modules_to_save"] == ["bert.pooler"]


@pytest.mark.parametrize("kind", sorted(NO_CACHE))
def test_peft_has_no_prefix_tuning_without_a_cache(kind: str, tmp_path: Path) -> None:
    """If this fails, PEFT has learned it: take the architecture out of ``NO_CACHE``."""
    model = tiny(kind)
    adapter = adapter_on(model, {"depth": "deep"})
    assert "key/value cache" in str(why_not_peft(adapter))
    pretended = an_adapter(
        {"depth": "deep"}, facts={**facts(model), "model_type": "bert"}, task=adapter.task, head=adapter.head
    )
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match=r"past key values|token_dim"):
        through_peft(model, pretended, tmp_path / "adapter")(
            input_ids=ids, attention_mask=torch.ones_like(ids)
        )


@pytest.mark.parametrize("kind", sorted(HEADS_NOT_FOUND))
def test_peft_does_not_find_the_number_of_heads(kind: str, tmp_path: Path) -> None:
    """If this fails, PEFT has learned it: take the architecture out of ``HEADS_NOT_FOUND``."""
    model = tiny(kind)
    adapter = an_adapter(
        facts={**facts(model), "model_type": "bert"},
        task=Task(problem_type="single_label_classification", labels=("a", "b", "c")),
        head=head_of(model, pooler=False),
    )
    with pytest.raises(ValueError, match="num_attention_heads"):
        through_peft(model, adapter, tmp_path / "adapter")


SCALED = Task(problem_type="regression", mean=3.0, scale=2.0)


@pytest.mark.parametrize(
    ("prompt", "given", "reason"),
    [
        ({"placement": "front"}, {}, r"are placed at 'front'.*prompt.placement 'start'"),
        (
            {"placement": "{prompt:4} {text_a}", "num_virtual_tokens": None},
            {"anchors": ((7, 8),)},
            "prompt.placement",
        ),
        ({"depth": "deep", "first_layer": 1}, {}, r"starts at layer 1.*prompt.first_layer 0"),
        (
            {"depth": "deep", "position_offset": 0},
            {},
            r"position_offset is 0.*always uses 4 for 4 virtual tokens",
        ),
        (
            {"depth": "deep"},
            {"facts": {"model_type": "bloom"}},
            r"position_offset is 4.*always uses 0 .* on bloom",
        ),
        (
            {"depth": "deep"},
            {"facts": {"model_type": "albert"}},
            r"albert models have none; train again with prompt.depth 'input'",
        ),
        (
            {},
            {"task": SCALED},
            r"units of 2 around 3.*saving with peft=True \(ptuning export-peft\) moves the scaling",
        ),
        ({}, {"head": {}}, r"has no head.*prompt.train_head true"),
        ({}, {"head": {}, "task": SCALED}, r"has no head.*prompt.train_head true"),
    ],
)
def test_what_peft_cannot_express_it_refuses_by_name(
    prompt: dict[str, Any], given: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    adapter = an_adapter(prompt, **given)
    assert re.search(reason, why_not_peft(adapter) or "")
    config, tensors = to_peft(adapter)
    assert config["peft_type"] == "PTUNING"
    assert set(tensors) == {"prompt", *(f"base_model.{name}" for name in adapter.head)}
    with pytest.raises(KeyError, match="PTUNING"):
        peft.PeftModel.from_pretrained(tiny("bert"), str(save(adapter, tmp_path / "adapter")))
    assert torch.equal(load(tmp_path / "adapter").prompt_tensor, adapter.prompt_tensor)


def test_unscaled_regression_can_be_expressed() -> None:
    assert why_not_peft(an_adapter(task=Task(problem_type="regression"))) is None


def test_every_configuration_key_is_one_of_pefts() -> None:
    for prompt in ({"placement": "start"}, {"depth": "deep"}):
        config, _ = to_peft(an_adapter(prompt))
        known = peft.PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]].__dataclass_fields__
        assert set(config) <= set(known)


@pytest.mark.parametrize(
    ("config", "names", "message"),
    [
        ({"peft_type": "LORA"}, ("prompt",), f"peft_type: got 'LORA', expected one of {', '.join(LAYOUTS)}"),
        ({}, ("prompt",), "peft_type: got None"),
        ({"peft_type": "PTUNING"}, ("prompt_embeddings",), "lack 'prompt', which peft_type PTUNING needs"),
        ({"peft_type": "PTUNING"}, ("prompt", "stray"), "got a tensor 'stray'"),
        (
            {"peft_type": "PREFIX_TUNING"},
            ("prompt_embeddings",),
            "not a PREFIX_TUNING prompt for None layers",
        ),
        ({"peft_type": "PREFIX_TUNING", "num_layers": 7}, ("prompt_embeddings",), "prompt for 7 layers"),
    ],
)
def test_tensors_that_are_not_an_adapters(
    config: dict[str, Any], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        from_peft(config, {name: torch.zeros(4, 16) for name in names})


def test_tensors_are_copies() -> None:
    """Parameters of a live model share memory and carry gradients; what is written must not."""
    weight = torch.nn.Parameter(torch.randn(2, 16))
    adapter = an_adapter(head={"classifier.weight": weight, "score.weight": weight})
    _, tensors = to_peft(adapter)
    assert not any(value.requires_grad for value in tensors.values())
    assert len({value.data_ptr() for value in tensors.values()}) == 3


# ------------------------------------------------------------------------------------- saved with peft=True

PROMPTS: dict[str, DeepPrompt | InputPrompt] = {
    "start": InputPrompt(num_virtual_tokens=P, placement="start"),
    "deep": DeepPrompt(num_virtual_tokens=P),
}
CLASSES = Task(problem_type="single_label_classification", labels=("a", "b", "c"))


def saved_for_peft() -> list[tuple[str, str, Task]]:
    """Every architecture, with the prompts that PEFT can hold on it, and the tasks that its head can; a
    decoder with no way of its own through ptuning's code with classes alone.

    A decoder's ``score`` has no bias, so a mean has no place there.
    """
    return [
        (kind, prompt, task)
        for kind in KINDS
        for prompt in PROMPTS
        if prompt == "start" or kind in CACHED
        for task in (
            CLASSES,
            Task(problem_type="regression", mean=0.0 if ARCHITECTURES[kind].causal else 3.0, scale=2.0),
        )
        if task is CLASSES or not (ARCHITECTURES[kind].causal and kind in REFERENCE_ONLY)
    ]


def trained(
    kind: str, prompt: DeepPrompt | InputPrompt, task: Task, head: tuple[str, ...] = ()
) -> tuple[PTuningModel, PreTrainedModel]:
    """Our model with random numbers for all that a task holds, and the backbone as PEFT's users load it.

    ``head`` names what the task holds beside the head.
    """
    plain = tiny(kind, num_labels=task.num_labels)
    backbone = Backbone(deepcopy(plain))
    own = {name: backbone.model.get_parameter(name) for name in head}
    model = PTuningModel(backbone, prompt, task, head=own).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(torch.randn_like(value) * 0.2)
    return model, plain


def assert_peft_agrees(model: PTuningModel, plain: PreTrainedModel, folder: Path) -> None:
    """Rows without padding on decoders, because there PEFT pools padding; ragged ones on encoders."""
    model.save_pretrained(folder, peft=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # an unknown key, a missing tensor
        loaded = peft.PeftModel.from_pretrained(deepcopy(plain), str(folder)).eval()
    ids, mask = ragged([9, 9, 9] if model.backbone.architecture.causal else [9, 4, 7])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        found = loaded(input_ids=ids, attention_mask=mask).logits
        without = plain(input_ids=ids, attention_mask=mask).logits
    assert expected.std() > 0.05  # there is something to get wrong
    assert not torch.allclose(found, without, atol=0.05)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    again = PTuningModel.from_pretrained(folder, backbone=Backbone(deepcopy(plain))).eval()
    with torch.no_grad():
        back = again(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(back, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "prompt", "task"),
    [pytest.param(*each, id=f"{each[0]}-{each[1]}-{each[2].num_labels}") for each in saved_for_peft()],
)
def test_peft_gives_the_logits_of_what_was_saved_for_it(
    kind: str, prompt: str, task: Task, tmp_path: Path
) -> None:
    assert_peft_agrees(*trained(kind, PROMPTS[prompt], task), tmp_path / "adapter")


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaling_that_the_head_cannot_take_is_refused(kind: str, tmp_path: Path) -> None:
    """Only what has no bias refuses a mean: if an architecture gains one, it is in the test above."""
    model, _ = trained(kind, PROMPTS["start"], SCALED)
    if any(name.endswith("bias") for name in model.head.names if name.startswith(("classifier", "score"))):
        assert for_peft(model.to_adapter()).task == Task(problem_type="regression")
        return
    assert ARCHITECTURES[kind].causal
    with pytest.raises(AdapterError, match=r"scores are around 3, and score.weight has no bias"):
        model.save_pretrained(tmp_path / "adapter", peft=True)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("kind", sorted(NO_CACHE))
def test_what_peft_cannot_hold_is_not_saved_for_it(kind: str, tmp_path: Path) -> None:
    model, _ = trained(kind, PROMPTS["deep"], CLASSES)
    with pytest.raises(AdapterError, match=r"PEFT cannot load this adapter: .* prompt.placement 'start'"):
        model.save_pretrained(tmp_path / "adapter", peft=True)
    assert not (tmp_path / "adapter").exists()
    model.save_pretrained(tmp_path / "adapter")  # as one of ours it is saved all the same


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("task", [CLASSES, SCALED], ids=["classes", "number"])
@pytest.mark.parametrize(
    ("kind", "head", "modules"),
    [
        ("bert", ("bert.pooler.dense.weight", "bert.pooler.dense.bias"), ["bert.pooler"]),
        (
            "bert",
            ("bert.encoder.layer.2.output.dense.weight", "bert.encoder.layer.2.output.dense.bias"),
            ["bert.encoder.layer.2.output.dense"],
        ),
        (
            "bert",
            ("bert.encoder.layer.1.output.LayerNorm.weight", "bert.encoder.layer.1.output.LayerNorm.bias"),
            ["bert.encoder.layer.1.output.LayerNorm"],
        ),
        # A table of one row, which is no output layer; its own name is the module's.
        (
            "roberta",
            ("roberta.embeddings.token_type_embeddings.weight",),
            ["roberta.embeddings.token_type_embeddings"],
        ),
    ],
)
def test_modules_beside_the_head_are_named_for_peft(
    kind: str, head: tuple[str, ...], modules: list[str], prompt: str, task: Task, tmp_path: Path
) -> None:
    model, plain = trained(kind, PROMPTS[prompt], task, head)
    assert to_peft(for_peft(model.to_adapter()))[0]["modules_to_save"] == modules
    assert_peft_agrees(model, plain, tmp_path / "adapter")


def test_a_parameter_without_the_rest_of_its_module(tmp_path: Path) -> None:
    model, plain = trained("bert", PROMPTS["start"], CLASSES, ("bert.encoder.layer.2.output.dense.weight",))
    assert to_peft(model.to_adapter())[0]["modules_to_save"] == ["bert.encoder.layer.2.output.dense"]
    assert_peft_agrees(model, plain, tmp_path / "adapter")


def test_only_the_output_layer_is_scaled() -> None:
    """Whatever the order of the head's names: one that was read from a file has them sorted."""
    table = "roberta.embeddings.token_type_embeddings.weight"
    values = {
        "classifier.dense.weight": torch.randn(16, 16),
        "classifier.out_proj.bias": torch.randn(1),
        "classifier.out_proj.weight": torch.randn(1, 16),
        table: torch.randn(1, 16),
    }
    for names in (list(values), list(values)[::-1]):
        adapter = an_adapter(task=SCALED, head={name: values[name] for name in names})
        head = for_peft(adapter).head
        assert list(head) == names
        for name in ("classifier.dense.weight", table):
            assert torch.equal(head[name], values[name])
        assert torch.equal(head["classifier.out_proj.weight"], values["classifier.out_proj.weight"] * 2)
        assert torch.equal(head["classifier.out_proj.bias"], values["classifier.out_proj.bias"] * 2 + 3)


def test_what_peft_can_hold_as_it_is_stays_as_it_is() -> None:
    for prompt in ({"placement": "start"}, {"depth": "deep"}):
        adapter = an_adapter(prompt)
        assert for_peft(adapter) is adapter


@pytest.mark.parametrize("method", ["P_TUNING", "PREFIX_TUNING"])
def test_what_peft_wrote_it_can_hold(method: str, tmp_path: Path) -> None:
    """Its prefix comes without a position offset, which the backbone settles as PEFT does."""
    config = {"P_TUNING": peft.PromptEncoderConfig, "PREFIX_TUNING": peft.PrefixTuningConfig}[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(tiny("bert"), config(task_type="SEQ_CLS", num_virtual_tokens=P))
        made.save_pretrained(str(tmp_path / "theirs"))
    assert why_not_peft(load(tmp_path / "theirs")) is None
