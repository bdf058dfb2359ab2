"""Multi-label classification: any number of labels per row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ptuning.errors import DataError
from ptuning.kinds.base import Answer, LabelForm, type_and_shape
from ptuning.kinds.classification import Classification, named, sigmoid, weights_or_ones
from ptuning.kinds.metric import AUC, LOSS, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from ptuning.kinds.base import Floats
    from ptuning.task import Task


class MultiLabel(Classification):
    """Any number of labels per row: a sigmoid and binary cross-entropy for each label."""

    name = "multi_label_classification"
    title = "multi-label classification"
    form = LabelForm.SEVERAL
    metrics = (
        LOSS,
        Metric(name="f1_micro"),
        Metric(name="f1_macro"),
        Metric(name="exact_match"),
        AUC,
    )
    main_metric = "f1_micro"
    threshold_metrics = ("f1_micro", "f1_macro", "exact_match")
    transformers_name = name
    fewest_labels = 1

    def strata(self, targets: Sequence[object]) -> Sequence[Hashable]:
        """The rarest label of each row."""
        rows = [row for row in targets if isinstance(row, list)]
        labels = [[column for column, hot in enumerate(row) if hot] for row in rows]
        counts = Counter(column for row in labels for column in row)
        return [min(row, key=lambda column: (counts[column], column)) if row else None for row in labels]

    # In the model ------------------------------------------------------------------------------------

    def as_targets(self, labels: Tensor, logits: Tensor, task: Task) -> Tensor:
        if labels.shape != logits.shape:
            raise DataError(
                "labels",
                got=type_and_shape(labels),
                expected=f"zeros and ones of shape {list(logits.shape)}, one for each label of each row",
                remedy=self.label_remedy(task),
            )
        return labels.float()

    def valid(self, targets: Tensor, task: Task) -> Tensor:
        return (targets >= 0) & (targets <= 1)

    def wrong_target(self, value: float, targets: Tensor, task: Task) -> tuple[str, str]:
        return "zeros and ones, one for each label of each row", self.label_remedy(task)

    def label_remedy(self, task: Task) -> str:
        return "pass [B, C] zeros and ones, or make the model with problem_type 'single_label_classification'"

    def loss(self, logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)

    def balanced_weights(self, targets: Floats, task: Task) -> tuple[float, ...]:
        """How many times as many negatives as positives each label has."""
        import numpy as np

        positive = np.maximum(targets.sum(0), 1)
        return tuple(np.maximum(len(targets) - positive, 1) / positive)

    def answer(self, logits: Sequence[float], task: Task) -> Answer:
        chances = named(task, [sigmoid(each / task.temperature) for each in logits])
        given = zip(chances, self.thresholds(task), strict=True)
        return Answer(tuple(label for (label, chance), least in given if chance > least), chances)

    # Probabilities -------------------------------------------------------------------------------------

    def probabilities(self, logits: Floats, task: Task) -> Floats:
        import numpy as np
        from scipy.special import expit

        return np.asarray(expit(logits / task.temperature))

    def calibrated(self, logits: Floats, targets: Floats, task: Task) -> Task:
        """The temperature of :func:`ptuning.calibration.fit_temperature`, and for each label the threshold of
        :func:`ptuning.calibration.f1_threshold`.
        """
        import numpy as np
        from scipy.special import log_expit

        from ptuning.calibration import f1_threshold, fit_temperature

        raw = np.asarray(logits, dtype=np.float64)
        signed = np.where(targets > 0.5, raw, -raw)
        # The labels of a row are not independent: their mean counts as one row.
        temperature = fit_temperature(lambda t: float(-log_expit(signed / t).mean(axis=1).sum()))
        chances = self.probabilities(raw, replace(task, temperature=temperature, thresholds=()))
        found = tuple(map(f1_threshold, chances.T, targets.T))
        moved = any(each != 0.5 for each in found)
        return replace(task, temperature=temperature, thresholds=found if moved else ())

    def confidence(self, answer: Answer, task: Task) -> float | None:
        """The probability of the least certain yes or no: every label's is at least as sure."""
        given = zip(answer.probabilities, self.thresholds(task), strict=True)
        return min(chance if chance > least else 1 - chance for (_, chance), least in given)

    def confidences(self, logits: Floats, task: Task) -> Floats:
        import numpy as np

        chances = self.probabilities(logits, task)
        return np.asarray(np.where(chances > self.thresholds(task), chances, 1 - chances).min(axis=1))

    def thresholds(self, task: Task) -> tuple[float, ...]:
        """``[C]``: the probability above which each label is answered."""
        return task.thresholds or (0.5,) * task.num_labels

    # Metrics and baseline ------------------------------------------------------------------------------

    def scores(self, logits: Floats, targets: Floats, task: Task) -> Mapping[str, float]:
        from sklearn import metrics as sk

        probabilities, truth = self.probabilities(logits, task), targets > 0.5
        predicted = probabilities > self.thresholds(task)
        one = truth.shape[1] == 1  # scikit-learn reads a single column as two classes
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

    def shares(self, targets: Floats, task: Task) -> Floats:
        import numpy as np

        return np.asarray(targets.sum(0) / len(targets), dtype=np.float64)

    def logits_of_shares(self, shares: Floats) -> Floats:
        import numpy as np
        from scipy.special import logit

        return np.asarray(logit(shares))

    def constant_loss(
        self, shares: Floats, targets: Floats, task: Task, weights: Sequence[float] | None
    ) -> float:
        from scipy.special import xlogy

        weight, seen = weights_or_ones(weights, task), self.shares(targets, task)
        answer = weight * shares / (weight * shares + 1 - shares)
        return float(-(xlogy(weight * seen, answer) + xlogy(1 - seen, 1 - answer)).mean())

    def reference_losses(
        self, targets: Floats, task: Task, weights: Sequence[float] | None
    ) -> tuple[float, float]:
        shares, weight = self.shares(targets, task), weights_or_ones(weights, task)
        untrained = float((weight * shares + 1 - shares).mean() * math.log(2))
        return self.constant_loss(shares, targets, task, weights), untrained

    def usual_answer(self, targets: Floats, task: Task) -> tuple[str, tuple[float, ...]]:
        import numpy as np

        sets, counts = np.unique(targets > 0.5, axis=0, return_counts=True)
        usual = sets[counts.argmax()]
        names = [repr(label) for label, has in zip(task.labels, usual, strict=True) if has]
        return f"always {' and '.join(names) or 'no label'}", tuple(20.0 if has else -20.0 for has in usual)

    def rows_of_metric(self, metric: str, counts: Floats) -> float | None:
        return float(counts.sum()) if metric == "f1_micro" else None
