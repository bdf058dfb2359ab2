"""Which rows go into the next batch: a queue with a bound, a token budget and fair shares.

A batch is made when the device is free, from what is there; nothing waits for more rows to arrive.

1. The first row comes from the caller that has been served the fewest tokens, from that caller's task with
   the fewest, and is the oldest there. Tokens are counted since the queue was last empty, and a caller or
   task that comes later starts level with those that wait. So a task that sends thousands of rows takes its
   share and no more (start-time fair queueing, which is deficit round robin with a quantum of one row).
2. Rows of the same key that are about as long are added until the budget is used, rows of the least served
   callers and tasks first among equals.
3. Taking rows by length passes over older rows of the same task. A row that was passed over twice goes first:
   no row of its task that was not goes before it.

Pure code: no threads, no torch; time comes from the ``clock`` that is given.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from ptuning.serving.settings import Settings

P = TypeVar("P")
Name = TypeVar("Name", bound=Hashable)

PATIENCE = 2
"""Maximum times that younger rows may go before a row."""
WINDOW = 4
"""A batch is chosen from so many times its maximum number of rows, in fair order."""
SMALL = 1024
"""A batch with fewer tokens takes rows of any length: it costs about the same with more padding."""
SMOOTHING = 0.2
"""The weight of a new measurement of the tokens per second."""
RECOVERY = 256
"""Batches after which a budget that was lowered is raised again."""


class Overloaded(Exception):
    """The queue has reached its limit.

    Attributes:
        retry_after: Estimated seconds until the rows in the queue are done, at least 1.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


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
    """

    payload: P
    key: Hashable
    caller: str
    task: str
    length: int
    deadline: float = float("inf")
    number: int = -1
    passed: int = 0


@dataclass(eq=False, slots=True)
class _Shares(Generic[Name]):
    """Tokens that each of several parties was served.

    ``floor`` is the least served of those that wait: newcomers start there, so that having been away gives
    neither a debt nor a credit.
    """

    served: dict[Name, float] = field(default_factory=dict)
    floor: float = 0.0

    def enter(self, name: Name) -> None:
        self.served[name] = max(self.served.get(name, 0.0), self.floor)

    def advance(self, waiting: Iterable[Name]) -> None:
        """Raise the floor, and forget parties that are not waiting and have nothing to make up for."""
        present = set(waiting)
        if present:
            self.floor = max(self.floor, min(self.served[name] for name in present))
        for name in [each for each, tokens in self.served.items() if tokens <= self.floor]:
            if name not in present:
                del self.served[name]


@dataclass(eq=False, slots=True)
class _Line(Generic[P]):
    """The rows of one task with one key, of one caller, oldest first; ``overdue`` are those that go first."""

    key: Hashable
    rows: dict[int, Waiting[P]] = field(default_factory=dict)
    overdue: dict[int, Waiting[P]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Waiting[P]]:
        yield from sorted(self.overdue.values(), key=lambda row: row.number)
        yield from (row for row in self.rows.values() if row.number not in self.overdue)

    def first(self) -> Waiting[P]:
        return next(iter(self))


_LineName = tuple[str, Hashable]


@dataclass(eq=False, slots=True)
class _Caller(Generic[P]):
    """The lines of one caller."""

    lines: dict[_LineName, _Line[P]] = field(default_factory=dict)
    shares: _Shares[_LineName] = field(default_factory=_Shares)

    def order(self, key: Hashable | None) -> Iterator[Waiting[P]]:
        """Its rows in fair order, as if each was served when it comes."""
        heap = []
        for name, line in self.lines.items():
            if key is None or line.key == key:
                rest = iter(line)
                row = next(rest)
                heap.append((self.shares.served[name], row.number, row, rest))
        heapq.heapify(heap)
        while heap:
            served, _, row, rest = heap[0]
            yield row
            if (following := next(rest, None)) is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (served + row.length, following.number, following, rest))


class Scheduler(Generic[P]):
    """The queue.

    Args:
        settings: The limits.
        clock: Seconds, never going back.

    Attributes:
        rows: Rows in the queue.
        tokens: Their tokens, virtual tokens included.
        budget: Tokens per batch now: the setting, or fewer after the device ran out of memory.
        rate: Tokens per second, as measured; ``None`` before the first batch.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.clock = settings, clock
        self.rows = self.tokens = 0
        self.budget = settings.batch_tokens
        self.rate: float | None = None
        self._callers: dict[str, _Caller[P]] = {}
        self._shares: _Shares[str] = _Shares()
        self._deadlines: list[tuple[float, int, Waiting[P]]] = []
        self._numbers = 0
        self._since_lowered = 0

    # ------------------------------------------------------------------------------------ admission

    @property
    def limit(self) -> float:
        """The tokens in the queue above which requests are refused."""
        least = self.settings.queue_batches * self.settings.batch_tokens
        return max(least, (self.rate or 0.0) * self.settings.queue_seconds)

    def wait(self) -> float:
        """Estimated seconds until the rows in the queue are done, in whole seconds, at least 1."""
        return float(max(1, math.ceil(self.tokens / self.rate))) if self.rate else 1.0

    def check(self, rows: int) -> None:
        """Whether a request of so many rows would be admitted now. One rule for requests of any size.

        Raises:
            Overloaded: the queue has more tokens than :attr:`limit`, or has no place for so many rows.
        """
        if self.tokens > self.limit or self.rows + rows > self.settings.queue_rows:
            raise Overloaded(self.wait())

    def admit(self, rows: Sequence[Waiting[P]]) -> None:
        """Put the rows of a request into the queue, all or none.

        Raises:
            Overloaded: as :meth:`check`.
        """
        self.check(len(rows))
        for row in rows:
            assert row.number < 0, "a row is admitted once"
            assert row.length <= self.settings.batch_tokens, "a row that fits no batch is refused before"
            row.number, self._numbers = self._numbers, self._numbers + 1
            self._enter(row)
            heapq.heappush(self._deadlines, (row.deadline, row.number, row))

    def _enter(self, row: Waiting[P]) -> None:
        caller = self._callers.get(row.caller)
        if caller is None:
            caller = self._callers[row.caller] = _Caller()
        if not caller.lines:
            self._shares.enter(row.caller)
        name = (row.task, row.key)
        if name not in caller.lines:
            caller.lines[name] = _Line(row.key)
            caller.shares.enter(name)
        caller.lines[name].rows[row.number] = row
        self.rows += 1
        self.tokens += row.length

    def remove(self, rows: Iterable[Waiting[P]]) -> list[Waiting[P]]:
        """Take rows out of the queue, and return those that were in it."""
        return [row for row in rows if self._leave(row)]

    def _leave(self, row: Waiting[P]) -> bool:
        caller, name = self._callers.get(row.caller), (row.task, row.key)
        line = caller.lines.get(name) if caller else None
        if caller is None or line is None or line.rows.pop(row.number, None) is None:
            return False
        line.overdue.pop(row.number, None)
        if not line.rows:
            del caller.lines[name]
        self.rows -= 1
        self.tokens -= row.length
        return True

    def expire(self) -> list[Waiting[P]]:
        """Take the rows out of the queue that have reached their deadline, and return them."""
        late, now = [], self.clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            row = heapq.heappop(self._deadlines)[2]
            if self._leave(row):
                late.append(row)
        if len(self._deadlines) > 2 * self.rows + SMALL:  # mostly rows that have left
            self._deadlines = [(row.deadline, row.number, row) for row in self._all()]
            heapq.heapify(self._deadlines)
        return late

    def clear(self) -> list[Waiting[P]]:
        """Take all rows out of the queue, and return them, oldest first."""
        return self.remove(sorted(self._all(), key=lambda row: row.number))

    def _all(self) -> Iterator[Waiting[P]]:
        for caller in self._callers.values():
            for line in caller.lines.values():
                yield from line.rows.values()

    # ---------------------------------------------------------------------------------------- batches

    def take(self) -> tuple[list[Waiting[P]], list[Waiting[P]]]:
        """The next batch, and the rows that have reached their deadline; both leave the queue."""
        late = self.expire()
        self._advance()
        first = next(self._order(), None)
        if first is None:
            return [], late
        window = list(islice(self._order(first.key), WINDOW * self.settings.batch_rows))
        batch = self._fill(first, window)
        self._pass_over(window, batch)
        for row in batch:
            caller = self._callers[row.caller]
            caller.shares.served[row.task, row.key] += row.length
            self._shares.served[row.caller] += row.length
            self._leave(row)
        return batch, late

    def _advance(self) -> None:
        if not self.rows:
            self._callers.clear()
            self._shares = _Shares()
            return
        for caller in self._callers.values():
            caller.shares.advance(caller.lines)
        self._shares.advance(name for name, caller in self._callers.items() if caller.lines)
        for name in [each for each in self._callers if each not in self._shares.served]:
            del self._callers[name]  # it is not waiting, and has nothing to make up for

    def _order(self, key: Hashable | None = None) -> Iterator[Waiting[P]]:
        """The rows in fair order, as if each was served when it comes; only those with ``key`` if given."""
        heap = []
        for name, caller in self._callers.items():
            rest = caller.order(key)
            if (row := next(rest, None)) is not None:
                heap.append((self._shares.served[name], row.number, row, rest))
        heapq.heapify(heap)
        while heap:
            served, _, row, rest = heap[0]
            yield row
            if (following := next(rest, None)) is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (served + row.length, following.number, following, rest))

    def _fill(self, first: Waiting[P], window: Sequence[Waiting[P]]) -> list[Waiting[P]]:
        """A batch with ``first`` and rows of ``window`` that are about as long, within the budget."""
        batch, longest, tokens = [first], first.length, first.length
        lines = {row.number: self._line(row) for row in (first, *window)}
        # The overdue rows of each line that are not in the batch: its other rows wait for them.
        owed = {id(line): len(line.overdue) for line in lines.values()}
        owed[id(lines[first.number])] -= first.passed >= PATIENCE
        nearest = sorted(
            (row for row in window if row is not first),
            key=lambda row: (row.passed < PATIENCE, abs(row.length - first.length)),
        )
        for row in nearest:
            size = len(batch)
            if size == self.settings.batch_rows:
                break
            line, late = lines[row.number], row.passed >= PATIENCE
            wider = max(longest, row.length)
            places = (size + 1) * wider
            padding = places - tokens - row.length
            if (
                (not late and owed[id(line)])
                or places > self.budget
                or (size * longest >= SMALL and padding > self.settings.max_padding * places)
            ):
                continue
            batch.append(row)
            longest, tokens = wider, tokens + row.length
            owed[id(line)] -= late
        return batch

    def _line(self, row: Waiting[P]) -> _Line[P]:
        return self._callers[row.caller].lines[row.task, row.key]

    def _pass_over(self, window: Sequence[Waiting[P]], batch: Sequence[Waiting[P]]) -> None:
        """Count the rows that younger rows of their line leave behind."""
        taken = {row.number for row in batch}
        youngest: dict[int, int] = {}
        for row in batch:
            if row.passed < PATIENCE:  # overdue rows go before their turn by right
                line = self._line(row)
                youngest[id(line)] = max(youngest.get(id(line), -1), row.number)
        for row in window:
            line = self._line(row)
            if row.number not in taken and row.number < youngest.get(id(line), -1):
                row.passed += 1
                if row.passed >= PATIENCE:
                    line.overdue[row.number] = row

    # ------------------------------------------------------------------------------------ measurements

    def ran(self, tokens: int, seconds: float) -> None:
        """Learn from a batch that took so long how many tokens per second the device does."""
        self._since_lowered += 1
        if self._since_lowered >= RECOVERY and self.budget < self.settings.batch_tokens:
            self.budget, self._since_lowered = min(2 * self.budget, self.settings.batch_tokens), 0
        if seconds <= 0:
            return
        seen = tokens / seconds
        if self.rate is None:
            self.rate = seen
        elif 2 * tokens >= self.budget:
            self.rate += SMOOTHING * (seen - self.rate)
        else:  # a small batch shows what the device can do at least, not at most
            self.rate = max(self.rate, seen)

    def lower_budget(self, tokens: int) -> None:
        """After a batch of so many tokens, padding included, did not fit into memory: allow half as many."""
        self.budget, self._since_lowered = max(1, min(self.budget, tokens) // 2), 0
