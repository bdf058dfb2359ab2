"""Precision, recall, F1 and support of each label, and which labels are taken for which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ptuning.report.figures.outcomes import Outcomes

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """One label.

    Attributes:
        index: Its index in the task's labels.
        precision: Of the rows that were given the label, the share that has it; ``None`` if there are none.
        recall: Of the rows that have the label, the share that was given it; ``None`` if there are none.
        f1: The harmonic mean of the two; ``None`` if no row has the label or was given it.
        support: How many rows have it.
        predicted: How many rows were given it.
    """

    index: int
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    predicted: int


def by_class(found: Outcomes) -> tuple[ClassFigures, ...]:
    """The figures of each label, in the task's order."""
    width = found.probabilities.shape[1]
    if found.truth.ndim == 2:
        predicted, truth = found.predicted, found.truth
    else:  # one column per class, so that two classes, one class and several labels are read the same way
        predicted, truth = np.eye(width, dtype=int)[found.predicted], np.eye(width, dtype=int)[found.truth]
    if width == 1:  # scikit-learn reads a single column as two classes
        values = precision_recall_fscore_support(
            truth[:, 0], predicted[:, 0], labels=[1], average=None, zero_division=0.0
        )
    else:
        values = precision_recall_fscore_support(truth, predicted, average=None, zero_division=0.0)
    precision, recall, f1, support = values
    given = predicted.sum(axis=0)
    return tuple(
        ClassFigures(
            index=index,
            precision=float(precision[index]) if given[index] else None,
            recall=float(recall[index]) if support[index] else None,
            f1=float(f1[index]) if given[index] or support[index] else None,
            support=int(support[index]),
            predicted=int(given[index]),
        )
        for index in range(width)
    )


@dataclass(frozen=True, kw_only=True)
class Confused:
    """Two classes: rows of the first that were taken for the second.

    Attributes:
        truth: The index of the rows' class.
        predicted: The index of the class that they were taken for.
        count: How many rows.
        share: Their share of the rows of their class.
        back: How many rows were taken the other way round.
    """

    truth: int
    predicted: int
    count: int
    share: float
    back: int


def confusion(found: Outcomes) -> Counts:
    """``[C, C]``: how many rows of each class (row) were taken for each class (column)."""
    width = found.probabilities.shape[1]
    return np.asarray(confusion_matrix(found.truth, found.predicted, labels=np.arange(width)), dtype=np.int64)


def most_confused(counts: Counts, limit: int) -> tuple[Confused, ...]:
    """The pairs of classes with the most mistakes, at most ``limit``."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = ((int(each // len(counts)), int(each % len(counts))) for each in order)
    return tuple(
        Confused(
            truth=truth,
            predicted=predicted,
            count=int(counts[truth, predicted]),
            share=float(counts[truth, predicted] / counts[truth].sum()),
            back=int(counts[predicted, truth]),
        )
        for truth, predicted in pairs
        if wrong[truth, predicted]
    )


def worst_classes(counts: Counts, limit: int) -> NDArray[np.int64]:
    """The indices of the classes that take part in the most mistakes, at most ``limit``, in their order."""
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    worst = np.argsort(-wrong, kind="stable")[:limit]
    return np.sort(worst[wrong[worst] > 0])


def similar_together(counts: Counts) -> NDArray[np.int64]:
    """An order of the classes in which those that are confused are next to each other.

    Average linkage over the share of the rows of two classes that are taken for the other one.
    """
    if len(counts) < 3:
        return np.arange(len(counts))
    size = np.maximum(counts.sum(axis=1), 1)
    mixed = (counts + counts.T) / (size[:, None] + size[None, :])
    upper = np.triu_indices(len(counts), 1)
    return np.asarray(leaves_list(linkage(1 - np.minimum(mixed[upper], 1), method="average")), dtype=np.int64)
