"""Logits of many rows, by batches of similar length, in the order the rows came."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ptuning.data.stems import Stems
from ptuning.data.tokens import TokenRow, collate, sorted_batches
from ptuning.errors import TrainingDiverged
from ptuning.model.ptuning import PTuningModel
from ptuning.model.sequence import Prepared

BATCH_TOKENS = 4096
"""Places, padding included, that go through the backbone together unless said otherwise."""


def logits_of(
    model: PTuningModel,
    rows: Sequence[TokenRow],
    *,
    batch_size: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    prompt: Prepared | None = None,
    stems: Stems | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """``[N, C]`` in fp32 on the CPU, row for row; the model is left in the mode it was in.

    Args:
        batch_size: The most rows a batch, if the budget allows more.
        batch_tokens: The budget: the most places a batch, which is its rows times the longest of
            them, a prompt at the input included.
        prompt: What ``model.prepared()`` gave; by default it is made here, once for all rows.
        stems: Where the stem's outputs for these rows are, if they are kept.
        on_batch: Called with the number of rows after each batch.
    """
    lengths = [len(row) + model.inserted_tokens for row in rows]
    found = torch.empty(len(rows), model.task.num_labels)
    pad = pad_id(model)
    prompt = prompt or prepared(model)
    model = model.for_inference()
    with torch.inference_mode():
        for batch in sorted_batches(lengths, batch_size, batch_tokens):
            inputs = batch_of([rows[i] for i in batch], pad, stems)
            inputs.pop("labels", None)
            there = {name: value.to(model.device) for name, value in inputs.items()}
            found[batch] = model(**there, prompt=prompt).logits.cpu()
            if on_batch is not None:
                on_batch(len(batch))
    return found


def not_finite(logits: Tensor) -> str | None:
    """How many rows of ``logits`` ``[N, C]`` hold a NaN or an infinity, in words; ``None`` if none does."""
    bad = int((~logits.isfinite().all(dim=1)).sum())
    return f"the logits of {bad} of {len(logits)} rows are not finite" if bad else None


def check_finite(logits: Tensor, places: Callable[[int], str]) -> None:
    """Refuse logits ``[N, C]`` that mean nothing, before anyone makes labels or probabilities of them.

    Args:
        places: The name of a row, by its index in ``logits``.

    Raises:
        TrainingDiverged: a NaN or an infinity; names the first row that holds one.
    """
    if (seen := not_finite(logits)) is not None:
        first = int((~logits.isfinite().all(dim=1)).nonzero()[0])
        raise TrainingDiverged(
            f"{seen} (NaN or infinite), {places(first)} first, so there is no answer: numbers of the prompt, "
            "the head or the backbone are out of bounds; try precision fp32, download the backbone again, or "
            "train the adapter again with a lower learning rate"
        )


def prepared(model: PTuningModel) -> Prepared:
    """``model.prepared()`` for use: no dropout, no gradients."""
    with torch.inference_mode():
        return model.for_inference().prepared()


def batch_of(rows: Sequence[TokenRow], pad_id: int, stems: Stems | None) -> dict[str, Tensor]:
    """A padded batch as the model takes it, with the stem's outputs where they are kept."""
    inputs = collate(rows, pad_id)
    if stems is not None:
        inputs["stem"] = stems.of(rows)
    return inputs


def pad_id(model: PTuningModel) -> int:
    """Any token id will do behind the mask; the tokenizer's own where there is one."""
    own = getattr(model.tokenizer, "pad_token_id", None)
    return int(own or 0)
