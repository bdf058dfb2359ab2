"""Confidence intervals of the metrics, by the bootstrap (Efron 1979): rows are drawn again, with replacement.

A resample is a row of counts ``W`` ``[R, N]``: how often each of the N rows was drawn. Every metric is
computed for all resamples at once. :func:`intervals` leaves out what it would have to guess: a metric of the
user's own, or one whose value here is not the reported one (a user's own loss).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import log_softmax

from ptuning.kinds import LabelForm
from ptuning.report.data import Floats, Rows
from ptuning.report.figures.outcomes import outcomes, predicted_numbers
from ptuning.task import Task

RESAMPLES = 1000
LEVEL = 0.95
FEWEST = 200
_DRAWS = 5_000_000
"""How many rows are drawn over all resamples: with many rows there are fewer of them, for narrow bounds."""
_AT_ONCE = 2_000_000
"""Maximum number of counts in memory at once."""
_RANKED = 5_000
"""Maximum number of rows times labels whose probabilities are ranked in every resample, for the mean AUC."""

Metrics = dict[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Confidence intervals of metrics.

    Attributes:
        resamples: How many there were.
        bounds: The lower and the upper bound, by metric.
    """

    resamples: int
    bounds: Mapping[str, tuple[float, float]]


def intervals(
    task: Task, rows: Rows, class_weights: Sequence[float] | None = None, *, seed: int = 0
) -> Intervals:
    """The 95 % percentile intervals of the metrics of ``rows``, which all have a target."""
    count = resamples_of(len(rows))
    if len(rows) < 2:
        return Intervals(resamples=count, bounds={})
    statistics = Statistics(task, rows, class_weights)
    exact = statistics.of(np.ones((1, len(rows))))
    drawn = [statistics.of(part) for part in counts(len(rows), count, seed)]
    bounds = {}
    for name, value in exact.items():
        values = np.concatenate([part[name] for part in drawn])
        reported = rows.metrics.get(name)
        if reported is None or not np.isclose(reported, value[0], rtol=1e-3, atol=1e-6):
            continue
        if (found := bounds_of(values)) is not None:
            bounds[name] = found
    return Intervals(resamples=count, bounds=bounds)


def resamples_of(rows: int) -> int:
    """How many resamples are drawn of so many rows."""
    return int(np.clip(_DRAWS // max(rows, 1), FEWEST, RESAMPLES))


def bounds_of(values: Floats) -> tuple[float, float] | None:
    """The interval of a metric from its values ``[R]`` in all resamples.

    ``None`` if it is undefined in half of them or more, or the same in all of them: then no row is wrong, for
    example, and the resamples do not say how often one would be.
    """
    if np.isfinite(values).mean() < 0.5:
        return None
    low, high = np.nanpercentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return (float(low), float(high)) if low < high else None


def counts(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row was drawn, ``[R, N]``, in parts that fit into memory."""
    generator, size = np.random.default_rng(seed), max(1, _AT_ONCE // rows)
    for start in range(0, resamples, size):
        some = min(size, resamples - start)
        drawn = generator.integers(rows, size=(some, rows)) + rows * np.arange(some)[:, None]
        yield np.bincount(drawn.ravel(), minlength=some * rows).reshape(some, rows).astype(np.float64)


class Statistics:
    """Metrics of weighted rows, by name; NaN where they are undefined."""

    def __init__(self, task: Task, rows: Rows, class_weights: Sequence[float] | None) -> None:
        self._task, self._rows, self._form = task, rows, task.kind.form
        if self._form is LabelForm.NUMBER:
            self._said = predicted_numbers(task, rows)
            return
        found = self._found = outcomes(task, rows)
        if self._form is LabelForm.ONE:
            self._truth = _one_hot(found.truth, task.num_labels)
            self._predicted = _one_hot(found.predicted, task.num_labels)
            self._hits = self._truth.multiply(self._predicted).tocsr()
            weight = np.ones(task.num_labels) if class_weights is None else np.asarray(class_weights)
            self._weight = weight[found.truth]
            losses = -log_softmax(rows.logits, axis=1)[np.arange(len(rows)), found.truth]
            self._loss = self._weight * losses
        else:
            truth, predicted = found.truth, found.predicted
            self._truth, self._predicted = sparse.csr_matrix(truth), sparse.csr_matrix(predicted)
            self._hits = sparse.csr_matrix(truth & predicted)
            weight = np.ones(task.num_labels) if class_weights is None else np.asarray(class_weights)
            signed = np.where(truth, weight * np.logaddexp(0, -rows.logits), np.logaddexp(0, rows.logits))
            self._loss, self._weight = signed.mean(axis=1), np.ones(len(rows))

    def of(self, w: Floats) -> Metrics:
        """The metrics of each resample, ``[R]``.

        Args:
            w: ``[R, N]``.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            if self._form is LabelForm.NUMBER:
                return self._numbers(w)
            right = w @ self._found.right / w.sum(axis=1)
            common = {"loss": w @ self._loss / (w @ self._weight)}
            true, said, hits = (_summed(w, each) for each in (self._truth, self._predicted, self._hits))
            f1 = 2 * hits / (true + said)
            if self._form is LabelForm.ONE:
                return {**common, "accuracy": right, **self._one(w, true, said, hits, f1)}
            return {**common, "exact_match": right, **self._several(w, true, said, hits, f1)}

    def _one(self, w: Floats, true: Floats, said: Floats, hits: Floats, f1: Floats) -> Metrics:
        total = w.sum(axis=1)
        undefined = (true > 0).sum(axis=1) < 2
        spread = (total**2 - (said**2).sum(1)) * (total**2 - (true**2).sum(1))
        matthews = (hits.sum(1) * total - (said * true).sum(1)) / np.sqrt(spread)
        matthews = np.where(spread > 0, matthews, 0.0)
        chances = self._found.probabilities
        if (classes := chances.shape[1]) == 2:
            found = {"f1": np.where(np.isnan(f1[:, 1]), 0.0, f1[:, 1]), "auc": self._auc(w, 1)}
        else:
            found = {"f1": np.nanmean(f1, axis=1)}
            if classes * len(chances) <= _RANKED:
                found["auc"] = np.mean([self._auc(w, each) for each in range(classes)], axis=0)
        found["matthews"] = matthews
        return {name: np.where(undefined, np.nan, values) for name, values in found.items()}

    def _several(self, w: Floats, true: Floats, said: Floats, hits: Floats, f1: Floats) -> Metrics:
        micro = 2 * hits.sum(1) / (true.sum(1) + said.sum(1))
        macro = np.where(np.isnan(f1), 0.0, f1).mean(axis=1)
        found = {"f1_micro": micro, "f1_macro": macro}
        found = {name: np.where(true.sum(1) > 0, values, np.nan) for name, values in found.items()}
        if self._truth.shape[0] * self._truth.shape[1] <= _RANKED:
            each = np.array([self._auc(w, label) for label in range(true.shape[1])])
            with np.errstate(all="ignore"):
                found["auc"] = np.nansum(each, axis=0) / np.isfinite(each).sum(axis=0)
        return found

    def _auc(self, w: Floats, label: int) -> Floats:
        """The area under the ROC curve of a label: the Mann-Whitney statistic of midranks."""
        positive = self._truth[:, [label]].toarray()[:, 0] > 0
        ranks = midranks(self._found.probabilities[:, label], w)
        inside, outside = w @ positive, w @ ~positive
        return ((w * ranks) @ positive - inside * (inside + 1) / 2) / (inside * outside)

    def _numbers(self, w: Floats) -> Metrics:
        said, truth, total = self._said, self._rows.targets, w.sum(axis=1)
        mse = w @ np.square(said - truth) / total
        return {
            "loss": mse / self._task.scale**2,
            "mse": mse,
            "mae": w @ np.abs(said - truth) / total,
            "pearson": _correlation(w, np.broadcast_to(said, w.shape), np.broadcast_to(truth, w.shape)),
            "spearman": _correlation(w, midranks(said, w), midranks(truth, w)),
        }


def _one_hot(classes: np.ndarray, width: int) -> sparse.csr_matrix:
    rows = np.arange(len(classes))
    return sparse.csr_matrix((np.ones(len(classes)), (rows, classes)), shape=(len(classes), width))


def _summed(w: Floats, matrix: sparse.csr_matrix) -> Floats:
    """``w @ matrix``, ``[R, C]``."""
    return np.asarray((matrix.T @ w.T).T, dtype=np.float64)


def midranks(values: Floats, w: Floats) -> Floats:
    """The rank of each row among the drawn ones, ``[R, N]``; equal values share their mean rank."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    in_group = np.add.reduceat(w[:, order], starts, axis=1)
    middle = np.cumsum(in_group, axis=1) - in_group / 2 + 0.5
    group = np.searchsorted(starts, np.arange(len(values)), side="right") - 1
    ranks = np.empty_like(w)
    ranks[:, order] = middle[:, group]
    return ranks


def _correlation(w: Floats, x: Floats, y: Floats) -> Floats:
    """The correlation of each resample, NaN if it has no spread."""
    total = w.sum(axis=1, keepdims=True)
    x = x - (w * x).sum(axis=1, keepdims=True) / total
    y = y - (w * y).sum(axis=1, keepdims=True) / total
    product = np.sqrt((w * x * x).sum(1) * (w * y * y).sum(1))
    return np.where(product > 0, (w * x * y).sum(1) / product, np.nan)
