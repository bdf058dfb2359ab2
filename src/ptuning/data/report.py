"""The report of :func:`ptuning.data.check`: plain dataclasses, and their text form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ptuning.data.columns import Columns
from ptuning.task import Label, Task

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

MAX_LABELS_SHOWN = 20
"""If there are more labels, only the most and the least frequent ones are shown, half of this number each."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding about the data.

    Args:
        level: ``error`` prevents training, ``warning`` may harm the result, ``note`` is for information.
        split: The split that it is about.
        message: One or two sentences, with what to do.
        count: The number of rows that it is about.
        rows: The first of these rows, numbered as for the user.
    """

    level: Level
    split: str
    message: str
    count: int = 0
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelCount:
    """The number of rows of a split with a label, and their share of all rows."""

    label: Label
    rows: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The score of a constant answer on a split.

    Args:
        kind: ``majority``: always the most frequent label (or set of labels) of the training rows; the score
            is the accuracy. ``mean``: always their mean; the score is the root mean squared error in the
            unit of the data.
        answer: The label, the labels or the mean.
        score: The accuracy or the error.
    """

    kind: Literal["majority", "mean"]
    answer: Any
    score: float


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Quantiles of input lengths (both texts of a pair together). ``over`` is the number above ``limit``."""

    unit: Literal["tokens", "characters"]
    shortest: int
    median: int
    p90: int
    p99: int
    longest: int
    limit: int | None
    over: int


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """Statistics of a split. ``labels`` is empty for regression; ``baseline`` is ``None`` without usable
    labels.
    """

    name: str
    rows: int
    left_out: int
    labels: tuple[LabelCount, ...]
    baseline: Baseline | None
    lengths: Lengths | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of :func:`check`, errors first."""

    columns: Columns | None
    task: Task | None
    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the data can be used for training: there are no errors."""
        return all(finding.level != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data, including ``ok``."""
        return {
            "ok": self.ok,
            "columns": asdict(self.columns) if self.columns else None,
            "task": self.task.to_dict() if self.task else None,
            "splits": [asdict(split) for split in self.splits],
            "findings": [{**asdict(finding), "rows": list(finding.rows)} for finding in self.findings],
        }

    def lines(self) -> list[str]:
        """The report as plain text, one line per fact."""
        return list(_lines(self))


def _lines(report: Report) -> Iterator[str]:
    if report.columns:
        several = ", ".join(report.columns.labels) or None
        named = {"text": report.columns.text, "text_b": report.columns.text_b, "label": report.columns.label}
        named["labels"] = several
        yield "columns: " + ", ".join(f"{role} = {name}" for role, name in named.items() if name is not None)
    if report.task:
        yield f"task: {report.task.problem_type}, {'two texts' if report.task.pair else 'one text'} per row"
    for split in report.splits:
        left_out = f", {split.left_out} left out" if split.left_out else ""
        yield f"{split.name}: {split.rows} rows{left_out}"
        yield from _label_lines(split.labels)
        if split.baseline:
            score = "accuracy" if split.baseline.kind == "majority" else "RMSE"
            yield f"  always {split.baseline.answer!r}: {score} {split.baseline.score:.4g}"
        if split.lengths:
            size = split.lengths
            limit = f", {size.over} over the limit of {size.limit}" if size.limit is not None else ""
            yield (
                f"  {size.unit}: {size.shortest} to {size.longest}, median {size.median}, "
                f"90% up to {size.p90}, 99% up to {size.p99}{limit}"
            )
    for finding in report.findings:
        rows = ", ".join(map(str, finding.rows)) + (", …" if finding.count > len(finding.rows) else "")
        unit = "row" if finding.count == 1 else "rows"
        about = f" [{finding.count} {unit}: {rows}]" if finding.count else ""
        yield f"{finding.level}: {finding.split}: {finding.message}{about}"


def _label_lines(labels: Sequence[LabelCount]) -> Iterator[str]:
    """The labels with their numbers of rows; if there are many, only the most and the least frequent ones."""
    lines = [f"  {label.label!r}: {label.rows} ({label.share:.1%})" for label in labels]
    if len(labels) <= MAX_LABELS_SHOWN:
        yield from lines
        return
    half = MAX_LABELS_SHOWN // 2
    order = sorted(range(len(labels)), key=lambda place: (-labels[place].rows, place))
    between = [labels[place].rows for place in order[half:-half]]
    yield f"  {len(labels)} labels; the {half} most frequent:"
    yield from (f"  {lines[place]}" for place in order[:half])
    yield f"  {len(between)} others with {between[-1]} to {between[0]} rows, then the {half} least frequent:"
    yield from (f"  {lines[place]}" for place in order[-half:])
