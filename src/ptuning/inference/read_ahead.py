"""Reads rows from a slow producer in a thread, and signals when none arrives for a moment."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from time import monotonic

from ptuning.data import Example

QUIET = 0.1
"""Seconds without a row after which the earlier rows are answered."""
LONGEST = 0.5
"""Seconds after which they are answered even if rows keep arriving."""
ROWS = 256
CHARACTERS = 1 << 20
"""Maximum rows and characters that are read ahead."""


def read_ahead(examples: Iterable[Example]) -> Iterator[Example | None]:
    """``examples`` in order, read in a separate thread, with ``None`` wherever the next one is slow.

    On ``None``, :meth:`Predictor.stream` answers the rows that it has. An error while reading is raised here,
    after the examples before it.

    The thread ends with ``examples``, or at its next row after this generator was closed. A caller that
    closes it while a read may block forever has to end that read.
    """
    reader = _Reader(examples)
    reader.start()
    try:
        pending = False  # whether anything was yielded since the last None
        waited = 0.0
        while True:
            began = monotonic()
            chunk = reader.take(min(QUIET, max(LONGEST - waited, 0.0)) if pending else None)
            waited += monotonic() - began if pending else 0.0
            if chunk:
                yield from chunk
                pending = True
            elif reader.over:
                break
            if pending and (not chunk or waited >= LONGEST):
                yield None
                pending, waited = False, 0.0
        if reader.failed is not None:
            raise reader.failed
    finally:
        reader.leave()


class _Reader(threading.Thread):
    """Reads ahead up to the limits."""

    def __init__(self, examples: Iterable[Example]) -> None:
        super().__init__(daemon=True, name="ptuning-reader")
        self.failed: BaseException | None = None
        self._examples = examples
        self._rows: list[Example] = []
        self._characters = 0
        self._ended = self._left = False
        self._changed = threading.Condition()

    @property
    def over(self) -> bool:
        """Whether everything was read and taken."""
        with self._changed:
            return self._ended and not self._rows

    def run(self) -> None:
        try:
            for example in self._examples:
                with self._changed:
                    self._rows.append(example)
                    self._characters += example.characters
                    if len(self._rows) == 1:
                        self._changed.notify()
                    while not self._left and (len(self._rows) >= ROWS or self._characters >= CHARACTERS):
                        self._changed.wait()
                    if self._left:
                        return
        except BaseException as error:
            self.failed = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def take(self, seconds: float | None) -> list[Example]:
        """The rows that have arrived; empty if none arrives for ``seconds``, or at the end."""
        with self._changed:
            if not self._rows and not self._ended:
                self._changed.wait_for(lambda: self._rows or self._ended, seconds)
            rows, self._rows, self._characters = self._rows, [], 0
            self._changed.notify()
        return rows

    def leave(self) -> None:
        """Stop reading."""
        with self._changed:
            self._left = True
            self._changed.notify()
