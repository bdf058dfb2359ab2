"""The attention function registered with transformers; deep prompts enter here.

A deep prompt is, in every layer, P more keys and values in front of the text's (P-tuning v2,
arXiv:2110.07602). One function does that for every architecture that uses transformers' attention
interface: the backbone hands its keyword arguments through to the attention function, so a
:class:`ForwardPass` travels with the batch and nothing is kept on a module or in a global.

Glossary: B rows, T queries, S keys, h heads, h_kv key/value heads, d head width, P virtual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
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
"""The keyword under which a :class:`ForwardPass` reaches the attention function."""

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


class ForwardPass:
    """What the attention calls of one forward pass share: the layers' prompts and the widened masks.

    Args:
        prompts: ``[L−s, 2, P, H_kv]``, or one a row ``[B, L−s, 2, P, H_kv]``; keys, then values.
            ``None`` where no layer has a prompt.
        first_layer: s, the first layer that has one.
        head_dim: d, so that h_kv = H_kv / d.
    """

    def __init__(self, prompts: Tensor | None = None, *, first_layer: int = 0, head_dim: int = 1) -> None:
        self.first_layer = first_layer
        self._prompts: Tensor | None = None
        if prompts is not None:
            batched = prompts if prompts.dim() == 5 else prompts[None]
            # [B, L−s, 2, P, H_kv] → [L−s, 2, B, h_kv, P, d]
            self._prompts = batched.unflatten(-1, (-1, head_dim)).permute(1, 2, 0, 4, 3, 5)
        self._calls = 0
        self._used: set[int] = set()
        self._masks: dict[tuple[int, bool, torch.dtype | None], tuple[Tensor, Tensor]] = {}

    def layer_of(self, module: nn.Module) -> int:
        """The module's layer; by order of call where it carries none (DistilBERT, ALBERT)."""
        index = getattr(module, "layer_idx", None)
        if index is None:
            index = self._calls
            self._calls += 1
        return int(index)

    def keys_values(self, layer: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Layer ``layer``'s keys and values, each ``[B, h_kv, P, d]``; ``None`` below ``first_layer``."""
        if self._prompts is None or layer < self.first_layer:
            return None
        self._used.add(layer)
        keys, values = self._prompts[layer - self.first_layer].to(dtype).expand(2, batch, -1, -1, -1)
        return keys, values

    def mask(self, mask: Tensor, tokens: int, dtype: torch.dtype | None) -> Tensor:
        """``mask`` with ``tokens`` columns more in front, open to every query; additive with a ``dtype``.

        Made once a pass for each mask: a backbone has one, or two where some of its layers slide.
        """
        key = (id(mask), tokens > 0, dtype)
        if key not in self._masks:
            wide = torch.nn.functional.pad(mask, (tokens, 0), value=True)
            if dtype is not None:
                wide = torch.zeros(wide.shape, dtype=dtype, device=wide.device).masked_fill_(
                    ~wide, torch.finfo(dtype).min
                )
            self._masks[key] = (wide, mask)  # holding the mask keeps its id from being given away
        return self._masks[key][0]

    def check_used(self, layers: int, architecture: str) -> None:
        """Refuse a backbone that left a prompt unread: its answers would be the prompt-less model's."""
        if self._prompts is not None and self._used != set(range(self.first_layer, layers)):
            raise UnsupportedBackbone(
                f"{architecture} read the deep prompts of {len(self._used)} of its "
                f"{layers - self.first_layer} layers: it does not go through transformers' attention "
                "interface; use an input-depth prompt (prompt.depth: input)"
            )


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    forward_pass: ForwardPass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with this layer's prompt in front.

    Args:
        module: The backbone's attention module.
        query: ``[B, h, T, d]``.
        key: ``[B, h_kv, T, d]``.
        value: ``[B, h_kv, T, d]``.
        attention_mask: ``[B, 1, T, T]``, boolean, True where a query may look; ``None`` where it
            may look everywhere.
        dropout: On the attention weights.
        scaling: On the scores; 1/√d if ``None``.
        forward_pass: This pass's prompts and masks.

    Returns:
        ``[B, T, h, d]``, and ``None`` for the weights, which are not kept.

    Raises:
        UnsupportedBackbone: the architecture asks for something that this function does not do.
    """
    unknown = {name for name, given in kwargs.items() if given is not None} - _KNOWN
    if unknown:
        raise UnsupportedBackbone(
            f"{type(module).__name__} asks its attention for {', '.join(sorted(unknown))}, which prompts "
            "do not support; use an architecture of the table in docs/backbones.md"
        )
    shared = forward_pass or ForwardPass()
    prompt = shared.keys_values(shared.layer_of(module), query.shape[0], key.dtype)
    tokens = 0
    if prompt is not None:
        key, value = torch.cat((prompt[0], key), dim=2), torch.cat((prompt[1], value), dim=2)
        tokens = prompt[0].shape[2]
    softcap = kwargs.get("softcap")
    plain = softcap is not None or prefers_plain(query)
    if attention_mask is not None:
        attention_mask = shared.mask(attention_mask, tokens, query.dtype if plain else None)
    if plain:
        return _plain(query, key, value, attention_mask, dropout, scaling, softcap, module.training), None
    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False
    )
    return out, None


def prefers_plain(query: Tensor) -> bool:
    """Whether matmul, softmax, matmul beats the fused kernel: in half precision on a CPU it does, because
    torch's kernel there is slow; in fp32, and on CUDA, the fused kernels win.
    """
    return query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16)


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
    # Grouped queries: fold a group's heads into its key's rows, rather than copy the keys.
    folded = query.reshape(batch, key.shape[1], groups * length, width)
    scores = (folded * (width**-0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    scores = scores.view(batch, heads, length, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    weights = nn.functional.dropout(scores.softmax(-1), p=dropout, training=training)
    out = weights.reshape(batch, key.shape[1], groups * length, -1) @ value
    return out.view(batch, heads, length, width).transpose(1, 2).contiguous()


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Transformers' boolean mask, never left out on the ground that the kernel could be told "causal":
    with a prompt in front that flag would mean something else.
    """
    built: Callable[..., Tensor | None] = sdpa_mask
    return built(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
