"""How fast rows are answered: on a terminal while they are, everywhere in one line at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

QUIET = 2.0
"""Seconds of work that pass before anything is said: a handful of rows needs no words."""

T = TypeVar("T")


class Rate:
    """Counts rows in a ``with`` block. Its clock stands still while the next row is waited for.

    Args:
        console: Where to say it.
        live: Whether it may be said while it goes on, in a line that vanishes; never where the answers
            go to the same terminal.
        clock: Seconds from any beginning.
    """

    def __init__(
        self, console: Console, *, live: bool, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.console = console
        self.rows = 0
        self._clock = clock
        self._waited = 0.0
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True
        )
        self._live = live and console.is_terminal
        self._task = self._progress.add_task("")

    def __enter__(self) -> Rate:
        self._began = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress.live.is_started:  # otherwise it would end a line that it never began
            self._progress.stop()
        if error is None and self.seconds >= QUIET:
            self.console.print(str(self), highlight=False, soft_wrap=True)

    def __str__(self) -> str:
        return f"{self.rows:,} row{'' if self.rows == 1 else 's'}, {self.rows / self.seconds:,.0f} rows/s"

    @property
    def seconds(self) -> float:
        """Of work so far, which waiting for rows is not."""
        return max(self._clock() - self._began - self._waited, 1e-9)

    def waiting_for(self, rows: Iterable[T]) -> Iterator[T]:
        """``rows``, with the clock stopped while the next one is on its way: it may be typed by hand."""
        left = iter(rows)
        while True:
            began = self._clock()
            try:
                row = next(left)
            except StopIteration:
                return
            finally:
                self._waited += self._clock() - began
            yield row

    def one_more(self) -> None:
        """A row was answered."""
        self.rows += 1
        if self._live and self.seconds >= QUIET:
            self._progress.update(self._task, description=str(self))
            self._progress.start()  # which does nothing the second time
