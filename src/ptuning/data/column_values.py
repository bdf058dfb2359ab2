"""What a column may contain (text, label, …), judged by its values in the first rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptuning.data.label_cells import switch

#: With fewer rows, that all values differ is no evidence.
FEW_ROWS = 10
#: Texts have more words than this on average.
WORDS = 2.5
#: Titles have more words than this on average; most labels are one word.
ONE_WORD = 1.5
#: Minimum share of distinct values in a column of texts; labels have fewer.
DIFFERENT = 0.2

_UNNAMED = re.compile(r"(?i)\s*|unnamed[:_ ]*\d*(_level_\d+)?|column \d+")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Statistics of a column's values.

    Attributes:
        filled: How many are neither missing nor blank.
        distinct: How many distinct values there are.
        words: The mean number of words per value.
        all_text, all_whole, all_numbers: Whether all are strings; whole numbers; numbers (as text, too).
        switches: Whether all are 0 or 1, true or false.
        flat: Whether all are values, or lists of values, that could be labels.
    """

    filled: int
    distinct: int
    words: float
    all_text: bool
    all_whole: bool
    all_numbers: bool
    switches: bool
    flat: bool

    @property
    def is_prose(self) -> bool:
        """Whether the values look like texts."""
        return self.all_text and self.words > WORDS and self.distinct > DIFFERENT * self.filled

    @property
    def is_label(self) -> bool:
        """Whether it can be the label: not empty, not a constant, not an id, not texts."""
        if self.filled < 1 or self.distinct < 2 or not self.flat or self.is_prose:
            return False
        scores = self.all_numbers and not self.all_whole  # may be different in every row
        return scores or self.filled < FEW_ROWS or self.distinct < 0.9 * self.filled


def facts(name: str, rows: Sequence[Mapping[str, Any]]) -> Facts:
    """The statistics of column ``name`` of ``rows``."""
    values = [_plain(row.get(name)) for row in rows]
    found = [
        value for value in values if not (value is None or (isinstance(value, str) and not value.strip()))
    ]
    texts = [value for value in found if isinstance(value, str)]
    numbers = [_number(value) for value in found]
    return Facts(
        filled=len(found),
        distinct=len(set(map(repr, found))),
        words=sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0,
        all_text=bool(found) and len(texts) == len(found),
        all_whole=bool(found) and all(number is not None and number == round(number) for number in numbers),
        all_numbers=bool(found) and None not in numbers,
        switches=bool(found) and all(switch(value) is not None for value in found),
        flat=all(isinstance(value, str | int | float | list | tuple) for value in found),
    )


def is_unnamed(name: str) -> bool:
    """Whether a column has no real name: an index, or an empty cell in the header."""
    return _UNNAMED.fullmatch(name) is not None


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _number(value: object) -> float | None:
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value.replace(",", ".")) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None
