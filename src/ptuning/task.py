"""The description of a task: its kind, labels and target scale.

A :class:`Task` is plain data. It is saved in the adapter folder, so that predictions have the same labels, in
the same order and unit, wherever the adapter is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ptuning.errors import ConfigError
from ptuning.kinds import KINDS, Kind, LabelForm, kind_named
from ptuning.validation import Float, Int, OneOf, checked

ProblemType = Annotated[str, OneOf(lambda: KINDS)]
"""The name of a kind of task; transformers' own, where it has one."""
Label = str | int | float | bool

_Finite = Annotated[Float, Field(allow_inf_nan=False)]
_Plain = Annotated[Label, BeforeValidator(lambda label: label.item() if hasattr(label, "item") else label)]
"""A label as a Python value, converted from numpy if necessary."""

MAX_WINDOWS = 1000
"""The maximum of :attr:`Task.max_windows`. It bounds what a text costs."""
MAX_OVERLAP = 0.9
"""The maximum of :attr:`Task.window_overlap`."""
OVERLAP = 0.25
"""The default of :attr:`Task.window_overlap`."""
ADDED_LATER: dict[str, Any] = {
    "max_windows": 1,
    "window_overlap": OVERLAP,
    "temperature": 1.0,
    "thresholds": (),
}
"""Fields that records of earlier versions do not have, with their defaults. A default is not written, so the
record of such a task is as it always was, and earlier versions read it.
"""


@checked
@dataclass(frozen=True, kw_only=True)
class Task:
    """The description of a task.

    Args:
        problem_type: The name of its kind: ``single_label_classification``, ``multi_label_classification``
            or ``regression``, as in transformers' ``config.problem_type``.
        labels: The classes in the order of the logits, each as in the training data (``"refund"``, ``1``,
            ``True``); empty for regression.
        pair: Whether there are two texts per row.
        mean: For regression, the value that is subtracted from targets for training, in the unit of the
            target.
        scale: For regression, the value that targets are then divided by, in the unit of the target; above 0.
        max_length: Maximum input length in tokens, including special tokens and input prompt; ``None`` for
            the backbone's limit.
        max_windows: Maximum windows per row. A text that is too long is read in so many overlapping windows
            of tokens, and the row's logits are the mean of theirs; with 1, it is cut.
        window_overlap: The share of a window's text that is also in the window before it.
        temperature: The logits are divided by it before they become probabilities; above 0. 1 for
            probabilities as the model was trained to give them. Fitted by :meth:`Kind.calibrated
            <ptuning.kinds.Kind.calibrated>`; logits and losses do not change with it.
        thresholds: For a multi-label task, the probability above which each label is answered, between 0 and
            1; empty for 0.5 each.
    """

    problem_type: ProblemType
    labels: tuple[_Plain, ...] = ()
    pair: bool = False
    mean: _Finite = 0.0
    scale: _Finite = 1.0
    max_length: Annotated[Int, Field(ge=1)] | None = None
    max_windows: Annotated[Int, Field(ge=1, le=MAX_WINDOWS)] = 1
    window_overlap: Annotated[Float, Field(ge=0, le=MAX_OVERLAP)] = OVERLAP
    temperature: Annotated[_Finite, Field(gt=0)] = 1.0
    thresholds: tuple[Annotated[Float, Field(gt=0, lt=1)], ...] = ()

    def __post_init__(self) -> None:
        self.kind.check(self)
        if self.temperature != 1 and not self.labels:
            raise ConfigError(
                "temperature",
                got=self.temperature,
                expected="1 in a task without labels, because it has no probabilities",
                remedy="leave it out",
            )
        if self.thresholds and self.kind.form is not LabelForm.SEVERAL:
            raise ConfigError(
                "thresholds",
                got=list(self.thresholds),
                expected=f"none in a {self.kind.title}, which does not answer yes or no per label",
                remedy="leave them out",
            )
        if self.thresholds and len(self.thresholds) != len(self.labels):
            raise ConfigError(
                "thresholds",
                got=f"{len(self.thresholds)} numbers",
                expected=f"{len(self.labels)}, one per label",
                remedy="leave them out for 0.5 each",
            )

    @property
    def kind(self) -> Kind:
        """What labels, targets, loss, metrics and answers of such a task are."""
        return kind_named(self.problem_type)

    @property
    def num_labels(self) -> int:
        """The width of the logits, C: the number of labels, or 1 for regression."""
        return len(self.labels) or 1

    @property
    def is_regression(self) -> bool:
        """Whether the targets are numbers rather than labels."""
        return self.kind.form is LabelForm.NUMBER

    @property
    def is_pair_similarity(self) -> bool:
        """Whether a row asks how similar two texts are, by a score or one of two classes."""
        return self.pair and self.kind.is_pair_similarity(self)

    @property
    def is_calibrated(self) -> bool:
        """Whether probabilities or answers are corrected by a temperature or thresholds."""
        return self.temperature != 1 or bool(self.thresholds)

    def uncalibrated(self) -> Task:
        """The same task without temperature and thresholds."""
        return replace(self, temperature=1.0, thresholds=()) if self.is_calibrated else self

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, without what has a default of :data:`ADDED_LATER`."""
        values = {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}
        return {
            name: value
            for name, value in values.items()
            if name not in ADDED_LATER or getattr(self, name) != ADDED_LATER[name]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """The inverse of :meth:`to_dict`."""
        lists = {name: tuple(values.get(name, ())) for name in ("labels", "thresholds")}
        return cls(**{**values, **lists})
