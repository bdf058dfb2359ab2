"""Metrics of a model on a split, and those of the constant answer that it has to beat."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ptuning.data.stems import Stems
from ptuning.inference.evaluate import logits_of
from ptuning.inference.evaluate import not_finite as out_of_bounds
from ptuning.model.ptuning import PTuningModel
from ptuning.task import Task
from ptuning.training.diagnosis import not_finite
from ptuning.training.extensions import NO_EXTENSIONS, Extensions
from ptuning.training.metrics import Baseline, Floats, Metrics, measure
from ptuning.training.prepare import Split


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A split, and what the model says about it.

    Attributes:
        logits: ``[N, C]`` in fp32 on the CPU, in the order of ``split.rows``.
    """

    split: Split
    logits: Tensor


def score(
    model: PTuningModel,
    split: Split,
    stems: Stems | None = None,
    *,
    rates: tuple[float, float] | None = None,
    accelerator: Accelerator | None = None,
) -> Scored:
    """The model's logits for a split.

    Args:
        stems: The cached outputs of the stem for these rows, if there are any.
        rates: Learning rates of prompt and head, for the error message if the run diverged.
        accelerator: If it has several processes, each runs its share of the rows, and all get all logits.

    Raises:
        TrainingDiverged: logits that are not finite.
    """
    if accelerator is None or accelerator.num_processes == 1:
        logits = logits_of(model, split.rows, stems=stems)
    else:
        logits = _shared_logits(model, split, stems, accelerator)
    if (seen := out_of_bounds(logits)) is not None:
        raise not_finite(f"{seen}: prompt or head grew out of bounds", rates=rates)
    return Scored(split=split, logits=logits)


def _shared_logits(
    model: PTuningModel, split: Split, stems: Stems | None, accelerator: Accelerator
) -> Tensor:
    """``[N, C]``: each process runs every so many rows of the sorted ones, and the sum has all of them."""
    order = sorted(range(len(split.rows)), key=lambda row: split.rows[row].places())
    own = order[accelerator.process_index :: accelerator.num_processes]
    logits = torch.zeros(len(split.rows), model.task.num_labels)
    if own:
        logits[own] = logits_of(model, [split.rows[row] for row in own], stems=stems)
    summed: Tensor = accelerator.reduce(logits.to(accelerator.device))
    return summed.cpu()


def metrics_of(model: PTuningModel, scored: Scored, extensions: Extensions = NO_EXTENSIONS) -> Metrics:
    """The metrics of a scored split, ``loss`` included (in a regression, of standardised targets).

    Args:
        extensions: A user's own loss and metrics.
    """
    logits, split = scored.logits, scored.split
    targets = model.task.kind.as_labels(split.targets)
    if extensions.loss is None:
        loss = float(model.loss(logits.to(model.device), targets.to(model.device)))
    else:
        with torch.no_grad():
            loss = float(extensions.loss_of(logits.to(model.device), targets.to(model.device), model.task))
    custom = extensions.measure(logits.numpy(), split.targets, model.task)
    return {
        "loss": loss,
        **measure(logits.double().numpy(), split.targets, model.task),
        **{name: value for name, value in custom.items() if math.isfinite(value)},
    }


def evaluate(
    model: PTuningModel,
    split: Split,
    stems: Stems | None = None,
    *,
    rates: tuple[float, float] | None = None,
    extensions: Extensions = NO_EXTENSIONS,
    accelerator: Accelerator | None = None,
) -> Metrics:
    """:func:`score` and :func:`metrics_of` in one."""
    return metrics_of(model, score(model, split, stems, rates=rates, accelerator=accelerator), extensions)


def baseline_metrics(
    baseline: Baseline,
    targets: Floats,
    task: Task,
    weights: Sequence[float] | None,
    extensions: Extensions = NO_EXTENSIONS,
) -> Metrics:
    """The metrics of the constant answer on ``targets``, with the user's own loss and metrics."""
    found = baseline.measure(targets, task, weights)
    if extensions.loss is not None:
        found = {**found, "loss": _constant_loss(extensions, _constant_logits(baseline, task), targets, task)}
    custom = own_metrics(baseline, targets, task, extensions)
    return {**found, **{name: value for name, value in custom.items() if np.isfinite(value)}}


def own_metrics(baseline: Baseline, targets: Floats, task: Task, extensions: Extensions) -> Metrics:
    """The user's metrics of the constant answer; NaN if undefined."""
    constant = np.tile(np.array(baseline.logits, dtype=np.float32), (len(targets), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about constant predictions, which are intended here
        return extensions.measure(constant, targets, task)


def constant_losses(
    targets: Floats, task: Task, weights: Sequence[float] | None, extensions: Extensions = NO_EXTENSIONS
) -> tuple[float, float]:
    """The training losses of the best constant answer and of an untrained head.

    For a user's own loss the best constant answer is not known; the shares of the labels stand in for it.
    """
    if extensions.loss is None:
        return task.kind.reference_losses(targets, task, weights)
    untrained = task.kind.logits(torch.zeros(task.num_labels), task).numpy()
    best = _constant_logits(Baseline.of(targets, task), task)
    return (
        _constant_loss(extensions, best, targets, task),
        _constant_loss(extensions, untrained, targets, task),
    )


def _constant_logits(baseline: Baseline, task: Task) -> Floats:
    """``[C]``: the constant answer that gives each label its share of the rows as probability."""
    if not baseline.shares:
        return np.array(baseline.logits)
    return task.kind.logits_of_shares(np.array(baseline.shares))


def _constant_loss(extensions: Extensions, answer: Floats, targets: Floats, task: Task) -> float:
    logits = torch.from_numpy(answer).float().repeat(len(targets), 1)
    with torch.no_grad():
        return float(extensions.loss_of(logits, task.kind.as_labels(targets), task))
