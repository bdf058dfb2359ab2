"""Progress bars: rich's own on a terminal; in a notebook, one output that is replaced as it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS = 0.2
"""Between two updates of a bar in a notebook."""
T = TypeVar("T")


def new_console() -> Console:
    """A console that prints plain text, also in a notebook, where rich would make a box of every line."""
    return Console(force_jupyter=False, markup=False, emoji=False)


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel."""
    return Console().is_jupyter


def progress_bar(*columns: ProgressColumn, console: Console, **options: Any) -> Progress:
    """A bar that vanishes at its end; it is not shown unless ``console`` is a terminal, or in a notebook."""
    if in_notebook():
        return _NotebookProgress(*columns, console=console, auto_refresh=False, **options)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal, **options)


def counted(rows: Iterable[T], what: str, total: Sized | None = None) -> Iterator[T]:
    """``rows``, with a bar that counts them.

    Args:
        what: The name of the bar.
        total: As long as the rows; ``None`` if their number is not known.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with progress_bar(*columns, console=new_console()) as bar:
        task = bar.add_task(what, total=None if total is None else len(total))
        for row in rows:
            yield row
            bar.advance(task)


class _NotebookProgress(Progress):
    """A bar in a notebook: a plain output that is replaced. rich's own would need ipywidgets."""

    _output: Any = None
    _shown = 0.0

    def start(self) -> None:
        from IPython.display import display

        if self._output is None:
            self._output = display(self, display_id=True)  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        if self._output is not None:
            self._output.update({"text/plain": "", "text/html": ""}, raw=True)
            self._output = None

    def refresh(self) -> None:
        if self._output is not None:
            self._output.update(self)
            self._shown = time.monotonic()

    def update(self, *task: Any, **values: Any) -> None:
        super().update(*task, **values)
        self._refresh_sometimes()

    def advance(self, *task: Any, **values: Any) -> None:
        super().advance(*task, **values)
        self._refresh_sometimes()

    def _refresh_sometimes(self) -> None:
        if time.monotonic() - self._shown >= SECONDS:
            self.refresh()
