"""How messages name a place in the data: ``train.csv, line 7``.

Rows of text files are numbered by line, the header of a CSV included, because that is what an editor shows;
rows of Parquet files, spreadsheets, Hub data sets and in memory from 1; JSON arrays by item from 1. In a
folder, each row is named by its own file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, Self

from ptuning.errors import DataError

Unit = Literal["line", "row", "item"]


@dataclass(kw_only=True)
class Parts:
    """The files of a folder that is read as one table.

    Attributes:
        before: For each file, the number of rows in the files before it.
        origins: For each file, its origin; for a file that is a single row, its path.
    """

    before: list[int] = field(default_factory=list)
    origins: list[Origin | str] = field(default_factory=list)

    def add(self, before: int, origin: Origin | str) -> None:
        """Add the next file, which starts after row ``before``."""
        self.before.append(before)
        self.origins.append(origin)

    def at(self, row: int) -> str:
        """The name of a row: its file, and its number in that file."""
        which = bisect_right(self.before, row - 1) - 1
        origin = self.origins[which]
        return origin if isinstance(origin, str) else origin.at(row - self.before[which])


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where rows come from.

    Attributes:
        name: The file or data set, as the user named it.
        unit: What its rows are called.
        parts: The files of a folder.
    """

    name: str = "the rows"
    unit: Unit = "row"
    parts: Parts | None = field(default=None, compare=False, repr=False)

    def at(self, row: int) -> str:
        """The name of one row: ``train.csv, line 7``."""
        if self.parts is not None:
            return self.parts.at(row)
        return f"{self.name}, {self.unit} {row}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A row that cannot be used.

    Attributes:
        row: Its number.
        kind: The kind of problem, in a few words.
        error: What is wrong with it, with the name of the row.
    """

    row: int
    kind: str
    error: DataError

    @property
    def message(self) -> str:
        return str(self.error)


class Note(str):
    """Something that was detected or decided while reading a source, as a sentence for the user.

    Attributes:
        level: ``warning`` if it may harm the result.
        rows: The rows that it is about, numbered as for the user.
    """

    level: Literal["warning", "note"]
    rows: tuple[int, ...]

    def __new__(
        cls, message: str, *, level: Literal["warning", "note"] = "note", rows: Iterable[int] = ()
    ) -> Self:
        made = super().__new__(cls, message)
        made.level, made.rows = level, tuple(rows)
        return made


def option(name: str, value: str = "") -> str:
    """An option in a message: ``--data.bad_rows skip (in Python: bad_rows='skip')``."""
    return f"--data.{name}{f' {value}' if value else ''} (in Python: {name}={repr(value) if value else ''})"


def located(error: DataError, place: str) -> DataError:
    """``error`` with the name of its row or file in front: ``train.csv, line 7, the label: got …``."""
    joint = ": " if error.got is None else ", "
    problem = joint.join(filter(None, (place, error.problem)))
    return DataError(problem, got=error.got, expected=error.expected, remedy=error.remedy)


def counted(count: int, noun: str = "row") -> str:
    """``1 row``, ``2 rows``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listing(values: Iterable[Any], limit: int = 12) -> str:
    """``'a', 'b', 'c' and more``: the ``repr`` of at most ``limit`` values."""
    head = list(islice(values, limit + 1))
    shown = ", ".join(repr(value) for value in head[:limit])
    return f"{shown} and more" if len(head) > limit else shown


def shortened(value: Any, limit: int = 80) -> str:
    """``repr(value)``, cut to ``limit`` characters so that an error stays one paragraph."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def first_line(error: BaseException) -> str:
    """The class and the first line of another library's error, cut if long."""
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line if len(line) <= 300 else f'{line[:299]}…'}"
