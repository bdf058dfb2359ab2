"""A metric's facts: its name, which way is better, and how far chance moves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def share_error(value: float, rows: float) -> float:
    """Of a share of rows that are right, such as accuracy, and roughly of F1 and AUC."""
    share = (min(max(value, 0.0), 1.0) * rows + 1) / (rows + 2)  # never 0: 10 of 10 rows are not all rows
    return math.sqrt(share * (1 - share) / rows)


def mean_error(value: float, rows: float) -> float:
    """Of a mean of squares, and roughly of other losses."""
    return abs(value) * math.sqrt(2 / rows)


def correlation_error(value: float, rows: float) -> float:
    """Of a correlation between predictions and targets."""
    return max(1 - value**2, 1 / rows) / math.sqrt(max(rows - 1, 1))


def matthews_error(value: float, rows: float) -> float:
    """Of the Matthews correlation."""
    return math.sqrt(max(1 - value**2, 1 / rows) / rows)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What training knows of a metric.

    Args:
        name: As in results and ``fit.select_by``.
        lower_is_better: Whether a lower value is better.
        uses_confidence: Whether it changes with a model's confidence even if every answer stays the same.
        standard_error: ``(value, rows) → standard error`` of the metric measured on that many rows.
    """

    name: str
    lower_is_better: bool = False
    uses_confidence: bool = False
    standard_error: Callable[[float, float], float] = share_error


LOSS = Metric(name="loss", lower_is_better=True, uses_confidence=True, standard_error=mean_error)
AUC = Metric(name="auc", uses_confidence=True)


def own_metric(name: str) -> Metric:
    """A user's metric: a loss if its name ends in ``loss``, and a share of rows if its value can be one."""

    def error(value: float, rows: float) -> float:
        return share_error(value, rows) if 0 <= value <= 1 else mean_error(value, rows)

    return Metric(name=name, lower_is_better=name.endswith("loss"), standard_error=error)
