"""How far probabilities can be trusted: calibration error, reliability bins, log loss, and corrections.

All functions take numpy arrays. Shapes: N rows, C labels. ``targets`` are ``[N]`` class indices if a row has
one label, and ``[N, C]`` zeros and ones if it has several; rows with a negative class index do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

BINS = 15
"""The usual number of bins of the expected calibration error (Guo et al. 2017)."""
TEMPERATURES = (0.05, 20.0)
"""The range in which a temperature is fitted."""
PRIOR_DEVIATION = 0.35
"""The standard deviation of the prior of log T: before any row is seen, T is in 0.5 to 2 with 95 %."""
MIN_POSITIVES = 5
"""A label with fewer rows that have it, or that lack it, keeps the threshold 0.5."""
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bar of a reliability diagram: the predictions with a confidence in ``(lower, upper]``.

    Attributes:
        lower: The lower bound; the first bin includes it.
        upper: The upper bound.
        count: The number of predictions.
        confidence: Their mean confidence; NaN for an empty bin.
        accuracy: The share of them that is right (of several labels: the share that is positive); NaN for an
            empty bin.
    """

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float

    @property
    def gap(self) -> float:
        """``accuracy - confidence``: negative for an overconfident bin; NaN for an empty one."""
        return self.accuracy - self.confidence


def confidences(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Floats, Bools]:
    """What a reliability diagram compares, one entry per prediction.

    Args:
        probabilities: ``[N, C]``.
        targets: ``[N]`` or ``[N, C]``, see above.

    Returns:
        The probability of the predicted class and whether that is the row's class, both ``[N]``. For several
        labels: the probability of each label in each row and whether the row has it, both ``[N·C]``.
    """
    chances, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    if truth.ndim == 2:
        return chances.reshape(-1), truth.reshape(-1) > 0.5
    chances, classes = _labelled(chances, truth)
    predicted = chances.argmax(axis=1) if len(chances) else np.zeros(0, dtype=np.int64)
    return chances[np.arange(len(chances)), predicted], predicted == classes


def reliability_bins(probabilities: ArrayLike, targets: ArrayLike, bins: int = BINS) -> tuple[Bin, ...]:
    """The bars of a reliability diagram, in bins of equal width over [0, 1].

    Args:
        probabilities: ``[N, C]``.
        targets: ``[N]`` or ``[N, C]``.
        bins: The number of bins, at least 1.
    """
    confidence, right = confidences(probabilities, targets)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(place, weights=confidence, minlength=bins) / counts
        shares = np.bincount(place, weights=right, minlength=bins) / counts
    return tuple(
        Bin(
            lower=float(low),
            upper=float(high),
            count=int(count),
            confidence=float(mean),
            accuracy=float(share),
        )
        for low, high, count, mean, share in zip(edges, edges[1:], counts, means, shares, strict=False)
    )


def expected_calibration_error(probabilities: ArrayLike, targets: ArrayLike, bins: int = BINS) -> float:
    """The mean distance of confidence and accuracy over the bins, weighted by their predictions; 0 to 1.

    Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; for several labels
    over all pairs of row and label. NaN without predictions.
    """
    full = [each for each in reliability_bins(probabilities, targets, bins) if each.count]
    total = sum(each.count for each in full)
    return sum(each.count * abs(each.gap) for each in full) / total if total else math.nan


def log_loss(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """The mean negative log-likelihood in nats; for several labels over all pairs of row and label.

    A probability of 0 counts as the smallest positive number. NaN without rows.
    """
    chances, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    if truth.ndim == 2:
        of_truth = np.where(truth > 0.5, chances, 1 - chances)
    else:
        chances, classes = _labelled(chances, truth)
        of_truth = chances[np.arange(len(chances)), classes]
    return float(-np.log(np.maximum(of_truth, _TINY)).mean()) if of_truth.size else math.nan


def _labelled(chances: Floats, truth: NDArray[Any]) -> tuple[Floats, NDArray[np.int64]]:
    """The rows that have a class."""
    known = truth >= 0
    return chances[known], truth[known].astype(np.int64)


# ------------------------------------------------------------------------------------ what corrects them


def fit_temperature(total_loss: Callable[[float], float]) -> float:
    """The temperature with the lowest log loss, shrunk towards 1 if there are few rows.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", with a normal prior of ``log T`` around 0
    (:data:`PRIOR_DEVIATION`): a few rows that a model happens to get all right do not make it infinitely
    sure. With many rows the prior has no weight.

    Args:
        total_loss: From a temperature to the log loss, summed over the independent rows.
    """
    from scipy.optimize import minimize_scalar

    def posterior(log_temperature: float) -> float:
        return total_loss(math.exp(log_temperature)) + 0.5 * (log_temperature / PRIOR_DEVIATION) ** 2

    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(posterior, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(math.exp(found.x))


def f1_threshold(probabilities: ArrayLike, positive: ArrayLike, min_positives: int | None = None) -> float:
    """The threshold of one label above which answering yes has the highest F1.

    It is halfway between two of the probabilities; of equally good ones, the one nearest to 0.5. With fewer
    than ``min_positives`` rows that have the label, or that lack it, it is 0.5.

    Args:
        probabilities: ``[N]``, of the label.
        positive: ``[N]``, whether the row has it.
        min_positives: :data:`MIN_POSITIVES` if left out.
    """
    least = MIN_POSITIVES if min_positives is None else min_positives
    chances, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(positive) > 0.5
    if min(truth.sum(), (~truth).sum()) < least:
        return 0.5
    values = np.unique(chances)
    cuts = np.clip((values[1:] + values[:-1]) / 2, _TINY, 1 - np.finfo(np.float64).epsneg)
    cuts = np.append(cuts, 0.5)
    ordered = np.sort(chances)
    ordered_positive = np.sort(chances[truth])
    answered = len(ordered) - np.searchsorted(ordered, cuts, side="right")
    hits = len(ordered_positive) - np.searchsorted(ordered_positive, cuts, side="right")
    f1 = 2 * hits / np.maximum(answered + len(ordered_positive), 1)
    best = np.flatnonzero(f1 == f1.max())
    return float(min(cuts[best], key=lambda cut: (abs(cut - 0.5), cut)))
