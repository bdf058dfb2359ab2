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

A request is refused if more goes before it in these turns than is done in ``queue_seconds``. So a flood is
refused for whoever sends it, and not for others; see :mod:`ptuning.serving.shares`.

Pure code: no threads, no torch; time comes from the ``clock`` that is given.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Generic, TypeVar

from ptuning.serving.settings import Settings
from ptuning.serving.shares import Shares
from ptuning.serving.turns import Line, Turns, Waiting

P = TypeVar("P")

PATIENCE = 2
"""Maximum times that younger rows may go before a row."""
WINDOW = 192
"""A batch is chosen from so many rows, in fair order, in addition to its maximum number of rows."""
SMALL = 1024
"""A batch with fewer tokens takes rows of any length: it costs about the same with more padding."""
MEMORY = 0.8
"""How much of what was measured before counts next to a new batch."""
RECOVERY = 256
"""Batches after which a budget that was lowered is raised again."""


class Overloaded(Exception):
    """The queue has reached its limit.

    Attributes:
        retry_after: Estimated seconds until the rows that go before the request are done, at least 1.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


_LineName = tuple[str, Hashable]


def is_overdue(row: Waiting[P]) -> bool:
    """Whether a row was passed over as often as it may be."""
    return row.passed >= PATIENCE


class Scheduler(Generic[P]):
    """The queue.

    Args:
        settings: The limits.
        clock: Seconds, never going back.

    Attributes:
        rows: Rows in the queue.
        budget: Tokens per batch now: the setting, or fewer after the device ran out of memory.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.clock = settings, clock
        self.rows = 0
        self.budget = settings.batch_tokens
        self._callers: Turns[str, Turns[_LineName, Line[P]]] = Turns()
        self._deadlines: list[tuple[float, int, Waiting[P]]] = []
        self._places, self._tokens = Shares(), Shares()  # places are reserved, too
        self._numbers = 0
        self._since_lowered = 0
        self._backlog = False  # whether the last batch left rows behind
        self._done = self._busy = 0.0  # tokens and seconds of the last batches

    @property
    def tokens(self) -> int:
        """The tokens of the rows in the queue, virtual tokens included."""
        return self._tokens.total

    @property
    def rate(self) -> float | None:
        """Tokens per second, as measured; ``None`` before the first batch."""
        return self._done / self._busy if self._busy else None

    # ------------------------------------------------------------------------------------ admission

    @property
    def limit(self) -> float:
        """A request is refused if more tokens than this go before it."""
        least = self.settings.queue_batches * self.settings.batch_tokens
        return max(least, (self.rate or 0.0) * self.settings.queue_seconds)

    def reserve(self, caller: str, rows: Mapping[str, int]) -> None:
        """Keep places for the rows of a request while they are prepared; :meth:`release` them afterwards.

        So there is always a place for a caller or task with few rows. One that takes all it can get has as
        many as it leaves free.

        Args:
            rows: How many for each task.

        Raises:
            Overloaded: rows that go before these are more than :attr:`limit` tokens, or the rows before and
                these are more than the places that are free.
        """
        self._refuse_late(caller, rows)  # each has a token at least
        new = sum(rows.values())
        free = self.settings.queue_rows - self._places.total
        # What goes before is at most everything; so most of the time it need not be known.
        if self._places.total + new > free and self._places.before(caller, rows) + new > free:
            raise Overloaded(self._wait(self._tokens.before(caller, rows)))
        for task, count in rows.items():
            self._places.add(caller, task, count)

    def release(self, caller: str, rows: Mapping[str, int]) -> None:
        """Give back what :meth:`reserve` kept."""
        for task, count in rows.items():
            self._places.add(caller, task, -count)

    def admit(self, rows: Sequence[Waiting[P]]) -> None:
        """Put the rows of a request, which has one caller, into the queue, all or none.

        Raises:
            Overloaded: rows that go before these are more than :attr:`limit` tokens.
        """
        tokens: Counter[str] = Counter()
        for row in rows:
            tokens[row.task] += row.length
        for caller in {row.caller for row in rows}:
            self._refuse_late(caller, tokens)
        for row in rows:
            assert row.number < 0, "a row is admitted once"
            assert row.length <= self.settings.batch_tokens, "a row that fits no batch is refused before"
            row.number, self._numbers = self._numbers, self._numbers + 1
            self._enter(row)
            heapq.heappush(self._deadlines, (row.deadline, row.number, row))

    def _refuse_late(self, caller: str, tokens: Mapping[str, int]) -> None:
        if self.tokens > self.limit and (before := self._tokens.before(caller, tokens)) > self.limit:
            raise Overloaded(self._wait(before))

    def _wait(self, tokens: int) -> float:
        """Estimated whole seconds until so many tokens are done, at least 1."""
        return float(max(1, math.ceil(tokens / self.rate))) if self.rate else 1.0

    def _enter(self, row: Waiting[P]) -> None:
        lines = self._callers.members.get(row.caller)
        if lines is None:
            lines = Turns()
            self._callers.enter(row.caller, lines)
        name = (row.task, row.key)
        line = lines.members.get(name)
        if line is None:
            line = Line(row.key)
            lines.enter(name, line)
        line.rows[row.number], row.line = row, line
        if len(line.rows) == 1:
            self._refresh([row])
        self.rows += 1
        self._count(row, 1)

    def _refresh(self, rows: Iterable[Waiting[P]]) -> None:
        """Bring the turns up to date after changes of the lines of these rows."""
        names = {(row.caller, row.task, row.key) for row in rows}
        for caller, task, key in names:
            if (lines := self._callers.members.get(caller)) is not None:
                lines.refresh((task, key))
        for caller in {name[0] for name in names}:
            self._callers.refresh(caller)

    def remove(self, rows: Iterable[Waiting[P]]) -> list[Waiting[P]]:
        """Take rows out of the queue, and return those that were in it."""
        gone = [row for row in rows if self._leave(row)]
        self._refresh(gone)
        return gone

    def _leave(self, row: Waiting[P]) -> bool:
        line, row.line = row.line, None
        if line is None:
            return False
        del line.rows[row.number]
        self.rows -= 1
        self._count(row, -1)
        return True

    def _count(self, row: Waiting[P], sign: int) -> None:
        self._places.add(row.caller, row.task, sign)
        self._tokens.add(row.caller, row.task, sign * row.length)

    def expire(self) -> list[Waiting[P]]:
        """Take the rows out of the queue that have reached their deadline, and return them."""
        past, now = [], self.clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            past.append(heapq.heappop(self._deadlines)[2])
        if len(self._deadlines) > 2 * self.rows + SMALL:  # mostly rows that have left
            self._deadlines = [(row.deadline, row.number, row) for row in self._all()]
            heapq.heapify(self._deadlines)
        return self.remove(past)

    def clear(self) -> list[Waiting[P]]:
        """Take all rows out of the queue, and return them, oldest first."""
        return self.remove(sorted(self._all(), key=lambda row: row.number))

    def _all(self) -> Iterator[Waiting[P]]:
        for lines in self._callers.members.values():
            for line in lines.members.values():
                yield from line.rows.values()

    # ---------------------------------------------------------------------------------------- batches

    def take(self) -> tuple[list[Waiting[P]], list[Waiting[P]]]:
        """The next batch, and the rows that have reached their deadline; both leave the queue."""
        late = self.expire()
        self._callers.settle()
        first = self._first(1)
        if not first:
            return [], late
        window = self._first(WINDOW + self.settings.batch_rows, first[0].key)
        batch = self._fill(first[0], window)
        self._pass_over(window, batch)
        for caller in {row.caller for row in batch}:
            self._callers.members[caller].settle()
        for row in batch:
            lines = self._callers.members[row.caller]
            lines.charge((row.task, row.key), row.length)
            self._callers.charge(row.caller, row.length)
            self._leave(row)
        self._refresh(batch)
        self._backlog = self.rows > 0
        return batch, late

    def _first(self, count: int, key: Hashable | None = None) -> list[Waiting[P]]:
        """So many rows in fair order; only those with ``key`` if given."""
        with closing(self._callers.order(key)) as rows:
            return list(islice(rows, count))

    def _fill(self, first: Waiting[P], window: Sequence[Waiting[P]]) -> list[Waiting[P]]:
        """A batch with ``first`` and rows of ``window`` that are about as long, within the budget."""
        batch, longest, tokens = [first], first.length, first.length
        others = [row for row in window if row is not first]
        # The overdue rows of each line that are not in the batch: its other rows wait for them.
        owed = Counter(row.line for row in others if is_overdue(row))
        others.sort(key=lambda row: (not is_overdue(row), abs(row.length - first.length)))
        for row in others:
            size = len(batch)
            if size == self.settings.batch_rows:
                break
            wider = max(longest, row.length)
            places = (size + 1) * wider
            padding = places - tokens - row.length
            if (
                (owed[row.line] and not is_overdue(row))
                or places > self.budget
                or (size * longest >= SMALL and padding > self.settings.max_padding * places)
            ):
                continue
            batch.append(row)
            longest, tokens = wider, tokens + row.length
            owed[row.line] -= is_overdue(row)
        return batch

    def _pass_over(self, window: Sequence[Waiting[P]], batch: Sequence[Waiting[P]]) -> None:
        """Count the rows that younger rows of their line leave behind; overdue ones do so by right.

        All rows of a line that are older than a row in the window are in the window, too.
        """
        taken = {row.number for row in batch}
        youngest: dict[Line[P] | None, int] = {}
        for row in batch:
            if not is_overdue(row):
                youngest[row.line] = max(youngest.get(row.line, -1), row.number)
        for row in window:
            if row.number not in taken and row.number < youngest.get(row.line, -1):
                row.passed += 1

    # ------------------------------------------------------------------------------------ measurements

    def ran(self, tokens: int, seconds: float) -> None:
        """Learn from a batch that took so long how many tokens per second the device does."""
        self._since_lowered += 1
        if self._since_lowered >= RECOVERY and self.budget < self.settings.batch_tokens:
            self.budget, self._since_lowered = min(2 * self.budget, self.settings.batch_tokens), 0
        if seconds <= 0:
            return
        small = not self._backlog and 2 * tokens < self.budget
        if small and tokens < (self.rate or 0.0) * seconds:
            return  # it shows what the device can do at least, not at most
        self._done = MEMORY * self._done + tokens
        self._busy = MEMORY * self._busy + seconds

    def lower_budget(self, tokens: int) -> None:
        """After a batch of so many tokens, padding included, did not fit into memory: allow half as many."""
        self.budget, self._since_lowered = max(1, min(self.budget, tokens) // 2), 0
