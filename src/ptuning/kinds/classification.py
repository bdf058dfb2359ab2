"""What all kinds of task with classes share: named labels, class weights, shares of labels."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ptuning.errors import ConfigError
from ptuning.kinds.base import ConstantAnswer, Kind

if TYPE_CHECKING:
    from ptuning.kinds.base import Floats
    from ptuning.task import Label, Task


class Classification(Kind):
    """A kind whose logits belong to labels.

    Attributes:
        fewest_labels: The minimum number of labels of a task.
    """

    varied_rows = "rows of every label"
    baseline_rule = "always the most frequent label"
    fewest_labels: ClassVar[int] = 2

    def check(self, task: Task) -> None:
        labels = list(task.labels)
        if len(labels) < self.fewest_labels:
            raise ConfigError(
                "labels",
                got=labels,
                expected=f"at least {self.fewest_labels} in a {self.name} task",
                remedy="use problem_type 'regression' for one number per text",
            )
        by_text: dict[str, Label] = {}
        for label in labels:
            if (text := str(label)) in by_text:
                self._refuse_twins(by_text[text], label)
            by_text[text] = label

    def _refuse_twins(self, one: Label, other: Label) -> None:
        """Two labels that are written the same way: JSON, CSV and ``id2label`` could not tell them apart."""
        if repr(one) == repr(other):
            raise ConfigError(
                "labels", got=f"{one!r} twice", expected="distinct labels", remedy="name each label once"
            )
        raise ConfigError(
            "labels",
            got=f"both {one!r} and {other!r}",
            expected="labels that differ as text, because predictions in JSON and CSV name them that way",
            remedy="rename one of the two",
        )

    def summary(self, task: Task) -> str:
        return f"{task.num_labels} classes"

    @abstractmethod
    def shares(self, targets: Floats, task: Task) -> Floats:
        """``[C]``: the share of the rows that have each label."""

    @abstractmethod
    def constant_loss(
        self, shares: Floats, targets: Floats, task: Task, weights: Sequence[float] | None
    ) -> float:
        """The loss over ``targets`` of the constant answer that is best for rows with these ``shares``.

        Args:
            weights: Of the classes, as the loss has them; for several labels, of each one's positives.
        """

    @abstractmethod
    def usual_answer(self, targets: Floats, task: Task) -> tuple[str, tuple[float, ...]]:
        """The most frequent answer, in words and as logits ``[C]``."""

    def constant_answer(self, targets: Floats, task: Task) -> ConstantAnswer:
        import numpy as np

        none = 0.5 / len(targets)  # a label that no row has, or every row, may be otherwise in other rows
        shares = tuple(np.clip(self.shares(targets, task), none, 1 - none).tolist())
        return ConstantAnswer(*self.usual_answer(targets, task), shares)

    def measure_constant(
        self,
        logits: Sequence[float],
        shares: Sequence[float],
        targets: Floats,
        task: Task,
        weights: Sequence[float] | None,
    ) -> dict[str, float]:
        import numpy as np

        found = self.measure(np.tile(np.array(logits), (len(targets), 1)), targets, task)
        if not shares:  # an adapter of an older version
            return found
        return {"loss": self.constant_loss(np.array(shares), targets, task, weights), **found}

    def effective_rows(self, metric: str, targets: Floats, task: Task) -> float:
        """Twice a label's rows, as balanced classes have; in a mean over labels, each counts the same."""
        import numpy as np

        rows = float(len(targets))
        if metric not in ("f1", "f1_micro", "f1_macro", "matthews", "auc"):
            return rows
        counts = self.shares(targets, task) * rows
        if (few := self.rows_of_metric(metric, counts)) is not None:
            return min(rows, max(1.0, 2 * few))
        each = np.minimum(rows, 2 * counts[counts > 0])
        return min(rows, float(len(each) ** 2 / (1 / each).sum())) if len(each) else rows

    def rows_of_metric(self, metric: str, counts: Floats) -> float | None:
        """The rows that a metric is about; ``None`` for a mean over labels.

        Args:
            counts: ``[C]``, the rows with each label.
        """
        return None


def named(task: Task, chances: Sequence[float]) -> tuple[tuple[Label, float], ...]:
    """Each label with its probability."""
    return tuple(zip(task.labels, chances, strict=True))


def softmax(logits: Sequence[float]) -> list[float]:
    """Shares that sum to 1."""
    most = max(logits)
    powers = [math.exp(each - most) for each in logits]
    total = math.fsum(powers)
    return [each / total for each in powers]


def sigmoid(logit: float) -> float:
    """A share between 0 and 1."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)


def weights_or_ones(weights: Sequence[float] | None, task: Task) -> Floats:
    """``weights`` ``[C]``, 1 for each class if there are none."""
    import numpy as np

    return np.ones(task.num_labels) if weights is None else np.asarray(weights, dtype=float)
