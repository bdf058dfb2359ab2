"""The results of one run, and of several runs, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from ptuning.kinds import metric_named

Kind = Literal["not learned", "diverged", "overfitting", "saturated"]

IN_ORDER = "ry, in this order: "
"""The end of the words before the list of things to try, if the most promising comes first."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What went wrong in a run or could be better, and what to try.

    Attributes:
        kind: ``not learned``: no better than a constant answer. ``diverged``: the training loss rose and
            stayed up. ``overfitting``: the validation metric got worse while the training loss fell.
            ``saturated``: most of the run brought no improvement.
        paragraph: The observation, in figures, and the options to try; one line.
    """

    kind: Kind
    paragraph: str

    @property
    def serious(self) -> bool:
        """Whether the run failed; otherwise this is a note, and the adapter can be used."""
        return self.kind in ("not learned", "diverged")

    @property
    def first(self) -> str | None:
        """What to try first, if the advice has an order."""
        _, found, tries = self.paragraph.partition(IN_ORDER)
        return tries.split("; ")[0].removesuffix(".") if found else None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation on the validation rows.

    Attributes:
        epoch: How far the run was, in epochs.
        step: Optimizer steps done.
        train_loss: Mean loss of the training rows since the last evaluation; at step 0, before
            the first step.
        metrics: On the validation rows, ``loss`` included.
    """

    epoch: float
    step: int
    train_loss: float
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a run.

    Attributes:
        metric: The metric that selected the best checkpoint.
        best: The best evaluation.
        averaged: The adapter has the mean of these evaluations' parameters; only one if nothing was averaged.
        history: Every evaluation, in order.
        metrics: The adapter's metrics, by split (``validation``, and ``test`` if there is one).
        baseline: The metrics of a constant answer, by split.
        baseline_rule: That answer, in words.
        trained: How many parameters were trained.
        total: How many parameters the model has.
        seconds: Wall time of the run, including the time before it was resumed.
        examples_per_second: Training rows per second, without the time for evaluation.
        stopped_early: Whether patience ran out, or a callback stopped the run.
        adapter: Where the adapter was saved, if it was.
        setting: Rows per split, learning rates, the recipe's choices and more.
        diagnosis: What went wrong or could go better, and what to try; ``None`` for a run that went well.
        greater_is_better: Whether a larger ``metric`` is better.
        calibration: How the probabilities were calibrated: ``rows``, ``temperature``, ``thresholds``, and by
            split the figures (``ece``, ``log_loss``, …) ``before`` and ``after``; ``None`` if they were not.
    """

    metric: str
    best: Evaluation
    history: tuple[Evaluation, ...]
    metrics: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Mapping[str, float]]
    baseline_rule: str
    trained: int
    total: int
    seconds: float
    examples_per_second: float
    stopped_early: bool = False
    adapter: Path | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)
    averaged: tuple[Evaluation, ...] = ()
    diagnosis: Diagnosis | None = None
    greater_is_better: bool | None = None
    calibration: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.greater_is_better is None:  # results of older versions have none
            object.__setattr__(self, "greater_is_better", not metric_named(self.metric).lower_is_better)

    @property
    def kept(self) -> str:
        """Which checkpoint was kept, in words."""
        if len(self.averaged) < 2:
            return f"the checkpoint of epoch {self.best.epoch:g}"
        *others, last = (f"{each.epoch:.3g}" for each in self.averaged)
        return f"the mean of the checkpoints of epochs {', '.join(others)} and {last}"

    @property
    def reported(self) -> str:
        """The split whose figures count: ``test`` if there is one, else ``validation``."""
        return "test" if "test" in self.metrics else "validation"

    @property
    def beats_baseline(self) -> bool:
        """Whether the adapter is better than the constant answer, on the validation rows."""
        reached = self.metrics["validation"].get(self.metric)
        floor = self.baseline["validation"].get(self.metric)
        if reached is None or floor is None:
            return reached is not None
        return reached > floor if self.greater_is_better else reached < floor

    @property
    def learned(self) -> bool:
        """False if the diagnosis is ``NOT LEARNED``; the model card reports it."""
        return self.diagnosis is None or self.diagnosis.kind != "not learned"

    @property
    def advice(self) -> str | None:
        """The diagnosis in one paragraph, if there is one. It starts with ``NOTE`` if nothing failed."""
        return None if self.diagnosis is None else self.diagnosis.paragraph

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            **asdict(self),
            "adapter": None if self.adapter is None else str(self.adapter),
            "beats_baseline": self.beats_baseline,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainResult:
        """The inverse of :meth:`to_dict`, from JSON."""
        fields = {name: value for name, value in values.items() if name != "beats_baseline"}
        diagnosis = values.get("diagnosis")
        return cls(
            **{
                **fields,
                "best": Evaluation(**values["best"]),
                "history": tuple(Evaluation(**each) for each in values["history"]),
                "averaged": tuple(Evaluation(**each) for each in values.get("averaged", ())),
                "adapter": None if values["adapter"] is None else Path(values["adapter"]),
                "diagnosis": None if diagnosis is None else Diagnosis(**diagnosis),
            }
        )


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """One run of several.

    Attributes:
        name: Such as ``seed-1_learning_rate-0.03``; the run is in ``OUTPUT.run/NAME`` and ``NAME.run``.
        values: The values that it varies, by option of ``fit``.
        result: Its result; ``None`` if it diverged.
        diverged: The error message, if it diverged.
    """

    name: str
    values: Mapping[str, int | float]
    result: TrainResult | None
    diverged: str | None = None

    def to_dict(self) -> dict[str, Any]:
        found = self.result
        if found is None:
            return {"name": self.name, "values": dict(self.values), "diverged": self.diverged}
        return {
            "name": self.name,
            "values": dict(self.values),
            "best_epoch": found.best.epoch,
            "metrics": found.metrics,
            "baseline": found.baseline,
            "beats_baseline": found.beats_baseline,
            "diagnosis": None if found.diagnosis is None else found.diagnosis.kind,
            "stopped_early": found.stopped_early,
            "seconds": found.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """Runs that only differ in their seed.

    Attributes:
        values: The other varied values, which they have in common, by option of ``fit``.
        runs: Their names.
        metrics: Mean and sample standard deviation by split and metric, for the metrics that all of the runs
            have.
    """

    values: Mapping[str, int | float]
    runs: tuple[str, ...]
    metrics: Mapping[str, Mapping[str, tuple[float, float]]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "values": dict(self.values),
            "runs": list(self.runs),
            "metrics": {
                split: {name: {"mean": mean, "sd": sd} for name, (mean, sd) in found.items()}
                for split, found in self.metrics.items()
            },
        }


@dataclass(frozen=True, kw_only=True)
class SeveralResult:
    """The results of several runs on one backbone.

    Attributes:
        metric: The validation metric that selected each run's checkpoint, and the best run; the loss, if a
            metric is undefined for some seed's validation rows.
        runs: In the order in which they ran.
        best: The best run; with a tie, the first.
        adapter: The folder of its adapter.
    """

    metric: str
    runs: tuple[OneRun, ...]
    best: OneRun
    adapter: Path

    @property
    def over_seeds(self) -> tuple[OverSeeds, ...]:
        """Means and standard deviations of all groups of runs that only differ in their seed."""
        groups: dict[tuple[tuple[str, int | float], ...], list[OneRun]] = {}
        for run in self.runs:
            if run.result is not None and "seed" in run.values:
                common = tuple((name, value) for name, value in run.values.items() if name != "seed")
                groups.setdefault(common, []).append(run)
        return tuple(_over_seeds(dict(common), found) for common, found in groups.items() if len(found) > 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "metric": self.metric,
            "best": self.best.name,
            "runs": [run.to_dict() for run in self.runs],
            "over_seeds": [group.to_dict() for group in self.over_seeds],
        }


def _over_seeds(common: Mapping[str, int | float], runs: Sequence[OneRun]) -> OverSeeds:
    found = [run.result.metrics for run in runs if run.result is not None]
    metrics = {
        split: {
            name: (fmean(values), stdev(values))
            for name in found[0][split]
            if len(values := [each[split][name] for each in found if name in each[split]]) == len(found)
        }
        for split in found[0]
    }
    return OverSeeds(values=common, runs=tuple(run.name for run in runs), metrics=metrics)
