"""Pooling of tokens and layers: mean, maximum, attention with learned queries, and their weighted sum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

QUERY_SCALE = 0.3
"""The queries' initial standard deviation: every token has nearly the same share."""


def mean_of_tokens(states: Tensor, real: Tensor) -> Tensor:
    """``[B, H]``: the mean of ``states`` ``[B, T, H]`` over the real tokens; 0 in a row without any."""
    shares = real / real.sum(1, keepdim=True).clamp(min=1)
    return (shares.to(states.dtype)[:, None] @ states)[:, 0]


def max_of_tokens(states: Tensor, real: Tensor) -> Tensor:
    """``[B, H]``: the maximum of each dimension over the real tokens; 0 in a row without any."""
    found = states.masked_fill(~real.bool()[..., None], -math.inf).amax(1)
    return found.masked_fill(found == -math.inf, 0)


def attention_pool(states: Tensor, real: Tensor, queries: Tensor) -> Tensor:
    """``[B, Q, H]`` in fp32: what each query finds among the real tokens; 0 in a row without any.

    A token's share is the softmax of its product with the query, over √H: attention with one head, whose keys
    and values are the states as they are (self-attentive embeddings, arXiv:1703.03130).

    Args:
        states: ``[B, T, H]``.
        real: ``[B, T]``, 1 at real tokens.
        queries: ``[Q, H]``, or one set per row, ``[B, Q, H]``.
    """
    states = states.float()
    scores = states @ queries.mT / math.sqrt(states.shape[-1])
    none = torch.finfo(scores.dtype).min  # not −∞: a row without tokens would become NaN
    shares = scores.masked_fill(~real.bool()[..., None], none).softmax(1) * real[..., None]
    return shares.transpose(1, 2) @ states


def weighted_pool(states: Tensor, real: Tensor, mix: Tensor) -> Tensor:
    """``[B, H]`` in fp32: mean, maximum, and what queries find, each weighted dimension by dimension.

    Args:
        states: ``[B, T, H]``, a layer's output.
        real: ``[B, T]``, 1 at real tokens.
        mix: ``[2+2Q, H]``: weights of the mean, of the maximum, of what each query finds; then the queries.
            Or one per row, ``[B, 2+2Q, H]``.
    """
    asked = mix.shape[-2] // 2 - 1
    weights, queries = mix[..., : 2 + asked, :], mix[..., 2 + asked :, :]
    mean, highest = mean_of_tokens(states, real).float(), max_of_tokens(states, real).float()
    read = mean * weights[..., 0, :] + highest * weights[..., 1, :]
    return read + (attention_pool(states, real, queries) * weights[..., 2:, :]).sum(1) if asked else read


def initial_mix(layers: int, queries: int, width: int) -> Tensor:
    """``[layers + 1, 2+2Q, H]``, the first values for :func:`weighted_pool`: the mean of the last layer.

    The queries are random, so that no two of them learn the same.
    """
    weights = torch.zeros(layers + 1, 2 + queries, width)
    weights[-1, 0] = 1
    return torch.cat((weights, torch.randn(layers + 1, queries, width) * QUERY_SCALE), dim=1)
