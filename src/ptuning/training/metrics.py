"""Metrics, by scikit-learn and scipy, always beside the baseline that a model has to beat."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, softmax, xlogy
from sklearn import metrics as sk

from ptuning.errors import ConfigError
from ptuning.task import Task

Floats = NDArray[np.float64]
Metrics = dict[str, float]

MAIN = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "f1_micro",
    "regression": "pearson",
}
"""The metric that selects and that a run is judged by, unless ``select_by`` says otherwise."""

LOWER_IS_BETTER = frozenset({"loss", "mse", "mae"})


def greater_is_better(metric: str) -> bool:
    """Whether more of ``metric`` is better, as its name says: not of errors, nor of what ends in ``loss``."""
    return metric not in LOWER_IS_BETTER and not metric.endswith("loss")


OF_HOW_SURE = frozenset({"loss", "auc"})
"""Metrics of classes that change with how sure an answer is, even if it stays the same answer."""


def measure(logits: Floats, targets: Floats, task: Task) -> Metrics:
    """What can be said of ``logits`` ``[N, C]`` against ``targets``, ``[N]`` or ``[N, C]``.

    A metric that the rows leave undefined (F1, Matthews and AUC with one class among them, a correlation with
    constant predictions) is left out rather than reported as a number.
    """
    match task.problem_type:
        case "regression":
            found = _regression(logits[:, 0], targets)
        case "multi_label_classification":
            found = _multi_label(expit(logits), targets)
        case "single_label_classification":
            found = _single_label(softmax(logits, axis=1), targets.astype(int))
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def _single_label(probabilities: Floats, targets: NDArray[np.int_]) -> Metrics:
    predicted = probabilities.argmax(1)
    seen, binary = len(np.unique(targets)), probabilities.shape[1] == 2
    found = {"accuracy": sk.accuracy_score(targets, predicted)}
    if seen < 2:
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that no row has, or no answer is
        average = "binary" if binary else "macro"
        found["f1"] = sk.f1_score(targets, predicted, average=average, zero_division=0.0)
        found["matthews"] = sk.matthews_corrcoef(targets, predicted)
        if binary:
            found["auc"] = sk.roc_auc_score(targets, probabilities[:, 1])
        elif seen == probabilities.shape[1]:
            found["auc"] = sk.roc_auc_score(targets, probabilities, multi_class="ovr")
    return found


def _multi_label(probabilities: Floats, targets: Floats) -> Metrics:
    predicted = probabilities > 0.5
    truth = targets > 0.5
    one = truth.shape[1] == 1  # scikit-learn takes a single label for two classes, "has it not" one of them
    found = {"exact_match": float((predicted == truth).all(axis=1).mean())}
    if truth.any():
        found |= {
            f"f1_{average}": sk.f1_score(
                truth, predicted, average="binary" if one else average, zero_division=0.0
            )
            for average in ("micro", "macro")
        }
    both = truth.any(axis=0) & (~truth).any(axis=0)
    if both.any():
        found["auc"] = sk.roc_auc_score(truth[:, both], probabilities[:, both], average="macro")
    return found


def _regression(predicted: Floats, targets: Floats) -> Metrics:
    found = {
        "mse": sk.mean_squared_error(targets, predicted),
        "mae": sk.mean_absolute_error(targets, predicted),
    }
    if len(targets) > 1 and np.ptp(predicted) > 0 and np.ptp(targets) > 0:
        found["pearson"] = stats.pearsonr(predicted, targets).statistic
        found["spearman"] = stats.spearmanr(predicted, targets).statistic
    return found


def effective_rows(metric: str, targets: Floats, task: Task) -> float:
    """How many rows a metric hangs on: few, where it is one of a rare label, however many others there are.

    Twice a label's rows, as balanced classes have; in a mean over labels, each counts as much as the others.
    """
    rows = float(len(targets))
    if metric not in ("f1", "f1_micro", "f1_macro", "matthews", "auc"):
        return rows
    counts = shares_of(targets, task) * rows
    if metric == "f1_micro":
        return min(rows, max(1.0, 2 * float(counts.sum())))
    if len(counts) == 2 and task.problem_type == "single_label_classification":
        return min(rows, max(1.0, 2 * float(counts[1] if metric == "f1" else counts.min())))
    each = np.minimum(rows, 2 * counts[counts > 0])
    return min(rows, float(len(each) ** 2 / (1 / each).sum())) if len(each) else rows


def standard_error(metric: str, value: float, rows: float) -> float:
    """About how far chance moves a metric over so many :func:`effective_rows`."""
    # A mean of squares, and roughly of the other losses; a user's metric that is no share is taken for one.
    if metric in LOWER_IS_BETTER or (metric not in _ALL_KNOWN and not 0 <= value <= 1):
        return abs(value) * math.sqrt(2 / rows)
    if metric in ("pearson", "spearman"):
        return max(1 - value**2, 1 / rows) / math.sqrt(max(rows - 1, 1))
    if metric == "matthews":
        return math.sqrt(max(1 - value**2, 1 / rows) / rows)
    share = (min(max(value, 0.0), 1.0) * rows + 1) / (rows + 2)  # never 0: all of ten rows is not all of all
    return math.sqrt(share * (1 - share) / rows)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What no model would reach: always the training set's majority class, label set, or mean.

    Attributes:
        rule: What it always answers, in words.
        logits: ``[C]``, the constant answer.
        shares: ``[C]``, the share of the training rows that have each label: no constant answer has a lower
            loss over them, where being sure of the most frequent label would have a huge one. None in a
            regression, whose mean is both answers, nor in an adapter of an older version.
    """

    rule: str
    logits: tuple[float, ...]
    shares: tuple[float, ...] = ()

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Baseline:
        """The inverse of ``dataclasses.asdict``, as an adapter's JSON holds it."""
        return cls(
            rule=str(values["rule"]),
            logits=tuple(map(float, values["logits"])),
            shares=tuple(map(float, values.get("shares", ()))),
        )

    @classmethod
    def of(cls, targets: Floats, task: Task) -> Baseline:
        """The baseline that the training targets give."""
        if task.is_regression:
            return cls(rule=f"always the mean, {targets.mean():.4g}", logits=(float(targets.mean()),))
        none = 0.5 / len(targets)  # a label that no row has, or every row, may be otherwise in other rows
        shares = tuple(np.clip(shares_of(targets, task), none, 1 - none).tolist())
        if task.problem_type == "multi_label_classification":
            sets, counts = np.unique(targets > 0.5, axis=0, return_counts=True)
            usual = sets[counts.argmax()]
            names = [repr(label) for label, has in zip(task.labels, usual, strict=True) if has]
            return cls(
                rule=f"always {' and '.join(names) or 'no label'}",
                logits=tuple(20.0 if has else -20.0 for has in usual),
                shares=shares,
            )
        counts = np.bincount(targets.astype(int), minlength=task.num_labels)
        usual = int(counts.argmax())
        return cls(
            rule=f"always {task.labels[usual]!r}",
            logits=tuple(20.0 if label == usual else 0.0 for label in range(task.num_labels)),
            shares=shares,
        )

    def measure(self, targets: Floats, task: Task, weights: Sequence[float] | None = None) -> Metrics:
        """What the constant answer scores, its loss as a model's is; a correlation with a constant is 0.

        What is not there these rows leave undefined, whatever a model answers.

        Args:
            weights: Of the classes, as the loss has them.
        """
        found = measure(np.tile(np.array(self.logits), (len(targets), 1)), targets, task)
        if task.is_regression:
            correlations = {"pearson": 0.0, "spearman": 0.0} if np.ptp(targets) > 0 else {}
            loss = {"loss": found["mse"] / task.scale**2} if "mse" in found else {}
            return {**loss, **found, **correlations}
        if not self.shares:
            return found
        return {"loss": constant_loss(np.array(self.shares), targets, task, weights), **found}


def shares_of(targets: Floats, task: Task) -> Floats:
    """``[C]``: the share of the rows that have each label."""
    several = task.problem_type == "multi_label_classification"
    counts = targets.sum(0) if several else np.bincount(targets.astype(int), minlength=task.num_labels)
    return np.asarray(counts / len(targets), dtype=np.float64)


def constant_loss(
    shares: Floats, targets: Floats, task: Task, weights: Sequence[float] | None = None
) -> float:
    """The loss over ``targets`` of the constant answer that is best for rows with these ``shares`` of labels.

    Args:
        weights: Of the classes, as the loss has them; for several labels, of each one's positives.
    """
    weigh = np.ones(task.num_labels) if weights is None else np.asarray(weights, dtype=float)
    seen = shares_of(targets, task)
    if task.problem_type == "multi_label_classification":
        answer = weigh * shares / (weigh * shares + 1 - shares)
        return float(-(xlogy(weigh * seen, answer) + xlogy(1 - seen, 1 - answer)).mean())
    answer, seen = (weigh * each / (weigh * each).sum() for each in (shares, seen))
    return float(-xlogy(seen, answer).sum())


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of two evaluations is the better one.

    Attributes:
        metric: What they are compared by.
        note: Why that is not what the kind of task is compared by, in a sentence.
        greater_is_better: Whether more of it is better; if left out, as its name says.
    """

    metric: str
    note: str | None = None
    greater_is_better: bool | None = None

    @classmethod
    def for_task(
        cls,
        select_by: str,
        task: Task,
        floor: Mapping[str, float] | None = None,
        *,
        greater_is_better: bool | None = None,
        own: Collection[str] = (),
    ) -> Selection:
        """The metric that a configuration asks for; by default the loss, where the rows leave no other.

        Args:
            floor: What a constant answer scores on the rows that select, where they are known.
            greater_is_better: Whether more of the metric is better; if left out, as its name says.
            own: The names of a user's metrics.

        Raises:
            ConfigError: a metric that this kind of task does not have, or that the rows leave undefined.
        """
        metric = MAIN[task.problem_type] if select_by == "auto" else select_by
        known = _KNOWN[task.problem_type]
        if metric in own:
            return cls(metric=metric, greater_is_better=greater_is_better)
        if metric not in known:
            names = ", ".join(("auto", *known, *own))
            raise ConfigError(
                "fit.select_by", got=repr(select_by), expected=f"one of {names} for {task.problem_type}"
            )
        if greater_is_better not in (None, metric not in LOWER_IS_BETTER):
            raise ConfigError(
                "fit.greater_is_better",
                got=str(greater_is_better).lower(),
                expected=f"{str(metric not in LOWER_IS_BETTER).lower()} for {metric}",
                remedy="leave it out",
            )
        never_wrong = floor is not None and metric not in LOWER_IS_BETTER and floor.get(metric) == 1
        if floor is None or (metric in floor and not never_wrong):
            return cls(metric=metric)
        wanted = "scores that differ" if task.is_regression else "rows of every label"
        why = (
            f"a constant answer is right for every validation row, so {metric} tells nothing of a model, and "
            "no other metric much: they should have rows of every label"
            if never_wrong
            else f"the validation rows leave {metric} undefined, which takes {wanted}"
        )
        if select_by != "auto":
            raise ConfigError(f"fit.select_by: {why}; give others in data.validation, or select by loss")
        return cls(metric="loss", note=f"{why}: the loss selects the best checkpoint instead")

    @property
    def sign(self) -> int:
        greater = self.greater_is_better
        return 1 if (greater_is_better(self.metric) if greater is None else greater) else -1

    def key(self, found: Mapping[str, float]) -> tuple[float, float]:
        """Larger is better; of equals, the lower loss. An undefined metric is the worst."""
        value = found.get(self.metric)
        return (-np.inf if value is None else self.sign * value, -found.get("loss", np.inf))

    def beats(self, found: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Whether ``found`` is better than ``other`` by the metric alone."""
        return self.key(found)[0] > self.key(other)[0]


_KNOWN = {
    "single_label_classification": ("loss", "accuracy", "f1", "matthews", "auc"),
    "multi_label_classification": ("loss", "f1_micro", "f1_macro", "exact_match", "auc"),
    "regression": ("loss", "mse", "mae", "pearson", "spearman"),
}

_ALL_KNOWN = frozenset(name for names in _KNOWN.values() for name in names)
