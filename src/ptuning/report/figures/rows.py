"""Rows worth reading: confident mistakes, uncertain answers, large errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptuning.report.data import Floats
from ptuning.report.figures.outcomes import Outcomes

Indices = NDArray[np.int64]


def confident_mistakes(found: Outcomes, limit: int) -> Indices:
    """The wrong rows, the most confident first. Of several labels, by the most confident wrong yes or no."""
    wrong = np.flatnonzero(~found.right)
    return wrong[np.argsort(-certainty_of_mistake(found)[wrong], kind="stable")[:limit]]


def certainty_of_mistake(found: Outcomes) -> Floats:
    """``[N]``: the probability that the model gives to its wrong answer; 0 for right rows."""
    if found.truth.ndim == 1:
        return np.where(found.right, 0.0, found.confidence)
    certain = np.where(found.predicted, found.probabilities, 1 - found.probabilities)
    wrong = np.where(found.predicted != found.truth, certain, 0.0)
    return np.asarray(wrong.max(axis=1, initial=0), dtype=np.float64)


def least_certain(found: Outcomes, limit: int) -> Indices:
    """The rows that the model is least certain of: the ones to label next (uncertainty sampling)."""
    return np.argsort(found.confidence, kind="stable")[:limit]


def largest_errors(predicted: Floats, targets: Floats, limit: int) -> Indices:
    """The rows with the largest absolute error."""
    return np.argsort(-np.abs(predicted - targets), kind="stable")[:limit]
