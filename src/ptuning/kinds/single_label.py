"""Single-label classification: one of several classes per row."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ptuning.errors import DataError
from ptuning.kinds.base import Answer, LabelForm, type_and_shape
from ptuning.kinds.classification import Classification, named, softmax, weights_or_ones
from ptuning.kinds.metric import AUC, LOSS, Metric, matthews_error

if TYPE_CHECKING:
    from torch import Tensor

    from ptuning.kinds.base import Floats
    from ptuning.task import Task

IGNORED = -100
"""The class index of a row that does not count, as in torch and transformers."""


class SingleLabel(Classification):
    """One of several classes per row: softmax and cross-entropy."""

    name = "single_label_classification"
    title = "single-label classification"
    form = LabelForm.ONE
    metrics = (
        LOSS,
        Metric(name="accuracy"),
        Metric(name="f1"),
        Metric(name="matthews", standard_error=matthews_error),
        AUC,
    )
    main_metric = "accuracy"
    transformers_name = name
    head_fit = "logistic"

    def is_pair_similarity(self, task: Task) -> bool:
        """With two classes; more, as in entailment, say how one text follows from the other."""
        return len(task.labels) == 2

    def is_fine_grained(self, task: Task) -> bool:
        return task.num_labels > 2

    def strata(self, targets: Sequence[object]) -> Sequence[Hashable]:
        return [str(target) for target in targets]

    # In the model ------------------------------------------------------------------------------------

    def as_targets(self, labels: Tensor, logits: Tensor, task: Task) -> Tensor:
        rows, width = logits.shape
        got = type_and_shape(labels)
        if labels.dim() == 2 and width > 1 and list(labels.shape) == [rows, width]:
            raise DataError(
                "labels",
                got=f"{got}, several labels per row",
                expected="one label per row, because the task has one",
                remedy="make the model with problem_type 'multi_label_classification' (under PEFT's names: "
                "in the backbone's configuration), or pass class indices",
            )
        boolean = str(labels.dtype) == "torch.bool"
        if labels.dtype.is_floating_point or labels.dtype.is_complex or (boolean and width != 2):
            raise DataError(
                "labels",
                got=got,
                expected=f"whole numbers ({_classes(task)})",
                remedy=f"{self.label_remedy(task)}, or, if they are scores, make the model with problem_type "
                "'regression'",
            )
        labels = labels.long()
        if labels.numel() != rows:
            raise DataError(
                "labels",
                got=got,
                expected=f"one label for each of {rows} rows",
                remedy=self.label_remedy(task),
            )
        return labels.reshape(-1)

    def valid(self, targets: Tensor, task: Task) -> Tensor:
        return ((targets >= 0) & (targets < task.num_labels)) | (targets == IGNORED)

    def harmless(self, targets: Tensor, valid: Tensor) -> Tensor:
        return targets.where(valid, IGNORED)

    def wrong_target(self, value: float, targets: Tensor, task: Task) -> tuple[str, str]:
        if value == -1:
            remedy = f"if it means that the row has no label, leave the row out, or write {IGNORED} there"
        else:
            most = int(targets.max()) + 1
            remedy = f"make the model with as many labels as the data have (at least {most})"
            if value == task.num_labels:
                remedy = f"count the classes from 0, or {remedy}"
        return _classes(task), remedy

    def label_remedy(self, task: Task) -> str:
        return "pass class indices as whole numbers, [B]"

    def loss(self, logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets, weight=weights, ignore_index=IGNORED)

    def row_weights(self, targets: Floats, weights: Sequence[float] | None) -> Floats:
        """The weight of the row's class, as cross-entropy divides by their sum."""
        import numpy as np

        classes = targets.astype(int)
        counted = np.asarray(classes != IGNORED, dtype=np.float64)
        return counted if weights is None else counted * np.asarray(weights)[classes * (classes != IGNORED)]

    def as_labels(self, targets: Floats) -> Tensor:
        return super().as_labels(targets).long()

    def balanced_weights(self, targets: Floats, task: Task) -> tuple[float, ...]:
        """N / (C · a class's rows), as in scikit-learn."""
        import numpy as np

        counts = np.bincount(targets.astype(int), minlength=task.num_labels)
        return tuple(len(targets) / (task.num_labels * np.maximum(counts, 1)))

    def answer(self, logits: Sequence[float], task: Task) -> Answer:
        chances = softmax([each / task.temperature for each in logits])
        return Answer(task.labels[logits.index(max(logits))], named(task, chances))

    # Probabilities -------------------------------------------------------------------------------------

    def probabilities(self, logits: Floats, task: Task) -> Floats:
        import numpy as np
        from scipy.special import softmax as softmax_of_rows

        return np.asarray(softmax_of_rows(logits / task.temperature, axis=1))

    def calibrated(self, logits: Floats, targets: Floats, task: Task) -> Task:
        """The temperature of :func:`ptuning.calibration.fit_temperature`."""
        import numpy as np
        from scipy.special import log_softmax

        from ptuning.calibration import fit_temperature

        known = targets >= 0
        classes, raw = targets[known].astype(int), np.asarray(logits, dtype=np.float64)[known]
        rows = np.arange(len(raw))
        found = fit_temperature(lambda t: float(-log_softmax(raw / t, axis=1)[rows, classes].sum()))
        return replace(task, temperature=found, thresholds=())

    def confidences(self, logits: Floats, task: Task) -> Floats:
        import numpy as np

        return np.asarray(self.probabilities(logits, task).max(axis=1))

    # Metrics and baseline ------------------------------------------------------------------------------

    def scores(self, logits: Floats, targets: Floats, task: Task) -> Mapping[str, float]:
        import numpy as np
        from scipy.special import softmax as softmax_of_rows
        from sklearn import metrics as sk

        probabilities, truth = softmax_of_rows(logits, axis=1), targets.astype(int)
        predicted = probabilities.argmax(1)
        seen, binary = len(np.unique(truth)), probabilities.shape[1] == 2
        found = {"accuracy": sk.accuracy_score(truth, predicted)}
        if seen < 2:
            return found
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about classes without a row or without a prediction
            average = "binary" if binary else "macro"
            found["f1"] = sk.f1_score(truth, predicted, average=average, zero_division=0.0)
            found["matthews"] = sk.matthews_corrcoef(truth, predicted)
            if binary:
                found["auc"] = sk.roc_auc_score(truth, probabilities[:, 1])
            elif seen == probabilities.shape[1]:
                found["auc"] = sk.roc_auc_score(truth, probabilities, multi_class="ovr")
        return found

    def shares(self, targets: Floats, task: Task) -> Floats:
        import numpy as np

        counts = np.bincount(targets.astype(int), minlength=task.num_labels)
        return np.asarray(counts / len(targets), dtype=np.float64)

    def logits_of_shares(self, shares: Floats) -> Floats:
        import numpy as np

        return np.asarray(np.log(shares))

    def constant_loss(
        self, shares: Floats, targets: Floats, task: Task, weights: Sequence[float] | None
    ) -> float:
        from scipy.special import xlogy

        weight, seen = weights_or_ones(weights, task), self.shares(targets, task)
        answer, seen = (weight * each / (weight * each).sum() for each in (shares, seen))
        return float(-xlogy(seen, answer).sum())

    def reference_losses(
        self, targets: Floats, task: Task, weights: Sequence[float] | None
    ) -> tuple[float, float]:
        constant = self.constant_loss(self.shares(targets, task), targets, task, weights)
        return constant, math.log(task.num_labels)

    def usual_answer(self, targets: Floats, task: Task) -> tuple[str, tuple[float, ...]]:
        import numpy as np

        usual = int(np.bincount(targets.astype(int), minlength=task.num_labels).argmax())
        logits = tuple(20.0 if label == usual else 0.0 for label in range(task.num_labels))
        return f"always {task.labels[usual]!r}", logits

    def rows_of_metric(self, metric: str, counts: Floats) -> float | None:
        if len(counts) != 2:
            return None
        return float(counts[1] if metric == "f1" else counts.min())


def _classes(task: Task) -> str:
    """What class indices of a task may be, in words."""
    count = task.num_labels
    numbers = "0 or 1" if count == 2 else f"0 to {count - 1}"
    if task.labels == tuple(range(count)) or count > 6:
        return f"{numbers}, a class index"
    return f"{numbers}, the index of one of {', '.join(map(repr, task.labels))}"
