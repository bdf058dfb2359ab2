"""Whether probabilities can be trusted, and what refusing the least certain answers brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ptuning.calibration import Bin, expected_calibration_error, log_loss, reliability_bins
from ptuning.report.data import Floats, Rows
from ptuning.report.figures.outcomes import Outcomes
from ptuning.task import Task

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How well probabilities say how often an answer is right.

    Attributes:
        temperature: What the logits were divided by.
        bins: The bars of the diagram.
        error: The expected calibration error.
        log_loss: In nats.
    """

    temperature: float
    bins: tuple[Bin, ...]
    error: float
    log_loss: float


def reliability(task: Task, rows: Rows) -> tuple[Reliability, ...]:
    """With the task's temperature; in front of it without, if there is one."""
    tasks = [task] if task.temperature == 1 else [replace(task, temperature=1.0), task]
    made = []
    for each in tasks:
        chances = each.kind.probabilities(rows.logits, each)
        made.append(
            Reliability(
                temperature=each.temperature,
                bins=reliability_bins(chances, rows.targets),
                error=expected_calibration_error(chances, rows.targets),
                log_loss=log_loss(chances, rows.targets),
            )
        )
    return tuple(made)


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """What is left if answers below a confidence are refused.

    Attributes:
        threshold: The lowest confidence of an answer that is given.
        answered: How many rows get an answer.
        coverage: Their share.
        accuracy: The share of the answers that is right; ``None`` without answers.
    """

    threshold: float
    answered: int
    coverage: float
    accuracy: float | None


def abstention(found: Outcomes, thresholds: Sequence[float] = THRESHOLDS) -> tuple[Abstention, ...]:
    """Coverage and accuracy at each threshold."""
    made = []
    for threshold in thresholds:
        given = found.confidence >= threshold
        made.append(
            Abstention(
                threshold=threshold,
                answered=int(given.sum()),
                coverage=float(given.mean()),
                accuracy=float(found.right[given].mean()) if given.any() else None,
            )
        )
    return tuple(made)


def risk_coverage(found: Outcomes) -> tuple[Floats, Floats]:
    """Coverage and accuracy if only the most confident rows are answered, for every number of rows.

    Rows of equal confidence are answered together (El-Yaniv and Wiener 2010, the risk-coverage curve).
    """
    order = np.argsort(-found.confidence, kind="stable")
    ordered = found.confidence[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    answered = np.arange(1, len(order) + 1)[last]
    right = np.cumsum(found.right[order])[last]
    return answered / len(order), right / answered
