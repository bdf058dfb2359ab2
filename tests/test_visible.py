"""What others wrote acts on no terminal and in no spreadsheet, and reads as what it is."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import sentiment
from ptuning import Task, adapters, errors
from ptuning.cli import main
from ptuning.cli.tables import metrics_table, plain_console
from ptuning.visible import cell, json_text, visible
from test_adapters_folder import reseal
from test_adapters_record import an_adapter

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0001]"
)
ODD = "\x1b]0;title\x07\x1b[31mred\x9b31m\x00\u202eabc\u2066\u200b\U000e0001\x7f"

everything = st.text(st.characters() | st.sampled_from(ODD + "\ud800\n\r\t"))


@given(everything)
def test_nothing_unseen_is_left_and_everything_else_is(text: str) -> None:
    shown = visible(text)
    assert not UNSEEN.search(shown)
    assert "\n" not in shown
    assert not UNSEEN.search(visible(text, lines=True))
    assert visible(text, lines=True).count("\n") == text.count("\n")
    plain = "".join(letter for letter in text if letter.isprintable())
    assert plain.replace("\u200d", "") in (plain, visible(plain))


@pytest.mark.parametrize(
    "text", ["жаль", "café", "日本語", "🙂", "می\u200cخواهم", "👩\u200d💻", "a\\x1b", "[spam]"]
)
def test_ordinary_text_stays(text: str) -> None:
    assert visible(text) == text
    assert json_text(text) == f'"{text}"'.replace("\\", "\\\\")


@given(
    st.recursive(
        everything | st.none() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(everything, inner),
    )
)
def test_json_is_the_same_value(value: Any) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert not UNSEEN.search(text)
    assert json.loads(json_text(value, indent=1)) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_nan(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"value": value})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("=1+1", "'=1+1"),
        ("=cmd|'/c calc'!A1", "'=cmd|'/c calc'!A1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("+1+1", "'+1+1"),
        ("-1+1", "'-1+1"),
        ("-", "'-"),
        ("\t=1", "'\t=1"),
        ("\r=1", r"\r=1"),
        ("＝1", "'＝1"),
        ("\x1b=1", r"\x1b=1"),
        ("-0.5", "-0.5"),
        ("+3", "+3"),
        ("-1e-05", "-1e-05"),
        (-0.5, -0.5),
        (3, 3),
        (True, True),
        ("refund", "refund"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_cells_begin_no_formula(value: Any, expected: Any) -> None:
    assert cell(value) == expected


def test_a_message_shows_what_it_quotes() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 9
    for kind in kinds:
        assert str(kind(f"a {ODD}\nb")) == f"a {visible(ODD)}\nb"


def test_the_console_shows_codes(capsys: pytest.CaptureFixture[str]) -> None:
    console = plain_console()
    console.print(f"say {ODD}", soft_wrap=True)
    console.print(metrics_table({f"test{ODD}": {f"f1{ODD}\n": 0.5}}, {}, f"always {ODD}"))
    out = capsys.readouterr().out
    assert not UNSEEN.search(out)
    assert r"say \x1b]0;title\x07\x1b[31mred" in out


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """An adapter whose every word its author has made up, sealed."""
    task = Task(problem_type="single_label_classification", labels=(f"no{ODD}", f"yes\n{ODD}"))
    folder = adapters.save(an_adapter(task=task), tmp_path / "adapter")
    kept = adapters.details(folder)
    reseal(
        folder,
        backbone={**kept["backbone"], "name": f"x/{ODD}", "revision": ODD},
        metrics={"test": {ODD: 1.0}, "baseline": {ODD: 0.5}, "baseline_rule": ODD, ODD: {ODD: 1}},
        extra={"data": {ODD: {"source": ODD, "rows": 3}}, "license": ODD},
        versions={"ptuning": ODD, ODD: ODD},
        created=ODD,
    )
    return folder


@pytest.mark.parametrize("options", [[], ["--json"], ["--backbone", f"/tmp/{ODD[1:-1]}".replace("\0", "")]])
def test_inspect_of_an_adapter_that_one_does_not_trust(
    hostile: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", str(hostile), *options])
    said = capsys.readouterr()
    assert not UNSEEN.search(said.out + said.err)
    assert "red" in said.out


def test_predict_of_an_adapter_that_one_does_not_trust(
    hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its backbone's name comes back in the sentence that says that there is none."""
    assert main(["predict", str(hostile), "--input", __file__, "--input_format", "text"]) == 2
    said = capsys.readouterr()
    assert not UNSEEN.search(said.out + said.err)
    assert "could not be loaded" in said.err


def test_labels_of_every_kind_come_out_inert(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From training to predictions, on the terminal and in files, in both formats."""
    names = {"negative": "=cmd|'/c calc'!A1\u202e", "positive": "\x1b[31m[bold]\x9bжаль"}
    rows = [{**row, "label": names[row["label"]]} for row in sentiment(24)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = str(tmp_path / "out")
    options = ["--fit.epochs", "1", "--prompt.num_virtual_tokens", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "stdin", None)
    for argv in (
        ["check-data", str(file)],
        ["train", str(file), "--backbone", str(tiny_folder), "--output", out, *options],
        ["inspect", out],
        ["evaluate", out, str(file)],
        ["predict", out, "--input", str(file), "--output", str(tmp_path / "found.jsonl")],
        ["predict", out, "--input", str(file), "--format", "csv", "--output", str(tmp_path / "found.csv")],
    ):
        assert main(argv) == 0, capsys.readouterr().err
        said = capsys.readouterr()
        assert not UNSEEN.search(said.out + said.err), argv
    lines = (tmp_path / "found.jsonl").read_text("utf-8")
    assert not UNSEEN.search(lines)
    assert "жаль" in lines
    for line in lines.splitlines():
        assert set(json.loads(line)["probabilities"]) == set(names.values())
    table = (tmp_path / "found.csv").read_text("utf-8")
    assert not UNSEEN.search(table)
    assert not re.search(r'(^|,)"?[=@+]', table, re.M)
