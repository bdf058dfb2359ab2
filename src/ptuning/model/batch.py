"""A batch of tokens, as the caller gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.errors import DataError
from ptuning.model.backbone import Backbone
from ptuning.model.placement import apart


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tokens as the caller gives them, padded on either side.

    Attributes:
        input_ids: ``[B, T]``.
        attention_mask: ``[B, T]``, 1 at real tokens.
        token_type_ids: ``[B, T]``, if the backbone uses them.
        segment_ids: ``[B, T]``: 0 first text, 1 second, -1 special; ``None`` if not given.
        read: ``[B]``, the column of the token that a cloze head reads; ``None`` where it is the one that the
            backbone's own head reads.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None = None
    segment_ids: Tensor | None = None
    read: Tensor | None = None

    def arguments(self) -> dict[str, Tensor | None]:
        """The arguments of ``PTuningModel.forward``."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": self.token_type_ids,
            "segment_ids": self.segment_ids,
        }

    def segments(self, backbone: Backbone) -> Tensor:
        """``segment_ids``, or what can be inferred from the tokens if they were not given."""
        if self.segment_ids is not None:
            return self.segment_ids
        return backbone.segments(self.input_ids, self.attention_mask, self.token_type_ids)

    def apart(self, backbone: Backbone) -> Batch:
        """``[2B, T]``: the first texts as rows of their own, then the second ones; without token types.

        Raises:
            DataError: nothing distinguishes the texts.
        """
        segments = self.segments(backbone)
        if self.segment_ids is None and not bool((segments == 1).any()):
            raise DataError(
                "no row of the batch has a second text that can be distinguished from the first, and "
                "prompt.pooling similarity encodes each separately",
                remedy="pass pairs with token_type_ids or segment_ids (0 first text, 1 second text, "
                "-1 special), or choose another pooling",
            )
        return Batch(
            input_ids=self.input_ids.repeat(2, 1),
            attention_mask=apart(self.attention_mask, segments),
            segment_ids=segments.clamp(max=0).repeat(2, 1),
        )


def joined_batches(backbone: Backbone, parts: Sequence[Batch], order: Tensor) -> Batch:
    """Several batches as one, padded to one length.

    Args:
        order: ``[N]``, the place of each row among those of the parts in their order.
    """
    pad_left = backbone.architecture.causal
    width = max(part.input_ids.shape[1] for part in parts)

    def padded(values: Sequence[Tensor], fill: int = 0) -> Tensor:
        missing = [width - value.shape[1] for value in values]
        wide = [
            F.pad(value, (more, 0) if pad_left else (0, more), value=fill)
            for value, more in zip(values, missing, strict=True)
        ]
        return torch.cat(wide)[order]

    types = [part.token_type_ids for part in parts if part.token_type_ids is not None]
    reads = [order.new_zeros(len(part.input_ids)) if part.read is None else part.read for part in parts]
    return Batch(
        input_ids=padded([part.input_ids for part in parts]),
        attention_mask=padded([part.attention_mask for part in parts]),
        token_type_ids=padded(types) if types else None,
        segment_ids=padded([part.segments(backbone) for part in parts], fill=-1),
        read=None if all(part.read is None for part in parts) else torch.cat(reads)[order],
    )
