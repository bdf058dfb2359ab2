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
        ("title body label", {}, ["'title', 'body' could each be the text", "name the column with text"]),
        ("text text_b text2 label", {}, ["'text_b', 'text2' could each be the second text", "with text_b"]),
        ("text label score", {}, ["'label', 'score' could each be the label", "with label"]),
        ("a label", {}, ["no column is known to be the text", "name it with text, one of 'a', 'label'"]),
        ("text z", {}, ["no column is known to be the label", "name it with label, one of 'text', 'z'"]),
        ("text Label", {"label": "lable"}, ["no column 'lable' for label", "did you mean 'Label'?"]),
        ("text label", {"text": "qqq"}, ["expected one of 'text', 'label'; name one of these with text"]),
        ("a label", {"text": "a", "label": "a"}, ["'a' is named both text and label", "two different"]),
    ],
)
def test_unclear_columns(names: str, given: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        find_columns(names.split(), **given, source_name="a.csv")
    assert str(caught.value).startswith("a.csv: ")
    assert [part for part in parts if part not in str(caught.value)] == []
