"""A bound for what oneDNN and torch keep for the shapes of past batches.

Both keep up to 1024 compiled kernels, one per operation and shape. Batches of rows sorted by length have
shapes that seldom come again, so the kernels are of no use later. They take memory, half a megabyte each in
bf16, and more in effect: each is allocated amid the tensors of its batch and stays, so the C library cannot
join the space around it when these are freed. A worker grew by 30 MB per thousand rows.
"""

from __future__ import annotations

import os

CAPACITY = 16
"""Kernels that are kept: enough for all layers of a batch to share theirs."""
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The environment variables of oneDNN's cache and of torch's own."""


def bound_kernel_caches() -> None:
    """Keep few kernels in this process, unless its environment says how many.

    The libraries read the variables when they first run an operation; after that this has no effect. It is
    for processes that are ptuning's own: the command and the workers of bulk scoring.
    """
    for name in CACHES:
        os.environ.setdefault(name, str(CAPACITY))
