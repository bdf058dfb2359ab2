"""How errors name a place in the data: ``train.csv, line 7``.

Text files are counted in lines, the header of a CSV included, because that is what an editor shows;
Parquet files, spreadsheets, Hub data sets and rows in memory are counted in rows from 1, a JSON array in
items from 1. In a folder each row is named by its own file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

Unit = Literal["line", "row", "item"]


@dataclass(kw_only=True)
class Parts:
    """The files of a folder: the last row before each, counted over the whole folder, and what it is called.

    A file that holds one row has no row of its own to name (``origin`` is its path alone).
    """

    before: list[int] = field(default_factory=list)
    origins: list[Origin | str] = field(default_factory=list)

    def add(self, before: int, origin: Origin | str) -> None:
        """The next file begins after row ``before``."""
        self.before.append(before)
        self.origins.append(origin)

    def at(self, row: int) -> str:
        """The name of a row: its file, and its number in it."""
        which = bisect_right(self.before, row - 1) - 1
        origin = self.origins[which]
        return origin if isinstance(origin, str) else origin.at(row - self.before[which])


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where rows come from: a file (or data set) as the user named it, and what its rows are called.

    Of a folder, ``parts`` are its files.
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
    """A row that cannot be an example: its number, what kind of problem, and the whole message."""

    row: int
    kind: str
    message: str


def listing(values: Iterable[Any], limit: int = 12) -> str:
    """``'a', 'b', 'c' and more``: at most ``limit`` values, as Python writes them."""
    head = list(islice(values, limit + 1))
    shown = ", ".join(repr(value) for value in head[:limit])
    return f"{shown} and more" if len(head) > limit else shown


def shortened(value: Any, limit: int = 80) -> str:
    """A value as Python writes it, cut to ``limit`` characters so that an error stays one paragraph."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says, which may be cut."""
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line if len(line) <= 300 else f'{line[:299]}…'}"
