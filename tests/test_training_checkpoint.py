"""What a run goes on from: taken if a run of this version wrote it, and refused in one sentence otherwise.

The digests of every damaged folder fit, as those of another version, tool or author would.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptuning import FitConfig, PTuningModel, Task, fit
from ptuning.adapters import seal
from ptuning.errors import AdapterError, ConfigError
from ptuning.model import DeepPrompt
from ptuning.training import checkpoint
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.checkpoint import Position, _Evaluation, _Position
from ptuning.training.interrupt import Interrupted
from ptuning.training.records import Evaluation

ROWS = [{"text": f"{word} film {i}", "label": word} for i in range(8) for word in ("good", "bad")]
Tensors = dict[str, torch.Tensor]


class StopAt5(Callback):
    def on_step_end(self, state: RunState) -> None:
        if state.step == 5:
            raise Interrupted


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> PTuningModel:
    task = Task(problem_type="single_label_classification", labels=("good", "bad"))
    return PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=2), task=task)


@pytest.fixture(scope="module")
def saved(model: PTuningModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run of 4 epochs of 2 steps, as its evaluation after step 4 left it."""
    output = tmp_path_factory.mktemp("run") / "out"
    with pytest.raises(Interrupted):
        run(model, output, callbacks=[StopAt5()])
    return output.with_name("out.run") / "checkpoint"


def run(
    model: PTuningModel, output: Path, *, resume: bool = False, callbacks: Sequence[Callback] = ()
) -> Any:
    config = FitConfig(epochs=4, batch_size=8, prompt_rate=3e-2, head_rate=3e-2)
    data = {"train": ROWS, "validation": ROWS}
    return fit(model, data, config, report=False, output=output, resume=resume, callbacks=callbacks)


def load(folder: Path, model: PTuningModel) -> tuple[Position, checkpoint.Kept]:
    optimizer = torch.optim.AdamW(list(model.task_parameters().values()))
    return checkpoint.load(folder, model=model, optimizer=optimizer, setting={})


def sealed(folder: Path) -> None:
    """Make the digests fit."""
    values = json.loads((folder / "ptuning.json").read_text())
    del values["sha256_self"]
    values["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in values["files"]
        if (folder / name).is_file()
    }
    (folder / "ptuning.json").write_bytes(seal.sealed(values))


def state(**changes: Any) -> Callable[[Path], None]:
    """Change fields of the position, or with two underscores of what is in it; ``...`` takes one away."""

    def act(folder: Path) -> None:
        file = folder / "resume/state.json"
        values = json.loads(file.read_text())
        for key, value in changes.items():
            place: Any = values if key in ("position", "setting", "more") else values["position"]
            *above, last = key.split("__")
            for part in above:
                place = place[int(part) if part.isdigit() else part]
            if value is ...:
                del place[last]
            else:
                place[last] = value
        file.write_text(json.dumps(values))

    return act


def raw(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "resume/state.json").write_bytes(text) and None


def tensors(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        file = folder / "resume/state.safetensors"
        values = load_file(file)
        change(values)
        save_file(values, file)

    return act


def each(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Change every tensor that has ``part`` in its name."""

    def act(values: Tensors) -> None:
        names = [name for name in values if part in name]
        assert names
        values.update({name: change(values[name]).contiguous() for name in names})

    return tensors(act)


def without(part: str) -> Callable[[Path], None]:
    def act(values: Tensors) -> None:
        for name in [name for name in values if part in name]:
            del values[name]

    return tensors(act)


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def fifo(folder: Path) -> None:
    (folder / "resume/state.json").unlink()
    os.mkfifo(folder / "resume/state.json")


def a_folder(folder: Path) -> None:
    (folder / "resume/state.safetensors").unlink()
    (folder / "resume/state.safetensors").mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "list": raw(b"[]"),
    "null": raw(b"null"),
    "text": raw(b'"x"'),
    "nothing": raw(b""),
    "cut": raw(b'{"position": {"epoch"'),
    "deep": raw(b"[" * 100_000 + b"]" * 100_000),
    "deep maps": raw(b'{"setting": ' * 50_000 + b"1" + b"}" * 50_000),
    "no utf-8": raw(b"\xff"),
    "no digits": raw(b'{"position": ' + b"9" * 5000 + b"}"),
    "no position": state(position=...),
    "no setting": state(setting=...),
    "a setting of numbers": state(setting=[1]),
    "another field": state(more=1),
    "another field of the position": state(unknown=1),
    "a field of the position less": state(stale=...),
    "no best": state(best=...),
    "position of numbers": state(position=[1, 2]),
    "history of numbers": state(history=[1, 2]),
    "history without a field": state(history__0__step=...),
    "history of text": state(history__0__metrics={"loss": "low"}),
    "metrics of lists": state(history__0__metrics=[1]),
    "no history": state(history=[]),
    "step of text": state(step="5"),
    "step that is true": state(step=True),
    "step of parts": state(step=5.5),
    "step below 0": state(step=-1),
    "seconds nan": state(seconds=float("nan")),
    "epoch far out": state(epoch=99),
    "best 99": state(best=99),
    "best of text": state(best="x"),
    "best below 0": state(best=-1),
    "best of none": state(best=None),
    "no generator": without("rng.cpu"),
    "generator of another size": each("rng.cpu", lambda value: value[:7]),
    "generator of numbers": each("rng.cpu", lambda value: value.float()),
    "generator of nonsense": each("rng.cpu", lambda value: torch.full_like(value, 255)),
    "generator in rows": each("rng.cpu", lambda value: value[None]),
    "no parameters": without("now."),
    "parameters of another shape": each("now.", lambda value: torch.zeros(7)),
    "parameters in halves": each("now.", lambda value: value.half()),
    "parameters nan": each("now.", lambda value: value * float("nan")),
    "another parameter": tensors(lambda values: values.update({"now.other": torch.zeros(1)})),
    "another tensor": tensors(lambda values: values.update({"other": torch.zeros(1)})),
    "no best parameters": without("kept."),
    "best parameters infinite": each("kept.", lambda value: value + float("inf")),
    "best parameters of a word": tensors(lambda values: values.update({"kept.x.y": torch.zeros(1)})),
    "best parameters of 99": tensors(lambda values: values.update({"kept.99.y": torch.zeros(1)})),
    "no moments": without("optimizer."),
    "moments nan": each("/exp_avg", lambda value: value * float("nan")),
    "squares below 0": each("/exp_avg_sq", lambda value: value - 1),
    "moments of another shape": each("/exp_avg", lambda value: torch.zeros(7)),
    "a moment less": without("/exp_avg_sq"),
    "step of moments nan": each("/step", lambda value: value * float("nan")),
    "step of moments in rows": each("/step", lambda value: value[None]),
    "no state": gone("resume/state.json"),
    "no tensors": gone("resume/state.safetensors"),
    "tensors cut": lambda folder: (folder / "resume/state.safetensors").write_bytes(b"\x00" * 20),
    "a pipe": fifo,
    "a folder": a_folder,
}
BY_THE_LOOP = {"epoch far out"}
"""What only a run of so many steps can refuse."""


@pytest.mark.parametrize("name", DAMAGE)
def test_what_no_run_wrote_is_refused_in_one_sentence(
    name: str, saved: Path, model: PTuningModel, tmp_path: Path
) -> None:
    folder = tmp_path / "out.run" / "checkpoint"
    shutil.copytree(saved, folder)
    DAMAGE[name](folder)
    sealed(folder)
    before = torch.get_rng_state()
    if name in BY_THE_LOOP:
        with pytest.raises(AdapterError, match=r"^cannot resume from .*without resume\)$") as caught:
            run(model, tmp_path / "out", resume=True)
    else:
        with pytest.raises(AdapterError, match=r"^cannot resume from .*without resume\)$") as caught:
            load(folder, model)
        assert torch.equal(torch.get_rng_state(), before)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said.replace(str(folder), "")) < 400


def test_what_a_run_wrote_is_taken(saved: Path, model: PTuningModel, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "checkpoint")
    sealed(tmp_path / "checkpoint")
    position, kept = load(tmp_path / "checkpoint", model)
    assert (position.epoch, position.step, len(position.history)) == (2, 4, 2)
    assert position.best in kept


def test_a_setting_that_is_not_there_is_another_versions(saved: Path, model: PTuningModel) -> None:
    optimizer = torch.optim.AdamW(list(model.task_parameters().values()))
    with pytest.raises(AdapterError, match="has no lions, so whether it has changed is unknown"):
        checkpoint.load(saved, model=model, optimizer=optimizer, setting={"lions": 1})
    with pytest.raises(ConfigError, match=r"cannot resume with another fit.seed: got 1, expected 0, as"):
        checkpoint.load(saved, model=model, optimizer=optimizer, setting={"fit.seed": 1, "lions": 1})


def test_the_schema_is_that_of_what_is_written() -> None:
    for schema, kind in ((_Position, Position), (_Evaluation, Evaluation)):
        assert set(schema.model_fields) == {field.name for field in dataclasses.fields(kind)}
