"""Rows to read: mistakes, uncertain answers, likely label errors, large errors; with their texts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ptuning.report.blocks import (
    Block,
    Cell,
    Chart,
    Note,
    Section,
    Table,
    number,
    several,
    shown_label,
    shown_texts,
    signed,
)
from ptuning.report.charts import plots
from ptuning.report.data import ReportData, Rows
from ptuning.report.figures.label_errors import label_errors
from ptuning.report.figures.outcomes import Outcomes, predicted_numbers
from ptuning.report.figures.rows import confident_mistakes, largest_errors, least_certain

SHOWN = 12


def mistakes(data: ReportData, rows: Rows, found: Outcomes) -> Section:
    """The most confident mistakes and the least certain rows."""
    wrong = int((~found.right).sum())
    blocks: list[Block] = []
    if wrong:
        chosen = confident_mistakes(found, SHOWN)
        blocks.append(
            _answers(f"The most confident mistakes, {len(chosen)} of {wrong:,}", data, rows, found, chosen)
        )
    else:
        blocks.append(Note(text=f"All {several(len(rows), 'row')} are right."))
    blocks.append(
        _answers("The least certain rows", data, rows, found, least_certain(found, min(SHOWN, len(rows))))
    )
    return Section(
        name="rows",
        title="Rows to read",
        lead="Confident mistakes show what the adapter has not learned, or wrong labels. Rows like the "
        "least certain "
        f"ones are worth labelling next.{_without_texts(data, rows)}",
        blocks=tuple(blocks),
    )


def suspects(data: ReportData, rows: Rows, found: Outcomes) -> Section:
    """Likely label errors."""
    errors = label_errors(found)
    blocks: tuple[Block, ...]
    if errors.missing is not None:
        blocks = (Note(text=errors.missing),)
    elif not len(errors.rows):
        blocks = (Note(text=f"None among {several(len(rows), 'row')}."),)
    else:
        chosen = errors.rows[:SHOWN]
        of = f", {len(chosen)} of {len(errors.rows):,}" if len(chosen) < len(errors.rows) else ""
        blocks = (_answers(f"Rows whose label may be wrong{of}", data, rows, found, chosen),)
    return Section(
        name="label-errors",
        title="Likely label errors",
        lead="Rows whose label the adapter finds less plausible than is usual for that label (confident "
        "learning). Some "
        "are label errors, some are the adapter's own mistakes: read them before you change a label.",
        blocks=blocks,
    )


def _answers(caption: str, data: ReportData, rows: Rows, found: Outcomes, chosen: Iterable[int]) -> Table:
    labels = data.task.labels

    def named(answer: np.ndarray | np.int64) -> str:
        if found.truth.ndim == 1:
            return shown_label(labels[int(answer)])
        return ", ".join(shown_label(labels[each]) for each in np.flatnonzero(answer)) or "no label"

    def line(index: int) -> tuple[Cell, ...]:
        return (
            f"{rows.number(index):,}",
            *([] if rows.texts is None else [shown_texts(rows.texts[index])]),
            named(found.truth[index]),
            named(found.predicted[index]),
            f"{found.confidence[index]:.3f}",
        )

    text = () if rows.texts is None else ("text",)
    return Table(
        caption=caption,
        columns=("row", *text, "label", "predicted", "confidence"),
        rows=tuple(line(int(each)) for each in chosen),
        numeric=(0, len(text) + 3),
        wide=True,
    )


def errors(data: ReportData, rows: Rows) -> Section:
    """Predicted numbers against the targets, and residuals."""
    predicted, truth = predicted_numbers(data.task, rows), rows.targets
    residual = truth - predicted
    spread = f"mean {number(float(residual.mean()))}, standard deviation {number(float(residual.std()))}"
    return Section(
        name="errors",
        title="Predictions and errors",
        lead=f"Residuals are the label minus the prediction: {spread}. A tilt or a bend in the second "
        f"picture is "
        "something that the adapter could still learn.",
        blocks=(
            Chart(
                svg=plots.errors("predictions", truth, predicted, "actual_vs_predicted"),
                alt=f"Scatter plot of labels, {number(float(truth.min()))} to "
                f"{number(float(truth.max()))}, against "
                f"predictions, {number(float(predicted.min()))} to {number(float(predicted.max()))}.",
                caption="On the dotted line, the prediction is the label.",
            ),
            Chart(
                svg=plots.errors("residuals", truth, predicted, "residual_vs_predicted"),
                alt=f"Scatter plot of residuals against predictions; residuals: {spread}, "
                f"{number(float(residual.min()))} to {number(float(residual.max()))}.",
                caption="Above the dotted line, the prediction is too low.",
            ),
        ),
    )


def largest(data: ReportData, rows: Rows) -> Section:
    """The rows with the largest errors."""
    predicted, truth = predicted_numbers(data.task, rows), rows.targets
    text = () if rows.texts is None else ("text",)
    chosen = largest_errors(predicted, truth, min(SHOWN, len(rows)))
    return Section(
        name="rows",
        title="Rows to read",
        lead=f"The largest errors: difficult rows, or wrong labels.{_without_texts(data, rows)}",
        blocks=(
            Table(
                caption="The largest errors",
                columns=("row", *text, "label", "predicted", "residual"),
                rows=tuple(
                    (
                        f"{rows.number(int(each)):,}",
                        *([] if rows.texts is None else [shown_texts(rows.texts[int(each)])]),
                        number(float(truth[each])),
                        number(float(predicted[each])),
                        signed(float(truth[each] - predicted[each])),
                    )
                    for each in chosen
                ),
                numeric=(0, len(text) + 1, len(text) + 2, len(text) + 3),
                wide=True,
            ),
        ),
    )


def _without_texts(data: ReportData, rows: Rows) -> str:
    if rows.texts is not None:
        return f" Row numbers are those of {rows.source}." if rows.source else ""
    why = "Their texts are left out" if data.no_texts else "The rows are token ids without texts"
    return f" {why}; the row numbers say which they are."
