"""What a state dict says of itself: a Trainer's folder is opened, altered and foreign ones are refused."""

from __future__ import annotations

import copy
import gc
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, DataCollatorWithPadding

from ptuning.cli import main
from ptuning.errors import AdapterError, AdapterMismatch, ConfigError
from ptuning.model import (
    Backbone,
    DeepPrompt,
    InputPrompt,
    MLPEncoder,
    PromptConfig,
    PTuningModel,
    TextInit,
    state,
)
from ptuning.task import Task
from tiny import tiny
from trainers import (
    CLASSES,
    CONFIGS,
    REGRESSION,
    RUNS,
    SEVERAL,
    collate,
    examples,
    losses,
    make,
    numbers,
    same,
    steps,
    trainer,
)

configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_run = pytest.mark.parametrize(("config", "task"), RUNS.values(), ids=RUNS)


def stirred(model: PTuningModel, seed: int = 7) -> PTuningModel:
    """The model with other numbers than it was made with, as if it had been trained."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(torch.randn_like(value) * 0.1)
    return model.eval()


def saved(model: PTuningModel, folder: Path) -> Path:
    """What the Trainer writes of a model that is not transformers' own."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(model.state_dict()), folder / state.FILE, metadata={"format": "pt"})
    return folder


def logits(model: PTuningModel) -> Tensor:
    torch.manual_seed(3)
    batch = collate(examples(6))
    del batch["labels"]
    batch["input_ids"] %= model.backbone.vocab_size
    with torch.no_grad():
        found: Tensor = model.eval()(**batch).logits
    return found


# ---------------------------------------------------------------------------- a Trainer's folder


@every_run
def test_what_the_trainer_saved_is_the_task_again(config: PromptConfig, task: Task, tmp_path: Path) -> None:
    made = trainer(
        tmp_path, config, task=task, max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="no"
    )
    made.train()
    made.save_model(str(tmp_path / "saved"))
    ends = {name: value.clone() for name, value in made.model.state_dict().items()}
    for folder in (tmp_path / "saved", tmp_path / "checkpoint-2"):
        again = PTuningModel.from_pretrained(folder, backbone=tiny("bert"))
        assert type(again.prompt_encoder) is type(made.model.prompt_encoder)
        assert same(dict(again.state_dict()), ends)
        assert torch.equal(logits(again), logits(made.model))
        assert again.task == task
        assert again.task_parameters().keys() == made.model.task_parameters().keys()
    earlier = PTuningModel.from_pretrained(tmp_path / "checkpoint-1", backbone=tiny("bert"))
    assert not same(dict(earlier.state_dict()), ends)


@configs
def test_training_goes_on_from_what_was_saved(config: PromptConfig, tmp_path: Path) -> None:
    first = trainer(tmp_path, config, max_steps=6)
    first.train()
    first.save_model(str(tmp_path / "saved"))
    again = PTuningModel.from_pretrained(tmp_path / "saved", backbone=tiny("bert"))
    fresh = trainer(tmp_path, config, max_steps=6)
    on, kept, anew = (
        trainer(tmp_path, config, model=each, max_steps=6) for each in (again, first.model, fresh.model)
    )
    for made in (on, kept, anew):
        made.train()
    assert steps(on) == steps(kept)  # as the model in memory does
    assert same(dict(on.model.state_dict()), dict(kept.model.state_dict()))
    assert sum(losses(on)) < sum(losses(anew))


def test_it_becomes_an_adapter_that_says_what_its_prompt_began_as(tiny_folder: Path, tmp_path: Path) -> None:
    config = InputPrompt(num_virtual_tokens=3, encoder=MLPEncoder(width=8), init=TextInit(text="good film"))
    model = stirred(PTuningModel.from_backbone(str(tiny_folder), config, num_labels=2))
    again = PTuningModel.from_pretrained(saved(model, tmp_path / "saved"))
    again.save_pretrained(tmp_path / "adapter")
    adapter = PTuningModel.from_pretrained(tmp_path / "adapter")
    assert adapter.provenance == config
    assert torch.equal(logits(adapter), logits(model))


def test_a_template_and_its_words_come_along(tiny_folder: Path, tmp_path: Path) -> None:
    config = InputPrompt(placement="{prompt:2} {text_a} it is {prompt:1}")
    model = stirred(PTuningModel.from_backbone(str(tiny_folder), config, num_labels=2))
    assert model.anchors
    # Without a tokenizer: the words' ids are in the record.
    again = PTuningModel.from_pretrained(saved(model, tmp_path), backbone=model.backbone)
    assert again.anchors == model.anchors
    assert torch.equal(logits(again), logits(model))


@configs
def test_the_command_line_predicts_from_a_trainers_folder(
    config: PromptConfig, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    texts = ["good film", "a bad bill and a crash", "the parcel is late", "very good food"]
    rows = Dataset.from_dict({"text": texts, **tokenizer(texts), "label": [1, 0, 0, 1]})
    task = Task(problem_type="single_label_classification", labels=("bad", "good"))
    model = PTuningModel.from_backbone(str(tiny_folder), config, task=task)
    made = trainer(
        tmp_path,
        config,
        model=model,
        rows=rows,
        more={"data_collator": DataCollatorWithPadding(tokenizer)},
        max_steps=2,
    )
    made.train()
    made.save_model(str(tmp_path / "saved"))
    told = made.predict(rows).predictions.argmax(-1)
    (tmp_path / "rows.txt").write_text("\n".join(texts))
    capsys.readouterr()
    # No --backbone: the record names it.
    code = main(
        ["predict", str(tmp_path / "saved"), "--input", str(tmp_path / "rows.txt"), "--device", "cpu"]
    )
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert [json.loads(line)["label"] for line in out.splitlines()] == [task.labels[i] for i in told]


def nothing(folder: Path) -> None:
    folder.mkdir()


def plain_model(folder: Path) -> None:
    tiny("bert").save_pretrained(folder)


def output_folder(folder: Path) -> None:
    saved(make(CONFIGS["deep"]), folder / "checkpoint-4")


def no_tensors(folder: Path) -> None:
    folder.mkdir()
    (folder / state.FILE).write_text("a page that says that it was not found")


def foreign_record(folder: Path) -> None:
    folder.mkdir()
    save_file({state.KEY: torch.arange(9, dtype=torch.uint8), "weight": torch.ones(2)}, folder / state.FILE)


def two_tasks(folder: Path) -> None:
    folder.mkdir()
    both = nn.ModuleDict({name: make(CONFIGS["deep"]) for name in ("first", "second")})
    save_file(dict(both.state_dict()), folder / state.FILE)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (nothing, "no adapter at"),
        (plain_model, "no adapter at"),
        (output_folder, "no adapter at"),
        (no_tensors, "cannot be read: it was altered or cut short"),
        (foreign_record, "is not a record of ptuning"),
        (two_tasks, "has 2 tasks"),
    ],
)
def test_a_folder_of_another_kind_is_refused(
    write: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    write(tmp_path / "folder")
    with pytest.raises(AdapterError, match=said):
        PTuningModel.from_pretrained(tmp_path / "folder", backbone=tiny("bert"))


@configs
def test_a_model_saved_inside_another_is_found(config: PromptConfig, tmp_path: Path) -> None:
    model = stirred(make(config))
    save_file(dict(nn.ModuleDict({"module": model}).state_dict()), tmp_path / state.FILE)
    again = PTuningModel.from_pretrained(tmp_path, backbone=tiny("bert"))
    assert same(dict(again.state_dict()), dict(model.state_dict()))


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(CONFIGS["deep"])
    with monkeypatch.context() as patch:
        patch.setattr(state, "FORMAT_VERSION", state.FORMAT_VERSION + 1)
        saved(model, tmp_path)
    with pytest.raises(AdapterError, match="pip install --upgrade ptuning"):
        PTuningModel.from_pretrained(tmp_path, backbone=tiny("bert"))


# --------------------------------------------------------------------------------- altered bytes


@configs
def test_any_altered_byte_is_found(config: PromptConfig, tmp_path: Path) -> None:
    model = stirred(make(config))
    file = saved(model, tmp_path) / state.FILE
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")  # what stands before says where the tensors are
    assert state.read_file(tmp_path) is not None
    for place in range(start, len(whole), 23):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(AdapterError):
            state.read_file(tmp_path)
        with pytest.raises(AdapterError):
            model.load_state_dict(load_file(file))


@configs
def test_an_altered_checkpoint_is_neither_opened_nor_gone_on_from(
    config: PromptConfig, tmp_path: Path
) -> None:
    made = trainer(tmp_path, config, max_steps=2, save_strategy="steps", save_steps=1)
    made.train()
    folder = tmp_path / "checkpoint-1"
    file = folder / state.FILE
    whole = bytearray(file.read_bytes())
    whole[9 + int.from_bytes(whole[:8], "little")] ^= 1  # in the first tensor
    file.write_bytes(whole)
    with pytest.raises(AdapterError, match="its sha256 is not the recorded one; use another"):
        PTuningModel.from_pretrained(folder, backbone=tiny("bert"))
    resumed = trainer(tmp_path / "resumed", config, max_steps=2)
    before = {name: value.clone() for name, value in resumed.model.state_dict().items()}
    with pytest.raises(AdapterError, match="its sha256 is not the recorded one"):
        resumed.train(resume_from_checkpoint=str(folder))
    assert same(dict(resumed.model.state_dict()), before)


# ------------------------------------------------------------------------------ other models


def test_a_checkpoint_of_another_model_is_refused_by_what_differs() -> None:
    deep, encoded = CONFIGS.values()
    given = make(deep).state_dict()
    other_labels = replace(CLASSES, labels=("red", "green", "black"))
    others = {
        "its prompt.num_virtual_tokens is 4, and this model's is 5": make(DeepPrompt(num_virtual_tokens=5)),
        "its prompt.depth is 'deep', and this model's is 'input'": make(encoded),
        "its task.labels is ['red', 'green', 'blue'], and this model's is ['red', 'green', 'black']": make(
            deep, other_labels
        ),
        "its task.problem_type is 'single_label_classification', and this": make(deep, SEVERAL),
        "its backbone.num_layers is 3, and this model's is 2": PTuningModel.from_backbone(
            tiny("bert", num_hidden_layers=2), deep, task=CLASSES
        ),
        "its backbone.fingerprint is '": PTuningModel.from_backbone(tiny("bert", seed=1), deep, task=CLASSES),
    }
    for said, model in others.items():
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for strict in (True, False):  # the Trainer loads without strictness
            with pytest.raises(AdapterMismatch, match=re.escape(said)):
                model.load_state_dict(given, strict)
        assert same(dict(model.state_dict()), before)


@configs
def test_another_backbone_is_refused_on_opening(config: PromptConfig, tmp_path: Path) -> None:
    folder = saved(make(config), tmp_path)
    for other in (
        tiny("bert", seed=1),
        tiny("bert", hidden_size=16),
        tiny("gpt2"),
        tiny("bert", num_hidden_layers=2),
    ):
        with pytest.raises(AdapterMismatch, match=r"the state dict is of another model: its backbone\."):
            PTuningModel.from_pretrained(folder, backbone=other)


@configs
def test_the_trainer_does_not_go_on_from_another_prompts_checkpoint(
    config: PromptConfig, tmp_path: Path
) -> None:
    made = trainer(tmp_path, config, max_steps=1, save_strategy="steps", save_steps=1)
    made.train()
    other = trainer(tmp_path / "other", replace(config, num_virtual_tokens=5), max_steps=2)
    with pytest.raises(AdapterMismatch, match=r"its prompt\.num_virtual_tokens is 4, and this model's is 5"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@configs
def test_the_same_backbone_is_the_same_under_another_name(config: PromptConfig, tmp_path: Path) -> None:
    one, two = Backbone(tiny("bert"), name="here"), Backbone(tiny("bert"), name="there", revision="abc")
    bf16 = Backbone(tiny("bert"))
    bf16.to(torch.bfloat16)
    wide = Backbone(tiny("bert", num_labels=7))  # its own head, which the task does not use, is another
    with torch.no_grad():
        for (_, ours), (name, theirs) in zip(
            one.model.named_parameters(), wide.model.named_parameters(), strict=True
        ):
            if not name.startswith("classifier"):
                theirs.copy_(ours)
    model = stirred(PTuningModel.from_backbone(one, config, task=CLASSES))
    for backbone in (two, bf16, wide):
        other = PTuningModel.from_backbone(backbone, config, task=CLASSES)
        assert not same(dict(other.state_dict()), dict(model.state_dict()))
        other.load_state_dict(model.state_dict())
        assert same(dict(other.state_dict()), dict(model.state_dict()))
    again = PTuningModel.from_pretrained(saved(model, tmp_path), backbone=two)
    assert torch.equal(logits(again), logits(model))


# ---------------------------------------------------------------------------- use by other tools


@configs
def test_a_mean_of_checkpoints_is_loaded_without_its_record(config: PromptConfig) -> None:
    one, two = (dict(stirred(make(config), seed).state_dict()) for seed in (1, 2))
    mean = {name: (one[name] + two[name]) / 2 for name in numbers(one)}
    model = make(config)
    with pytest.raises(
        AdapterError, match="If you changed the tensors on purpose, remove '_extra_state' from"
    ):
        model.load_state_dict({**mean, state.KEY: one[state.KEY]})
    found = model.load_state_dict(mean)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert same(dict(model.state_dict()), mean)


@configs
def test_what_is_missing_or_unknown_is_still_said(config: PromptConfig) -> None:
    model = make(config)
    given = numbers(dict(model.state_dict()))
    lost = next(iter(given))
    with pytest.raises(RuntimeError, match=f"Missing key.*{lost}"):
        model.load_state_dict({name: value for name, value in given.items() if name != lost})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*backbone\.model"):
        model.load_state_dict({**given, "backbone.model.classifier.bias": torch.ones(3)})


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
@configs
def test_copies_save_and_load(
    config: PromptConfig, duplicate: Callable[[PTuningModel], PTuningModel]
) -> None:
    original = stirred(make(config))
    twin = duplicate(original)
    expected = logits(original)
    given = {name: value.clone() for name, value in stirred(make(config), 8).state_dict().items()}
    if duplicate is copy.deepcopy:
        with torch.no_grad():  # nothing of the one is the other's
            next(iter(original.task_parameters().values())).zero_()
    assert torch.equal(logits(twin), expected)
    del original
    gc.collect()
    twin.load_state_dict(given)
    assert same(dict(twin.state_dict()), given)
    with pytest.raises(AdapterMismatch, match=r"its task\.problem_type is"):
        twin.load_state_dict(make(config, REGRESSION).state_dict())


@configs
def test_accelerate_saves_and_loads_it(config: PromptConfig, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = make(config)
    optimizer: Any = torch.optim.AdamW(model.task_parameters().values(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    batch = collate(examples(4))

    def step() -> float:
        loss = model.train()(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    step()
    accelerator.save_state(str(tmp_path / "state"))
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    following = [step() for _ in range(3)]
    accelerator.load_state(str(tmp_path / "state"))
    assert same(dict(model.state_dict()), kept)
    assert [step() for _ in range(3)] == following
    again = PTuningModel.from_pretrained(tmp_path / "state", backbone=tiny("bert"))
    assert same(dict(again.state_dict()), kept)


def test_a_frozen_head_is_part_of_it(tmp_path: Path) -> None:
    model = make(DeepPrompt(num_virtual_tokens=4, train_head=False))
    with torch.no_grad():
        for value in model.head.parameters():
            value.add_(1)  # of another training
    assert not any(name.startswith("head.") for name in model.task_parameters())
    again = PTuningModel.from_pretrained(saved(model, tmp_path), backbone=tiny("bert"))
    assert torch.equal(logits(again), logits(model))
    assert again.task_parameters().keys() == model.task_parameters().keys()


def test_another_name_for_what_the_logits_mean(tmp_path: Path) -> None:
    given = make(CONFIGS["deep"])
    save_file(given.state_dict(), tmp_path / "model.safetensors")
    task = replace(CLASSES, labels=("rouge", "vert", "bleu"), pair=True)
    opened = PTuningModel.from_pretrained(tmp_path, backbone=tiny("bert"), task=task)
    assert opened.task == task
    assert opened.config.id2label == {0: "rouge", 1: "vert", 2: "bleu"}
    with pytest.raises(ConfigError, match=r"task\.num_labels") as raised:
        PTuningModel.from_pretrained(
            tmp_path, backbone=tiny("bert"), task=replace(CLASSES, labels=("rouge", "vert"))
        )
    assert raised.value.got == 2
    assert str(raised.value.expected).startswith("3")


def test_class_weights_come_along(tmp_path: Path) -> None:
    given = make(CONFIGS["deep"], class_weights=[1.0, 2.0, 5.0])
    save_file(given.state_dict(), tmp_path / "model.safetensors")
    opened = PTuningModel.from_pretrained(tmp_path, backbone=tiny("bert"))
    assert opened.class_weights is not None
    assert opened.class_weights.tolist() == [1.0, 2.0, 5.0]
