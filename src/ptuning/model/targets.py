"""The labels of a batch, checked against the task, and their loss.

Type and shape are always checked, because that is cheap. Values are checked before the loss on the CPU only.
On an accelerator, the check would synchronise with the device at every step, and without it a class index out
of range would make the device unusable for the process. So there, wrong values are replaced and the loss
becomes NaN; :func:`refuse` then reports the values.
"""

from __future__ import annotations

import math

from torch import Tensor

from ptuning.errors import DataError
from ptuning.task import Task


def as_targets(labels: object, logits: Tensor, task: Task) -> Tensor:
    """``labels`` as the loss takes them: ``[B]`` class indices, ``[B]`` or ``[B, C]`` floats.

    Args:
        labels: As they were passed to the model.
        logits: ``[B, C]``.
        task: What the labels mean.

    Raises:
        DataError: labels of another type or shape than the task's.
    """
    if not isinstance(labels, Tensor):
        raise DataError(
            "labels",
            got=f"a {type(labels).__name__}",
            expected="a tensor",
            remedy=task.kind.label_remedy(task),
        )
    return task.kind.as_targets(labels, logits, task)


def refuse(targets: Tensor, task: Task) -> None:
    """Report the first wrong value, if there is one.

    Raises:
        DataError: a value is out of range, or not finite.
    """
    bad = ~task.kind.valid(targets, task)
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0, 0])
    value = targets[bad][0].item()
    expected, remedy = task.kind.wrong_target(value, targets, task)
    raise DataError("labels", got=f"{value:g} in row {row} of the batch", expected=expected, remedy=remedy)


def loss_of(logits: Tensor, labels: object, task: Task, weights: Tensor | None) -> Tensor:
    """The implementation of :meth:`~ptuning.model.ptuning.PTuningModel.loss`.

    Args:
        weights: From :func:`ptuning.model.tasks.class_weights_of`.
    """
    kind, targets = task.kind, as_targets(labels, logits, task)
    if targets.device.type == "cpu":
        if not kind.nan_targets_allowed:
            refuse(targets, task)
        return kind.loss(logits, targets.to(logits.device), task, weights)
    targets = targets.to(logits.device)
    valid = kind.valid(targets, task)
    found = kind.loss(logits, kind.harmless(targets, valid), task, weights)
    return found.where(valid.all(), math.nan)
