"""What the page shows of the tasks themselves: the list, its search, and the facts of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from ptuning.adapters.card import finite_numbers
from ptuning.kinds import LabelForm
from ptuning.serving.page.cards import card_html
from ptuning.serving.page.views import shown
from ptuning.serving.tasks import ServedTask
from ptuning.task import Task
from ptuning.visible import visible

PAGE = 50
"""Tasks that the list shows at once."""
SHOWN_LABELS = 200
_ORDER = {"test": 0, "validation": 1}
_BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class TaskItem:
    """A task in the list."""

    name: str
    summary: str
    pair: bool
    ticked: bool = False


@dataclass(frozen=True, kw_only=True)
class TaskList:
    """A part of the list.

    Attributes:
        found: The number of tasks that match the search.
        more: Where the next part starts; ``None`` at the end.
    """

    items: Sequence[TaskItem]
    found: int
    more: int | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Metrics: a column per split, the baseline last."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[str]]]
    rule: str


@dataclass(frozen=True, kw_only=True)
class About:
    """Everything about one task."""

    facts: Sequence[tuple[str, str]]
    labels: Sequence[str]
    more_labels: int
    figures: Figures
    card: Markup


def task_list(
    tasks: Sequence[ServedTask], query: str, *, current: str = "", ticked: Sequence[str] = (), start: int = 0
) -> TaskList:
    """The tasks whose name or labels contain all words of ``query``, those found by name first.

    Args:
        current, ticked: Tasks that are in the list whatever the query, so that no choice is lost.
        start: How many tasks were shown before.
    """
    words = query.casefold().split()
    named = [each for each in tasks if all(word in each.name.casefold() for word in words)]
    found = named
    if words:
        names = {each.name for each in named}
        found = named + [each for each in tasks if each.name not in names and _has(each, words)]
    chosen, end = set(ticked), start + PAGE
    part = found[start:end]
    if start == 0:
        here = {each.name for each in part}
        part = [each for each in tasks if each.name in ({*chosen, current} - here)] + part
    items = [task_item(each, ticked=each.name in chosen) for each in part]
    return TaskList(items=items, found=len(found), more=end if end < len(found) else None)


def _has(task: ServedTask, words: Sequence[str]) -> bool:
    text = " ".join([task.name, *map(str, task.task.labels)]).casefold()
    return all(word in text for word in words)


def task_item(task: ServedTask, ticked: bool = False) -> TaskItem:
    """A task as the list shows it."""
    return TaskItem(name=task.name, summary=summary(task.task), pair=task.task.pair, ticked=ticked)


def summary(task: Task) -> str:
    """``3 labels``, ``any of 28 labels``, ``a number``; and whether it reads pairs."""
    what = {
        LabelForm.ONE: f"{task.num_labels} labels",
        LabelForm.SEVERAL: f"any of {task.num_labels} labels",
        LabelForm.NUMBER: "a number",
    }[task.kind.form]
    return f"{what} · pairs" if task.pair else what


def about(task: ServedTask) -> About:
    """The facts, figures and card of a task. It parses Markdown: not for the event loop."""
    own = task.task
    facts = [
        ("Kind", own.kind.title),
        ("Input", "two texts" if own.pair else "one text"),
        ("Longest text", "no limit" if task.max_tokens is None else f"{task.max_tokens:,} tokens"),
        ("Version", task.digest),
        ("Loaded", datetime.fromtimestamp(task.loaded_at, UTC).strftime("%Y-%m-%d %H:%M UTC")),
    ]
    if not PurePath(task.source).is_absolute():  # a folder of the server is nobody's business
        facts.append(("Source", visible(task.source)))
    labels = [shown(label) for label in own.labels[:SHOWN_LABELS]]
    return About(
        facts=facts,
        labels=labels,
        more_labels=len(own.labels) - len(labels),
        figures=figures(task.metrics, own),
        card=card_html(task.card) if task.card else Markup(),
    )


def figures(metrics: Mapping[str, Any], task: Task) -> Figures:
    """The metrics of a task next to those of a constant answer."""
    found = {split: numbers for split, values in metrics.items() if (numbers := finite_numbers(values))}
    splits = sorted(
        found, key=lambda split: len(_ORDER) + 1 if split == _BASELINE else _ORDER.get(split, len(_ORDER))
    )
    names = list(dict.fromkeys(name for split in splits for name in found[split]))
    lower = {metric.name for metric in task.kind.metrics if metric.lower_is_better}
    return Figures(
        columns=[visible(split) for split in splits],
        rows=[
            (
                visible(name),
                "lower is better" if name in lower else "",
                [_figure(found[split].get(name)) for split in splits],
            )
            for name in names
        ],
        rule=visible(str(metrics.get("baseline_rule") or task.kind.baseline_rule))
        if _BASELINE in found
        else "",
    )


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) >= 1e-4 or not value else f"{value:.2e}"
