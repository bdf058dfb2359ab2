"""What scikit-learn passes, as rows of a data set: texts or pairs of texts, and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_consistent_length

from ptuning.data import Example
from ptuning.errors import DataError
from ptuning.inference.predictor import example_of, refuse_wrong_number
from ptuning.kinds import BY_FORM, LabelForm
from ptuning.task import Task

TEXTS = (
    "a sequence of texts (a list, an array, a column), or of pairs of texts (two columns, an array of shape "
    "(n, 2), a list of tuples)"
)


def examples_of(given: Any, *, pair: bool | None = None) -> list[Example]:
    """``X`` as examples.

    Args:
        given: Strings or pairs of strings: a list, an array ``[N]``, ``[N, 1]`` or ``[N, 2]``, a series, a
            data frame with one or two columns, or any other iterable.
        pair: Whether every row must be a pair of texts, or must not; by default as the first row.

    Raises:
        DataError: anything else, no rows, or a blank text.
        ConfigError: a row that is neither a string nor a pair of strings, or not what the others are.
    """
    rows = _rows(given)
    if not rows:
        raise DataError("X: no rows", expected="at least one (a minimum of 1 is required)")
    found = [example_of(number, row) for number, row in enumerate(rows, 1)]
    if pair is None:
        pair = found[0].text_b is not None
    task = Task(problem_type=BY_FORM[LabelForm.NUMBER].name, pair=pair)
    for example in found:
        refuse_wrong_number(example, task)
    return found


def labelled(examples: Sequence[Example], labels: Sequence[Any]) -> list[Example]:
    """``examples`` with their labels.

    Raises:
        ValueError: scikit-learn's, if there are not as many of each.
        DataError: a single row, which cannot be trained on and validated on.
    """
    check_consistent_length(examples, labels)
    if len(examples) < 2:
        raise DataError("X", got="one sample", expected="at least two: some to train on, some to validate on")
    return [replace(example, label=label) for example, label in zip(examples, labels, strict=True)]


def refuse_no_labels(labels: Any, name: str) -> None:
    """Refuse ``y=None``, in scikit-learn's words.

    Raises:
        DataError: there are no labels.
    """
    if labels is None:
        raise DataError(f"{name} requires y to be passed, but the target y is None")


def _rows(given: Any) -> list[Any]:
    """The rows of ``X``: one item each, a text or a pair."""
    if hasattr(given, "to_numpy"):  # a series or a data frame
        given = given.to_numpy()
    if isinstance(given, np.ndarray):
        return _rows_of_array(given)
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise DataError("X", got=f"a {type(given).__name__}", expected=TEXTS)
    rows = list(given)
    if rows and all(isinstance(row, list | tuple) and len(row) == 1 for row in rows):
        return [row[0] for row in rows]  # one column
    return rows


def _rows_of_array(given: NDArray[Any]) -> list[Any]:
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim == 1 or (given.ndim == 2 and given.shape[1] == 2):
        rows: list[Any] = given.tolist()
        return rows
    raise DataError("X", got=f"an array of shape {given.shape}", expected=TEXTS)
