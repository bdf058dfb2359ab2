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

from ptuning import Task
from ptuning.errors import ConfigError, DataError, OutputError
from ray_bulk import until

pytest.importorskip("ray")
import pyarrow as pa
from pyarrow import fs, parquet

from ptuning.ray.output import Folder
from ptuning.ray.parts import Part, split
from ptuning.ray.prediction_columns import PredictionColumns
from ptuning.ray.sink import Sink
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


# ------------------------------------------------------------------------- good and bad rows


def predicted(columns: dict[str, list[Any]], prefix: str = "") -> pa.Table:
    """Rows none of which could be answered."""
    task = Task(problem_type="regression", labels=())
    added = PredictionColumns(task=task, prefix=prefix)
    rows = pa.table(columns)
    return added.add(rows, ["too long"] * rows.num_rows)


def write(folder: Folder, tables: list[pa.Table], form: Any = "parquet", prefix: str | None = None) -> Any:
    sink = Sink(folder.filesystem, folder.parts, folder.run, form, prefix, 1)
    return sink.write(tables, None)


def test_own_columns_of_bad_rows_stay() -> None:
    own: dict[str, list[Any]] = {"label": ["a"], "probabilities": [0.5], "error": ["mine"]}
    rows = predicted(own, "p_")
    good, bad = split(rows)
    assert good.num_rows == 0
    assert bad.to_pylist() == [{"label": "a", "probabilities": 0.5, "error": "mine", "p_error": "too long"}]
    assert not bad.schema.field("p_error").metadata  # the next reader is told nothing
    own_error = predicted({"text": ["x"], "abstained": [True]})
    assert split(own_error)[1].to_pylist() == [{"text": "x", "abstained": True, "error": "too long"}]


def test_rows_that_were_scored_twice() -> None:
    once = predicted({"text": ["x"]})
    twice = PredictionColumns(task=None, prefix="b_").add(once, ["null"])
    assert list(split(twice)[1].to_pylist()[0]) == ["text", "value", "error", "b_error"]


def test_ray_keeps_what_was_added() -> None:
    from ray.data._internal.delegating_block_builder import DelegatingBlockBuilder
    from ray.data.block import BlockAccessor

    builder = DelegatingBlockBuilder()
    for columns in ({"id": [1], "error": ["a"]}, {"id": [2.5], "error": [None]}):
        builder.add_block(BlockAccessor.for_block(predicted(columns, "p_")).slice(0, 1))
    assert split(builder.build())[1]["p_error"].to_pylist() == ["too long", "too long"]


def test_rows_whose_marks_are_lost(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.start()
    rows = pa.Table.from_pylist(predicted({"error": ["mine"]}, "p_").to_pylist())
    for prefix in (None, "q_"):
        with pytest.raises(DataError, match=r"'error', 'p_value'.*prefix"):
            write(folder, [rows], prefix=prefix)
    (part,) = write(folder, [rows], prefix="p_")
    assert part.bad
    assert parquet.read_table(f"{folder.parts}/{part.name}").to_pylist() == [
        {"error": "mine", "p_error": "too long"}
    ]


def test_columns_that_the_format_cannot_hold(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out")
    folder.start()
    empty = predicted({"text": ["x"], "meta": [{}]})
    with pytest.raises(OutputError, match=r"could not be written on the node .*jsonl"):
        write(folder, [empty])
    assert os.listdir(folder.parts) == []
    (part,) = write(folder, [empty], "jsonl")
    line = json.loads(Path(folder.parts, part.name).read_text())
    assert line == {"text": "x", "meta": {}, "error": "too long"}
    with pytest.raises(OutputError, match=r"could not be written on the node .*--keep"):
        write(folder, [predicted({"meta": [{"a": 1}]}), predicted({"meta": ["b"]})])
