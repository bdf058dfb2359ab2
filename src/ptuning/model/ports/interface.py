"""The port for every architecture that uses transformers' attention interface.

A deep prompt is P more keys and values in front of the text's, in every layer (P-tuning v2,
arXiv:2110.07602). The backbone hands its keyword arguments through to the attention function, so a
:class:`~ptuning.model.layer_parts.LayerPass` is passed along with the batch, and nothing is kept on a module
or in a global.

Shapes: B rows, T queries, S keys, h heads, h_kv key/value heads, d head size, P virtual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ptuning.errors import UnsupportedBackbone
from ptuning.model.layer_parts import LayerPart, LayerPass
from ptuning.model.ports.port import AttentionPort, Capabilities, Memo

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
# What the mask says already, or what changes no value; every other argument must be known.
_KNOWN = _MASK_ONLY | {
    "softcap",
    "s_aux",
    "return_dict",
    "output_hidden_states",
    "cache_position",
    "num_items_in_batch",
}


class InterfacePort(AttentionPort):
    """Prompts enter through the attention function registered under :data:`NAME`."""

    can = Capabilities()

    def install(self, model: Any) -> None:
        model.set_attn_implementation(NAME)

    def under_way(
        self, found: object, parts: Sequence[LayerPart], inputs: dict[str, Any], dtype: torch.dtype
    ) -> AbstractContextManager[None]:
        inputs[ARGUMENT] = found
        return nullcontext()

    def find(self, arguments: dict[str, Any]) -> object:
        return arguments.pop(ARGUMENT, None)

    def layer_arguments(
        self, arguments: dict[str, Any], given: LayerPass, hidden: Tensor, dtype: torch.dtype, memo: Memo
    ) -> dict[str, Any]:
        """With a mask that lets every query see its row's prompt, made once per pass for each mask.

        A backbone has one mask, or two where some of its layers use a sliding window.
        """
        arguments = {**arguments, ARGUMENT: given}
        mask, own = arguments.get("attention_mask"), given.prompt_mask
        if mask is None and own is None:
            return arguments
        tokens = 0 if given.keys is None else given.keys.shape[2]
        key = (id(mask), id(own), tokens, dtype if given.plain else None)
        if key not in memo:
            if mask is None:  # every token sees every token
                wide = hidden.new_ones(len(hidden), 1, 1, hidden.shape[1], dtype=torch.bool)
            else:
                wide = mask
            wide = with_prompt(wide, tokens, own)
            # Keeping the masks next to it keeps their ids from being reused.
            memo[key] = (additive(wide, dtype) if given.plain else wide, mask, own)
        return {**arguments, "attention_mask": memo[key][0]}

    def keys_values(
        self, layer: Callable[..., Any], hidden: Tensor, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        # transformers has no call that projects keys and values alone: norm, projection and rotary positions
        # are each architecture's own code. So that code runs up to the attention function and stops there.
        try:
            layer(hidden, **{**arguments, ARGUMENT: KeysAndValuesOnly()})
        except _KeysAndValues as ready:
            return ready.keys_values
        return None  # somebody has set another attention implementation


class KeysAndValuesOnly:
    """In place of a :class:`LayerPass`: stop as soon as the keys and values are there."""


Given = LayerPass | KeysAndValuesOnly
"""What a layer's attention is given."""


class _KeysAndValues(Exception):
    """Leaves a layer's forward with its keys and values. Raised and caught in this module only."""

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
    forward_pass: Given | None = None,
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
        forward_pass: This layer's prompt, and how to compute.

    Returns:
        ``[B, T, h, d]``, and ``None`` for the weights, which are not kept.

    Raises:
        UnsupportedBackbone: the architecture asks for something that this function does not do.
    """
    unknown = {name for name, given in kwargs.items() if given is not None} - _KNOWN
    if unknown:
        raise UnsupportedBackbone(
            f"{type(module).__name__} passes {', '.join(sorted(unknown))} to its attention, which prompts do "
            "not support",
            remedy="use an architecture of the table in docs/backbones.md",
        )
    if isinstance(forward_pass, KeysAndValuesOnly):
        raise _KeysAndValues(key, value)
    given = forward_pass or LayerPass(plain=prefers_plain(query.device, query.dtype))
    given.read = True
    if given.record:
        given.recorded = key, value
    if given.text is not None:
        key, value = given.text
    if given.keys is not None and given.values is not None:
        key = torch.cat((given.keys.to(key.dtype), key), dim=2)
        value = torch.cat((given.values.to(value.dtype), value), dim=2)
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if given.plain or softcap is not None or sinks is not None:
        bias = None if attention_mask is None else additive(attention_mask, query.dtype)
        return _plain(query, key, value, bias, dropout, scaling, softcap, sinks, module.training), None
    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False
    )
    return out, None


def with_prompt(mask: Tensor, tokens: int, own: Tensor | None) -> Tensor:
    """``[B, 1, T, P + T]``: a boolean mask ``[B, 1, T, T]`` in which queries see the prompt in front, too.

    Args:
        tokens: P.
        own: ``[B, P]``, the virtual tokens that each row has; ``None`` for all of them.
    """
    if own is None:
        return nn.functional.pad(mask, (tokens, 0), value=True)
    return torch.cat((own[:, None, None].expand(-1, 1, mask.shape[2], -1), mask), dim=-1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as a bias on the scores; an additive mask stays as it is."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    lowest = torch.finfo(dtype).min / 2  # half: a score can be added without overflow, in fp16 too
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, lowest)


def prefers_plain(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matmul, softmax, matmul is faster than the fused kernel: it is in half precision on a CPU,
    where torch's kernel is slow. In fp32, and on CUDA, the fused kernels win.
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
    sinks: Tensor | None,
    training: bool,
) -> Tensor:
    """``[B, T, h, d]``: attention as the paper writes it; ``sinks`` ``[h]`` are scores of keys without values
    (gpt-oss).
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    # Grouped queries: fold a group's heads into its key's rows, rather than copy the keys.
    folded = query.reshape(batch * key.shape[1], groups * length, width)
    across = key.flatten(0, 1).transpose(1, 2)
    if bias is not None and softcap is None:  # scale and mask inside the product: one less pass over scores
        everywhere = bias.expand(batch, heads, length, -1).reshape(len(folded), groups * length, -1)
        scores = torch.baddbmm(everywhere, folded, across, alpha=scale)
    else:
        scores = (folded * scale) @ across
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if bias is not None:
            scores = (scores.view(batch, heads, length, -1) + bias).view_as(scores)
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        column = sinks.to(scores.dtype).view(1, -1, groups, 1).expand(batch, -1, -1, length)
        weights = torch.cat((scores, column.reshape(*scores.shape[:2], 1)), dim=-1).softmax(-1)[..., :-1]
    weights = nn.functional.dropout(weights, p=dropout, training=training)
    out = weights @ value.flatten(0, 1)
    return out.view(batch, heads, length, width).transpose(1, 2).contiguous()


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Transformers' boolean mask, never left out because the kernel could be told "causal": with a prompt in
    front that flag would mean something else.
    """
    built: Callable[..., Tensor | None] = sdpa_mask
    return built(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
