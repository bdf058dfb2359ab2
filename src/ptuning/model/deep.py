"""A batch with a deep prompt: which rows, parts and readout it takes."""

from __future__ import annotations

from torch import Tensor

from ptuning.model.config import DeepPrompt
from ptuning.model.encoder import Encoder
from ptuning.model.layer_parts import FromStem, LayerPart, Prompt, Units
from ptuning.model.readout import LayerMix, Mean, Readout, Similarity
from ptuning.model.sequence import Batch, text_layout, text_rows


def deep_logits(
    encoder: Encoder,
    config: DeepPrompt,
    batch: Batch,
    prompts: Tensor,
    *,
    units: Tensor | None = None,
    mix: Tensor | None = None,
    stem: Tensor | None = None,
) -> Tensor:
    """``[B, C]``.

    Args:
        encoder: The backbone, with the task's head in place.
        config: The prompt's configuration, settled.
        batch: Text tokens, ``[B, T]``.
        prompts: ``[L−s, 2, P, H_kv]``, or one per row, ``[B, L−s, 2, P, H_kv]``.
        units: ``[L−s, 2, U, H]``, virtual units.
        mix: ``[L−s+1, 2+2Q, H]``, weights of the layers; with pooling ``layers``.
        stem: ``[B, T, H]``, the input of layer s, token for token.
    """
    backbone, first_layer = encoder.backbone, config.first_layer
    if config.pooling == "similarity":  # each text is a row of its own
        batch = batch.apart(backbone)
        prompts = prompts.repeat(2, 1, 1, 1, 1) if prompts.dim() == 5 else prompts
    places = text_layout(backbone, batch.attention_mask)
    if config.pooling == "similarity":  # the other text has left its places empty
        places = places.cut(int(batch.attention_mask.sum(1).max()))
    parts: list[LayerPart] = [Prompt(prompts, backbone.head_dim, first_layer)]
    if units is not None:
        parts.append(Units(units, first_layer))
    if stem is not None:
        parts.append(FromStem(places.arrange(stem), first_layer))
    rows = text_rows(backbone, batch, places, offset=config.position_offset or 0)
    return encoder.logits(rows, parts, _readout(encoder, config, rows.attention_mask, mix))


def _readout(encoder: Encoder, config: DeepPrompt, mask: Tensor, mix: Tensor | None) -> Readout:
    match config.pooling:
        case "mean":
            return Mean(mask)
        case "similarity":
            return Similarity(mask)
        case "layers":
            assert mix is not None  # a task with that pooling has it
            return LayerMix(mask, mix, config.first_layer)
        case _:
            return encoder.native_readout()
