"""Regression: one number per row, standardised for training."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from ptuning.errors import ConfigError, DataError
from ptuning.kinds.base import Answer, ConstantAnswer, Kind, LabelForm, type_and_shape
from ptuning.kinds.metric import LOSS, Metric, correlation_error, mean_error

if TYPE_CHECKING:
    from torch import Tensor

    from ptuning.kinds.base import Floats
    from ptuning.task import Task

FURTHEST = 1e18
"""The maximum distance of a target from the training mean, in standard deviations: its square fits fp32."""
LEAST_SPREAD = 1e-5
"""The minimum standard deviation of targets, as a share of their mean: below it fp32 rounding is as large."""
QUANTILES = 10
"""Strata of a split by the size of the target."""


class Regression(Kind):
    """One number per row: squared error of standardised targets; predictions in the target's unit."""

    name = "regression"
    title = "regression"
    form = LabelForm.NUMBER
    metrics = (
        LOSS,
        Metric(name="mse", lower_is_better=True, standard_error=mean_error),
        Metric(name="mae", lower_is_better=True, standard_error=mean_error),
        Metric(name="pearson", standard_error=correlation_error),
        Metric(name="spearman", standard_error=correlation_error),
    )
    main_metric = "pearson"
    varied_rows = "scores that differ"
    baseline_rule = "always the mean of the training targets"
    transformers_name = name
    width = 1
    head_fit = "ridge"
    nan_targets_allowed = True

    def check(self, task: Task) -> None:
        if task.labels:
            raise ConfigError(
                "labels", got=list(task.labels), expected="none in a regression task", remedy="leave them out"
            )
        if not task.scale > 0:
            raise ConfigError(
                "scale",
                got=task.scale,
                expected="a number above 0 in a regression task",
                remedy="give the targets' standard deviation, or leave it out",
            )

    def is_pair_similarity(self, task: Task) -> bool:
        return True

    def is_fine_grained(self, task: Task) -> bool:
        return True

    def summary(self, task: Task) -> str:
        return "a score"

    def output(self, task: Task) -> str:
        return f"one number (trained on targets minus {task.mean:g}, divided by {task.scale:g})"

    # Labels in the data --------------------------------------------------------------------------------

    def scaling(self, targets: Sequence[float], where: str) -> tuple[float, float]:
        """The mean and the population standard deviation of the targets."""
        if min(targets) == max(targets):
            raise DataError(
                where,
                got=f"the target {targets[0]!r} in every row",
                expected="different numbers",
                remedy="check the label column, or add rows with other targets",
            )
        try:
            mean = math.fsum(targets) / len(targets)
            scale = math.sqrt(math.fsum((target - mean) ** 2 for target in targets) / len(targets))
        except OverflowError:
            scale = math.inf
        if not 0 < scale < math.inf:
            raise DataError(
                where,
                got=f"targets from {min(targets)!r} to {max(targets)!r}, whose standard deviation cannot be "
                "computed",
                expected="ordinary numbers",
                remedy="give them in another unit",
            )
        if scale < LEAST_SPREAD * abs(mean):
            raise DataError(
                where,
                got=f"targets of {mean:.9g} ± {scale:.3g}, too close for 32-bit numbers",
                expected="a standard deviation that is a larger share of the mean",
                remedy="subtract the same number from all of them",
            )
        return mean, scale

    def expected_target(self, target: float, task: Task) -> str | None:
        if abs(target - task.mean) > FURTHEST * task.scale:
            return f"a score like those in training, which are {task.mean:.3g} ± {task.scale:.3g}"
        return None

    def strata(self, targets: Sequence[object]) -> Sequence[Hashable]:
        """Quantiles."""
        numbers = [target for target in targets if isinstance(target, int | float)]
        bins = max(1, min(QUANTILES, len(numbers) // 5))
        ranked = sorted(range(len(numbers)), key=lambda index: (numbers[index], index))
        place = {index: rank * bins // len(ranked) for rank, index in enumerate(ranked)}
        return [place[index] for index in range(len(numbers))]

    # In the model ------------------------------------------------------------------------------------

    def as_targets(self, labels: Tensor, logits: Tensor, task: Task) -> Tensor:
        if labels.numel() != len(logits):
            raise DataError(
                "labels",
                got=type_and_shape(labels),
                expected=f"one label for each of {len(logits)} rows",
                remedy=self.label_remedy(task),
            )
        return labels.float().reshape(-1)

    def valid(self, targets: Tensor, task: Task) -> Tensor:
        return targets.isfinite()

    def wrong_target(self, value: float, targets: Tensor, task: Task) -> tuple[str, str]:
        return "a finite number", "remove the row"

    def label_remedy(self, task: Task) -> str:
        return "pass one number per row, [B]"

    def loss(self, logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None) -> Tensor:
        return ((logits.view(-1) - targets) / task.scale).square().mean()

    def logits(self, raw: Tensor, task: Task) -> Tensor:
        return raw * task.scale + task.mean

    def answer(self, logits: Sequence[float], task: Task) -> Answer:
        return Answer(float(logits[0]))

    # Metrics and baseline ------------------------------------------------------------------------------

    def scores(self, logits: Floats, targets: Floats, task: Task) -> Mapping[str, float]:
        import numpy as np
        from scipy import stats
        from sklearn import metrics as sk

        predicted = logits[:, 0]
        found = {
            "mse": sk.mean_squared_error(targets, predicted),
            "mae": sk.mean_absolute_error(targets, predicted),
        }
        if len(targets) > 1 and np.ptp(predicted) > 0 and np.ptp(targets) > 0:
            found["pearson"] = stats.pearsonr(predicted, targets).statistic
            found["spearman"] = stats.spearmanr(predicted, targets).statistic
        return found

    def constant_answer(self, targets: Floats, task: Task) -> ConstantAnswer:
        return ConstantAnswer(f"always the mean, {targets.mean():.4g}", (float(targets.mean()),))

    def measure_constant(
        self,
        logits: Sequence[float],
        shares: Sequence[float],
        targets: Floats,
        task: Task,
        weights: Sequence[float] | None,
    ) -> dict[str, float]:
        """A correlation with a constant counts as 0."""
        import numpy as np

        found = self.measure(np.tile(np.array(logits), (len(targets), 1)), targets, task)
        correlations = {"pearson": 0.0, "spearman": 0.0} if np.ptp(targets) > 0 else {}
        loss = {"loss": found["mse"] / task.scale**2} if "mse" in found else {}
        return {**loss, **found, **correlations}

    def reference_losses(
        self, targets: Floats, task: Task, weights: Sequence[float] | None
    ) -> tuple[float, float]:
        import numpy as np

        best, mean = (float(np.square(targets - at).mean()) for at in (targets.mean(), task.mean))
        return best / task.scale**2, mean / task.scale**2
