"""Searches and sets of runs on a Ray cluster: the same trials, results and files as on one machine."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import re
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import ptuning
import ptuning.ray
from ptuning import TrainConfig, TrainResult, adapters
from ptuning.cli import main
from ptuning.errors import BackboneNotFound, ConfigError, OutputError
from ptuning.ray import tune_experiment
from ptuning.ray.cluster import Versions
from ptuning.ray.tune_experiment import Workers
from ptuning.ray.tune_worker import Shared, Worker
from ptuning.training import trials
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.config import dump
from ptuning.training.console import ConsoleCallback
from ptuning.training.extensions import NO_EXTENSIONS
from ptuning.training.interrupt import Interrupted
from ptuning.training.run_cache import RunCache
from ptuning.training.search import in_turn, search_with
from ptuning.training.trials import Space, Trial
from ray_cluster import ray_cluster  # noqa: F401

ray = pytest.importorskip("ray")

Rows = Callable[..., list[dict[str, Any]]]
Made = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptuning.training.search.plot", lambda *args: b"")


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path, rows: Rows, jsonl: Callable[..., Path]) -> Made:
    """A configuration of a small search or run; dotted options change it."""
    data = {"train": str(jsonl("train.jsonl", rows(64))), "test": str(jsonl("test.jsonl", rows(24, seed=1)))}

    def make(output: str = "out", **options: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "data": {**data, "validation_fraction": 0.375},
            "backbone": str(tiny_folder),
            "output": str(tmp_path / output),
            "report": False,
            "precision": "fp32",
            "device": "cpu",
            "prompt": {"num_virtual_tokens": 4},
            "fit": {"epochs": 2, "batch_size": 8},
        }
        for key, value in options.items():
            section, _, name = key.partition("__")
            values[section] = {**values.get(section, {}), name: value} if name else value
        return TrainConfig.checked(values)

    return make


def tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    adapter = adapters.load(folder)
    return {"prompt": adapter.prompt_tensor, **adapter.head}


def same(one: str | Path, other: str | Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def told(found: Iterable[Trial]) -> list[tuple[Any, ...]]:
    """Everything of the trials but the time."""
    return [(each.number, each.values, each.state, each.history) for each in found]


def timeless(value: Any) -> Any:
    """JSON data without times."""
    if isinstance(value, dict):
        return {name: timeless(each) for name, each in value.items() if name != "seconds"}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def begin_with(monkeypatch: pytest.MonkeyPatch, *values: dict[str, float]) -> None:
    """Let the first trials have these values. They are proposed in this process, so workers need no patch."""
    monkeypatch.setattr(Space, "beginning", property(lambda self: list(values)))
    monkeypatch.setattr(trials, "RANGE", 1e33)


def settings() -> tuple[Any, ...]:
    """What Tune changes in this process."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "TUNE_"))}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    return variables, handlers, logging.getLogger("ray.tune").level


class Pressed(Callback):
    """Presses Ctrl-C when a trial begins, or when a run reports its first evaluation."""

    def __init__(self, trial: int = 0, run: str = "") -> None:
        self.trial, self.run = trial, run

    def on_trial_begin(self, number: int, count: int, steps: int) -> None:
        if number == self.trial:
            os.kill(os.getpid(), signal.SIGINT)

    def on_message(self, message: str) -> None:
        if self.run and message.startswith(f"{self.run}: epoch"):
            os.kill(os.getpid(), signal.SIGINT)


class Dies(Callback):
    """Kills the first worker that comes to a step."""

    def __init__(self, step: int, mark: Path) -> None:
        self.step, self.mark = step, mark

    def on_step_end(self, state: RunState) -> None:
        if state.step == self.step and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_trial_step(self, state: RunState) -> None:
        self.on_step_end(state)


class Noted(Callback):
    """Writes down on which node, and from which step, a run is trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, state: RunState) -> None:
        assert state.folder is not None
        node = ray.get_runtime_context().get_node_id()
        with (self.folder / state.folder.stem).open("a") as stream:
            stream.write(f"{state.step} {node}\n")

    def of(self, name: str) -> list[tuple[int, str]]:
        lines = (self.folder / name).read_text().splitlines()
        return [(int(step), node) for step, node in map(str.split, lines)]


# ---------------------------------------------------------------------------------------- a search


@pytest.mark.usefixtures("ray_cluster")
def test_one_trial_at_a_time_is_the_search_of_one_machine(
    config: Made, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Three are good, one is pruned, one diverges, one is drawn; Ctrl-C comes in the third."""
    rates = [(0.1, 0.03), (0.11, 0.03), (0.12, 0.03), (1e-9, 1e-9), (1e30, 1e30)]
    begin_with(
        monkeypatch,
        *({"first_layer": 0, "learning_rate": one, "head_learning_rate": other} for one, other in rates),
    )
    options: dict[str, Any] = {
        "recipe": "search",
        "search": {"trials": 6, "epochs": 4},
        "fit": {"epochs": 2, "batch_size": 8, "warmup": 0.0, "select_by": "loss"},
        "report": True,
    }
    local, made = ptuning.train_search(config("local", **options)), config("ray", **options)
    assert [trial.state for trial in local.trials][:5] == ["complete"] * 3 + ["pruned", "diverged"]
    outside = settings()
    with pytest.raises(Interrupted, match=r"interrupted with 2 of 6 trials finished; .* with --resume$"):
        ptuning.ray.train_search(made, callbacks=[Pressed(trial=3)])
    assert not Path(made.output).exists()
    assert files(made.run_folder) == ["config.yaml", "search/result.json"]
    (tmp_path / "made.yaml").write_text(dump(made))
    capfd.readouterr()
    assert main(["train", "--config", str(tmp_path / "made.yaml"), "--resume", "--ray", "auto"]) == 0
    assert settings() == outside
    shown = capfd.readouterr()
    assert shown.out.splitlines()[0].startswith(f"saved {made.output} (trial ")
    assert not re.search("ray|tune|actor|warning", shown.err.replace(made.output, ""), re.IGNORECASE)
    assert [f"trial {number} of 6" in shown.err.replace("  ", " ") for number in range(1, 7)] == [
        number > 2 for number in range(1, 7)
    ]

    table = json.loads((made.run_folder / "search" / "result.json").read_text())
    found = [Trial.read(each) for each in table["trials"]]
    assert told(found) == told(local.trials)
    assert table["winner"] == local.winner
    result = TrainResult.from_dict(json.loads((made.run_folder / "result.json").read_text()))
    assert (result.history, result.metrics) == (local.result.history, local.result.metrics)
    assert result.adapter == Path(made.output)
    assert same(made.output, config("local").output)
    assert files(made.run_folder) == files(config("local").run_folder)


@pytest.mark.usefixtures("ray_cluster")
def test_several_trials_at_once_see_those_before_them_and_a_worker_may_die(
    config: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trials, "RANDOM", 2)  # so that the fifth depends on what the first three found
    options: dict[str, Any] = {
        "recipe": "search",
        "search": {"trials": 5, "epochs": 2},
        "fit": {"epochs": 2, "batch_size": 8, "select_by": "loss"},
    }
    wanted = search_with(
        in_turn, config("local", **options), NO_EXTENSIONS, resume=False, restart=False, concurrency=2
    )
    mark = tmp_path / "died"
    found = ptuning.ray.train_search(config("ray", **options), concurrency=2, callbacks=[Dies(7, mark)])
    assert mark.exists()
    assert told(found.trials) == told(wanted.trials)
    assert (found.winner, found.result.history) == (wanted.winner, wanted.result.history)
    assert same(config("ray").output, config("local").output)
    with pytest.raises(ConfigError, match="cannot resume with another concurrency: got 1, expected 2"):
        ptuning.train_search(config("ray", **options), resume=True)


@pytest.mark.usefixtures("ray_cluster")
def test_a_backbone_that_a_worker_lacks(config: Made) -> None:
    made = config(backbone="/nowhere/model")
    with pytest.raises(BackboneNotFound, match=rf"^on the node {platform.node()}: .*/nowhere/model"):
        ptuning.ray.train_several(made, seeds=[0])
    assert not made.run_folder.exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_is_lost_again_and_again(
    config: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Told(Callback):
        runs: ClassVar[list[str]] = []

        def __reduce__(self) -> Any:
            return Callback, ()

        def on_run_begin(self, name: str, number: int, count: int, finished: bool) -> None:
            self.runs.append(name)

    monkeypatch.setattr(tune_experiment, "RETRIES", 0)
    callbacks = [Dies(7, tmp_path / "died"), Told()]
    with pytest.raises(OutputError, match=r"a task was lost again after 0 retries: .*; what is finished is"):
        ptuning.ray.train_several(config(), seeds=[0, 1], concurrency=1, callbacks=callbacks)
    assert Told.runs == ["seed-0"]
    assert not Path(config().output).exists()
    checkpoint = config().run_folder / "seed-0.run" / "checkpoint"
    assert adapters.verify(checkpoint)  # of the epoch before
    assert files(config().run_folder) == sorted(
        ["seed-0.run/config.yaml", *(f"seed-0.run/checkpoint/{name}" for name in files(checkpoint))]
    )


# ------------------------------------------------------------------------------------------ refused


@pytest.mark.usefixtures("ray_cluster")
def test_what_cannot_be_copied_is_named(config: Made) -> None:
    lock = threading.Lock()

    class Locked(Callback):
        def __init__(self) -> None:
            self.lock = lock

    with pytest.raises(ConfigError, match=r"callbacks\[1\] cannot be copied to the workers \(.*lock"):
        ptuning.ray.train_several(config(), seeds=[0], callbacks=[ConsoleCallback(), Locked()])
    with pytest.raises(ConfigError, match="loss cannot be copied to the workers"):
        ptuning.ray.train_several(config(), seeds=[0], loss=lambda logits, labels: lock)
    assert not config().run_folder.exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_with_other_versions(config: Made) -> None:
    here = Versions.here()
    other = dataclasses.replace(here, packages=(("ptuning", "0.0.1"), *here.packages[1:]))
    shared = dataclasses.replace(Shared.of(config(), RunCache(), NO_EXTENSIONS), versions=other)
    with pytest.raises(ConfigError, match=r"ptuning on the node .*expected 0\.0\.1"):
        Worker(ray.put(shared))._open(config())


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_task_gets_from_the_cluster(config: Made) -> None:
    class Heard(Callback):
        def __init__(self) -> None:
            self.said: list[str] = []

        def on_message(self, message: str) -> None:
            self.said.append(message)

    heard = Heard()
    assert Workers(concurrency=None).resources(config(), heard) == {"cpu": 1, "gpu": 0}
    assert heard.said == []
    assert Workers(concurrency=1, num_cpus=8, num_gpus=1).resources(config(), heard) == {"cpu": 8, "gpu": 1}
    assert heard.said == ["no node of the cluster has 8 CPUs and 1 GPUs; waiting for one that does"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": 0}, "concurrency: got 0, expected a whole number above 0"),
        ({"num_cpus": 0}, "num_cpus: got 0, expected a number above 0"),
        ({"num_gpus": -1}, "num_gpus: got -1, expected a number, 0 or more"),
        ({"address": "nowhere"}, "--ray: got nowhere, expected auto, local, or HOST:PORT"),
    ],
)
def test_bad_choices(
    config: Made, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=f"^{said}"):
        ptuning.ray.train_several(config(), seeds=[0], **options)
    with pytest.raises(ConfigError, match=f"^{said}"):
        ptuning.ray.train_search(config(recipe="search"), **options)


def test_trackers_are_refused(config: Made) -> None:
    with pytest.raises(ConfigError, match=r"^track: not on a Ray cluster; got tensorboard"):
        ptuning.ray.train_several(config(track="tensorboard"), seeds=[0])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--ray", "auto"], "--ray: got a single run, expected --recipe search, or a list"),
        (["--ray_workers", "2", "--seeds", "0"], "--ray_workers: got no --ray"),
        (["--ray", "nowhere", "--seeds", "0"], "--ray: got nowhere, expected auto, local, or HOST:PORT"),
    ],
)
def test_options_that_do_not_fit(
    argv: list[str], said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert main(["train", "rows.csv", *argv]) == 2
    assert capfd.readouterr().err.startswith(f"ptuning: error: {said}")


# ------------------------------------------------------------------------------------- several runs


def test_a_set_is_that_of_one_machine_though_it_is_interrupted_and_a_node_dies(
    config: Made,
    tmp_path: Path,
    ray_cluster: Any,  # noqa: F811
) -> None:
    """This test is the last one, because it leaves one node."""
    values: dict[str, Any] = {"seeds": [0, 1], "learning_rates": [1e30, 0.03]}
    fit = {"epochs": 4, "batch_size": 8, "warmup": 0.0, "head_rate": 1e-3}
    local = ptuning.train_several(config("local", fit=fit), **values)
    made, last, noted = config("ray", fit=fit), local.runs[-1].name, Noted(tmp_path)

    class NodeDies(Callback):
        """Ends the node that trains the last run, when its first evaluation is reported."""

        def __init__(self) -> None:
            self.said: list[str] = []

        def __reduce__(self) -> Any:
            return Callback, ()

        def on_message(self, message: str) -> None:
            self.said.append(message)
            if sum(each.startswith(f"{last}: epoch") for each in self.said) == 1:
                (node,) = (
                    each for each in ray_cluster.list_all_nodes() if each.node_id == noted.of(last)[-1][1]
                )
                ray_cluster.remove_node(node, allow_graceful=True)  # else Ray waits 15 s for its heartbeat
                self.said.append(f"{last}: epoch, and its node has ended")

    with pytest.raises(Interrupted, match="finished runs and the last checkpoints of the others are kept"):
        ptuning.ray.train_several(made, **values, callbacks=[noted, Pressed(run=last)])
    assert not Path(made.output).exists()
    assert not (made.run_folder / "result.json").exists()
    assert [step for step, _ in noted.of(last)] == [0]
    with pytest.raises(ConfigError, match="has an unfinished set of runs"):
        ptuning.ray.train_several(made, **values)
    callbacks = [noted, NodeDies()]
    found = ptuning.ray.train_several(made, **values, resume=True, concurrency=1, callbacks=callbacks)
    steps, nodes = zip(*noted.of(last), strict=True)
    assert steps == (0, 5, 10)
    assert nodes[1] != nodes[2]

    assert [run.diverged for run in found.runs] == [run.diverged for run in local.runs]
    assert [run.diverged is None for run in found.runs] == [False, True, False, True]
    for one, other in zip(found.runs, local.runs, strict=True):
        assert (one.name, one.values) == (other.name, other.values)
        if one.result is not None and other.result is not None:
            assert one.result.history == other.result.history
            assert one.result.metrics == other.result.metrics
            assert same(made.run_folder / one.name, config("local").run_folder / one.name)
    assert found.best.name == local.best.name
    assert same(made.output, config("local").output)
    assert files(made.run_folder) == files(config("local").run_folder)
    tables = [
        timeless(json.loads((one.run_folder / "result.json").read_text())) for one in (made, config("local"))
    ]
    assert tables[0] == tables[1]
