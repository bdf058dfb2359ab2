"""The input and output of every reader of a source: options in, notes and bad rows out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

from ptuning.data.bad_rows import offering_skip
from ptuning.data.places import Origin, Problem, Unit, located
from ptuning.errors import DataError

Header = Literal["auto", "first", "none"]
Quoting = Literal["auto", "csv", "none"]
Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]


@dataclass(kw_only=True)
class Reading:
    """One source being read.

    Args:
        origin: The name of the source in messages; a reader that numbers rows differently changes it before
            its first row.
        separator, encoding, header, quoting: See :class:`~ptuning.data.options.ReadOptions`.
        named: The columns that the user named.
        problems: A list for the bad rows, which are then left out; if ``None``, the first bad row raises.
        notes: What was detected, for the user; it grows while rows are read.
        label_names: The class names of each column of class labels, in order.
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
        """Number rows by ``unit`` from here on."""
        self.origin = replace(self.origin, unit=unit)

    def bad_row(self, row: int, kind: str, error: DataError) -> None:
        """Report a row that cannot be used.

        Args:
            error: What is wrong, without the name of the row.

        Raises:
            DataError: bad rows are not collected.
        """
        error = located(error, self.origin.at(row))
        if self.problems is None:
            raise offering_skip(error)
        self.problems.append(Problem(row=row, kind=kind, error=error))

    def refuse_empty(self, error: DataError) -> NoReturn:
        """Refuse a source without usable rows, because of the first bad row if there is one.

        Raises:
            DataError: Always.
        """
        if self.problems:
            first = self.problems[0].error
            remedy = "; ".join(filter(None, (first.remedy, "no other row can be used either")))
            raise DataError(first.problem, got=first.got, expected=first.expected, remedy=remedy)
        raise located(error, self.origin.name)

    def add_note(self, note: str) -> None:
        """Tell the user something that was detected."""
        self.notes.append(f"{self.origin.name}: {note}")
