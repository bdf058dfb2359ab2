"""Calibrating a trained task on rows that it was not trained on, and figures of before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptuning.calibration import expected_calibration_error, log_loss
from ptuning.task import Task
from ptuning.training.evaluation import Scored
from ptuning.training.metrics import Floats, Metrics, measure

FITTED_ON = "validation"
"""The split that temperature and thresholds are fitted to, where records name it."""


def calibrate(task: Task, scored: Mapping[str, Scored]) -> tuple[Task, dict[str, Any] | None]:
    """The task with temperature and thresholds for its validation rows, and a record of what they changed.

    Args:
        task: With the temperature and thresholds of before, if it has any.
        scored: By split; ``validation`` is what they are fitted to.

    Returns:
        The calibrated task, and the record: the number of ``rows``, ``temperature`` and ``thresholds``, and
        by split :func:`figures` ``before`` and ``after``. For a task without probabilities: the task and
        ``None``.
    """
    arrays = {name: (each.logits.double().numpy(), each.split.targets) for name, each in scored.items()}
    logits, targets = arrays[FITTED_ON]
    if not task.labels:
        return task, None
    fitted = task.kind.calibrated(logits, targets, task)
    return fitted, {
        "rows": len(targets),
        "temperature": fitted.temperature,
        "thresholds": list(fitted.thresholds),
        **{
            name: {"before": figures(*each, task=task), "after": figures(*each, task=fitted)}
            for name, each in arrays.items()
        },
    }


def of_probabilities(logits: Floats, targets: Floats, task: Task) -> Metrics:
    """How good the probabilities are: ``ece`` (15 bins) and ``log_loss``.

    Args:
        logits: ``[N, C]``.
        targets: ``[N]`` or ``[N, C]``.
    """
    chances = task.kind.probabilities(logits, task)
    return {"ece": expected_calibration_error(chances, targets), "log_loss": log_loss(chances, targets)}


def figures(logits: Floats, targets: Floats, task: Task) -> Metrics:
    """:func:`of_probabilities`, and the metrics that thresholds change."""
    return {
        **of_probabilities(logits, targets, task),
        **{
            name: value
            for name, value in measure(logits, targets, task).items()
            if name in task.kind.threshold_metrics
        },
    }


def in_a_line(record: Mapping[str, Any]) -> str:
    """A record of :func:`calibrate` as one line, with the figures of the test rows if there are any."""
    split = "test" if "test" in record else FITTED_ON
    before, after = record[split]["before"], record[split]["after"]
    names = {"ece": "calibration error", "log_loss": "log loss"}
    changes = ", ".join(
        f"{names.get(name, name)} {value:.4f} → {after[name]:.4f}"
        for name, value in before.items()
        if name in after
    )
    thresholds = ", a threshold per label" if record["thresholds"] else ""
    return (
        f"probabilities calibrated on {record['rows']:,} {FITTED_ON} rows: temperature "
        f"{record['temperature']:.3g}{thresholds}; {split} {changes}"
    )
