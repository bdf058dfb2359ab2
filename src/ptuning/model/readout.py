"""Readouts: they select or pool the hidden states for the head.

A readout is a part of the forward pass (``layer_parts.py``): it sees every layer's input, and then reads the
last layer's output, before any final norm. The encoder applies its final norm to the result
(:meth:`~ptuning.model.encoder.Encoder.finish`), and the task's head turns that into logits.

Shapes: B rows, T tokens, H hidden size, L layers, s the first prompted layer, Q queries.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ptuning.model.layer_parts import LayerPart
from ptuning.model.pooling import mean_of_tokens, weighted_pool
from ptuning.model.similarity import pair_similarity, vector_similarity


class Readout(LayerPart):
    """One per forward pass; it may store what it saw of the layers.

    Attributes:
        is_final: Whether the head reads the result as it is, without the norm behind the last layer.
    """

    is_final = False

    @abstractmethod
    def read(self, states: Tensor) -> Tensor:
        """``[B, H]``, or ``[B, T, H]`` for a head that pools the tokens itself.

        Args:
            states: ``[B, T, H]``, the last layer's output; ``[B, 1, H]`` if it ran for :attr:`one_token`.
        """


class FirstToken(Readout):
    """An encoder's ``[CLS]``.

    Args:
        cut: Whether the last layer may run for this token alone.
    """

    def __init__(self, *, cut: bool = True) -> None:
        self.one_token = slice(0, 1) if cut else None

    def read(self, states: Tensor) -> Tensor:
        return states[:, 0]


class LastToken(Readout):
    """A decoder's last token; padding is in front of the text."""

    one_token = slice(-1, None)

    def read(self, states: Tensor) -> Tensor:
        return states[:, -1]


class AtPlaces(Readout):
    """The token at one place of each row, such as the mask.

    Args:
        places: ``[B]``.
    """

    def __init__(self, places: Tensor) -> None:
        self._places = places

    def read(self, states: Tensor) -> Tensor:
        return states[torch.arange(len(states), device=states.device), self._places]


class EveryToken(Readout):
    """All tokens, in the order of the layout."""

    def read(self, states: Tensor) -> Tensor:
        return states


class Mean(Readout):
    """The mean of the tokens.

    Args:
        mask: ``[B, T]``, 1 at real tokens.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def read(self, states: Tensor) -> Tensor:
        return mean_of_tokens(states, self._mask).to(states.dtype)


class LayerMix(Readout):
    """A weighted sum over layers: of the mean, the maximum and the attention-pooled tokens of each query.

    It covers the input of layer s, its output and that of each layer above; see
    :func:`~ptuning.model.pooling.weighted_pool`.

    Args:
        mask: ``[B, T]``, 1 at real tokens.
        mix: ``[L−s+1, 2+2Q, H]``, the weights.
        first_layer: s.
    """

    def __init__(self, mask: Tensor, mix: Tensor, first_layer: int) -> None:
        self._mask, self._mix, self._first_layer = mask, mix, first_layer
        self._sum = torch.zeros(())

    def entering(self, index: int, hidden: Tensor) -> Tensor:
        if index >= self._first_layer:
            self._add(hidden, self._mix[index - self._first_layer])
        return hidden

    def _add(self, hidden: Tensor, weights: Tensor) -> None:
        self._sum = self._sum + weighted_pool(hidden, self._mask, weights)

    def read(self, states: Tensor) -> Tensor:
        self._add(states, self._mix[-1])
        return self._sum.to(states.dtype)


class Similarity(Readout):
    """How similar the two texts of each pair are, dimension by dimension (``similarity.py``).

    The rows are the first texts of all pairs, followed by the second ones; half as many rows are read.

    Args:
        mask: ``[2B, T]``, 1 at real tokens.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def read(self, states: Tensor) -> Tensor:
        first, second = states.chunk(2)
        one, other = self._mask.bool().chunk(2)
        return pair_similarity(first, second, (one, other)).to(states.dtype)


class LastSimilarity(Readout):
    """How similar the last tokens of the two texts of each pair are: a decoder's.

    The rows are as those of :class:`Similarity`. The norm behind the last layer is applied to each text's
    token: applied to the similarity, it would take away how large that is.

    Args:
        finish: What the transformer applies behind its last layer.
    """

    one_token = slice(-1, None)
    is_final = True

    def __init__(self, finish: Callable[[Tensor], Tensor]) -> None:
        self._finish = finish

    def read(self, states: Tensor) -> Tensor:
        first, second = self._finish(states[:, -1]).chunk(2)
        return vector_similarity(first, second).to(states.dtype)
