"""DeBERTa-v2's disentangled attention, with deep prompts; used by ``backbone.py`` alone.

DeBERTa (arXiv:2006.03654, arXiv:2111.09543) adds relative-position terms inside its attention and so
stays outside transformers' attention interface. As in the P-tuning v2 reference, a prompt has no
place in the text: its keys meet the queries' content only, with no relative-position term.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

if TYPE_CHECKING:
    from ptuning.model.layers import ForwardPass

# DeBERTa's forward hands no keyword arguments down, so here, and only here, the pass is reached
# through a context variable: bound for one call, and apart for every thread.
_current: ContextVar[ForwardPass | None] = ContextVar("ptuning_forward_pass", default=None)


@contextmanager
def bound(forward_pass: ForwardPass) -> Iterator[None]:
    """Make ``forward_pass`` the one that prompted attention reads inside the ``with`` block."""
    token = _current.set(forward_pass)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> ForwardPass | None:
    """The pass that is under way here, if one is."""
    return _current.get()


class PromptedSelfAttention(DisentangledSelfAttention):
    """Disentangled attention that puts the current pass's prompt in front; without one, its parent."""

    layer_idx: int

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """``hidden_states`` ``[B, T, H]``, ``attention_mask`` ``[B, 1, T, T]``; returns ``[B, T, H]``."""
        forward_pass = _current.get()
        prompt = forward_pass and forward_pass.reads(
            self.layer_idx, hidden_states.shape[0], hidden_states.dtype
        )
        if not prompt:
            plain: Callable[..., tuple[Tensor, Tensor | None]] = super().forward
            return plain(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        heads = self.num_attention_heads
        query = self._heads(self.query_proj(hidden_states if query_states is None else query_states))
        key, value = self._heads(self.key_proj(hidden_states)), self._heads(self.value_proj(hidden_states))
        terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        scale = (query.shape[-1] * terms) ** 0.5
        prompt_key, prompt_value = (states.flatten(0, 1) for states in prompt)  # [B·h, P, d]
        scores = query @ key.transpose(1, 2) / scale
        if self.relative_attention:
            bias: Callable[..., Tensor] = self.disentangled_attention_bias
            scores = scores + bias(query, key, relative_pos, self.pos_dropout(rel_embeddings), terms)
        scores = torch.cat((query @ prompt_key.transpose(1, 2) / scale, scores), dim=2)
        scores = scores.unflatten(0, (-1, heads))
        open_to_all = nn.functional.pad(attention_mask.bool(), (prompt_key.shape[1], 0), value=True)
        scores = scores.masked_fill(~open_to_all, torch.finfo(scores.dtype).min)
        weights = self.dropout(scores.softmax(-1))
        mixed = weights.flatten(0, 1) @ torch.cat((prompt_value, value), dim=1)
        merged = mixed.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
        return merged, weights if output_attentions else None

    def _heads(self, states: Tensor) -> Tensor:
        """``[B, T, H]`` → ``[B·h, T, d]``."""
        split: Tensor = self.transpose_for_scores(states, self.num_attention_heads)
        return split


def install(encoder: Any) -> None:
    """Give every layer of a DeBERTa-v2 encoder prompted attention; its weights stay the same tensors."""
    for index, layer in enumerate(encoder.layer):
        layer.attention.self.__class__ = PromptedSelfAttention
        layer.attention.self.layer_idx = index
