"""One answer per row for a text that was read in several windows: the mean of their logits.

The output layer of a head is linear, so that is also its output for the mean of its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ptuning.errors import DataError
from ptuning.kinds.base import type_and_shape


def mean_of_windows(values: Tensor, counts: Sequence[int]) -> Tensor:
    """``[B, …]``: the mean over the windows of each row.

    Args:
        values: ``[W, …]``, the windows of all rows in order.
        counts: How many windows each of the B rows has. A row with one keeps its values exactly.
    """
    if len(counts) == len(values):
        return values
    return torch.stack([part.mean(0) for part in values.split(list(counts))])


_WHOLE = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


def counts_of(windows: Tensor, rows: int) -> list[int]:
    """The number of windows of each row, checked.

    Args:
        windows: ``[B]``, whole numbers.
        rows: How many windows the batch has.

    Raises:
        DataError: they are not whole numbers, not ``rows`` in all, or a row has none.
    """
    whole = windows.dim() == 1 and windows.dtype in _WHOLE
    counts: list[int] = windows.tolist() if whole else []
    if sum(counts) != rows or min(counts, default=0) < 1:
        raise DataError(
            "windows",
            got=f"{counts if whole else type_and_shape(windows)} for a batch of {rows} windows",
            expected="whole numbers [B]: the windows of each row, at least 1, in the order of the batch",
        )
    return counts
