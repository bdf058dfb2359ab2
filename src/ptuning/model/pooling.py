"""What a head reads in the pooled token's place, but for how two texts agree (``similarity.py``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def average(states: Tensor, real: Tensor) -> Tensor:
    """``[B, H]``: the mean of ``states`` ``[B, T, H]`` over the real tokens; 0 in a row that has none."""
    shares = real / real.sum(1, keepdim=True).clamp(min=1)
    return (shares.to(states.dtype)[:, None] @ states)[:, 0]


def greatest(states: Tensor, real: Tensor) -> Tensor:
    """``[B, H]``: the greatest value in each dimension over the real tokens; 0 in a row that has none."""
    found = states.masked_fill(~real.bool()[..., None], -math.inf).amax(1)
    return found.masked_fill(found == -math.inf, 0)


def weighed(states: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """``[B, H]`` in fp32: mean and greatest, each weighed dimension by dimension.

    Args:
        states: ``[B, T, H]``, what a layer gives.
        real: ``[B, T]``, 1 at real tokens.
        weights: ``[2, H]``, of the mean and of the greatest.
    """
    return average(states, real).float() * weights[0] + greatest(states, real).float() * weights[1]


def mix_of_last(layers: int, width: int) -> Tensor:
    """``[layers + 1, 2, H]``: the weights with which all that is read is the mean of what the last gives."""
    mix = torch.zeros(layers + 1, 2, width)
    mix[-1, 0] = 1
    return mix
