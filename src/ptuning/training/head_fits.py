"""Fits a linear layer to features: ridge regression for numbers, logistic regression for classes.

:mod:`ptuning.training.head_init` begins a head with them, and measures by them what a frozen model says about
the labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from torch import Tensor

from ptuning.model.ptuning import PTuningModel
from ptuning.task import Task

STRENGTHS = np.logspace(-4, 4, 25)
"""Strengths of the ridge penalty, relative to the mean squared singular value of the features."""
INVERSE_STRENGTHS = np.logspace(-2, 2, 9)
"""Values of scikit-learn's C, for features with a total variance of 1."""
FOLDS = 4
MIN_PER_CLASS = 20
"""Minimum rows per class for an estimate."""

Floats = NDArray[np.float64]
Layer = tuple[Floats, Floats]
"""Weights ``[C, H]`` and biases ``[C]``."""


def ridge(features: Floats, targets: Floats, *, free_bias: bool = True) -> Layer:
    """A layer with one output; the best of :data:`STRENGTHS` by generalised cross-validation
    (Golub, Heath and Wahba, 1979).

    Args:
        free_bias: Whether the layer has a bias; otherwise it is 0.
    """
    centre, mean = (features.mean(0), targets.mean()) if free_bias else (features.mean(0) * 0, 0.0)
    u, sizes, basis = np.linalg.svd(features - centre, full_matrices=False)
    rotated = u.T @ (targets - mean)
    squares = sizes**2
    outside = ((targets - mean) ** 2).sum() - (rotated**2).sum()
    best, lowest = np.zeros_like(sizes), np.inf
    if not squares.any():  # every row has the same features
        return centre[None] * 0, np.array([mean])
    for strength in STRENGTHS * squares.mean():
        kept = squares / (squares + strength)
        rest = outside + (((1 - kept) * rotated) ** 2).sum()
        error = rest / (len(targets) - 1 - kept.sum()) ** 2 if len(targets) - 1 > kept.sum() else np.inf
        if error < lowest:
            best, lowest = sizes / (squares + strength), error
    weight = basis.T @ (best * rotated)
    return weight[None], np.array([mean - centre @ weight])


def logistic(
    features: Floats,
    classes: NDArray[np.int_],
    num_labels: int,
    weights: Sequence[float] | None = None,
    *,
    free_bias: bool = True,
) -> Layer:
    """A layer with one output per class; the best of :data:`INVERSE_STRENGTHS` by cross-validation.

    If a class has fewer than two rows, cross-validation is not possible, and the layer predicts the shares of
    the classes. Classes without rows get outputs of 0, the average of the others.

    Args:
        weights: Weight per class.
        free_bias: Whether the layer has biases; otherwise they are 0.
    """
    weight, bias = np.zeros((num_labels, features.shape[1])), np.zeros(num_labels)
    seen, counts = np.unique(classes, return_counts=True)
    centre = features.mean(0)
    size = math.sqrt(((features - centre) ** 2).sum(1).mean())
    centre = centre if free_bias else centre * 0
    if len(seen) < 2 or counts.min() < 2 or not size:
        return weight, free_bias * np.log(
            np.maximum(np.bincount(classes, minlength=num_labels), 0.5) / len(classes)
        )
    scaled, folds = (features - centre) / size, min(FOLDS, int(counts.min()))
    each_weight = None if weights is None else {label: weights[label] for label in seen}
    tried = [
        LogisticRegression(C=each, max_iter=1000, class_weight=each_weight, fit_intercept=free_bias)
        for each in INVERSE_STRENGTHS
    ]
    found = max(
        tried,
        key=lambda each: cross_val_score(each, scaled, classes, cv=folds, scoring="neg_log_loss").mean(),
    ).fit(scaled, classes)
    slopes, levels = found.coef_ / size, found.intercept_
    if len(seen) == 2:  # scikit-learn only has the second class's
        slopes, levels = np.concatenate((-slopes, slopes)) / 2, np.concatenate((-levels, levels)) / 2
    weight[seen], bias[seen] = slopes, levels - slopes @ centre
    return weight, bias


def logistic_rows(
    features: Floats,
    classes: NDArray[np.int_],
    layer: Layer,
    rows: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
    free_bias: bool = True,
) -> Layer:
    """``layer`` with some rows fitted by logistic regression, given the others.

    The penalty pulls their weights towards what they start as; its strength is scikit-learn's default.

    Args:
        rows: The classes whose rows are fitted.
        weights: Weight per class.
        free_bias: Whether their biases are fitted, too.
    """
    weight, bias = (each.copy() for each in layer)
    rows = list(rows)
    first, size = weight[rows], math.sqrt(((features - features.mean(0)) ** 2).sum(1).mean()) or 1.0
    others, wanted = features @ weight.T + bias, np.eye(len(weight))[classes]
    counts = np.ones((len(classes), 1)) if weights is None else np.asarray(weights)[classes, None]

    def cost(values: Floats) -> tuple[float, Floats]:
        moved = values.reshape(len(rows), -1)
        own, level = first + moved[:, :-1] / size, moved[:, -1] * free_bias
        logits = others.copy()
        logits[:, rows] = features @ own.T + bias[rows] + level
        shares = log_softmax(logits, axis=1)
        wrong = (counts * (np.exp(shares) - wanted))[:, rows]
        slope = np.concatenate(
            (wrong.T @ features / size + moved[:, :-1], wrong.sum(0)[:, None] * free_bias), axis=1
        )
        return float(-(counts * shares * wanted).sum() + (moved[:, :-1] ** 2).sum() / 2), slope.ravel()

    found = minimize(cost, np.zeros(len(rows) * (features.shape[1] + 1)), jac=True, method="L-BFGS-B")
    moved = found.x.reshape(len(rows), -1)
    weight[rows], bias[rows] = first + moved[:, :-1] / size, bias[rows] + moved[:, -1] * free_bias
    return weight, bias


# How a kind of task fits a head ------------------------------------------------------------------


class HeadFit(Protocol):
    """A linear model of the frozen features, from which the head's last layer is initialised."""

    def layer(
        self,
        features: Floats,
        targets: Floats,
        task: Task,
        weights: Sequence[float] | None,
        *,
        free_bias: bool,
    ) -> Layer:
        """The last layer fitted to ``features`` ``[N, H]``.

        Args:
            weights: Weight per class.
            free_bias: Whether the layer has a bias; otherwise it is 0.
        """

    def loss(self, model: PTuningModel, raw: Tensor, targets: Floats) -> float:
        """The model's loss for ``raw`` ``[N, C]``, the outputs of its head."""

    def can_estimate(self, targets: Floats) -> bool:
        """Whether :meth:`explained` is defined for these targets."""

    def explained(self, features: Floats, targets: Floats) -> float:
        """The share of a constant answer's loss that a fit removes, by cross-validation; may be negative.

        Args:
            features: ``[N, H]``, centred, with a total variance of 1.
        """


class RidgeFit:
    """Ridge regression, for standardised numbers."""

    def layer(
        self,
        features: Floats,
        targets: Floats,
        task: Task,
        weights: Sequence[float] | None,
        *,
        free_bias: bool,
    ) -> Layer:
        return ridge(features, (targets - task.mean) / task.scale, free_bias=free_bias)

    def loss(self, model: PTuningModel, raw: Tensor, targets: Floats) -> float:
        logits = model.task.kind.logits(raw, model.task)
        return float(model.loss(logits, model.task.kind.as_labels(targets)))

    def can_estimate(self, targets: Floats) -> bool:
        return bool(targets.std() > 0)

    def explained(self, features: Floats, targets: Floats) -> float:
        # The features' total variance is 1, so these are the relative strengths of STRENGTHS.
        strengths = STRENGTHS * len(targets) / features.shape[1]
        folds = KFold(FOLDS, shuffle=True, random_state=0)  # rows may be sorted
        scores = cross_val_score(RidgeCV(alphas=strengths), features, targets, cv=folds, scoring="r2")
        return float(scores.mean())


class LogisticFit:
    """Logistic regression, for classes."""

    def layer(
        self,
        features: Floats,
        targets: Floats,
        task: Task,
        weights: Sequence[float] | None,
        *,
        free_bias: bool,
    ) -> Layer:
        return logistic(features, targets.astype(int), task.num_labels, weights, free_bias=free_bias)

    def loss(self, model: PTuningModel, raw: Tensor, targets: Floats) -> float:
        labels = model.task.kind.as_labels(targets)
        return float(model.loss(raw.float().to(model.device), labels.to(model.device)))

    def can_estimate(self, targets: Floats) -> bool:
        counts = np.unique(targets, return_counts=True)[1]
        return len(counts) > 1 and int(counts.min()) >= MIN_PER_CLASS

    def explained(self, features: Floats, targets: Floats) -> float:
        classes = targets.astype(int)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        best = max(
            cross_val_score(
                LogisticRegression(C=each, max_iter=1000), features, classes, cv=folds, scoring="neg_log_loss"
            ).mean()
            for each in INVERSE_STRENGTHS
        )
        shares = np.unique(classes, return_counts=True)[1] / len(classes)
        constant = -float((shares * np.log(shares)).sum())
        return 1 + float(best) / constant


HEAD_FITS: Mapping[str, HeadFit] = {"ridge": RidgeFit(), "logistic": LogisticFit()}
"""The fits, by the name in :attr:`ptuning.kinds.Kind.head_fit`."""
