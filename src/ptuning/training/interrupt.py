"""Ctrl-C between steps, not inside one: the first is a request, the second is obeyed at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has saved where it was; the message says how to go on."""


@dataclass
class StopRequest:
    """Set by a signal; read between steps."""

    made: bool = False


_innermost: StopRequest | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside the ``with`` block SIGINT and SIGTERM set the request rather than raise.

    Inside another such block they set the other's request as well, so that whoever runs several things one
    after another sees a request that came too late for one of them.

    Only Python's main thread may handle signals; in another one the request is never made and
    signals do what they did.
    """
    global _innermost
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True
        if outer is not None:
            outer.made = True

    outer, _innermost = _innermost, request
    before: dict[int, Any] = {
        number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        _innermost = outer
        for number, handler in before.items():
            signal.signal(number, handler)
