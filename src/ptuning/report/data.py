"""What a report is made of: plain data of one trained task, and of the rows that it was scored on.

Whoever has a model and rows makes a :class:`ReportData` (``training/reporting.py``, ``ptuning evaluate``);
this package knows neither models nor files of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptuning.data.examples import Example
from ptuning.data.tokenised import TokenisedExample
from ptuning.kinds import LabelForm
from ptuning.task import Task

Floats = NDArray[np.float64]
FITTED = ("the temperature", "the thresholds")
"""What of :attr:`ReportData.chosen` makes probabilities and answers of logits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The rows of a split, and what the model says about them. N rows, C logits.

    Args:
        split: Its name: ``validation``, ``test``, or a file's name.
        logits: ``[N, C]``, raw.
        targets: ``[N]`` class indices or numbers, or ``[N, C]`` zeros and ones.
        lengths: Tokens per row.
        metrics: The adapter's metrics on these rows.
        baseline: Those of the constant answer.
        source: What the rows were read from.
        numbers: The number of each row in its source, as the user counts.
        texts: One or two texts per row; ``None`` if they are not known or not to be shown.
    """

    split: str
    logits: Floats
    targets: Floats
    lengths: tuple[int, ...]
    metrics: Mapping[str, float]
    baseline: Mapping[str, float] = field(default_factory=dict)
    source: str | None = None
    numbers: tuple[int, ...] = ()
    texts: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def number(self, index: int) -> int:
        """The number of a row, as the user counts."""
        return self.numbers[index] if self.numbers else index + 1

    def known(self, task: Task) -> Rows:
        """The rows that have a target: a class index of -100 or a number that is not finite means none."""
        if task.kind.form is LabelForm.SEVERAL:
            return self
        known = np.isfinite(self.targets)
        if task.kind.form is LabelForm.ONE:
            known &= self.targets >= 0
        if known.all():
            return self
        kept = np.flatnonzero(known)
        return Rows(
            split=self.split,
            logits=self.logits[kept],
            targets=self.targets[kept],
            lengths=tuple(self.lengths[each] for each in kept),
            metrics=self.metrics,
            baseline=self.baseline,
            source=self.source,
            numbers=tuple(self.number(int(each)) for each in kept),
            texts=None if self.texts is None else tuple(self.texts[each] for each in kept),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """One trained task.

    Args:
        name: Of the adapter.
        task: What its labels mean.
        splits: The rows that it was scored on; the last of them are shown in detail, the others by their
            metrics.
        baseline_rule: The constant answer, in words.
        class_weights: ``[C]``, of the loss.
        metric: The metric that selected the checkpoints; the main one of the kind of task if unknown.
        greater_is_better: Whether a larger ``metric`` is better; inferred from its name if unknown.
        history: Every evaluation on the validation rows: ``epoch``, ``step``, ``train_loss`` and ``metrics``.
        averaged: The steps of the evaluations whose parameters the adapter has the mean of.
        facts: What the adapter is and how it was trained, by name, in words.
        notes: What the reader should know first, one paragraph each.
        chosen: What was chosen by the validation rows, such as ``the checkpoint``.
        no_texts: Whether texts were left out at the user's wish.
    """

    name: str
    task: Task
    splits: tuple[Rows, ...]
    baseline_rule: str = ""
    class_weights: tuple[float, ...] | None = None
    metric: str | None = None
    greater_is_better: bool | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    averaged: tuple[int, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    no_texts: bool = False

    @property
    def rows(self) -> Rows:
        """The rows that are shown in detail, those without a target left out."""
        return self.splits[-1].known(self.task)

    @property
    def main_metric(self) -> str:
        """The metric that is shown where only one is."""
        return self.metric or self.task.kind.main_metric


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One of the adapters or runs that are compared.

    Args:
        name: Its name on the page.
        metrics: Its metrics, by split.
        baseline: Those of the constant answer, by split.
        task: What its labels mean, if that is known.
        rows: The rows that all were evaluated on, with its logits; ``None`` if only the metrics are known.
        class_weights: ``[C]``, of the loss.
        history: Every evaluation on the validation rows, as in :class:`ReportData`.
        averaged: The steps of the evaluations that were kept.
        facts: What it is and how it was trained, by name, in words.
        note: What is special about it, such as that it diverged.
        best: Whether it was chosen.
        greater_is_better: For metrics whose direction its training knew: those of the user's own.
    """

    name: str
    metrics: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    task: Task | None = None
    rows: Rows | None = None
    class_weights: tuple[float, ...] | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    averaged: tuple[int, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None
    best: bool = False
    greater_is_better: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What a page of several adapters shows.

    Args:
        title: Its title.
        what: What is compared, such as ``run``.
        entries: In the order of the page.
        metric: The metric that is shown first.
        spread: Whether mean and standard deviation are of interest, because the runs differ by chance alone.
    """

    title: str
    what: str
    entries: tuple[Entry, ...]
    metric: str
    spread: bool = False


def texts_of(examples: Iterable[Example]) -> tuple[tuple[str, ...], ...] | None:
    """The texts of examples; ``None`` for rows that the user has tokenised."""
    found = []
    for example in examples:
        if isinstance(example, TokenisedExample):
            return None
        found.append((example.text,) if example.text_b is None else (example.text, example.text_b))
    return tuple(found)
