"""Inspect the first rows of a source before they are used, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import TypeVar

from ptuning.errors import PTuningError

#: Number of rows that are inspected if column names do not say what the columns are.
PEEKED_ROWS = 1000

_Item = TypeVar("_Item")


def peek(items: Iterator[_Item], count: int = PEEKED_ROWS) -> tuple[list[_Item], Iterator[_Item]]:
    """The first ``count`` items, and an iterator over all items.

    If reading an item fails, the list ends before it, and the iterator raises the error at that item.
    """
    first: list[_Item] = []
    try:
        first.extend(islice(items, count))
    except PTuningError as error:
        return first, _then_raise(first, error)
    return first, chain(first, items)


def _then_raise(items: list[_Item], error: PTuningError) -> Iterator[_Item]:
    yield from items
    raise error
