"""The attention function registered with transformers; deep prompts enter here.

A deep prompt is, in every layer, P more keys and values in front of the text's (P-tuning v2,
arXiv:2110.07602). One function does that for every architecture that uses transformers' attention
interface: the backbone hands its keyword arguments through to the attention function, so a
:class:`LayerPass` travels with the batch (``layers.py`` makes one a layer) and nothing is kept on a module or
in a global.

Glossary: B rows, T queries, S keys, h heads, h_kv key/value heads, d head width, P virtual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ptuning.errors import UnsupportedBackbone

NAME = "ptuning"
"""The name under which the function is registered: ``model.set_attn_implementation(NAME)``."""

ARGUMENT = "forward_pass"
"""The keyword under which a ``ForwardPass`` reaches each layer, and a :class:`LayerPass` its attention."""

_MASK_ONLY = {
    "sliding_window",
    "position_ids",
    "is_causal",
    "use_cache",
    "output_attentions",
    "deterministic",
}
# What the mask has said already, or what changes no number; every other argument must be known.
_KNOWN = _MASK_ONLY | {
    "softcap",
    "return_dict",
    "output_hidden_states",
    "cache_position",
    "num_items_in_batch",
}


@dataclass(kw_only=True, slots=True)
class LayerPass:
    """What one layer's attention is given for one batch, and what is known of it afterwards.

    Attributes:
        keys: ``[B, h_kv, P, d]``, the layer's prompt; ``None`` where it has none.
        values: As ``keys``.
        plain: Matmul, softmax, matmul in place of the fused kernel.
        text: Keys and values ``[B, h_kv, S, d]`` that stand in for those of the tokens at hand: a layer that
            is run for the pooled token alone looks at the whole text through them.
        look: Stop as soon as keys and values are there: :class:`Looked` brings them.
        record: Put the tokens' keys and values into ``seen``; otherwise nothing holds on to them.
        seen: See ``record``.
        read: Whether the layer's attention came by here.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    plain: bool = False
    text: tuple[Tensor, Tensor] | None = None
    look: bool = False
    record: bool = False
    read: bool = False
    seen: tuple[Tensor, Tensor] | None = None


class Looked(Exception):
    """Not an error: ends a layer's forward pass at the point where its keys and values are known."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys_values = keys, values


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    forward_pass: LayerPass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with this layer's prompt in front.

    Args:
        module: The backbone's attention module.
        query: ``[B, h, T, d]``.
        key: ``[B, h_kv, T, d]``.
        value: ``[B, h_kv, T, d]``.
        attention_mask: ``[B, 1, T, P + T]`` (or one row for all queries), boolean, True where a query may
            look, or additive; ``None`` where it may look everywhere.
        dropout: On the attention weights.
        scaling: On the scores; 1/√d if ``None``.
        forward_pass: This layer's prompt, and how to go about it.

    Returns:
        ``[B, T, h, d]``, and ``None`` for the weights, which are not kept.

    Raises:
        UnsupportedBackbone: the architecture asks for something that this function does not do.
        Looked: keys and values, where only these were asked for.
    """
    unknown = {name for name, given in kwargs.items() if given is not None} - _KNOWN
    if unknown:
        raise UnsupportedBackbone(
            f"{type(module).__name__} asks its attention for {', '.join(sorted(unknown))}, which prompts "
            "do not support; use an architecture of the table in docs/backbones.md"
        )
    given = forward_pass or LayerPass(plain=prefers_plain(query.device, query.dtype))
    if given.look:
        raise Looked(key, value)
    given.read = True
    if given.record:
        given.seen = key, value
    if given.text is not None:
        key, value = given.text
    if given.keys is not None and given.values is not None:
        key = torch.cat((given.keys.to(key.dtype), key), dim=2)
        value = torch.cat((given.values.to(value.dtype), value), dim=2)
    softcap = kwargs.get("softcap")
    if given.plain or softcap is not None:
        bias = None if attention_mask is None else additive(attention_mask, query.dtype)
        return _plain(query, key, value, bias, dropout, scaling, softcap, module.training), None
    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False
    )
    return out, None


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to the scores; one that is additive already stays."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    lowest = torch.finfo(dtype).min / 2  # half: with a score added it is still a number, also in fp16
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, lowest)


def prefers_plain(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matmul, softmax, matmul beats the fused kernel: in half precision on a CPU it does, because
    torch's kernel there is slow; in fp32, and on CUDA, the fused kernels win.
    """
    return device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    training: bool,
) -> Tensor:
    """``[B, T, h, d]``: attention as it is written down."""
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    # Grouped queries: fold a group's heads into its key's rows, rather than copy the keys.
    folded = query.reshape(batch * key.shape[1], groups * length, width)
    across = key.flatten(0, 1).transpose(1, 2)
    if bias is not None and softcap is None:  # scale and mask in the product itself: a pass less over scores
        everywhere = bias.expand(batch, heads, length, -1).reshape(len(folded), groups * length, -1)
        scores = torch.baddbmm(everywhere, folded, across, alpha=scale)
    else:
        scores = (folded * scale) @ across
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if bias is not None:
            scores = (scores.view(batch, heads, length, -1) + bias).view_as(scores)
    weights = nn.functional.dropout(scores.softmax(-1), p=dropout, training=training)
    out = weights @ value.flatten(0, 1)
    return out.view(batch, heads, length, width).transpose(1, 2).contiguous()


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Transformers' boolean mask, never left out on the ground that the kernel could be told "causal":
    with a prompt in front that flag would mean something else.
    """
    built: Callable[..., Tensor | None] = sdpa_mask
    return built(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
