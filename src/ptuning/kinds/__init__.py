"""The kinds of task: one module and one row of :data:`KINDS` each.

A kind says what labels and targets are, and gives loss, metrics, baseline and answers. Everything else asks
``task.kind`` and does not compare names, so a new kind is a :class:`Kind` in a module of its own and a row
here.
"""

from __future__ import annotations

from ptuning.errors import ConfigError
from ptuning.kinds.base import Answer, ConstantAnswer, Kind, LabelForm
from ptuning.kinds.metric import Metric, own_metric
from ptuning.kinds.multi_label import MultiLabel
from ptuning.kinds.regression import Regression
from ptuning.kinds.single_label import SingleLabel

__all__ = [
    "BY_FORM",
    "KINDS",
    "Answer",
    "ConstantAnswer",
    "Kind",
    "LabelForm",
    "Metric",
    "kind_named",
    "kind_of_config",
    "metric_named",
    "standard_kind",
]

KINDS: dict[str, Kind] = {kind.name: kind for kind in (SingleLabel(), MultiLabel(), Regression())}
"""By ``Task.problem_type``."""

BY_FORM = {
    LabelForm.ONE: KINDS[SingleLabel.name],
    LabelForm.SEVERAL: KINDS[MultiLabel.name],
    LabelForm.NUMBER: KINDS[Regression.name],
}
"""The kind that labels of a form suggest, where the user names none."""


def kind_named(name: str, *others: str) -> Kind:
    """The kind with this name.

    Args:
        others: What else could have been given, for the message.

    Raises:
        ConfigError: there is none.
    """
    if (found := KINDS.get(name)) is None:
        raise ConfigError(
            "problem_type", got=repr(name), expected=f"one of {', '.join(map(repr, (*others, *KINDS)))}"
        )
    return found


def standard_kind(num_labels: int) -> Kind:
    """What transformers takes a model with so many logits for: one is a regression."""
    return BY_FORM[LabelForm.NUMBER if num_labels == 1 else LabelForm.ONE]


def kind_of_config(problem_type: str | None, num_labels: int) -> Kind:
    """The kind that ``config.problem_type`` and ``config.num_labels`` of transformers say.

    Raises:
        ConfigError: a ``problem_type`` that no kind has.
    """
    if problem_type is None:
        return standard_kind(num_labels)
    found = (kind for kind in KINDS.values() if kind.transformers_name == problem_type)
    return next(found, None) or kind_named(problem_type)


def metric_named(name: str) -> Metric:
    """The facts of a metric; those of a user's own metric are inferred from its name and value."""
    known = (metric for kind in KINDS.values() for metric in kind.metrics if metric.name == name)
    return next(known, None) or own_metric(name)
