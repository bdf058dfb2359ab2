"""The port for attention outside transformers' interface: that of DeBERTa-v2, MPNet, GPT-J and GPT-Neo.

DeBERTa (arXiv:2006.03654, arXiv:2111.09543) adds relative-position terms inside its attention. As in the
P-tuning v2 reference, a prompt has no position in the text: queries meet its keys by content only, with no
relative-position term. Nor has MPNet's attention (arXiv:2004.09297) a relative-position bias for a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.gptj.modeling_gptj import GPTJAttention
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from ptuning.model.layer_parts import LayerPass
from ptuning.model.ports.context import InContext, given_here
from ptuning.model.ports.interface import KeysAndValuesOnly, additive, attention, with_prompt
from ptuning.model.ports.port import Capabilities


class ReplacedPort(InContext):
    """The attention modules get a class of ours; their weights stay the same tensors."""

    can = Capabilities(one_token=False, record=False, compile=False)

    def install(self, model: Any) -> None:
        for module in model.modules():
            if (ours := REPLACEMENTS.get(type(module))) is not None:
                module.__class__ = ours

    def hidden(self, output: Any) -> Tensor:
        found: Tensor = output[0]
        return found

    def output(self, hidden: Tensor) -> Any:
        return hidden, None  # no attention weights


class PromptedSelfAttention(DisentangledSelfAttention):
    """Disentangled attention with the layer's prompt in front; without a prompt, its parent."""

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
        given = _given()
        if given is None or given.keys is None or given.values is None:
            plain: Callable[..., tuple[Tensor, Tensor | None]] = super().forward
            return plain(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        given.read = True
        heads = self.num_attention_heads
        query = self._heads(self.query_proj(hidden_states if query_states is None else query_states))
        key, value = self._heads(self.key_proj(hidden_states)), self._heads(self.value_proj(hidden_states))
        terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        scale = (query.shape[-1] * terms) ** 0.5
        prompt_key, prompt_value = given.keys.flatten(0, 1), given.values.flatten(0, 1)  # [B·h, P, d]
        scores = query @ key.transpose(1, 2) / scale
        if self.relative_attention:
            bias: Callable[..., Tensor] = self.disentangled_attention_bias
            scores = scores + bias(query, key, relative_pos, self.pos_dropout(rel_embeddings), terms)
        scores = torch.cat((query @ prompt_key.transpose(1, 2) / scale, scores), dim=2)
        scores = scores.unflatten(0, (-1, heads))
        visible = with_prompt(attention_mask.bool(), prompt_key.shape[1], given.prompt_mask)
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        weights = self.dropout(scores.softmax(-1))
        mixed = weights.flatten(0, 1) @ torch.cat((prompt_value, value), dim=1)
        merged = mixed.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
        return merged, weights if output_attentions else None

    def _heads(self, states: Tensor) -> Tensor:
        """``[B, T, H]`` → ``[B·h, T, d]``."""
        split: Tensor = self.transpose_for_scores(states, self.num_attention_heads)
        return split


class PromptedMPNetAttention(MPNetSelfAttention):
    """MPNet's attention with the layer's prompt in front; outside of a pass, its parent."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """``hidden_states`` ``[B, T, H]``, ``attention_mask`` ``[B, 1, T, T]`` and ``position_bias``
        ``[B, h, T, T]``, both to be added to the scores; returns ``[B, T, H]``.
        """
        given = _given()
        if given is None or (output_attentions and given.keys is None):
            plain: Callable[..., tuple[Tensor, ...]] = super().forward
            return plain(hidden_states, attention_mask, position_bias, output_attentions, **kwargs)
        query, key, value = (
            part(hidden_states).unflatten(2, (self.num_attention_heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        bias = [each for each in (attention_mask, position_bias) if each is not None]
        mask = in_front(sum(bias[1:], bias[0]), given) if bias else None
        dropout = self.dropout.p if self.training else 0.0
        mixed, _ = attention(self, query, key, value, mask, dropout=dropout, forward_pass=given)
        return (self.o(mixed.flatten(2)),)


class PromptedGPTJAttention(GPTJAttention):
    """GPT-J's attention, whose queries and keys have their rotary positions, with the prompt in front."""

    def _attn(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As its parent: ``[B, h, T, d]``, and a mask to be added to the scores, which are in fp32."""
        given = _given()
        if given is None or given.keys is None:
            plain: Callable[..., tuple[Tensor, Tensor | None]] = super()._attn
            return plain(query, key, value, attention_mask)
        return in_fp32(self, (query, key, value), attention_mask, given, 1 / self.scale_attn)


class PromptedGPTNeoAttention(GPTNeoSelfAttention):
    """GPT-Neo's attention with the prompt in front; local layers see it from everywhere, as a sliding window
    does. Its scores are not scaled.
    """

    def _attn(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As its parent: ``[B, h, T, d]``, and a mask to be added to the scores, which are in fp32."""
        given = _given()
        if given is None:
            plain: Callable[..., tuple[Tensor, Tensor | None]] = super()._attn
            return plain(query, key, value, attention_mask)
        # Its parent's table of who sees whom ends at the last position, and padding may be wider.
        places = torch.arange(query.shape[2], device=query.device)
        back = places[:, None] - places
        visible = back >= 0
        if self.attention_type == "local":
            visible &= back < self.config.window_size
        mask = additive(visible[None, None], torch.float32)
        mask = mask if attention_mask is None else attention_mask.float() + mask
        return in_fp32(self, (query, key, value), mask, given, 1.0)


def _given() -> LayerPass | None:
    given = given_here()
    assert not isinstance(given, KeysAndValuesOnly)  # this port is not asked for keys and values alone
    return given


def in_fp32(
    module: Any, text: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, given: LayerPass, scaling: float
) -> tuple[Tensor, None]:
    """``[B, h, T, d]``: GPT-J's and GPT-Neo's scores can overflow in half precision."""
    query, key, value = (each.float() for each in text)
    wide = None if mask is None else in_front(mask.float(), given)
    dropout = module.attn_dropout.p if module.training else 0.0
    mixed, _ = attention(
        module, query, key, value, wide, dropout=dropout, scaling=scaling, forward_pass=given
    )
    return mixed.transpose(1, 2).to(text[2].dtype), None


def in_front(bias: Tensor, given: LayerPass) -> Tensor:
    """What is added to the scores, for P virtual tokens more: 0 for those that a row has."""
    if given.keys is None:
        return bias
    wide = nn.functional.pad(bias, (given.keys.shape[2], 0))
    if given.prompt_mask is not None:
        hidden = ~given.prompt_mask.bool()[:, None, None]
        wide = wide.expand(len(hidden), -1, -1, -1).clone()
        wide[..., : hidden.shape[-1]].masked_fill_(hidden, torch.finfo(bias.dtype).min)
    return wide


REPLACEMENTS: Mapping[type[nn.Module], type[nn.Module]] = {
    DisentangledSelfAttention: PromptedSelfAttention,
    MPNetSelfAttention: PromptedMPNetAttention,
    GPTJAttention: PromptedGPTJAttention,
    GPTNeoSelfAttention: PromptedGPTNeoAttention,
}
"""transformers' attention class, and ours in its place."""
