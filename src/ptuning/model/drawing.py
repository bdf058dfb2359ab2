"""A run's own random numbers, in a process in which other threads draw random numbers too.

torch's dropout, also inside its attention kernels, draws from the global generator of its device and accepts
no other. Without this, a run would depend on what other threads draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ptuning.threads import GENERATORS


@contextmanager
def drawing() -> Iterator[None]:
    """In the ``with`` block, or the decorated function, no other thread of ours draws random numbers."""
    with GENERATORS:
        yield


class Draws:
    """The random numbers of one run.

    Their first state is that of torch's generators. Inside :meth:`drawing` random numbers come from here, and
    the generators of the process are left as they were.

    Args:
        device: The run's device; the CPU's generator is always among them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state: dict[str, Tensor] | None = None
        self._inside = False

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """In the ``with`` block torch's generators have this run's state; runs in other threads wait."""
        with GENERATORS:
            if self._inside:
                yield
                return
            before = self._now()
            if self._state is not None:
                self._put(self._state)
            self._inside = True
            try:
                yield
            finally:
                self._inside = False
                self._state = self._now()
                self._put(before)

    def _now(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def _put(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self._device)
