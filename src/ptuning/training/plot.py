"""The plot of a search: the metric of each trial against the values that it tried."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptuning.training.metrics import Selection
from ptuning.training.trials import Trial, chance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*X"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
"""The palette of Okabe and Ito, suitable for colour-blind readers."""


def plot(trials: Sequence[Trial], kept: Trial, metric: str, rows: float) -> bytes:
    """A PNG of the validation metric of ``trials`` against the learning rate, with a marker per first layer.

    The x-axis is the prompt's learning rate; if that was not searched, the head's, or else the first layer.
    Pruned trials are hollow. Trials that diverged or have no such metric are on the lower edge. ``kept``
    has a ring. The grey band is the lead over the first trial that may be chance
    (:func:`~ptuning.training.trials.chance`).
    """
    from matplotlib.figure import Figure  # not pyplot, which has global state

    name = next(
        each for each in ("learning_rate", "head_learning_rate", "first_layer") if each in kept.values
    )
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    best = kept.value(metric)
    shown = [(trial, value) for trial in trials if (value := trial.value(metric)) is not None]
    floor = min((value for _, value in shown), default=0.0)
    layers = sorted({trial.values.get("first_layer") for trial in trials}, key=lambda each: each or 0)
    for place, layer in enumerate(layers):
        marker, colour = _MARKERS[place % len(_MARKERS)], _COLOURS[place % len(_COLOURS)]
        size = max(170 - 70 * place, 25)  # different sizes, so that markers at the same place stay visible
        of_layer = [(trial, value) for trial, value in shown if trial.values.get("first_layer") == layer]
        for state, face in (("complete", colour), ("pruned", "none")):
            points = [(trial.values[name], value) for trial, value in of_layer if trial.state == state]
            axes.scatter(
                [x for x, _ in points],
                [y for _, y in points],
                s=size,
                marker=marker,
                facecolors=face,
                edgecolors=colour,
                linewidths=1.6,
                zorder=3 + place,
            )
        if layer is not None:
            axes.scatter([], [], s=size, marker=marker, color=colour, label=f"first layer {layer}")
    first, error = trials[0].value(metric), chance(trials, metric, rows)
    if first is not None and error is not None:
        end = first + Selection(metric=metric).sign * error
        axes.axhspan(first, end, color="0.92", zorder=0, label="may be chance")
    diverged = [trial.values[name] for trial in trials if trial.state == "diverged"]
    if diverged:
        axes.scatter(diverged, [floor] * len(diverged), s=60, marker="x", color="0.35", label="diverged")
    without = [
        each.values[name] for each in trials if each.state != "diverged" and each.value(metric) is None
    ]
    if without:
        axes.scatter(without, [floor] * len(without), s=60, marker="+", color="0.35", label=f"no {metric}")
    if any(trial.state == "pruned" for trial in trials):
        axes.scatter([], [], s=60, facecolors="none", edgecolors="0.35", linewidths=1.6, label="pruned")
    axes.scatter(
        [kept.values[name]],
        [floor if best is None else best],
        s=380,
        facecolors="none",
        edgecolors="black",
        linewidths=1.4,
        label=f"kept (trial {kept.number})",
        zorder=3 + len(layers),
    )
    _label(axes, trials, kept, metric, name)
    png = io.BytesIO()
    figure.savefig(png, dpi=130, format="png")
    return png.getvalue()


def _label(axes: Axes, trials: Sequence[Trial], kept: Trial, metric: str, name: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_title(f"{len(trials)} short trials, kept: {kept}", fontsize=10)
    axes.set_ylabel(f"best validation {metric} of the trial")
    if name == "first_layer":
        axes.set_xlabel("first layer with a prompt")
        axes.set_xticks(sorted({trial.values[name] for trial in trials}))
    else:
        axes.set_xlabel(f"{name.replace('_', ' ')} (log scale)")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, which="both")
    # Outside the axes, because markers may be anywhere inside.
    axes.legend(fontsize=8, markerscale=0.6, labelspacing=0.8, loc="upper left", bbox_to_anchor=(1, 1))
