"""Arguments of PEFT's programs that say again what the adapter knows: taken where they agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from ptuning.errors import ConfigError
from ptuning.peft import (
    AutoPeftModelForSequenceClassification,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    get_peft_model,
)
from tiny import ragged, tiny

NAMES = {0: "NEG", 1: "MID", 2: "POS"}
CONFIG = PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=4)


def base(named: bool = True) -> Any:
    model = tiny("bert")
    if named:
        model.config.id2label = dict(NAMES)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Path]:
    """Two adapters, with names for their labels and without, on backbones in folders of their own."""
    found = {}
    for name in ("named", "numbered"):
        folder = tmp_path_factory.mktemp(name)
        backbone = base(name == "named")
        backbone.save_pretrained(folder / "base")
        AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder / "base")
        backbone.name_or_path = backbone.config._name_or_path = str(folder / "base")
        get_peft_model(backbone, CONFIG).save_pretrained(folder / "adapter")
        found[name] = folder / "adapter"
    return found


def loaded(auto: bool, folder: Path, **given: Any) -> PeftModel:
    if auto:
        return AutoPeftModelForSequenceClassification.from_pretrained(folder, **given)
    return PeftModel.from_pretrained(base("named" in str(folder)), folder, **given)


def logits(model: PeftModel) -> torch.Tensor:
    ids, mask = ragged([5, 7])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


AGREES: list[dict[str, Any]] = [
    {"num_labels": 3},
    {"num_labels": None},
    {"id2label": NAMES},
    {"id2label": {str(index): name for index, name in NAMES.items()}},
    {"label2id": {name: index for index, name in NAMES.items()}},
    {"num_labels": 3, "id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}},
    {"problem_type": "single_label_classification"},
    {"torch_dtype": torch.float32},
    {"torch_dtype": "float32"},
    {"dtype": "auto"},
    {"device_map": "cpu"},
    {"device_map": {"": "cpu"}},
    {"device_map": torch.device("cpu")},
    {"is_trainable": True, "num_labels": 3},
    {"trust_remote_code": True},
    {"config": CONFIG},
]


@pytest.mark.parametrize("given", AGREES, ids=str)
def test_what_agrees_is_taken(folders: dict[str, Path], given: dict[str, Any]) -> None:
    plain = loaded(False, folders["named"])
    for auto in (False, True):
        model = loaded(auto, folders["named"], **given)
        assert torch.equal(logits(model), logits(plain))
        assert model.config.id2label == NAMES


CONTRADICTS: list[tuple[dict[str, Any], str]] = [
    (
        {"num_labels": 2},
        "num_labels: got 2, expected 3, as in the adapter; leave it out",
    ),
    (
        {"id2label": {0: "a", 1: "b", 2: "c"}},
        "id2label: got ('a', 'b', 'c'), expected ('NEG'",
    ),
    (
        {"id2label": {0: "NEG", 1: "MID"}},
        "id2label: got ('NEG', 'MID'), expected ('NEG'",
    ),
    ({"id2label": {1: "NEG"}}, "id2label: got {1: 'NEG'}, expected {0: …, 1: …}"),
    ({"label2id": {"NEG": "x"}}, "label2id: got {'NEG': 'x'}, expected {…: 0, …: 1}"),
    (
        {"problem_type": "regression"},
        "problem_type: got 'regression', expected 'single",
    ),
    ({"torch_dtype": "float7"}, "torch_dtype: got 'float7', expected 'auto' or a torch dtype"),
    (
        {"device_map": {"bert": 0, "classifier": "cpu"}},
        "device_map: got {'bert': 0, 'classifier': 'cpu'}, expected",
    ),
    ({"device_map": "nowhere"}, "device_map: got 'nowhere', expected one device for the entire model"),
    ({"config": PrefixTuningConfig(num_virtual_tokens=4)}, "config.peft_type: got "),
    (
        {"config": PromptEncoderConfig(num_virtual_tokens=5)},
        "config.num_virtual_tokens: got 5, expected 4, as in the adapter",
    ),
    ({"config": {"num_labels": 3}}, "config: got a builtins.dict, expected a configuration of ptuning.peft"),
    ({"cache_dir": "here"}, "cache_dir (str) is not supported by ptuning.peft"),
]


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(("given", "message"), CONTRADICTS, ids=[str(given) for given, _ in CONTRADICTS])
def test_what_contradicts_is_one_sentence(
    folders: dict[str, Path], given: dict[str, Any], message: str, auto: bool
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(auto, folders["named"], **given)
    assert re.match(rf"from_pretrained[:,] {re.escape(message)}", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("auto", [False, True])
def test_labels_without_names_take_them(folders: dict[str, Path], auto: bool) -> None:
    model = loaded(auto, folders["numbered"], id2label=NAMES)
    assert model.config.id2label == NAMES
    assert model.active.task.labels == tuple(NAMES.values())


def test_a_backbone_is_held_in_the_type_that_is_asked_for(folders: dict[str, Path]) -> None:
    for given in ({"torch_dtype": "bfloat16"}, {"dtype": torch.bfloat16}, {"torch_dtype": "torch.bfloat16"}):
        assert loaded(True, folders["named"], **given).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"torch_dtype: got torch.bfloat16, but the backbone has torch"):
        loaded(False, folders["named"], torch_dtype="bfloat16")


def test_the_configuration_that_was_read_is_taken(folders: dict[str, Path]) -> None:
    config = PeftConfig.from_pretrained(folders["named"])
    assert loaded(False, folders["named"], config=config).active.task.labels == tuple(NAMES.values())
