"""The rows of a batch as the transformer takes them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Aligned rows: padding behind the text for encoders, in front of it for decoders.

    Attributes:
        input_ids: ``[B, S]``; or
        inputs_embeds: ``[B, S, E]``, word embeddings, with an input prompt among them.
        attention_mask: ``[B, S]``, 1 at real tokens.
        positions: ``[B, S]``, from 0.
        token_type_ids: ``[B, S]``; ignored where the architecture has no segments.
        read: ``[B]``, the place of the token that a cloze head reads; ``None`` where it is the one that the
            backbone's own head reads.
    """

    input_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None
    attention_mask: Tensor
    positions: Tensor
    token_type_ids: Tensor | None = None
    read: Tensor | None = None
