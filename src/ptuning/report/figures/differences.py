"""Adapters on the same rows: differences with their intervals, and the rows on which they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptuning.kinds import LabelForm
from ptuning.report.data import Floats, Rows
from ptuning.report.figures.headline import Statistics, bounds_of, counts, resamples_of
from ptuning.report.figures.outcomes import outcomes, predicted_numbers
from ptuning.task import Task

Scored = tuple[Task, Rows]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An adapter compared with the first one.

    Attributes:
        value: Its metric minus that of the first; ``None`` if it is not one of the kind's own metrics.
        bounds: The 95 % interval of the difference: both are measured on the same resamples.
        same: The share of the rows with the same answer; ``None`` for numbers.
        only_this: How many rows it alone has right.
        only_first: How many rows the first alone has right.
    """

    value: float | None
    bounds: tuple[float, float] | None
    same: float | None = None
    only_this: int = 0
    only_first: int = 0


def compared(
    scored: Sequence[Scored],
    metric: str,
    class_weights: Sequence[Sequence[float] | None] | None = None,
    *,
    seed: int = 0,
) -> tuple[Difference, ...]:
    """Each but the first, compared with the first.

    Args:
        scored: Tasks of one kind with the same labels, and the same rows with the logits of each.
        class_weights: ``[C]`` of the loss of each.
    """
    rows = len(scored[0][1])
    weights = class_weights or [None] * len(scored)
    statistics = [Statistics(*each, weight) for each, weight in zip(scored, weights, strict=True)]
    exact = [each.of(np.ones((1, rows))).get(metric) for each in statistics]
    # Resamples are only kept as the value of the metric: those of many rows do not fit into memory.
    drawn: list[list[Floats]] = []
    if all(each is not None for each in exact):
        for part in counts(rows, resamples_of(rows), seed):
            drawn.append([each.of(part)[metric] for each in statistics])
    answers = None if scored[0][0].kind.form is LabelForm.NUMBER else [outcomes(*each) for each in scored]
    made = []
    for number in range(1, len(scored)):
        value, bounds = None, None
        if drawn and (base := exact[0]) is not None and (own := exact[number]) is not None:
            value = float(own[0] - base[0])
            bounds = bounds_of(np.concatenate([part[number] - part[0] for part in drawn]))
        if answers is None:
            made.append(Difference(value=value, bounds=bounds))
            continue
        first, this = answers[0], answers[number]
        same = this.predicted == first.predicted
        made.append(
            Difference(
                value=value,
                bounds=bounds,
                same=float((same if same.ndim == 1 else same.all(axis=1)).mean()),
                only_this=int((this.right & ~first.right).sum()),
                only_first=int((first.right & ~this.right).sum()),
            )
        )
    return tuple(made)


def disagreements(scored: Sequence[Scored], limit: int) -> NDArray[np.int64]:
    """The rows with different answers: first those on which the adapters are the surest of them.

    For numbers, the rows with the largest distance between the predictions.
    """
    if scored[0][0].kind.form is LabelForm.NUMBER:
        predicted = np.array([predicted_numbers(*each) for each in scored])
        return np.argsort(-np.ptp(predicted, axis=0), kind="stable")[:limit]
    answers = [outcomes(*each) for each in scored]
    differs = np.zeros(len(scored[0][1]), dtype=bool)
    for each in answers[1:]:
        other = each.predicted != answers[0].predicted
        differs |= other if other.ndim == 1 else other.any(axis=1)
    surest = np.min([each.confidence for each in answers], axis=0)
    rows = np.flatnonzero(differs)
    return rows[np.argsort(-surest[rows], kind="stable")[:limit]]
