"""The port for architectures that only take a prompt as a key/value cache: BLOOM."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from ptuning.model.layer_parts import LayerPart, Prompt
from ptuning.model.ports.port import AttentionPort, Capabilities


class CachePort(AttentionPort):
    """The prompt is a ``past_key_values``, with one in every layer; the layers are not asked anything."""

    can = Capabilities(layers=False, one_token=False, record=False, compile=False)

    def install(self, model: Any) -> None:
        """Nothing to prepare."""

    def under_way(
        self, found: object, parts: Sequence[LayerPart], inputs: dict[str, Any], dtype: torch.dtype
    ) -> AbstractContextManager[None]:
        for prompt in (part for part in parts if isinstance(part, Prompt)):
            mask, cache = inputs["attention_mask"], DynamicCache()
            for layer in range(prompt.num_layers):
                keys_values = prompt.keys_values(layer, len(mask), dtype)
                assert keys_values is not None  # there is one in every layer; settle refuses another first
                cache.update(*keys_values, layer)
            inputs["past_key_values"] = cache
            own = prompt.mask(0)
            visible = mask.new_ones(len(mask), prompt.num_virtual_tokens) if own is None else own.to(mask)
            inputs["attention_mask"] = torch.cat((visible, mask), dim=1)
        return nullcontext()
