"""Columns: found where only one reading is possible, otherwise asked for."""

from __future__ import annotations

from typing import Any

import pytest

from ptuning.data import Columns, find_columns
from ptuning.errors import DataError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("text label", ("text", None, "label")),
        ("Sentence LABEL idx", ("Sentence", None, "LABEL")),
        ("idx sentence1 sentence2 label", ("sentence1", "sentence2", "label")),
        ("premise hypothesis class", ("premise", "hypothesis", "class")),
        ("question1 question2 y", ("question1", "question2", "y")),
        ("question sentence label", ("question", "sentence", "label")),
        ("question passage label", ("question", "passage", "label")),
        ("text_a text_b stars", ("text_a", "text_b", "stars")),
        ("text text_pair label", ("text", "text_pair", "label")),
        ("review Sentiment", ("review", None, "Sentiment")),
        ("hypothesis text label", ("text", None, "label")),
    ],
)
def test_well_known_names(names: str, expected: tuple[str, str | None, str]) -> None:
    text, text_b, label = expected
    assert find_columns(names.split()) == Columns(text=text, text_b=text_b, label=label)
    assert Columns(text=text, text_b=text_b).pair == (text_b is not None)


def test_named_columns_are_taken() -> None:
    names = ["title", "body", "kind", "label"]
    assert find_columns(names, text="body", label="kind") == Columns(text="body", label="kind")
    assert find_columns(names, text_b="title").text == "body"
    assert find_columns(["text", "title"], label="title") == Columns(text="text", label="title")
    assert find_columns(["sentence1", "sentence2", "label"], text="sentence1").text_b is None


def test_a_label_is_looked_for_only_when_needed() -> None:
    assert find_columns(["text", "label", "score"], need_label=False) == Columns(text="text")
    assert find_columns(["text", "label"], need_label=False, label="label").label == "label"


@pytest.mark.parametrize(
    ("names", "given", "parts"),
    [
        (
            "title body label",
            {},
            ["'title', 'body' could each be the text", "name the column with --data.text (in Python: text=)"],
        ),
        (
            "text text_b text2 label",
            {},
            ["'text_b', 'text2' could each be the second text", "with --data.text_b"],
        ),
        ("text label score", {}, ["'label', 'score' could each be the label", "with --data.label"]),
        (
            "a label",
            {},
            [
                "cannot tell which column is the text",
                "name it with --data.text (in Python: text=), one of 'a', 'label'",
            ],
        ),
        (
            "text z",
            {},
            ["which column is the label", "name it with --data.label (in Python: label=), one of"],
        ),
        ("text Label", {"label": "lable"}, ["no column 'lable' for label", "did you mean 'Label'?"]),
        (
            "text label",
            {"text": "qqq"},
            ["expected one of 'text', 'label'; name one of these with --data.text"],
        ),
        ("a label", {"text": "a", "label": "a"}, ["'a' is named both text and label", "two different"]),
    ],
)
def test_unclear_columns(names: str, given: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        find_columns(names.split(), **given, source_name="a.csv")
    assert str(caught.value).startswith("a.csv: ")
    assert [part for part in parts if part not in str(caught.value)] == []


# By their values -----------------------------------------------------------------------------------

TEXTS = [f"the parcel number {row} came early and I am happy" for row in range(20)]


def table(**columns: list[Any]) -> list[dict[str, Any]]:
    return [
        {"review text": text, **{name: values[row % len(values)] for name, values in columns.items()}}
        for row, text in enumerate(TEXTS)
    ]


def found(rows: list[dict[str, Any]], **given: Any) -> Columns:
    return find_columns(list(rows[0]), rows=rows, **given)


IDS = [f"id-{row}" for row in range(20)]


@pytest.mark.parametrize(
    ("columns", "label", "note"),
    [
        ({"is_good": ["yes", "no"]}, "is_good", "label: 'is_good', the only other column"),
        ({"id": IDS, "is_good": [1, 0]}, "is_good", "label: 'is_good', the only candidate"),
        ({"id": list(range(20)), "kind": [1.5, 2.5]}, "kind", "the only candidate"),
        ({"": IDS, "Unnamed: 0": [1, 2], "column 4": [1, 2], "kind": ["a", "b"]}, "kind", "the only other"),
        ({"kind": ["a", "b"], "source": ["shop"]}, "kind", "the only candidate"),
        ({"kind": ["a", "b"], "empty": [None, ""]}, "kind", "the only other column"),
        ({"kind": ["a", "b"], "long": TEXTS}, "kind", "the only candidate"),
        (
            {"how_good": [row + 0.5 for row in range(20)], "id": IDS},
            "how_good",
            "the only candidate",
        ),
        ({"tag list": [["a"], ["a", "b"]]}, "tag list", "the only other column"),
        ({"category": ["a", "b"], "score": [None]}, "category", "the only one of 'category', 'score'"),
    ],
)
def test_the_only_column_that_can_be_the_label(columns: dict[str, Any], label: str, note: str) -> None:
    columns_found = found(table(**columns), text="review text")
    assert columns_found.label == label
    assert note in columns_found.notes[0]


def test_two_that_can_be_it_are_asked_about() -> None:
    with pytest.raises(DataError, match=r"'kind', 'sort' could each be the label.*--data.label \(in"):
        found(table(kind=["a", "b"], sort=["c", "d"]))
    rows = table(kind=["a", "b"], sort=["c", "d"])
    assert found(rows, known_labels=("c", "d", "e")).label == "sort"  # a trained task's labels tell


def test_a_title_that_the_text_begins_with_is_no_label() -> None:
    """As in AG News without a header: class, title, text; titles that repeat are no ids."""
    titles = ["late again", "great news", "no excuse"]
    rows = [
        {"1": str(row % 2 + 1), "2": titles[row % 3], "3": f"{titles[row % 3]} {row}"} for row in range(30)
    ]
    columns = found(rows, text="3")
    assert columns.label == "1"


def test_the_text_by_its_values() -> None:
    rows = [{"v1": ["ham", "spam"][row % 2], "v2": text, "Unnamed: 2": ""} for row, text in enumerate(TEXTS)]
    columns = found(rows)
    assert (columns.text, columns.label) == ("v2", "v1")
    assert columns.notes[0] == "text: 'v2', the only column that looks like texts"
    twice = [{**row, "v3": f"another {row['v2']}"} for row in rows]
    with pytest.raises(DataError, match="'v2', 'v3' could each be the text"):
        found(twice)
    assert find_columns(["utterances"], need_label=False, rows=[{"utterances": "hi"}]).text == "utterances"


def test_a_first_row_is_not_taken_for_names() -> None:
    rows = [
        {"the parcel came early, thanks": text, "good": ["good", "bad"][row % 2]}
        for row, text in enumerate(TEXTS)
    ]
    with pytest.raises(DataError, match="cannot tell which column is the text"):
        found(rows)


@pytest.mark.parametrize(
    ("names", "text", "label"),
    [
        ("id qid1 qid2 question1 question2 is_duplicate", "question1", "is_duplicate"),
        ("reviewText overall asin", "reviewText", "overall"),
        ("sentence1 sentence2 gold_label", "sentence1", "gold_label"),
        ("comment_text verdict", "comment_text", "verdict"),
        ("airline_sentiment text", "text", "airline_sentiment"),
        ("text label_text label", "text", "label"),
        ("review_text overall rating", "review_text", "rating"),
        ("Category Message", "Message", "Category"),
    ],
)
def test_names_that_many_files_have(names: str, text: str, label: str) -> None:
    columns = find_columns(names.split())
    assert (columns.text, columns.label) == (text, label)


# A column a label ----------------------------------------------------------------------------------

TOXIC = ["id", "comment_text", "toxic", "severe_toxic", "obscene", "label_x", "label_y", "a,b"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("toxic,obscene", ("toxic", "obscene")),
        ("toxic, severe_toxic", ("toxic", "severe_toxic")),
        (["toxic", "obscene"], ("toxic", "obscene")),
        ("label_*", ("label_x", "label_y")),
        ("*toxic,label_?", ("toxic", "severe_toxic", "label_x", "label_y")),
        ("*x*", ("toxic", "severe_toxic", "label_x")),  # the text is none
        (["a,b", "toxic"], ("a,b", "toxic")),
    ],
)
def test_columns_of_zeros_and_ones(label: Any, expected: tuple[str, ...]) -> None:
    columns = find_columns(TOXIC, "comment_text", None, label)
    assert (columns.labels, columns.label) == (expected, None)


def test_a_name_with_a_comma_is_one_column() -> None:
    assert find_columns(TOXIC, label="a,b").label == "a,b"
    assert find_columns(TOXIC, label=["toxic"]).label == "toxic"


@pytest.mark.parametrize(
    ("label", "part"),
    [
        ("toxic,obscen", "no column 'obscen' for label.*did you mean 'obscene'"),
        ("toxic,toxic", "'toxic' is named both label and label 2"),
        ("toxic,comment_text", "'comment_text' is named both text and label 2"),
        ("tags_*", r"no column matches the pattern 'tags_\*' for label"),
    ],
)
def test_columns_that_are_not_there(label: str, part: str) -> None:
    with pytest.raises(DataError, match=part):
        find_columns(TOXIC, "comment_text", None, label)


def test_columns_of_zeros_and_ones_are_suggested_ready_to_paste() -> None:
    rows = table(toxic=[0, 1], obscene=["1", "0", "0"], id=IDS)
    with pytest.raises(DataError) as caught:
        found(rows)
    assert "'toxic', 'obscene' contain only 0 and 1" in str(caught.value)
    assert "--data.label toxic,obscene (in Python: label=['toxic', 'obscene'])" in str(caught.value)
