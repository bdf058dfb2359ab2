"""How good it is, next to a constant answer, and how it got there."""

from __future__ import annotations

from collections.abc import Iterator

from ptuning.kinds import metric_named
from ptuning.report.blocks import (
    Bar,
    Block,
    Cell,
    Chart,
    Interval,
    Note,
    Section,
    Table,
    listed,
    number,
    several,
)
from ptuning.report.charts import plots
from ptuning.report.data import ReportData, Rows
from ptuning.report.figures.headline import intervals


def headline(data: ReportData) -> Section:
    """The metrics of every split, with intervals, next to the baseline."""
    blocks: list[Block] = [Note(text=text, loud=True) for text in data.notes]
    blocks += [_metrics(data, rows.known(data.task)) for rows in reversed(data.splits)]
    if data.chosen:
        blocks.append(
            Note(
                text=f"The validation rows also chose {listed(data.chosen)}, so the figures on them are "
                "a little too good."
            )
        )
    rule = f" The baseline is a constant answer, {data.baseline_rule}." if data.baseline_rule else ""
    return Section(
        name="metrics",
        title="Metrics",
        lead=f"How good the adapter is, and how far chance may have moved each figure.{rule} An interval "
        f"has the "
        "metric of 95 % of the resamples of these rows (bootstrap); it says nothing about rows of "
        "another kind. "
        "Where there is a dash, the metric has none: all resamples agree, few of them define it, "
        "there are too many rows to rank in each of them, or it is your own.",
        blocks=tuple(blocks),
    )


def _metrics(data: ReportData, rows: Rows) -> Table:
    found = intervals(data.task, rows, data.class_weights)
    main = data.main_metric
    names = sorted(rows.metrics, key=lambda name: name != main)
    lines: list[tuple[Cell, ...]] = []
    for name in names:
        value, floor, bounds = rows.metrics[name], rows.baseline.get(name), found.bounds.get(name)
        low, high = bounds or (None, None)
        scale: Cell = ""
        if all(0 <= each <= 1 for each in (value, *(bounds or ()))) and not _is_error(data, name):
            scale = Interval(value=value, low=low, high=high, baseline=floor)
        lines.append(
            (
                name.replace("_", " "),
                number(value),
                "–" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}",
                number(floor),
                scale,
            )
        )
    of = "" if rows.source is None else f" of {rows.source}" if rows.source != rows.split else ""
    return Table(
        caption=f"{rows.split}{of}: {several(len(rows), 'row')}; intervals of {found.resamples:,} resamples",
        columns=("metric", "value", "95 % interval", "baseline", "0 to 1; the thin line is the baseline"),
        rows=tuple(lines),
        numeric=(1, 2, 3),
        wide=True,
    )


def _is_error(data: ReportData, name: str) -> bool:
    if name == data.metric and data.greater_is_better is not None:
        return not data.greater_is_better
    return metric_named(name).lower_is_better


def learning(data: ReportData) -> Iterator[Section]:
    """The learning curves, if the run's evaluations are known."""
    if len(data.history) < 2:
        return
    metric = data.main_metric
    validation = next((rows for rows in data.splits if rows.split == "validation"), None)
    floor = {} if validation is None else validation.baseline
    shown = dict.fromkeys([metric, "loss"])
    charts = [
        Chart(
            svg=plots.learning_curve(f"learning-{name}", data.history, data.averaged, name, floor.get(name)),
            alt=_curve_in_words(data, name),
            caption="Validation and training loss: a training loss that falls while the other rises is "
            "overfitting."
            if name == "loss"
            else "The metric that selected the checkpoints: circles are the evaluations that were kept.",
        )
        for name in shown
        if any(name in each["metrics"] for each in data.history)
    ]
    metrics = [name for name in data.history[0]["metrics"] if name != "loss"]
    table = Table(
        caption="Every evaluation on the validation rows",
        columns=(
            "step",
            "epoch",
            "training loss",
            "validation loss",
            *(n.replace("_", " ") for n in metrics),
            "",
        ),
        rows=tuple(
            (
                f"{each['step']:,}",
                f"{each['epoch']:.2f}",
                number(each["train_loss"]),
                number(each["metrics"].get("loss")),
                *(number(each["metrics"].get(name)) for name in metrics),
                "kept" if each["step"] in data.averaged else "",
            )
            for each in data.history
        ),
        numeric=tuple(range(len(metrics) + 4)),
        folded=True,
    )
    how = (
        f"The adapter has the mean of the parameters of {len(data.averaged)} evaluations."
        if len(data.averaged) > 1
        else "The adapter has the parameters of the best evaluation."
    )
    yield Section(
        name="learning",
        title="Learning curves",
        lead=f"The validation rows during training. {how}",
        blocks=(*charts, table),
    )


def _curve_in_words(data: ReportData, metric: str) -> str:
    values = [each["metrics"][metric] for each in data.history if metric in each["metrics"]]
    first, last = number(values[0]), number(values[-1])
    return (
        f"Validation {metric} over {len(values)} evaluations: {first} at the first, {last} at the last, "
        f"between "
        f"{number(min(values))} and {number(max(values))}."
    )


def about(data: ReportData) -> Section:
    """What the adapter is."""
    return Section(
        name="about",
        title="About",
        lead="What the adapter is and how it was trained.",
        blocks=(
            Table(
                caption=f"The adapter {data.name}",
                columns=("", ""),
                rows=tuple((name, text) for name, text in data.facts.items()),
                wide=True,
            ),
        ),
    )


def bar(value: float | None) -> Cell:
    """A share as a bar with its number."""
    return "–" if value is None else Bar(text=number(value), share=value)
