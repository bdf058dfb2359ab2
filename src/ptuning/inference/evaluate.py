"""Logits of many rows, computed in batches of similar length, in the order of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ptuning.data.stems import Stems
from ptuning.data.tokens import TokenRow, collate, sorted_batches, windows_of
from ptuning.errors import TrainingDiverged
from ptuning.model.ptuning import PTuningModel
from ptuning.model.sequence import Prepared
from ptuning.model.windows import mean_of_windows

BATCH_TOKENS = 4096
"""Default of the maximum tokens per batch, padding included."""


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
    """``[N, C]`` in fp32 on the CPU, in the order of ``rows``; the mode of the model is not changed.

    A row's windows are run like rows, and its logits are the mean of theirs.

    Args:
        batch_size: Maximum windows per batch.
        batch_tokens: Maximum tokens per batch: its windows times the length of the longest, including an
            input prompt.
        prompt: The result of ``model.prepared()``; computed here, once for all rows, if ``None``.
        stems: The cached stem outputs for these rows, if any.
        on_batch: Called with the number of windows after each batch.
    """
    counts, rows = [len(row.windows) for row in rows], windows_of(rows)
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
    return mean_of_windows(found, counts)


def not_finite(logits: Tensor) -> str | None:
    """A message with the number of rows of ``logits`` ``[N, C]`` that are not finite; ``None`` if all are."""
    bad = int((~logits.isfinite().all(dim=1)).sum())
    return f"the logits of {bad} of {len(logits)} rows are not finite" if bad else None


def check_finite(logits: Tensor, places: Callable[[int], str]) -> None:
    """Refuse logits ``[N, C]`` with NaN or infinite values.

    Args:
        places: The name of a row, given its index in ``logits``.

    Raises:
        TrainingDiverged: names the first row that is not finite.
    """
    if (seen := not_finite(logits)) is not None:
        first = int((~logits.isfinite().all(dim=1)).nonzero()[0])
        raise TrainingDiverged(
            f"{seen} (NaN or infinite), the first of them for {places(first)}: the prompt, the head or "
            "the backbone has invalid or too large parameters",
            remedy="try precision fp32, download the backbone again, or train the adapter again with a "
            "lower learning rate",
        )


def prepared(model: PTuningModel) -> Prepared:
    """``model.prepared()`` for inference: without dropout and gradients."""
    with torch.inference_mode():
        return model.for_inference().prepared()


def batch_of(rows: Sequence[TokenRow], pad_id: int, stems: Stems | None) -> dict[str, Tensor]:
    """A padded batch for the model, with the stem outputs if they are cached."""
    inputs = collate(rows, pad_id)
    if stems is not None:
        inputs["stem"] = stems.of(rows)
    return inputs


def pad_id(model: PTuningModel) -> int:
    """The tokenizer's padding id; any other id is fine too, because padding is masked."""
    own = getattr(model.tokenizer, "pad_token_id", None)
    return int(own or 0)
