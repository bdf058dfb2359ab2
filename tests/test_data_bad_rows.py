"""Rows that cannot be used, rows without a label, rows that stand twice: refused, or left out and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ptuning.data import Example, Loaded, check, infer_task, load_examples, stream_examples
from ptuning.data.duplicates import repeats
from ptuning.data.label_oddities import label_oddities
from ptuning.data.options import BadRows
from ptuning.errors import DataError


def saved(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def said(found: Loaded) -> str:
    return "\n".join(f"{note.level}: {note}" for note in found.notes)


def csv_of(lines: list[str]) -> str:
    return "text,label\n" + "".join(f"{line}\n" for line in lines)


GOOD = ["x,no", "y,yes", "z,no", "w,yes"]

# Bad rows ------------------------------------------------------------------------------------------


def test_one_error_names_all_of_them_and_the_option(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", csv_of([*GOOD, "  ,no", "v,", *GOOD, ",yes"]))
    with pytest.raises(DataError) as caught:
        load_examples(path)
    message = str(caught.value)
    assert message.startswith(
        f"{path}: 3 of 11 rows cannot be used: lines 6, 12 (blank text in 'text'); line 7"
    )
    assert "--data.bad_rows skip (in Python: bad_rows='skip')" in message
    assert "The first: " in message
    assert "line 6, the text in 'text': got '" in message


def test_one_bad_row_is_one_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", csv_of([*GOOD, "v,"]))
    with pytest.raises(DataError, match=r"line 6, the label in 'label': got '.*--data\.bad_rows skip"):
        load_examples(path)


def test_the_error_of_a_bad_row_has_parts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\ngood,a\n ,b\n")
    with pytest.raises(DataError) as caught:
        load_examples(tmp_path / "a.csv")
    error = caught.value
    assert error.problem.endswith("a.csv, line 3, the text in 'text'")
    assert error.got == "' '"
    assert error.expected == "at least one character that is not a space"
    assert str(error.remedy).startswith("fill it in, or remove the row")
    assert "--data.bad_rows skip" in str(error.remedy)
    with pytest.raises(DataError) as caught:
        load_examples(tmp_path / "a.csv", label="lable")
    assert caught.value.expected == "one of 'text', 'label'"
    assert caught.value.remedy == "did you mean 'label'?"


def test_up_to_twenty_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", csv_of([*GOOD * 10, *[",no"] * 25]))
    with pytest.raises(
        DataError, match=r"25 of 65 rows.*lines 42, .* 61 \(blank text in 'text'\) and 5 more"
    ):
        load_examples(path)


def test_bad_rows_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", csv_of([*GOOD, "  ,no", "v,", *GOOD]))
    found = load_examples(path, bad_rows="skip")
    assert [example.row for example in found.examples] == [2, 3, 4, 5, 8, 9, 10, 11]
    assert [problem.row for problem in found.problems] == [6, 7]
    rows = "line 6 (blank text in 'text'); line 7 (blank label)"
    assert said(found) == f"note: {path}: left out 2 of 10 rows that cannot be used: {rows}"


def test_most_of_them_bad_is_a_warning_and_all_an_error(tmp_path: Path) -> None:
    most = saved(tmp_path / "most.csv", csv_of(["x,no", *[",no"] * 3]))
    found = load_examples(most, bad_rows="skip")
    assert said(found).startswith("warning: ")
    assert "most of them, so check that the file" in said(found)
    all_of_them = saved(tmp_path / "all.csv", csv_of([",no"] * 3))
    choices: tuple[BadRows, ...] = ("skip", "error")
    for bad_rows in choices:
        with pytest.raises(DataError, match=r"none of the 3 rows can be used.*lines 2, 3, 4"):
            load_examples(all_of_them, bad_rows=bad_rows)


def test_a_stream_leaves_bad_rows_out_and_counts_them(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", csv_of(["x,", ",", "y,", *[","] * 30]))
    stream = stream_examples(path, bad_rows="skip")
    assert [example.text for example in stream.examples] == ["x", "y"]
    assert (stream.left_out.count, len(stream.left_out.first)) == (31, 20)
    note = stream.left_out.note(stream.origin, 2)
    assert note is not None
    assert note.startswith(f"{path}: left out 31 of 33 rows that cannot be used: lines 3, 5")
    refused = stream_examples(path).examples
    assert next(refused).text == "x"
    with pytest.raises(DataError, match="line 3"):
        next(refused)


def test_check_reports_them_as_training_takes_them(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", csv_of([*GOOD * 5, ",no"]))
    found = load_examples(path, collect_problems=True)
    refused = check({"train": found.examples[:4]}, problems={"train": found.problems})
    assert not refused.ok
    assert "--data.bad_rows skip" in "\n".join(refused.lines())
    taken = check({"train": found.examples[:4]}, problems={"train": found.problems}, skipping=True)
    assert taken.ok
    assert "; left out [1 row: 22]" in "\n".join(taken.lines())


# No label ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "no_label", "left"),
    [
        ([0, -1, 1], "-1", [0, 1]),
        (["0", "-1", "1"], "-1", ["0", "1"]),
        ([0.0, -1.0, 1.0], "-1", [0.0, 1.0]),
        (["a", "-", " - ", "b"], "-", ["a", "b"]),
        (["a", "-", "nan", "b"], "-,nan", ["a", "b"]),
        (["a", "-", "nan", "b"], ("-", "nan"), ["a", "b"]),
        (["a", None, "", "b"], "", ["a", "b"]),
        (["a", "NaN", "b"], "NaN", ["a", "b"]),
    ],
)
def test_rows_without_a_label_are_left_out(labels: list[Any], no_label: Any, left: list[Any]) -> None:
    rows = [{"text": f"t {row}", "label": label} for row, label in enumerate(labels)]
    found = load_examples(rows, no_label=no_label)
    assert [example.label for example in found.examples] == left
    count = len(labels) - len(left)
    assert f"left out {count} row{'s' * (count > 1)} without a label (data.no_label: " in said(found)


def test_a_row_without_a_label_needs_no_text() -> None:
    rows = [{"text": "", "label": "-"}, {"text": "x", "label": "a"}]
    assert len(load_examples(rows, no_label="-").examples) == 1


def labelled(labels: list[Any]) -> list[Example]:
    return [Example(row=row, text=f"t {row}", label=label) for row, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        ([0, 1, 2, -1], ["the label -1 occurs next to 0 to 2", "--data.no_label -1"]),
        (["0", "1", "2", "-1"], ["the label '-1' occurs next to 0 to 2"]),
        (["yes", "no", "-"], ["the label '-'", "--data.no_label -"]),
        (["yes", "no", "NA"], ["the label 'NA'", "--data.no_label NA"]),
        (["yes"] * 50 + ["no"] * 50 + ["none"], ["the label 'none'"]),
        ([1, 2, 3, 4, 5], ["the labels 1 to 5 are read as classes", "--data.problem_type regression"]),
        (["good", "Good"], ["'Good', 'good'", "differ only in case"]),
    ],
)
def test_labels_that_may_mean_something_else(labels: list[Any], parts: list[str]) -> None:
    examples = labelled(labels)
    found = "\n".join(note for note in label_oddities(examples, infer_task(examples)))
    assert [part for part in parts if part not in found] == []


@pytest.mark.parametrize(
    "labels", [["a", "b"], [0, 1, 2], [-1, 1], ["none", "some"] * 9, [0, 1], [1, 2, 3, 4]]
)
def test_ordinary_labels_are_not_doubted(labels: list[Any]) -> None:
    examples = labelled(labels)
    assert list(label_oddities(examples, infer_task(examples))) == []


def test_a_column_called_a_score_is_one() -> None:
    examples = labelled([1, 2, 3, 4])
    (note,) = label_oddities(examples, infer_task(examples), "rating")
    assert note.startswith("the labels 1 to 4 are read as classes")


# The same text -------------------------------------------------------------------------------------


def test_repeated_rows_are_counted_and_dropped() -> None:
    rows = [
        {"text": text, "label": label}
        for text, label in [
            ("a", "x"),
            ("a", "x"),
            ("b", "x"),
            ("b", "y"),
            ("b", "y"),
            ("c", "y"),
            ("A", "x"),
        ]
    ]
    kept = load_examples(rows)
    found = repeats(kept.examples)
    assert (found.again, found.contradicting, found.texts) == ((2,), (3, 4, 5), 1)
    assert "1 text is in several rows with different labels, 3 rows in all" in found.contradiction
    dropped = load_examples(rows, duplicates="drop")
    assert [example.row for example in dropped.examples] == [1, 6, 7]
    assert "dropped 1 row that repeat an earlier one and all 3 rows of 1 text with different labels" in said(
        dropped
    )


def test_several_labels_agree_in_any_order_and_scores_never_contradict() -> None:
    several = [
        {"text": "a", "label": ["x", "y"]},
        {"text": "a", "label": ["y", "x"]},
        {"text": "b", "label": ["x"]},
    ]
    assert [e.row for e in load_examples(several, duplicates="drop").examples] == [1, 3]
    scores = [{"text": "a", "label": 1.5}, {"text": "a", "label": 2.5}, {"text": "a", "label": 1.5}]
    assert [e.row for e in load_examples(scores, duplicates="drop").examples] == [1, 2]
