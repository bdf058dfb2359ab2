"""The interface of a kind of task: its labels, targets, loss, metrics, baseline and answers.

A kind is one object without state; what differs between two tasks of one kind is in their
:class:`~ptuning.task.Task`. torch, numpy, SciPy and scikit-learn are imported inside the methods that need
them, because a :class:`~ptuning.task.Task` must be cheap to import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from ptuning.errors import ConfigError
from ptuning.kinds.metric import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ptuning.task import Label, Task

    Floats = NDArray[np.float64]


class LabelForm(Enum):
    """What the label of one row is, in the data; it decides how label cells are read."""

    ONE = "one label"
    SEVERAL = "a list of labels"
    NUMBER = "a number"


class Answer(NamedTuple):
    """The prediction for one row: its label, labels or number, and the probability of each label."""

    label: Label | tuple[Label, ...]
    probabilities: tuple[tuple[Label, float], ...] = ()


class ConstantAnswer(NamedTuple):
    """An answer that ignores the text.

    Attributes:
        rule: What it is, in words.
        logits: ``[C]``.
        shares: ``[C]``, the share of the training rows with each label; empty for numbers.
    """

    rule: str
    logits: tuple[float, ...]
    shares: tuple[float, ...] = ()


class Kind(ABC):
    """One kind of task.

    A new kind is a subclass in a module of its own and an entry in :data:`ptuning.kinds.KINDS`. Shapes below:
    N rows of a split, B rows of a batch, C logits per row. Targets are what
    :func:`ptuning.data.encode_labels` makes of labels: ``[N]`` class indices (form ``ONE``), ``[N, C]`` zeros
    and ones (``SEVERAL``), ``[N]`` numbers in the data's own unit (``NUMBER``).

    Attributes:
        name: As in ``Task.problem_type``, ``--data.problem_type`` and records.
        title: In sentences and model cards.
        form: What a row's label is.
        metrics: Those that :meth:`scores` and the loss give, in the order in which help lists them.
        main_metric: The name of the one that selects checkpoints unless ``fit.select_by`` says otherwise.
        varied_rows: The validation rows that every metric needs, in words.
        baseline_rule: What :meth:`constant_answer` does, in words that fit any task.
        transformers_name: Its name in ``config.problem_type`` of transformers; ``None`` if it has none.
        width: C, if every task of this kind has the same and its logits have no labels.
        head_fit: How a head is fitted to features of the frozen model (:mod:`ptuning.training.head_fits`);
            ``None`` if it is not.
        threshold_metrics: The names of those metrics that the thresholds of a task change.
        nan_targets_allowed: Whether an evaluation accepts targets that are not finite; its loss is then NaN.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    form: ClassVar[LabelForm]
    metrics: ClassVar[tuple[Metric, ...]]
    main_metric: ClassVar[str]
    varied_rows: ClassVar[str]
    baseline_rule: ClassVar[str]
    transformers_name: ClassVar[str | None] = None
    width: ClassVar[int | None] = None
    head_fit: ClassVar[Literal["ridge", "logistic"] | None] = None
    threshold_metrics: ClassVar[tuple[str, ...]] = ()
    nan_targets_allowed: ClassVar[bool] = False

    # ---------------------------------------------------------------------------------------- the task

    @abstractmethod
    def check(self, task: Task) -> None:
        """Refuse a task whose labels or scale this kind cannot have.

        Raises:
            ConfigError: says which.
        """

    def numbered_labels(
        self,
        width: int,
        where: str = "num_labels",
        *,
        remedy: str = "leave it out, or make one task per number",
    ) -> tuple[Label, ...]:
        """The labels of a task that only says how many logits it has: 0 to ``width`` - 1.

        Args:
            where, remedy: For the message.

        Raises:
            ConfigError: this kind has another number of logits.
        """
        if self.width is None:
            return tuple(range(width))
        if width != self.width:
            raise ConfigError(
                where,
                got=width,
                expected=f"{self.width}, because a {self.title} predicts one number per text",
                remedy=remedy,
            )
        return ()

    def is_pair_similarity(self, task: Task) -> bool:
        """Whether the label of a pair of texts may say how similar they are."""
        return False

    def is_fine_grained(self, task: Task) -> bool:
        """Whether a label says more than one of two classes: then few rows can train virtual units."""
        return False

    @abstractmethod
    def summary(self, task: Task) -> str:
        """What is predicted, in a few words: ``3 classes``."""

    def output(self, task: Task) -> str:
        """What the logits of a task without labels are, for its model card."""
        return "one number"

    # ---------------------------------------------------------------------------------- labels in the data

    def scaling(self, targets: Sequence[float], where: str) -> tuple[float, float]:
        """``mean`` and ``scale`` of a task whose training targets these are; for the form ``NUMBER``.

        Args:
            where: The name of the data, for messages.

        Raises:
            DataError: targets that cannot be learned.
        """
        return 0.0, 1.0

    def expected_target(self, target: float, task: Task) -> str | None:
        """What was expected in place of a number that cannot be a target of ``task``; ``None`` if it can."""
        return None

    @abstractmethod
    def strata(self, targets: Sequence[object]) -> Sequence[Hashable]:
        """The stratum of every row, for a split in which both parts have similar targets."""

    # --------------------------------------------------------------------------------------- in the model

    @abstractmethod
    def as_targets(self, labels: Tensor, logits: Tensor, task: Task) -> Tensor:
        """A batch's ``labels`` as :meth:`loss` takes them: ``[B]`` or ``[B, C]``.

        Args:
            logits: ``[B, C]``.

        Raises:
            DataError: labels of a type or shape that the task does not have.
        """

    @abstractmethod
    def valid(self, targets: Tensor, task: Task) -> Tensor:
        """Which of :meth:`as_targets` the task can have: truth values in their shape."""

    def harmless(self, targets: Tensor, valid: Tensor) -> Tensor:
        """``targets`` with values that :meth:`loss` can compute with where they are not valid."""
        return targets

    @abstractmethod
    def wrong_target(self, value: float, targets: Tensor, task: Task) -> tuple[str, str]:
        """What was expected in place of a value that is not valid, and the remedy."""

    @abstractmethod
    def label_remedy(self, task: Task) -> str:
        """What to pass as ``labels``."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None) -> Tensor:
        """The mean loss of a batch.

        Args:
            logits: ``[B, C]``.
            targets: What :meth:`as_targets` gave.
            weights: ``[C]``, of the classes; always ``None`` for a kind without classes.
        """

    def row_weights(self, targets: Floats, weights: Sequence[float] | None) -> Floats:
        """``[N]``: how much each row counts in :meth:`loss`, which is the mean weighted by these numbers.

        So the loss of a batch is that of its parts, each weighted by the sum of its rows' weights.

        Args:
            targets: ``[N]`` or ``[N, C]``.
            weights: ``[C]``, of the classes.
        """
        import numpy as np

        return np.ones(len(targets))

    def logits(self, raw: Tensor, task: Task) -> Tensor:
        """What the model returns as ``logits`` ``[B, C]``, from what the head gives."""
        return raw

    def as_labels(self, targets: Floats) -> Tensor:
        """A split's targets as the ``labels`` of a model."""
        import torch

        return torch.as_tensor(targets)

    def balanced_weights(self, targets: Floats, task: Task) -> tuple[float, ...]:
        """The weights ``[C]`` with which all classes count the same; of a kind with classes."""
        raise NotImplementedError

    @abstractmethod
    def answer(self, logits: Sequence[float], task: Task) -> Answer:
        """The prediction for one row, from its logits ``[C]``. It needs no torch: for one row, plain numbers
        are faster than tensors. Temperature and thresholds of the task are applied.
        """

    # ------------------------------------------------------------------------------------- probabilities

    def probabilities(self, logits: Floats, task: Task) -> Floats:
        """The probability of each label, ``[N, C]``, from logits ``[N, C]``: those that :meth:`answer` gives,
        with the task's temperature. Only kinds with labels have them.

        Whatever :meth:`answer` gives is taken, row by row; a kind may compute them all at once instead.
        """
        import numpy as np

        if not task.labels:
            raise NotImplementedError(f"a {self.title} has no probabilities")
        answers = [self.answer(row, task).probabilities for row in logits.tolist()]
        found = np.array([[chance for _, chance in answer] for answer in answers], dtype=np.float64)
        return found.reshape(len(logits), len(task.labels))

    def calibrated(self, logits: Floats, targets: Floats, task: Task) -> Task:
        """The task with the temperature, and the thresholds if it has several labels, that suit these rows.

        Whatever temperature and thresholds ``task`` has are replaced. A kind without labels changes nothing.

        Args:
            logits: ``[N, C]``, of rows that were not trained on.
            targets: ``[N]`` or ``[N, C]``.
        """
        return task

    def confidence(self, answer: Answer, task: Task) -> float | None:
        """The probability that an answer is right, by the model's own account; ``None`` without labels.

        That of the most likely label; a kind with several labels per row has to say which answer is least
        certain.
        """
        return max((chance for _, chance in answer.probabilities), default=None)

    def confidences(self, logits: Floats, task: Task) -> Floats:
        """:meth:`confidence` of each row's answer, ``[N]``, from logits ``[N, C]``, of a kind with labels."""
        import numpy as np

        answers = (self.answer(row, task) for row in logits.tolist())
        return np.array([self.confidence(each, task) for each in answers], dtype=np.float64)

    # --------------------------------------------------------------------------------- metrics and baseline

    @abstractmethod
    def scores(self, logits: Floats, targets: Floats, task: Task) -> Mapping[str, float]:
        """The metrics of ``logits`` ``[N, C]``, apart from the loss, that the rows leave defined."""

    def measure(self, logits: Floats, targets: Floats, task: Task) -> dict[str, float]:
        """:meth:`scores` as plain numbers, those that are not finite left out."""
        import numpy as np

        found = self.scores(logits, targets, task)
        return {name: float(value) for name, value in found.items() if np.isfinite(value)}

    @abstractmethod
    def constant_answer(self, targets: Floats, task: Task) -> ConstantAnswer:
        """The baseline that training targets give."""

    @abstractmethod
    def measure_constant(
        self,
        logits: Sequence[float],
        shares: Sequence[float],
        targets: Floats,
        task: Task,
        weights: Sequence[float] | None,
    ) -> dict[str, float]:
        """The metrics of :meth:`constant_answer` on a split, its loss included.

        Args:
            weights: Of the classes, as the loss has them.
        """

    @abstractmethod
    def reference_losses(
        self, targets: Floats, task: Task, weights: Sequence[float] | None
    ) -> tuple[float, float]:
        """The loss over ``targets`` of the best constant answer, and that of an untrained head."""

    def logits_of_shares(self, shares: Floats) -> Floats:
        """``[C]``: the logits of an answer as sure of each label as the label is frequent; with classes only.

        Args:
            shares: ``[C]``, the share of the rows that have each label.
        """
        raise NotImplementedError

    def effective_rows(self, metric: str, targets: Floats, task: Task) -> float:
        """The number of rows that a metric depends on: few, if it is about a rare label."""
        return float(len(targets))


def type_and_shape(labels: Tensor) -> str:
    """How messages describe a batch's labels: ``int64 of shape [4]``."""
    return f"{str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape)}"
