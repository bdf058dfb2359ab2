"""``ptuning predict --adapters``: each row of a file is answered by the adapter that it names."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixed import unlike
from ptuning import Predictor, PTuningModel, TaskTable
from ptuning.cli import main
from ptuning.model.loading import load_backbone

Ran = tuple[int, str, str]
TEXTS = ["the film is great", "slow food", "the bill was wrong and the app is awful", "red blue", "good"]
PAIR = ("the parcel is late", "the parcel was very slow")


@pytest.fixture(scope="module")
def saved(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, PTuningModel]]:
    """A folder of unlike adapters, and the models."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tasks") / "adapters"
    backbone, tokenizer = load_backbone(str(tiny_folder), 2, None, None, None, None)
    models = {f"task-{i}": model for i, model in enumerate(unlike(backbone, seed=3))}
    for name, model in models.items():
        model.tokenizer = tokenizer
        model.save_pretrained(folder / name)
    return folder, models


@pytest.fixture
def rows(saved: tuple[Path, dict[str, PTuningModel]]) -> list[dict[str, Any]]:
    """Rows of all tasks: with a second text, a null one, a blank one or none."""
    found = []
    for i, (name, model) in enumerate(list(saved[1].items()) * 2):
        if model.task.pair:
            found.append({"text": PAIR[0], "text_b": PAIR[1], "task": name})
        else:
            found.append(
                {"text": TEXTS[i % 5], **[{}, {"text_b": None}, {"text_b": " "}][i % 3], "task": name}
            )
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved[0], "adapters")
    return tmp_path


@pytest.fixture
def predict(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    def run(*argv: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        capsys.readouterr()
        held = ["--adapters", "adapters", "--precision", "fp32", "--device", "cpu"]
        code = main(["predict", *argv, *held])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text(lines(rows), encoding="utf-8")
    return file.name


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def expected(models: dict[str, PTuningModel], row: dict[str, Any]) -> dict[str, Any]:
    """What the row's adapter alone answers."""
    model = models[row["task"]]
    (found,) = Predictor(model)([(row["text"], row["text_b"]) if model.task.pair else row["text"]])
    return found.to_dict()


def assert_answers(out: str, rows: list[dict[str, Any]], models: dict[str, PTuningModel]) -> None:
    answers = objects(out)
    assert [(each["row"], each["task"]) for each in answers] == [
        (i, row["task"]) for i, row in enumerate(rows, 1)
    ]
    for answer, row in zip(answers, rows, strict=True):
        wanted = expected(models, row)
        assert list(answer) == ["row", "task", *wanted]
        if "value" in wanted:
            assert answer["value"] == pytest.approx(wanted["value"], abs=1e-4)
        else:
            assert answer["label"] == wanted["label"]
            assert answer["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)


@pytest.mark.parametrize("more", [[], ["--window", "3", "--memory_limit", "1e-6"], ["--batch_size", "2"]])
def test_each_row_is_answered_by_its_adapter(
    predict: Callable[..., Ran], home: Path, saved: Any, rows: Any, more: list[str]
) -> None:
    code, out, err = predict(write(home / "rows.jsonl", rows), *more)
    assert (code, err) == (0, "")
    assert_answers(out, rows, saved[1])
    assert predict("--task_column", "task", "--input", "rows.jsonl", *more) == (0, out, "")


def test_every_format(predict: Callable[..., Ran], home: Path, saved: Any, rows: Any) -> None:
    import pyarrow
    from pyarrow import parquet

    complete = [{**row, "text_b": row.get("text_b")} for row in rows]
    for name, delimiter in (("rows.csv", ","), ("rows.tsv", "\t")):
        with (home / name).open("w", newline="") as stream:
            table = csv.DictWriter(stream, ["task", "text", "text_b"], delimiter=delimiter)
            table.writeheader()
            table.writerows(complete)
    parquet.write_table(pyarrow.Table.from_pylist(complete), home / "rows.parquet")
    write(home / "rows.jsonl", rows)
    plain = objects(predict("rows.jsonl")[1])
    for name in ("rows.csv", "rows.tsv", "rows.parquet"):
        code, out, err = predict(name)
        assert (code, err) == (0, ""), name
        first = 1 if name == "rows.parquet" else 2
        assert objects(out) == [{**each, "row": i} for i, each in enumerate(plain, first)]
    assert objects(predict(stdin=lines(rows).encode())[1]) == plain  # JSON Lines unless said otherwise
    content = (home / "rows.csv").read_bytes()
    code, out, _ = predict("-", "--input_format", "csv", stdin=content)
    assert (code, [each["task"] for each in objects(out)]) == (0, [row["task"] for row in rows])


def test_csv_has_the_same_columns_for_all_tasks(
    predict: Callable[..., Ran], home: Path, rows: Any, saved: Any
) -> None:
    rows = [{**row, "id": f"no {i}"} for i, row in enumerate(rows)]
    plain = objects(predict(write(home / "rows.jsonl", rows))[1])
    code, out, err = predict("rows.jsonl", "--format", "csv", "--keep", "id", "--output", "found.csv")
    assert (code, out, err) == (0, "", "")
    header, *found = csv.reader(io.StringIO((home / "found.csv").read_text()))
    assert header == ["row", "task", "label", "value", "probabilities", "id"]
    for cells, each, row in zip(found, plain, rows, strict=True):
        number, task, label, value, probabilities, kept = cells
        assert (int(number), task, kept) == (each["row"], row["task"], row["id"])
        if "value" in each:
            assert (label, float(value), probabilities) == ("", each["value"], "")
        else:
            labels = each["label"] if isinstance(each["label"], list) else [each["label"]]
            assert (label, value) == ("|".join(labels), "")
            assert json.loads(probabilities) == each["probabilities"]


def test_columns_can_be_named(predict: Callable[..., Ran], home: Path, saved: Any, rows: Any) -> None:
    renamed = [{"a": row["text"], "b": row.get("text_b"), "text": 3, "which": row["task"]} for row in rows]
    write(home / "named.jsonl", renamed)
    code, out, err = predict("named.jsonl", "--task_column", "which", "--text", "a", "--text_b", "b")
    assert (code, err) == (0, "")
    assert_answers(out, rows, saved[1])


def test_only_the_adapters_that_rows_name_are_loaded(
    predict: Callable[..., Ran], home: Path, saved: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    real = TaskTable.put

    def counting(table: TaskTable, name: str, *given: Any) -> Any:
        loaded.append(name)
        return real(table, name, *given)

    monkeypatch.setattr(TaskTable, "put", counting)
    (home / "adapters" / "damaged").mkdir()
    rows = [row for row in rows if row["task"] in ("task-1", "task-4")]
    assert predict(write(home / "rows.jsonl", rows))[0] == 0
    assert loaded == ["task-1", "task-4"]


# ------------------------------------------------------------------------------------- what is refused

BAD = [
    (
        {"text": "good", "task": "task_0"},
        "the task: got 'task_0', expected an adapter in adapters: 'task-0', ",
    ),
    (
        {"text": "good", "task": "../adapters/task-0"},
        "the task: got '../adapters/task-0', expected an adapter",
    ),
    ({"text": "good", "task": ".hidden"}, "the task: got '.hidden', expected an adapter"),
    ({"text": "good", "task": ""}, "the task in 'task': got ''"),
    ({"text": "good", "task": 1}, "the task in 'task': got the int 1, expected a string"),
    ({"text": "good", "task": None}, "the task in 'task': got null, expected a string"),
    ({"text": "good"}, "no 'task', expected it in every row"),
    ({"text": " ", "task": "task-0"}, "the text in 'text': got ' '"),
    ({"text": "good", "text_b": 3, "task": "task-0"}, "the text in 'text_b': got the int 3"),
    ({"text": "good", "text_b": "bad", "task": "task-0"}, "got two texts, expected one text, as in training"),
    ({"text": "good", "task": "task-6"}, "got one text, expected two texts, as in training"),
    ({"text": "good " * 90, "task": "task-0"}, "got 92 tokens, expected at most"),
]


@pytest.mark.parametrize(("bad", "said"), BAD, ids=lambda given: None)
def test_a_bad_row_ends_the_output_before_it(
    predict: Callable[..., Ran], home: Path, saved: Any, bad: dict[str, Any], said: str
) -> None:
    (home / "adapters" / ".hidden").mkdir()
    good = [{"text": text, "task": f"task-{i}"} for i, text in enumerate(TEXTS[:3])]
    write(home / "rows.jsonl", [*good, bad, *good])
    argv = ["rows.jsonl", "--too_long", "error"]
    code, out, err = predict(*argv)
    assert code == 2
    assert_answers(out, good, saved[1])
    assert err.startswith("ptuning: error: rows.jsonl, line 4")
    assert said in err
    assert err.count("\n") == 1
    assert "--data.bad_rows skip" in err
    assert predict(*argv, "--output", "found.jsonl")[0] == 2
    assert not (home / "found.jsonl").exists()


def test_bad_rows_can_be_left_out(predict: Callable[..., Ran], home: Path, saved: Any) -> None:
    good = [{"text": TEXTS[i % 5], "task": f"task-{i % 6}"} for i in range(len(BAD))]
    write(home / "rows.jsonl", [row for i, (bad, _) in enumerate(BAD) for row in (bad, good[i])])
    argv = ["--too_long", "error", "--bad_rows", "skip", "--window", "5"]
    code, out, err = predict("rows.jsonl", *argv)
    assert code == 0
    answers = objects(out)
    assert [each["row"] for each in answers] == list(range(2, 2 * len(BAD) + 1, 2))
    assert [each["task"] for each in answers] == [row["task"] for row in good]
    assert err.startswith(
        f"note: rows.jsonl: left out {len(BAD)} of {2 * len(BAD)} rows that cannot be used: "
    )
    assert err.count("\n") == 1
    for said in ("line 1 (the task 'task_0')", "line 19 (two texts)", "line 23 (92 tokens)"):
        assert said in err
    write(home / "bad.jsonl", [BAD[0][0]] * 3)
    code, out, err = predict("bad.jsonl", *argv)
    assert (code, out) == (0, "")
    assert err.startswith("warning: bad.jsonl: left out 3 of 3 rows")


def test_near_names_are_suggested(predict: Callable[..., Ran]) -> None:
    code, _, err = predict(stdin=b'{"text": "good", "task": "Task-3"}\n')
    assert code == 2
    assert "did you mean 'task-3'?" in err


def test_rows_that_are_left_out_cost_no_more_hints_than_are_shown(
    predict: Callable[..., Ran], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("ptuning.cli.predict_tasks.one_typo_away", lambda name, known: asked.append(name))
    write(home / "rows.jsonl", [{"text": "good", "task": f"nothing-{i}"} for i in range(200)])
    code, _, err = predict("rows.jsonl", "--bad_rows", "skip")
    assert code == 0
    assert "left out 200 of 200 rows" in err
    assert len(asked) == 20


def test_an_adapter_on_another_backbone_is_refused_by_name(
    predict: Callable[..., Ran], home: Path, saved: Any, tiny_folder: Path
) -> None:
    from tiny import tiny

    shutil.copytree(tiny_folder, home / "other")
    model = tiny("bert", num_labels=2, vocab_size=48, pad_token_id=0, seed=1)
    model.save_pretrained(home / "other")
    PTuningModel.from_backbone(str(home / "other"), num_labels=2).save_pretrained(
        home / "adapters" / "strange"
    )
    rows = [{"text": "good", "task": "task-0"}, {"text": "good", "task": "strange"}]
    write(home / "rows.jsonl", rows)
    for more in ([], ["--bad_rows", "skip"]):  # the adapter is wrong, not the row
        code, out, err = predict("rows.jsonl", *more)
        assert code == 2
        assert_answers(out, rows[:1], saved[1])
        assert err.startswith(
            "ptuning: error: the adapter 'strange' in adapters: this adapter was trained on "
        )
        assert "the first adapter that was loaded is 'task-0'" in err
        assert err.count("\n") == 1
    code, out, err = predict("rows.jsonl", "--backbone", str(home / "other"))
    assert (code, out) == (2, "")
    assert "the adapter 'task-0' in adapters: " in err


def test_a_damaged_adapter_is_refused(predict: Callable[..., Ran], home: Path) -> None:
    (home / "adapters" / "task-1" / "ptuning.json").write_text("{}")
    code, out, err = predict(stdin=b'{"text": "good", "task": "task-1"}\n')
    assert (code, out) == (2, "")
    assert "task-1" in err
    assert err.count("\n") == 1


def test_logits_that_are_not_finite_end_it(
    predict: Callable[..., Ran], home: Path, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptuning.model import mixed

    real = mixed.mixed_logits
    monkeypatch.setattr(mixed, "mixed_logits", lambda *given: [each * torch.nan for each in real(*given)])
    code, out, err = predict("--bad_rows", "skip", stdin=b'{"text": "good", "task": "task-1"}\n')
    assert (code, out) == (1, "")
    assert "the logits of the task 'task-1' are not finite" in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["predict", "--adapters", "adapters", "one.csv", "two.csv"], "unknown option two.csv"),
        (["predict", "--adapters", "nosuch", "x.csv"], "nosuch cannot be read: No such file or directory"),
        (["predict", "--adapters", "empty", "x.csv"], "empty has no adapters"),
        (["predict", "--adapters", "adapters/task-0", "x.csv"], "adapters/task-0 is itself an adapter"),
        (
            ["predict", "--adapters", "adapters", "x.csv", "--revision", "main"],
            "--revision is for an adapter",
        ),
        (["predict", "--adapters", "adapters", "x.csv", "--memory_limit", "0"], "--memory_limit: got 0"),
        (["predict", "--adapters", "adapters", "x.csv", "--memory_limit", "nan"], "--memory_limit: got nan"),
        (["predict", "adapters/task-0", "x.csv", "--packed_memory", "-1"], "--packed_memory: got -1.0"),
        (["predict", "--adapters", "adapters", "x.csv", "--packed_memory", "inf"], "_memory: got inf"),
        (["predict", "--adapters", "adapters", "x.csv"], "x.csv: no column 'task' for task_column"),
        (["predict", "--adapters", "adapters", "x.csv", "--task_column", "txt"], "no column 'txt'"),
        (["predict", "--adapters", "adapters", "nosuch.csv"], "nosuch.csv does not exist"),
        (
            ["predict", "adapters/task-0", "x.csv", "--task_column", "task"],
            "--task_column is for rows of many",
        ),
        (
            ["predict", "adapters/task-0", "x.csv", "--memory_limit", "1"],
            "--memory_limit is for rows of many",
        ),
        (["predict"], "the following arguments are required: adapter"),
    ],
)
def test_wrong_options(home: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    (home / "empty").mkdir()
    (home / "x.csv").write_text("text,label\ngood,1\n")
    assert main(argv) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert said in found.err
    assert found.err.count("\n") == 1


def test_a_slow_producer_is_answered_row_by_row(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends its next row when it has got the answer to the one before: otherwise this test hangs."""
    reading, sending = os.pipe()
    answered = threading.Semaphore(0)
    seen: list[str] = []

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            if text.strip():
                seen.append(json.loads(text)["task"])
                answered.release()
            return super().write(text)

    def produce() -> None:
        for i in range(4):
            os.write(sending, json.dumps({"text": TEXTS[i], "task": f"task-{i}"}).encode() + b"\n")
            os.write(sending, json.dumps({"text": TEXTS[i], "task": "nosuch"}).encode() + b"\n")
            if not answered.acquire(timeout=30):
                break
        os.close(sending)

    monkeypatch.setattr(sys, "stdin", os.fdopen(reading, "r", closefd=False))
    monkeypatch.setattr(sys, "stdout", Out())
    producer = threading.Thread(target=produce)
    producer.start()
    code = main(["predict", "--adapters", "adapters", "--device", "cpu", "--bad_rows", "skip"])
    producer.join(30)
    os.close(reading)
    assert (code, seen) == (0, [f"task-{i}" for i in range(4)])
    assert not producer.is_alive()
    assert "left out 4 of 8 rows" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["adapters/task-1"], ["--adapters", "adapters"]])
def test_the_memory_of_packed_weights_is_an_option(
    home: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    from ptuning.model.backbone import Backbone

    seen: set[float] = set()
    usual = Backbone.__dict__["engine"]

    def noted(self: Backbone, engine: Any) -> None:
        seen.add(engine.packed_memory)
        usual.fset(self, engine)

    monkeypatch.setattr(Backbone, "engine", property(usual.fget, noted))
    (home / "x.csv").write_text("text,task\ngood,task-1\n")
    assert main(["predict", *argv, "x.csv", "--packed_memory", "0.25", "--output", "out.jsonl"]) == 0
    assert 0.25 in seen
