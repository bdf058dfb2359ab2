"""A stream of rows in parts that are answered together, so that memory is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

CHARACTERS = 1 << 20
"""Maximum characters of a window: with longer texts it has fewer rows."""

_Row = TypeVar("_Row")


def windows(
    rows: Iterable[_Row | None], size: int, characters: Callable[[_Row], int]
) -> Iterator[list[_Row]]:
    """``rows`` in parts of up to ``size``; if reading fails, the incomplete part comes before the error.

    Args:
        rows: The rows. ``None`` among them ends a part: the next one may be slow.
        characters: The length of a row.
    """
    part: list[_Row] = []
    total = 0
    left = iter(rows)
    while True:
        try:
            row = next(left)
        except StopIteration:
            break
        except Exception:
            if part:
                yield part
            raise
        if row is not None:
            part.append(row)
            total += characters(row)
        if part and (row is None or len(part) == size or total >= CHARACTERS):
            yield part
            part, total = [], 0
    if part:
        yield part
