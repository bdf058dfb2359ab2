"""What a run found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One look at the validation rows.

    Attributes:
        epoch: How far the run was, in epochs.
        step: Optimizer steps done.
        train_loss: Mean loss of the training rows since the last look.
        metrics: Of the validation rows, ``loss`` included.
    """

    epoch: float
    step: int
    train_loss: float
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run found.

    Attributes:
        metric: The metric that picked the best checkpoint.
        best: The evaluation it was picked at.
        history: Every evaluation, in order.
        metrics: By split (``validation``, and ``test`` if there is one), of the best checkpoint.
        baseline: By split, what a constant answer scores.
        baseline_rule: That answer, in words.
        trained: How many numbers were trained.
        total: How many the model has.
        seconds: Wall time of the run; a resumed run's parts are added.
        examples_per_second: Training rows a second, evaluation aside.
        stopped_early: Whether patience ran out.
        adapter: Where the adapter was saved, if it was.
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

    @property
    def reported(self) -> str:
        """The split whose figures count: ``test`` if there is one, else ``validation``."""
        return "test" if "test" in self.metrics else "validation"

    @property
    def beats_baseline(self) -> bool:
        """Whether the best checkpoint is better than the constant answer, on the validation rows."""
        lower = self.metric in ("loss", "mse", "mae")
        mine = self.metrics["validation"].get(self.metric)
        floor = self.baseline["validation"].get(self.metric)
        if mine is None or floor is None:
            return mine is not None
        return mine < floor if lower else mine > floor

    @property
    def advice(self) -> str | None:
        """What to try, in one paragraph, for a run that learned nothing; ``None`` for one that did."""
        if self.beats_baseline:
            return None
        mine = self.metrics["validation"].get(self.metric)
        floor = self.baseline["validation"].get(self.metric)
        return (
            f"NOT LEARNED: on the validation rows the best {self.metric} is "
            f"{'undefined' if mine is None else format(mine, '.3f')}, and {self.baseline_rule} scores "
            f"{'-' if floor is None else format(floor, '.3f')}. Do not use this adapter. Try, in this order: "
            "a deep prompt if this was an input one (--prompt.depth deep); ten times or a tenth of "
            "--fit.prompt_rate and --fit.head_rate; more --fit.epochs; more rows; and look at the labels "
            "with: ptuning check-data"
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            **asdict(self),
            "adapter": None if self.adapter is None else str(self.adapter),
            "beats_baseline": self.beats_baseline,
        }
