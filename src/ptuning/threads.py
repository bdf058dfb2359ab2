"""Locks that survive a fork."""

from __future__ import annotations

import os
import threading


def lock_over_forks() -> threading.RLock:
    """A lock that a forked child finds free, and what it guards in order.

    A fork copies a lock as it is. If another thread held it, that thread is not there in the child, and
    nobody would ever release it. So the thread that forks takes the lock before and releases it after, in
    the parent and in the child: it waits until nobody is in the middle of what the lock guards.
    """
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock
