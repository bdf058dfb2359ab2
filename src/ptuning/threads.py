"""What threads of a process have to do one at a time, and what a forked child needs for that."""

from __future__ import annotations

import os
import threading
from typing import Any


def _lock() -> Any:
    """A re-entrant lock that a forked child finds free, and what it guards in order.

    A fork copies a lock as it is. If another thread held it, that thread does not exist in the child, and
    nobody would ever release it. So the thread that forks takes the lock before and releases it after, in
    the parent and in the child: it waits until nobody is in the middle of what the lock guards.
    """
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


TOKENIZER = _lock()
"""Held while a tokenizer is called.

How far it cuts is state of the tokenizer, which each call sets anew, and tasks on one backbone share it:
without this a text could be cut to the length of another thread's task.
"""

GENERATORS = _lock()  # registered last: a fork takes it first, the order in which making a model takes both
"""Held while random numbers are drawn from torch's own generators, of which there is one a device.

Layers such as dropout draw from these and take no others. So a training run puts its own state there for
each step and takes it back (:class:`~ptuning.model.drawing.Draws`), and nobody may draw meanwhile.
"""
