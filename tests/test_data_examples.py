"""Examples: a bad row is named, never repaired; and loading ties the parts together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptuning.data import (
    Columns,
    Example,
    Origin,
    Problem,
    as_examples,
    encode_labels,
    infer_task,
    load_examples,
    stream_examples,
)
from ptuning.errors import DataError

COLUMNS = Columns(text="t", text_b=None, label="l")
ORIGIN = Origin(name="a.csv", unit="line")


def one(row: dict[str, Any], columns: Columns = COLUMNS, **options: Any) -> Example:
    (example,) = as_examples([(7, row)], columns, ORIGIN, **options)
    return example


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", " x "])
def test_words_are_text(word: str) -> None:
    assert one({"t": word, "l": word}).text == word
    assert one({"t": word, "l": word}).label == word


@pytest.mark.parametrize("label", ["1", 1, 1.0, True, 0, False])
def test_labels_keep_their_type(label: Any) -> None:
    found = one({"t": "x", "l": label}).label
    assert (type(found), found) == (type(label), label)


def test_numpy_labels_become_plain() -> None:
    assert type(one({"t": "x", "l": np.int64(3)}).label) is int
    assert type(one({"t": "x", "l": np.str_("a")}).label) is str
    assert one({"t": "x", "l": np.array([1, 2])}).label == (1, 2)


def test_lists_and_separated_labels_become_tuples() -> None:
    assert one({"t": "x", "l": ["a", "b"]}).label == ("a", "b")
    assert one({"t": "x", "l": "a; b"}, label_separator=";").label == ("a", "b")
    assert one({"t": "x", "l": ""}, label_separator=";").label == ()


def test_labels_are_not_read_unless_needed() -> None:
    assert one({"t": "x"}, need_label=False).label is None


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"l": "a"}, ["no 't', expected it in every row; this row has 'l'", "remove the row"]),
        ({"t": None, "l": "a"}, ["the text in 't': got null, expected a string", "fill it in"]),
        (
            {"t": " \t\u00a0", "l": "a"},
            ["the text in 't': got ' \\t\\xa0', expected at least one char", "fill it in"],
        ),
        ({"t": "", "l": "a"}, ["the text in 't': got '', expected at least"]),
        ({"t": 3, "l": "a"}, ["'t': got the int 3, expected a string", "quote it"]),
        ({"t": ["x"], "l": "a"}, ["'t': got the list"]),
        ({"t": "x\ud83d", "l": "a"}, ["half a surrogate pair", "as UTF-8"]),
        ({"t": "x"}, ["no 'l', expected it in every row"]),
        ({"t": "x", "l": None}, ["the label in 'l': got null, expected a label", "remove the row"]),
        ({"t": "x", "l": float("nan")}, ["the label in 'l': got nan"]),
        ({"t": "x", "l": "  "}, ["the label in 'l': got '  ', expected a label"]),
        ({"t": "x", "l": {"a": 1}}, ["the label in 'l': got the dict", "convert it"]),
        ({"t": "x", "l": [["a"]]}, ["the label in 'l': got the list"]),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        one(row)
    assert str(caught.value).startswith("a.csv, line 7")
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(("label", "part"), [("a;;b", "both sides"), (3, "leave out --data.label_separator")])
def test_labels_that_cannot_be_separated(label: Any, part: str) -> None:
    with pytest.raises(DataError, match=f"a.csv, line 7, .*{part}"):
        one({"t": "x", "l": label}, label_separator=";")


def test_the_second_text_is_checked_too() -> None:
    pair = Columns(text="t", text_b="u", label="l")
    assert one({"t": "x", "u": "y", "l": 1}, pair).text_b == "y"
    with pytest.raises(DataError, match="line 7, the text in 'u': got '"):
        one({"t": "x", "u": "", "l": 1}, pair)


def test_problems_are_collected_on_request() -> None:
    problems: list[Problem] = []
    rows: list[tuple[int, dict[str, Any]]] = [
        (1, {"t": "", "l": "a"}),
        (2, {"t": "x", "l": "a"}),
        (3, {"t": "x", "l": None}),
    ]
    found = list(as_examples(rows, COLUMNS, "memory", problems=problems))
    assert [example.row for example in found] == [2]
    assert [(problem.row, problem.kind) for problem in problems] == [
        (1, "blank text in 't'"),
        (3, "null label"),
    ]
    assert problems[1].message.startswith("memory, row 3, the label in 'l': got null")


# Loading -----------------------------------------------------------------------------------------


def saved(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_a_second_text_that_the_first_row_lacks(tmp_path: Path) -> None:
    """Some writers leave out what is null; nothing may be left unread because of that."""
    rows: list[dict[str, Any]] = [{"text": "a", "label": "x"}, {"text": "b", "Text_B": "c", "label": "y"}]
    with pytest.raises(DataError, match="a second text in 'Text_B', which the first row does not"):
        load_examples(rows)
    assert len(load_examples(rows, text="text").examples) == 2  # who names the one text has one
    assert len(load_examples([rows[0], {**rows[0], "note": "z"}]).examples) == 2
    found = load_examples(
        [{"question": "a", "answer": "x"}, {"question": "b", "answer": "y"}], label="answer"
    )
    assert len(found.examples) == 2


def test_half_a_character_in_a_label() -> None:
    for label in ("\ud800", ["a", "\ud800"]):
        with pytest.raises(DataError, match="the label in 'l': got half a surrogate pair"):
            one({"t": "x", "l": label})
    with pytest.raises(DataError, match="the label in 'l': got half a surrogate pair"):
        one({"t": "x", "l": "a;\ud800"}, label_separator=";")


def test_load_examples(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", "id,premise,hypothesis,label\n1,x,y,no\n2,z,w,yes\n")
    loaded = load_examples(path)
    assert loaded.columns == Columns(text="premise", text_b="hypothesis", label="label")
    assert [(e.row, e.text, e.text_b, e.label) for e in loaded.examples] == [
        (2, "x", "y", "no"),
        (3, "z", "w", "yes"),
    ]
    assert loaded.examples[0].place == f"{path}, line 2"
    assert loaded.label_names is None


def test_load_examples_of_a_data_set() -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])}
    )
    source = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    loaded = load_examples(source)
    task = infer_task(loaded.examples, names=loaded.label_names)
    assert task.labels == ("z", "a")
    assert encode_labels(loaded.examples, task) == [1, 0]


def test_collecting_problems(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", "text,label\n,no\nx,\ny,yes\n")
    loaded = load_examples(path, collect_problems=True)
    assert [problem.row for problem in loaded.problems] == [2, 3]
    assert [example.row for example in loaded.examples] == [4]
    with pytest.raises(DataError, match="line 2, the text in 'text': got ''"):
        load_examples(path)


def test_streaming_fails_early_on_columns_and_late_on_rows(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", "text,other\nx,1\n ,2\n")
    stream = stream_examples(path)
    assert next(stream.examples) == Example(row=2, text="x", origin=Origin(name=str(path), unit="line"))
    with pytest.raises(DataError, match="line 3, the text in 'text': got '"):
        next(stream.examples)
    with pytest.raises(DataError, match=r"no column 'texts' for text.*did you mean 'text'"):
        stream_examples(path, text="texts")


def test_one_and_two_texts_are_compared_with_training(tmp_path: Path) -> None:
    single = saved(tmp_path / "a.csv", "text,label\nx,1\n")
    double = saved(tmp_path / "b.csv", "text_a,text_b\nx,y\n")
    assert stream_examples(double, pair=True).columns.pair
    with pytest.raises(
        DataError,
        match=r"a.csv, text: got only 'text', expected two texts.*with --data.text .*and --data.text_b",
    ):
        stream_examples(single, pair=True)
    with pytest.raises(DataError, match=r"b.csv, text: got 'text_a' and 'text_b', expected one text"):
        stream_examples(double, pair=False)


@pytest.mark.parametrize(
    ("name", "kind", "pair"),
    [
        ("sst2", "single_label_classification", False),
        ("mrpc", "single_label_classification", True),
        ("stsb", "regression", True),
    ],
)
def test_real_data(name: str, kind: str, pair: bool) -> None:
    folder = os.environ.get("PTUNING_DATA")
    if not folder:
        pytest.skip("PTUNING_DATA is not set to a folder with sst2, mrpc and stsb")
    loaded = load_examples(Path(folder) / name / "validation.jsonl")
    task = infer_task(loaded.examples)
    assert (task.problem_type, task.pair) == (kind, pair)
    assert len(encode_labels(loaded.examples, task)) == len(loaded.examples) > 400


# A column a label, and a look ahead ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "off"),
    [(1, 0), ("1", "0"), (1.0, 0.0), ("1.0", "0.0"), (True, False), ("True", "FALSE"), ("yes", "no")],
)
def test_columns_of_zeros_and_ones_are_several_labels(on: Any, off: Any) -> None:
    rows = [{"text": "x", "toxic": on, "rude": off}, {"text": "y", "toxic": off, "rude": off}]
    loaded = load_examples(rows, label="toxic,rude")
    assert [example.label for example in loaded.examples] == [("toxic",), ()]
    assert loaded.label_names == ("toxic", "rude")
    task = infer_task(loaded.examples, names=loaded.label_names)
    assert encode_labels(loaded.examples, task) == [[1.0, 0.0], [0.0, 0.0]]
    again = load_examples(rows, task=task)  # where the task is known, so are its columns
    assert again.examples == loaded.examples
    assert "labels: the columns 'toxic', 'rude', as in training" in again.notes[0]


@pytest.mark.parametrize("value", ["2", 2, "", None, "x", -1, float("nan")])
def test_anything_else_there_is_a_bad_row(value: Any) -> None:
    rows = [{"text": "x", "toxic": 1, "rude": 0}, {"text": "y", "toxic": value, "rude": 0}]
    with pytest.raises(DataError, match=r"row 2, the label column 'toxic': got .*, expected 0 or 1"):
        load_examples(rows, label=["toxic", "rude"])
    assert len(load_examples(rows, label=["toxic", "rude"], bad_rows="skip").examples) == 1


def test_rows_that_are_not_scored_can_be_left_out() -> None:
    rows = [{"text": "x", "toxic": 1, "rude": 0}, {"text": "y", "toxic": -1, "rude": -1}]
    assert len(load_examples(rows, label="toxic,rude", no_label="-1").examples) == 1


def test_a_look_at_the_first_rows_loses_none_of_them() -> None:
    def rows() -> Any:
        yield from ({"v1": "ab"[row % 2], "v2": f"the text number {row} of all"} for row in range(2500))
        raise DataError("the source broke")

    stream = stream_examples(rows())
    assert [next(stream.examples).row for _ in range(2500)] == list(range(1, 2501))
    with pytest.raises(DataError, match="the source broke"):
        next(stream.examples)

    def short() -> Any:
        yield from ({"v1": "ab"[row % 2], "v2": f"the text number {row} of all"} for row in range(5))
        raise DataError("the source broke")

    stream = stream_examples(short())
    assert [next(stream.examples).row for _ in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="the source broke"):
        next(stream.examples)


def test_names_that_decide_are_not_looked_behind() -> None:
    """A stream gives its first row before it has a second."""
    taken: list[int] = []

    def rows() -> Any:
        for row in range(10):
            taken.append(row)
            yield {"text": f"x {row}"}

    assert next(stream_examples(rows()).examples).text == "x 0"
    assert taken == [0]


def test_rows_of_many_tasks_have_one_text_or_two() -> None:
    rows = [
        {"task": "a", "text": "one"},
        {"text": "one", "text_b": "two", "task": "b"},
        {"text": "one", "text_b": None, "task": "a"},
        {"text": "one", "text_b": " ", "task": "a"},
    ]
    found = stream_examples(rows, task_column="task")
    assert [(each.task, each.text, each.text_b) for each in found.examples] == [
        ("a", "one", None),
        ("b", "one", "two"),
        ("a", "one", None),
        ("a", "one", None),
    ]
    kept = stream_examples(rows[:1], task_column="task", keep=["task"]).examples
    assert [each.kept for each in kept] == [{"task": "a"}]


def test_a_task_column_is_not_a_text() -> None:
    """Neither by its name nor by its values."""
    found = stream_examples([{"text": "my task", "message": "good"}], task_column="text")
    assert [(each.task, each.text) for each in found.examples] == [("my task", "good")]
    words = "a name that looks like the text of a row"
    found = stream_examples([{"a": words, "b": "this is the text of the row"}], task_column="a")
    assert found.columns.text == "b"
    with pytest.raises(DataError, match="no column 'tsk' for task_column, expected one of 'a', 'text'"):
        stream_examples([{"a": "a", "text": "good"}], task_column="tsk")
