"""Metrics, the baseline that a model has to beat, and which of two evaluations is better."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptuning.errors import ConfigError
from ptuning.kinds import metric_named
from ptuning.task import Task

Floats = NDArray[np.float64]
Metrics = dict[str, float]


def measure(logits: Floats, targets: Floats, task: Task) -> Metrics:
    """The metrics of ``logits`` ``[N, C]`` against ``targets``, ``[N]`` or ``[N, C]``, apart from the loss.

    A metric that the rows leave undefined (F1, Matthews and AUC with one class among them, a correlation with
    constant predictions) is left out rather than reported as a number.
    """
    return task.kind.measure(logits, targets, task)


def effective_rows(metric: str, targets: Floats, task: Task) -> float:
    """The number of rows that a metric depends on: few, if it is about a rare label."""
    return task.kind.effective_rows(metric, targets, task)


def standard_error(metric: str, value: float, rows: float) -> float:
    """The approximate standard error of a metric over so many :func:`effective_rows`."""
    return metric_named(metric).standard_error(value, rows)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The constant answer that a model must beat: the training set's majority class, label set, or mean.

    Attributes:
        rule: The constant answer, in words.
        logits: ``[C]``, the constant answer.
        shares: ``[C]``, the share of the training rows with each label. As probabilities they have the lowest
            loss of all constant answers; full confidence in the most frequent label would have a huge loss.
            Empty for a regression, where the mean is the best constant answer by any measure, and in
            adapters of older versions.
    """

    rule: str
    logits: tuple[float, ...]
    shares: tuple[float, ...] = ()

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Baseline:
        """The inverse of ``dataclasses.asdict``, from an adapter's JSON."""
        return cls(
            rule=str(values["rule"]),
            logits=tuple(map(float, values["logits"])),
            shares=tuple(map(float, values.get("shares", ()))),
        )

    @classmethod
    def of(cls, targets: Floats, task: Task) -> Baseline:
        """The baseline for these training targets."""
        return cls(**task.kind.constant_answer(targets, task)._asdict())

    def measure(self, targets: Floats, task: Task, weights: Sequence[float] | None = None) -> Metrics:
        """The metrics of the constant answer, with the same loss as the model's; a correlation counts as 0.

        Metrics that are undefined for these rows are left out.

        Args:
            weights: Weight per class, as in the loss.
        """
        return task.kind.measure_constant(self.logits, self.shares, targets, task, weights)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Decides which of two evaluations is better.

    Attributes:
        metric: The metric that is compared.
        note: Why that is not the main metric of the kind of task, in a sentence.
        greater_is_better: Whether a larger value is better; inferred from the name if left out.
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
        """The metric that a configuration asks for. With ``auto``, the loss if the main metric is undefined.

        Args:
            floor: The metrics of a constant answer on the validation rows, if they are known.
            greater_is_better: Whether a larger value is better; inferred from the name if left out.
            own: The names of a user's metrics.

        Raises:
            ConfigError: a metric that this kind of task does not have, or that is undefined for the rows.
        """
        kind = task.kind
        metric = kind.main_metric if select_by == "auto" else select_by
        known = [each.name for each in kind.metrics]
        if metric in own:
            return cls(metric=metric, greater_is_better=greater_is_better)
        if metric not in known:
            raise ConfigError(
                "fit.select_by",
                got=repr(select_by),
                expected=f"one of {', '.join(('auto', *known, *own))} for {kind.name}",
            )
        greater = not metric_named(metric).lower_is_better
        if greater_is_better not in (None, greater):
            raise ConfigError(
                "fit.greater_is_better",
                got=str(greater_is_better).lower(),
                expected=f"{str(greater).lower()} for {metric}",
                remedy="leave it out",
            )
        never_wrong = floor is not None and greater and floor.get(metric) == 1
        if floor is None or (metric in floor and not never_wrong):
            return cls(metric=metric)
        why = (
            f"a constant answer is right for every validation row, so {metric} cannot compare models"
            if never_wrong
            else f"the validation rows leave {metric} undefined"
        )
        needed = "rows of every label" if never_wrong else kind.varied_rows
        if select_by != "auto":
            raise ConfigError(
                f"fit.select_by: {why}",
                expected=needed,
                remedy="give others in data.validation, or select by loss",
            )
        return cls(
            metric="loss", note=f"{why} (it needs {needed}): the loss selects the best checkpoint instead"
        )

    @property
    def sign(self) -> int:
        greater = self.greater_is_better
        return 1 if (not metric_named(self.metric).lower_is_better if greater is None else greater) else -1

    def key(self, found: Mapping[str, float]) -> tuple[float, float]:
        """The sort key: larger is better. With a tie, the lower loss wins. Undefined is the worst."""
        value = found.get(self.metric)
        return (-np.inf if value is None else self.sign * value, -found.get("loss", np.inf))

    def beats(self, found: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Whether ``found`` is better than ``other`` by the metric alone."""
        return self.key(found)[0] > self.key(other)[0]
