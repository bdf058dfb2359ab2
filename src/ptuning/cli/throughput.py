"""Rows per second of ``ptuning predict``: live on a terminal, and as one line at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

QUIET = 2.0
"""Nothing is printed for work that takes fewer seconds."""

T = TypeVar("T")


class Throughput:
    """Counts rows in a ``with`` block. Its clock is stopped while waiting for the next row.

    Args:
        console: The console to print to.
        live: Whether to print while it runs, in a line that vanishes; not if predictions go to the same
            terminal.
        clock: A clock in seconds.
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

    def __enter__(self) -> Throughput:
        self._began = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress.live.is_started:  # otherwise it would end a line that it did not start
            self._progress.stop()
        if error is None and self.seconds >= QUIET:
            self.console.print(str(self), highlight=False, soft_wrap=True)

    def __str__(self) -> str:
        return f"{self.rows:,} row{'' if self.rows == 1 else 's'}, {self.rows / self.seconds:,.0f} rows/s"

    @property
    def seconds(self) -> float:
        """Seconds of work so far, without waiting for rows."""
        return max(self._clock() - self._began - self._waited, 1e-9)

    def waiting_for(self, rows: Iterable[T]) -> Iterator[T]:
        """``rows``, with the clock stopped while waiting for the next one, which may be typed by hand."""
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
        """Count one more row."""
        self.rows += 1
        if self._live and self.seconds >= QUIET:
            self._progress.update(self._task, description=str(self))
            self._progress.start()  # no effect the second time
