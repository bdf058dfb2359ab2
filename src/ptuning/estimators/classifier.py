"""A classifier of texts for scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils import assert_all_finite, column_or_1d, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from ptuning.data import Example
from ptuning.data.places import listing
from ptuning.errors import ConfigError, DataError
from ptuning.estimators.base import TextEstimator, refuse_form
from ptuning.estimators.inputs import examples_of, labelled, refuse_no_labels
from ptuning.kinds import BY_FORM, LabelForm
from ptuning.model.config import Engine, PromptConfig
from ptuning.task import Label, Task


class PTuningClassifier(ClassifierMixin, TextEstimator):  # type: ignore[misc]
    """A classifier of texts: a prompt on a frozen backbone, with the interface of scikit-learn.

    ``X`` is a sequence of texts (a list, an array, a column), or of pairs of texts (two columns, an array of
    shape ``(n, 2)``, a list of tuples). ``y`` has one label per row; or, for several labels per row, an
    indicator matrix ``(n, n_labels)``, whose columns are named if it is a data frame.

    Training is that of ``ptuning train``: with the same rows and seed it ends with the same parameters. There
    are no sample weights.

    Args:
        backbone: A Hub id, a folder, or ``demo``. Clones of an estimator, as in cross-validation, share it.
        revision: A branch, tag or commit of the backbone on the Hub.
        init_from: The folder or Hub id of a trained adapter that ``fit`` starts from. It decides backbone and
            prompt if they are left out, and its labels are among ``classes_``.
        init_head: With ``init_from``, ``auto`` keeps the adapter's head for the same kind of task; ``new``
            takes over the prompt alone.
        prompt: A :class:`~ptuning.DeepPrompt` or :class:`~ptuning.InputPrompt`, or a dictionary of its
            options; ``DeepPrompt()`` if left out.
        num_virtual_tokens: Replaces that option of ``prompt``.
        first_layer: Replaces that option of ``prompt``.
        num_train_epochs: Passes over the training rows; the recipe's choice if left out.
        learning_rate: Of the prompt; the recipe's choice if left out.
        head_learning_rate: Of the head; the recipe's choice if left out.
        batch_size: Rows per batch.
        validation_fraction: Share of the rows that is split off to select the best checkpoint.
        max_length: Maximum input length in tokens, prompt included; the backbone's limit if left out.
        too_long: What happens to longer texts: ``truncate``, ``error`` or ``windows``; ``truncate`` if left
            out.
        max_windows: Maximum windows per row, with ``windows``.
        window_overlap: Share of a window's text that is also in the window before it.
        class_weight: ``None``, ``"balanced"``, or the weight of each class by its label; 1 for the others.
        fit_options: Further options of :class:`~ptuning.FitConfig`, such as ``{"patience": 3}``.
        engine: How the backbone computes.
        precision: ``auto``, ``fp32`` or ``bf16``, of the frozen weights.
        device: ``auto`` or ``cpu``.
        random_state: As in scikit-learn. An integer is ptuning's ``seed``.
        verbose: Whether to print the progress of training.

    Attributes:
        classes_: The labels, sorted; for an indicator matrix, the names of its columns, or their numbers.
        model_: The trained :class:`~ptuning.PTuningModel`.
        result_: The :class:`~ptuning.TrainResult` of the last ``fit``.
    """

    classes_: NDArray[Any]

    def __init__(
        self,
        backbone: str = "demo",
        *,
        revision: str | None = None,
        init_from: str | os.PathLike[str] | None = None,
        init_head: str = "auto",
        prompt: PromptConfig | Mapping[str, Any] | None = None,
        num_virtual_tokens: int | None = None,
        first_layer: int | None = None,
        num_train_epochs: int | None = None,
        learning_rate: float | None = None,
        head_learning_rate: float | None = None,
        batch_size: int = 16,
        validation_fraction: float = 0.1,
        max_length: int | None = None,
        too_long: str | None = None,
        max_windows: int | None = None,
        window_overlap: float | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        fit_options: Mapping[str, Any] | None = None,
        engine: Engine | None = None,
        precision: str = "auto",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            revision=revision,
            init_from=init_from,
            init_head=init_head,
            prompt=prompt,
            num_virtual_tokens=num_virtual_tokens,
            first_layer=first_layer,
            num_train_epochs=num_train_epochs,
            learning_rate=learning_rate,
            head_learning_rate=head_learning_rate,
            batch_size=batch_size,
            validation_fraction=validation_fraction,
            max_length=max_length,
            too_long=too_long,
            max_windows=max_windows,
            window_overlap=window_overlap,
            fit_options=fit_options,
            engine=engine,
            precision=precision,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train a prompt and a head.

        Args:
            X: Texts or pairs of texts.
            y: A label per row, or an indicator matrix.

        Raises:
            ConfigError: a parameter that is wrong; a ``ValueError``.
            DataError: rows that cannot be used; a ``ValueError``.
            TrainingDiverged: a loss or gradient that is not finite.
        """
        refuse_no_labels(y, type(self).__name__)
        examples, target = examples_of(X), _target(y)
        several = target.ndim == 2
        if several:
            labels = _column_names(y, target.shape[1])
            found = [tuple(label for label, on in zip(labels, row, strict=True) if on) for row in target]
            form = LabelForm.SEVERAL
        else:
            labels, found = unique_labels(target).tolist(), target.tolist()
            form = LabelForm.ONE
        rows = labelled(examples, found)
        if len(labels) < 2 and not several:
            raise DataError(
                "y", got=f"one class, {labels[0]!r}, in every row", expected="at least two classes"
            )
        task = Task(
            problem_type=BY_FORM[form].name,
            labels=tuple(labels),
            pair=examples[0].text_b is not None,
        )
        self._train(rows, task, lambda task: self._weights(task, rows))
        self._set_task(self.model_.task)
        return self

    def _weights(self, task: Task, rows: Sequence[Example]) -> str | tuple[float, ...] | None:
        """The class weights, as ``fit.class_weights``."""
        given = self.class_weight
        if given is None or given == "balanced":
            return given
        if not isinstance(given, Mapping):
            raise ConfigError(
                "class_weight", got=given, expected="None, 'balanced' or a dictionary of weights by label"
            )
        labels = np.asarray(task.labels)
        several = task.kind.form is LabelForm.SEVERAL
        present = labels if several else np.asarray([row.label for row in rows])
        weights = compute_class_weight(dict(given), classes=labels, y=present)
        return tuple(weights.tolist())

    def _set_task(self, task: Task) -> None:
        refuse_form(task, (LabelForm.ONE, LabelForm.SEVERAL), "open it with PTuningRegressor.from_pretrained")
        # An array of strings and numbers would have strings only.
        if len({isinstance(label, str) for label in task.labels}) > 1:
            raise ConfigError(
                "the adapter's labels",
                got=f"strings and numbers: {listing(task.labels)}",
                expected="labels of one type, as scikit-learn needs them",
                remedy="open it with PTuningModel.from_pretrained",
            )
        # An adapter's labels may be in another order than scikit-learn's, which is sorted.
        self.classes_ = np.asarray(task.labels)
        if task.kind.form is LabelForm.ONE:
            self.classes_ = np.sort(self.classes_)

    # ---------------------------------------------------------------------------------- prediction

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """The label of each row, ``[N]``; with several labels per row, zeros and ones ``[N, n_labels]``.

        Raises:
            NotFittedError: nothing was fitted.
            DataError: a blank text.
        """
        task, logits = self.model_.task, self._logits(X)
        answers = [task.kind.answer(row, task).label for row in logits.tolist()]
        if task.kind.form is LabelForm.ONE:
            return np.asarray(answers, dtype=self.classes_.dtype)
        return np.asarray(
            [[label in _several(chosen) for label in task.labels] for chosen in answers], dtype=int
        )

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """The probability of each class, ``[N, n_classes]``, in the order of ``classes_``.

        Raises:
            NotFittedError: nothing was fitted.
            DataError: a blank text.
        """
        task, logits = self.model_.task, self._logits(X)
        answers = [task.kind.answer(row, task).probabilities for row in logits.tolist()]
        return self._columns([[chance for _, chance in row] for row in answers])

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """The logits, ``[N, n_classes]``; for two classes ``[N]``, that of the second minus the first.

        They are not calibrated: :meth:`predict_proba` divides them by the task's temperature first.

        Raises:
            NotFittedError: nothing was fitted.
            DataError: a blank text.
        """
        task, logits = self.model_.task, self._columns(self._logits(X))
        if task.kind.form is LabelForm.ONE and task.num_labels == 2:
            return np.asarray(logits[:, 1] - logits[:, 0])
        return logits

    def _columns(self, values: Any) -> NDArray[np.float64]:
        """``values`` ``[N, C]`` in the order of ``classes_``."""
        found, task = np.asarray(values, dtype=np.float64), self.model_.task
        if task.kind.form is LabelForm.SEVERAL:
            return found
        return found[:, [task.labels.index(label) for label in self.classes_.tolist()]]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _several(label: Label | tuple[Label, ...]) -> tuple[Label, ...]:
    return label if isinstance(label, tuple) else (label,)


def _target(given: Any) -> NDArray[Any]:
    """``y`` as an array: labels ``[N]``, or zeros and ones ``[N, C]``.

    Raises:
        ValueError: scikit-learn's, for anything else.
    """
    _refuse_missing(given)
    check_classification_targets(given)
    if type_of_target(given) == "multilabel-indicator":
        dense = given.toarray() if hasattr(given, "toarray") else given
        return np.asarray(dense).astype(bool)
    target = column_or_1d(given, warn=True)
    assert_all_finite(target, input_name="y")
    return np.asarray(target)


def _refuse_missing(given: Any) -> None:
    """Refuse missing labels, which scikit-learn cannot sort among texts.

    Raises:
        DataError: one is missing.
    """
    if hasattr(given, "isna"):  # pandas'
        missing = bool(np.any(given.isna()))
    else:
        values = np.asarray(given).ravel().tolist() if isinstance(given, np.ndarray) else given
        missing = isinstance(values, list) and any(value is None or value != value for value in values)
    if missing:
        raise DataError("y", got="a missing value (NaN or None)", expected="a label in every row")


def _column_names(given: Any, count: int) -> list[Label]:
    """The labels of an indicator matrix: the names of a data frame's columns, or numbers."""
    names = getattr(given, "columns", None)
    return list(range(count)) if names is None else [*np.asarray(names).tolist()]
