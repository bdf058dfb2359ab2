"""Where the overlapping windows of a long text are. Pure functions of token ids.

The windows are those of a tokenizer's ``stride`` and ``return_overflowing_tokens``. The first one is what
truncation leaves. Of a pair, the text with more tokens is read in windows, and the other one is in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Windows(NamedTuple):
    """The windows of a row.

    Attributes:
        place: Where the text that is read in windows is in the first of them.
        texts: The tokens of that text in each window.
        cut: Whether tokens of the row are in none of them.
    """

    place: slice
    texts: list[list[int]]
    cut: bool


def windows_in(
    first: Sequence[int], uncut: tuple[list[int], list[int]], *, maximum: int, overlap: float, left: bool
) -> Windows:
    """The windows of a row.

    Args:
        first: The row as truncation leaves it: for each token 0 for the first text, 1 for the second, -1 for
            a special token.
        uncut: The same of the uncut row, or as much of it as the windows can take; and its token ids.
        maximum: How many windows.
        overlap: The share of a window's text that is also in the window before it.
        left: Whether truncation keeps the end of a text, so that the windows go from the end to the start.
    """
    segments, ids = uncut
    text = int(segments.count(1) > segments.count(0))
    if text not in first:  # the special tokens leave no place
        return Windows(place=slice(0, 0), texts=[[]], cut=True)
    place = slice(first.index(text), len(first) - first[::-1].index(text))
    own = [token for token, segment in zip(ids, segments, strict=True) if segment == text]
    room = place.stop - place.start
    step = room - int(room * overlap)
    needed = 1 + max(0, -((room - len(own)) // step))
    starts = [number * step for number in range(min(needed, maximum))]
    if left:
        own.reverse()
    texts = [own[start : start + room] for start in starts]
    if left:
        texts = [each[::-1] for each in texts]
    other = segments.count(1 - text) > first.count(1 - text)
    return Windows(place=place, texts=texts, cut=needed > maximum or other)
