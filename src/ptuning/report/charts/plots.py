"""One function per chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ptuning.report.charts.drawing import (
    ACCENT,
    HEIGHT,
    INK,
    LINE,
    SECOND,
    SERIES,
    SOFT,
    WIDTH,
    heat,
    legend,
    named,
    svg,
)
from ptuning.report.data import Floats
from ptuning.report.figures.classes import Counts
from ptuning.report.figures.confidence import Reliability
from ptuning.report.figures.curves import Curves
from ptuning.report.figures.lengths import LengthBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 3000
"""A scatter plot with more points is thinned out evenly."""
_ANNOTATED = 20
"""The most classes of a matrix whose cells are labelled with their counts."""


def learning_curve(
    name: str, history: Sequence[Mapping[str, Any]], averaged: Sequence[int], metric: str, floor: float | None
) -> str:
    """The validation metric over the steps, with the kept evaluations and the constant answer."""
    points = [(each["step"], each["metrics"].get(metric)) for each in history]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        known = [(step, value) for step, value in points if value is not None]
        axes.plot(
            [step for step, _ in known],
            [value for _, value in known],
            color=ACCENT,
            marker="o",
            markersize=3,
            label=f"validation {metric}",
        )
        if metric == "loss":
            trained = [(each["step"], each["train_loss"]) for each in history]
            axes.plot(
                [step for step, _ in trained],
                [value for _, value in trained],
                color=SECOND,
                marker="o",
                markersize=3,
                linestyle="--",
                label="training loss",
            )
        kept = [(step, value) for step, value in known if step in averaged]
        axes.plot(
            [step for step, _ in kept],
            [value for _, value in kept],
            color=INK,
            marker="o",
            markersize=9,
            markerfacecolor="none",
            linestyle="none",
            label="kept" if len(kept) < 2 else "kept, averaged",
        )
        if floor is not None:
            axes.axhline(floor, color=SOFT, linestyle=":", linewidth=1.4, label="constant answer")
        _steps(axes, metric)
        legend(axes)

    return svg(name, draw)


def learning_curves(
    name: str,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    averaged: Mapping[str, Sequence[int]],
    metric: str,
) -> str:
    """The validation metric of several runs over the steps; by name."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (label, history) in enumerate(histories.items()):
            colour, style = SERIES[number % len(SERIES)], ("-", "--", ":", "-.")[number // len(SERIES) % 4]
            points = [(e["step"], e["metrics"][metric]) for e in history if metric in e["metrics"]]
            axes.plot(
                *zip(*points, strict=True), color=colour, linestyle=style, linewidth=1.4, label=named(label)
            )
            kept = [point for point in points if point[0] in averaged[label]]
            if kept:
                axes.plot(
                    *zip(*kept, strict=True),
                    color=colour,
                    marker="o",
                    markersize=6,
                    fillstyle="none",
                    linestyle="none",
                )
        _steps(axes, f"validation {metric}")
        if len(histories) <= 2 * len(SERIES):
            legend(axes)

    lines = min(len(histories), 2 * len(SERIES)) if len(histories) <= 2 * len(SERIES) else 0
    return svg(name, draw, height=HEIGHT + 0.12 * lines)


def _steps(axes: Axes, what: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="optimizer steps", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def matrix(name: str, counts: Counts, labels: Sequence[str] | None, *, shares: Floats | None = None) -> str:
    """A confusion matrix, each row shaded by its shares.

    Args:
        counts: ``[C, C]``.
        labels: ``[C]``; without them neither classes nor cells are labelled.
        shares: ``[C, C]``, what the shades show; those of the rows of ``counts`` if left out.
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    size, longest = len(counts), max(map(len, labels or ("",)))
    if shares is None:
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown = ConfusionMatrixDisplay(counts, display_labels=labels)
        shown.plot(
            ax=axes,
            cmap=heat(),
            colorbar=False,
            include_values=labels is not None and size <= _ANNOTATED,
            xticks_rotation="horizontal" if size <= 3 and longest <= 12 else "vertical",
            values_format="d",
            text_kw={"color": INK, "fontsize": 9 if size <= 12 else 7.5},
        )
        shown.im_.set(data=shares, clim=(0, 1))
        for text in () if shown.text_ is None else shown.text_.ravel():
            if text.get_text() == "0":
                text.set_color(SOFT)
        axes.grid(False)
        axes.set(xlabel="predicted", ylabel="label")
        if labels is None:
            axes.set(xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set(visible=True, color=LINE)
        axes.tick_params(length=0, labelsize=9 if size <= 12 else 8)

    width = min(8.6, max(3.6, 1.9 + 0.38 * size)) if labels is not None else 5.4
    return svg(name, draw, width=width, height=width * (0.8 if size <= 4 else 0.95))


def roc(name: str, found: Sequence[Curves], labels: Sequence[str]) -> str:
    """ROC curves, one per label."""
    from sklearn.metrics import RocCurveDisplay

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for each, colour in zip(found, SERIES, strict=False):
            shown = RocCurveDisplay(
                fpr=each.false_positive_rate, tpr=each.true_positive_rate, roc_auc=each.auc
            )
            _restyle(axes, shown.plot, colour, f"{labels[each.index]} (AUC {each.auc:.3f})")
        axes.plot([0, 1], [0, 1], color=SOFT, linestyle=":", linewidth=1.4, label="chance")
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02))
        legend(axes, ncols=1 if len(found) == 1 else 2)

    return svg(name, draw, height=HEIGHT + 0.4 + 0.12 * len(found))


def precision_recall(name: str, found: Sequence[Curves], labels: Sequence[str]) -> str:
    """Precision-recall curves, one per label."""
    from sklearn.metrics import PrecisionRecallDisplay

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for each, colour in zip(found, SERIES, strict=False):
            shown = PrecisionRecallDisplay(precision=each.precision, recall=each.recall)
            _restyle(axes, shown.plot, colour, f"{labels[each.index]} (AP {each.average_precision:.3f})")
            if len(found) == 1:
                axes.axhline(each.prevalence, color=SOFT, linestyle=":", linewidth=1.4, label="chance")
        axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
        legend(axes, ncols=1 if len(found) == 1 else 2)

    return svg(name, draw, height=HEIGHT + 0.4 + 0.12 * len(found))


def _restyle(axes: Axes, plot: Any, colour: str, label: str) -> None:
    """Draw a display's curve in our colour: how it is told differs between versions of scikit-learn."""
    before = len(axes.get_lines())
    label = named(label)
    plot(ax=axes, name=label)
    for line in axes.get_lines()[before:]:
        line.set(color=colour, label=label)
    axes.set_aspect("auto")


def reliability(name: str, found: Sequence[Reliability], what: str) -> str:
    """The reliability diagram, and how many predictions there are at each confidence.

    Args:
        what: The name of what the confidence is compared with.
    """
    from sklearn.calibration import CalibrationDisplay

    def draw(figure: Figure) -> None:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        for each, colour in zip(found, (ACCENT,) if len(found) == 1 else (SECOND, ACCENT), strict=True):
            bins = [bin for bin in each.bins if bin.count]
            shown = CalibrationDisplay(
                np.array([bin.accuracy for bin in bins]),
                np.array([bin.confidence for bin in bins]),
                np.array([bin.confidence for bin in bins]),
            )
            label = f"temperature {each.temperature:.2f} (ECE {each.error:.3f})"
            shown.plot(ax=axes, ref_line=False, name=label)
            axes.get_lines()[-1].set(color=colour, marker="", linewidth=1.2, label=label)
            sizes = 12 + 90 * np.array([bin.count for bin in bins]) / max(bin.count for bin in bins)
            axes.scatter(
                [bin.confidence for bin in bins], [bin.accuracy for bin in bins], sizes, colour, zorder=3
            )
        axes.plot([0, 1], [0, 1], color=SOFT, linestyle=":", linewidth=1.4, label="perfectly calibrated")
        axes.set(xlabel="", ylabel=what, xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
        last = found[-1].bins
        below.bar(
            [bin.lower for bin in last],
            [bin.count for bin in last],
            width=[(bin.upper - bin.lower) * 0.9 for bin in last],
            align="edge",
            color=ACCENT,
        )
        below.set(xlabel="confidence", ylabel="answers")
        axes.legend(loc="upper left")

    return svg(name, draw, height=HEIGHT + 0.6)


def risk_coverage(
    name: str, coverage: Floats, accuracy: Floats, points: Mapping[str, tuple[float, float]], what: str
) -> str:
    """Accuracy over coverage, with the thresholds of the table.

    Args:
        points: Coverage and accuracy by threshold, as written.
        what: The name of the accuracy.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(coverage, accuracy, color=ACCENT)
        last = float("inf")
        for text, (x, y) in points.items():
            axes.plot([x], [y], marker="o", markersize=4, color=INK)
            if last - x < 0.06:  # the texts of thresholds close to each other would cover each other
                continue
            last = x
            axes.annotate(text, (x, y), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8)
        axes.set(xlabel="coverage: share of the rows that get an answer", ylabel=what)
        axes.set_xlim(-0.02, 1.05)
        axes.margins(y=0.15)

    return svg(name, draw)


def lengths(name: str, bins: Sequence[LengthBin], what: str) -> str:
    """A mean per bin of lengths, with its interval."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(bins))
        values = np.array([each.value for each in bins])
        spread = np.array([[each.value - each.low, each.high - each.value] for each in bins]).T
        axes.errorbar(
            places, values, np.maximum(spread, 0), color=ACCENT, marker="o", capsize=4, linewidth=1.4
        )
        axes.set_xticks(
            places,
            [
                f"{bin.shortest}–{bin.longest}" if bin.longest > bin.shortest else str(bin.shortest)
                for bin in bins
            ],
        )
        axes.set(xlabel="tokens", ylabel=what)
        axes.margins(x=0.1, y=0.15)

    return svg(name, draw, height=HEIGHT - 0.3)


def errors(name: str, truth: Floats, predicted: Floats, kind: str) -> str:
    """Predictions against targets, or residuals against predictions.

    Args:
        kind: ``actual_vs_predicted`` or ``residual_vs_predicted``.
    """
    from matplotlib.ticker import AutoLocator
    from sklearn.metrics import PredictionErrorDisplay

    step = -(-len(truth) // MOST_POINTS)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        PredictionErrorDisplay(y_true=truth[::step], y_pred=predicted[::step]).plot(
            ax=axes,
            kind=kind,
            scatter_kwargs={"color": ACCENT, "alpha": 0.55, "s": 16, "linewidths": 0},
            line_kwargs={"color": SOFT, "linestyle": ":", "linewidth": 1.4},
        )
        residual = kind == "residual_vs_predicted"
        axes.set(xlabel="prediction", ylabel="label − prediction" if residual else "label")
        axes.set_aspect("auto")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(AutoLocator())  # the display puts ticks at odd numbers

    return svg(name, draw, width=WIDTH, height=HEIGHT + 0.4)
