"""The description of a task: its kind, labels and target scale.

A :class:`Task` is plain data. It is saved in the adapter folder, so that predictions have the same labels, in
the same order and unit, wherever the adapter is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ptuning.kinds import KINDS, Kind, LabelForm, kind_named
from ptuning.validation import Float, Int, OneOf, checked

ProblemType = Annotated[str, OneOf(lambda: KINDS)]
"""The name of a kind of task; transformers' own, where it has one."""
Label = str | int | float | bool

_Finite = Annotated[Float, Field(allow_inf_nan=False)]
_Plain = Annotated[Label, BeforeValidator(lambda label: label.item() if hasattr(label, "item") else label)]
"""A label as a Python value, converted from numpy if necessary."""


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
    """

    problem_type: ProblemType
    labels: tuple[_Plain, ...] = ()
    pair: bool = False
    mean: _Finite = 0.0
    scale: _Finite = 1.0
    max_length: Annotated[Int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        self.kind.check(self)

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

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        return cls(**{**values, "labels": tuple(values.get("labels", ()))})
