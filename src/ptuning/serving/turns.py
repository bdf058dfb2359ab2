"""Whose turn it is: rows of many callers and tasks in fair order.

Start-time fair queueing: of those that wait, it is the turn of the one that has been served the fewest tokens
(deficit round robin with a quantum of one row). One that comes later starts level with those that wait, so
having been away gives no credit. One that leaves and comes back at once keeps its account.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

P = TypeVar("P")
Name = TypeVar("Name", bound=Hashable)

FEW = 64
"""Outdated entries that are not worth tidying up."""


@dataclass(eq=False, slots=True, kw_only=True)
class Waiting(Generic[P]):
    """A row in the queue.

    Attributes:
        payload: What the owner of the queue needs to run and answer it.
        key: Rows of one batch have the same.
        caller: Whose row it is.
        task: Its task's name.
        length: Its tokens, virtual tokens included.
        deadline: The time after which it is not run.
        number: Its place in the order of admission.
        passed: How many times younger rows of its task went first.
        line: The line that it is in; set by the queue.
    """

    payload: P
    key: Hashable
    caller: str
    task: str
    length: int
    deadline: float = float("inf")
    number: int = -1
    passed: int = 0
    line: Line[P] | None = field(default=None, repr=False)


class _Member(Protocol):
    """Something that has rows."""

    @property
    def first(self) -> int | None:
        """The number of the row whose turn is first; ``None`` if there is no row."""

    def order(self, key: Hashable | None) -> Generator[Waiting[Any]]:
        """The rows with a key, or all rows, in the order of their turns."""


M = TypeVar("M", bound=_Member)


@dataclass(eq=False, slots=True)
class Line(Generic[P]):
    """The rows of one task with one key, of one caller, oldest first; ``overdue`` are those that go first."""

    key: Hashable
    rows: dict[int, Waiting[P]] = field(default_factory=dict)
    overdue: dict[int, Waiting[P]] = field(default_factory=dict)

    @property
    def first(self) -> int | None:
        return min(self.overdue) if self.overdue else next(iter(self.rows), None)

    def order(self, key: Hashable | None) -> Generator[Waiting[P]]:
        if key is None or key == self.key:
            yield from (self.overdue[number] for number in sorted(self.overdue))
            for number, row in self.rows.items():
                if number not in self.overdue:
                    yield row


class Turns(Generic[Name, M]):
    """Members by name, each with its own rows, which take turns.

    Attributes:
        members: Those that have rows.
    """

    def __init__(self) -> None:
        self.members: dict[Name, M] = {}
        self._served: dict[Name, float] = {}
        self._floor = 0.0  # the fewest tokens that one of those that wait was served
        self._heap: list[tuple[float, int, Name]] = []
        self._current: dict[
            Name, tuple[float, int, Name]
        ] = {}  # the entry of each member; others are outdated

    @property
    def first(self) -> int | None:
        """The number of the row whose turn is first."""
        top = self._top()
        return None if top is None else top[1]

    def enter(self, name: Name, member: M) -> None:
        """A member that had no rows has some now."""
        self.members[name] = member
        self._served[name] = max(self._served.get(name, 0.0), self._floor)

    def charge(self, name: Name, tokens: int) -> None:
        """Count what a member was served; call :meth:`refresh` afterwards."""
        self._served[name] += tokens

    def refresh(self, name: Name) -> None:
        """A member's rows, or what it was served, have changed. One without rows leaves."""
        member = self.members.get(name)
        if member is None:
            return
        number = member.first
        if number is None:
            del self.members[name], self._current[name]
            return
        entry = (self._served[name], number, name)
        if self._current.get(name) != entry:
            self._current[name] = entry
            heapq.heappush(self._heap, entry)

    def settle(self) -> None:
        """Raise the level at which newcomers start to that of whose turn it is, and tidy up.

        Called before a batch is charged, so those that come while it runs go before those that it serves.
        """
        if (top := self._top()) is None:
            self._served.clear()
            self._heap.clear()
            self._floor = 0.0
            return
        self._floor = max(self._floor, top[0])
        if len(self._served) > 2 * len(self.members) + FEW:
            self._served = {
                name: tokens
                for name, tokens in self._served.items()
                if name in self.members or tokens > self._floor
            }
        if len(self._heap) > 2 * len(self.members) + FEW:
            self._heap = list(self._current.values())
            heapq.heapify(self._heap)

    def order(self, key: Hashable | None = None) -> Generator[Waiting[Any]]:
        """The rows with a key, or all rows, in fair order, as if each was served when it comes."""
        taken: dict[Name, tuple[float, int, Name]] = {}
        begun: list[tuple[float, int, Waiting[Any], Generator[Waiting[Any]]]] = []
        try:
            while True:
                top = self._top()
                if top is not None and (not begun or top[:2] < begun[0][:2]):
                    heapq.heappop(self._heap)
                    if top[2] in taken:
                        continue  # entered twice with the same values
                    taken[top[2]] = top
                    rest = self.members[top[2]].order(key)
                    if (row := next(rest, None)) is not None:
                        heapq.heappush(begun, (top[0], row.number, row, rest))
                    continue
                if not begun:
                    return
                served, _, row, rest = begun[0]
                yield row
                if (following := next(rest, None)) is None:
                    heapq.heappop(begun)
                else:
                    heapq.heapreplace(begun, (served + row.length, following.number, following, rest))
        finally:
            for *_, rest in begun:
                rest.close()
            for entry in taken.values():
                heapq.heappush(self._heap, entry)

    def _top(self) -> tuple[float, int, Name] | None:
        while self._heap and self._current.get(self._heap[0][2]) != self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None
