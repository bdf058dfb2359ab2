"""What every reader of a source is told, and where it reports what it found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

from ptuning.data.bad_rows import SKIP
from ptuning.data.places import Origin, Problem, Unit
from ptuning.errors import DataError

Header = Literal["auto", "first", "none"]
Quoting = Literal["auto", "csv", "none"]
Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]


@dataclass(kw_only=True)
class Reading:
    """One source being read.

    Args:
        origin: What errors call the source; a reader that counts differently changes it before its first row.
        separator, encoding, header, quoting: See :class:`~ptuning.data.options.ReadOptions`.
        named: The columns that the user named.
        problems: Takes the bad rows, which are then left out; without, the first one raises.
        notes: What was detected, for the user to read; it grows while rows are read.
        label_names: The names of each column of class labels, in order.
    """

    origin: Origin
    separator: str | None = None
    encoding: str | None = None
    header: Header = "auto"
    quoting: Quoting = "auto"
    named: frozenset[str] = frozenset()
    problems: list[Problem] | None = None
    notes: list[str] = field(default_factory=list)
    label_names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def count_in(self, unit: Unit) -> None:
        """Count rows as ``unit`` from here on."""
        self.origin = replace(self.origin, unit=unit)

    def bad(self, row: int, kind: str, message: str) -> None:
        """Report a row that cannot be used; ``message`` says what was got, what was expected, what to do.

        Raises:
            DataError: Bad rows are not collected.
        """
        whole = f"{self.origin.at(row)}: {message}"
        if self.problems is None:
            raise DataError(f"{whole}, or leave such rows out with {SKIP}")
        self.problems.append(Problem(row=row, kind=kind, message=whole))

    def refuse_empty(self, message: str) -> NoReturn:
        """Refuse a source that gave no row; if rows could not be read, because of the first of them.

        Raises:
            DataError: Always.
        """
        if self.problems:
            raise DataError(f"{self.problems[0].message}; no other row can be used either")
        raise DataError(f"{self.origin.name}: {message}")

    def say(self, note: str) -> None:
        """Tell the user something that was detected."""
        self.notes.append(f"{self.origin.name}: {note}")
