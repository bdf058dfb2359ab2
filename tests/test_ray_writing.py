"""What bulk scoring writes: all or nothing, by one run at a time. These tests need no cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ptuning.errors import ConfigError, OutputError
from ray_bulk import until

pytest.importorskip("ray")
from pyarrow import fs

from ptuning.ray.output import Folder
from ptuning.ray.parts import Part
from ptuning.ray.storage import place_of


def folder_of(out: Path) -> Folder:
    return Folder(place_of(str(out), "--output"))


def filled(folder: Folder) -> list[Part]:
    """The parts of a run that has started: one with good and one with bad rows."""
    parts = [
        Part(name=f"part-{folder.run}-{i}.parquet", bad=bool(i), rows=1, nbytes=1, node="a") for i in range(2)
    ]
    for part in parts:
        Path(folder.parts, part.name).write_bytes(b"1")
    return parts


class Failing(fs.LocalFileSystem):
    """Fails after it has moved ``_SUCCESS``; with ``stuck``, it cannot delete it either."""

    def __init__(self, stuck: bool) -> None:
        super().__init__()
        self.stuck = stuck

    def move(self, source: str, target: str) -> None:
        super().move(source, target)
        if target.endswith("_SUCCESS"):
            raise OSError(5, "Input/output error")

    def delete_file(self, path: str) -> None:
        if self.stuck and path.endswith("_SUCCESS"):
            raise OSError(5, "Input/output error")
        super().delete_file(path)


@pytest.mark.parametrize("stuck", [False, True])
def test_success_stays_only_with_its_files(tmp_path: Path, stuck: bool) -> None:
    out = tmp_path / "out"
    folder = Folder(place_of(str(out), "--output", Failing(stuck)))
    folder.start()
    parts = filled(folder)
    with pytest.raises(OutputError, match="Input/output error"):
        folder.publish(parts, {})
    folder.clear()
    if stuck:
        assert all((out / part.place).is_file() for part in parts)
        assert (out / "_SUCCESS").is_file()
    else:
        assert not out.exists()


def test_a_folder_that_another_run_writes_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = folder_of(out), folder_of(out)
    second.check()
    first.start()
    for refused in (second.check, second.start):
        with pytest.raises(ConfigError, match=f"the process {os.getpid()} on .* writes to"):
            refused()
    parts = filled(first)
    first.publish(parts, {})
    first.clear()
    assert sorted(os.listdir(out)) == ["_SUCCESS", "_bad_rows", parts[0].name]


def test_runs_that_have_ended_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    here = {"host": os.uname().nodename, "pid": process.pid, "time": time.time()}
    lost = {"host": "another machine", "pid": 1, "time": time.time() - 200}
    for about in (json.dumps(here), json.dumps(lost)):
        killed, again = folder_of(out), folder_of(out)
        killed.start()
        Path(f"{killed.parts}.json").write_text(about)
        again.check()
        again.start()
        again.clear()
        assert not out.exists()
    living = folder_of(out)
    living.start()
    for about in (json.dumps(lost | {"time": time.time() - 60}), '{"run":'):
        Path(f"{living.parts}.json").write_text(about)
        with pytest.raises(ConfigError, match="writes to"):
            folder_of(out).check()


def test_a_run_that_was_replaced_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    first, second = folder_of(out), folder_of(out)
    first.start()
    parts = filled(first)
    Path(f"{first.parts}.json").unlink()
    with pytest.raises(OutputError, match="another run has written there"):
        first.publish(parts, {})
    first.runs.announce()
    publish = first._publish

    def other(part: Part) -> None:
        publish(part)
        (out / f"part-{second.run}-0.parquet").touch()

    monkeypatch.setattr(first, "_publish", other)
    with pytest.raises(OutputError, match="another run has written there"):
        first.publish(parts, {})
    first.clear()
    assert os.listdir(out) == [f"part-{second.run}-0.parquet"]


def test_a_living_run_says_so(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.start()
    file = Path(f"{folder.parts}.json")
    before = json.loads(file.read_text())["time"]
    told: list[Any] = []
    with folder.runs.beating(lambda: told.append(folder.runs.all()), seconds=0.01):
        until(lambda: told and told[-1][0].time > before)
        file.unlink()
        count = len(told)
        until(lambda: len(told) > count + 2)
        assert not file.exists()  # a run that was replaced does not come back


def test_progress(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.start()
    filled(folder)
    told: list[tuple[int, int]] = []
    with folder.alive(lambda *found: told.append(found), beat=0.01, every=0.0):
        until(lambda: len(told) > 1)
    assert set(told) == {(2, 2)}
