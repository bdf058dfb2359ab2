"""The head before training: fitted to the features of the frozen model, or made small, where a random start
would be harmful.

The similarity of two texts often solves most of a task before the first step. With a random head, the first
gradients would make the prompt distort the mean and scale of the similarity. Fitting the last layer first
keeps what the backbone knows (arXiv:2202.10054).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from torch import Tensor

from ptuning.data.tokens import TokenRow, sorted_batches, windows_of
from ptuning.inference.evaluate import BATCH_TOKENS, logits_of
from ptuning.model.config import DeepPrompt, trains_head
from ptuning.model.ptuning import PTuningModel
from ptuning.model.windows import mean_of_windows
from ptuning.task import Task
from ptuning.training.extensions import NO_EXTENSIONS, Extensions
from ptuning.training.prepare import Split
from ptuning.training.warm_start import WarmStart

MAX_ROWS = 20_000
"""Maximum rows that the head is fitted to; more add nothing for so few parameters."""
STRENGTHS = np.logspace(-4, 4, 25)
"""Strengths of the ridge penalty, relative to the mean squared singular value of the features."""
INVERSE_STRENGTHS = np.logspace(-2, 2, 9)
"""Values of scikit-learn's C, for features with a total variance of 1."""
FEW = 64
"""Rows that a new head is measured on."""
FIRST_LOGITS = 0.3
"""Maximum root mean square of the logits that an untrained head begins with. Those of MiniLM, MPNet and BERT
begin below it; those of Gemma 3, whose features are large, at 1.7, and have to be unlearned first."""
FOLDS = 4
MIN_PER_CLASS = 20
"""Minimum rows per class for an estimate."""

Floats = NDArray[np.float64]
Layer = tuple[Floats, Floats]
"""Weights ``[C, H]`` and biases ``[C]``."""


def starts_fitted(model: PTuningModel, start: WarmStart | None = None) -> bool:
    """Whether the head of ``model`` is fitted before training.

    Args:
        start: How the run starts, if the model was trained before.
    """
    config, task = model.prompt_config, model.task
    can_fit = config.train_head and task.kind.head_fit is not None and len(model.head.names) > 0
    if start is not None:  # a layer without a bias, as decoders have, cannot be fitted
        return can_fit and not start.keeps_head and f"{_output(model)}.bias" in model.head.names
    return can_fit and isinstance(config, DeepPrompt) and config.pooling == "similarity"


def fit_head(
    model: PTuningModel,
    split: Split,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    extensions: Extensions = NO_EXTENSIONS,
) -> float:
    """Fit the head's last layer to the features of the untrained model; returns the loss after the fit.

    Regressions use ridge regression, classes logistic regression (:data:`HEAD_FITS`). If features are not
    finite, the head is unchanged and the loss is NaN; the training loop then reports it.

    Args:
        on_rows: Called with the number of rows done and in all. If it raises, the head is unchanged.
        extensions: With a user's own loss, that is returned; the fit does not use it.
    """
    assert model.task.kind.head_fit is not None  # as starts_fitted checks
    fit, output = HEAD_FITS[model.task.kind.head_fit], _output(model)
    split = some(split)
    features = _features(model, split, on_rows)
    if not np.isfinite(features).all():
        return math.nan
    weights = None if model.class_weights is None else model.class_weights.tolist()
    values = model.head.named()
    free_bias = f"{output}.bias" in values  # decoders' have none
    weight, bias = fit.layer(features, split.targets, model.task, weights, free_bias=free_bias)
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


def fit_new_rows(
    model: PTuningModel,
    split: Split,
    rows: Sequence[int],
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fit some rows of the head's last layer, those of labels that a trained model lacked; others stay.

    With several labels per row, nothing is fitted. Nor is the row of a label without training rows, nor any
    row if features are not finite. Rows count with the weights of their classes.

    Args:
        rows: Their classes.
        on_rows: As :func:`fit_head` takes it.
    """
    split = some(split)
    classes = split.targets.astype(int)
    rows = [row for row in rows if model.task.kind.head_fit == "logistic" and (classes == row).any()]
    if not rows:
        return
    output, values = _output(model), model.head.named()
    layer = {
        name: values[f"{output}.{name}"].detach()
        for name in ("weight", "bias")
        if f"{output}.{name}" in values
    }
    features = _features(model, split, on_rows)
    if not np.isfinite(features).all():
        return
    weight = layer["weight"].double().cpu().numpy()
    bias = layer["bias"].double().cpu().numpy() if "bias" in layer else np.zeros(len(weight))
    weights = None if model.class_weights is None else model.class_weights.tolist()
    weight, bias = logistic_rows(
        features, classes, (weight, bias), rows, weights=weights, free_bias="bias" in layer
    )
    fitted = {f"{output}.weight": weight, f"{output}.bias": bias}
    model.head.copy_(
        {
            name: torch.from_numpy(fitted[name]).to(value) if name in fitted else value.detach()
            for name, value in values.items()
        }
    )


def soften_head(
    model: PTuningModel, split: Split, losses: Callable[[Split, Tensor], tuple[float, float]]
) -> None:
    """Make the last layer of an untrained head smaller if its first logits are large.

    The layer is scaled so that the logits have a root mean square of :data:`FIRST_LOGITS` on the first
    :data:`FEW` rows. A head that is better than a constant answer has been trained, and is not changed.

    Args:
        losses: For rows and the model's logits, the model's loss and that of a constant answer.
    """
    if not trains_head(model.prompt_config) or not model.head.names:
        return
    few = Split(rows=split.rows[:FEW], targets=split.targets[:FEW])
    output, values = _output(model), model.head.named()
    layer = {name: values[name] for name in values if name.rpartition(".")[0] == output}
    weight, bias = layer[f"{output}.weight"], layer.get(f"{output}.bias")
    seen, logits = _inputs(model, output, few.rows)
    features = torch.cat([each.flatten(0, -2) for each in seen]).to(weight)
    size = float(torch.nn.functional.linear(features, weight, bias).detach().square().mean().sqrt())
    if not math.isfinite(size) or size <= FIRST_LOGITS:
        return
    found, constant = losses(few, logits)
    if found > constant:
        scaled = {name: value.detach() * (FIRST_LOGITS / size) for name, value in layer.items()}
        model.head.copy_({**{name: value.detach() for name, value in values.items()}, **scaled})


def some(split: Split) -> Split:
    """At most :data:`MAX_ROWS` of the rows, always the same sample."""
    if len(split.rows) <= MAX_ROWS:
        return split
    chosen = np.random.default_rng(0).choice(len(split.rows), MAX_ROWS, replace=False)
    return replace(split, rows=[split.rows[i] for i in chosen], targets=split.targets[chosen])


def explained(model: PTuningModel, split: Split) -> float | None:
    """The share of a constant answer's loss that a fitted head removes on the untrained model, at least 0.

    By cross-validation; ``None`` if it cannot be estimated.
    """
    if model.task.kind.head_fit is None:
        return None
    fit, targets = HEAD_FITS[model.task.kind.head_fit], split.targets
    if not fit.can_estimate(targets):
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
    """``[N, H]``: the input of the head's last layer for each row, the mean over its windows."""
    counts = [len(row.windows) for row in split.rows]
    done = 0

    def on_batch(rows: int) -> None:
        nonlocal done
        done += rows
        on_rows(done, sum(counts))

    seen, _ = _inputs(model, _output(model), split.rows, on_batch)
    lengths = list(map(len, windows_of(split.rows)))
    order = [row for batch in sorted_batches(lengths, None, BATCH_TOKENS) for row in batch]
    found = torch.empty(len(order), seen[0].shape[-1])
    found[order] = torch.cat(seen)
    return mean_of_windows(found, counts).numpy().astype(np.float64)


def _inputs(
    model: PTuningModel,
    layer: str,
    rows: Sequence[TokenRow],
    on_batch: Callable[[int], None] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The inputs of a layer of the head, in fp32 on the CPU, a tensor per batch; and the logits."""
    model = model.twin().eval()  # a copy, so that the hook does not see another thread's batches
    seen: list[Tensor] = []
    module = model.backbone.model.get_submodule(layer)
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        logits = logits_of(model, rows, on_batch=on_batch)
    finally:
        hook.remove()
    return seen, logits


def ridge(features: NDArray[np.float64], targets: NDArray[np.float64], *, free_bias: bool = True) -> Layer:
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
    features: NDArray[np.float64],
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
    features: NDArray[np.float64],
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

    def cost(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
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
