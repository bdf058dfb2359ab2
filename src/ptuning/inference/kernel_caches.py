"""A bound for what oneDNN and torch keep for the shapes of past batches.

On a CPU both keep up to 1024 compiled kernels, one per operation and shape. Batches of rows sorted by length
have shapes that seldom come again. The kernels take memory, and in effect more than their size: each is
allocated among the tensors of its batch and stays when these are freed, so the C library has many holes
instead of free memory that it could reuse for large tensors, and takes more from the operating system.
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
