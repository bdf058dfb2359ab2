"""From rows to examples: one or two texts and a label, checked, with the number of the row.

An example never has a blank text or a missing label: those are errors that name the row. Values are not
converted: a number in a text column is an error too, because its spelling in the file may be different.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ptuning.data.bad_rows import offering_skip
from ptuning.data.columns import Columns
from ptuning.data.label_cells import switch
from ptuning.data.places import Origin, Problem, listing, located, option, shortened
from ptuning.errors import ConfigError, DataError

_IN_MEMORY = Origin()
_SURROGATE = re.compile("[\ud800-\udfff]")  # allowed in JSON, but not by tokenizers


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row of a task.

    Args:
        row: Its number as the user sees it: the line of a text file, otherwise the row from 1.
        text: The text, or the first of two; never blank.
        text_b: The second text of a pair.
        label: A string, number or boolean; a tuple of them for multi-label; ``None`` if labels are not read.
        origin: The source of the row.
        kept: Values of additional columns to keep, by name.
        task: The name of its task, if rows of different tasks are mixed.
    """

    row: int
    text: str
    text_b: str | None = None
    label: Any | None = None
    origin: Origin = _IN_MEMORY
    kept: Mapping[str, Any] | None = field(default=None, hash=False)
    task: str | None = None

    @property
    def place(self) -> str:
        """The name of this row in messages: ``train.csv, line 7``."""
        return self.origin.at(self.row)

    @property
    def characters(self) -> int:
        """The length of its texts."""
        return len(self.text) + len(self.text_b or "")


class _Unlabelled(Exception):
    """Raised within this module for a row that has no label."""


class _RowError(Exception):
    """Raised within this module for a bad row, with the kind and error of a :class:`Problem`."""

    def __init__(self, kind: str, error: DataError) -> None:
        super().__init__(error)
        self.kind, self.error = kind, error


def as_examples(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    columns: Columns,
    origin: Origin | str = "the rows",
    need_label: bool = True,
    *,
    label_separator: str | None = None,
    keep: Sequence[str] = (),
    no_label: Collection[str] = (),
    unlabelled: list[int] | None = None,
    problems: list[Problem] | None = None,
) -> Iterator[Example]:
    """Check rows and turn them into examples, one at a time.

    Args:
        rows: Numbered rows.
        columns: The columns of the texts and the label.
        origin: The name of the source in messages.
        need_label: Whether labels are read; if not, every ``label`` is ``None``.
        label_separator: Splits a label cell into several labels (multi-label); an empty cell then means that
            no label applies.
        keep: Additional columns to keep unchanged in ``Example.kept``; ``None`` for rows without a value.
        no_label: Values of the label column that mean "no label", such as ``-1``: these rows are left out.
            ``""`` is a blank or missing label. Numbers are compared by value.
        unlabelled: A list to which the numbers of these rows are added.
        problems: A list to which the bad rows are added, which are then left out; if ``None``, the first bad
            row raises.

    Raises:
        DataError: A text is missing, null, blank or not text; a label is missing, null or blank.
        ConfigError: ``label_separator`` is empty.
    """
    if label_separator == "":
        raise ConfigError("label_separator", got="''", expected="the text between two labels, such as '|'")
    origin = Origin(name=origin) if isinstance(origin, str) else origin
    labelled = need_label and (columns.label is not None or bool(columns.labels))
    labels = _LabelReader(columns, label_separator, no_label) if labelled else None
    for row, values in rows:
        try:
            example = _example(row, values, columns, origin, labels)
            yield replace(example, kept={name: values.get(name) for name in keep}) if keep else example
        except _Unlabelled:
            if unlabelled is not None:
                unlabelled.append(row)
        except _RowError as error:
            found = located(error.error, origin.at(row))
            if problems is None:
                raise offering_skip(found) from None
            problems.append(Problem(row=row, kind=error.kind, error=found))


def _example(
    row: int, values: Mapping[str, Any], columns: Columns, origin: Origin, labels: _LabelReader | None
) -> Example:
    if labels is not None:
        labels.refuse_unlabelled(values)
    if columns.task is not None:
        return _of_task(row, values, columns, columns.task, origin)
    if (second := columns.overlooked(values)) is not None:
        raise _RowError(
            "second text",
            DataError(
                f"a second text in {second!r}, which the first row does not have",
                expected="it in every row or in none",
                remedy=f"add it to all, or name the only text with {option('text')}",
            ),
        )
    text = _text(values, columns.text)
    text_b = None if columns.text_b is None else _text(values, columns.text_b)
    label = labels.read(values) if labels is not None else None
    return Example(row=row, text=text, text_b=text_b, label=label, origin=origin)


def _of_task(
    row: int, values: Mapping[str, Any], columns: Columns, task_column: str, origin: Origin
) -> Example:
    """A row that names its task, with one text or two."""
    task = _string(values, task_column, "task", blank="the name of a task")
    text = _text(values, columns.text)
    second = columns.text_b or columns.overlooked(values)
    given = None if second is None else values.get(second)
    missing = second is None or given is None or (isinstance(given, str) and not given.strip())
    text_b = None if missing or second is None else _text(values, second)
    return Example(row=row, text=text, text_b=text_b, origin=origin, task=task)


def _value(values: Mapping[str, Any], column: str) -> Any:
    if column not in values:
        raise _RowError(
            f"no {column!r}",
            DataError(
                f"no {column!r}",
                expected="it in every row",
                remedy=f"this row has {listing(values)}: add it, or remove the row",
            ),
        )
    return values[column]


def _text(values: Mapping[str, Any], column: str) -> str:
    return _string(values, column, "text", blank="at least one character that is not a space")


def _string(values: Mapping[str, Any], column: str, what: str, *, blank: str) -> str:
    """A cell's string: the text or the task.

    Args:
        blank: What a blank one should be.
    """
    value = _value(values, column)
    if value is None:
        raise _RowError(
            f"null {what} in {column!r}",
            DataError(
                f"the {what} in {column!r}",
                got="null",
                expected="a string",
                remedy="fill it in, or remove the row",
            ),
        )
    if not isinstance(value, str):
        raise _RowError(
            f"no {what} in {column!r}",
            DataError(
                f"the {what} in {column!r}",
                got=f"the {type(value).__name__} {shortened(value)}",
                expected="a string",
                remedy=f"quote it in the file, or name another column as the {what}",
            ),
        )
    if not value.strip():
        raise _RowError(
            f"blank {what} in {column!r}",
            DataError(
                f"the {what} in {column!r}",
                got=shortened(value),
                expected=blank,
                remedy="fill it in, or remove the row",
            ),
        )
    _refuse_broken(value, what, column)
    return value


def _refuse_broken(value: str, what: str, column: str) -> None:
    if not value.isascii() and _SURROGATE.search(value):
        raise _RowError(
            f"broken characters in {column!r}",
            DataError(
                f"the {what} in {column!r}",
                got=f"half a surrogate pair in {shortened(value)}",
                expected="complete characters",
                remedy="write the file again as UTF-8 from its source",
            ),
        )


class _LabelReader:
    """Reads the label of a row from its column, or from one column of 0 and 1 per label."""

    def __init__(self, columns: Columns, separator: str | None, no_label: Collection[str]) -> None:
        self._columns = columns
        self._cells = columns.labels if columns.label is None else (columns.label,)
        self._separator = separator
        self._no_label = frozenset(map(_comparable, no_label))

    def refuse_unlabelled(self, values: Mapping[str, Any]) -> None:
        """Raise :class:`_Unlabelled` if the label cell means "no label"."""
        if not self._no_label:
            return
        if any(_comparable(_plain(values.get(name))) in self._no_label for name in self._cells):
            raise _Unlabelled

    def read(self, values: Mapping[str, Any]) -> Any:
        if self._columns.label is not None:
            name = self._columns.label
            return _label(_plain(_value(values, name)), name, self._separator)
        return tuple(name for name in self._cells if _is_on(_plain(_value(values, name)), name))


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays as Python values."""
    return value.tolist() if hasattr(value, "tolist") else value


def _comparable(value: Any) -> str | float:
    """A label as it is compared with ``no_label``: a number's value, or the stripped text."""
    word = "" if value is None else str(value).strip()
    try:
        number = float(word)
    except ValueError:
        return word
    return word if math.isnan(number) else number


def _is_on(value: Any, column: str) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        value = ""
    on = switch(value)
    if on is None:
        raise _RowError(
            f"no 0 or 1 in {column!r}",
            DataError(
                f"the label column {column!r}",
                got=shortened(value),
                expected="0 or 1 (or true or false): whether the label applies",
                remedy="correct or remove the row",
            ),
        )
    return on


def _label(value: Any, column: str, separator: str | None) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise _RowError(
            "null label",
            DataError(
                f"the label in {column!r}",
                got="null" if value is None else "nan",
                expected="a label",
                remedy="fill it in, or remove the row",
            ),
        )
    if separator is not None:
        return _separated(value, column, separator)
    if isinstance(value, str) and not value.strip():
        raise _RowError(
            "blank label",
            DataError(
                f"the label in {column!r}",
                got=shortened(value),
                expected="a label",
                remedy="fill it in, or remove the row",
            ),
        )
    if isinstance(value, (list, tuple)):
        return tuple(_label_item(_plain(item), column) for item in value)
    return _label_item(value, column)


def _separated(value: Any, column: str, separator: str) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise _RowError(
            "label that cannot be separated",
            DataError(
                f"the label in {column!r}",
                got=f"the {type(value).__name__} {shortened(value)}",
                expected=f"a string to split at {separator!r}",
                remedy=f"leave out {option('label_separator')}",
            ),
        )
    _refuse_broken(value, "label", column)
    items = tuple(item.strip() for item in value.split(separator)) if value.strip() else ()
    if not all(items):
        raise _RowError(
            "blank label",
            DataError(
                f"the label in {column!r}",
                got=shortened(value),
                expected=f"a label on both sides of every {separator!r}",
                remedy="remove the extra separator",
            ),
        )
    return items


def _label_item(value: Any, column: str) -> str | int | float | bool:
    if isinstance(value, str):
        _refuse_broken(value, "label", column)
        return str(value)
    if isinstance(value, (bool, int, float)):
        return value
    raise _RowError(
        "label of an unknown kind",
        DataError(
            f"the label in {column!r}",
            got=f"the {type(value).__name__} {shortened(value)}",
            expected="a string, a number, true or false, or a list of them (multi-label)",
            remedy="convert it, or name another column as the label",
        ),
    )
