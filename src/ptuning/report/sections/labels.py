"""Which labels are recognised, and which are taken for which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ptuning.report.blocks import Block, Cell, Chart, Section, Table, number, percent, several, shown_label
from ptuning.report.charts import plots
from ptuning.report.charts.drawing import SERIES
from ptuning.report.data import ReportData
from ptuning.report.figures.classes import (
    ClassFigures,
    Confused,
    by_class,
    confusion,
    most_confused,
    similar_together,
    worst_classes,
)
from ptuning.report.figures.curves import Curves, curves
from ptuning.report.figures.outcomes import Outcomes
from ptuning.report.sections.overview import bar
from ptuning.task import Label

MATRIX = 20
"""With more classes the matrix is shown twice: all classes without names, and the most confused with them."""
PAIRS = 12
_OPEN_ROWS = 12
_TICK = 18


def matrices(data: ReportData, found: Outcomes) -> Iterator[Section]:
    """The confusion matrix, of tasks with one label per row."""
    if found.truth.ndim != 1:
        return
    counts, labels = confusion(found), data.task.labels
    wrong = int(counts.sum() - counts.trace())
    blocks: list[Block] = []
    if len(labels) <= MATRIX:
        names = [shown_label(label, _TICK) for label in labels]
        blocks.append(
            Chart(
                svg=plots.matrix("matrix", counts, names),
                alt=_in_words(counts.tolist(), [shown_label(label) for label in labels]),
                caption="Shades are shares of a row; numbers are rows.",
                wide=len(labels) > 6,
            )
        )
    else:
        order = similar_together(counts)
        all_shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        blocks.append(
            Chart(
                svg=plots.matrix(
                    "matrix", counts[order][:, order], None, shares=np.sqrt(all_shares)[order][:, order]
                ),
                alt=f"The confusion matrix of all {len(labels)} classes, {wrong:,} of {counts.sum():,} "
                f"rows off "
                "the diagonal. The table has the pairs with the most mistakes.",
                caption=f"All {len(labels)} classes, those that are confused next to each other: squares "
                "around the diagonal are groups of similar classes. Shades are roots of shares, so that rare "
                "mistakes show.",
            )
        )
    pairs = most_confused(counts, PAIRS)
    if pairs and len(labels) > 2:
        blocks.append(_pairs(pairs, labels))
    if len(labels) > MATRIX and len(worst := worst_classes(counts, MATRIX)):
        worst = worst[similar_together(counts[worst][:, worst])]
        part = counts[worst][:, worst]
        blocks.append(
            Chart(
                svg=plots.matrix(
                    "worst",
                    part,
                    [shown_label(labels[each], _TICK) for each in worst],
                    shares=part / counts[worst].sum(axis=1, keepdims=True).clip(1),
                ),
                alt=_in_words(part.tolist(), [shown_label(labels[each]) for each in worst]),
                caption=f"The {len(worst)} classes that take part in the most mistakes.",
                wide=True,
            )
        )
    yield Section(
        name="confusion",
        title="Confusion matrix",
        lead=f"Rows are labels, columns are predictions. {wrong:,} of {several(int(counts.sum()), 'row')} "
        f"{'is' if wrong == 1 else 'are'} off the diagonal.",
        blocks=tuple(blocks),
    )


def _pairs(pairs: Sequence[Confused], labels: Sequence[Label]) -> Table:
    return Table(
        caption="The pairs with the most mistakes",
        columns=("label", "predicted", "rows", "of the label's rows", "reversed"),
        rows=tuple(
            (
                shown_label(labels[each.truth]),
                shown_label(labels[each.predicted]),
                f"{each.count:,}",
                percent(each.share),
                f"{each.back:,}",
            )
            for each in pairs
        ),
        numeric=(2, 3, 4),
    )


def _in_words(counts: list[list[int]], labels: list[str]) -> str:
    """A matrix for those who cannot see it: the right rows of each class, and where the wrong ones went."""
    said = []
    for index, (row, label) in enumerate(zip(counts, labels, strict=True)):
        wrong = [(count, labels[other]) for other, count in enumerate(row) if other != index and count]
        wrong.sort(key=lambda each: -each[0])
        went = ", ".join(f"{count} as {other}" for count, other in wrong[:3])
        said.append(f"{label}: {row[index]} right{f', {went}' if went else ''}")
    return "; ".join(said) + "."


def classes(data: ReportData, found: Outcomes) -> Section:
    """Precision, recall, F1 and support of each label."""
    figures = by_class(found)
    area = {each.index: each for each in curves(found)} if found.truth.ndim == 2 else {}
    labels, many = data.task.labels, len(figures) > _OPEN_ROWS
    columns: tuple[str, ...] = ("label", "precision", "recall", "F1", "rows", "predicted")
    if found.truth.ndim == 2:
        columns = (*columns, "AUC", "average precision")

    def line(each: ClassFigures) -> tuple[Cell, ...]:
        cells: tuple[Cell, ...] = (
            shown_label(labels[each.index]),
            number(each.precision),
            number(each.recall),
            bar(each.f1),
            f"{each.support:,}",
            f"{each.predicted:,}",
        )
        if found.truth.ndim == 1:
            return cells
        curve = area.get(each.index)
        return (
            *cells,
            number(None if curve is None else curve.auc),
            number(None if curve is None else curve.average_precision),
        )

    numeric = tuple(each for each in range(1, len(columns)) if each != 3)
    blocks: list[Block] = []
    if many:
        worst = sorted(
            (each for each in figures if each.f1 is not None), key=lambda each: (each.f1, -each.support)
        )
        blocks.append(
            Table(
                caption=f"The {min(_OPEN_ROWS, len(worst))} labels with the lowest F1",
                columns=columns,
                rows=tuple(map(line, worst[:_OPEN_ROWS])),
                numeric=numeric,
                wide=True,
            )
        )
    blocks.append(
        Table(
            caption=f"All {len(figures)} labels" if many else "By label",
            columns=columns,
            rows=tuple(map(line, figures)),
            numeric=numeric,
            folded=many,
            wide=True,
        )
    )
    unseen = sum(not each.support for each in figures)
    without = (
        f" {several(unseen, 'label')} of the task {'has' if unseen == 1 else 'have'} no row here."
        if unseen
        else ""
    )
    return Section(
        name="labels",
        title="By label",
        lead="Precision: of the rows that were given the label, the share that has it. Recall: of the "
        "rows that have "
        f"it, the share that was given it. F1 is their harmonic mean. A dash: there are no such "
        f"rows.{without}",
        blocks=tuple(blocks),
    )


def thresholds(data: ReportData, found: Outcomes) -> Iterator[Section]:
    """ROC and precision-recall curves, of two classes or several labels."""
    all_curves = curves(found)
    if not all_curves:
        return
    shown: tuple[Curves, ...] = all_curves
    if len(shown) > len(SERIES):
        shown = tuple(sorted(all_curves, key=lambda each: each.average_precision)[: len(SERIES)])
    names = [shown_label(label, 24) for label in data.task.labels]
    which = (
        f" The {len(shown)} labels with the lowest average precision." if len(shown) < len(all_curves) else ""
    )
    said = "; ".join(f"{names[each.index]}: {each.auc:.3f}" for each in shown)
    precise = "; ".join(f"{names[each.index]}: {each.average_precision:.3f}" for each in shown)
    yield Section(
        name="thresholds",
        title="ROC and precision-recall",
        lead="What other thresholds would give: each point of a curve is a probability above which the "
        "answer is "
        f"{repr(names[1]) if found.truth.ndim == 1 else 'that the row has the label'}.{which}",
        blocks=(
            Chart(
                svg=plots.roc("roc", shown, names),
                alt=f"ROC curves. Area under the curve: {said}.",
                caption="The area under it (AUC) is the chance that a row with the label gets a higher "
                "probability "
                "than one without.",
            ),
            Chart(
                svg=plots.precision_recall("precision-recall", shown, names),
                alt=f"Precision-recall curves. Average precision: {precise}.",
                caption="The better picture for rare labels. AP is the average precision.",
            ),
        ),
    )
