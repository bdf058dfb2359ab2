"""What a wrong name may have meant, found in a time that does not depend on how many names there are."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator

LETTERS = string.ascii_letters + string.digits + "._-"
LONGEST = 40
"""Characters of a name that is looked at: there are some 130 names near it for each."""


def one_typo_away(name: str, known: Callable[[str], bool]) -> str | None:
    """A known name that differs from ``name`` by one letter that is missing, added, wrong, or two swapped.

    Args:
        known: Whether there is such a name.
    """
    return None if len(name) > LONGEST else next(filter(known, _near(name)), None)


def _near(name: str) -> Iterator[str]:
    halves = [(name[:cut], name[cut:]) for cut in range(len(name) + 1)]
    for head, tail in halves[:-1]:
        yield head + tail[1:]
    for head, tail in halves[:-2]:
        yield head + tail[1] + tail[0] + tail[2:]
    for head, tail in halves:
        for letter in LETTERS:
            yield head + letter + tail[1:]
            yield head + letter + tail
