"""What a page is made of: sections with paragraphs, charts and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ptuning.task import Label
from ptuning.visible import visible

_TEXT = 280
_LABEL = 60
_NOISE = 1e-12
"""Smaller numbers are rounding errors."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A number between 0 and 1, as a bar next to it."""

    text: str
    share: float
    kind: ClassVar[str] = "bar"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A metric with its interval and the baseline's, on a scale from 0 to 1."""

    value: float
    low: float | None
    high: float | None
    baseline: float | None
    kind: ClassVar[str] = "interval"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a row, shortened."""

    parts: tuple[str, ...]
    kind: ClassVar[str] = "texts"


Cell = str | Bar | Texts | Interval


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        caption: What is in it.
        columns: Their names.
        rows: The first cell of each is its heading.
        numeric: The indices of the columns with numbers.
        folded: Whether it is shown only when asked for.
        wide: Whether it takes the full width.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: tuple[int, ...] = ()
    folded: bool = False
    wide: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart.

    Attributes:
        svg: An ``<svg>`` element.
        alt: What it shows, in words.
        caption: How to read it.
        wide: Whether it takes the full width.
    """

    svg: str
    alt: str
    caption: str
    wide: bool = False
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A paragraph."""

    text: str
    loud: bool = False
    kind: ClassVar[str] = "note"


Block = Table | Chart | Note


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page, with a heading.

    Attributes:
        name: Its anchor.
        title: Its heading.
        lead: What it says and how to read it.
        blocks: Its content, in order.
    """

    name: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


def shown_label(label: Label, limit: int = _LABEL) -> str:
    """A label as text, shortened."""
    return _cut(visible(str(label)), limit)


def shown_texts(texts: tuple[str, ...]) -> Texts:
    """Texts on one line each, shortened, invisible characters shown."""
    return Texts(parts=tuple(_cut(visible(" ".join(text[: 4 * _TEXT].split())), _TEXT) for text in texts))


def number(value: float | None, digits: int = 3) -> str:
    """A metric as text; a dash for none. If it is small, ``digits`` are significant ones: units differ."""
    if value is None:
        return "–"
    if _NOISE < abs(value) < 0.1 ** (digits - 1):
        return f"{value:#.{digits}g}"
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(value: float | None) -> str:
    """A difference as text, with its sign; a dash for none."""
    return ("+" if value is not None and value >= 0 else "") + number(value)


def percent(share: float | None) -> str:
    """A share as text; a dash for none."""
    return "–" if share is None else f"{share:.1%}".replace("%", " %")


def several(count: int, noun: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
