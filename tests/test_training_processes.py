"""``ptuning train`` in two processes: what one trains, and how they end together."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from ptuning import PTuningModel, TrainConfig, TrainResult, adapters, train, train_search, train_several
from ptuning.errors import ProcessLost
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.interrupt import Interrupted
from warm import Programs

SEARCH = {"recipe": "search", "search": {"trials": 3, "epochs": 2}}
CASES: Mapping[str, Mapping[str, Any]] = {
    "stem": {
        "prompt": {"num_virtual_tokens": 4, "first_layer": 1},
        "report": True,
        "track": "tensorboard",
        "fit": {"head_learning_rate": 0.01},
    },
    "several": {"prompt": {"num_virtual_tokens": 4, "first_layer": 2}},
    "search": {**SEARCH, "prompt": {"num_virtual_tokens": 4}, "fit": {"num_train_epochs": 3}},
    "warm": {"init_from": "stem", "prompt": {}},
}
"""By name, what differs from :func:`config_of`. The rows cannot be divided evenly."""
STOP = 7
"""The step after which one process is stopped, in the second of three epochs."""


def config_of(folder: Path, inputs: Path, name: str, **options: Any) -> TrainConfig:
    case = {**CASES.get(name, {}), **options}
    if "init_from" in case:
        case["init_from"] = str(folder / case["init_from"])
    names = ("train", "validation", "test")
    values = {
        "data": {each: str(inputs / f"{each}.jsonl") for each in names},
        "backbone": str(inputs / "backbone"),
        "output": str(folder / name),
        "precision": "fp32",
        "device": "cpu",
        "report": False,
        **case,
        "fit": {"num_train_epochs": 3, "batch_size": 9, "learning_rate": 0.05, **case.get("fit", {})},
    }
    return TrainConfig.checked(values)


class Watch(Callback):
    """What a process sees, and one that is stopped at :data:`STOP`."""

    def __init__(self, stop: Callable[[], None] = lambda: None) -> None:
        self.losses: list[float] = []
        self.stem = 0
        self.stop = stop

    def on_step_end(self, state: RunState) -> None:
        self.losses.append(state.loss or 0.0)
        if state.step == STOP:
            self.stop()

    def on_trial_step(self, state: RunState) -> None:
        self.losses.append(state.loss or 0.0)

    def on_progress(self, what: str, done: int, total: int) -> None:
        self.stem += what == "stem"


def found_by(result: TrainResult) -> dict[str, Any]:
    """What a run found, without its times."""
    return {
        "history": [[each.step, each.train_loss, *each.metrics.values()] for each in result.history],
        "best": result.best.step,
        "averaged": [each.step for each in result.averaged],
        "metrics": {name: dict(values) for name, values in result.metrics.items()},
        "calibration": result.calibration,
    }


def learn(folder: Path, inputs: Path) -> dict[str, Any]:
    """Every case, as each process trains it."""
    found: dict[str, Any] = {}
    for name in CASES:
        config, watch = config_of(folder, inputs, name), Watch()
        if name == "several":
            several = train_several(config, seeds=[0, 1], callbacks=[watch])
            results = [run.result for run in several.runs]
            chosen: Any = several.best.name
        elif name == "search":
            search = train_search(config, callbacks=[watch])
            results = [search.result]
            chosen = [search.winner, [[dict(each.values), each.state] for each in search.trials]]
        else:
            results, chosen = [train(config, callbacks=[watch])], None
        assert (folder / name / adapters.RECORD).exists()  # each process finds it when it goes on
        runs = [found_by(result) for result in results if result is not None]
        found[name] = {"losses": watch.losses, "runs": runs, "chosen": chosen, "stem": watch.stem}
    return found


def interrupted_and_resumed(folder: Path, inputs: Path, rank: int) -> dict[str, Any]:
    """One process gets a signal; both stop after the same step, and go on to the same end."""
    options = {"prompt": {"num_virtual_tokens": 4}, "fit": {"backbone_dropout": True}}
    straight = train(config_of(folder, inputs, "straight", **options))
    config = config_of(folder, inputs, "broken", **options)
    told = ""
    try:  # callbacks of one process only are a usual pattern
        train(config, callbacks=[Watch(lambda: os.kill(os.getpid(), signal.SIGINT))] if rank else [])
    except Interrupted as error:
        told = str(error)
    resumed = train(config, resume=True)
    return {"told": told, "straight": found_by(straight), "resumed": found_by(resumed)}


def told_of(work: Callable[[], object]) -> str:
    """The error of a process whose other one has ended."""
    with pytest.raises(ProcessLost) as caught:
        work()
    return str(caught.value)


def main(what: str, folder: Path, inputs: Path) -> None:
    """What a process of two does."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {}
    if what == "learn":
        with patch.object(torch.distributed, "new_group", wraps=torch.distributed.new_group) as group:
            found = learn(folder, inputs)
        found["patience"] = [call.kwargs["timeout"].days for call in group.call_args_list]
        found["interrupted"] = interrupted_and_resumed(folder, inputs, rank)
    else:
        watch = Watch((lambda: os.kill(os.getpid(), signal.SIGKILL)) if rank else int)
        found["told"] = [
            told_of(partial(train, config_of(folder, inputs, "stem"), callbacks=[watch])),
            # As if it had ended earlier.
            told_of(partial(train, config_of(folder, inputs, "again"))),
            told_of(partial(train_several, config_of(folder, inputs, "several"), seeds=[0, 1])),
            told_of(partial(train_search, config_of(folder, inputs, "search"))),
        ]
    (folder / f"{what}-{rank}.json").write_text(json.dumps(found))


# ------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def inputs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import sentiment

    folder = tmp_path_factory.mktemp("inputs")
    (folder / "backbone").symlink_to(tiny_folder)
    for name, count, seed in (("train", 41, 0), ("validation", 17, 1), ("test", 13, 2)):
        lines = [json.dumps(row) + "\n" for row in sentiment(count, seed)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What one process trains, and where."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, learn(folder, inputs)


def parameters(folder: Path, inputs: Path) -> dict[str, Any]:
    return PTuningModel.from_pretrained(folder, backbone=str(inputs / "backbone")).task_parameters()


def close(one: Any, other: Any) -> None:
    """Both say the same, with numbers that differ by no more than 1e-5."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            close(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            close(each, its)
    else:
        assert other == (pytest.approx(one, abs=1e-5) if isinstance(one, float) else one)


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    inputs: Path,
    alone: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    programs: Programs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PTUNING_CACHE", str(tmp_path / "cache"))  # an empty one
    before, expected = alone
    assert expected["stem"]["runs"][0]["calibration"]["temperature"] != 1
    programs.ranks([__file__, "learn", str(tmp_path), str(inputs)], tmp_path)
    first, second = (json.loads((tmp_path / f"learn-{rank}.json").read_text()) for rank in (0, 1))
    for name in CASES:
        stems = expected[name].pop("stem"), first[name].pop("stem"), second[name].pop("stem")
        assert stems[1:] == (stems[0], 0)  # the first ran the stem, and the second has read it
        close(expected[name], first[name])
        assert second[name] == first[name]
        torch.testing.assert_close(
            parameters(tmp_path / name, inputs), parameters(before / name, inputs), rtol=0, atol=1e-5
        )
    assert (tmp_path / "stem.run" / "report.html").is_file()
    assert len(list((tmp_path / "stem.run" / "tracking").rglob("events*"))) == len(
        list((before / "stem.run" / "tracking").rglob("events*"))
    )
    assert len(first["patience"]) > 2  # for the stem, at least, and for the report
    assert min(first["patience"]) > 1
    stopped, other = first["interrupted"], second["interrupted"]
    assert stopped == other
    assert stopped["told"].startswith(f"interrupted at step {STOP} of 15 and saved")
    assert stopped["resumed"] == stopped["straight"]
    straight, resumed = parameters(tmp_path / "straight", inputs), parameters(tmp_path / "broken", inputs)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.slow
def test_the_end_of_one_is_an_error_of_the_other_and_the_run_can_be_resumed(
    inputs: Path, alone: tuple[Path, dict[str, Any]], tmp_path: Path, programs: Programs
) -> None:
    before, expected = alone
    running = programs.start_ranks([__file__, "die", str(tmp_path), str(inputs)], tmp_path)
    assert [program.wait(120) for program, _ in running] == [0, -signal.SIGKILL]
    told, *earlier = json.loads((tmp_path / "die-0.json").read_text())["told"]
    gone = "process 0 of 2 cannot go on: another one has ended, or cannot be reached"
    assert told.startswith(gone)
    assert "--resume" in told
    assert earlier == [gone] * 3
    # Any number of processes can go on.
    resumed = train(config_of(tmp_path, inputs, "stem"), resume=True)
    close(expected["stem"]["runs"][0], found_by(resumed))
    torch.testing.assert_close(
        parameters(tmp_path / "stem", inputs), parameters(before / "stem", inputs), rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_a_mistake_is_printed_once(tmp_path: Path, programs: Programs) -> None:
    argv = ["-m", "ptuning", "train", "nothing.jsonl", "--device", "cpu", "--output", str(tmp_path / "out")]
    running = programs.start_ranks(argv, tmp_path)
    assert [program.wait(120) for program, _ in running] == [2, 2]
    first, second = (log.read_text() for _, log in running)
    assert first.startswith("ptuning: error: nothing.jsonl does not exist")
    assert first.count("\n") == 1
    assert second == ""
    # What torchrun prints of the second, if its error is another one.
    left = json.loads((tmp_path / ".error-1").read_text())
    assert left["message"] == first.rstrip()


@pytest.mark.slow
def test_ctrl_c_of_torchrun_saves_and_is_reported_once(inputs: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    options = ["--fit.num_train_epochs", "2000", "--fit.batch_size", "9", "--precision", "fp32"]
    argv = ["train", str(inputs / "train.jsonl"), "--validation", str(inputs / "validation.jsonl"), *options]
    where = ["--backbone", str(inputs / "backbone"), "--output", "out"]  # and no --device cpu
    with (tmp_path / "log").open("wb") as log:
        torchrun = subprocess.Popen(
            [sys.executable, *launch, f"--master-port={port}", "-m", "ptuning", *argv, *where],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""},
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    checkpoint, end = tmp_path / "out.run" / "checkpoint", time.monotonic() + 300
    try:
        while not checkpoint.exists():
            assert torchrun.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        torchrun.send_signal(signal.SIGINT)
        assert torchrun.wait(120) != 0
    finally:
        if torchrun.poll() is None:
            torchrun.terminate()  # it ends its processes, which a kill would leave
            torchrun.wait(60)
    told = (tmp_path / "log").read_text()
    assert len(re.findall(r"^ptuning: interrupted at step \d+ of \d+ and saved", told, re.MULTILINE)) == 1
    assert len(re.findall(r"^training \S+ of \S+ parameters", told, re.MULTILINE)) == 1
    adapters.verify(checkpoint)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
