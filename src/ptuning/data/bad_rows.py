"""Errors and notes about rows that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ptuning.data.places import Note, Origin, Problem, option
from ptuning.errors import DataError

#: Number of bad rows that a message names.
NAMED = 20

SKIP = option("bad_rows", "skip")


@dataclass(kw_only=True)
class LeftOut:
    """The bad rows that were left out so far.

    Attributes:
        count: How many.
        first: The first :data:`NAMED` of them.
    """

    count: int = 0
    first: list[Problem] = field(default_factory=list)

    def add(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.count += 1
            if len(self.first) < NAMED:
                self.first.append(problem)

    def join(self, other: LeftOut) -> None:
        """Add those of another count of the same source."""
        self.count += other.count
        self.first = sorted([*self.first, *other.first], key=lambda problem: problem.row)[:NAMED]

    def note(self, origin: Origin, used: int) -> Note | None:
        """A note for the user, given the number of ``used`` rows; a warning if most rows are bad."""
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
    """The error for bad rows, given the number of ``used`` rows: how many, which ones, what to do."""
    if len(problems) == 1:
        return offering_skip(problems[0].error)
    found = LeftOut()
    found.add(problems)
    return DataError(
        f"{origin.name}: {found.count} of {found.count + used} rows cannot be used: {_named(origin, found)}",
        remedy=f"correct or remove them, or leave them out with {SKIP}. The first: {problems[0].message}",
    )


def offering_skip(error: DataError) -> DataError:
    """``error``, with the option to leave out bad rows as another remedy."""
    skip = f"leave such rows out with {SKIP}"
    remedy = f"{error.remedy}, or {skip}" if error.remedy else skip
    return DataError(error.problem, got=error.got, expected=error.expected, remedy=remedy)


def none_left(origin: Origin, found: LeftOut) -> DataError:
    """The error if no row is left after leaving out the bad ones."""
    return DataError(
        f"{origin.name}: none of the {found.count} rows can be used: {_named(origin, found)}",
        remedy=f"check the file and its columns. The first: {found.first[0].message}",
    )


#: The kinds of problem that the readers report, in words.
_IN_WORDS = {
    "cells": "wrong number of cells",
    "json": "not a JSON object",
    "quotes": "a quote that is not closed",
    "encoding": "broken characters",
    "mapping": "not a mapping",
    "class": "not a class",
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
