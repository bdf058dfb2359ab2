"""ROC and precision-recall curves of a label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from ptuning.report.data import Floats
from ptuning.report.figures.outcomes import Outcomes


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """The curves of one label; its other labels are the negatives.

    Attributes:
        index: Its index in the task's labels.
        false_positive_rate: Of the ROC curve.
        true_positive_rate: Of the ROC curve.
        auc: The area under the ROC curve.
        precision: Of the precision-recall curve.
        recall: Of the precision-recall curve.
        average_precision: The mean precision, weighted by the steps in recall.
        prevalence: The share of the rows that have the label: the precision of a random answer.
    """

    index: int
    false_positive_rate: Floats
    true_positive_rate: Floats
    auc: float
    precision: Floats
    recall: Floats
    average_precision: float
    prevalence: float


def curves(found: Outcomes) -> tuple[Curves, ...]:
    """The curves of each label that some rows have and others lack.

    With two classes those of the second, because those of the first are the same turned round. With more
    classes than two there are none: no single threshold decides.
    """
    width = found.probabilities.shape[1]
    if found.truth.ndim == 1 and width != 2:
        return ()
    labels = range(width) if found.truth.ndim == 2 else (1,)
    made = []
    for label in labels:
        truth = found.truth[:, label] if found.truth.ndim == 2 else found.truth == label
        truth, chances = np.asarray(truth, dtype=bool), found.probabilities[:, label]
        if truth.all() or not truth.any():
            continue
        false_positive, true_positive, _ = roc_curve(truth, chances)
        precision, recall, _ = precision_recall_curve(truth, chances)
        made.append(
            Curves(
                index=label,
                false_positive_rate=false_positive,
                true_positive_rate=true_positive,
                auc=float(auc(false_positive, true_positive)),
                precision=precision,
                recall=recall,
                average_precision=float(average_precision_score(truth, chances)),
                prevalence=float(truth.mean()),
            )
        )
    return tuple(made)
