"""Locks that threads share, which also work in a forked child process."""

from __future__ import annotations

import os
import threading
from typing import Any


def _lock() -> Any:
    """A re-entrant lock that is free in a forked child.

    A fork copies the state of a lock. If another thread held it, that thread does not exist in the child and
    the lock would never be released. So the forking thread acquires the lock before the fork and releases it
    after, in parent and child: it waits until no thread is inside the guarded section.
    """
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


ACCELERATE = _lock()
"""Held while an ``Accelerator`` is created: the first one sets up shared state, and another thread could see
it half initialised, without a device."""

TOKENIZER = _lock()
"""Held while a tokenizer is called.

The truncation length is state of the tokenizer, which every call sets, and tasks on one backbone share the
tokenizer: without the lock a text could be cut to the length of another thread's task.
"""

DRAWING = _lock()
"""Held while charts are drawn: matplotlib's settings belong to the process, and it is not thread-safe."""

GENERATORS = _lock()  # registered after those: a fork takes it before them, as making a model does
"""Held while random numbers are drawn from torch's global generators, one per device.

Layers such as dropout use these and accept no others. So a training run installs its own generator state for
each step and restores the old one after it (:class:`~ptuning.model.drawing.Draws`); other threads wait.
"""

BACKBONES = _lock()  # registered last: a fork takes it first, as loading a backbone does
"""Held while a backbone that estimators share is looked up and loaded, so that two threads load it once."""
