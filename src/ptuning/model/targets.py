"""Labels of a batch, held against what the task can take, so that a wrong one is a sentence of ours.

Kind and shape are looked at always: that costs nothing. Values are looked at where that is free, on the CPU.
On an accelerator a look would make the program wait for the device at every step, and a class index out of
range would end the process's use of it; there wrong values are made harmless, and the loss becomes NaN
(:func:`valid`), after which :func:`refuse` says what they were.
"""

from __future__ import annotations

from torch import Tensor

from ptuning.errors import DataError
from ptuning.task import Task

IGNORED = -100
"""The class index of a row that does not count, as in torch and transformers."""


def as_targets(labels: object, logits: Tensor, task: Task) -> Tensor:
    """``labels`` as the loss takes them: ``[B]`` class indices, ``[B]`` or ``[B, C]`` floats.

    Args:
        labels: As the model was given them.
        logits: ``[B, C]``.
        task: What the labels mean.

    Raises:
        DataError: labels of another kind or shape than the task's.
    """
    if not isinstance(labels, Tensor):
        raise DataError(f"labels: got a {type(labels).__name__}, expected a tensor; {_remedy(task)}")
    rows, width = logits.shape
    shape, kind = list(labels.shape), str(labels.dtype).removeprefix("torch.")
    got = f"labels: got {kind} of shape {shape}"
    several = task.problem_type == "multi_label_classification"
    if several and shape != [rows, width]:
        raise DataError(
            f"{got}, expected zeros and ones of shape {[rows, width]}, one for each label of each row; "
            + _remedy(task)
        )
    if several or task.is_regression:
        labels = labels.float()
    elif labels.dim() == 2 and width > 1 and shape == [rows, width]:
        raise DataError(
            f"{got}, several labels a row, but the task has one; make the model with problem_type "
            "'multi_label_classification' (under PEFT's names: in the backbone's configuration), or pass "
            "class indices"
        )
    elif labels.dtype.is_floating_point or labels.dtype.is_complex or (kind == "bool" and width != 2):
        raise DataError(
            f"{got}, expected whole numbers ({_classes(task)}); {_remedy(task)}, or, if they are scores, "
            "make the model with problem_type 'regression'"
        )
    else:
        labels = labels.long()
    if not several and labels.numel() != rows:
        raise DataError(f"{got}, expected one label for each of {rows} rows; {_remedy(task)}")
    return labels if several else labels.reshape(-1)


def valid(targets: Tensor, task: Task) -> Tensor:
    """Which of :func:`as_targets` the task can take, in their shape."""
    if task.is_regression:
        return targets.isfinite()
    if task.problem_type == "multi_label_classification":
        return (targets >= 0) & (targets <= 1)
    return ((targets >= 0) & (targets < task.num_labels)) | (targets == IGNORED)


def refuse(targets: Tensor, task: Task) -> None:
    """Say which value is wrong, if one is.

    Raises:
        DataError: it is out of range, or not finite.
    """
    bad = ~valid(targets, task)
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0, 0])
    value = targets[bad][0].item()
    got = f"labels: got {value:g} in row {row} of the batch"
    if task.is_regression:
        raise DataError(f"{got}, expected a finite number; remove the row")
    if task.problem_type == "multi_label_classification":
        raise DataError(f"{got}, expected zeros and ones, one for each label of each row; {_remedy(task)}")
    if value == -1:
        hint = f"if it means that the row has no label, leave the row out, or write {IGNORED} there"
    else:
        hint = f"make the model with as many labels as the data have ({int(targets.max()) + 1} at least)"
        if value == task.num_labels:
            hint = f"count the classes from 0, or {hint}"
    raise DataError(f"{got}, expected {_classes(task)}; {hint}")


def _classes(task: Task) -> str:
    count = task.num_labels
    numbers = "0 or 1" if count == 2 else f"0 to {count - 1}"
    if task.labels == tuple(range(count)) or count > 6:
        return f"{numbers}, a class index"
    return f"{numbers}, the index of one of {', '.join(map(repr, task.labels))}"


def _remedy(task: Task) -> str:
    if task.is_regression:
        return "pass one number a row, [B]"
    if task.problem_type == "multi_label_classification":
        return "pass [B, C] zeros and ones, or make the model with problem_type 'single_label_classification'"
    return "pass class indices as whole numbers, [B]"
