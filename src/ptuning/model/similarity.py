"""How well two texts agree, dimension by dimension, for a head to read in the pooled token's place."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ptuning.model.pooling import average

WHOLE = 5.0
"""How much of a similarity as a whole every dimension has beside its own: so much that a head finds the whole
first, which a handful of rows teaches, before it weighs dimensions, which takes hundreds."""


def agreement(first: Tensor, second: Tensor, real: tuple[Tensor, Tensor]) -> Tensor:
    """Of so many pairs of texts, ``[B, H]`` in fp32.

    Two vectors agree, in a dimension, by their product less their distance, both brought to length √H. Two
    texts agree as their means do (SBERT, arXiv:1908.10084), and as their tokens do, each with the one of the
    other text that is nearest to it (late interaction, arXiv:2004.12832): on average over a text's tokens,
    and of the two texts as the one does that agrees less, because what only one of them says sets them
    apart. Half of each; and to every dimension :data:`WHOLE` times what that is on average over all.

    Args:
        first: ``[B, T, H]``, what the last layer gives for the first texts' tokens.
        second: ``[B, T', H]``.
        real: ``[B, T]`` and ``[B, T']``, true at real tokens.
    """
    one, other = real
    means = _agree(average(first.float(), one), average(second.float(), other))
    first, second = _lengthy(first.float()), _lengthy(second.float())
    near = first @ second.transpose(1, 2)
    near = near.masked_fill(~(one[:, :, None] & other[:, None]), -math.inf)
    found_second, found_first = _at(second, near.argmax(2)), _at(first, near.argmax(1))
    tokens = torch.minimum(
        average(_agree(first, found_second), one), average(_agree(second, found_first), other)
    )
    both = (means + tokens) / 2
    return both + WHOLE * both.mean(-1, keepdim=True)


def _agree(one: Tensor, other: Tensor) -> Tensor:
    one, other = _lengthy(one), _lengthy(other)
    return one * other - (one - other).abs()


def _lengthy(vectors: Tensor) -> Tensor:
    return normalize(vectors, dim=-1) * math.sqrt(vectors.shape[-1])


def _at(states: Tensor, places: Tensor) -> Tensor:
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
