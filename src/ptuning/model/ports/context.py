"""Ports for layers that do not pass their keyword arguments on to the attention.

The layers find the pass, and what they are given, in context variables: set for the duration of one call, and
separate for every thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ptuning.model.layer_parts import LayerPart
from ptuning.model.ports.interface import Given, InterfacePort, KeysAndValuesOnly, attention, mask
from ptuning.model.ports.port import AttentionPort, Capabilities

NAME = "ptuning_context"
"""The name of :func:`attention_in_context`: ``model.set_attn_implementation(NAME)``."""

_pass: ContextVar[object] = ContextVar("ptuning_forward_pass", default=None)
_layer: ContextVar[Given | None] = ContextVar("ptuning_layer_pass", default=None)


class InContext(AttentionPort):
    """What such ports have in common."""

    def under_way(
        self, found: object, parts: Sequence[LayerPart], inputs: dict[str, Any], dtype: torch.dtype
    ) -> AbstractContextManager[None]:
        return _set(_pass, found)

    def find(self, arguments: dict[str, Any]) -> object:
        return _pass.get()

    def running(self, given: Given) -> AbstractContextManager[None]:
        return _set(_layer, given)


class ContextPort(InContext, InterfacePort):
    """Transformers' attention interface, called without the layer's keyword arguments: StableLM, Nemotron."""

    can = Capabilities(compile=False)

    def install(self, model: Any) -> None:
        model.set_attn_implementation(NAME)

    def keys_values(
        self, layer: Callable[..., Any], hidden: Tensor, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        with self.running(KeysAndValuesOnly()):
            return super().keys_values(layer, hidden, arguments)


def given_here() -> Given | None:
    """What the layer that is running was given; ``None`` outside of a pass."""
    return _layer.get()


def attention_in_context(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """:func:`~ptuning.model.ports.interface.attention` with what the running layer was given."""
    return attention(module, query, key, value, attention_mask, forward_pass=_layer.get(), **kwargs)


@contextmanager
def _set(variable: ContextVar[Any], value: object) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


AttentionInterface.register(NAME, attention_in_context)
AttentionMaskInterface.register(NAME, mask)
