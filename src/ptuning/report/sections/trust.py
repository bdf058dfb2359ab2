"""Whether probabilities can be trusted, and for which texts the answers are right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ptuning.kinds import LabelForm
from ptuning.report.blocks import Chart, Section, Table, number, percent, several
from ptuning.report.charts import plots
from ptuning.report.data import ReportData, Rows
from ptuning.report.figures.confidence import abstention, reliability, risk_coverage
from ptuning.report.figures.lengths import LengthBin, by_length
from ptuning.report.figures.outcomes import Outcomes, predicted_numbers
from ptuning.report.sections.overview import bar


def confidence(data: ReportData, found: Outcomes) -> Section:
    """The reliability diagram, and coverage and accuracy at thresholds."""
    rows = data.rows
    made, refused = reliability(data.task, rows), abstention(found)
    last = made[-1]
    over = np.average(
        [each.gap for each in last.bins if each.count], weights=[e.count for e in last.bins if e.count]
    )
    tendency = (
        "too sure" if over < -0.01 else "not sure enough" if over > 0.01 else "about as sure as it should be"
    )
    several_labels = data.task.kind.form is LabelForm.SEVERAL
    what = (
        "each label's probability in each row" if several_labels else "the probability of the predicted class"
    )
    table = Table(
        caption="Calibration",
        columns=("temperature", "expected calibration error", "log loss"),
        rows=tuple(
            (
                f"{each.temperature:.3f}" + ("" if each.temperature != 1 or len(made) == 1 else " (before)"),
                number(each.error, 4),
                number(each.log_loss, 4),
            )
            for each in made
        ),
        numeric=(1, 2),
    )
    points = {
        f"{each.threshold:g}": (each.coverage, each.accuracy)
        for each in refused
        if each.accuracy is not None and each.threshold > 0
    }
    charts = (
        Chart(
            svg=plots.reliability("reliability", made),
            alt="Reliability diagram. "
            + "; ".join(
                f"confidence {each.confidence:.2f}: {each.accuracy:.2f} right, "
                f"{several(each.count, 'answer')}"
                for each in last.bins
                if each.count
            )
            + ".",
            caption="A point below the dotted line: surer than right. Large points and high bars are "
            "many answers.",
        ),
        Chart(
            svg=plots.risk_coverage("coverage", *risk_coverage(found), points),
            alt="Accuracy of the answers if the least certain rows get none. "
            + "; ".join(
                f"threshold {name}: {percent(coverage)} answered, {percent(accuracy)} right"
                for name, (coverage, accuracy) in points.items()
            )
            + ".",
            caption="From right to left, fewer and fewer rows are answered. The points are thresholds.",
        ),
    )
    right = "all labels right" if several_labels else "accuracy"
    coverage = Table(
        caption="If answers below a confidence are refused (--abstain_below)",
        columns=("lowest confidence", "rows answered", "coverage", f"{right} among them"),
        rows=tuple(
            (
                f"{each.threshold:g}" if each.threshold else "0 (all)",
                f"{each.answered:,}",
                percent(each.coverage),
                percent(each.accuracy),
            )
            for each in refused
        ),
        numeric=(1, 2, 3),
    )
    return Section(
        name="confidence",
        title="Confidence",
        lead=f"Whether answers with 90 % confidence are right 9 times in 10. Here, {what}: the adapter "
        f"is {tendency} "
        f"(expected calibration error {last.error:.3f}, in {len(last.bins)} bins; 0 is perfect).",
        blocks=(*charts, coverage, table),
    )


def text_length(data: ReportData, rows: Rows, found: Outcomes | None) -> Iterator[Section]:
    """Figures by the length of the text; ``found`` is ``None`` for numbers."""
    if found is None:
        values, what = np.abs(predicted_numbers(data.task, rows) - rows.targets), "mean absolute error"
    else:
        values = found.right.astype(float)
        what = "all labels right" if found.truth.ndim == 2 else "accuracy"
    bins = by_length(rows.lengths, values, shares=found is not None)
    if not bins:
        return
    yield Section(
        name="length",
        title="By text length",
        lead="Rows in bins of about the same size, by their number of tokens, with 95 % confidence "
        "intervals. Where the "
        "intervals overlap, a difference may be chance.",
        blocks=(
            Chart(
                svg=plots.lengths("lengths", bins, what),
                alt=f"{what} by text length: "
                + "; ".join(f"{_span(b)} tokens: {number(b.value)}" for b in bins)
                + ".",
                caption=f"Mean and 95 % interval of {what} per bin.",
            ),
            Table(
                caption=f"{what.capitalize()} by text length",
                columns=("tokens", "rows", what, "95 % interval"),
                rows=tuple(
                    (
                        _span(each),
                        f"{each.rows:,}",
                        bar(each.value) if found is not None else number(each.value),
                        f"{number(each.low)} to {number(each.high)}",
                    )
                    for each in bins
                ),
                numeric=(1, 3),
            ),
        ),
    )


def _span(each: LengthBin) -> str:
    return f"{each.shortest}" if each.shortest == each.longest else f"{each.shortest} to {each.longest}"
