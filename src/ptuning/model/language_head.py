"""A checkpoint's own language model head, for a backbone that was loaded for classification.

A cloze head is this head for a few words. It is frozen, all tasks on a backbone share it, and it is loaded
when the first of them is made. The logits of other words are never computed.

Shapes: B rows, H hidden size, E embedding size, K tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from ptuning.adapters.tensors import on_cpu
from ptuning.errors import UnsupportedBackbone
from ptuning.model import views

_SETTINGS = (
    *("final_logit_softcapping", "logit_scale"),
    *("hidden_act", "activation", "classifier_activation", "layer_norm_eps", "norm_eps"),
)
"""The entries of a configuration that change the logits of a head with the same weights."""


class LanguageHead:
    """Everything of a masked or causal language model behind its transformer.

    Args:
        model: An ``AutoModelForMaskedLM`` or ``AutoModelForCausalLM``. It loses its transformer, and its
            output layer if that has the word embeddings' weights.

    Raises:
        UnsupportedBackbone: its head has no output layer of its own.

    Attributes:
        tied: Whether its output layer has the word embeddings' weights.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        output: Any = model.get_output_embeddings()
        words: Any = model.get_input_embeddings().weight
        if output is None or output.weight.shape[0] != words.shape[0]:
            raise UnsupportedBackbone(
                f"{type(model).__name__} has no output layer with a row per token, which a cloze head needs",
                remedy="leave prompt.head out, or use another backbone",
            )
        self.tied = output.weight is words
        self._output = next(name for name, module in model.named_modules() if module is output)
        self._prefix = model.base_model_prefix
        self._model = views.with_child(model, self._prefix, nn.Identity()).requires_grad_(False).eval()
        if self.tied:
            output = views.shallow(output)
            output._parameters = {**output._parameters, "weight": None}
            self._model = views.with_modules(self._model, {self._output: output})

    @cached_property
    def digest(self) -> str:
        """A SHA-256 of its parameters as they were loaded, rounded to bf16, its settings, and whether it
        is tied.
        """
        config: Any = self._model.config
        settings = {name: getattr(config, name) for name in _SETTINGS if hasattr(config, name)}
        found = hashlib.sha256(json.dumps([self.tied, settings], default=str).encode())
        for name, value in sorted(self._model.named_parameters()):
            found.update(f"{name}{tuple(value.shape)}".encode())
            rounded = on_cpu(value).to(torch.bfloat16).contiguous()
            found.update(rounded.view(torch.uint8).numpy().data)
        return found.hexdigest()

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """What ``to`` and ``half`` of the backbone do."""
        _ = self.digest  # of the weights before they are rounded
        self._model._apply(fn)

    def rows(self, ids: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output layer for these tokens, in fp32: weights ``[K, E]``, biases ``[K]`` if it has any.

        Args:
            ids: ``[K]``.
            embedding: ``[V, E]``, the backbone's word embeddings.
        """
        output: Any = self._model.get_submodule(self._output)
        weight = (embedding if self.tied else output.weight).detach()
        bias = None if output.bias is None else output.bias.detach()[ids].float()
        return weight[ids].float(), bias

    def logits(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[B, K]`` in fp32: the logits of some tokens.

        Args:
            states: ``[B, H]``, the transformer's output at the place of the word.
            weight, bias: Of :meth:`rows`.
        """
        states = states[:, None]
        model: Any = views.with_modules(
            self._model, {self._prefix: _Done(states), self._output: _Rows(weight, bias)}
        )
        mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        found: Tensor = model(inputs_embeds=states, attention_mask=mask).logits
        return found[:, 0]


class _Rows(nn.Module):
    """In place of an output layer: its rows of some tokens, in fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight, self._bias = weight, bias

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states.float(), self._weight, self._bias)


@dataclass
class _Output(BaseModelOutputWithPastAndCrossAttentions):
    """With the attributes that any language model asks for."""

    router_logits: None = None


class _Done(nn.Module):
    """In place of a transformer that has run already."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self._found = _Output(last_hidden_state=states)

    @property
    def decoder(self) -> _Done:
        """OPT's head calls a part of its transformer."""
        return self

    def forward(self, *_: Any, **__: Any) -> _Output:
        return self._found
