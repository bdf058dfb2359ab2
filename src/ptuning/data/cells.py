"""From rows of cells to rows by column name: header detection, and checks of the number of cells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from ptuning.data.columns import LABEL_NAMES, TEXT_NAMES
from ptuning.data.places import counted, listing
from ptuning.data.reading import Reading, Rows
from ptuning.errors import DataError

Cells = Iterator[tuple[int, list[str]]]

_NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*%?\s*")
_KNOWN = frozenset(
    {*TEXT_NAMES, *LABEL_NAMES, *(name for names in TEXT_NAMES.values() for name in names)}
) | {
    *("id", "index", "idx", "guid", "label_name", "v1", "v2"),
}
_MAX_LABELS = 200  # a column with more distinct values does not contain labels
_SENTENCE = 5  # a column name hardly ever has so many words
_PHRASE = 3  # the name of a file's only column hardly ever has so many words


def is_number(cell: str) -> bool:
    """Whether a cell is a number, with a decimal point or comma."""
    return _NUMBER.fullmatch(cell) is not None


class Column:
    """Statistics of a column's cells so far: whether they are numbers, repeated values (labels), or
    neither.
    """

    def __init__(self) -> None:
        self._cells = 0
        self._numbers = 0
        self._words = 0
        self._values: Counter[str] | None = Counter()

    def add(self, cell: str) -> None:
        """Add one more cell."""
        cell = cell.strip()
        if not cell:
            return
        self._cells += 1
        self._numbers += is_number(cell)
        self._words += min(len(cell.split()), 50)
        if self._values is not None:
            self._values[cell] += 1
            if len(self._values) > _MAX_LABELS:
                self._values = None

    @property
    def numeric(self) -> bool:
        """Whether every cell was a number."""
        return 0 < self._cells == self._numbers

    @property
    def words(self) -> float:
        """The mean number of words."""
        return self._words / max(self._cells, 1)

    def repeats(self, cell: str) -> bool:
        """Whether the column has few distinct values, and this is one of them."""
        values = self._values
        return values is not None and 0 < len(values) <= self._cells / 2 and cell.strip() in values

    @property
    def is_typed(self) -> bool:
        """Whether the column has a recognisable kind of value: numbers, or few distinct values."""
        return self.numeric or (self._values is not None and 0 < len(self._values) <= self._cells / 2)

    def fits(self, cell: str) -> bool:
        """Whether a cell is of this column's kind, if :attr:`is_typed`."""
        return is_number(cell) if self.numeric else self.repeats(cell)


def profile(rows: Iterable[Sequence[str]]) -> list[Column]:
    """The columns of ``rows``; rows with another number of cells than the first are ignored."""
    columns: list[Column] = []
    for row in rows:
        columns = columns or [Column() for _ in row]
        if len(row) == len(columns):
            for column, cell in zip(columns, row, strict=True):
                column.add(cell)
    return columns


def has_names(first: Sequence[str], rest: Sequence[Sequence[str]], named: Iterable[str]) -> bool | None:
    """Whether the first row is a header; ``None`` if that is not certain."""
    given = set(named)
    cells = [cell.strip() for cell in first]
    numbers = {name for name in given if name.isdecimal() and 1 <= int(name) <= len(cells)}
    if (given - numbers) & set(cells):
        return True
    if given and given == numbers and not given <= set(cells):
        return False  # columns named by number, and no column has such a name
    columns = profile(row for row in rest if len(row) == len(first)) or [Column() for _ in first]
    pairs = [(cell, column) for cell, column in zip(cells, columns, strict=True) if cell]
    if _counted(cells) or any(_known(cell) and not column.repeats(cell) for cell, column in pairs):
        return True
    as_data = any(
        (column.numeric and is_number(cell)) or (not column.numeric and column.repeats(cell))
        for cell, column in pairs
    )
    as_names = any(column.numeric and not is_number(cell) for cell, column in pairs)
    if as_data:
        return None if as_names else False
    if as_names:
        return True
    words = _SENTENCE if len(cells) > 1 else _PHRASE
    sentence = any(len(cell.split()) >= words and column.words >= words for cell, column in pairs)
    return None if sentence else True


def _known(cell: str) -> bool:
    return cell.casefold().replace(" ", "_").replace("-", "_") in _KNOWN


def _counted(cells: Sequence[str]) -> bool:
    """Whether the names are those that pandas generates: 0, 1, 2, after an empty one for the index."""
    cells = cells[1:] if cells and not cells[0] else cells
    return len(cells) > 1 and list(cells) == [str(number) for number in range(len(cells))]


def rows_of(
    cells: Cells, beginning: Sequence[Sequence[str]], reading: Reading, *, quotes_are_text: bool = False
) -> Rows:
    """Rows by column name.

    Args:
        cells: All rows, numbered, the header (if any) first; empty rows are left out.
        beginning: The first of these rows, for header detection.
        reading: Has the ``header`` option, and receives notes.
        quotes_are_text: Whether double quotes were detected to be characters of the text.
    """
    numbered = next(cells, None)
    if numbered is None:
        return
    first = numbered[1]
    with_names = reading.header == "first"
    if reading.header == "auto":
        found = has_names(first, beginning[1:], reading.named)
        if found is None:
            raise DataError(
                f"{reading.origin.name}: cannot tell whether the first row ({listing(map(_cut, first), 4)}) "
                "has the column names or data",
                remedy="pass --data.header none (the columns are then called 1, 2, 3 …) or --data.header "
                "first",
            )
        with_names = found
        if not with_names:
            reading.add_note(
                f"no header: the first row ({listing(map(_cut, first), 4)}) looks like the others, so the "
                f"columns are numbered, 1 to {len(first)}; if it is a header, pass --data.header first"
            )
    names = _names(first, reading) if with_names else [str(number) for number in range(1, len(first) + 1)]
    needed = (
        max((at + 1 for at, name in enumerate(first) if name.strip()), default=1)
        if with_names
        else len(first)
    )
    if with_names and (numbered := next(cells, None)) is None:
        reading.refuse_empty(
            DataError(
                f"no rows after the column names ({listing(map(_cut, first), 6)})",
                expected="at least one",
                remedy="check that this is the right file and that whatever wrote it finished (if its only "
                "row is data, pass --data.header none)",
            )
        )
    header = first if with_names and len(first) > 1 else None
    yield from _complete_rows(chain([numbered], cells), names, needed, header, reading, quotes_are_text)


def _complete_rows(
    cells: Cells,
    names: Sequence[str],
    needed: int,
    header: list[str] | None,
    reading: Reading,
    quotes_are_text: bool,
) -> Rows:
    """Rows with a cell for each name. Empty or unnamed cells at the end may be missing or superfluous."""
    count = len(names)
    advice = (
        "put double quotes around cells that contain the separator or a line break, or correct the row"
        if reading.origin.unit == "line"
        else "correct the row, or name all columns"
    )
    for number, row in cells:
        if len(row) != count:
            if len(row) > count and not any(cell.strip() for cell in row[count:]):
                row = row[:count]
            elif needed <= len(row) < count:
                row = row + [""] * (count - len(row))
            else:
                quoted = quotes_are_text and any('"' in cell for cell in row)
                reading.bad_row(
                    number,
                    "cells",
                    DataError(
                        got=counted(len(row), "cell"),
                        expected=f"{count} ({listing(names)})",
                        remedy="if double quotes enclose cells, pass --data.quoting csv; otherwise correct "
                        "the row"
                        if quoted
                        else advice,
                    ),
                )
                continue
        if header is not None and row == header:
            reading.bad_row(
                number,
                "header",
                DataError(
                    got="the column names again",
                    expected="a row of data",
                    remedy="remove the line",
                ),
            )
            continue
        yield number, dict(zip(names, row, strict=True))


def _names(first: Sequence[str], reading: Reading) -> list[str]:
    """Distinct column names: stripped, and numbered if empty or repeated."""
    stripped = [name.strip() for name in first]
    if changed := [name for name, plain in zip(first, stripped, strict=True) if plain and plain != name]:
        reading.add_note(f"spaces around column names were removed: {listing(changed, 6)}")
    return distinct(stripped, reading)


def distinct(names: Sequence[str], reading: Reading) -> list[str]:
    """``names`` made distinct: empty and repeated ones get the number of their column."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1 and name)
    made = [
        f"column {number}" if not name else f"{name} (column {number})" if name in repeated else name
        for number, name in enumerate(names, 1)
    ]
    if repeated:
        reading.add_note(
            f"more than one column is named {listing(repeated, 6)}; they are renamed "
            f"{listing([new for new, name in zip(made, names, strict=True) if name in repeated], 6)}"
        )
    return made


def _cut(cell: str) -> str:
    return cell if len(cell) <= 40 else f"{cell[:39]}…"
