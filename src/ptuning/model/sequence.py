"""From a batch to the rows that the transformer takes: the text alone, or prompt and text as one sequence.

:func:`text_rows` aligns a text that has a deep prompt in front of it in the layers, or none.
:class:`Joined` puts an input prompt among the text's embeddings (``placement.py``). A decoder's prompt in
front of the text is the same for every row, so it is turned into keys and values: a deep prompt.

Shapes: B rows, T text tokens (padding included), k tokens in front of the prompt, A anchor tokens, P virtual
tokens, E embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ptuning.model.backbone import Backbone
from ptuning.model.batch import Batch
from ptuning.model.config import InputPrompt
from ptuning.model.encoder import Encoder
from ptuning.model.layer_parts import LayerPart, Prompt
from ptuning.model.placement import Layout, layout
from ptuning.model.rows import Rows
from ptuning.model.template import Insertion, Landmark
from ptuning.model.wording import Wording, texts_alone, with_types
from ptuning.threads import TOKENIZER


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prompt with everything computed that does not depend on the text (``PTuningModel.prepared``).

    Attributes:
        prompt: As ``PTuningModel.forward`` takes it.
        tokens: The tokens in front of the prompt in every row, such as a decoder's ``<s>``.
        leading: ``[L, 2, n, H_kv]``, the keys and values of those tokens and the prompt; ``None`` if the
            prompt is not in front of the text, or the backbone is not causal.
    """

    prompt: Tensor
    tokens: tuple[int, ...] = ()
    leading: Tensor | None = None


def text_layout(backbone: Backbone, attention_mask: Tensor) -> Layout:
    """The text's tokens, aligned as the backbone takes them."""
    return layout(attention_mask, (), (), None, pad_left=backbone.architecture.causal)


def text_rows(backbone: Backbone, batch: Batch, places: Layout, offset: int | Tensor = 0) -> Rows:
    """The text alone.

    Args:
        places: Of :func:`text_layout`.
        offset: Added to the text's positions; one number, or one per row, ``[B, 1]``.
    """
    types = batch.token_type_ids if backbone.uses_segments else None
    return Rows(
        input_ids=places.arrange(batch.input_ids),
        attention_mask=places.mask,
        positions=places.positions + offset,
        token_type_ids=None if types is None else places.arrange(types),
        read=None if batch.read is None else places.place_of(batch.read[:, None]),
    )


@dataclass(frozen=True, kw_only=True)
class Joined:
    """An input prompt and the text as one sequence.

    Attributes:
        backbone: The model.
        config: Where the prompt is, and its literal words.
        anchors: The token ids of those words, a tuple each.
        wording: The same words as a cloze head's.
    """

    backbone: Backbone
    config: InputPrompt
    anchors: Sequence[Sequence[int]]
    wording: Wording | None = None

    @property
    def inserted_tokens(self) -> int:
        """P + A: the tokens inserted among the text's own."""
        return self.config.virtual_tokens + sum(map(len, self.anchors))

    @property
    def wanted_texts(self) -> tuple[int, ...]:
        """The texts, 0 for the first and 1 for the second, that something is inserted before."""
        if (texts := self.config.template_texts) is not None:
            return tuple(range(texts))
        before = {piece.before for piece in self.config.insertions}
        return tuple(i for i, text in enumerate((Landmark.TEXT_A, Landmark.TEXT_B)) if text in before)

    @property
    def needs_segments(self) -> bool:
        """Whether the start of a text matters."""
        return self.wording is not None or bool(self.wanted_texts)

    def arranged(
        self, encoder: Encoder, batch: Batch, prompt: Prepared
    ) -> tuple[Rows, tuple[LayerPart, ...]]:
        """The text with ``prompt`` (``[P, E]``, or one per row, ``[B, P, E]``) inserted, and the layer parts
        that go with it.
        """
        batch, _ = self._worded(batch)
        made, front = prompt.prompt, self._front(batch)
        if front is None or made.dim() == 3:
            return self._as_one(batch, made)[0], ()
        leading = prompt.leading if prompt.tokens == tuple(front.tolist()) else None
        if leading is None:
            leading = encoder.leading(self._leading_embeddings(front, made))
        mask = batch.attention_mask
        behind = replace(batch, attention_mask=mask * (mask.cumsum(1) > len(front)))
        places = text_layout(self.backbone, behind.attention_mask)
        rows = text_rows(self.backbone, behind, places, offset=leading.shape[-2])
        return rows, (Prompt(leading, self.backbone.head_dim),)

    def prepared(
        self, encoder: Encoder, prompt: Tensor, tokenizer: PreTrainedTokenizerBase | None
    ) -> Prepared:
        """``prompt`` with a decoder's keys and values of it, if it is in front of every text."""
        shares = self.backbone.shares_leading
        tokens = self._usual_front(tokenizer) if shares(self.inserted_tokens) else None
        if tokens is None or not shares(len(tokens) + self.inserted_tokens):
            return Prepared(prompt=prompt)
        before = torch.tensor(tokens, dtype=torch.long, device=prompt.device)
        leading = encoder.leading(self._leading_embeddings(before, prompt))
        return Prepared(prompt=prompt, tokens=tokens, leading=leading)

    def hidden_states(self, encoder: Encoder, batch: Batch, prompt: Tensor) -> Tensor:
        """``[B, T, H]``: the transformer's output for the text's tokens, in their order."""
        width = batch.input_ids.shape[1]
        batch, filled = self._worded(batch)
        rows, places = self._as_one(batch, prompt)
        found = places.restored(encoder.finish(encoder.encode(rows)), batch.input_ids.shape[1])
        return found if filled is None else filled.restored(found, width)

    def _as_one(self, batch: Batch, prompt: Tensor) -> tuple[Rows, Layout]:
        inserted = self._inserted_embeddings(prompt, batch.input_ids)
        sizes = [part.shape[1] for part in inserted]
        places = layout(
            batch.attention_mask,
            self._pieces,
            sizes,
            batch.segments(self.backbone) if self.needs_segments else None,
            pad_left=self.backbone.architecture.causal,
        )
        text, types = self.backbone.embed(batch.input_ids), batch.token_type_ids
        combined = torch.cat((text, *(part.to(text.dtype) for part in inserted)), dim=1)
        if types is not None and self.wording is not None:
            types = places.arrange(with_types(types, self._pieces, sizes))
        elif types is not None:
            types = _spread(places, types, sum(sizes))
        rows = Rows(
            inputs_embeds=places.arrange(combined),
            attention_mask=places.mask,
            positions=places.positions,
            token_type_ids=types,
            read=self._read(batch, places, sizes),
        )
        return rows, places

    def _worded(self, batch: Batch) -> tuple[Batch, Layout | None]:
        """The batch with a cloze head's words if they can be inserted first; and the layout that made it."""
        if self.wording is None:
            return batch, None
        if self.leads_words:
            return self.wording.filled(self.backbone, batch)
        return texts_alone(self.backbone, batch, self.config.insertions), None

    @property
    def leads_words(self) -> bool:
        """Whether a cloze head's prompt is in front of the text and its words, so that these can be inserted
        first.
        """
        if self.wording is None:
            return False
        pieces = list(self.config.insertions)
        count = sum(piece.tokens > 0 for piece in pieces)
        front = (Landmark.START, Landmark.TEXT_A)
        return all(piece.tokens and piece.before in front for piece in pieces[:count])

    @property
    def _pieces(self) -> tuple[Insertion, ...]:
        """What is inserted at the embeddings."""
        pieces = self.config.insertions
        return tuple(piece for piece in pieces if piece.tokens) if self.leads_words else pieces

    def _read(self, batch: Batch, places: Layout, sizes: Sequence[int]) -> Tensor | None:
        """``[B]``: where the mask is, if there is one."""
        if batch.read is not None:
            return places.place_of(batch.read[:, None])
        if self.wording is None or self.wording.mask is None:
            return None
        words, column = iter(self.anchors), batch.input_ids.shape[1]
        for piece, size in zip(self._pieces, sizes, strict=True):
            ids = () if piece.tokens else tuple(next(words))
            if self.wording.mask in ids:
                return places.place_of(column + ids.index(self.wording.mask))
            column += size
        raise AssertionError("the mask is among the words")

    # ------------------------------------------------------- a decoder's prompt in front of the text

    @property
    def _leads(self) -> Landmark | None:
        """Where everything is inserted, if that is in front of the text; otherwise ``None``."""
        places = {piece.before for piece in self._pieces}
        leads = len(places) == 1 and places <= {Landmark.START, Landmark.TEXT_A}
        return places.pop() if leads else None

    def _front(self, batch: Batch) -> Tensor | None:
        """``[k]``: the tokens in front of the prompt, if they are the same in every row, and only these and
        the prompt are in front of the text; ``None`` if prompt and text have to be one sequence.
        """
        place, ids, mask = self._leads, batch.input_ids, batch.attention_mask
        if place is None or not self.backbone.shares_leading(mask.shape[1] + self.inserted_tokens):
            return None
        if place is Landmark.START:
            return ids[0, :0] if bool(mask.any(1).all()) else None  # None: a row without text
        rows = layout(mask, (), (), None, pad_left=False)
        inside = (rows.arrange(batch.segments(self.backbone)) == 0) & rows.mask.bool()
        first = inside.int().argmax(1)
        count = int(first[0])
        before = rows.arrange(ids)[:, :count]
        same = bool(((first == count) & inside.any(1)).all() & (before == before[:1]).all())
        return before[0] if same else None

    def _usual_front(self, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...] | None:
        """:meth:`_front` as the tokenizer makes it; ``None`` also where it cannot be told."""
        match self._leads:
            case Landmark.START:
                return ()
            case Landmark.TEXT_A if tokenizer is not None:
                with TOKENIZER:
                    found = tokenizer("a", return_special_tokens_mask=True)
                if 0 not in (special := found["special_tokens_mask"]):
                    return None  # it has no word for it
                return tuple(found["input_ids"][: special.index(0)])
            case _:
                return None

    def _leading_embeddings(self, before: Tensor, prompt: Tensor) -> Tensor:
        """``[k + A + P, E]``: tokens, and everything that is inserted after them."""
        parts = self._inserted_embeddings(prompt, before.new_zeros(1, 0))
        text = self.backbone.embed(before)
        return torch.cat((text, *(part[0].to(text.dtype) for part in parts)))

    def _inserted_embeddings(self, prompt: Tensor, like: Tensor) -> list[Tensor]:
        """Each insertion's embeddings, ``[B, n, E]``: its part of the prompt, or its literal words."""
        batch, pieces = like.shape[0], self._pieces
        rows = (prompt if prompt.dim() == 3 else prompt[None]).expand(batch, -1, -1)
        shares = iter(rows.split([piece.tokens for piece in pieces if piece.tokens], dim=1))
        words = iter(self.anchors)
        return [
            next(shares)
            if piece.tokens
            else self.backbone.embed(like.new_tensor(next(words)))[None].expand(batch, -1, -1)
            for piece in pieces
        ]


def _spread(rows: Layout, token_type_ids: Tensor, inserted: int) -> Tensor:
    """Token types of the combined sequence: an insertion belongs to the text before it."""
    wide = F.pad(token_type_ids, (0, inserted))
    spread: Tensor = rows.arrange(wide).cummax(dim=1).values
    return spread
