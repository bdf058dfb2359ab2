"""The architecture's own heads: from what was read of the hidden states to logits.

Shapes: B rows, T tokens, H hidden size, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ptuning.model import views


class ReadHead(Protocol):
    """What turns a readout into logits."""

    def __call__(self, read: Tensor, mask: Tensor) -> Tensor:
        """``[B, C]``.

        Args:
            read: ``[B, H]``; or all tokens, ``[B, T, H]``.
            mask: ``[B, T]``, 1 at real tokens; only used with all tokens.
        """


class LinearHead:
    """A decoder's: one linear layer.

    Args:
        layer: ``[C, H]``.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __call__(self, read: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self._layer(read)
        return found


class NativeHead:
    """The architecture's own, run by transformers' code: pooler, dense layers, activations, dropout.

    Args:
        model: An ``AutoModelForSequenceClassification`` of an encoder, with the task's parameters in place.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, read: Tensor, mask: Tensor) -> Tensor:
        states, mask = (read, mask) if read.dim() == 3 else (read[:, None], mask.new_ones(len(read), 1))
        # transformers has the head inside the model's forward, behind a call of the transformer.
        done = _Done(states, _pooled(self._model.base_model, states))
        model = views.with_child(self._model, self._model.base_model_prefix, done)
        found: Tensor = model(inputs_embeds=states, attention_mask=mask).logits
        return found


class _Done(nn.Module):
    """In place of a transformer that has run already."""

    def __init__(self, states: Tensor, pooled: Tensor | None) -> None:
        super().__init__()
        self._found = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        return self._found


def _pooled(transformer: Any, states: Tensor) -> Tensor | None:
    """What the transformer's own pooler makes of ``[B, T, H]``; ``None`` if it has none."""
    pooler: Callable[..., Tensor] | None = getattr(transformer, "pooler", None)
    if pooler is None:
        return None
    activation = getattr(transformer, "pooler_activation", None)  # ALBERT's pooler is a linear layer
    return pooler(states) if activation is None else torch.as_tensor(activation(pooler(states[:, 0])))
