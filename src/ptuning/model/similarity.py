"""How similar two texts are, dimension by dimension, for a head to read in place of a pooled token."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ptuning.model.pooling import mean_of_tokens

WHOLE = 5.0
"""How much of the overall similarity is added to every dimension's own. It is large, so that a head learns
the overall similarity first, which takes a handful of rows, before it weights dimensions, which takes
hundreds."""


def pair_similarity(first: Tensor, second: Tensor, real: tuple[Tensor, Tensor]) -> Tensor:
    """``[B, H]`` in fp32, for B pairs of texts.

    The similarity of two vectors in a dimension is their product minus their distance, both rescaled to
    length √H. The similarity of two texts is the mean of two: that of their mean vectors (SBERT,
    arXiv:1908.10084), and that of their tokens, each compared with its nearest token of the other text (late
    interaction, arXiv:2004.12832), averaged over the tokens of a text; of the two texts the less similar one
    counts, because what only one of them says sets them apart. :data:`WHOLE` times the average over all
    dimensions is added to every dimension.

    Args:
        first: ``[B, T, H]``, the last layer's output for the first texts' tokens.
        second: ``[B, T', H]``.
        real: ``[B, T]`` and ``[B, T']``, true at real tokens.
    """
    one, other = real
    means = _similarity(mean_of_tokens(first.float(), one), mean_of_tokens(second.float(), other))
    first, second = _rescaled(first.float()), _rescaled(second.float())
    near = first @ second.transpose(1, 2)
    near = near.masked_fill(~(one[:, :, None] & other[:, None]), -math.inf)
    found_second, found_first = _gather_tokens(second, near.argmax(2)), _gather_tokens(first, near.argmax(1))
    tokens = torch.minimum(
        mean_of_tokens(_similarity(first, found_second), one),
        mean_of_tokens(_similarity(second, found_first), other),
    )
    return _with_whole((means + tokens) / 2)


def vector_similarity(first: Tensor, second: Tensor) -> Tensor:
    """``[B, H]`` in fp32: :func:`pair_similarity` of texts that are a vector each, ``[B, H]``."""
    return _with_whole(_similarity(first.float(), second.float()))


def _with_whole(similarity: Tensor) -> Tensor:
    return similarity + WHOLE * similarity.mean(-1, keepdim=True)


def _similarity(one: Tensor, other: Tensor) -> Tensor:
    one, other = _rescaled(one), _rescaled(other)
    return one * other - (one - other).abs()


def _rescaled(vectors: Tensor) -> Tensor:
    return normalize(vectors, dim=-1) * math.sqrt(vectors.shape[-1])


def _gather_tokens(states: Tensor, places: Tensor) -> Tensor:
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
