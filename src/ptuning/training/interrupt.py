"""Signals that ask a run to stop: Ctrl-C, SIGTERM, SIGHUP (a closed terminal) and SIGUSR1 (Slurm's warning).

During training, a signal sets a request. The loop checks it between steps, saves a checkpoint and stops
(:func:`stop_requests`). Elsewhere in a command, a signal raises :class:`KeyboardInterrupt` immediately
(:func:`interruptible`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Windows only has the first two."""
GRACE = 1.0
"""Seconds in which further signals are ignored, so that they do not interrupt the clean-up."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal and saved; the message says how to continue."""


@dataclass
class StopRequest:
    """Set by a signal; checked between steps.

    Attributes:
        signal: The first signal.
        raised: Whether :class:`KeyboardInterrupt` was raised for it, or for a later one. A library may turn
            it into another exception.
    """

    signal: int | None = None
    raised: bool = False

    @property
    def made(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code of a program that ends because of the signal."""
        return 128 + (signal.SIGINT if self.signal is None else self.signal)


class _Handler:
    """The signal handler of one ``with`` block; it also sets the request of the enclosing blocks."""

    def __init__(self, outer: _Handler | None, *, at_once: bool) -> None:
        self.request = StopRequest()
        self.outer, self.at_once = outer, at_once
        self.over = False
        self.last = -GRACE  # the time of the last signal that was not ignored
        self.terminals = [stream for stream in (1, 2) if os.isatty(stream)] if at_once else []
        if outer is not None and outer.request.raised:  # it was raised, but something swallowed the exception
            self.request.signal = outer.request.signal

    def __call__(self, number: int, frame: FrameType | None) -> None:
        first, now = not self.request.made, time.monotonic()
        self.note(number, raised=False)
        if self.over or (first and not self.at_once):
            self.last = now
        elif now - self.last >= GRACE or (number == signal.SIGINT and not self.request.raised):
            self.last = now
            self.note(number, raised=True)
            raise KeyboardInterrupt

    def note(self, number: int, *, raised: bool) -> None:
        """Set the request of this block and of all enclosing blocks."""
        block: _Handler | None = self
        while block is not None:
            block.request.signal = block.request.signal or number
            block.request.raised |= raised
            if number == getattr(signal, "SIGHUP", None):
                block.leave_terminal()
            block = block.outer

    def leave_terminal(self) -> None:
        """Discard further output if the terminal is closed: an error while printing would prevent saving."""
        for stream in self.terminals:
            if not os.isatty(stream):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream)
                os.close(null)


_innermost: _Handler | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """In the ``with`` block, the first of :data:`SIGNALS` sets the request; a second Ctrl-C raises.

    Blocks can be nested: a signal then sets the request of the outer block, too. So code that runs several
    things in turn sees a signal that came too late for one of them.

    Python only handles signals in the main thread; in another thread the request is never set, and signals
    keep their effect. Signals that were ignored (``nohup``) stay ignored, and a program's own handlers for
    SIGHUP and SIGUSR1 stay. At the end of the block the previous handlers are restored.
    """
    with _handling(at_once=False) as request:
        yield request


@contextmanager
def interruptible() -> Iterator[StopRequest]:
    """In the ``with`` block of a command, each of :data:`SIGNALS` raises :class:`KeyboardInterrupt`.

    Blocks of :func:`stop_requests` can be nested in it; the same signals are left alone.
    """
    with _handling(at_once=True) as request:
        yield request


@contextmanager
def _handling(*, at_once: bool) -> Iterator[StopRequest]:
    global _innermost
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    outer, handler = _innermost, _Handler(_innermost, at_once=at_once)
    _innermost = handler
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, former in before.items() if _can_replace(number, former)]
    try:
        for number in handled:
            signal.signal(number, handler)
        yield handler.request
    finally:
        handler.over = True  # from here on a signal is only recorded
        _innermost = outer
        for number in handled:
            signal.signal(number, before[number])


def _can_replace(number: int, former: Any) -> bool:
    """Whether to replace a signal's former handler."""
    if isinstance(former, _Handler) or number == signal.SIGINT:
        return former is not None
    if number == signal.SIGTERM:
        return former not in (None, signal.SIG_IGN)
    return bool(former == signal.SIG_DFL)


def exit_on_signals() -> None:
    """From now on, while the interpreter shuts down, a signal ends the process immediately and silently."""

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)

    for number in SIGNALS:
        if _can_replace(number, signal.getsignal(number)):
            signal.signal(number, leave)
