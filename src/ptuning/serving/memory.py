"""Freed memory goes back to the operating system, which the C library alone does late or never."""

from __future__ import annotations

import ctypes
import sys


def release_free_memory() -> bool:
    """Return what the C library holds free; whether it could.

    glibc keeps the holes between blocks that are in use. A server has many: batches of all sizes, tasks that
    come and go, several threads with a heap each. It takes milliseconds. Other C libraries have no such call,
    or need none.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return False
    trim(0)
    return True
