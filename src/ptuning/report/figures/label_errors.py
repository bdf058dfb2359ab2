"""Rows whose labels may be wrong, found by confident learning (Northcutt et al. 2021) in ``cleanlab``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptuning.report.figures.outcomes import Outcomes

MIN_ROWS = 20
INSTALL = 'pip install "ptuning[report]"'


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelErrors:
    """What confident learning finds.

    Attributes:
        rows: The indices of the rows, the least plausible label first.
        missing: Why nothing was searched, if it was not; a sentence.
    """

    rows: NDArray[np.int64]
    missing: str | None = None


def label_errors(found: Outcomes) -> LabelErrors:
    """The rows whose labels may be wrong. They must be rows that the model was not trained on."""
    nothing = np.zeros(0, dtype=np.int64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of while it is imported is not about these rows
            from cleanlab.filter import find_label_issues
    except ImportError:
        return LabelErrors(
            rows=nothing, missing=f"Likely label errors are searched if cleanlab is installed: {INSTALL}"
        )
    if len(found.right) < MIN_ROWS:
        return LabelErrors(rows=nothing, missing=f"Label errors are searched in {MIN_ROWS} rows or more.")
    labels: Any = found.truth
    chances = found.probabilities
    several = labels.ndim == 2
    if several and labels.shape[1] == 1:  # a single label is two classes
        several, labels, chances = False, labels[:, 0], np.hstack([1 - chances, chances])
    if several:
        labels = [np.flatnonzero(row).tolist() for row in labels]
    else:
        classes, labels = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            return LabelErrors(
                rows=nothing, missing="Label errors are searched if there are rows of two classes."
            )
        # Classes without a row have nothing to compare with.
        chances = chances[:, classes]
        chances = chances / np.maximum(chances.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = find_label_issues(
                labels=labels,
                pred_probs=chances,
                return_indices_ranked_by="self_confidence",
                multi_label=several,
                n_jobs=1,
            )
    except ValueError as error:  # rows that it cannot use must not cost the rest of the page
        reason = " ".join(str(error).split())
        return LabelErrors(
            rows=nothing, missing=f"cleanlab cannot search label errors in these rows: {reason}"
        )
    return LabelErrors(rows=np.asarray(rows, dtype=np.int64))
