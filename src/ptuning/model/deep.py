"""A batch with a deep prompt: the rows, layer parts and readout that it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ptuning.model.batch import Batch
from ptuning.model.config import DeepPrompt
from ptuning.model.encoder import Encoder
from ptuning.model.layer_parts import FromStem, LayerPart, Prompt, Units
from ptuning.model.placement import Layout
from ptuning.model.readout import LastSimilarity, LayerMix, Mean, Readout, Similarity
from ptuning.model.rows import Rows
from ptuning.model.sequence import text_layout, text_rows
from ptuning.model.wording import Wording


@dataclass(frozen=True, kw_only=True)
class DeepTask:
    """A task's deep prompt, as one forward pass uses it.

    Attributes:
        encoder: The backbone, with the task's head in place.
        config: The prompt's configuration, settled.
        prompts: ``[L−s, 2, P, H_kv]``, or one per row, ``[B, L−s, 2, P, H_kv]``.
        units: ``[L−s, 2, U, H]``, virtual units.
        mix: ``[L−s+1, 2+2Q, H]``, weights of the layers; with pooling ``layers``.
        wording: The words of a template, for each text on its own with pooling ``similarity``.
    """

    encoder: Encoder
    config: DeepPrompt
    prompts: Tensor
    units: Tensor | None = None
    mix: Tensor | None = None
    wording: Wording | None = None

    def logits(self, batch: Batch, stem: Tensor | None = None) -> Tensor:
        """``[B, C]``.

        Args:
            batch: Text tokens, ``[B, T]``.
            stem: ``[B, T, H]``, the input of layer s, token for token.
        """
        prompts, backbone, pairs = self.prompts, self.encoder.backbone, self.config.pooling == "similarity"
        if pairs:  # each text is a row of its own
            batch = batch.apart(backbone)
            prompts = prompts.repeat(2, 1, 1, 1, 1) if prompts.dim() == 5 else prompts
        if self.wording is not None:
            batch, _ = self.wording.filled(backbone, batch)
        places = text_layout(backbone, batch.attention_mask)
        if pairs:  # the other text has left its places empty
            longest = int(batch.attention_mask.sum(1).max())
            places = places.cut(longest, pad_left=backbone.architecture.causal)
        rows = self._rows(batch, places)
        parts = self._parts(prompts, None if stem is None else places.arrange(stem))
        return self.encoder.logits(rows, parts, self._readout(rows.attention_mask))

    def hidden_states(self, batch: Batch) -> Tensor:
        """``[B, T, H]``: the transformer's output for the text's tokens, in their order."""
        if self.wording is not None:
            filled, places = self.wording.filled(self.encoder.backbone, batch)
            return places.restored(
                replace(self, wording=None).hidden_states(filled), batch.input_ids.shape[1]
            )
        places = text_layout(self.encoder.backbone, batch.attention_mask)
        states = self.encoder.encode(self._rows(batch, places), self._parts(self.prompts))
        return places.restored(self.encoder.finish(states), batch.input_ids.shape[1])

    def _rows(self, batch: Batch, places: Layout) -> Rows:
        return text_rows(self.encoder.backbone, batch, places, offset=self.config.position_offset or 0)

    def _parts(self, prompts: Tensor, stem: Tensor | None = None) -> list[LayerPart]:
        first_layer = self.config.first_layer
        parts: list[LayerPart] = [Prompt(prompts, self.encoder.backbone.head_dim, first_layer)]
        if self.units is not None:
            parts.append(Units(self.units, first_layer))
        if stem is not None:
            parts.append(FromStem(stem, first_layer))
        return parts

    def _readout(self, mask: Tensor) -> Readout:
        match self.config.pooling:
            case "mean":
                return Mean(mask)
            case "similarity" if self.encoder.backbone.architecture.causal:
                return LastSimilarity(self.encoder.finish)
            case "similarity":
                return Similarity(mask)
            case "layers":
                assert self.mix is not None  # a task with that pooling has it
                return LayerMix(mask, self.mix, self.config.first_layer)
            case _:
                return self.encoder.native_readout()
