"""Signals: Ctrl-C, SIGTERM, SIGHUP (a closed terminal) and SIGUSR1 (Slurm's warning) all ask to end.

In a training that is a request, which the loop reads between steps and obeys when it has saved
(:func:`stop_requests`). Anywhere else in a command it raises :class:`KeyboardInterrupt` at once
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
"""Windows has the first two."""
GRACE = 1.0
"""Seconds in which further signals ask for nothing new, so that they do not cut short the cleaning up."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has saved where it was; the message says how to go on."""


@dataclass
class StopRequest:
    """Set by a signal; read between steps.

    Attributes:
        signal: The first that came.
        raised: Whether :class:`KeyboardInterrupt` was raised for it, or for a later one. It may reach its
            catcher as another exception, if it came while a library was in a callback.
    """

    signal: int | None = None
    raised: bool = False

    @property
    def made(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """Of a program that ends because of it."""
        return 128 + (signal.SIGINT if self.signal is None else self.signal)


class _Handler:
    """What a block of this module does on a signal; it tells the blocks around it."""

    def __init__(self, outer: _Handler | None, *, at_once: bool) -> None:
        self.request = StopRequest()
        self.outer, self.at_once = outer, at_once
        self.over = False
        self.last = -GRACE  # when something was done about a signal
        self.terminals = [stream for stream in (1, 2) if os.isatty(stream)] if at_once else []
        if outer is not None and outer.request.raised:  # and whoever was to catch it swallowed it
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
        block: _Handler | None = self
        while block is not None:
            block.request.signal = block.request.signal or number
            block.request.raised |= raised
            if number == getattr(signal, "SIGHUP", None):
                block.leave_terminal()
            block = block.outer

    def leave_terminal(self) -> None:
        """Write nowhere, if the terminal is gone: an error there would keep a run from saving."""
        for stream in self.terminals:
            if not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


_innermost: _Handler | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside the ``with`` block the first of :data:`SIGNALS` sets the request, a second Ctrl-C raises.

    Inside another block of this module they set the other's request as well, so that whoever runs several
    things one after another sees a request that came too late for one of them.

    Only Python's main thread may handle signals; in another one the request is never made and signals do what
    they did. So do those that were ignored (``nohup``), and SIGHUP and SIGUSR1 where the program has its own
    handler for them. The handlers that were there are put back at the end.
    """
    with _handling(at_once=False) as request:
        yield request


@contextmanager
def interruptible() -> Iterator[StopRequest]:
    """Inside the ``with`` block, a command's, each of :data:`SIGNALS` raises :class:`KeyboardInterrupt`.

    Which signals are let alone, :func:`stop_requests` says, whose blocks may stand in this one.
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
    mine = [number for number, former in before.items() if _may_take(number, former)]
    try:
        for number in mine:
            signal.signal(number, handler)
        yield handler.request
    finally:
        handler.over = True  # one that comes now is only noted
        _innermost = outer
        for number in mine:
            signal.signal(number, before[number])


def _may_take(number: int, former: Any) -> bool:
    if isinstance(former, _Handler) or number == signal.SIGINT:
        return former is not None
    if number == signal.SIGTERM:
        return former not in (None, signal.SIG_IGN)
    return bool(former == signal.SIG_DFL)


def exit_on_signals() -> None:
    """From here on, while the interpreter shuts down, a signal ends the process at once, without a word."""

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)

    for number in SIGNALS:
        if _may_take(number, signal.getsignal(number)):
            signal.signal(number, leave)
