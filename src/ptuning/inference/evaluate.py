"""Logits of many rows, by batches of similar length, in the order the rows came."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ptuning.data.tokens import TokenRow, collate, sorted_batches
from ptuning.model.ptuning import PTuningModel


def logits_of(
    model: PTuningModel,
    rows: Sequence[TokenRow],
    *,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """``[N, C]`` in fp32 on the CPU, row for row; the model is left in the mode it was in.

    Args:
        on_batch: Called with the number of rows after each batch.
    """
    mode = model.training
    model.eval()
    found = torch.empty(len(rows), model.task.num_labels)
    pad = pad_id(model)
    try:
        with torch.inference_mode():
            for batch in sorted_batches([len(row) for row in rows], batch_size):
                inputs = collate([rows[i] for i in batch], pad)
                inputs.pop("labels", None)
                found[batch] = model(
                    **{name: value.to(model.device) for name, value in inputs.items()}
                ).logits.cpu()
                if on_batch is not None:
                    on_batch(len(batch))
    finally:
        model.train(mode)
    return found


def pad_id(model: PTuningModel) -> int:
    """Any token id will do behind the mask; the tokenizer's own where there is one."""
    own = getattr(model.tokenizer, "pad_token_id", None)
    return int(own or 0)
