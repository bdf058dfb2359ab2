"""What a checkpoint lacks is made for each task as transformers makes it while loading, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from ptuning import DeepPrompt, InputPrompt, PTuningModel, Task
from ptuning.errors import UnsupportedBackbone
from ptuning.model import Backbone
from ptuning.model.fresh import fresh_parameters
from ptuning.model.loading import load
from tiny import SPECIFICS, tiny, tiny_case

FIVE = Task(problem_type="single_label_classification", labels=tuple("abcde"))


def published(name: str, folder: Path) -> Path:
    """A tiny checkpoint as most are published: the transformer alone, without a pooler or a head."""
    model = tiny_case(name)
    base = model.base_model
    lacking = {key: value for key, value in base.state_dict().items() if not key.startswith("pooler.")}
    base.save_pretrained(folder, state_dict=lacking)
    return folder


def by_transformers(folder: Path, num_labels: int, seed: int) -> PreTrainedModel:
    """The model with what its checkpoint lacks drawn by transformers itself."""
    torch.manual_seed(seed)
    found: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=num_labels, local_files_only=True
    )
    return found


@pytest.mark.parametrize("name", SPECIFICS)
def test_a_tasks_head_is_what_transformers_would_have_drawn(name: str, tmp_path: Path) -> None:
    held = load(str(published(name, tmp_path / "model")), num_labels=5, problem_type=None)
    assert held.missing >= {name for name in held.head_names if name.startswith(("classifier", "score"))}
    for seed in (3, 4):  # the second task on one backbone, too
        theirs = by_transformers(tmp_path / "model", 5, seed)
        torch.manual_seed(seed)
        head = PTuningModel(held, InputPrompt(num_virtual_tokens=2), FIVE).head.named()
        assert head.keys() == set(held.head_names)
        for key, value in head.items():
            assert torch.equal(value, theirs.get_parameter(key).detach()), key


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "distilbert", "gpt2"])
def test_so_is_an_output_layer_of_another_width(name: str, tmp_path: Path) -> None:
    """On a backbone whose own head is of three, a task of five begins as on one that was loaded for five."""
    folder = published(name, tmp_path / "model")
    three, five = (load(str(folder), num_labels=width, problem_type=None) for width in (3, 5))
    heads = []
    for held in (three, five):
        torch.manual_seed(1)
        heads.append(PTuningModel(held, DeepPrompt(num_virtual_tokens=2), FIVE).head.named())
    assert all(torch.equal(value, heads[1][key]) for key, value in heads[0].items())


def test_an_own_head_of_the_tasks_width_is_where_every_task_begins() -> None:
    held = Backbone(tiny("roberta", num_labels=5))
    own = held.head_parameters()
    for _ in range(2):
        head = PTuningModel(held, DeepPrompt(num_virtual_tokens=2), FIVE).head.named()
        assert all(torch.equal(value, own[name]) for name, value in head.items())


def test_of_a_part_that_is_half_there_the_other_half_is_kept() -> None:
    held = Backbone(tiny("bert", num_labels=5), missing=frozenset({"bert.pooler.dense.weight"}))
    own = held.head_parameters()
    head = PTuningModel(held, DeepPrompt(num_virtual_tokens=2), FIVE).head.named()
    changed = {name for name, value in head.items() if not torch.equal(value, own[name])}
    assert changed == {"bert.pooler.dense.weight"}


def test_making_a_task_writes_nothing_to_the_backbone_and_its_mark_stays_off(tmp_path: Path) -> None:
    held = load(str(published("modernbert", tmp_path / "model")), num_labels=3, problem_type=None)
    before = {name: value.clone() for name, value in held.state_dict().items()}
    modules = dict(held.named_modules())
    marked = {name for name, value in held.named_parameters() if getattr(value, "_is_hf_initialized", False)}
    assert marked
    PTuningModel(held, DeepPrompt(num_virtual_tokens=2), FIVE)
    assert all(torch.equal(before[name], value) for name, value in held.state_dict().items())
    assert dict(held.named_modules()) == modules
    assert marked == {
        name for name, value in held.named_parameters() if getattr(value, "_is_hf_initialized", False)
    }


def test_loading_leaves_the_generator_as_it_was(tmp_path: Path) -> None:
    folder = published("bert", tmp_path / "model")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(str(folder), num_labels=2, problem_type=None)
    assert torch.equal(torch.rand(3), expected)


def test_the_precision_of_the_backbone_does_not_change_what_is_drawn(tmp_path: Path) -> None:
    heads = []
    for dtype in (torch.float32, torch.bfloat16):
        held = load(str(published("roberta", tmp_path / "model")), num_labels=5, problem_type=None)
        held.to(dtype)
        torch.manual_seed(2)
        heads.append(PTuningModel(held, DeepPrompt(num_virtual_tokens=2), FIVE).head.named())
    for name, value in heads[0].items():
        assert heads[1][name].dtype == torch.float32
        assert torch.equal(value.bfloat16().float(), heads[1][name])


def test_a_model_that_does_not_say_how_a_part_begins_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("bert")
    monkeypatch.setattr(model, "_init_weights", lambda module: None)
    with pytest.raises(UnsupportedBackbone, match=r"does not initialise classifier\.weight"):
        fresh_parameters(model, {"classifier.weight": (3, 32)}, ["classifier.weight", "classifier.bias"])
