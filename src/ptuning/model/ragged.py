"""Rows that each take vectors of their own task, as many as that task has, gathered into one tensor.

Shapes: B rows, D different tasks among them, N vectors of a task, H their size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RaggedRows:
    """Which vectors of D tasks each of B rows takes; rows with fewer than the most are padded with zeros.

    Args:
        sizes: N of each task; 0 for a task that has none.
        owners: The task of each row, an index into ``sizes``.
        device: Of the vectors.

    Attributes:
        width: The largest N of a row's task.
        mask: ``[B, width]``, True at a row's own vectors; ``None`` if every row has ``width`` of them.
    """

    def __init__(self, sizes: Sequence[int], owners: Sequence[int], device: torch.device) -> None:
        self._used = [task for task, size in enumerate(sizes) if size]
        counts = [sizes[owner] for owner in owners]
        self.width = max(counts, default=0)
        same = all(count == self.width for count in counts)
        self._rows = len(owners)
        self._single = same and len(self._used) == 1
        self._in_order = same and self._used == list(owners)
        self.mask: Tensor | None = None
        self._index: Tensor | None = None
        if self._single or self._in_order or not self.width:
            return
        starts = dict(zip(self._used, _starts([sizes[task] for task in self._used]), strict=True))
        places = torch.arange(self.width, device=device)
        first = torch.tensor([starts.get(owner, 0) for owner in owners], device=device)
        index = first[:, None] + places
        if not same:
            self.mask = places < torch.tensor(counts, device=device)[:, None]
            index = index.where(self.mask, sum(sizes))  # the zeros behind all vectors
        self._index = index.flatten()

    def gather(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """``[2, B, width, H]``.

        Args:
            vectors: ``[2, N, H]`` of each task, or ``None`` where N is 0.
        """
        used = [each for task in self._used if (each := vectors[task]) is not None]
        if self._single:
            return used[0][:, None].expand(-1, self._rows, -1, -1)
        if self._in_order:
            return torch.stack(used, dim=1)
        if self.mask is not None:
            used.append(used[0].new_zeros(2, 1, used[0].shape[-1]))
        assert self._index is not None
        chosen: Tensor = torch.cat(used, dim=1).index_select(1, self._index)
        return chosen.view(2, self._rows, self.width, -1)


def _starts(sizes: Sequence[int]) -> list[int]:
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += size
    return starts
