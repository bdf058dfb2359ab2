"""Bulk scoring: what a cluster answers equals what one process answers, every row exactly once."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import sentiment
from mixed import KINDS, shaken
from ptuning import DeepPrompt, Predictor, PTuningModel, Task
from ptuning.cli import main
from ptuning.errors import AdapterError, ConfigError, DataError, OutputError
from ptuning.model.loading import load_backbone
from ray_bulk import Full, Gate, unscored, until
from ray_cluster import ray_cluster  # noqa: F401

pytest.importorskip("ray")
import pyarrow as pa
from pyarrow import fs, parquet

from ptuning.ray import write_predictions
from ptuning.ray.cluster import errors_of_workers
from ptuning.ray.inputs import find_files
from ptuning.ray.layout import TextOptions, reading, tables_of
from ptuning.ray.output import Folder
from ptuning.ray.parts import Part, write_table
from ptuning.ray.scorer import Scorer
from ptuning.ray.scoring import planned, scored
from ptuning.ray.storage import Place, files_of, place_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, of its own options

PAIR = Task(problem_type="single_label_classification", labels=("same", "other"), pair=True)
TASKS = dict(zip(("two", "five", "several", "number"), KINDS, strict=True)) | {"pair": PAIR}
LONG = "the parcel is late and " * 40


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> dict[str, PTuningModel]:
    """A task of each kind on one backbone."""
    torch.manual_seed(0)
    backbone, tokenizer = load_backbone(str(tiny_folder), 2, None, None, None, None)
    made = {}
    for name, task in TASKS.items():
        made[name] = shaken(PTuningModel.from_backbone(backbone, DeepPrompt(num_virtual_tokens=3), task=task))
        made[name].tokenizer = tokenizer
    return made


@pytest.fixture(scope="module")
def adapters(models: dict[str, PTuningModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their folder."""
    folder = tmp_path_factory.mktemp("bulk") / "adapters"
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return folder


def table(count: int = 40, **columns: Any) -> pa.Table:
    texts = [row["text"] for row in sentiment(count)]
    return pa.table({"id": list(range(count)), "text": texts} | columns)


def answers(adapter: Any, rows: pa.Table, **options: Any) -> list[dict[str, Any]]:
    """What an actor answers, in this process."""
    plan = planned(adapter, rows.column_names, precision="fp32", device="cpu", **options)
    found: list[dict[str, Any]] = Scorer(plan)(rows).to_pylist()
    return found


def close(got: Any, expected: Any) -> bool:
    """Whether probabilities or values are equal to 1e-5."""
    return bool(got == pytest.approx(expected, abs=1e-5))


# ------------------------------------------------------------------- an actor's answers


@pytest.mark.parametrize("name", ["two", "five", "several", "number"])
def test_one_task(models: dict[str, PTuningModel], adapters: Path, name: str) -> None:
    rows = table()
    expected = Predictor(models[name])(rows["text"].to_pylist())
    found = answers(adapters / name, rows)
    for row, one, source in zip(found, expected, rows.to_pylist(), strict=True):
        wanted = one.to_dict()
        assert list(row) == ["id", "text", *wanted, "error"]
        assert row["error"] is None
        assert {"id": row["id"], "text": row["text"]} == source
        assert row.get("label") == wanted.get("label")
        key = "probabilities" if "probabilities" in wanted else "value"
        assert close(row[key], wanted[key])


def test_pairs_abstaining_and_windows(models: dict[str, PTuningModel], adapters: Path) -> None:
    rows = table(text_b=[LONG if i % 3 else "food" for i in range(40)])
    options: Any = {"too_long": "windows", "abstain_below": 0.6}
    texts = list(zip(rows["text"].to_pylist(), rows["text_b"].to_pylist(), strict=True))
    expected = Predictor(models["pair"], **options)(texts)
    found = answers(adapters / "pair", rows, **options)
    assert {row["abstained"] for row in found} == {True, False}
    for row, one in zip(found, expected, strict=True):
        assert (row["label"], row["abstained"]) == (one.label, one.abstained)
        assert close(row["probabilities"], one.to_dict()["probabilities"])


def test_mixed_tasks(models: dict[str, PTuningModel], adapters: Path) -> None:
    names = [list(TASKS)[i % 5] for i in range(40)]
    rows = table(task=names, text_b=["slow food" if name == "pair" else None for name in names])
    folders = {name: adapters / name for name in TASKS}
    for given in (adapters, folders):
        found = answers(given, rows, task_column="task")
        for row in found:
            texts = (row["text"], row["text_b"]) if row["task"] == "pair" else row["text"]
            wanted = Predictor(models[row["task"]])([texts])[0].to_dict()
            label = wanted.get("label")
            assert row["label"] == ("|".join(label) if isinstance(label, list) else label)
            if row["task"] == "number":
                assert close(row["value"], wanted["value"])
            else:
                assert row["value"] is None
                assert close(dict(row["probabilities"]), wanted["probabilities"])


def test_bad_rows_have_their_reason(adapters: Path) -> None:
    texts = ["good", "", None, LONG, "bad"]
    rows = pa.table({"id": list(range(5)), "text": texts})
    found = answers(adapters / "two", rows, too_long="error")
    assert [row["label"] is None for row in found] == [False, True, True, True, False]
    reasons = [row["error"] for row in found]
    assert reasons[0] is reasons[4] is None
    assert all(word in reason for word, reason in zip(("''", "null", "tokens"), reasons[1:4], strict=True))
    assert not any("block" in reason for reason in reasons[1:4])
    mixed = pa.table({"text": ["good", "good", "bad"], "task": ["two", "nothing", None]})
    found = answers(adapters, mixed, task_column="task")
    assert [bool(row["error"]) for row in found] == [False, True, True]
    assert "'nothing'" in found[1]["error"]
    with pytest.raises(DataError, match=r"the row .*'text': ''.*bad_rows skip"):
        answers(adapters / "two", rows, bad_rows="error")


def test_only_bad_rows(adapters: Path) -> None:
    rows = pa.table({"text": ["", None], "task": ["two", "two"]})
    for options in ({}, {"task_column": "task"}):
        found = answers(adapters if options else adapters / "two", rows, **options)
        assert all(row["error"] for row in found)


def test_blocks_with_other_columns(adapters: Path) -> None:
    def scorer(**options: Any) -> Scorer:
        return Scorer(planned(adapters / "two", ["text", "id"], device="cpu", **options))

    late = pa.table({"text": ["good"], "label": ["late"]})
    with pytest.raises(ConfigError, match=r"already has a column named 'label'.*prefix"):
        scorer()(late)
    (row,) = scorer(keep=["id"])(late).to_pylist()
    assert row["id"] is None
    assert row["label"] != "late"
    (row,) = scorer()(pa.table({"id": [1]})).to_pylist()
    assert "null" in row["error"]


def test_mistakes_need_no_cluster(adapters: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], said: str, adapter: Any, names: list[str], **options: Any) -> None:
        with pytest.raises(kind, match=said):
            planned(adapter, names, **options)

    two = adapters / "two"
    refused(ConfigError, "already has a column named 'label'.*prefix", two, ["text", "label"])
    planned(two, ["text", "label"], prefix="predicted_")
    planned(two, ["text", "label"], keep=["text"])
    refused(DataError, "no column 'words'", two, ["text"], text="words")
    refused(DataError, "no column 'id' to keep", two, ["text"], keep=["id"])
    refused(DataError, "two texts", adapters / "pair", ["text"])
    refused(DataError, "one text", two, ["text", "text_b"])
    refused(DataError, "for task_column", adapters, ["text"], task_column="task")
    refused(ConfigError, "abstain_below", adapters / "number", ["text"], abstain_below=0.5)
    refused(ConfigError, "too_long", two, ["text"], too_long="cut")
    refused(ConfigError, "task_column", {"two": two}, ["text"])
    refused(AdapterError, "nothing", tmp_path / "nothing", ["text"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--ray auto --output out", "--input: got standard input"),
        ("--ray auto --input hf:a/b --output out", "--input: got hf:a/b"),
        ("--ray auto --input a.csv", "--output: got standard output"),
        ("--ray auto --input a.csv --output out --format csv", "--format: got csv"),
        ("--ray auto --input a.csv --output out --input_format text", "--input_format: got text"),
        ("--ray auto --input a.csv --output out --window 8", "--window is not for work on a cluster"),
        ("--ray auto --input a.csv --output out --batch_size 8", "use --batch_tokens"),
        ("--ray auto --input a.csv --output out --ray_workers 0", "--ray_workers: got 0"),
        ("--ray auto --input nothing.csv --output out", "there is no nothing.csv"),
        ("--input a.csv --ray_cpus 2", "--ray_cpus is for work on a cluster"),
        ("--input a.csv --format parquet", "--format: got parquet"),
    ],
)
def test_options_that_do_not_go_together(
    argv: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "adapter", *argv.split()]) == 2
    found = capsys.readouterr().err
    assert said in found
    assert len(found.splitlines()) == 1


def test_workers_are_started_in_another_folder(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, start = table(3), os.getcwd()
    expected = answers(adapters / "two", rows)
    monkeypatch.chdir(adapters)
    options: Any = {"precision": "fp32", "device": "cpu"}
    for given, task in (("two", None), ({"two": "two"}, "task"), (".", "task")):
        block = rows.append_column("task", pa.array(["two"] * 3)) if task else rows
        monkeypatch.chdir(adapters)
        plan = planned(given, block.column_names, task_column=task, **options)  # type: ignore[arg-type]
        monkeypatch.chdir(tmp_path)
        found = Scorer(plan)(block).to_pylist()
        assert [row["label"] for row in found] == [row["label"] for row in expected]
        assert os.getcwd() == str(adapters)  # where a relative backbone of an adapter's record is, too
    monkeypatch.chdir(start)


def test_what_training_leaves_beside_adapters(
    models: dict[str, PTuningModel], adapters: Path, tmp_path: Path
) -> None:
    models["two"].save_pretrained(tmp_path / "two")
    (tmp_path / "two.run").mkdir()
    (tmp_path / "two.run" / "progress.jsonl").touch()
    rows = pa.table({"text": ["good", "good"], "task": ["two", "two.run"]})
    found = answers(tmp_path, rows, task_column="task")
    assert [bool(row["error"]) for row in found] == [False, True]
    (next((tmp_path / "two").glob("*.safetensors"))).unlink()
    with pytest.raises(AdapterError, match="two"):  # damaged, not none
        answers(tmp_path, rows, task_column="task")
    with pytest.raises(AdapterError):
        planned({"two.run": tmp_path / "two.run"}, ["text", "task"], task_column="task")


def test_a_worker_that_cannot_start_says_why(adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr("torch.set_num_threads", fail)
    with pytest.raises(OutputError, match=r"on the node .*could not load .*RuntimeError: no kernel image"):
        answers(adapters / "two", table(3))


def test_a_node_without_the_backbone_or_with_another_adapter(
    adapters: Path, models: dict[str, PTuningModel], tmp_path: Path
) -> None:
    rows = table(3)
    with pytest.raises(Exception, match=r"on the node .*nowhere"):
        answers(adapters / "two", rows, backbone=str(tmp_path / "nowhere"))
    models["two"].save_pretrained(tmp_path / "two")
    plan = planned(tmp_path / "two", rows.column_names)
    models["five"].save_pretrained(tmp_path / "two")
    with pytest.raises(AdapterError, match=r"on the node .*as in the process that started"):
        Scorer(plan)(rows)


# ----------------------------------------------------------------------------- the files


def read(
    source: str, form: Any = None, options: TextOptions | None = None, keep: Any = None
) -> list[dict[str, Any]]:
    """The rows of files, as the tasks read them."""
    files = find_files(source, form, options)
    layout = replace(files.layout, keep=keep and frozenset(keep))
    found: list[dict[str, Any]] = []
    for path in files.paths:
        with open(path, "rb") as stream, reading(path):
            opened = pa.PythonFile(stream)
            found += [row for part in tables_of(layout, opened, path) for row in part.to_pylist()]
    return found


def test_cells_of_a_csv_stay_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text,when\n007,"two\nlines",2024-01-01\n8,NA,\n')
    assert read(str(tmp_path / "a.csv")) == [
        {"id": "007", "text": "two\nlines", "when": "2024-01-01"},
        {"id": "8", "text": "NA", "when": ""},
    ]
    (tmp_path / "b.tsv").write_text('1\t"quoted\n')
    options = TextOptions(header="none", quoting="none")
    assert read(str(tmp_path / "b.tsv"), None, options) == [{"1": "1", "2": '"quoted'}]


def test_an_empty_line_is_a_row_if_there_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n\nb\n\n")
    assert [row["text"] for row in read(str(tmp_path / "a.csv"))] == ["a", "", "b", ""]
    (tmp_path / "b.csv").write_text("a\n\nb\n")
    assert [row["1"] for row in read(str(tmp_path / "b.csv"), None, TextOptions(header="none"))] == [
        "a",
        "",
        "b",
    ]
    (tmp_path / "c.csv").write_text("id,text\n1,a\n\n2,b\n")
    assert len(read(str(tmp_path / "c.csv"))) == 2


def test_long_cells_and_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * 500_000
    (tmp_path / "1.csv").write_text(f'id,text\n1,a\n2,"{long}"\n')
    (tmp_path / "0.csv").touch()
    assert [row["text"] for row in read(f"{tmp_path}/*.csv")] == ["a", long]
    monkeypatch.setattr("ptuning.ray.layout._LONGEST_ROW", 1 << 20)
    with pytest.raises(DataError, match=r"1\.csv: (a row is too long|no row is complete).*1 MiB in CSV"):
        read(str(tmp_path / "1.csv"))
    with pytest.raises(DataError, match="there are no rows"):
        find_files(str(tmp_path / "0.csv"))
    (tmp_path / "0.parquet").touch()
    with pytest.raises(DataError, match=r"0\.parquet cannot be read"):
        find_files(f"{tmp_path}/*.parquet")


def test_encodings_and_separators(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffid|text\n1|süß\n".encode())
    assert read(str(tmp_path / "a.csv"), None, TextOptions(separator="|")) == [{"id": "1", "text": "süß"}]
    (tmp_path / "b.csv").write_bytes("id\ttext\n1\tsüß\n".encode("cp1252"))
    options = TextOptions(separator="tab", encoding="cp1252")
    assert read(str(tmp_path / "b.csv"), None, options) == [{"id": "1", "text": "süß"}]
    for bad in ({"encoding": "nonsense"}, {"separator": "||"}, {"separator": "é"}, {"separator": '"'}):
        with pytest.raises(ConfigError, match=f"data.{next(iter(bad))}"):
            TextOptions(**bad)  # type: ignore[arg-type]


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good", "when": "2024-01-01T00:00:00Z"}\n{"text": null}\n')
    assert read(str(tmp_path / "a.jsonl")) == [
        {"text": "good", "when": "2024-01-01T00:00:00Z"},
        {"text": None, "when": None},
    ]


def test_json_lines_keep_large_numbers_and_dates_in_objects(tmp_path: Path) -> None:
    rows = [
        {"id": 2**64 - 1, "x": 1e300, "meta": {"on": "2024-01-01", "seen": [{"at": "2024-01-01 10:00:00"}]}},
        {"id": 3, "x": 0.5, "meta": {"on": None, "seen": [{"at": None, "hash": -(2**70)}]}},
    ]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps({'text': 'a', **row})}\n" for row in rows))
    first, second = read(str(tmp_path / "a.jsonl"))
    assert first == {
        "text": "a",
        **rows[0],
        "meta": {"on": "2024-01-01", "seen": [{"at": "2024-01-01 10:00:00", "hash": None}]},
    }
    assert second == {"text": "a", **rows[1]}
    stream = io.BytesIO()
    write_table(pa.Table.from_pylist([first]).select(["id"]), stream, "jsonl")
    assert json.loads(stream.getvalue()) == {"id": 2**64 - 1}
    (tmp_path / "a.jsonl").write_text('{"id": 18446744073709551616}\n{"id": 0.5}\n')
    assert [row["id"] for row in read(str(tmp_path / "a.jsonl"))] == [2.0**64, 0.5]


def test_types_that_differ_between_parquet_files(tmp_path: Path) -> None:
    columns: list[list[Any]] = [[1, 2], [0.5], [None]]
    for number, ids in enumerate(columns):
        parquet.write_table(pa.table({"text": ["a"] * len(ids), "id": ids}), tmp_path / f"{number}.parquet")
    files = find_files(f"{tmp_path}/*.parquet")
    with open(files.paths[0], "rb") as stream:
        (part,) = tables_of(files.layout, pa.PythonFile(stream), "")
    assert part.schema.field("id").type == pa.float64()
    assert [row["id"] for row in read(f"{tmp_path}/*.parquet")] == [1, 2, 0.5, None]
    assert read(f"{tmp_path}/*.parquet", keep=["text"]) == [{"text": "a"}] * 4
    parquet.write_table(pa.table({"text": ["a"], "id": ["x"]}), tmp_path / "3.parquet")
    with pytest.raises(DataError, match=r"3\.parquet: a column has another type.*id.*double vs string"):
        find_files(f"{tmp_path}/*.parquet")


def test_columns_that_differ_between_files_of_json_lines(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "by": "x"}, {"id": 0.5}, {"id": None, "label": "late"}]
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"text": "a", **row}))
    found = read(f"{tmp_path}/*.jsonl")
    assert [(row["id"], row["by"]) for row in found] == [(1, "x"), (0.5, None), (None, None)]
    assert read(f"{tmp_path}/*.jsonl", keep=["id"]) == [{"id": 1}, {"id": 0.5}, {"id": None}]
    files = find_files(f"{tmp_path}/*.jsonl")
    with open(files.paths[2], "rb") as stream:
        (part,) = tables_of(files.layout, pa.PythonFile(stream), "")
    assert part.schema.field("id").type == pa.int64()
    assert part.schema.field("by").type == pa.string()
    (tmp_path / "3.jsonl").write_text('{"text": "a", "id": "x"}')
    with pytest.raises(DataError, match=r"3\.jsonl: a column has another type.*int64 vs string.*--keep"):
        read(f"{tmp_path}/*.jsonl")
    assert read(f"{tmp_path}/*.jsonl", keep=["text"]) == [{"text": "a"}] * 4


def test_columns_in_the_names_of_folders(tmp_path: Path) -> None:
    for day in ("2024-01-01", "a%20b"):
        (tmp_path / f"x=1/day={day}").mkdir(parents=True)
        parquet.write_table(table(1), tmp_path / f"x=1/day={day}/0.parquet")
    for source in (f"{tmp_path}/x=1", f"{tmp_path}/x=1/*/*.parquet", f"file://{tmp_path}/x=1/**"):
        assert find_files(source).layout.names == ("id", "text", "day")
        assert [row["day"] for row in read(source)] == ["2024-01-01", "a b"]
    assert list(read(str(tmp_path), keep=["text", "x"])[0]) == ["text", "x"]
    assert list(read(f"{tmp_path}/x=1/day=2024-01-01/0.parquet")[0]) == ["id", "text"]
    (tmp_path / "x=1/0.parquet").write_bytes((tmp_path / "x=1/day=a%20b/0.parquet").read_bytes())
    with pytest.raises(
        DataError, match=r"the columns in the names of its folders: got 'x', 'day', expected 'x'"
    ):
        find_files(str(tmp_path))


def test_patterns_and_uris(tmp_path: Path) -> None:
    for name in ("a/1.parquet", "a/2.parquet", "b/c/3.parquet", "b/_hidden/4.parquet", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def names(pattern: str, filesystem: Any = None) -> list[str]:
        return [Path(found.path).stem for found in files_of(pattern, "--input", filesystem)[1]]

    assert names(f"{tmp_path}/a/*.parquet") == names(f"file://{tmp_path}/a/*.parquet") == ["1", "2"]
    assert names(f"{tmp_path}/**/*.parquet") == ["1", "2", "3"]
    assert names(f"{tmp_path}/*/[2-9].parquet") == ["2"]
    below = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    assert names("a/?.parquet", below) == names("a", below) == ["1", "2"]
    for name in ("c/data[1].parquet", "c/data1.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(f"{tmp_path}/c/data[1].parquet") == names("c/data[1].parquet", below) == ["data[1]"]
    assert names(f"{tmp_path}/c/data[1-9].parquet") == ["data1"]
    for bad in (f"{tmp_path}/*.csv", f"{tmp_path}/nothing"):
        with pytest.raises(DataError, match=r"there (are no files|is no)"):
            names(bad)
    with pytest.raises(ConfigError, match="a URI that pyarrow can open"):
        names("nonsense://bucket/a")
    with pytest.raises(ConfigError, match="files of one format"):
        find_files(f"{tmp_path}/b")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for number in range(3):
        parquet.write_table(table(4), tmp_path / f"{number}.parquet")
    (tmp_path / "1.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"1\.parquet cannot be read"):
        find_files(f"{tmp_path}/*.parquet")
    parquet.write_table(pa.table({"words": ["a"]}), tmp_path / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet, the columns"):
        find_files(f"{tmp_path}/*.parquet")
    (tmp_path / "a.csv").write_text("id,text\n1,a,b\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\nnothing\n')
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            read(str(tmp_path / name))


# ------------------------------------------------------------------------------------------------ the folder


def killed(place: Place) -> Folder:
    """A folder that a run has begun to write, whose process was killed."""
    folder = Folder(place)
    folder.start()
    Path(f"{folder.parts}.json").write_text(json.dumps({"host": "a", "pid": 1, "time": 0}))
    return folder


def test_what_is_in_the_folder_decides(tmp_path: Path) -> None:
    out = tmp_path / "out"
    place = place_of(str(out), "--output")
    Folder(place).check()
    out.mkdir()
    Folder(place).check()
    interrupted = killed(place)
    (out / f"part-{interrupted.run}-000000-0.parquet").write_bytes(b"")  # killed while publishing
    (out / "_bad_rows").mkdir()
    again = Folder(place)
    again.check()
    again.start()
    assert sorted(os.listdir(out)) == ["_temporary"]
    again.clear()
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").touch()
    with pytest.raises(ConfigError, match="not empty"):
        Folder(place).check()
    killed(place)
    with pytest.raises(ConfigError, match="not empty"):
        Folder(place).check()
    (out / "_SUCCESS").touch()
    with pytest.raises(ConfigError, match="results of another run"):
        Folder(place).check()
    with pytest.raises(ConfigError, match="expected a folder"):
        Folder(place_of(str(out / "notes.txt"), "--output")).check()


def test_nodes_that_do_not_share_the_folder(tmp_path: Path) -> None:
    folder = Folder(place_of(str(tmp_path / "out"), "--output"))
    folder.start()
    part = Part(name=f"part-{folder.run}-0.parquet", bad=False, rows=1, nbytes=4, node="far")
    with pytest.raises(OutputError, match="the node far wrote, is not here"):
        folder.publish([part], {})
    Path(folder.parts, part.name).write_bytes(b"cut")
    with pytest.raises(OutputError, match="the node far wrote, is not here"):
        folder.publish([part], {})
    assert os.listdir(tmp_path / "out") == ["_temporary"]


def test_a_failure_while_files_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(place_of(str(tmp_path / "out"), "--output"))
    folder.start()
    parts = [Part(name=f"part-{i}", bad=bool(i), rows=1, nbytes=1, node="a") for i in range(2)]
    for part in parts:
        Path(folder.parts, part.name).write_bytes(b"1")

    def refuse(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_write", refuse)  # of _SUCCESS
    with pytest.raises(OutputError, match="No space left"):
        folder.publish(parts, {})
    folder.clear()
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------- on a cluster


def results(out: Path) -> list[dict[str, Any]]:
    return sorted(parquet.read_table(out).to_pylist(), key=lambda row: row["id"])


def test_the_command(
    ray_cluster: Any,  # noqa: F811
    models: dict[str, PTuningModel],
    adapters: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [list(TASKS)[i % 4] for i in range(60)]
    rows = table(60, task=names, text=[" " if i == 7 else f"good {'film ' * (i % 5)}" for i in range(60)])
    for part in range(3):
        parquet.write_table(rows.slice(part * 20, 20), tmp_path / f"{part}.parquet")
    out, argv = tmp_path / "out", ["predict", "--adapters", str(adapters), "--device", "cpu"]
    argv += ["--precision", "fp32", "--input", f"{tmp_path}/*.parquet", "--output", f"file://{out}"]
    argv += ["--ray", "auto", "--ray_cpus", "0.5", "--ray_workers", "1"]
    assert main([*argv, "--bad_rows", "skip"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[0].startswith("note: 1 of 60 rows cannot be used")
    assert len(printed.err.splitlines()) == 2
    found = results(out)
    assert [row["id"] for row in found] == [i for i in range(60) if i != 7]
    for row in found:
        (wanted,) = Predictor(models[row["task"]])([row["text"]])
        if row["task"] == "number":
            assert close(row["value"], wanted.label)
        else:
            label = wanted.label
            assert row["label"] == ("|".join(map(str, label)) if isinstance(label, tuple) else label)
            assert close(dict(row["probabilities"]), wanted.to_dict()["probabilities"])
    (bad,) = parquet.read_table(out / "_bad_rows").to_pylist()
    assert (bad["id"], bad["text"], bad["task"]) == (7, " ", names[7])
    assert "at least one character" in bad["error"]
    success = json.loads((out / "_SUCCESS").read_text())
    assert (success["rows_read"], success["rows_written"], success["bad_rows"]) == (60, 59, 1)
    assert set(success["adapters"]) == set(TASKS)
    assert all((out / name).is_file() for name in success["files"])
    assert sorted(os.listdir(out)) == sorted(["_SUCCESS", "_bad_rows", *success["files"][1:]])
    # again: the folder is taken; another one: bad rows are errors unless they are left out
    assert main(argv) == 2
    assert "has the results of another run" in capsys.readouterr().err
    argv[argv.index(f"file://{out}")] = str(tmp_path / "other")
    assert main(argv) == 2
    assert "leave such rows out with --data.bad_rows skip" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_text_files_on_workers(ray_cluster: Any, tmp_path: Path) -> None:  # noqa: F811
    def rows(pattern: str, **options: Any) -> list[dict[str, Any]]:
        found = find_files(f"{tmp_path}/{pattern}").dataset(["text"], num_cpus=0, **options).take_all()
        return sorted(found, key=lambda row: row["text"])

    (tmp_path / "a.csv").write_text("id,text\n007,a\n8,b\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"text,id\nc,9\n"))
    (tmp_path / "c.csv").touch()
    wanted = [{"id": number, "text": text} for number, text in (("007", "a"), ("8", "b"), ("9", "c"))]
    assert rows("*.csv*") == wanted
    several: list[dict[str, Any]] = [{"id": 1}, {"id": 2**64, "text": "b"}, {"late": 1, "text": "c"}]
    for number, row in enumerate(several):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"text": "a"} | row))
    found = [(row["text"], row["id"], row.get("late")) for row in rows("*.jsonl")]
    assert found == [("a", 1, None), ("b", 2**64, None), ("c", None, 1)]
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1/a.tsv").write_text("text\na\n\n")
    assert rows("day=*/*.tsv") == [{"text": "", "day": "1"}, {"text": "a", "day": "1"}]
    (tmp_path / "1.jsonl").write_text('{"text": "b", "id": "x"}')
    assert [row["text"] for row in rows("*.jsonl", keep=["late"])] == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"1\.jsonl: a column has another type"), errors_of_workers():
        rows("*.jsonl")


def parts_of(out: Path) -> list[Path]:
    """The files that were written and are not published yet."""
    return list((out / "_temporary").glob("*/part-*"))


def test_nodes_and_actors_that_are_killed(
    ray_cluster: Any,  # noqa: F811
    models: dict[str, PTuningModel],
    adapters: Path,
    tmp_path: Path,
) -> None:
    """After half of the blocks an actor is killed, then a node with what it has computed."""
    import ray
    from ray._private.state import actors

    rows, victim = table(200), ray_cluster.add_node(num_cpus=1, resources={"victim": 1})
    for part in range(20):
        parquet.write_table(rows.slice(part * 10, 10), tmp_path / f"{part:02}.parquet")
    files = find_files(f"{tmp_path}/*.parquet")
    source = files.dataset(num_cpus=0).map_batches(
        Gate(tmp_path / "go", 100), batch_format="pyarrow", num_cpus=0
    )
    plan = planned(adapters / "five", files.layout.names, precision="fp32", device="cpu")
    predictions = scored(plan, source, concurrency=3, num_cpus=1, batch_size=10)
    assert not source.context.raise_original_map_exception  # the caller's own is as it was
    out, found = tmp_path / "out", []
    work = threading.Thread(
        target=lambda: found.append(
            write_predictions(predictions, str(out), rows=files.rows, file_bytes=1, num_cpus=0)
        )
    )
    work.start()

    def alive() -> dict[str, int]:
        """The processes of the actors, by their nodes."""
        every = [each for each in actors().values() if each["State"] == "ALIVE"]
        return {
            each["Address"]["NodeID"]: each["Pid"] for each in every if "Scorer" in each["ActorClassName"]
        }

    try:
        until(lambda: len(alive()) == 3 and len(parts_of(out)) >= 2)
        assert not list(out.glob("part-*"))
        pids = alive()
        (kept, *_) = set(pids) - {victim.node_id}
        os.kill(pids[kept], signal.SIGKILL)
        ray_cluster.remove_node(victim, allow_graceful=False)
        until(lambda: victim.node_id not in {n["NodeID"] for n in ray.nodes() if n["Alive"]})
    finally:
        (tmp_path / "go").touch()
        work.join(300)
    (written,) = found
    assert (written.rows_read, written.rows_written, written.bad_rows) == (200, 200, 0)
    assert sorted(os.listdir(out)) == sorted(["_SUCCESS", *written.files])
    expected = Predictor(models["five"])(rows["text"].to_pylist())
    got = results(out)
    assert [row["id"] for row in got] == list(range(200))
    for row, one in zip(got, expected, strict=True):
        assert row["label"] == one.label
        assert close(row["probabilities"], one.to_dict()["probabilities"])


DRIVER = """
import sys, ray
from pathlib import Path
import pyarrow as pa
from ptuning.ray.cluster import errors_of_workers
from ptuning.ray import write_predictions
from ray_bulk import Gate, unscored
ray.init("auto", log_to_driver=False)
write_predictions(unscored(Gate(Path(sys.argv[1]), 20)), sys.argv[2], file_bytes=1, num_cpus=0)
"""


def test_the_driver_is_killed(ray_cluster: Any, tmp_path: Path) -> None:  # noqa: F811
    out, go = tmp_path / "out", tmp_path / "go"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(go), str(out)])
    try:
        until(lambda: len(parts_of(out)) >= 2)
    finally:
        driver.kill()
        driver.wait()
    assert os.listdir(out) == ["_temporary"]
    written = write_predictions(unscored(), str(out), form="jsonl", num_cpus=0)
    go.touch()
    assert sorted(os.listdir(out)) == sorted(["_SUCCESS", *written.files])
    lines = [json.loads(line) for name in written.files for line in (out / name).read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == list(range(40))
    assert lines[0] == {"id": lines[0]["id"], "label": "a"}


def test_work_that_fails_leaves_nothing(ray_cluster: Any, tmp_path: Path) -> None:  # noqa: F811
    full = fs.PyFileSystem(fs.FSSpecHandler(Full()))
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"on the node .*No space left.*free some space"):
        write_predictions(unscored(), str(out), filesystem=full, num_cpus=0)
    with pytest.raises(OutputError, match="40 rows would be written of 41 rows that were read"):
        write_predictions(unscored(), str(out), rows=41, num_cpus=0)
    for part in range(3):
        parquet.write_table(table(4), tmp_path / f"{part}.parquet")
    files = find_files(f"{tmp_path}/*.parquet")
    content = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(
        content[:4] + bytes(200) + content[204:]
    )  # after its footer was read
    with pytest.raises(DataError, match=r"1\.parquet cannot be read"):
        write_predictions(files.dataset(num_cpus=0), str(out), num_cpus=0)
    assert not out.exists()
