"""A batch with rows of several adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from ptuning.errors import ConfigError
from ptuning.model.ptuning import PTuningModel


def run_mixed(
    inputs: Mapping[str, Tensor | None], names: Sequence[str], model_of: Callable[[str], PTuningModel]
) -> SequenceClassifierOutput:
    """Run the rows of each adapter in a forward pass of their own; the answers are in the rows' order.

    Args:
        inputs: The arguments of :meth:`PTuningModel.forward`, those of the entire batch.
        names: One adapter per row.
        model_of: Gives an adapter's model.

    Raises:
        ConfigError: not one name per row, or adapters with different numbers of labels.
    """
    rows = cast(Tensor, inputs["input_ids"]).shape[0]
    if len(names) != rows:
        raise ConfigError("adapter_names", got=f"{len(names)} names", expected=f"one for each of {rows} rows")
    parts: list[tuple[Tensor, Tensor, Tensor | None]] = []  # rows, their logits, their loss
    for name in dict.fromkeys(names):
        mine = torch.tensor([i for i, other in enumerate(names) if other == name])
        part = {key: None if value is None else value[mine.to(value.device)] for key, value in inputs.items()}
        out = model_of(name)(**part)
        parts.append((mine, out.logits, out.loss))
    widths = {int(logits.shape[1]) for _, logits, _ in parts}
    if len(widths) > 1:
        raise ConfigError(
            "adapter_names",
            got=f"adapters with {sorted(widths)} logits per row",
            expected="one number of logits, to fit into one tensor",
            remedy="put the rows of each width into a batch of their own",
        )
    order = torch.cat([mine for mine, _, _ in parts]).argsort()
    together = torch.cat([logits for _, logits, _ in parts])
    shares = [len(mine) / rows * loss for mine, _, loss in parts if loss is not None]
    return SequenceClassifierOutput(
        loss=cast(Any, sum(shares)) if shares else None, logits=together[order.to(together.device)]
    )
