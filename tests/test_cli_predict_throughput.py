"""``ptuning predict`` says how fast it goes: on standard error, after a while, never among the answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from conftest import sentiment
from ptuning import DeepPrompt, Predictor, PTuningModel, Task
from ptuning.cli import main, throughput
from ptuning.cli.predict import parser
from ptuning.cli.throughput import Throughput
from ptuning.inference.evaluate import BATCH_TOKENS


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(live: bool, terminal: bool, seconds: float, rows: int = 4) -> str:
    """What is said of ``rows`` rows that take ``seconds`` each."""
    clock, told = Clock(), io.StringIO()
    console = Console(file=told, force_terminal=terminal, width=80)
    with Throughput(console, live=live, clock=clock) as found:
        for _ in range(rows):
            clock.now += seconds
            found.one_more()
    return told.getvalue()


def test_a_handful_of_rows_needs_no_words() -> None:
    assert run(live=True, terminal=True, seconds=0.4) == ""
    assert run(live=False, terminal=False, seconds=0.4) == ""


def test_one_line_at_the_end_where_there_is_no_terminal() -> None:
    assert run(live=True, terminal=False, seconds=2.5) == "4 rows, 0 rows/s\n"
    assert run(live=True, terminal=False, seconds=0.004, rows=1725) == "1,725 rows, 250 rows/s\n"
    assert run(live=True, terminal=False, seconds=4, rows=1) == "1 row, 0 rows/s\n"


def test_on_a_terminal_it_is_shown_while_it_goes_on_and_wiped() -> None:
    said = run(live=True, terminal=True, seconds=0.5, rows=8)
    assert "4 rows, 2 rows/s" in said  # after two seconds
    assert "3 rows" not in said
    assert "\x1b[2K" in said  # the line is erased
    assert said.endswith("8 rows, 2 rows/s\n")


def test_not_while_answers_go_to_the_same_terminal() -> None:
    assert run(live=False, terminal=True, seconds=1) == "4 rows, 1 rows/s\n"


def test_waiting_for_a_row_is_no_work() -> None:
    """Someone who types his texts is not told how slowly."""
    clock, told = Clock(), io.StringIO()

    def typed() -> Iterator[int]:
        for number in range(3):
            clock.now += 60
            yield number

    with Throughput(Console(file=told), live=True, clock=clock) as found:
        taken = []
        for row in found.waiting_for(typed()):
            taken.append(row)
            clock.now += 0.25
            found.one_more()
        assert found.seconds == pytest.approx(0.75)
    assert taken == [0, 1, 2]
    assert told.getvalue() == ""


def test_an_error_ends_it_without_a_word() -> None:
    clock, told = Clock(), io.StringIO()
    found = Throughput(Console(file=told), live=True, clock=clock)

    def work() -> None:
        with found:
            clock.now += 10
            found.one_more()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert told.getvalue() == ""


@pytest.fixture
def predict(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """The command on 48 rows; all work counts as long enough to be spoken of, unless ``quiet`` says not."""
    task = Task(problem_type="single_label_classification", labels=("negative", "positive"))
    PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=task).save_pretrained(
        tmp_path / "adapter"
    )

    def run(*argv: str, quiet: float = 0.0) -> tuple[int, str, str]:
        stdin = "".join(f"{row['text']}\n" for row in sentiment(48)).encode()
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        monkeypatch.setattr(throughput, "QUIET", quiet)
        capsys.readouterr()
        code = main(["predict", str(tmp_path / "adapter"), "--device", "cpu", *argv])
        return code, *capsys.readouterr()

    return run


def test_the_command_keeps_it_apart_from_the_answers(
    predict: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, plain, err = predict(quiet=float("inf"))
    assert (code, err) == (0, "")
    code, out, err = predict()
    assert (code, out) == (0, plain)
    assert err.startswith("48 rows, ")
    assert err.endswith(" rows/s\n")
    code, out, err = predict("--output", str(tmp_path / "found.jsonl"))
    assert (code, out) == (0, "")
    assert err.startswith("48 rows, ")
    assert (tmp_path / "found.jsonl").read_text(encoding="utf-8") == plain


def test_both_caps_are_options_and_change_no_answer(predict: Callable[..., tuple[int, str, str]]) -> None:
    plain = predict("--precision", "fp32", quiet=float("inf"))
    for argv in (
        ["--batch_size", "1"],
        ["--batch_tokens", "1"],
        ["--batch_tokens", "20", "--batch_size", "3"],
    ):
        code, out, err = predict("--precision", "fp32", *argv, quiet=float("inf"))
        assert (code, err) == (0, "")
        got, expected = ([json.loads(line) for line in each.splitlines()] for each in (out, plain[1]))
        assert [row["row"] for row in got] == [row["row"] for row in expected]
        for one, other in zip(got, expected, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_the_options_default_is_the_librarys() -> None:
    """It is written out in the parser, which imports no torch."""
    assert parser().parse_args(["adapter"]).batch_tokens == BATCH_TOKENS == Predictor.batch_tokens


@pytest.mark.parametrize("option", ["--batch_size", "--batch_tokens"])
@pytest.mark.parametrize(
    ("value", "said"), [("0", "got 0, expected at least 1"), ("many", "got 'many', expected int")]
)
def test_a_cap_that_is_none_is_refused(
    predict: Callable[..., tuple[int, str, str]], option: str, value: str, said: str
) -> None:
    code, out, err = predict(option, value)
    assert (code, out) == (2, "")
    assert f"{option}: {said}" in err
