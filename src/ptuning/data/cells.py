"""From rows of cells to rows by column: whether the first row holds names, and whether a row is whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

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
_MOST_VALUES = 200  # a column with more distinct values is no list of labels
_SENTENCE = 5  # words that a name hardly has
_PHRASE = 3  # words that the name of a file's only column hardly has


def is_number(cell: str) -> bool:
    """Whether a cell is written as a number, in any country's way."""
    return _NUMBER.fullmatch(cell) is not None


class Column:
    """What a column's cells have been so far: numbers, values that repeat (labels), or neither."""

    def __init__(self) -> None:
        self._cells = 0
        self._numbers = 0
        self._words = 0
        self._values: Counter[str] | None = Counter()

    def add(self, cell: str) -> None:
        """Take one more cell."""
        cell = cell.strip()
        if not cell:
            return
        self._cells += 1
        self._numbers += is_number(cell)
        self._words += min(len(cell.split()), 50)
        if self._values is not None:
            self._values[cell] += 1
            if len(self._values) > _MOST_VALUES:
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
        """Whether the cells are a few values over and over, and this is one of them."""
        values = self._values
        return values is not None and 0 < len(values) <= self._cells / 2 and cell.strip() in values

    @property
    def telling(self) -> bool:
        """Whether a cell can be told to belong here or not."""
        return self.numeric or (self._values is not None and 0 < len(self._values) <= self._cells / 2)

    def fits(self, cell: str) -> bool:
        """Whether a cell is of this column's kind; only where that can be told."""
        return is_number(cell) if self.numeric else self.repeats(cell)


def profile(rows: Iterable[Sequence[str]]) -> list[Column]:
    """The columns of rows of the same number of cells as the first."""
    columns: list[Column] = []
    for row in rows:
        columns = columns or [Column() for _ in row]
        if len(row) == len(columns):
            for column, cell in zip(columns, row, strict=True):
                column.add(cell)
    return columns


def has_names(first: Sequence[str], rest: Sequence[Sequence[str]], named: Iterable[str]) -> bool | None:
    """Whether the first row holds the columns' names; ``None`` where it cannot be told."""
    given = set(named)
    cells = [cell.strip() for cell in first]
    numbers = {name for name in given if name.isdecimal() and 1 <= int(name) <= len(cells)}
    if (given - numbers) & set(cells):
        return True
    if given and given == numbers and not given <= set(cells):
        return False  # columns named by number, and none is called so
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
    """Names that pandas makes up: 0, 1, 2, and before them an empty one for its index."""
    cells = cells[1:] if cells and not cells[0] else cells
    return len(cells) > 1 and list(cells) == [str(number) for number in range(len(cells))]


def rows_of(cells: Cells, beginning: Sequence[Sequence[str]], reading: Reading) -> Rows:
    """Rows by column.

    Args:
        cells: All rows, numbered, the one with the names (if any) first; empty rows are left out.
        beginning: The first of them again, to tell whether there are names.
        reading: Says whether there are names (``header``), and is told.
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
                f"{reading.origin.name}: the first row ({listing(map(_cut, first), 4)}) may be the columns' "
                "names or a row of data, expected one of them for certain; say --data.header none (the "
                "columns are then called 1, 2, 3 …) or --data.header first"
            )
        with_names = found
        if not with_names:
            reading.say(
                f"no header: the first row ({listing(map(_cut, first), 4)}) looks like the others, so the "
                f"columns are called by number, 1 to {len(first)}; if it holds names, say --data.header first"
            )
    names = _names(first, reading) if with_names else [str(number) for number in range(1, len(first) + 1)]
    needed = (
        max((at + 1 for at, name in enumerate(first) if name.strip()), default=1)
        if with_names
        else len(first)
    )
    if with_names and (numbered := next(cells, None)) is None:
        reading.refuse_empty(
            f"no rows after the columns' names ({listing(map(_cut, first), 6)}), "
            "expected at least one; check that this is the right file and that whatever wrote it finished "
            "(if its one row is data, say --data.header none)"
        )
    yield from _whole_rows(
        _again(numbered, cells), names, needed, first if with_names and len(first) > 1 else None, reading
    )


def _whole_rows(
    cells: Cells, names: Sequence[str], needed: int, header: list[str] | None, reading: Reading
) -> Rows:
    """Rows with a cell for each name; what is empty or unnamed at the end may be missing, or too much."""
    count = len(names)
    advice = (
        "put double quotes around a cell that holds the separator or a line break, or mend the row"
        if reading.origin.unit == "line"
        else "mend the row, or name all columns"
    )
    for number, row in cells:
        if len(row) != count:
            if len(row) > count and not any(cell.strip() for cell in row[count:]):
                row = row[:count]
            elif needed <= len(row) < count:
                row = row + [""] * (count - len(row))
            else:
                reading.bad(
                    number,
                    "cells",
                    f"{counted(len(row), 'cell')}, expected {count} ({listing(names)}); {advice}",
                )
                continue
        if header is not None and row == header:
            reading.bad(number, "header", "the columns' names again, expected a row of data; remove the line")
            continue
        yield number, dict(zip(names, row, strict=True))


def _again(first: tuple[int, list[str]], rest: Cells) -> Cells:
    yield first
    yield from rest


def _names(first: Sequence[str], reading: Reading) -> list[str]:
    """Distinct names: stripped, numbered where there is none, and told apart by number where they repeat."""
    stripped = [name.strip() for name in first]
    if changed := [name for name, plain in zip(first, stripped, strict=True) if plain and plain != name]:
        reading.say(f"spaces around the column names were removed: {listing(changed, 6)}")
    return distinct(stripped, reading)


def distinct(names: Sequence[str], reading: Reading) -> list[str]:
    """Names that occur once: an empty or repeated one is called after its place."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1 and name)
    made = [
        f"column {number}" if not name else f"{name} (column {number})" if name in repeated else name
        for number, name in enumerate(names, 1)
    ]
    if repeated:
        reading.say(
            f"more than one column is named {listing(repeated, 6)}; they are called "
            f"{listing([new for new, name in zip(made, names, strict=True) if name in repeated], 6)} here"
        )
    return made


def _cut(cell: str) -> str:
    return cell if len(cell) <= 40 else f"{cell[:39]}…"
