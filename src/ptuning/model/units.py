"""Virtual units: what a prompt adds to the feed-forward network of a layer.

A feed-forward network is a key-value memory, as attention is (arXiv:2012.14913): a hidden unit fires as
strongly as a token matches its key, and then adds its value. A virtual token is one more key and value for
attention; a virtual unit is one more for the feed-forward network. Together they are a parallel adapter
(arXiv:2110.04366). They can tell tokens apart that a prompt in the attention can only move together.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ptuning.errors import UnsupportedBackbone

REACH = 2.0
"""Keys and values are multiplied by this, over √H, so that the virtual tokens' learning rate suits them at
any hidden size."""


def initial_units(layers: int, units: int, width: int) -> Tensor:
    """``[layers, 2, U, H]``: random keys, with a standard deviation of 1/√H once scaled, and values of 0, so
    that nothing is added yet.
    """
    drawn = torch.zeros(layers, 2, units, width)
    drawn[:, 0] = torch.randn(layers, units, width) / REACH
    return drawn


def scaled_units(units: Tensor) -> Tensor:
    """``[…, 2, U, H]`` as a layer uses them."""
    return units * (REACH / math.sqrt(units.shape[-1]))


class FeedForward:
    """A layer's feed-forward network, in its place: adds the output of virtual units, if there are any.

    Args:
        first: Its first linear layer, whose input the units read.
        last: Its last one; they add to its output.
    """

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        # What the layer has while it runs, per thread. torch.compile takes a plain threading.local only.
        self._now = threading.local()
        first.register_forward_pre_hook(self._enter)
        last.register_forward_hook(self._leave)

    def __getstate__(self) -> dict[str, Any]:
        return {"_now": None}  # a copy is not running

    def __setstate__(self, _: dict[str, Any]) -> None:
        self._now = threading.local()

    @contextmanager
    def using(self, units: Tensor | None) -> Iterator[None]:
        """In the ``with`` block the network has these units too.

        Args:
            units: ``[2, U, H]``, or one set per row, ``[2, B, U, H]``; :func:`scaled_units`.
        """
        self._now.units, self._now.entering, self._now.read = units, None, False
        try:
            yield
        finally:
            self._now.units = self._now.entering = None

    def check_read(self) -> None:
        """Refuse a layer that did not use its units: its answers would be those without them.

        Raises:
            UnsupportedBackbone: the units of the last :meth:`using` were not read.
        """
        if not self._now.read:
            raise UnsupportedBackbone(
                "a layer's feed-forward network did not read its virtual units",
                remedy="set prompt.num_virtual_units to 0",
            )

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if getattr(self._now, "units", None) is not None:
            self._now.entering = inputs[0]

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        units: Tensor | None = getattr(self._now, "units", None)
        entering: Tensor | None = getattr(self._now, "entering", None)
        if units is None or entering is None:
            return output
        self._now.read = True
        keys, values = units.to(entering.dtype)
        if keys.dim() == 3:  # OPT's layers have all tokens of all rows as one list
            entering = entering.reshape(len(keys), -1, entering.shape[-1])
        added: Tensor = nn.functional.gelu(entering @ keys.mT) @ values
        return output + added.view_as(output).to(output.dtype)


def reads_units(hook: Any) -> bool:
    """Whether a module's hook is a :class:`FeedForward`'s."""
    return isinstance(getattr(hook, "__self__", None), FeedForward)
