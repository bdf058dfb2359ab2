"""The words of a template, a cloze head's or a deep prompt's, as tokens among those of the text.

Words are inserted first, so that everything else (deep prompts, a prompt in front, mixed batches) sees an
ordinary text. Only where an input prompt is among the words are both inserted at once (``sequence.py``).

Shapes: B rows, T text tokens (padding included), A tokens of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ptuning.adapters import ClozeTokens
from ptuning.errors import DataError
from ptuning.model.backbone import Backbone
from ptuning.model.batch import Batch
from ptuning.model.config import PromptConfig
from ptuning.model.placement import Layout, layout
from ptuning.model.template import Insertion, Landmark


@dataclass(frozen=True, kw_only=True)
class Wording:
    """A template's words in tokens.

    Attributes:
        pieces: The words and where they are inserted, in the order of the row.
        anchors: The token ids of each piece.
        mask: The id of a cloze head's mask, which is once among ``anchors``; ``None`` without one, as on a
            decoder, which predicts the word after the last token.
    """

    pieces: tuple[Insertion, ...]
    anchors: tuple[tuple[int, ...], ...]
    mask: int | None = None

    @property
    def column(self) -> int | None:
        """The column of the mask in ``text ‖ words`` without the T text tokens."""
        if self.mask is None:
            return None
        return [each for ids in self.anchors for each in ids].index(self.mask)

    def filled(self, backbone: Backbone, batch: Batch) -> tuple[Batch, Layout]:
        """The batch with the words, padded as the backbone takes it; and the layout that made it.

        With a mask, ``read`` of the new batch is its column in each row.

        Raises:
            DataError: a row without a text that words are inserted before or behind.
        """
        batch = texts_alone(backbone, batch, self.pieces)
        assert batch.segment_ids is not None  # texts_alone gives them
        ids, width = batch.input_ids, batch.input_ids.shape[1]
        sizes = [len(anchor) for anchor in self.anchors]
        places = layout(
            batch.attention_mask,
            self.pieces,
            sizes,
            batch.segment_ids,
            pad_left=backbone.architecture.causal,
        )
        words = ids.new_tensor([each for anchor in self.anchors for each in anchor]).expand(len(ids), -1)
        # Words before the first text become a part of it, so that a prompt in front of it is before them.
        texts = [0 if piece.before is Landmark.TEXT_A else 1 for piece in self.pieces]
        segments = ids.new_tensor([t for t, size in zip(texts, sizes, strict=True) for _ in range(size)])
        types = batch.token_type_ids
        filled = Batch(
            input_ids=places.arrange(torch.cat((ids, words), dim=1)),
            attention_mask=places.mask,
            token_type_ids=None if types is None else places.arrange(with_types(types, self.pieces, sizes)),
            segment_ids=places.arrange(torch.cat((batch.segment_ids, segments.expand(len(ids), -1)), dim=1)),
            read=None if self.column is None else places.place_of(width + self.column),
        )
        return filled, places


def wording_of(
    config: PromptConfig, anchors: Sequence[Sequence[int]], cloze: ClozeTokens | None
) -> Wording | None:
    """The words of a template in tokens; ``None`` if there are none that are inserted into the text first.

    Those of an input prompt are inserted with it, unless the head is a cloze head.
    """
    words = tuple(piece for piece in config.insertions if piece.anchor)
    if cloze is None and (config.depth == "input" or not words):
        return None
    mask = None if cloze is None else cloze.mask
    return Wording(pieces=words, anchors=tuple(tuple(ids) for ids in anchors), mask=mask)


def texts_alone(backbone: Backbone, batch: Batch, pieces: Sequence[Insertion]) -> Batch:
    """The batch with segments, as a template reads it.

    A decoder's text runs on, so special tokens between and behind the texts are left out. Without
    ``segment_ids``, an encoder's last token counts as special: its tokenizer closes every row with one.

    Args:
        pieces: What the template inserts.

    Raises:
        DataError: something is inserted before second texts, and nothing says where they start.
    """
    segments, mask = batch.segments(backbone), batch.attention_mask
    real = mask.bool()
    second = [piece for piece in pieces if piece.before is Landmark.TEXT_B]
    if second and batch.segment_ids is None and not bool(((segments == 1) & real).any(1).all()):
        what = repr(second[0].anchor.strip(" ")) if second[0].anchor else f"{{prompt:{second[0].tokens}}}"
        raise DataError(
            f"the template has {what} before the second text, and nothing says where that starts in each row",
            remedy="pass segment_ids (0 first text, 1 second text, -1 special)",
        )
    if backbone.architecture.causal:
        begun = ((segments >= 0) & real).cumsum(1) > 0
        mask = mask * ((segments >= 0) | ~begun)
    elif batch.segment_ids is None:
        last = real & (real.flip(1).cumsum(1).flip(1) == 1)
        segments = segments.masked_fill(last, -1)
    return replace(batch, attention_mask=mask, segment_ids=segments)


def with_types(token_type_ids: Tensor, pieces: Sequence[Insertion], sizes: Sequence[int]) -> Tensor:
    """``[B, T + A]``: the token types, and those of what is inserted: of the text that follows, or behind the
    last text of that one.
    """
    last = token_type_ids.amax(1, keepdim=True)
    first = (Landmark.START, Landmark.TEXT_A)
    inserted = [
        (torch.zeros_like(last) if piece.before in first else last).expand(-1, size)
        for piece, size in zip(pieces, sizes, strict=True)
    ]
    return torch.cat((token_type_ids, *inserted), dim=1)
