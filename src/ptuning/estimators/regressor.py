"""A regressor of texts for scikit-learn."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import check_array, column_or_1d

from ptuning.estimators.base import TextEstimator, refuse_form
from ptuning.estimators.inputs import examples_of, labelled, refuse_no_labels
from ptuning.kinds import BY_FORM, LabelForm
from ptuning.task import Task


class PTuningRegressor(RegressorMixin, TextEstimator):  # type: ignore[misc]
    """A regressor of texts: a prompt on a frozen backbone, with the interface of scikit-learn.

    ``X``, parameters and attributes are those of :class:`~ptuning.PTuningClassifier`, without
    ``class_weight`` and ``classes_``. ``y`` has one number per row. It is standardised for training, and
    predictions are in its unit.
    """

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train a prompt and a head.

        Args:
            X: Texts or pairs of texts.
            y: A number per row.

        Raises:
            ConfigError: a parameter that is wrong; a ``ValueError``.
            DataError: rows that cannot be used, or the same number in every row; a ``ValueError``.
            TrainingDiverged: a loss or gradient that is not finite.
        """
        refuse_no_labels(y, type(self).__name__)
        examples = examples_of(X)
        column = column_or_1d(y, warn=True)
        target = check_array(column, ensure_2d=False, dtype=np.float64, input_name="y").tolist()
        rows = labelled(examples, target)
        kind = BY_FORM[LabelForm.NUMBER]
        mean, scale = kind.scaling(target, "y")
        task = Task(
            problem_type=kind.name,
            pair=examples[0].text_b is not None,
            mean=mean,
            scale=scale,
        )
        self._train(rows, task)
        return self

    def _set_task(self, task: Task) -> None:
        refuse_form(task, (LabelForm.NUMBER,), "open it with PTuningClassifier.from_pretrained")

    def predict(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """The number of each row, ``[N]``, in the unit of ``y``.

        Raises:
            NotFittedError: nothing was fitted.
            DataError: a blank text.
        """
        task, logits = self.model_.task, self._logits(X)
        return np.asarray([task.kind.answer(row, task).label for row in logits.tolist()], dtype=np.float64)
