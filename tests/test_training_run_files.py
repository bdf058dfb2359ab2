"""A run's files: killed anywhere, a run goes on or begins; nothing is removed that no run wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from crashes import dies, steps
from ptuning import (
    DeepPrompt,
    FitConfig,
    PTuningModel,
    TrainConfig,
    adapters,
    fit,
    train_search,
    train_several,
)
from ptuning.errors import AdapterError, ConfigError, OutputError, UserError
from ptuning.training import run_files
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.extensions import Extensions
from ptuning.training.run import train_on
from ptuning.training.run_cache import RunCache
from ptuning.training.several import _clear, _plan, _refuse_unfinished

ROWS = [{"text": f"{word} film {i}", "label": word} for i in range(8) for word in ("good", "bad")]


class Begun(Exception):
    """The run got as far as its first step, and is stopped there: what comes after is for others to test."""


class Begins(Callback):
    def on_train_begin(self, state: RunState) -> None:
        raise Begun(state.step)


@dataclass
class Place:
    """A finished run to begin another over, and what runs of one process share."""

    folder: Path
    shared: RunCache
    values: dict[str, Any]

    def config(self, output: Path, **fit: Any) -> TrainConfig:
        values = {**self.values, "output": str(output), "report": False}
        return TrainConfig.checked({**values, "fit": {**values["fit"], **fit}})

    def train(self, config: TrainConfig, *, resume: bool = False, callbacks: Sequence[Callback] = ()) -> None:
        train_on(self.shared, config, resume=resume, restart=False, extensions=Extensions.checked(callbacks))

    def goes_on(self, config: TrainConfig) -> str:
        """How a user can: by ``--resume``, or else by the plain command."""
        refused = []
        for resume in (True, False):
            try:
                self.train(config, resume=resume, callbacks=[Begins()])
            except Begun as begun:
                return f"resumed at {begun}" if resume else "begun"
            except UserError as error:
                refused.append(str(error))
        raise AssertionError(f"stuck: {refused}")


@pytest.fixture(scope="module")
def place(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    values: dict[str, Any] = {
        "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "train.jsonl")},
        "backbone": str(tiny_folder),
        "precision": "fp32",
        "device": "cpu",
        "prompt": {"num_virtual_tokens": 2, "pooling": "native", "num_virtual_units": 0},
        "fit": {"epochs": 2, "batch_size": 8, "prompt_rate": 3e-2, "head_rate": 3e-2},
    }
    made = Place(folder, RunCache(), values)
    made.train(made.config(folder / "old" / "out", epochs=1))
    return made


def same(one: Path, other: Path) -> bool:
    left, right = adapters.load(one), adapters.load(other)
    return torch.equal(left.prompt_tensor, right.prompt_tensor) and all(
        torch.equal(left.head[name], right.head[name]) for name in left.head
    )


def hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob(".*")}


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_anywhere_a_run_over_a_finished_one_goes_on_or_begins(
    place: Place, exchange: bool, tmp_path: Path
) -> None:
    """The run that stood there was of other options, so it is no use to the new one."""
    straight = place.config(tmp_path / "straight" / "out")
    shutil.copytree(place.folder / "old", tmp_path / "straight")
    below = str(tmp_path)
    total = steps(lambda: place.train(straight), exchange=exchange, below=below)
    assert total > 60
    old, new = place.folder / "old" / "out", tmp_path / "straight" / "out"
    how = set()
    # Every step of the beginning, which removes what stood there; of the rest each fifth.
    for step in [*range(1, 16), *range(16 + 2 * exchange, total + 1, 5)]:
        config = place.config(tmp_path / str(step) / "out")
        shutil.copytree(place.folder / "old", tmp_path / str(step))
        assert dies(lambda to=config: place.train(to), step, exchange=exchange, below=below)
        way = place.goes_on(config)
        how.add(way)
        assert same(Path(config.output), old) or same(Path(config.output), new)
        if step % 20 == 1:
            place.train(config, resume=way != "begun")
            assert same(Path(config.output), new)
            assert not hidden(tmp_path / str(step))
        shutil.rmtree(tmp_path / str(step))
    assert {"begun", "resumed at 2"} <= how


def test_killed_while_it_removes_a_set_of_runs_another_set_can_begin(place: Place, tmp_path: Path) -> None:
    plan = _plan(place.config(tmp_path / "0" / "out"), {"seed": [0, 1]})

    def stand(output: Path) -> TrainConfig:
        """A finished set."""
        config = place.config(output)
        for each in _plan(config, {"seed": [0, 1]}):
            shutil.copytree(place.folder / "old" / "out.run", each.config.run_folder)
        table = {"runs": [{"name": each.name} for each in plan]}
        (config.run_folder / "result.json").write_text(json.dumps(table))
        return config

    config = stand(tmp_path / "0" / "out")
    total = steps(lambda: _clear(config.run_folder, plan), below=str(tmp_path))
    assert total > 20
    for step in range(1, total + 1):
        config = stand(tmp_path / str(step) / "out")
        mine = _plan(config, {"seed": [0, 1]})
        assert dies(lambda f=config.run_folder, m=mine: _clear(f, m), step, below=str(tmp_path))
        for each in mine:
            run_files.prepared(each.config.output)
        _refuse_unfinished(mine, config.run_folder, resume=False)


@pytest.mark.parametrize("search", [False, True])
def test_killed_while_it_removes_a_run_there_is_never_an_unfinished_one(
    search: bool, place: Place, tmp_path: Path
) -> None:
    """Whose options would be another run's: it could neither be gone on from nor begun anew."""

    def stand(name: str) -> Path:
        shutil.copytree(place.folder / "old", tmp_path / name)
        folder = tmp_path / name / "out.run"
        if search:
            (folder / "search").mkdir()
            (folder / "search" / "result.json").write_text("{}")
        return folder

    first = stand("0")
    total = steps(lambda: run_files.clear(first), below=str(first))
    assert total > 10
    for step in range(1, total + 1):
        folder = stand(str(step))
        assert dies(lambda at=folder: run_files.clear(at), step, below=str(folder))
        run_files.prepared(folder.with_name("out"))
        assert not run_files.unfinished(folder)
        run_files.clear(folder)
        assert not (folder / "result.json").exists()
        assert not hidden(folder)


def test_a_search_that_was_killed_before_its_first_table_is_not_begun(place: Place, tmp_path: Path) -> None:
    folder = place.config(tmp_path / "out").run_folder
    (folder / "search").mkdir(parents=True)
    run_files.refuse_unfinished(folder)
    (folder / "search" / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="has an unfinished run"):
        run_files.refuse_unfinished(folder)


def test_what_was_half_removed_is_no_checkpoint(place: Place, tmp_path: Path) -> None:
    """As an older version's kill left it: the result gone, the checkpoint half there."""
    shutil.copytree(place.folder / "old", tmp_path / "run")
    config = place.config(tmp_path / "run" / "out")
    (config.run_folder / "result.json").unlink()
    for name in ("ptuning.json", "adapter_config.json"):
        (config.run_folder / "checkpoint" / name).unlink()
    assert place.goes_on(config) == "begun"


# ------------------------------------------------------------------------- what is not a run's is kept


def plain(place: Place, output: Path) -> None:
    place.train(place.config(output))


def resumed(place: Place, output: Path) -> None:
    place.train(place.config(output, epochs=1), resume=True)


def fitted(place: Place, output: Path) -> None:
    model = PTuningModel.from_backbone(
        place.values["backbone"], DeepPrompt(num_virtual_tokens=2), num_labels=2
    )
    fit(model, {"train": ROWS, "validation": ROWS}, FitConfig(epochs=1), output=output, report=False)


def searched(place: Place, output: Path) -> None:
    train_search(place.config(output).model_copy(update={"recipe": "search"}))


def several(place: Place, output: Path) -> None:
    train_several(place.config(output), seeds=[0])


@pytest.mark.parametrize("act", [plain, resumed, fitted, searched, several])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("checkpoint/thesis.doc", r"checkpoint contains thesis.doc, which is not part .*move it elsewhere"),
        ("checkpoint/resume/notes", r"checkpoint contains resume/notes, which is not part"),
        ("checkpoint/README.md", r"README.md in .*checkpoint was edited by hand and would be lost; move it"),
        ("search/thesis.doc", r"search has thesis.doc, which no run wrote, and it would be lost; move it"),
    ],
)
def test_a_file_of_somebodys_is_refused_before_anything_is_done(
    act: Callable[[Place, Path], None], name: str, said: str, place: Place, tmp_path: Path
) -> None:
    shutil.copytree(place.folder / "old", tmp_path / "run")
    output = tmp_path / "run" / "out"
    own = tmp_path / "run" / "out.run"
    if act is several:  # one of the set's own runs has it
        shutil.copytree(own, own / "seed-0.run")
        own /= "seed-0.run"
    file = own / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("years of work")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(AdapterError, match=said) as caught:
        act(place, output)
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_damaged_checkpoint_is_replaced_but_not_what_stands_in_it(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder / "old", tmp_path / "run")
    config = place.config(tmp_path / "run" / "out")
    (config.run_folder / "checkpoint" / "ptuning.json").write_text("{")
    (config.run_folder / "checkpoint" / "thesis.doc").write_text("years of work")
    with pytest.raises(AdapterError, match=r"checkpoint has thesis.doc, which no run wrote"):
        place.train(config)
    (config.run_folder / "checkpoint" / "thesis.doc").unlink()
    with pytest.raises(Begun):
        place.train(config, callbacks=[Begins()])


@pytest.mark.parametrize("name", ["checkpoint", "search"])
def test_a_file_where_a_folder_of_ours_goes(name: str, place: Place, tmp_path: Path) -> None:
    config = place.config(tmp_path / "out")
    config.run_folder.mkdir()
    (config.run_folder / name).write_text("years of work")
    with pytest.raises(AdapterError, match=rf"{name} is not a folder, and it would be lost; move it"):
        place.train(config)
    assert (config.run_folder / name).read_text() == "years of work"


# --------------------------------------------------------------------------------------- paths


def loop(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return str(folder / "loop")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (lambda folder: "~nosuchuser/x", "no such user"),
        (lambda folder: str(folder / "a\0b"), "without a NUL"),
        (lambda folder: str(folder / ("x" * 5000)), "too long"),
        (loop, "leads back to itself"),
    ],
    ids=["nobody", "NUL", "long", "loop"],
)
def test_an_output_that_no_folder_can_have(
    output: Callable[[Path], str], said: str, place: Place, tmp_path: Path
) -> None:
    given = output(tmp_path)
    for act in (plain, fitted, several):
        with pytest.raises(UserError, match=said) as caught:
            act(place, Path(given))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_what_cannot_be_removed_is_said(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place.folder / "old", tmp_path / "run")
    config = place.config(tmp_path / "run" / "out")

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.rename", refused)
    with pytest.raises(OutputError, match=r"could not write .*checkpoint: Permission denied"):
        place.train(config)
    assert not run_files.unfinished(config.run_folder)
