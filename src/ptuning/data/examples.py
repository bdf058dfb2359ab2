"""From rows to examples: one or two texts and a label, each checked, each knowing its row.

An example never holds a blank text or a missing label: those are errors that name the row. Nothing is
converted: a number in a text column is an error too, because the file and the model would silently
disagree about how it is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ptuning.data.columns import Columns
from ptuning.data.places import Origin, Problem, listing, shortened
from ptuning.errors import ConfigError, DataError

_IN_MEMORY = Origin()
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold half a pair; no tokenizer can


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row of a task.

    Args:
        row: Its number as the user counts: the line of a text file, otherwise the row from 1.
        text: The text, or the first of two; never blank.
        text_b: The second text of a pair.
        label: A string, number or truth value; a tuple of them for multi-label; ``None`` if not asked for.
        origin: What the row came out of.
        kept: Values of columns that were to be carried through, by name.
    """

    row: int
    text: str
    text_b: str | None = None
    label: Any | None = None
    origin: Origin = _IN_MEMORY
    kept: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def place(self) -> str:
        """How errors name this row: ``train.csv, line 7``."""
        return self.origin.at(self.row)


class _RowError(Exception):
    """Raised within this module while a row is read; carries what a :class:`Problem` says."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def as_examples(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    columns: Columns,
    origin: Origin | str = "the rows",
    need_label: bool = True,
    *,
    label_separator: str | None = None,
    keep: Sequence[str] = (),
    problems: list[Problem] | None = None,
) -> Iterator[Example]:
    """Check rows and make them examples, one at a time.

    Args:
        rows: Numbered rows.
        columns: Where the texts and the label stand.
        origin: What errors call the source.
        need_label: Whether labels are read; without, every ``label`` is ``None``.
        label_separator: Splits a label cell into several labels (multi-label); then an empty cell means
            none of them.
        keep: Columns whose values an example carries along as they are; ``None`` where a row has none.
        problems: A list that takes the bad rows, which are then left out; without, the first one raises.

    Raises:
        DataError: A text is missing, null, blank or not text; a label is missing, null or blank.
        ConfigError: ``label_separator`` is empty.
    """
    if label_separator == "":
        raise ConfigError("label_separator: got '', expected what stands between two labels, such as '|'")
    origin = Origin(name=origin) if isinstance(origin, str) else origin
    for row, values in rows:
        try:
            example = _example(row, values, columns, origin, need_label, label_separator)
            yield replace(example, kept={name: values.get(name) for name in keep}) if keep else example
        except _RowError as error:
            message = f"{origin.at(row)}: {error}"
            if problems is None:
                raise DataError(message) from None
            problems.append(Problem(row=row, kind=error.kind, message=message))


def _example(
    row: int,
    values: Mapping[str, Any],
    columns: Columns,
    origin: Origin,
    need_label: bool,
    separator: str | None,
) -> Example:
    if (second := columns.overlooked(values)) is not None:
        raise _RowError(
            "second text",
            f"a second text in {second!r}, which the first row lacks, expected it in every row or in none; "
            "add it to all, or name the one text with text",
        )
    text = _text(values, columns.text)
    text_b = None if columns.text_b is None else _text(values, columns.text_b)
    label = _label(values, columns.label, separator) if need_label and columns.label is not None else None
    return Example(row=row, text=text, text_b=text_b, label=label, origin=origin)


def _value(values: Mapping[str, Any], column: str) -> Any:
    if column not in values:
        raise _RowError(
            f"no {column!r}",
            f"no {column!r}, expected it in every row; this row has {listing(values)}: add it, or remove "
            "the row",
        )
    return values[column]


def _text(values: Mapping[str, Any], column: str) -> str:
    value = _value(values, column)
    if value is None:
        raise _RowError(
            f"null text in {column!r}",
            f"the text in {column!r} is null, expected a string; fill it in, or remove the row",
        )
    if not isinstance(value, str):
        raise _RowError(
            f"no text in {column!r}",
            f"{column!r} holds the {type(value).__name__} {shortened(value)}, expected a string; put it "
            "in quotes in the file, or name another column as the text",
        )
    if not value.strip():
        raise _RowError(
            f"blank text in {column!r}",
            f"the text in {column!r} is blank ({shortened(value)}), expected at least one character that is "
            "not a space; fill it in, or remove the row",
        )
    _refuse_broken(value, "text", column)
    return value


def _refuse_broken(value: str, what: str, column: str) -> None:
    if not value.isascii() and _SURROGATE.search(value):
        raise _RowError(
            f"broken characters in {column!r}",
            f"the {what} in {column!r} holds half a surrogate pair ({shortened(value)}), expected whole "
            "characters; write the file again as UTF-8 from its source",
        )


def _label(values: Mapping[str, Any], column: str, separator: str | None) -> Any:
    value = _value(values, column)
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        value = value.tolist()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise _RowError(
            "null label",
            f"the label in {column!r} is {'null' if value is None else 'nan'}, expected one; fill it in, or "
            "remove the row",
        )
    if separator is not None:
        return _separated(value, column, separator)
    if isinstance(value, str) and not value.strip():
        raise _RowError(
            "blank label", f"the label in {column!r} is blank, expected one; fill it in, or remove the row"
        )
    if isinstance(value, (list, tuple)):
        return tuple(_label_item(item, column) for item in value)
    return _label_item(value, column)


def _separated(value: Any, column: str, separator: str) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise _RowError(
            "label that cannot be separated",
            f"the label in {column!r} is the {type(value).__name__} {shortened(value)}, expected a string to "
            f"split at {separator!r}; leave label_separator out",
        )
    _refuse_broken(value, "label", column)
    items = tuple(item.strip() for item in value.split(separator)) if value.strip() else ()
    if not all(items):
        raise _RowError(
            "blank label",
            f"the label in {column!r} is {shortened(value)}, expected a label on both sides of every "
            f"{separator!r}; remove the superfluous one",
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
        f"the label in {column!r} holds the {type(value).__name__} {shortened(value)}, expected a string, a "
        "number, true or false, or a list of them (multi-label); convert it, or name another column "
        "as the label",
    )
