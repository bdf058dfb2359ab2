"""What a head reads in the pooled token's place, but for how two texts agree (``similarity.py``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

QUERY_SCALE = 0.3
"""The queries' deviation at first: every token still has nearly the same share."""


def average(states: Tensor, real: Tensor) -> Tensor:
    """``[B, H]``: the mean of ``states`` ``[B, T, H]`` over the real tokens; 0 in a row that has none."""
    shares = real / real.sum(1, keepdim=True).clamp(min=1)
    return (shares.to(states.dtype)[:, None] @ states)[:, 0]


def greatest(states: Tensor, real: Tensor) -> Tensor:
    """``[B, H]``: the greatest value in each dimension over the real tokens; 0 in a row that has none."""
    found = states.masked_fill(~real.bool()[..., None], -math.inf).amax(1)
    return found.masked_fill(found == -math.inf, 0)


def attended(states: Tensor, real: Tensor, queries: Tensor) -> Tensor:
    """``[B, Q, H]`` in fp32: what each query finds among the real tokens; 0 in a row that has none.

    A token's share is the softmax of its product with the query, over √H: attention with one head, whose keys
    and values are the states as they are (self-attentive embeddings, arXiv:1703.03130).

    Args:
        states: ``[B, T, H]``.
        real: ``[B, T]``, 1 at real tokens.
        queries: ``[Q, H]``.
    """
    states = states.float()
    scores = states @ queries.T / math.sqrt(states.shape[-1])
    none = torch.finfo(scores.dtype).min  # and not −∞, of which a row without tokens would make no number
    shares = scores.masked_fill(~real.bool()[..., None], none).softmax(1) * real[..., None]
    return shares.transpose(1, 2) @ states


def weighed(states: Tensor, real: Tensor, mix: Tensor) -> Tensor:
    """``[B, H]`` in fp32: mean, greatest, and what queries find, each weighed dimension by dimension.

    Args:
        states: ``[B, T, H]``, what a layer gives.
        real: ``[B, T]``, 1 at real tokens.
        mix: ``[2+2Q, H]``: weights of the mean, of the greatest, of what each query finds; the queries.
    """
    asked = len(mix) // 2 - 1
    weights, queries = mix[: 2 + asked], mix[2 + asked :]
    read = average(states, real).float() * weights[0] + greatest(states, real).float() * weights[1]
    return read + (attended(states, real, queries) * weights[2:]).sum(1) if asked else read


def mix_of_last(layers: int, queries: int, width: int) -> Tensor:
    """``[layers + 1, 2+2Q, H]``, how :func:`weighed` is to read every layer: of the last one the mean alone.

    The queries are drawn, so that no two of them learn the same.
    """
    weights = torch.zeros(layers + 1, 2 + queries, width)
    weights[-1, 0] = 1
    return torch.cat((weights, torch.randn(layers + 1, queries, width) * QUERY_SCALE), dim=1)
