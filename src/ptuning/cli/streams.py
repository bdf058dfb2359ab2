"""Standard input as a stream with reads that can be ended from another thread."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast


@contextmanager
def live_input(source: str) -> Iterator[str | IO[bytes]]:
    """``source``; or, if it is ``-`` and a pipe or terminal, standard input as a stream.

    A blocking read of that stream ends with this context.
    """
    try:
        handle = sys.stdin.fileno() if source == "-" else -1
        live = handle >= 0 and os.name == "posix" and not stat.S_ISREG(os.fstat(handle).st_mode)
    except (AttributeError, OSError, ValueError):  # closed, or not a system file
        live = False
    if not live:
        yield source
        return
    raw = _Abandonable(handle)
    try:
        yield cast(IO[bytes], io.BufferedReader(raw))
    finally:
        raw.abandon()


def is_live(source: object) -> bool:
    """Whether ``source`` is a stream from :func:`live_input`."""
    return isinstance(source, io.BufferedReader) and isinstance(source.raw, _Abandonable)


class _Abandonable(io.RawIOBase):
    """A system file with reads that end when :meth:`abandon` is called from any thread."""

    name = "standard input"

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._ended, self._ending = os.pipe()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._ended in select.select([self._handle, self._ended], [], [])[0]:
            return 0
        content = os.read(self._handle, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def abandon(self) -> None:
        """End the current read and all later ones."""
        os.close(self._ending)

    def close(self) -> None:
        if not self.closed:
            os.close(self._ended)
        super().close()
