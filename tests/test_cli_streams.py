"""``ptuning predict`` as a stream: slow and fast producers, bad rows and long, closed ends, ``--keep``."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import sentiment
from ptuning import DeepPrompt, Predictor, PTuningModel, Task
from ptuning.cli import main
from ptuning.data import Example, stream_examples
from ptuning.errors import DataError
from ptuning.inference import predictor as module
from ptuning.inference import windows
from ptuning.inference.read_ahead import ROWS, read_ahead

Ran = tuple[int, str, str]
SINGLE = Task(problem_type="single_label_classification", labels=("negative", "positive"))


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> PTuningModel:
    return PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=2), task=SINGLE)


@pytest.fixture(scope="module")
def adapter(model: PTuningModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.save_pretrained(tmp_path_factory.mktemp("stream") / "adapter")


@pytest.fixture
def predict(adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``ptuning predict``; ``stdin`` is what a file object has, or an end of a pipe."""

    def run(*argv: str, stdin: bytes | int = b"") -> Ran:
        given = (
            SimpleNamespace(buffer=io.BytesIO(stdin))
            if isinstance(stdin, bytes)
            else os.fdopen(stdin, "r", closefd=False)
        )
        monkeypatch.setattr(sys, "stdin", given)
        capsys.readouterr()
        code = main(["predict", str(adapter), "--precision", "fp32", "--device", "cpu", *argv])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# ------------------------------------------------------------------------------------- slow producers


def test_rows_of_a_slow_producer_are_answered_while_it_is_silent(predict: Callable[..., Ran]) -> None:
    """The producer sends its next rows only when it has got the answers to those before: else it hangs."""
    reading, sending = os.pipe()
    answered = threading.Semaphore(0)
    seen: list[str] = []

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            if text.strip():
                seen.append(text)
                answered.release()
            return super().write(text)

    def produce() -> None:
        for count in (3, 1, 2):
            os.write(sending, b"good film\n" * count)
            for _ in range(count):
                if not answered.acquire(timeout=30):
                    break
        os.close(sending)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Out())
        producer = threading.Thread(target=produce)
        producer.start()
        code, _, err = predict(stdin=reading)
        producer.join(30)
    os.close(reading)
    assert (code, err) == (0, "")
    assert [json.loads(text)["row"] for text in seen] == [1, 2, 3, 4, 5, 6]
    assert not producer.is_alive()


def test_a_fast_producer_is_answered_as_a_file_is(predict: Callable[..., Ran], tmp_path: Path) -> None:
    content = b"".join(f"good film {i % 7} bad\n".encode() for i in range(3 * ROWS + 5))
    (tmp_path / "x.txt").write_bytes(content)
    reading, sending = os.pipe()

    def produce() -> None:
        with os.fdopen(sending, "wb") as stream:
            stream.write(content)

    producer = threading.Thread(target=produce)
    producer.start()
    piped = objects(predict(stdin=reading)[1])
    producer.join(30)
    os.close(reading)
    filed = objects(predict("--input", str(tmp_path / "x.txt"))[1])
    assert [each["row"] for each in piped] == list(range(1, 3 * ROWS + 6))
    assert [each["label"] for each in piped] == [each["label"] for each in filed]


def test_no_thread_is_left_behind_by_a_stream_that_ends_in_an_error(predict: Callable[..., Ran]) -> None:
    reading, sending = os.pipe()
    os.write(sending, b"good\nbad\n \nnever read\n")  # and the producer stays there, silent
    code, out, err = predict(stdin=reading)
    assert code == 2
    assert [each["row"] for each in objects(out)] == [1, 2]
    assert "standard input, line 3, the text in 'text': got ' '" in err
    for thread in threading.enumerate():
        if thread.name == "ptuning-reader":
            thread.join(10)
            assert not thread.is_alive()
    os.close(sending)
    os.close(reading)


def rows_of(count: int) -> Iterator[Example]:
    return (Example(row=i, text=f"good {i}") for i in range(1, count + 1))


def test_arriving_gives_every_row_in_order_then_what_reading_raised() -> None:
    def failing() -> Iterator[Example]:
        yield from rows_of(3 * ROWS)
        raise DataError("line 7: bad")

    assert [each.row for each in read_ahead(rows_of(3 * ROWS)) if each] == list(range(1, 3 * ROWS + 1))
    found: list[int] = []
    with pytest.raises(DataError, match="line 7: bad"):
        found.extend(each.row for each in read_ahead(failing()) if each)
    assert len(found) == 3 * ROWS


def test_arriving_reads_only_so_far_ahead() -> None:
    taken = []

    def counted() -> Iterator[Example]:
        for example in rows_of(10 * ROWS):
            taken.append(example.row)
            yield example

    rows = read_ahead(counted())
    assert next(rows) is not None
    rows.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name == "ptuning-reader":
            thread.join(10)
    assert len(taken) <= 2 * ROWS + 2


# ------------------------------------------------------------------------------- bad and long rows


@pytest.mark.parametrize("window", ["1", "4", "1024"])
@pytest.mark.parametrize(
    ("bad", "argv", "said"),
    [
        (b" \n", [], "standard input, line 6, the text in 'text': got ' '"),
        (b"\xff\n", [], "standard input, line 6: "),
        (b"film " * 90 + b"\n", ["--too_long", "error"], "standard input, line 6: got 92 tokens"),
    ],
    ids=["blank", "not UTF-8", "too long"],
)
def test_the_rows_before_a_bad_one_are_answered(
    predict: Callable[..., Ran], window: str, bad: bytes, argv: list[str], said: str
) -> None:
    code, out, err = predict(*argv, "--window", window, stdin=b"good film\n" * 5 + bad + b"good\n" * 3)
    assert code == 2
    assert [each["row"] for each in objects(out)] == [1, 2, 3, 4, 5]
    assert said in err
    assert err.count("\n") == 1


def test_a_window_is_bounded_by_its_characters_too(
    model: PTuningModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = module.logits_of

    def counting(model: Any, rows: Any, **options: Any) -> Any:
        sizes.append(len(rows))
        return real(model, rows, **options)

    monkeypatch.setattr(module, "logits_of", counting)
    monkeypatch.setattr(windows, "CHARACTERS", 100)
    rows = [Example(row=i, text="good " * (30 if i == 5 else 2)) for i in range(1, 25)]
    assert [each.row for each in Predictor(model=model).stream(rows)] == list(range(1, 25))
    assert sizes == [5, 10, 9]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_huge_text_is_answered_as_its_beginning_is(
    model: PTuningModel, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    """And never goes whole through the tokenizer."""
    from ptuning.data.tokens import LONG, Tokenise

    tokenizer = model.tokenizer
    assert tokenizer is not None
    monkeypatch.setattr(tokenizer, "truncation_side", side)
    words = "good film bad parcel door " * 400_000
    limit = Tokenise.for_model(model).limit
    whole = tokenizer(words[: 20 * LONG], truncation=True, max_length=limit)["input_ids"]
    if side == "left":
        whole = tokenizer(words[-20 * LONG :], truncation=True, max_length=limit)["input_ids"]
    longest = []
    real = type(tokenizer).__call__

    def watched(self: Any, text: Any, pair: Any = None, **options: Any) -> Any:
        longest.append(max(map(len, [text] if isinstance(text, str) else text)))
        return real(self, text, pair, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", watched)
    rows = Tokenise.for_model(model)([Example(row=1, text=words), Example(row=2, text="good")])
    assert rows[0].input_ids == whole
    assert max(longest) <= LONG
    assert Tokenise.for_model(model).lengths([Example(row=1, text=words)])[0] == pytest.approx(
        2_000_002, rel=0.01
    )
    assert max(longest) <= LONG


def test_a_text_whose_beginning_says_little_is_read_further(model: PTuningModel) -> None:
    from ptuning.data.tokens import LARGEST, LONG, Tokenise

    assert model.tokenizer is not None
    text = "good" + " " * (3 * LONG) + "film"
    ids = Tokenise.for_model(model)([Example(row=1, text=text)])[0].input_ids
    assert ids == model.tokenizer("good film")["input_ids"]
    with pytest.raises(
        DataError, match=r"line 1|row 1: 4,194,304 of the 4,194,309 characters of the text make"
    ):
        Tokenise.for_model(model)([Example(row=1, text="good " + " " * LARGEST)])


# ---------------------------------------------------------------------------------------- closed ends


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        ("predict nosuch <&- >&-", 1, "standard output is closed; name a file with --output"),
        ("inspect nosuch >&-", 1, "standard output is closed, but ptuning inspect writes"),
        ("predcit 2>&-", 2, ""),
        ("--version >&-", 0, ""),
    ],
)  # fmt: skip
def test_a_closed_stream_is_one_line(redirected: str, code: int, said: str) -> None:
    command = f"{sys.executable} -m ptuning {redirected}"
    done = subprocess.run(["sh", "-c", command], input="good\n", capture_output=True, text=True, check=False)
    err = "".join(line for line in done.stderr.splitlines(keepends=True) if line.startswith("ptuning: "))
    assert "Traceback" not in done.stderr
    assert done.returncode == code
    assert said in err
    assert err.count("\n") == bool(said)


def test_a_closed_standard_input_is_one_line(
    adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # which is what Python has for it
    assert main(["predict", str(adapter), "--device", "cpu"]) == 2
    said = "ptuning: error: standard input is closed, expected rows in it; name a file\n"
    assert capsys.readouterr().err == said


# ------------------------------------------------------------------------------------------- --keep


def test_keep_carries_columns_through(predict: Callable[..., Ran], tmp_path: Path) -> None:
    rows = [{"id": f"x{i}", "n": i, "more": {"a": [i]}, **row} for i, row in enumerate(sentiment(5))]
    del rows[3]["n"]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = objects(predict("--input", str(file))[1])
    found = objects(predict("--input", str(file), "--keep", "id, n,more,label", "--window", "2")[1])
    for before, after, row in zip(plain, found, rows, strict=True):
        kept = {"id": row["id"], "n": row.get("n"), "more": row["more"], "input.label": row["label"]}
        assert after == {**before, "probabilities": after["probabilities"], **kept}
    everything = objects(predict("--input", str(file), "--keep", "*")[1])
    assert everything[0].keys() == {"row", "label", "probabilities", "id", "n", "more", "text", "input.label"}
    header, first, *_ = csv.reader(
        io.StringIO(predict("--input", str(file), "--keep", "id,more,n", "--format", "csv")[1])
    )
    assert header == ["row", "label", "p(negative)", "p(positive)", "id", "more", "n"]
    assert first[4:] == ["x0", '{"a": [0]}', "0"]


def test_keep_of_what_is_not_there(predict: Callable[..., Ran], tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "good", "id": 1}\n')
    code, out, err = predict("--input", str(file), "--keep", "id,name")
    assert (code, out) == (2, "")
    assert err == f"ptuning: error: {file}: no column 'name' to keep, expected one of 'text', 'id'\n"
    code, out, err = predict("--keep", "id", stdin=b"good\n")
    assert (code, out) == (2, "")
    assert "standard input: no column 'id' to keep, expected one of 'text'" in err


def test_what_json_has_no_word_for_is_kept_as_text(predict: Callable[..., Ran], tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow
    from pyarrow import parquet

    columns = {
        "text": ["good", "bad"],
        "day": [datetime.date(2024, 1, 2), None],
        "price": [decimal.Decimal("1.50"), None],
        "part": [float("nan"), 0.5],
        "raw": [b"\xff", None],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    out = predict("--input", str(tmp_path / "x.parquet"), "--keep", "day,price,part,raw")[1]
    assert "NaN" not in out
    first, second = objects(out)
    assert (first["day"], first["price"], first["part"]) == ("2024-01-02", "1.50", None)
    assert (second["day"], second["part"]) == (None, 0.5)


def test_kept_columns_in_python(model: PTuningModel) -> None:
    rows = [{"text": "good", "id": 7}, {"text": "bad", "id": 8}]
    examples = stream_examples(rows, keep=["id"]).examples
    found = list(Predictor(model=model).stream(examples))
    assert [each.kept for each in found] == [{"id": 7}, {"id": 8}]
    assert Predictor(model=model)("good")[0].kept is None
