"""What a task is, apart from the prompt that solves it: its kind, its labels, its scale.

A :class:`Task` is plain data. It travels in the adapter folder, so that a prediction made next
year names the same labels, in the same order, in the same unit.
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
"""A label as Python has it, not numpy."""


@checked
@dataclass(frozen=True, kw_only=True)
class Task:
    """One task's facts.

    Args:
        problem_type: The name of its kind: ``single_label_classification``, ``multi_label_classification``
            or ``regression``, as in transformers' ``config.problem_type``.
        labels: The classes in the order of the logits, each as it stood in the training data
            (``"refund"``, ``1``, ``True``); empty for regression.
        pair: Whether a row has two texts.
        mean: Regression: what is subtracted from a target before training, in the target's unit.
        scale: Regression: what a target is then divided by, in the target's unit; above 0.
        max_length: The longest input in tokens, special tokens and input prompt included;
            ``None`` for the backbone's own limit.
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
        """Whether the targets are numbers, not labels."""
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
