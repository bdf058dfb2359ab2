"""Oracle: what the installed PEFT writes, we read, and the logits are PEFT's."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ptuning import PTuningModel, Task
from ptuning.adapters import load
from ptuning.adapters.peft_import import KINDS, OPTIONS
from ptuning.errors import AdapterError, AdapterMismatch, ConfigError
from ptuning.model.backbone import Backbone
from tiny import HEADS, HIDDEN, ragged, tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

P = 4
ENCODERS = ["bert", "roberta", "distilbert"]
DECODERS = ["gpt2", "opt", "llama", "qwen2"]
KINDS_HERE = [*ENCODERS, *DECODERS]
FACTS: dict[str, dict[str, Any]] = {"distilbert": {"token_dim": HIDDEN, "num_attention_heads": HEADS}}
"""What PEFT does not find by itself."""
SPECIFIC: dict[str, dict[str, Any]] = {"opt": {"word_embed_proj_dim": HIDDEN}}
"""PEFT cannot prompt an OPT whose embeddings are narrower than its layers."""

CONFIGS: dict[str, Callable[..., Any]] = {
    "P_TUNING": lambda **given: peft.PromptEncoderConfig(encoder_hidden_size=8, **given),
    "P_TUNING, lstm": lambda **given: peft.PromptEncoderConfig(
        encoder_hidden_size=8, encoder_reparameterization_type="LSTM", **given
    ),
    "PROMPT_TUNING": lambda **given: peft.PromptTuningConfig(**given),
    "PREFIX_TUNING": lambda **given: peft.PrefixTuningConfig(**given),
    "PREFIX_TUNING, projected": lambda **given: peft.PrefixTuningConfig(
        prefix_projection=True, encoder_hidden_size=8, **given
    ),
}


def base(kind: str, **given: Any) -> PreTrainedModel:
    return tiny(kind, **{**SPECIFIC.get(kind, {}), **given})


def theirs(kind: str, method: str, model: PreTrainedModel, **given: Any) -> Any:
    """PEFT's model with every trained number moved away from where it began."""
    config = CONFIGS[method](task_type="SEQ_CLS", num_virtual_tokens=P, **{**FACTS.get(kind, {}), **given})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(deepcopy(model), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def written(made: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for the backbone's configuration, to no avail
        made.save_pretrained(str(folder))
    return folder


def logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return found


def combinations() -> list[tuple[str, str]]:
    """Every kind with every method that PEFT can do on it: DistilBERT takes no key/value cache."""
    return [
        (kind, method)
        for kind in KINDS_HERE
        for method in CONFIGS
        if not (kind == "distilbert" and method.startswith("PREFIX"))
    ]


@pytest.mark.parametrize(("kind", "method"), combinations())
def test_logits_are_pefts(kind: str, method: str, tmp_path: Path) -> None:
    """Unpadded rows on decoders, because there PEFT pools padding; ragged ones on encoders."""
    model = base(kind)
    made = theirs(kind, method, model)
    ours = PTuningModel.from_pretrained(written(made, tmp_path / "peft"), backbone=deepcopy(model)).eval()
    ids, mask = ragged([9, 9, 9] if kind in DECODERS else [9, 4, 7])
    expected = logits(made, ids, mask)
    assert expected.std() > 0.05  # there is something to get wrong
    torch.testing.assert_close(logits(ours, ids, mask), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("method", ["P_TUNING", "PREFIX_TUNING"])
def test_one_output_is_a_regression(kind: str, method: str, tmp_path: Path) -> None:
    model = base(kind, num_labels=1)
    made = theirs(kind, method, model)
    ours = PTuningModel.from_pretrained(written(made, tmp_path / "peft"), backbone=deepcopy(model)).eval()
    assert ours.task == Task(problem_type="regression")
    ids, mask = ragged([6, 6])
    torch.testing.assert_close(logits(ours, ids, mask), logits(made, ids, mask), atol=1e-5, rtol=0)


def test_further_modules_come_along(tmp_path: Path) -> None:
    """A pooler that PEFT trained is part of its adapter, and not of the backbone."""
    model = base("bert")
    made = theirs("bert", "P_TUNING", model, modules_to_save=["pooler"])
    folder = written(made, tmp_path / "peft")
    ours = PTuningModel.from_pretrained(folder, backbone=deepcopy(model)).eval()
    assert "bert.pooler.dense.weight" in ours.head.names
    ids, mask = ragged([9, 4])
    torch.testing.assert_close(logits(ours, ids, mask), logits(made, ids, mask), atol=1e-5, rtol=0)
    again = PTuningModel.from_pretrained(
        ours.save_pretrained(tmp_path / "ours"), backbone=deepcopy(model)
    ).eval()
    assert torch.equal(logits(again, ids, mask), logits(ours, ids, mask))


def test_a_bf16_file_is_read_as_fp32(tmp_path: Path) -> None:
    folder = written(theirs("bert", "P_TUNING", base("bert")), tmp_path / "peft")
    file = folder / "adapter_model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    assert load(folder).prompt_tensor.dtype == torch.float32


def test_labels_are_the_backbones_or_the_callers(tmp_path: Path) -> None:
    model = base("bert")
    folder = written(theirs("bert", "P_TUNING", model), tmp_path / "peft")
    assert PTuningModel.from_pretrained(folder, backbone=deepcopy(model)).task.labels == (0, 1, 2)
    model.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    named = PTuningModel.from_pretrained(folder, backbone=deepcopy(model))
    assert named.task.labels == ("no", "maybe", "yes")
    task = Task(problem_type="single_label_classification", labels=("a", "b", "c"), pair=True)
    given = PTuningModel.from_pretrained(folder, backbone=deepcopy(model), task=task)
    assert given.task == task
    # What is saved from here on knows them, and they are not asked of a backbone again.
    saved = given.save_pretrained(tmp_path / "ours")
    assert PTuningModel.from_pretrained(saved, backbone=deepcopy(model)).task == task
    two = Task(problem_type="single_label_classification", labels=("a", "b"))
    with pytest.raises(ConfigError, match=r"task\.num_labels") as raised:
        PTuningModel.from_pretrained(folder, backbone=deepcopy(model), task=two)
    assert raised.value.got == 2
    assert str(raised.value.expected).startswith("3")


def test_training_goes_on_from_exactly_there(tmp_path: Path) -> None:
    """PEFT puts what its encoder made into the encoder again; here it becomes a plain prompt."""
    model = base("bert")
    made = theirs("bert", "P_TUNING", model)
    ours = PTuningModel.from_pretrained(written(made, tmp_path / "peft"), backbone=deepcopy(model))
    ids, mask = ragged([9, 4])
    before = logits(ours, ids, mask)
    torch.testing.assert_close(before, logits(made, ids, mask), atol=1e-5, rtol=0)
    assert {"prompt_encoder.weight"} < set(ours.task_parameters())
    optimizer = torch.optim.AdamW(ours.task_parameters().values(), lr=1e-2)
    ours(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    assert not torch.equal(logits(ours, ids, mask), before)


# ------------------------------------------------------------------------------------------ pickles


def pickled(folder: Path, **tensors: Any) -> Path:
    """As PEFT wrote it before it had safetensors."""
    file = folder / "adapter_model.safetensors"
    torch.save({**load_file(file), **tensors}, folder / "adapter_model.bin")
    file.unlink()
    return folder


def test_pickles_are_read_only_if_allowed(tmp_path: Path) -> None:
    model = base("bert")
    made = theirs("bert", "P_TUNING", model)
    folder = pickled(written(made, tmp_path / "peft"))
    with pytest.raises(AdapterError, match=r"as a pickle \(adapter_model.bin.*pass --allow-pickle"):
        load(folder)
    ours = PTuningModel.from_pretrained(folder, backbone=deepcopy(model), allow_pickle=True).eval()
    ids, mask = ragged([9, 4])
    torch.testing.assert_close(logits(ours, ids, mask), logits(made, ids, mask), atol=1e-5, rtol=0)


def test_safetensors_win_over_a_pickle(tmp_path: Path) -> None:
    folder = written(theirs("bert", "P_TUNING", base("bert")), tmp_path / "peft")
    (folder / "adapter_model.bin").write_bytes(b"not even a pickle")
    assert load(folder, allow_pickle=True).virtual_tokens == P


class Hostile:
    """What a pickle can do: call something while it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (open, (str(self.file), "w"))


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    folder = pickled(
        written(theirs("bert", "P_TUNING", base("bert")), tmp_path / "peft"), evil=Hostile(tmp_path / "owned")
    )
    with pytest.raises(AdapterError, match="not a pickle of tensors only"):
        load(folder, allow_pickle=True)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_a_broken_pickle(content: bytes, tmp_path: Path) -> None:
    folder = pickled(written(theirs("bert", "P_TUNING", base("bert")), tmp_path / "peft"))
    (folder / "adapter_model.bin").write_bytes(content)
    with pytest.raises(AdapterError, match="not a pickle of tensors only, or was cut short"):
        load(folder, allow_pickle=True)


def test_names_of_older_versions(tmp_path: Path) -> None:
    folder = written(theirs("bert", "P_TUNING", base("bert")), tmp_path / "peft")
    file = folder / "adapter_model.safetensors"
    old = {
        name.replace("classifier.", "classifier.modules_to_save.default."): value
        for name, value in load_file(file).items()
    }
    assert "base_model.classifier.modules_to_save.default.weight" in old
    save_file(old, file)
    assert set(load(folder).head) == {"classifier.weight", "classifier.bias"}


# ------------------------------------------------------------------------------------------ refusals


def changed(folder: Path, **options: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "LORA"}, r"of type 'LORA', expected one of P_TUNING, PROMPT_TUNING, PREFIX_TUNING"),
        ({"task_type": "CAUSAL_LM"}, r"task_type 'CAUSAL_LM', expected 'SEQ_CLS'"),
        ({"num_transformer_submodules": 2}, r"an encoder-decoder model \(2 transformers\)"),
        ({"virtual_magic": 3}, r"option 'virtual_magic' \(3\), which this version of ptuning does not know"),
        ({"encoder_num_layers": "2"}, r"encoder_num_layers: got '2', expected integer; it was altered"),
        (
            {"base_model_name_or_path": ["demo"]},
            r"base_model_name_or_path: got \['demo'\], expected a string",
        ),
        ({"num_layers": True}, r"num_layers: got True, expected integer"),
        ({"num_virtual_tokens": 5}, r"has the shape \[4, 32\], expected 5 rows, as in adapter_config.json"),
    ],
)
def test_what_is_not_known_exactly_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = changed(written(theirs("bert", "P_TUNING", base("bert")), tmp_path / "peft"), **options)
    with pytest.raises(AdapterError, match=message):
        load(folder)


def test_an_unknown_option_that_says_nothing_is_no_matter(tmp_path: Path) -> None:
    folder = changed(written(theirs("bert", "P_TUNING", base("bert")), tmp_path / "peft"), later=None)
    assert load(folder).virtual_tokens == P


@pytest.mark.parametrize("layers", [None, 0, 5])
def test_a_prefix_must_fit_its_layers(layers: int | None, tmp_path: Path) -> None:
    folder = changed(
        written(theirs("bert", "PREFIX_TUNING", base("bert")), tmp_path / "peft"), num_layers=layers
    )
    with pytest.raises(AdapterError, match=f"is not a prefix for {layers} layers"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("prompt_embeddings"), "lacks the tensor 'prompt_embeddings'"),
        (lambda t: t.update(stray=torch.zeros(1)), "got a tensor 'stray'"),
        (
            lambda t: t.update({"base_model.classifier.bias": torch.zeros(5)}),
            r"classifier.weight has 3 labels and classifier.bias has the shape \[5\]",
        ),
        (
            lambda t: t["prompt_embeddings"].fill_(float("nan")),
            "prompt_embeddings in .*: got 128 of 128 values",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if "classifier" in name],
            "has no classification layer",
        ),
    ],
)
def test_tensors_that_are_not_all_there(
    change: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    folder = written(theirs("bert", "P_TUNING", base("bert")), tmp_path / "peft")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(AdapterError, match=message):
        load(folder)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    folder = written(theirs("bert", "P_TUNING", base("bert")), tmp_path / "peft")
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(AdapterError, match="was altered or cut short"):
        load(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"has a adapter_config.json and no|no adapter_model"):
        load(folder)


def test_one_of_ours_without_its_record_is_not_taken_for_pefts(tmp_path: Path) -> None:
    model = PTuningModel.from_backbone(base("bert"))
    folder = model.save_pretrained(tmp_path / "ours")
    (folder / "ptuning.json").unlink()
    with pytest.raises(AdapterError, match=r"was written by ptuning, but its ptuning.json"):
        load(folder)


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    folder = written(theirs("bert", "PREFIX_TUNING", base("bert")), tmp_path / "peft")
    with pytest.raises(AdapterMismatch, match=r"not on bert: got num_layers 2, expected num_layers 3"):
        PTuningModel.from_pretrained(folder, backbone=base("bert", num_hidden_layers=2))
    with pytest.raises(AdapterMismatch, match=r"has classifier.bias, and .* has no such parameter"):
        PTuningModel.from_pretrained(folder, backbone=base("llama", num_key_value_heads=4))


def test_a_part_that_is_random_on_both_sides_is_refused(tmp_path: Path) -> None:
    """PEFT leaves a fresh pooler frozen at random and out of its file: nobody can say what it was."""
    model = base("bert")
    folder = written(theirs("bert", "P_TUNING", model), tmp_path / "peft")
    fresh = Backbone(
        deepcopy(model), missing=frozenset({"bert.pooler.dense.weight", "bert.pooler.dense.bias"})
    )
    with pytest.raises(AdapterMismatch, match=r"has no bert.pooler.dense.bias, .* so it would be random"):
        PTuningModel.from_pretrained(folder, backbone=fresh)


def test_words_of_its_own_are_refused(tmp_path: Path) -> None:
    model = base("bert")
    made = theirs("bert", "P_TUNING", model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=True)
    assert any("word_embeddings" in name for name in load(tmp_path / "peft").head)
    other = base("bert", seed=5)
    with pytest.raises(AdapterMismatch, match=r"has word embeddings of its own"):
        PTuningModel.from_pretrained(tmp_path / "peft", backbone=other)
    same = PTuningModel.from_pretrained(tmp_path / "peft", backbone=deepcopy(model)).eval()
    ids, mask = ragged([9, 4])  # the backbone's own, saved for nothing
    torch.testing.assert_close(logits(same, ids, mask), logits(made, ids, mask), atol=1e-5, rtol=0)


def test_the_table_of_options_is_the_installed_pefts() -> None:
    """If this fails, PEFT has a new option: find out what it does to the logits before it is added."""
    for kind in KINDS:
        known = set(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__)
        assert OPTIONS[kind] == known
