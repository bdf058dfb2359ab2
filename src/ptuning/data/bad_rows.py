"""Rows that cannot be used: what is said of them, whether they are refused or left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ptuning.data.places import Note, Origin, Problem, option
from ptuning.errors import DataError

#: So many are named.
NAMED = 20

SKIP = option("bad_rows", "skip")


@dataclass(kw_only=True)
class LeftOut:
    """The bad rows that were left out so far: how many, and the first of them.

    Attributes:
        count: All of them.
        first: Up to :data:`NAMED`.
    """

    count: int = 0
    first: list[Problem] = field(default_factory=list)

    def add(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.count += 1
            if len(self.first) < NAMED:
                self.first.append(problem)

    def note(self, origin: Origin, used: int) -> Note | None:
        """What to tell the user, beside ``used`` rows that could be used; a warning if those are fewer."""
        if not self.count:
            return None
        rows = f"{self.count} of {self.count + used} rows"
        message = f"{origin.name}: left out {rows} that cannot be used: {_named(origin, self)}"
        most = self.count > used
        if most:
            message += "; that is most of them, so check that the file and its columns are the right ones"
        level: Literal["warning", "note"] = "warning" if most else "note"
        return Note(message, level=level, rows=(problem.row for problem in self.first))


def refusal(origin: Origin, problems: Sequence[Problem], used: int) -> DataError:
    """The error for ``problems`` beside ``used`` rows that could be used: how many, which, and what to do."""
    if len(problems) == 1:
        return DataError(f"{problems[0].message}, or leave such rows out with {SKIP}")
    found = LeftOut()
    found.add(problems)
    return DataError(
        f"{origin.name}: {found.count} of {found.count + used} rows cannot be used: {_named(origin, found)}; "
        f"mend or remove them, or leave them out with {SKIP}. The first: {problems[0].message}"
    )


def none_left(origin: Origin, found: LeftOut) -> DataError:
    """The error where leaving out bad rows leaves none."""
    return DataError(
        f"{origin.name}: none of the {found.count} rows can be used, expected some that can: "
        f"{_named(origin, found)}; check the file and its columns. The first: {found.first[0].message}"
    )


#: What the readers of files call what is wrong with a row, in words.
_IN_WORDS = {
    "cells": "another number of cells",
    "json": "no JSON object",
    "quotes": "a quote that does not close",
    "encoding": "broken characters",
    "mapping": "no mapping",
    "class": "no class",
    "label": "no label",
}


def _named(origin: Origin, found: LeftOut) -> str:
    """``lines 7 and 9 (blank text in 'text'), line 12 (null label) and 3 more``."""
    kinds: dict[str, list[int]] = {}
    for problem in found.first:
        kinds.setdefault(_IN_WORDS.get(problem.kind, problem.kind), []).append(problem.row)
    parts = [
        f"{origin.unit}{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))} ({kind})"
        for kind, rows in kinds.items()
    ]
    more = found.count - len(found.first)
    return "; ".join(parts) + (f" and {more} more" if more else "")
