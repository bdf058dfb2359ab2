"""A batch with rows of several adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from ptuning.errors import ConfigError
from ptuning.model.batch import Batch
from ptuning.model.mixed import mixed_logits
from ptuning.model.packed import pack
from ptuning.model.ptuning import PTuningModel


def run_mixed(
    inputs: Mapping[str, Tensor | None], names: Sequence[str], model_of: Callable[[str], PTuningModel]
) -> SequenceClassifierOutput:
    """Run each row with its own adapter; the answers are in the rows' order.

    Rows of all adapters share a forward pass (:mod:`ptuning.model.mixed`), unless there is something to
    train: then the rows of each adapter have a pass of their own, with their adapter's dropout and gradients.

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
    models = {name: model_of(name) for name in dict.fromkeys(names)}
    widths = {_width(model) for model in models.values()}
    if len(widths) > 1:
        raise ConfigError(
            "adapter_names",
            got=f"adapters with {sorted(widths)} logits per row",
            expected="one number of logits, to fit into one tensor",
            remedy="put the rows of each width into a batch of their own",
        )
    mine = {name: torch.tensor([i for i, other in enumerate(names) if other == name]) for name in models}
    run = _together if _can_share(list(models.values())) else _one_by_one
    logits, losses = run(inputs, models, mine)
    shares = [len(mine[name]) / rows * loss for name, loss in losses.items()]
    return SequenceClassifierOutput(loss=cast(Any, sum(shares)) if shares else None, logits=logits)


Inputs = Mapping[str, Tensor | None]
Found = tuple[Tensor, Mapping[str, Tensor]]
"""The logits ``[B, C]``, and the loss of each adapter's rows if there are labels."""


def _width(model: PTuningModel) -> int:
    """C; the plain backbone has its own head's."""
    return int(model.backbone.config.num_labels) if model.is_plain else model.task.num_labels


def _can_share(models: Sequence[PTuningModel]) -> bool:
    engine = models[0].backbone.engine
    return not torch.is_grad_enabled() and all(
        not model.training and model.backbone.engine == engine for model in models
    )


def _together(inputs: Inputs, models: Mapping[str, PTuningModel], mine: Mapping[str, Tensor]) -> Found:
    ids, mask, labels = cast(Tensor, inputs["input_ids"]), inputs["attention_mask"], inputs["labels"]
    batch = Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask.long(),
        token_type_ids=inputs["token_type_ids"],
        segment_ids=inputs["segment_ids"],
    )
    packed = {name: pack(model, name) for name, model in models.items()}
    owners = {int(row): name for name, its in mine.items() for row in its}
    backbone = next(iter(models.values())).backbone
    logits = torch.stack(mixed_logits(backbone, batch, [packed[owners[row]] for row in range(len(ids))]))
    losses = {}
    if labels is not None:
        losses = {name: model.loss(logits[mine[name]], labels[mine[name]]) for name, model in models.items()}
    return logits, losses


def _one_by_one(inputs: Inputs, models: Mapping[str, PTuningModel], mine: Mapping[str, Tensor]) -> Found:
    logits, losses = [], {}
    for name, model in models.items():
        part = {key: None if value is None else value[mine[name]] for key, value in inputs.items()}
        out = model(**part)
        logits.append(out.logits)
        if out.loss is not None:
            losses[name] = out.loss
    order = torch.cat([mine[name] for name in models]).argsort()
    together = torch.cat(logits)
    return together[order.to(together.device)], losses
