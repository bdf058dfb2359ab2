"""Several adapters, or several runs of one training, side by side on one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

import numpy as np

from ptuning.kinds import LabelForm, metric_named
from ptuning.report.blocks import (
    Block,
    Cell,
    Chart,
    Note,
    Section,
    Table,
    number,
    percent,
    several,
    shown_label,
    shown_texts,
    signed,
)
from ptuning.report.charts import plots
from ptuning.report.charts.drawing import SERIES
from ptuning.report.data import Comparison, Entry, Rows
from ptuning.report.figures.differences import Difference, compared, disagreements
from ptuning.report.figures.headline import intervals
from ptuning.report.figures.outcomes import outcomes, predicted_numbers
from ptuning.report.page import rendered
from ptuning.task import Task

_ROWS = 15
_BIASED = (
    "The validation rows of a training also choose its checkpoint and what is fitted after it, so the "
    "figures on them are a little too good."
)
_SIDE_BY_SIDE = 4
"""The most adapters whose answers fit next to a text."""


def comparison_page(comparison: Comparison) -> str:
    """The page, as HTML."""
    return rendered(
        title=comparison.title,
        subtitle=f"{several(len(comparison.entries), comparison.what)} side by side",
        sections=tuple(_sections(comparison)),
    )


def _sections(comparison: Comparison) -> Iterator[Section]:
    yield _metrics(comparison)
    if len(comparison.entries) > 1:
        yield from _same_rows(comparison)
    yield from _learning(comparison)
    yield _facts(comparison)


# ---------------------------------------------------------------------------------------- metrics


def _metrics(comparison: Comparison) -> Section:
    splits = dict.fromkeys(split for entry in comparison.entries for split in entry.metrics)
    biased = [Note(text=_BIASED)] if "validation" in splits and not _scored(comparison.entries) else []
    notes = [Note(text=f"{entry.name}: {entry.note}") for entry in comparison.entries if entry.note]
    return Section(
        name="metrics",
        title="Metrics",
        lead="A star marks the best value of a column. Small differences are often chance: "
        "see the intervals, "
        "or train with several seeds.",
        blocks=(*(_table(comparison, split) for split in splits), *biased, *notes),
    )


def _table(comparison: Comparison, split: str) -> Table:
    entries = [entry for entry in comparison.entries if split in entry.metrics]
    found = dict.fromkeys(name for entry in entries for name in entry.metrics[split])
    names = sorted(found, key=lambda name: name != comparison.metric)
    best = {name: _best(entries, split, name) for name in names}
    same = _comparable(entries, split)
    lines: list[tuple[Cell, ...]] = []
    for entry in entries:
        bounds = _bounds(entry, split, comparison.metric)
        stars = same and len(entries) > 1
        cells = [_starred(entry.metrics[split].get(name), best[name] if stars else None) for name in names]
        interval = "–" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"
        lines.append((entry.name + (" (chosen)" if entry.best else ""), interval, *cells))
    if comparison.spread and len(entries) > 1:
        values = {name: [entry.metrics[split].get(name) for entry in entries] for name in names}
        spread = [
            "–" if None in each else f"{number(fmean(_known(each)))} ± {number(stdev(_known(each)))}"
            for each in values.values()
        ]
        lines.append(("mean ± standard deviation", "", *spread))
    if same and (floor := _shared_floor(entries, split)):
        lines.append(("constant answer", "", *(number(floor.get(name)) for name in names)))
    intervals_known = any(line[1] not in ("", "–") for line in lines)
    columns = (
        comparison.what,
        f"{comparison.metric}, 95 % interval",
        *(name.replace("_", " ") for name in names),
    )
    if not intervals_known:
        columns, lines = (columns[0], *columns[2:]), [(line[0], *line[2:]) for line in lines]
    return Table(
        caption=f"Metrics on {split}"
        + ("" if same else "; the rows or labels differ, so no value is the best"),
        columns=columns,
        rows=tuple(lines),
        numeric=tuple(range(1, len(columns))),
        wide=True,
    )


def _comparable(entries: Sequence[Entry], split: str) -> bool:
    """Whether the metrics of a split were measured on the same rows with the same labels, as far as is known.

    If the rows are not known, another constant answer means others. Its loss is left out: it depends on the
    training rows too.
    """
    if (found := _scored(entries)) is not None and all(rows.split == split for _, rows in found):
        return _alike(found)
    floors = [
        {name: value for name, value in entry.baseline.get(split, {}).items() if name != "loss"}
        for entry in entries
    ]
    return all(floor == floors[0] for floor in floors)


def _shared_floor(entries: Sequence[Entry], split: str) -> dict[str, float]:
    """The metrics of the constant answer that are the same for all."""
    first, *others = (entry.baseline.get(split, {}) for entry in entries)
    return {name: value for name, value in first.items() if all(o.get(name) == value for o in others)}


def _bounds(entry: Entry, split: str, metric: str) -> tuple[float, float] | None:
    if entry.rows is None or entry.task is None or entry.rows.split != split:
        return None
    return intervals(entry.task, entry.rows.known(entry.task), entry.class_weights).bounds.get(metric)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _best(entries: Sequence[Entry], split: str, name: str) -> float | None:
    values = _known([entry.metrics[split].get(name) for entry in entries])
    directions = {e.greater_is_better[name] for e in entries if name in e.greater_is_better}
    if not values or len(directions) > 1:  # trained for opposite ends
        return None
    greater = directions.pop() if directions else not metric_named(name).lower_is_better
    return (max if greater else min)(values)


def _starred(value: float | None, best: float | None) -> str:
    return number(value) + (" ★" if value is not None and value == best else "")


# ------------------------------------------------------------------------------ on the same rows


def _scored(entries: Sequence[Entry]) -> list[tuple[Task, Rows]] | None:
    """The rows of each entry that have a target, or ``None`` if those of an entry are not known."""
    found = [
        (entry.task, entry.rows.known(entry.task))
        for entry in entries
        if entry.task is not None and entry.rows is not None
    ]
    return found if len(found) == len(entries) else None


def _alike(scored: Sequence[tuple[Task, Rows]]) -> bool:
    """Whether tasks have the same labels, and their rows are the same ones with the same targets."""
    (_, rows), *others = scored
    return _same_labels(scored) and all(
        len(each) == len(rows)
        and all(each.number(index) == rows.number(index) for index in range(len(rows)))
        and np.array_equal(each.targets, rows.targets)
        for _, each in others
    )


def _same_labels(scored: Sequence[tuple[Task, Rows]]) -> bool:
    kinds = {task.kind.name for task, _ in scored}
    return len(kinds) == 1 and len({tuple(map(str, task.labels)) for task, _ in scored}) == 1


def _same_rows(comparison: Comparison) -> Iterator[Section]:
    scored = _scored(comparison.entries)
    if scored is None:
        return
    if not _alike(scored):
        why = "were evaluated on other rows or labels" if _same_labels(scored) else "have different labels"
        yield Section(
            name="differences",
            title="On the same rows",
            lead=f"The adapters {why}, so their answers are not compared row by row.",
            blocks=(),
        )
        return
    first = scored[0][0]
    found = compared(scored, comparison.metric, [entry.class_weights for entry in comparison.entries])
    names = [entry.name for entry in comparison.entries]
    numbers = first.kind.form is LabelForm.NUMBER
    blocks: list[Block] = [_differences(names, found, comparison.metric, numbers)]
    if len(scored) <= _SIDE_BY_SIDE and (table := _rows(names, scored, numbers)) is not None:
        blocks.append(table)
    yield Section(
        name="differences",
        title="On the same rows",
        lead=f"Each {comparison.what} compared with {names[0]}, row by row. An interval that has 0 in "
        f"it: the "
        "difference may be chance (paired bootstrap).",
        blocks=tuple(blocks),
    )


def _differences(names: Sequence[str], found: Sequence[Difference], metric: str, numbers: bool) -> Table:
    columns: tuple[str, ...] = (f"compared with {names[0]}", f"difference in {metric}", "95 % interval")
    if not numbers:
        columns = (*columns, "same answer", "only this one right", f"only {names[0]} right")
    lines: list[tuple[Cell, ...]] = []
    for name, each in zip(names[1:], found, strict=True):
        interval = "–" if each.bounds is None else f"{signed(each.bounds[0])} to {signed(each.bounds[1])}"
        line: tuple[Cell, ...] = (name, signed(each.value), interval)
        if not numbers:
            line = (*line, percent(each.same), f"{each.only_this:,}", f"{each.only_first:,}")
        lines.append(line)
    return Table(
        caption=f"Differences from {names[0]}",
        columns=columns,
        rows=tuple(lines),
        numeric=tuple(range(1, len(columns))),
        wide=True,
    )


def _rows(names: Sequence[str], scored: Sequence[tuple[Task, Rows]], numbers: bool) -> Table | None:
    task, rows = scored[0]
    chosen = disagreements(scored, _ROWS)
    if not len(chosen):
        return None
    if numbers:
        truth = [number(float(each)) for each in rows.targets]
        answers = [[number(float(each)) for each in predicted_numbers(*other)] for other in scored]
    else:
        all_found = [outcomes(*each) for each in scored]
        truth = [_named(task, each) for each in all_found[0].truth]
        answers = [[_named(task, each) for each in found.predicted] for found in all_found]
    text = () if rows.texts is None else ("text",)
    return Table(
        caption="Rows on which they disagree the most",
        columns=("row", *text, "label", *names),
        rows=tuple(
            (
                f"{rows.number(int(index)):,}",
                *([] if rows.texts is None else [shown_texts(rows.texts[int(index)])]),
                truth[index],
                *(answer[index] for answer in answers),
            )
            for index in chosen
        ),
        numeric=(0,),
        wide=True,
    )


def _named(task: Task, answer: np.ndarray | np.int64) -> str:
    if np.ndim(answer) == 0:
        return shown_label(task.labels[int(answer)])
    return ", ".join(shown_label(task.labels[each]) for each in np.flatnonzero(answer)) or "no label"


# ------------------------------------------------------------------------------- learning, facts


def _learning(comparison: Comparison) -> Iterator[Section]:
    known = [entry for entry in comparison.entries if len(entry.history) > 1]
    charts = []
    for metric in dict.fromkeys([comparison.metric, "loss"]):
        drawn = [entry for entry in known if sum(metric in each["metrics"] for each in entry.history) > 1]
        if not drawn:
            continue
        last = "; ".join(
            f"{entry.name}: "
            f"{number(next(e['metrics'][metric] for e in reversed(entry.history) if metric in e['metrics']))}"
            for entry in drawn
        )
        charts.append(
            Chart(
                svg=plots.learning_curves(
                    f"learning-{metric}",
                    {entry.name: entry.history for entry in drawn},
                    {entry.name: entry.averaged for entry in drawn},
                    metric,
                ),
                alt=f"Validation {metric} during training; at the end, {last}.",
                caption=f"Validation {metric}; circles are the evaluations that were kept."
                + ("" if len(drawn) <= 2 * len(SERIES) else " There are too many curves for a legend."),
            )
        )
    if charts:
        yield Section(
            name="learning",
            title="Learning curves",
            lead="The validation rows during training.",
            blocks=tuple(charts),
        )


def _facts(comparison: Comparison) -> Section:
    entries = comparison.entries
    names = dict.fromkeys(name for entry in entries for name in entry.facts)
    values = {name: [entry.facts.get(name, "–") for entry in entries] for name in names}
    same = {name: each[0] for name, each in values.items() if len(set(each)) == 1}
    differs = [name for name in values if name not in same]
    blocks: list[Block] = []
    if differs and len(entries) > 1:
        by_entry = len(entries) > _SIDE_BY_SIDE
        heads = differs if by_entry else [entry.name for entry in entries]
        found = (
            [(entry.name, *(entry.facts.get(name, "–") for name in differs)) for entry in entries]
            if by_entry
            else [(name, *values[name]) for name in differs]
        )
        blocks.append(
            Table(
                caption="What differs",
                columns=(comparison.what if by_entry else "", *heads),
                rows=tuple(found),
                wide=True,
            )
        )
    if same:
        caption = "The same in all of them" if len(entries) > 1 else "The adapter"
        blocks.append(Table(caption=caption, columns=("", ""), rows=tuple(same.items()), wide=True))
    return Section(
        name="about",
        title="What is the same, and what differs" if len(entries) > 1 else "About",
        lead="What each is and how it was trained, as far as its record says.",
        blocks=tuple(blocks),
    )
