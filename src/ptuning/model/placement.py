"""Joining prompt and text at the embeddings: pure functions, no Python loop over rows or tokens.

Shapes: B rows, T text tokens (padding included), A anchor tokens, P virtual tokens, E embedding size,
S = T + A + P.

A *layout* maps every place of the combined sequence to the piece that belongs there. Each piece gets a sort
key (a text token its rank among the row's real tokens, an insertion the rank of the token that it is inserted
before), and one stable sort per batch gives the order. Padding goes to the end of an encoder's row, so that
``[CLS]`` is at 0, and to the front of a decoder's, so that the last real token is at -1, whichever side the
caller padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ptuning.errors import DataError
from ptuning.model.template import Insertion, Landmark


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each piece is.

    Attributes:
        index: ``[B, S]``, the piece at each place: a column of ``text ‖ insertions``, the insertions in
            their written order.
        mask: ``[B, S]``, 1 at real places (text, anchors, prompt), 0 at padding.
        positions: ``[B, S]``, each real place's rank from 0; 0 at padding.
    """

    index: Tensor
    mask: Tensor
    positions: Tensor

    def cut(self, length: int, *, pad_left: bool) -> Layout:
        """Only ``length`` places: the last ones if rows are padded in front, otherwise the first ones."""
        kept = slice(self.index.shape[1] - length, None) if pad_left else slice(length)
        return Layout(index=self.index[:, kept], mask=self.mask[:, kept], positions=self.positions[:, kept])

    def place_of(self, column: int | Tensor) -> Tensor:
        """``[B]``: the place of the piece with this column; or one column per row, ``[B, 1]``."""
        return (self.index == column).int().argmax(1)

    def restored(self, arranged: Tensor, tokens: int) -> Tensor:
        """``[B, T, …]``: the first T pieces of ``[B, S, …]``, back in their own order."""
        return replace(self, index=self.index.argsort(dim=1)[:, :tokens]).arrange(arranged)

    def arrange(self, pieces: Tensor) -> Tensor:
        """``pieces`` ``[B, T + A + P, …]`` in the order of the layout: ``[B, S, …]``."""
        if pieces.dim() == 2:
            return pieces.gather(1, self.index)
        # Index all rows as one list: this copies entire vectors, where gather would index every element.
        starts = torch.arange(len(pieces), device=pieces.device)[:, None] * pieces.shape[1]
        chosen = pieces.flatten(0, 1).index_select(0, (self.index + starts).flatten())
        arranged: Tensor = chosen.unflatten(0, self.index.shape)
        return arranged


def layout(
    attention_mask: Tensor,
    pieces: Sequence[Insertion],
    sizes: Sequence[int],
    segment_ids: Tensor | None,
    *,
    pad_left: bool,
) -> Layout:
    """The combined sequence's layout.

    Args:
        attention_mask: ``[B, T]``, 1 at the text's real tokens, special tokens included.
        pieces: What is inserted, in the order of the row; empty to only align the text.
        sizes: The number of tokens of each piece (an anchor's is known once it is tokenised).
        segment_ids: ``[B, T]``: 0 for the first text, 1 for the second, -1 for special tokens and
            padding. Needed if a piece is inserted before ``text_b``.
        pad_left: Padding in front of the text (decoders) or behind it (encoders).

    Raises:
        DataError: a row without the text that a piece is inserted before.
    """
    real = attention_mask.bool()
    rank = (real.cumsum(1) - 1).masked_fill(~real, 0)
    count = real.sum(1)
    behind = rank.new_full((), 2 * real.shape[1] + 2)
    padding = -torch.ones_like(behind) if pad_left else behind
    # Twice the rank leaves an odd key free before each token, for what is inserted there.
    keys = [torch.where(real, 2 * rank + 2, padding)]
    for piece, size in zip(pieces, sizes, strict=True):
        place = _rank_of(piece.before, real, rank, count, segment_ids)
        keys.append((2 * place + 1)[:, None].expand(-1, size))
    key = torch.cat(keys, dim=1)
    order, index = key.sort(dim=1, stable=True)
    mask = (order >= 0) & (order < behind)
    positions = (mask.cumsum(1) - 1).clamp(min=0) * mask
    return Layout(index=index, mask=mask.to(attention_mask.dtype), positions=positions)


def apart(attention_mask: Tensor, segment_ids: Tensor) -> Tensor:
    """``[2B, T]``: masks that split each pair into two rows: all first texts, then all second ones.

    Each text keeps the special tokens at the start and the end of its row. A text without a token of its own
    (characters that the tokenizer drops) has only these.

    Args:
        attention_mask: ``[B, T]``, 1 at real tokens.
        segment_ids: ``[B, T]``: 0 for the first text, 1 for the second, -1 for special tokens and padding.
    """
    real = attention_mask.bool()
    first, second = (real & (segment_ids == which) for which in (0, 1))
    texts = (first | second).int()
    before, behind = texts.cumsum(1) == 0, texts.flip(1).cumsum(1).flip(1) == 0
    ends = real & (before | behind)
    return torch.cat((first | ends, second | ends)).to(attention_mask.dtype)


def _rank_of(
    landmark: Landmark, real: Tensor, rank: Tensor, count: Tensor, segment_ids: Tensor | None
) -> Tensor:
    """``[B]``: the rank of the token at ``landmark``; the row's length for its end."""
    match landmark:
        case Landmark.START:
            return torch.zeros_like(count)
        case Landmark.MIDDLE:
            return count // 2
        case Landmark.END:
            return count
        case Landmark.CLOSE:
            return _behind_texts(real, rank, segment_ids)
        case Landmark.TEXT_A:
            return _first(0, real, rank, segment_ids)
        case Landmark.TEXT_B:
            return _first(1, real, rank, segment_ids)


def _behind_texts(real: Tensor, rank: Tensor, segment_ids: Tensor | None) -> Tensor:
    """``[B]``: the rank behind the last token of the last text."""
    if segment_ids is None:
        raise DataError(
            "words are inserted behind the text, and nothing says where that ends",
            remedy="pass segment_ids (0 first text, 1 second text, -1 special)",
        )
    inside = real & (segment_ids >= 0)
    if not bool(inside.any(1).all()):
        row = int((~inside.any(1)).nonzero()[0, 0])
        raise DataError(f"row {row} of the batch has no text", remedy="leave the row out")
    return (rank * inside).amax(1) + 1


def _first(segment: int, real: Tensor, rank: Tensor, segment_ids: Tensor | None) -> Tensor:
    """``[B]``: the rank of the first real token of a segment."""
    which = "first" if segment == 0 else "second"
    if segment_ids is None:
        raise DataError(
            f"the prompt is inserted before the {which} text, and nothing says where that starts",
            remedy="pass segment_ids (0 first text, 1 second text, -1 special)",
        )
    inside = real & (segment_ids == segment)
    found = inside.any(1)
    if not bool(found.all()):
        row = int((~found).nonzero()[0, 0])
        raise DataError(
            f"row {row} of the batch has no {which} text to insert the prompt before",
            remedy="choose another placement, or give every row both texts",
        )
    return rank.gather(1, inside.int().argmax(1, keepdim=True)).squeeze(1)
