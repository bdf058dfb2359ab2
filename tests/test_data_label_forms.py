"""How labels may be written: as lists, as zeros and ones, as text that spells either, as odd numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data import Loaded, encode_labels, infer_task, load_examples
from ptuning.data.label_cells import list_in, percentage, switch
from ptuning.errors import DataError
from ptuning.task import Task

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def rows(labels: Sequence[Any], column: str = "label") -> list[dict[str, Any]]:
    return [{"text": f"text {row}", column: label} for row, label in enumerate(labels)]


def loaded(labels: Sequence[Any], column: str = "label", **options: Any) -> Loaded:
    return load_examples(rows(labels, column), **options)


def given_labels(found: Loaded) -> list[Any]:
    return [example.label for example in found.examples]


def said(found: Loaded) -> str:
    return "\n".join(f"{note.level}: {note}" for note in found.notes)


# One cell ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("['a', 'b']", ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        ("('a', 'b')", ("a", "b")),
        ("[0, 1, 0]", (0, 1, 0)),
        ("[0 1 0]", (0, 1, 0)),
        ("[0. 1.]", (0.0, 1.0)),
        ("['a' 'b']", ("a", "b")),  # numpy's; Python alone would read 'ab'
        ("['it''s']", None),  # a doubled quote, or two strings
        ("['a' 'b', 'c']", None),
        ("['']", ("",)),
        ("[a, b]", ("a", "b")),
        ("[true, false]", (True, False)),
        ("[True, False]", (True, False)),
        ("{'b', 'a'}", ("a", "b")),
        (" [] ", ()),
        ("[' a ']", ("a",)),
        ("[[1]]", None),
        ("[{}]", None),
        ("{'a': 1}", None),
        ("(a)", None),
        ("[a, , b]", None),
        ("['a'", None),
        ("[" * 5000 + "]" * 5000, None),
        ("a, b", None),
        ("[__import__('os')]", None),
    ],
)
def test_lists_in_text(cell: str, expected: tuple[Any, ...] | None) -> None:
    found = list_in(cell)
    assert found == expected
    assert found is None or list(map(type, found)) == list(map(type, expected or ()))


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1).map(str.strip).filter(bool)))
def test_what_python_and_json_write_is_read_back(items: list[str]) -> None:
    assert list_in(json.dumps(items)) == tuple(items)
    assert list_in(repr(items)) == tuple(items)


@given(st.text(max_size=30).map(lambda inner: f"[{inner}]"))
def test_no_text_is_an_error(cell: str) -> None:
    list_in(cell)


def test_switches_and_percentages() -> None:
    on = [1, 1.0, True, "1", "1.0", "true", "TRUE", " yes "]
    off = [0, 0.0, False, "0", "0.0", "False", "no"]
    assert [switch(value) for value in on + off] == [True] * len(on) + [False] * len(off)
    assert [switch(value) for value in (2, -1, "", None, "x", 0.5)] == [None] * 6
    assert [percentage(cell) for cell in ("80%", "12,5 %", "7%", "8", "%")] == [
        "0.8",
        "0.125",
        "0.07",
        None,
        None,
    ]


# Rows of zeros and ones --------------------------------------------------------------------------

HOT = [[1, 0, 1], [0, 1, 0], [0, 0, 1], [0, 1, 1]]
APPLY: list[Any] = [(0, 2), (1,), (2,), (1, 2)]


@pytest.mark.parametrize(
    "form",
    [
        lambda row: row,
        lambda row: tuple(row),
        lambda row: [bool(item) for item in row],
        lambda row: [float(item) for item in row],
        lambda row: np.array(row),
        lambda row: np.array(row, dtype=np.float32),
        lambda row: str(row),
        lambda row: str(np.array(row)),
        lambda row: str([float(item) for item in row]),
        lambda row: str([bool(item) for item in row]),
        lambda row: json.dumps([bool(item) for item in row]),
        lambda row: "|".join(map(str, row)),
        lambda row: ",".join(map(str, row)),
        lambda row: " ".join(map(str, row)),
    ],
)
def test_rows_of_zeros_and_ones_in_any_form(form: Any) -> None:
    found = loaded([form(row) for row in HOT])
    assert given_labels(found) == APPLY
    assert found.label_names == (0, 1, 2)
    assert "rows of 3 zeros and ones, one per label: 0, 1, 2" in said(found)
    task = Task(problem_type=MULTI, labels=("a", "b", "c"))  # whose names they are, then
    named = loaded([form(row) for row in HOT], task=task)
    assert given_labels(named) == [("a", "c"), ("b",), ("c",), ("b", "c")]
    assert encode_labels(named.examples, task) == HOT


def test_two_labels_are_zeros_and_ones_too() -> None:
    found = loaded([[1, 0], [0, 1], [1, 0]])
    assert given_labels(found) == [(0,), (1,), (0,)]
    task = infer_task(found.examples, names=found.label_names)
    assert encode_labels(found.examples, task) == [[1, 0], [0, 1], [1, 0]]


def test_a_label_that_no_row_has_is_one_nevertheless() -> None:
    found = loaded([[1, 0, 0], [0, 1, 0]])
    assert infer_task(found.examples, names=found.label_names).labels == (0, 1, 2)


@pytest.mark.parametrize(
    "labels",
    [
        [[0, 1], [1], [0]],  # of other lengths: the labels that apply
        [[0, 1], [0, 2], [1, 2]],
        [[0], [1], [0]],
        [["a", "b"], ["b", "c"]],
    ],
)
def test_lists_of_labels_are_left_as_they_are(labels: list[Any]) -> None:
    found = loaded(labels)
    assert given_labels(found) == list(map(tuple, labels))
    assert found.label_names is None
    assert found.notes == ()


def test_a_known_task_decides_what_a_file_leaves_open() -> None:
    three = Task(problem_type=MULTI, labels=(0, 1, 2))
    assert given_labels(loaded([[0, 1], [1, 0]], task=three)) == [(0, 1), (1, 0)]
    two = Task(problem_type=MULTI, labels=("x", "y"))
    assert given_labels(loaded([[0, 1], [1, 0]], task=two)) == [("y",), ("x",)]


def test_one_on_in_each_row_can_be_one_label() -> None:
    found = loaded([[1, 0, 0], [0, 0, 1]], problem_type=SINGLE)
    assert given_labels(found) == [0, 2]
    task = infer_task(found.examples, problem_type=SINGLE, names=found.label_names)
    assert task.labels == (0, 1, 2)


# Lists that were written as text -----------------------------------------------------------------


def test_lists_as_text_are_read_and_said() -> None:
    found = loaded(["['a', 'b']", "[]", "['b']"])
    assert given_labels(found) == [("a", "b"), (), ("b",)]
    assert "lists that were written as text, such as \"['a', 'b']\"" in said(found)


def test_a_cell_that_is_no_list_among_lists_is_a_bad_row() -> None:
    labels = ["['a']", "['b']"] * 20 + ["['a'"]
    with pytest.raises(
        DataError, match="row 41, the label: got \"\\['a'\", expected a list as in the other rows"
    ):
        loaded(labels)
    found = loaded(labels, bad_rows="skip")
    assert len(found.examples) == 40
    assert "left out 1 of 41 rows" in said(found)


def test_a_few_brackets_make_no_lists() -> None:
    labels = ["[deleted]", "good", "bad", "good"]
    assert given_labels(loaded(labels)) == labels


def test_texts_stand_for_themselves_where_one_label_was_asked_for() -> None:
    labels = ["['a', 'b']", "['b']"]
    assert given_labels(loaded(labels, problem_type=SINGLE)) == labels
    tags = ["a|b", "b|c", "a|c"] * 3
    assert given_labels(loaded(tags, problem_type=SINGLE)) == tags


# Labels with something between ---------------------------------------------------------------------

TAGS = ["a{0}b", "b{0}c", "a{0}c", "a", "c"]


@pytest.mark.parametrize("separator", ["|", ";", ",", ", ", " | "])
def test_separated_labels_are_told_where_they_recombine(separator: str) -> None:
    found = loaded([tag.format(separator) for tag in TAGS])
    assert given_labels(found) == [("a", "b"), ("b", "c"), ("a", "c"), ("a",), ("c",)]
    assert f"separated by {separator.strip()!r}" in said(found)
    assert "--data.problem_type single_label_classification" in said(found)


def test_the_name_of_the_column_helps() -> None:
    labels = ["good, fast", "bad", "bad, slow"] * 3
    assert given_labels(loaded(labels, "tags"))[0] == ("good", "fast")
    assert given_labels(loaded(labels))[0] == "good, fast"


@pytest.mark.parametrize(
    "labels",
    [
        ["Hotels, restaurants", "Science, nature", "Sports"] * 3,
        ["good,fast", "bad"] * 3,
        ["a|b", "c"] * 3,
    ],
)
def test_where_it_is_not_sure_they_are_one_label_and_the_option_is_named(labels: list[str]) -> None:
    found = loaded(labels)
    assert given_labels(found) == labels
    assert "warning: " in said(found)
    assert "--data.label_separator" in said(found)


def test_a_trained_task_knows_its_labels() -> None:
    task = Task(problem_type=MULTI, labels=("fast", "good", "so, so"))
    labels = ["good, fast", "so, so", "good", "good|fast"]
    expected = [("good", "fast"), ("so, so",), ("good",), ("good", "fast")]
    assert given_labels(loaded(labels, task=task)) == expected


def test_several_labels_asked_for_are_separated_or_one_each() -> None:
    assert given_labels(loaded(["a,b", "a", "b"], problem_type=MULTI)) == [("a", "b"), ("a",), ("b",)]
    assert given_labels(loaded(["a", "b"], problem_type=MULTI)) == [("a",), ("b",)]


# Numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "values", "note"),
    [
        (["3,5", "4", "0,25"], [3.5, 4.0, 0.25], "decimal comma, such as '3,5'"),
        (["80%", "12,5 %", "100%"], [0.8, 0.125, 1.0], "fractions: '80%' is 0.8"),
    ],
)
def test_numbers_in_other_spellings(cells: list[str], values: list[float], note: str) -> None:
    found = loaded(cells, "score")
    task = infer_task(found.examples)
    assert task.is_regression
    assert encode_labels(found.examples, task) == values
    assert note in said(found)
    assert encode_labels(loaded(cells, "score", task=task).examples, task) == values


def test_what_could_be_thousands_is_not_guessed() -> None:
    found = loaded(["1,234", "5,678"])
    assert given_labels(found) == ["1,234", "5,678"]
    assert "could be decimals or thousands" in said(found)


def test_a_column_of_tags_has_no_decimals() -> None:
    found = loaded(["1,2", "2,3", "1,3", "2"], "labels")
    assert given_labels(found) == [("1", "2"), ("2", "3"), ("1", "3"), ("2",)]


# Spaces, and other spellings of known labels ---------------------------------------------------------


def test_spaces_around_labels_are_taken_off_and_said() -> None:
    found = loaded([" neg", "pos", "pos ", "neg"])
    assert given_labels(found) == ["neg", "pos", "pos", "neg"]
    assert "spaces around the label were removed in 2 rows" in said(found)


def test_labels_of_a_trained_task_stay_as_they_are() -> None:
    task = Task(problem_type=SINGLE, labels=(" neg", "pos"))
    assert given_labels(loaded([" neg", "neg", "pos "], task=task)) == [" neg", " neg", "pos"]


def test_class_names_stay_as_they_are() -> None:
    import datasets

    names = [" neg", "a|b", "['c']"]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    source = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [0, 1, 2]}, features=features)
    found = load_examples(source)
    assert given_labels(found) == names
    assert found.label_names == tuple(names)
    assert found.notes == ()


def test_one_number_is_one_label_however_it_is_spelled() -> None:
    task = Task(problem_type=SINGLE, labels=("0", "1"))
    found = loaded(["1.0", "0.0", "1"], task=task)
    assert given_labels(found) == ["1", "0", "1"]
    assert "the label '1.0' is read as '1', as in training" in said(found)
    twice = Task(problem_type=SINGLE, labels=("1", "1.0"))
    assert given_labels(loaded(["1.00"], task=twice)) == ["1.00"]  # could be either


def test_the_same_in_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"text {row}" for row in range(len(HOT))]
    lines = "".join(json.dumps({"text": t, "labels": hot}) + "\n" for t, hot in zip(texts, HOT, strict=True))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    cells = "".join(f'{t},"{hot}"\n' for t, hot in zip(texts, HOT, strict=True))
    (tmp_path / "a.csv").write_text("text,labels\n" + cells, encoding="utf-8")
    pq.write_table(pa.table({"text": texts, "labels": HOT}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert given_labels(load_examples(tmp_path / name)) == APPLY
