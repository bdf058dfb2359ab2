"""Whether probabilities can be trusted, and for which texts the answers are right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ptuning.kinds import LabelForm
from ptuning.report.blocks import Chart, Section, Table, listed, number, percent, several
from ptuning.report.charts import plots
from ptuning.report.data import FITTED, ReportData, Rows
from ptuning.report.figures.confidence import Reliability, abstention, reliability, risk_coverage
from ptuning.report.figures.lengths import LengthBin, by_length
from ptuning.report.figures.outcomes import Outcomes, predicted_numbers
from ptuning.report.sections.overview import bar

_MARGIN = 0.01
"""A smaller mean difference between confidence and accuracy is not worth a word."""


def confidence(data: ReportData, found: Outcomes) -> Section:
    """The reliability diagram, and coverage and accuracy at thresholds."""
    made, labels = reliability(data.task, data.rows), data.task.kind.form is LabelForm.SEVERAL
    last = made[-1]
    if labels:
        lead = (
            "Whether a label with a probability of 90 % is there in 9 of 10 rows. Over all labels, the "
            f"probabilities are {_tendency(last, 'too high', 'too low', 'right')} on average "
        )
    else:
        lead = (
            "Whether answers with a confidence of 90 % are right 9 times in 10. The adapter is "
            f"{_tendency(last, 'overconfident', 'underconfident', 'neither over- nor underconfident')} "
        )
    # Rows that the temperature or the thresholds were fitted to do not show what they do for others.
    fitted = [what for what in data.chosen if what in FITTED] if data.rows.split == "validation" else []
    biased = (
        f" These rows also chose {listed(fitted)}, so the figures are a little too good." if fitted else ""
    )
    return Section(
        name="confidence",
        title="Confidence",
        lead=f"{lead}(expected calibration error {last.error:.3f} in {len(last.bins)} bins; 0 is perfect)."
        + biased,
        blocks=(
            Chart(
                svg=plots.reliability(
                    "reliability", made, "share that has the label" if labels else "accuracy"
                ),
                alt="Reliability diagram. "
                + "; ".join(
                    f"confidence {each.confidence:.2f}: {each.accuracy:.2f}, {several(each.count, 'answer')}"
                    for each in last.bins
                    if each.count
                )
                + ".",
                caption="Below the dotted line, probabilities are too high. Large points and high bars "
                "are many "
                "answers.",
            ),
            *_refusing(found, "all labels right" if labels else "accuracy"),
            Table(
                caption="Calibration",
                columns=("temperature", "expected calibration error", "log loss"),
                rows=tuple(
                    (
                        f"{each.temperature:.3f}{' (before)' if each is not last else ''}",
                        number(each.error, 4),
                        number(each.log_loss, 4),
                    )
                    for each in made
                ),
                numeric=(1, 2),
            ),
        ),
    )


def _tendency(found: Reliability, over: str, under: str, neither: str) -> str:
    """Whether accuracy is below or above confidence on average, in words."""
    full = [each for each in found.bins if each.count]
    gap = sum(each.gap * each.count for each in full) / sum(each.count for each in full)
    return over if gap < -_MARGIN else under if gap > _MARGIN else neither


def _refusing(found: Outcomes, what: str) -> tuple[Chart, Table]:
    """Coverage and accuracy if the least certain answers are refused."""
    refused = abstention(found)
    points = {
        f"{each.threshold:g}": (each.coverage, each.accuracy)
        for each in refused
        if each.accuracy is not None and each.threshold > 0
    }
    chart = Chart(
        svg=plots.risk_coverage("coverage", *risk_coverage(found), points, what),
        alt=f"{what.capitalize()} if the least certain rows get no answer. "
        + "; ".join(
            f"threshold {name}: {percent(coverage)} answered, {percent(accuracy)} right"
            for name, (coverage, accuracy) in points.items()
        )
        + ".",
        caption="From right to left, fewer rows are answered. The points are thresholds of the confidence.",
    )
    table = Table(
        caption="If answers below a confidence are refused (--abstain_below)",
        columns=("lowest confidence", "rows answered", "coverage", f"{what} among them"),
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
    return chart, table


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
                numeric=(1, 3) if found is not None else (1, 2, 3),
            ),
        ),
    )


def _span(each: LengthBin) -> str:
    return f"{each.shortest}" if each.shortest == each.longest else f"{each.shortest} to {each.longest}"
