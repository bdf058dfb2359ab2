"""Rows that get no label because the model is not certain enough, and how good the other answers are.

The certainty of an answer is :meth:`Kind.confidence <ptuning.kinds.Kind.confidence>`: the probability of the
most likely class; for several labels, that of the least certain yes or no.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptuning.errors import ConfigError
from ptuning.kinds import Answer
from ptuning.task import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def certainty(answer: Answer, task: Task, name: str | None = None) -> float:
    """The probability that an answer is right, by the model's own account.

    Args:
        name: The name of the task, for the message.

    Raises:
        ConfigError: a task without probabilities.
    """
    if (found := task.kind.confidence(answer, task)) is None:
        raise ConfigError(
            "abstain_below" if name is None else f"abstain_below: the task {name!r}",
            got=f"a {task.kind.title}, which has no probabilities",
            expected="a task with labels",
            remedy="leave it out",
        )
    return found


def check_abstain_below(value: float | None, task: Task | None = None) -> None:
    """Refuse a threshold that is not a probability, or a task that has none.

    Raises:
        ConfigError: says which.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError("abstain_below", got=repr(value), expected="a probability from 0 to 1")
    if task is not None:
        certainty(task.kind.answer([0.0] * task.num_labels, task), task)


def certainties(logits: Floats, task: Task) -> Floats:
    """:func:`certainty` of each row, ``[N]``, from logits ``[N, C]``."""
    check_abstain_below(0.0, task)
    return task.kind.confidences(logits, task)


def answered(logits: Floats, targets: Floats, task: Task, abstain_below: float) -> dict[str, Any]:
    """How many rows get an answer, and how good these answers are.

    Args:
        logits: ``[N, C]``.
        targets: ``[N]`` or ``[N, C]``.

    Returns:
        ``abstain_below``, the number of ``rows`` that are answered, their share ``coverage``, and their
        ``metrics``, which are empty without any.
    """
    sure = certainties(logits, task) >= abstain_below
    return {
        "abstain_below": abstain_below,
        "rows": int(sure.sum()),
        "coverage": float(sure.mean()),
        "metrics": task.kind.measure(logits[sure], targets[sure], task) if sure.any() else {},
    }
