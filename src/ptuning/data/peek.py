"""Look at the first rows of a source before they are used, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import TypeVar

from ptuning.errors import PTuningError

#: As many rows are looked at where the names of the columns do not say what they are.
PEEKED_ROWS = 1000

_Item = TypeVar("_Item")


def peek(items: Iterator[_Item], count: int = PEEKED_ROWS) -> tuple[list[_Item], Iterator[_Item]]:
    """The first ``count`` items, and all of them again.

    An item that cannot be read ends the look; its error is raised where the second value comes to it.
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
