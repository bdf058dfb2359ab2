"""How a head is initialised where random values would be wrong: fitted to the features of the frozen model.

A head that reads how similar two texts are has most of its task solved before the first step, and a random
one makes the prompt undo that: the first gradients go into the mean and scale of the similarity. Fitting
the last layer first keeps what the backbone knows (arXiv:2202.10054).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from torch import Tensor

from ptuning.data.tokens import sorted_batches
from ptuning.inference.evaluate import BATCH_TOKENS, logits_of
from ptuning.model.config import DeepPrompt
from ptuning.model.ptuning import PTuningModel
from ptuning.task import Task
from ptuning.training.extensions import NO_EXTENSIONS, Extensions
from ptuning.training.prepare import Split

MOST_ROWS = 20_000
"""Maximum rows that the head is fitted to; more add nothing for so few parameters."""
STRENGTHS = np.logspace(-4, 4, 25)
"""Of the ridge, in shares of what a feature's variance adds up to over the rows."""
LOOSENESS = np.logspace(-2, 2, 9)
"""scikit-learn's C, for features of variance 1 all together."""
FOLDS = 4
FEWEST_OF_A_CLASS = 20
"""Rows that tell something of a class."""

Floats = NDArray[np.float64]
Layer = tuple[Floats, Floats]
"""Weights ``[C, H]`` and biases ``[C]``."""


def begins_fitted(model: PTuningModel) -> bool:
    """Whether the head of ``model`` is to be fitted before anything is trained."""
    config, task = model.prompt_config, model.task
    compares = isinstance(config, DeepPrompt) and config.pooling == "similarity"
    fits = task.kind.head_fit is not None
    return compares and config.train_head and fits and len(model.head.names) > 0


def fit_head(
    model: PTuningModel,
    split: Split,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    extensions: Extensions = NO_EXTENSIONS,
) -> float:
    """Fit the head's last layer to the rows as the untrained prompt leaves them; returns their loss then.

    Numbers are fitted by ridge regression, classes by logistic regression (:data:`HEAD_FITS`). Features that
    are not finite leave the head as it is, with a loss of NaN: the training loop says what to do.

    Args:
        on_rows: Called with how many rows of how many are done; what it raises leaves the head as it is.
        extensions: A user's own loss is what is returned; the fit itself is the same.
    """
    assert model.task.kind.head_fit is not None  # begins_fitted
    fit, output = HEAD_FITS[model.task.kind.head_fit], _output(model)
    split = _some(split)
    features = _features(model, split, on_rows)
    if not np.isfinite(features).all():
        return math.nan
    weights = None if model.class_weights is None else model.class_weights.tolist()
    weight, bias = fit.layer(features, split.targets, model.task, weights)
    values = model.head.named()
    fitted = {f"{output}.weight": weight, f"{output}.bias": bias}
    model.head.copy_(
        {
            name: torch.from_numpy(fitted[name]).to(value) if name in fitted else value.detach()
            for name, value in values.items()
        }
    )
    raw, kind = torch.from_numpy(features @ weight.T + bias), model.task.kind
    if extensions.loss is None:
        return fit.loss(model, raw, split.targets)
    logits = kind.logits(raw, model.task).float()
    return float(extensions.loss_of(logits, kind.as_labels(split.targets), model.task))


def _some(split: Split) -> Split:
    """No more than :data:`MOST_ROWS` of the rows, always the same ones."""
    if len(split.rows) <= MOST_ROWS:
        return split
    places = np.random.default_rng(0).choice(len(split.rows), MOST_ROWS, replace=False)
    return replace(split, rows=[split.rows[i] for i in places], targets=split.targets[places])


def explained(model: PTuningModel, split: Split) -> float | None:
    """Share of a constant answer's loss that a head fitted to the untrained model takes away, by
    cross-validation: 0 where it takes nothing away, ``None`` where that cannot be told.
    """
    if model.task.kind.head_fit is None:
        return None
    fit, targets = HEAD_FITS[model.task.kind.head_fit], split.targets
    if not fit.can_tell(targets):
        return None
    features = _features(model, split, lambda done, total: None)
    centred = features - features.mean(0)
    size = math.sqrt((centred**2).sum(1).mean())
    if not np.isfinite(size) or not size:
        return None
    return max(0.0, fit.explained(centred / size, targets))


def _output(model: PTuningModel) -> str:
    """The name of the head's last layer."""
    return model.backbone.head_names[-1].rpartition(".")[0]


def _features(model: PTuningModel, split: Split, on_rows: Callable[[int, int], None]) -> NDArray[np.float64]:
    """``[N, H]``: what the head's last layer reads of each row."""
    model = model.twin().eval()  # so that another thread's batches do not come by the hook
    output = model.backbone.model.get_submodule(_output(model))
    seen: list[Tensor] = []
    done = 0

    def on_batch(rows: int) -> None:
        nonlocal done
        done += rows
        on_rows(done, len(split.rows))

    hook = output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        logits_of(model, split.rows, on_batch=on_batch)
    finally:
        hook.remove()
    places = [row for batch in sorted_batches(split.lengths, None, BATCH_TOKENS) for row in batch]
    found = torch.empty(len(places), seen[0].shape[-1])
    found[places] = torch.cat(seen)
    return found.numpy().astype(np.float64)


def ridge(features: NDArray[np.float64], targets: NDArray[np.float64]) -> Layer:
    """One output; the strength is the best of :data:`STRENGTHS` by generalised cross-validation
    (Golub, Heath and Wahba, 1979).
    """
    centre, mean = features.mean(0), targets.mean()
    u, sizes, basis = np.linalg.svd(features - centre, full_matrices=False)
    rotated = u.T @ (targets - mean)
    squares = sizes**2
    outside = ((targets - mean) ** 2).sum() - (rotated**2).sum()
    best, fewest = np.zeros_like(sizes), np.inf
    if not squares.any():  # every row has the same features
        return centre[None] * 0, np.array([mean])
    for strength in STRENGTHS * squares.mean():
        kept = squares / (squares + strength)
        rest = outside + (((1 - kept) * rotated) ** 2).sum()
        error = rest / (len(targets) - 1 - kept.sum()) ** 2 if len(targets) - 1 > kept.sum() else np.inf
        if error < fewest:
            best, fewest = sizes / (squares + strength), error
    weight = basis.T @ (best * rotated)
    return weight[None], np.array([mean - centre @ weight])


def logistic(
    features: NDArray[np.float64],
    classes: NDArray[np.int_],
    num_labels: int,
    weights: Sequence[float] | None = None,
) -> Layer:
    """An output a class, whose rows have these ``weights``; the strength is the best of :data:`LOOSENESS` by
    cross-validation.

    With fewer than two rows of a class there is nothing to choose it by, and every answer is as likely as its
    class is frequent. Classes without a row get outputs of 0, the average of the others'.
    """
    weight, bias = np.zeros((num_labels, features.shape[1])), np.zeros(num_labels)
    seen, counts = np.unique(classes, return_counts=True)
    centre = features.mean(0)
    size = math.sqrt(((features - centre) ** 2).sum(1).mean())
    if len(seen) < 2 or counts.min() < 2 or not size:
        return weight, np.log(np.maximum(np.bincount(classes, minlength=num_labels), 0.5) / len(classes))
    scaled, folds = (features - centre) / size, min(FOLDS, int(counts.min()))
    each_weight = None if weights is None else {label: weights[label] for label in seen}
    tried = [LogisticRegression(C=each, max_iter=1000, class_weight=each_weight) for each in LOOSENESS]
    found = max(
        tried,
        key=lambda each: cross_val_score(each, scaled, classes, cv=folds, scoring="neg_log_loss").mean(),
    ).fit(scaled, classes)
    slopes, levels = found.coef_ / size, found.intercept_
    if len(seen) == 2:  # scikit-learn gives the second class's alone
        slopes, levels = np.concatenate((-slopes, slopes)) / 2, np.concatenate((-levels, levels)) / 2
    weight[seen], bias[seen] = slopes, levels - slopes @ centre
    return weight, bias


# How a kind of task fits a head ------------------------------------------------------------------


class HeadFit(Protocol):
    """A linear model of frozen features that the head's last layer can be set to."""

    def layer(self, features: Floats, targets: Floats, task: Task, weights: Sequence[float] | None) -> Layer:
        """The last layer fitted to ``features`` ``[N, H]``.

        Args:
            weights: Of the classes.
        """

    def loss(self, model: PTuningModel, raw: Tensor, targets: Floats) -> float:
        """The model's loss for what its head gives, ``raw`` ``[N, C]``."""

    def can_tell(self, targets: Floats) -> bool:
        """Whether :meth:`explained` is defined for such targets."""

    def explained(self, features: Floats, targets: Floats) -> float:
        """By cross-validation, the share of a constant answer's loss that a fit removes; may be negative.

        Args:
            features: ``[N, H]``, centred, with a total variance of 1.
        """


class RidgeFit:
    """Standardised numbers, by ridge regression."""

    def layer(self, features: Floats, targets: Floats, task: Task, weights: Sequence[float] | None) -> Layer:
        return ridge(features, (targets - task.mean) / task.scale)

    def loss(self, model: PTuningModel, raw: Tensor, targets: Floats) -> float:
        logits = model.task.kind.logits(raw, model.task)
        return float(model.loss(logits, model.task.kind.as_labels(targets)))

    def can_tell(self, targets: Floats) -> bool:
        return bool(targets.std() > 0)

    def explained(self, features: Floats, targets: Floats) -> float:
        # With a total variance of 1 over N rows, so that a strength is a share of that, as above.
        strengths = STRENGTHS * len(targets) / features.shape[1]
        folds = KFold(FOLDS, shuffle=True, random_state=0)  # rows may be sorted
        scores = cross_val_score(RidgeCV(alphas=strengths), features, targets, cv=folds, scoring="r2")
        return float(scores.mean())


class LogisticFit:
    """Classes, by logistic regression."""

    def layer(self, features: Floats, targets: Floats, task: Task, weights: Sequence[float] | None) -> Layer:
        return logistic(features, targets.astype(int), task.num_labels, weights)

    def loss(self, model: PTuningModel, raw: Tensor, targets: Floats) -> float:
        labels = model.task.kind.as_labels(targets)
        return float(model.loss(raw.float().to(model.device), labels.to(model.device)))

    def can_tell(self, targets: Floats) -> bool:
        counts = np.unique(targets, return_counts=True)[1]
        return len(counts) > 1 and int(counts.min()) >= FEWEST_OF_A_CLASS

    def explained(self, features: Floats, targets: Floats) -> float:
        classes = targets.astype(int)
        mixed = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        best = max(
            cross_val_score(
                LogisticRegression(C=each, max_iter=1000), features, classes, cv=mixed, scoring="neg_log_loss"
            ).mean()
            for each in LOOSENESS
        )
        shares = np.unique(classes, return_counts=True)[1] / len(classes)
        constant = -float((shares * np.log(shares)).sum())
        return 1 + float(best) / constant


HEAD_FITS: Mapping[str, HeadFit] = {"ridge": RidgeFit(), "logistic": LogisticFit()}
"""By :attr:`ptuning.kinds.Kind.head_fit`."""
