"""``ptuning evaluate``, ``predict``, ``inspect`` and ``check-data`` on adapters that were just trained."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import sentiment
from ptuning import Predictor, PTuningModel, adapters
from ptuning.cli import main
from warm import Programs

Ran = tuple[int, str, str]

ROWS = sentiment(48)
PAIRS = [{**row, "text_b": "film"} for row in ROWS]
KINDS: dict[str, list[dict[str, Any]]] = {
    "single": ROWS,
    "pair": PAIRS,
    "number": [{**row, "label": 2.5 if row["label"] == "positive" else 0.0} for row in ROWS],
    "many": [{"text": row["text"], "labels": [row["label"], "ж"][: 1 + i % 2]} for i, row in enumerate(ROWS)],
    "int": [{**row, "label": int(row["label"] == "positive")} for row in ROWS],
}


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of each kind (``single``) and what it was trained on (``single.jsonl``)."""
    home = tmp_path_factory.mktemp("trained")
    for kind, rows in KINDS.items():
        write(home / f"{kind}.jsonl", rows)
        argv = ["--backbone", str(tiny_folder), "--precision", "fp32", "--device", "cpu", "--fit.epochs", "3"]
        argv += ["--report", "false"]
        argv += [
            "--prompt.num_virtual_tokens",
            "4",
            "--fit.batch_size",
            "8",
            "--fit.head_rate",
            "0.03",
            "--output",
            str(home / kind),
        ]
        assert main(["train", str(home / f"{kind}.jsonl"), *argv]) == 0
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of all of them."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ptuning(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Run a command, with ``stdin``; predictions and evaluations in fp32 on the CPU."""

    def run(command: str, *argv: str, stdin: bytes | io.RawIOBase = b"") -> Ran:
        raw = io.BytesIO(stdin) if isinstance(stdin, bytes) else io.BufferedReader(stdin)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=raw))
        held = ["--precision", "fp32", "--device", "cpu"] if command in ("predict", "evaluate") else []
        capsys.readouterr()
        code = main([command, *argv, *held])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.fixture
def refused(ptuning: Callable[..., Ran], home: Path) -> Callable[..., str]:
    """Run what cannot work: one line on standard error, nothing else, nothing written; the line."""

    def run(*argv: str, stdin: bytes = b"good film\n", code: int = 2) -> str:
        before = sorted(home.rglob("*"))
        found, out, err = ptuning(*argv, stdin=stdin)
        assert (found, out) == (code, "")
        assert err.startswith("ptuning: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert sorted(home.rglob("*")) == before
        return err.removeprefix("ptuning: error: ").strip()

    return run


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_what_was_detected_is_said_by_every_command(
    ptuning: Callable[..., Ran], home: Path, tiny_folder: Path
) -> None:
    text = "text;label\r\n" + "".join(f"{row['text']} – näiv;{row['label']}\r\n" for row in ROWS)
    Path("excel.csv").write_bytes(text.encode("cp1252"))
    said = ("excel.csv: not UTF-8, read as cp1252", "excel.csv: separated by semicolons (';')")
    small = ["--backbone", str(tiny_folder)]
    commands: list[list[str]] = [
        ["evaluate", "single", "excel.csv"],
        ["predict", "single", "--input", "excel.csv"],
        ["check-data", "excel.csv", *small],
        ["train", "excel.csv", *small, "--output", "new", "--fit.epochs", "1", "--device", "cpu"],
    ]
    for argv in commands:
        code, out, err = ptuning(*argv)
        where, elsewhere = (out, err) if argv[0] == "check-data" else (err, out)  # its report has them
        assert (code, [part for part in said if part not in where]) == (0, [])
        assert "excel.csv: " not in elsewhere
    given = [
        "--data.separator",
        ";",
        "--data.encoding",
        "cp1252",
        "--data.header",
        "first",
        "--data.quoting",
        "csv",
    ]
    for argv in commands:
        code, out, err = ptuning(*argv, *given)
        assert (code, [part for part in said if part in out + err]) == (0, [])
    code, out, _ = ptuning("predict", "single", "--input_format", "csv", stdin=text.encode("cp1252"))
    assert (code, len(objects(out))) == (0, len(ROWS))


def test_what_was_detected_is_said_beside_an_error(refused: Callable[..., str]) -> None:
    Path("a.csv").write_text(
        "".join(
            f"{n};so the {row['text']} it was;and the {row['text']} again\n" for n, row in enumerate(ROWS)
        )
    )
    message = refused("evaluate", "single", "a.csv")
    assert "no header: the first row" in message
    assert "separated by semicolons" in message


# ------------------------------------------------------------------------------------------- evaluate


def test_evaluate_prints_a_table_beside_the_baseline(ptuning: Callable[..., Ran]) -> None:
    code, out, err = ptuning("evaluate", "single", "single.jsonl")
    assert (code, err) == (0, "")
    rule = adapters.load(Path("single")).extra["baseline"][
        "rule"
    ]  # the training rows' majority, not these rows'
    assert f"baseline: {rule}" in out
    assert "48 rows" in out
    for metric in ("loss", "accuracy", "f1", "matthews", "auc"):
        assert f"│ {metric} " in out


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_as_json(ptuning: Callable[..., Ran], kind: str) -> None:
    code, out, err = ptuning("evaluate", kind, f"{kind}.jsonl", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["rows"] == 48
    assert found["metrics"].keys() == found["baseline"].keys()
    headline = {"number": "pearson", "many": "f1_micro"}.get(kind, "accuracy")
    assert 0 <= found["metrics"][headline] <= 1


def test_evaluate_agrees_with_predict(ptuning: Callable[..., Ran]) -> None:
    found = json.loads(ptuning("evaluate", "single", "single.jsonl", "--json")[1])
    predicted = objects(ptuning("predict", "single", "--input", "single.jsonl")[1])
    right = sum(one["label"] == row["label"] for one, row in zip(predicted, ROWS, strict=True))
    assert found["metrics"]["accuracy"] == pytest.approx(right / 48)


def test_evaluate_one_row_of_a_regression(ptuning: Callable[..., Ran], home: Path) -> None:
    """A correlation of one row has no value; that is no error, and no NaN in JSON."""
    write(home / "one.jsonl", KINDS["number"][:1])
    code, out, _ = ptuning("evaluate", "number", "one.jsonl", "--json")
    assert code == 0
    assert "NaN" not in out
    assert ptuning("evaluate", "number", "one.jsonl")[0] == 0


def test_evaluate_refuses_what_it_cannot_measure(refused: Callable[..., str], home: Path) -> None:
    write(home / "more.jsonl", [*ROWS, {"text": "so so", "label": "mixed"}])
    said = refused("evaluate", "single", "more.jsonl")
    assert said.startswith(
        "more.jsonl, line 49: the label 'mixed' does not occur in the training rows, expected one of "
    )
    assert refused("evaluate", "int", "single.jsonl").startswith(
        "single.jsonl, line 1: the label 'negative' does not occur"
    )
    (home / "text.csv").write_text("text,label\ngood,1\n")
    assert "'1' does not occur in the training rows" in refused("evaluate", "int", "text.csv")
    (home / "bare.csv").write_text("text\ngood\n")
    assert "cannot tell which column is the label" in refused("evaluate", "single", "bare.csv")
    assert "did you mean 'label'?" in refused("evaluate", "single", "single.jsonl", "--label", "lable")
    assert "expected two texts per row, as in training" in refused("evaluate", "pair", "single.jsonl")
    assert "expected one text per row, as in training" in refused("evaluate", "single", "pair.jsonl")
    write(home / "long.jsonl", [{"text": "film " * 90, "label": "positive"}])
    assert "long.jsonl, line 1: got 92 tokens" in refused(
        "evaluate", "single", "long.jsonl", "--too_long", "error"
    )
    assert "arguments are required: file" in refused("evaluate", "single")


# -------------------------------------------------------------------------------------------- predict


def expected(home: Path, kind: str) -> list[Any]:
    """What the library says of the same rows."""
    model = PTuningModel.from_pretrained(home / kind, dtype=torch.float32)
    asked: list[Any] = [
        (row["text"], row["text_b"]) if kind == "pair" else row["text"] for row in KINDS[kind]
    ]
    return Predictor(model=model)(asked)


@pytest.mark.parametrize("kind", KINDS)
def test_predict_says_what_the_library_says(ptuning: Callable[..., Ran], home: Path, kind: str) -> None:
    code, out, err = ptuning("predict", kind, "--input", f"{kind}.jsonl", "--window", "3")
    assert (code, err) == (0, "")
    found = objects(out)
    assert [each["row"] for each in found] == list(range(1, 49))  # the source's order
    for one, other in zip(found, expected(home, kind), strict=True):
        if kind == "number":
            assert one == {"row": other.row, "value": pytest.approx(other.label, abs=1e-4)}
            continue
        assert one["label"] == other.to_dict()["label"]
        assert type(one["label"]) is type(other.to_dict()["label"])
        assert one["probabilities"] == pytest.approx(other.to_dict()["probabilities"], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_predict_as_csv(ptuning: Callable[..., Ran], kind: str) -> None:
    plain = objects(ptuning("predict", kind, "--input", f"{kind}.jsonl")[1])
    code, out, err = ptuning("predict", kind, "--input", f"{kind}.jsonl", "--format", "csv")
    assert (code, err) == (0, "")
    header, *found = list(csv.reader(io.StringIO(out)))
    if kind == "number":
        assert header == ["row", "value"]
        assert [float(value) for _, value in found] == [each["value"] for each in plain]
        return
    assert header == ["row", "label", *(f"p({label})" for label in plain[0]["probabilities"])]
    for cells, each in zip(found, plain, strict=True):
        label = "|".join(each["label"]) if kind == "many" else str(each["label"])
        assert cells[:2] == [str(each["row"]), label]
        assert [float(cell) for cell in cells[2:]] == list(each["probabilities"].values())


def test_every_input_format_gives_the_same_answers(ptuning: Callable[..., Ran], home: Path) -> None:
    import gzip

    import pyarrow
    from pyarrow import parquet

    texts = [row["text"] for row in ROWS]
    (home / "x.txt").write_text("".join(f"{text}\n" for text in texts))
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t")):
        with (home / name).open("w", newline="") as stream:
            csv.writer(stream, delimiter=delimiter).writerows(
                [["id", "text"], *([i, t] for i, t in enumerate(texts))]
            )
    parquet.write_table(pyarrow.table({"text": texts}), home / "x.parquet")
    (home / "x.csv.gz").write_bytes(gzip.compress((home / "x.csv").read_bytes()))

    def labels(*argv: str, stdin: bytes = b"") -> list[str]:
        code, out, err = ptuning("predict", "single", *argv, stdin=stdin)
        assert (code, err) == (0, "")
        return [each["label"] for each in objects(out)]

    plain = labels("--input", "single.jsonl")
    assert set(plain) == {"negative", "positive"}
    for name in ("x.txt", "x.csv", "x.tsv", "x.parquet", "x.csv.gz"):
        assert labels("--input", name) == plain, name
    assert labels(stdin=(home / "x.txt").read_bytes()) == plain  # a text a line, unless said otherwise
    for name in ("csv", "tsv", "jsonl"):
        file = home / ("single.jsonl" if name == "jsonl" else f"x.{name}")
        assert labels("--input", "-", "--input_format", name, stdin=file.read_bytes()) == plain, name
    shutil.copy(home / "x.csv", home / "renamed.data")
    assert labels("--input", "renamed.data", "--input_format", "csv") == plain


def test_columns_can_be_named(ptuning: Callable[..., Ran], home: Path) -> None:
    write(home / "x.jsonl", [{"a": row["text"], "b": row["text_b"]} for row in PAIRS])
    named = ptuning("predict", "pair", "--input", "x.jsonl", "--text", "a", "--text_b", "b")
    assert named == ptuning("predict", "pair", "--input", "pair.jsonl")
    one = ptuning("predict", "single", "--input", "pair.jsonl", "--text", "text")
    assert one == ptuning("predict", "single", "--input", "single.jsonl")


def test_output_goes_to_a_file(ptuning: Callable[..., Ran], home: Path) -> None:
    plain = ptuning("predict", "many", "--input", "many.jsonl")[1]
    assert "ж" in plain
    assert ptuning("predict", "many", "--input", "many.jsonl", "--output", "found.jsonl") == (0, "", "")
    assert (home / "found.jsonl").read_text(encoding="utf-8") == plain
    assert [file.name for file in home.iterdir() if file.name.startswith(".")] == []
    (home / "plain").write_text("")
    assert (home / "found.jsonl").stat().st_mode == (home / "plain").stat().st_mode


def test_an_output_file_is_replaced_whole_and_keeps_its_mode(ptuning: Callable[..., Ran], home: Path) -> None:
    file, link = home / "found.jsonl", home / "link.jsonl"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    assert ptuning("predict", "single", "--output", "link.jsonl", stdin=b"good\n")[0] == 0
    assert link.is_symlink()
    assert objects(file.read_text())[0]["row"] == 1
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_written_to_and_not_replaced(ptuning: Callable[..., Ran], home: Path) -> None:
    """What would happen to /dev/null otherwise, under root, does not bear thinking about."""
    pipe, read = home / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert ptuning("predict", "single", "--output", "pipe", stdin=b"good\nbad\n")[0] == 0
    reader.join(10)
    assert len(objects(read[0])) == 2
    assert pipe.is_fifo()


class Trickle(io.RawIOBase):
    """Standard input that gives a line at a time and counts them."""

    def __init__(self, count: int) -> None:
        self.left, self.taken = count, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.taken == self.left:
            return 0
        self.taken += 1
        line = b"good film\n"
        buffer[: len(line)] = line
        return len(line)


def test_rows_stream_through_a_window(ptuning: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a row's answer is written, at most the rest of its window has been taken from the source."""
    source, seen = Trickle(20), []

    class Sink(io.StringIO):
        def write(self, text: str) -> int:
            if text.strip():
                seen.append(source.taken)
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Sink())
    assert ptuning("predict", "single", "--window", "3", stdin=source)[0] == 0
    assert seen == [min(3 * (1 + i // 3), 20) for i in range(20)]


def test_answers_before_a_bad_row_are_given(ptuning: Callable[..., Ran]) -> None:
    code, out, err = ptuning("predict", "single", "--window", "2", stdin=b"good\nbad\nfilm\n \n")
    assert code == 2
    assert [each["row"] for each in objects(out)] == [1, 2, 3]
    assert err.startswith("ptuning: error: standard input, line 4, the text in 'text': got '")
    assert err.count("\n") == 1


def test_a_bad_row_leaves_the_output_file_as_it_was(refused: Callable[..., str], home: Path) -> None:
    (home / "found.jsonl").write_text("old")
    refused("predict", "single", "--window", "1", "--output", "found.jsonl", stdin=b"good\n\n")
    assert (home / "found.jsonl").read_text() == "old"


@pytest.mark.parametrize(
    ("stdin", "argv", "said"),
    [
        (b"", [], "standard input: no rows, expected at least one"),
        (b"\n", [], "standard input, line 1, the text in 'text': got ''"),
        (b"\x80\x00\xff\xfe rubbish", [], "standard input, line 1: byte 0x80 at character 1 is not UTF-8"),
        (b"\x80\x00\xff\xfe rubbish", ["--input_format", "csv"], "standard input, line 1: byte 0x80"),
        (b"\x00\x01\x02\x03\n", ["--input_format", "jsonl"], "standard input, line 1: not a JSON object"),
        (b"text\n", ["--input_format", "csv"], "standard input: no rows"),
        (b"foo,bar\n1,2\n", ["--input_format", "csv"], "standard input: cannot tell which column is"),
        (b"text\nx\n", ["--input_format", "csv", "--text", "txet"], "no column 'txet' for text"),
        (b"x", ["--input_format", "parquet"], "standard input cannot be read as parquet"),
        (b'{"text": null}\n', ["--input_format", "jsonl"], "standard input, line 1, the text in"),
        (b"x", ["--input_format", "xml"], "--input_format: invalid choice: 'xml'"),
        (b"x", ["--input", "nosuch.csv"], "nosuch.csv does not exist"),
        (b"x", ["--input", "single"], "single is a folder, expected a file"),
        (b"x", ["--format", "xml"], "--format: invalid choice: 'xml'"),
        (b"x", ["--batch_size", "many"], "--batch_size: got 'many', expected int"),
        (b"x", ["--batch_size", "0"], "--batch_size: got 0, expected at least 1"),
        (b"x", ["--window", "-3"], "--window: got -3, expected at least 1"),
        (b"x", ["--windwo", "3"], "unknown option windwo; did you mean --window?; see: "),
        (b"x", ["more", "evenmore"], "unknown option evenmore"),
        (b"x", ["--output", "int"], "--output: got the folder 'int', expected a file"),
        (b"x", ["--output", ""], "--output: got the folder '', expected a file"),
        (b"film " * 90, ["--too_long", "error"], "standard input, line 1: got 92 tokens, expected at most "),
    ],
)  # fmt: skip
def test_predict_refuses_in_one_line(
    refused: Callable[..., str], stdin: bytes, argv: list[str], said: str
) -> None:
    assert said in refused("predict", "single", *argv, stdin=stdin)


def test_pairs_and_single_texts_are_not_mixed_up(refused: Callable[..., str]) -> None:
    assert "expected two texts per row, as in training" in refused("predict", "pair")
    assert "expected one text per row, as in training" in refused(
        "predict", "single", "--input", "pair.jsonl"
    )


def test_a_full_disk_leaves_nothing_half_written(
    refused: Callable[..., str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (home / "found.jsonl").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    said = refused("predict", "single", "--output", "found.jsonl", code=1)
    assert said.startswith("--output found.jsonl: No space left on device; nothing was written")
    assert (home / "found.jsonl").read_text() == "old"


def test_places_that_cannot_be_written_to(
    refused: Callable[..., str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused("predict", "single", "--output", "nosuch/found.jsonl")
    assert said.startswith(
        f"--output nosuch/found.jsonl: got the folder {home.resolve() / 'nosuch'}, which does"
    )
    assert said.endswith("; make the folder first, or choose another file")
    assert not (home / "nosuch").exists()

    def forbidden(source: Any, target: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr(os, "replace", forbidden)  # root, as whom tests may run, may write anywhere
    said = refused("predict", "single", "--output", "found.jsonl", code=1)
    assert said.startswith("--output found.jsonl: Permission denied")


# ------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("command", ["predict", "evaluate", "inspect"])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "ptuning.json"])
@pytest.mark.parametrize("how", ["altered", "truncated", "missing"])
def test_a_damaged_adapter_is_refused(
    refused: Callable[..., str], home: Path, command: str, file: str, how: str
) -> None:
    place = home / "single" / file
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "missing":
        place.unlink()
    else:
        place.write_bytes(content if how == "altered" else content[: len(content) // 2])
    said = refused(command, "single", *(["single.jsonl"] if command == "evaluate" else []))
    assert file in said
    assert ("altered or cut short" in said) == (how != "missing")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuch", "no adapter 'nosuch': there is no such folder"),
        ("owner/nosuch", "no adapter 'owner/nosuch': .*unset HF_HUB_OFFLINE"),
        ("./nosuch", "no adapter at .*nosuch: there is no such folder"),
        ("empty", "no adapter at empty: it has no ptuning.json, expected a folder with adapter_config.json"),
        ("single.jsonl", "no adapter at single.jsonl: it is a file"),
        ("no such!", "it is not a Hub id of the form 'owner/name'"),
    ],
)
def test_what_is_no_adapter(refused: Callable[..., str], home: Path, name: str, said: str) -> None:
    (home / "empty").mkdir()
    assert re.search(said, refused("predict", name))
    assert re.search(said, refused("inspect", name))


@pytest.fixture
def others(home: Path, tiny_folder: Path) -> Iterator[dict[str, str]]:
    """Backbones that are not the one: other weights, another width, another architecture."""
    from tiny import tiny

    made = {"weights": ("bert", {}), "width": ("bert", {"hidden_size": 16}), "architecture": ("roberta", {})}
    for name, (kind, options) in made.items():
        folder = home / f"other-{name}"
        shutil.copytree(tiny_folder, folder)
        model = tiny(kind, num_labels=2, vocab_size=48, pad_token_id=0, **options)
        with torch.no_grad():
            next(iter(model.base_model.encoder.parameters())).mul_(1.5)
        model.save_pretrained(folder)
    return {name: f"other-{name}" for name in made}


def test_an_adapter_on_another_backbone_is_refused(
    ptuning: Callable[..., Ran], refused: Callable[..., str], others: dict[str, str]
) -> None:
    reasons = {"weights": "other weights", "width": "hidden_size 32", "architecture": "model_type bert"}
    for name, reason in reasons.items():
        for command in (["predict"], ["inspect", "--json"]):
            said = refused(command[0], "single", *command[1:], "--backbone", others[name])
            assert said.startswith("this adapter was trained on ")
            assert reason in said
        code, out, err = ptuning("inspect", "single", "--backbone", others[name])
        assert code == 2
        assert "fits" not in out
        assert reason in err
    assert "could not be loaded" in refused("predict", "single", "--backbone", "nosuch/model")


def test_a_copy_of_the_backbone_serves(ptuning: Callable[..., Ran], home: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, home / "moved")
    plain = ptuning("predict", "single", stdin=b"good\n")
    assert ptuning("predict", "single", "--backbone", "moved", stdin=b"good\n") == plain
    code, out, err = ptuning("inspect", "single", "--backbone", "moved")
    assert (code, err) == (0, "")
    assert out.endswith("fits moved\n")


def test_a_backbone_that_has_gone_is_said_so(
    refused: Callable[..., str], home: Path, tiny_folder: Path
) -> None:
    record = home / "single" / "ptuning.json"
    assert str(tiny_folder) in record.read_text()
    gone = tiny_folder.with_name("gone")
    tiny_folder.rename(gone)
    try:
        said = refused("predict", "single")
    finally:
        gone.rename(tiny_folder)
    assert said.startswith(f"backbone {str(tiny_folder)!r} ")


@pytest.mark.parametrize("kind", KINDS)
def test_inspect(ptuning: Callable[..., Ran], kind: str, tiny_folder: Path) -> None:
    code, out, err = ptuning("inspect", kind)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert ("pairs" if kind == "pair" else "single texts") in text
    labels = {"number": "one number (trained on ", "many": "negative, positive, ж", "int": "0, 1"}
    assert labels.get(kind, "negative, positive") in text
    assert "deep, shape [3, 2, 4, 32], from layer 0" in text
    assert "encoder embedding" in text
    assert "baseline: " in text


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_as_json(ptuning: Callable[..., Ran], kind: str, tiny_folder: Path) -> None:
    code, out, err = ptuning("inspect", kind, "--json", "--backbone", str(tiny_folder))
    assert (code, err) == (0, "")
    found = json.loads(out)  # all of standard output is JSON, the verdict included
    assert found["fits"] == str(tiny_folder)
    assert found["parameters"] == 768 + 33 * max(1, len(found["task"]["labels"]))
    assert found["prompt"]["depth"] == "deep"
    assert found["backbone"]["name"] == str(tiny_folder)
    assert set(found["metrics"]) >= {"validation", "baseline", "baseline_rule"}
    assert "fits" not in json.loads(ptuning("inspect", kind, "--json")[1])


def test_labels_stand_in_tables_as_they_are(
    ptuning: Callable[..., Ran], home: Path, tiny_folder: Path
) -> None:
    """What brackets and colons mean to the library that draws the tables is nothing to a label."""
    names = {"positive": "[/spam]", "negative": ":smile: [red]"}
    write(home / "odd.jsonl", [{**row, "label": names[str(row["label"])]} for row in ROWS])
    given = ["--backbone", str(tiny_folder), "--fit.epochs", "1", "--output", "odd"]
    trained = ptuning("train", "odd.jsonl", *given)
    used = [ptuning("evaluate", "odd", "odd.jsonl"), ptuning("inspect", "odd")]
    assert [each[0] for each in (trained, *used)] == [0, 0, 0]
    for text in (trained[2], *(each[1] for each in used)):
        assert re.search(r"always '(\[/spam\]|:smile: \[red\])'", " ".join(text.split()))
    assert ":smile: [red], [/spam]" in " ".join(used[1][1].split())


# ----------------------------------------------------------------------------------------- check-data


def test_check_data_says_what_would_be_trained_on(ptuning: Callable[..., Ran], tiny_folder: Path) -> None:
    code, out, err = ptuning("check-data", "single.jsonl", "--backbone", str(tiny_folder))
    assert (code, err) == (0, "")
    assert "task: single_label_classification, one text per row" in out
    assert "'negative': 24 (50.0%)" in out
    assert "0 over the limit of 44" in out
    code, out, _ = ptuning("check-data", "single.jsonl", "--backbone", str(tiny_folder), "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True


@pytest.mark.parametrize(
    "bad", [{"text": " ", "label": "positive"}, {"text": "x", "label": None}, {"text": "x", "label": 3}]
)
def test_check_data_with_errors_is_exit_code_2(
    ptuning: Callable[..., Ran], home: Path, tiny_folder: Path, bad: dict[str, Any]
) -> None:
    write(home / "bad.jsonl", [*ROWS, bad])
    for form in ([], ["--json"]):
        code, out, err = ptuning("check-data", "bad.jsonl", "--backbone", str(tiny_folder), *form)
        assert code == 2
        assert err == "ptuning: error: the data cannot be used for training; correct the errors above\n"
        assert ("49" in out) or ("48" in out)
        assert not form or json.loads(out)["ok"] is False


def test_check_data_looks_at_all_splits(ptuning: Callable[..., Ran], home: Path, tiny_folder: Path) -> None:
    write(home / "more.jsonl", [{"text": "so so", "label": "mixed"}])
    argv = ["check-data", "single.jsonl", "--backbone", str(tiny_folder)]
    code, out, _ = ptuning(*argv, "--test", "more.jsonl")
    assert code == 2
    assert "error: test: more.jsonl, line 1: the label 'mixed' does not occur in the training rows" in out
    code, out, _ = ptuning(*argv, "--validation", "single.jsonl")
    assert code == 0
    assert "100.0% of the rows have a text that is also in train" in out


def test_check_data_refuses_what_train_refuses(
    refused: Callable[..., str], home: Path, tiny_folder: Path
) -> None:
    held = ["--backbone", str(tiny_folder)]
    said = refused("check-data", "pair.jsonl", "--validation", "single.jsonl", *held)
    assert said.startswith("single.jsonl, text: got only 'text', expected two texts per row")
    assert refused("check-data", "nosuch.csv", *held).startswith("nosuch.csv does not exist")
    (home / "head.csv").write_text("text,label\n")
    assert refused("check-data", "head.csv", *held).startswith("head.csv: no rows")
    assert "did you mean 'label'?" in refused("check-data", "single.jsonl", "--label", "lable", *held)
    assert "could not be loaded" in refused("check-data", "single.jsonl", "--backbone", "nosuch/model")
    said = refused("check-data", "single.jsonl", "--data.validation_fraction", "2", *held)
    assert said == "data.validation_fraction: got 2, expected less than 1"
    said = refused("check-data", "single.jsonl", "--problem_type", "ranking", *held)
    assert said.startswith("data.problem_type: got 'ranking', expected 'auto', 'single_label_classification'")


def test_check_data_takes_the_options_of_train(
    ptuning: Callable[..., Ran], home: Path, tiny_folder: Path
) -> None:
    """By the same names, and what they change it reports."""
    argv = ["check-data", "renamed.jsonl", "--backbone", str(tiny_folder)]
    write(home / "renamed.jsonl", [{"a": row["text"], "b": row["label"], "text": 7} for row in ROWS])
    named = ["--data.text", "a", "--data.label", "b", "--data.validation", "renamed.jsonl"]
    assert ptuning(*argv, *named)[0] == 0
    assert ptuning(*argv, "--text", "a", "--label", "b", "--validation", "renamed.jsonl") == ptuning(
        *argv, *named
    )
    write(home / "long.jsonl", [*ROWS, {"text": "film " * 30, "label": "positive"}])
    argv[1] = "long.jsonl"
    code, out, err = ptuning(*argv, "--data.max_length", "16", "--data.too_long", "error")
    assert code == 2
    assert "16" in out
    assert err.startswith(
        "ptuning: error: data.too_long: got 'error', and there are rows of more than 16 tokens"
    )
    assert "1 of train" in err
    assert ptuning(*argv, "--data.max_length", "16")[0] == 0


def test_check_data_says_where_nothing_can_be_split_off(
    ptuning: Callable[..., Ran], home: Path, tiny_folder: Path
) -> None:
    """As train would: it is asked for one row of validation in ten."""
    argv = ["check-data", "few.jsonl", "--backbone", str(tiny_folder)]
    write(home / "few.jsonl", ROWS[:4])
    code, out, _ = ptuning(*argv)
    assert code == 2
    assert "error: train: few.jsonl: got 0 validation rows, a fraction of 0.1 of 4 rows" in out
    assert ptuning(*argv, "--validation", "single.jsonl")[0] == 0
    write(home / "few.jsonl", [{"text": "the same", "label": i % 2} for i in range(20)])
    code, out, _ = ptuning(*argv)
    assert code == 2
    assert "error: train: few.jsonl: no label is in two rows with different texts" in out


def test_check_data_can_be_told_the_kind_of_task(ptuning: Callable[..., Ran], tiny_folder: Path) -> None:
    argv = ["check-data", "int.jsonl", "--backbone", str(tiny_folder)]
    assert "task: single_label" in ptuning(*argv)[1]
    assert "task: regression" in ptuning(*argv, "--problem_type", "regression")[1]


# ------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no command; expected one of train, evaluate, report, calibrate, predict, serve, inspect, push, "
             "import-peft, export-peft, check-data, cache, demo; see: ptuning --help"),
        (["predcit"], "unknown command 'predcit'; did you mean predict?"),
        (["check_data"], "unknown command 'check_data'; did you mean check-data?"),
        (["zzz"], "unknown command 'zzz'; expected one of train, "),
        (["--verison"], "unknown command '--verison'; expected one of "),
        (["predict"], "the following arguments are required: adapter; see: ptuning predict --help"),
        (["inspect"], "the following arguments are required: adapter; see: ptuning inspect --help"),
        (["evaluate"], "the following arguments are required: adapter, file; see: ptuning evaluate --help"),
        (["check-data"], "the following arguments are required: file; see: ptuning check-data --help"),
        (["push"], "the following arguments are required: folder, repository; see: ptuning push --help"),
        (["import-peft"], "the following arguments are required: adapter, output; see: ptuning import-peft"),
        (["export-peft"], "the following arguments are required: adapter, output; see: ptuning export-peft"),
        (["import_peft"], "unknown command 'import_peft'; did you mean import-peft?"),
        (["demo", "--epochs", "many"], "--epochs: got 'many', expected int; see: ptuning demo --help"),
        (["demo", "--outptu", "x"], "unknown option outptu; did you mean --output?"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    assert main(argv) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(f"ptuning: error: {said}")
    assert found.err.count("\n") == 1


# --------------------------------------------------------------------------- the program, as a process


def test_a_reader_that_goes_away_is_no_news(home: Path, programs: Programs) -> None:
    """``ptuning predict … | head -1``: quiet, and no traceback as Python exits."""
    write(home / "many-rows.jsonl", ROWS * 30)  # more than a pipe holds
    argv = ["-m", "ptuning", "predict", "single", "--input", "many-rows.jsonl", "--device", "cpu"]
    (out, written), (err, said) = os.pipe(), os.pipe()
    done = programs.start(argv, stdout=written, stderr=said)
    os.close(written)
    os.close(said)
    with open(out, encoding="utf-8") as reader:
        assert json.loads(reader.readline())["row"] == 1
    with open(err, "rb") as errors:
        assert errors.read() == b""
    assert done.wait(60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("argv", [["predict", "single", "--input", "single.jsonl"], ["--help"]])
def test_standard_output_on_a_full_disk(home: Path, programs: Programs, argv: list[str]) -> None:
    with open("/dev/full", "wb") as full, (home / "said").open("wb") as said:
        code = programs.start(["-m", "ptuning", *argv], stdout=full, stderr=said).wait()
    assert code == 1
    assert (home / "said").read_text() == "ptuning: error: No space left on device\n"


def test_standard_output_is_utf_8_whatever_the_locale_says(home: Path, programs: Programs) -> None:
    argv = ["-m", "ptuning", "predict", "many", "--input", "many.jsonl", "--device", "cpu"]
    done = programs.run(argv, home, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "ж" in done.stdout.decode("utf-8")
