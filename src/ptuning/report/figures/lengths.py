"""Figures by the length of the text: does the model answer long texts as well as short ones?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

BINS = 5
MIN_ROWS = 10
"""With fewer rows per bin, the bins would only show chance."""


@dataclass(frozen=True, kw_only=True)
class LengthBin:
    """The rows of some lengths.

    Attributes:
        shortest, longest: Tokens.
        rows: How many rows.
        value: The share of right answers, or the mean absolute error.
        low, high: Its 95 % confidence interval.
    """

    shortest: int
    longest: int
    rows: int
    value: float
    low: float
    high: float


def by_length(lengths: Sequence[int], values: ArrayLike, *, shares: bool) -> tuple[LengthBin, ...]:
    """The mean of ``values`` in bins of about the same number of rows; rows of one length are in one bin.

    Args:
        lengths: ``[N]``, in tokens.
        values: ``[N]``: whether each row is right, or its absolute error.
        shares: Whether they are truth values: Wilson's interval (1927), else the mean's normal one.
    """
    tokens, each = np.asarray(lengths), np.asarray(values, dtype=np.float64)
    bins = min(BINS, len(tokens) // MIN_ROWS)
    if bins < 2:
        return ()
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    place = np.searchsorted(edges, tokens, side="left")
    made = []
    for number in np.unique(place):
        inside = place == number
        low, high = _interval(each[inside], shares)
        made.append(
            LengthBin(
                shortest=int(tokens[inside].min()),
                longest=int(tokens[inside].max()),
                rows=int(inside.sum()),
                value=float(each[inside].mean()),
                low=low,
                high=high,
            )
        )
    return tuple(made) if len(made) > 1 else ()


def _interval(values: np.ndarray, shares: bool) -> tuple[float, float]:
    if shares:
        found = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
        return float(found.low), float(found.high)
    mean = float(values.mean())
    error = 1.96 * float(values.std(ddof=1)) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return max(0.0, mean - error), mean + error
