"""What a model answers to each row, and whether that is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptuning.kinds import LabelForm
from ptuning.report.data import Floats, Rows
from ptuning.task import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """Answers of a task with labels. N rows, C labels.

    Attributes:
        probabilities: ``[N, C]``, with the task's temperature.
        truth: ``[N]`` class indices, or ``[N, C]`` zeros and ones.
        predicted: In the shape of ``truth``.
        right: ``[N]``; of several labels, whether all are right.
        confidence: ``[N]``: the probability of the predicted class; of several labels, of the least certain
            yes or no.
    """

    probabilities: Floats
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    right: NDArray[np.bool_]
    confidence: Floats


def outcomes(task: Task, rows: Rows) -> Outcomes:
    """The answers to ``rows``, which all have a target."""
    chances = task.kind.probabilities(rows.logits, task)
    truth = rows.targets.astype(np.int64)
    if task.kind.form is LabelForm.SEVERAL:
        predicted = (chances > (task.thresholds or 0.5)).astype(np.int64)
        right = (predicted == truth).all(axis=1)
    else:
        predicted = chances.argmax(axis=1) if len(chances) else np.zeros(0, dtype=np.int64)
        right = predicted == truth
    return Outcomes(
        probabilities=chances,
        truth=truth,
        predicted=predicted,
        right=right,
        confidence=task.kind.confidences(rows.logits, task),
    )


def predicted_numbers(task: Task, rows: Rows) -> Floats:
    """``[N]``: the answers of a task without labels, in the unit of the targets."""
    return np.array([task.kind.answer(row, task).label for row in rows.logits.tolist()], dtype=np.float64)
