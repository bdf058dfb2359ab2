"""Rows in memory: every form that programs have them in reads as the same rows, or is one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict

from ptuning.data import load_examples, stream_examples
from ptuning.data.memory import named_splits
from ptuning.errors import ConfigError, DataError

TEXTS, OTHERS, LABELS = ["a good film", "a bad film", "NA"], ["one", "two", "three"], ["pos", "neg", "pos"]
COLUMNS = {"text": TEXTS, "label": LABELS}
PAIRS = {"text": TEXTS, "text_b": OTHERS, "label": LABELS}
NUMBERED = {"text": TEXTS, "label": [1, 0, 1]}
KIND, ENCODED = polars.Categorical, pyarrow.array(LABELS).dictionary_encode()
FRAME = pandas.DataFrame(COLUMNS, index=[7, 8, 9])


class TorchData(torch.utils.data.Dataset[dict[str, Any]]):
    """As programs write them: no iterator, rows by number alone."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(TEXTS):
            raise IndexError(index)
        return {"text": TEXTS[index], "label": LABELS[index]}


FORMS: dict[str, tuple[Callable[[], Any], list[tuple[Any, ...]]]] = {
    name: (make, list(zip(columns["text"], columns.get("text_b", [None] * 3), columns["label"], strict=True)))
    for name, make, columns in [
        ("pandas", lambda: FRAME, COLUMNS),
        ("pandas, categories", lambda: FRAME.astype({"label": "category"}), COLUMNS),
        ("pandas, object", lambda: FRAME.astype(object), COLUMNS),
        ("pandas, its own numbers", lambda: pandas.DataFrame(NUMBERED).astype({"label": "Int64"}), NUMBERED),
        ("pandas, a pair", lambda: pandas.DataFrame(PAIRS), PAIRS),
        ("polars", lambda: polars.DataFrame(COLUMNS), COLUMNS),
        ("polars, lazy", lambda: polars.LazyFrame(COLUMNS), COLUMNS),
        ("polars, categories", lambda: polars.DataFrame(COLUMNS).cast({"label": KIND}), COLUMNS),
        ("pyarrow", lambda: pyarrow.table(COLUMNS), COLUMNS),
        ("pyarrow, dictionary", lambda: pyarrow.table({**COLUMNS, "label": ENCODED}), COLUMNS),
        ("a batch", lambda: pyarrow.RecordBatch.from_pydict(COLUMNS), COLUMNS),
        ("columns by name", lambda: dict(COLUMNS), COLUMNS),
        ("arrays by name", lambda: {name: np.array(values) for name, values in COLUMNS.items()}, COLUMNS),
        ("lists", lambda: (TEXTS, LABELS), COLUMNS),
        ("series", lambda: (FRAME["text"], FRAME["label"]), COLUMNS),
        ("polars series", lambda: (polars.Series(TEXTS), polars.Series(LABELS)), COLUMNS),
        ("arrays", lambda: (np.array(TEXTS), np.array([1, 0, 1])), NUMBERED),
        ("a tensor of labels", lambda: (TEXTS, torch.tensor([1, 0, 1])), NUMBERED),
        ("a data set's columns", lambda: (Dataset.from_dict(COLUMNS)["text"], LABELS), COLUMNS),
        ("zipped back", lambda: tuple(zip(*zip(TEXTS, LABELS, strict=True), strict=True)), COLUMNS),
        ("three lists", lambda: (TEXTS, OTHERS, LABELS), PAIRS),
        ("pairs and labels", lambda: (list(zip(TEXTS, OTHERS, strict=True)), LABELS), PAIRS),
        ("tuples", lambda: list(zip(TEXTS, LABELS, strict=True)), COLUMNS),
        ("lists of two", lambda: [list(row) for row in zip(TEXTS, LABELS, strict=True)], COLUMNS),
        ("triples", lambda: list(zip(TEXTS, OTHERS, LABELS, strict=True)), PAIRS),
        ("nested pairs", lambda: list(zip(zip(TEXTS, OTHERS, strict=True), LABELS, strict=True)), PAIRS),
        ("an iterator of tuples", lambda: zip(TEXTS, LABELS, strict=True), COLUMNS),
        ("a matrix", lambda: FRAME.to_numpy(), COLUMNS),
        ("mappings", lambda: FRAME.to_dict("records"), COLUMNS),
        ("a tuple of mappings", lambda: tuple(FRAME.to_dict("records")), COLUMNS),
        ("a generator", lambda: (row for row in FRAME.to_dict("records")), COLUMNS),
        ("a data set", lambda: Dataset.from_dict(COLUMNS), COLUMNS),
        ("a stream", lambda: Dataset.from_dict(COLUMNS).to_iterable_dataset(), COLUMNS),
        ("torch's", TorchData, COLUMNS),
    ]
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(name: str) -> None:
    make, expected = FORMS[name]
    found = load_examples(make()).examples
    assert [(each.text, each.text_b, each.label) for each in found] == expected
    assert [type(each.label) for each in found] == [type(label) for *_, label in expected]
    assert [each.row for each in found] == [1, 2, 3]


def test_named_class_labels_come_through_arrow() -> None:
    data = Dataset.from_dict(NUMBERED).cast_column("label", ClassLabel(names=["neg", "pos"]))
    found = load_examples(data.data.table)
    assert found.label_names == ("neg", "pos")
    assert [each.label for each in found.examples] == LABELS


def test_a_row_of_an_array_is_several_labels() -> None:
    found = load_examples((TEXTS, np.eye(3, dtype=int)))
    assert [each.label for each in found.examples] == [(0,), (1,), (2,)]


def test_a_gap_makes_no_number_a_float() -> None:
    """pandas turns whole numbers with a gap into floats."""
    frame = pandas.DataFrame({"text": [*TEXTS, "more"], "label": [1, 0, None, 1]})
    found = load_examples(frame, collect_problems=True)
    assert [(each.label, type(each.label)) for each in found.examples] == [(1, int), (0, int), (1, int)]
    assert [problem.message for problem in found.problems] == [
        "the rows, row 3, the label in 'label': got null, expected a label; fill it in, or remove the row"
    ]


def test_columns_are_named_in_frames_as_in_files() -> None:
    frame = FRAME.rename(columns={"text": "review", "label": "verdict"}).assign(id=[1, 2, 3])
    found = load_examples(frame, text="review", label="verdict").examples
    assert [each.text for each in found] == TEXTS


def test_without_labels_a_tuple_is_two_texts() -> None:
    rows = list(zip(TEXTS, OTHERS, strict=True))
    for given in (rows, (TEXTS, OTHERS)):
        assert [(each.text, each.text_b) for each in stream_examples(given).examples] == rows
    assert [each.text for each in stream_examples(TEXTS).examples] == TEXTS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "got None, expected a path, an hf: name, a data frame, .* of (text, label) tuples"),
        (3, "got the int 3, expected a path"),
        (1.5, "got the float 1.5, expected a path"),
        (b"text", "got the bytes b'text', expected a path"),
        (dict, "got the type <class 'dict'>, expected a path"),
        ([], "no rows, expected at least one"),
        ({}, "got the dict {}, expected a path"),
        (FRAME.iloc[:0], "no rows, expected at least one"),
        (polars.DataFrame({"text": [], "label": []}), "no rows, expected at least one"),
        (([], []), "no rows, expected at least one"),
        ((TEXTS, LABELS[:2]), "got 3 of 'text' and 2 of 'label', expected the same number of each"),
        ({"text": TEXTS, "label": [1]}, "got 3 of 'text' and 1 of 'label', expected the same number of each"),
        ((TEXTS, None), "got None, expected (text, label) with one sequence of each"),
        ((TEXTS, 1), "got a tuple with the int 1, expected (text, label) with one sequence of each"),
        (("a good film", "pos"), "got a tuple with the str 'a good film', expected .*pass rows as a list"),
        ((("a", "b"), ("c", "d")), "got a tuple of 2 tuples of 2, which could be rows or columns"),
        ([[*TEXTS, "more"], [*LABELS, "pos"]], "row 1: got the list .*pass columns as a tuple"),
        (TEXTS, "row 1: got the str 'a good film', expected (text, label)"),
        ([("a", 1), 5], "row 2: got the int 5, expected (text, label)"),
        ([()], "row 1: got the tuple (), expected (text, label)"),
        (FRAME["text"], "got one column, a Series, expected a path"),
        (np.array(TEXTS), "got one column, a ndarray, expected a path"),
        (pandas.concat([FRAME, FRAME], axis=1), "more than one column is named 'text', 'label'"),
        (DatasetDict(train=Dataset.from_dict(COLUMNS)), "got a mapping of 'train', .*splits, pass one"),
        ([("a", 1), ("b", 0, 2)], "row 2: .*"),
        (torch.ones(3, 2), "row 1, the text in 'text': got the float 1.0, expected a string"),
    ],
)  # fmt: skip
def test_what_holds_no_rows_is_one_sentence(given: Any, message: str) -> None:
    pattern = re.escape(f"the rows{', ' if message.startswith('row') else ': '}{message}").replace(
        r"\.\*", ".*"
    )
    with pytest.raises(DataError, match=pattern) as caught:
        load_examples(given)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------- splits


def test_one_data_set_is_the_training_split() -> None:
    for given in (FRAME, TEXTS, (TEXTS, LABELS), COLUMNS, "train.csv", Dataset.from_dict(COLUMNS), None):
        assert list(named_splits(given)) == ["train"]


def test_a_split_that_is_none_is_not_there() -> None:
    assert list(named_splits({"train": TEXTS, "validation": None, "test": LABELS})) == ["train", "test"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": 1, "valid": 2}, "got a split 'valid', expected .*; did you mean 'validation'?"),
        ({"train": 1, "dev": 2}, "did you mean 'validation'?"),
        ({"trian": COLUMNS}, "did you mean 'train'?"),
        (
            {"train": 1, "test": 2, "unsupervised": 3},
            "got a split 'unsupervised', expected train, validation and test; pass a mapping of the splits "
            "to use: {name: data[name] for name in ['train', 'test']}",
        ),
        ({"test": TEXTS}, 'there is no split \'train\', expected a mapping {"train": …, "validation": …}'),
    ],
)
def test_splits_have_names(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message).replace(r"\.\*", ".*")):
        named_splits(given)


def test_no_library_is_imported_that_the_program_does_not_use() -> None:
    code = (
        "import sys; from ptuning.data import load_examples; load_examples([('a', 1), ('b', 0)]); "
        "load_examples((['a'], [1])); print({'pandas', 'polars', 'pyarrow', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
