"""How errors name a place in the data: ``train.csv, line 7``.

Text files are counted in lines, the header of a CSV included, because that is what an editor shows;
Parquet files, Hub data sets and rows in memory are counted in rows from 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

Unit = Literal["line", "row"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where rows come from: a file (or data set) as the user named it, and what its rows are called."""

    name: str = "the rows"
    unit: Unit = "row"

    def at(self, row: int) -> str:
        """The name of one row: ``train.csv, line 7``."""
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
