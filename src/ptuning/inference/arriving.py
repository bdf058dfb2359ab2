"""Rows from a producer that may be slow: where none comes for a moment, that is handed on, too."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from time import monotonic

from ptuning.data import Example

QUIET = 0.1
"""Seconds without a row after which what has come is answered."""
LONGEST = 0.5
"""Seconds of waiting after which it is answered though rows still trickle in."""
ROWS = 256
CHARACTERS = 1 << 20
"""What is read ahead at most, by either measure."""


def arriving(examples: Iterable[Example]) -> Iterator[Example | None]:
    """``examples`` in order, read in a thread of their own, and ``None`` wherever the next is slow to come.

    :meth:`Predictor.stream` answers what it holds when it meets ``None``. What reading raises is raised
    here, behind the examples before it.

    The thread ends when ``examples`` do, or with its next row after this generator is closed. Whoever closes
    it while a read may wait for ever has to end that read.
    """
    reader = _Reader(examples)
    reader.start()
    try:
        pending = False  # whether anything was handed on since the last None
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
    """Reads ahead as far as is allowed."""

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
        """Whether everything was read, and taken."""
        with self._changed:
            return self._ended and not self._rows

    def run(self) -> None:
        try:
            for example in self._examples:
                with self._changed:
                    self._rows.append(example)
                    self._characters += len(example.text) + len(example.text_b or "")
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
        """What has come; nothing if nothing comes for so many ``seconds`` or the end is there."""
        with self._changed:
            if not self._rows and not self._ended:
                self._changed.wait_for(lambda: self._rows or self._ended, seconds)
            rows, self._rows, self._characters = self._rows, [], 0
            self._changed.notify()
        return rows

    def leave(self) -> None:
        """Read no further."""
        with self._changed:
            self._left = True
            self._changed.notify()
