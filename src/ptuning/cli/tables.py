"""The console, and tables that several commands print."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ptuning.visible import visible

if TYPE_CHECKING:
    from ptuning.training.records import SeveralResult, TrainResult
    from ptuning.training.search import SearchResult


class PlainConsole(Console):
    """A console without markup, so that a label such as ``[spam]`` is printed as it is; controls are
    escaped.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """All printed text, including cells and titles of tables, passes through here."""
        return super().render_str(visible(text, lines=True), **options)


def plain_console(*, stderr: bool = False) -> Console:
    """The console of a command."""
    return PlainConsole(stderr=stderr, markup=False, emoji=False)


def metrics_table(
    metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Mapping[str, float]], rule: str
) -> Table:
    """A table of metrics by split, next to those of the baseline."""
    table = Table(title=f"baseline: {visible(rule)}", title_justify="left", title_style="dim")
    table.add_column("metric")
    for split in metrics:
        table.add_column(visible(split), justify="right")
        if split in baseline:
            table.add_column("baseline", justify="right", style="dim")
    for name in dict.fromkeys(name for found in metrics.values() for name in found):
        cells = [
            _number(values.get(name))
            for split in metrics
            for values in (metrics[split], *([baseline[split]] if split in baseline else []))
        ]
        table.add_row(visible(name), *cells)
    return table


def as_options(text: str) -> str:
    """A diagnosis's options (``fit.learning_rate=0.01``) as they are written at the command line."""
    return re.sub(r"(?<![\w.-])(?=(?:fit|prompt)\.\w|precision=)", "--", text)


def print_diagnosis(result: TrainResult, console: Console) -> None:
    """Print the diagnosis of a run, if it has one.

    It is printed without line breaks, so that commands in it can be copied.
    """
    found = result.diagnosis
    if found is not None:
        style = "bold red" if found.serious else "yellow"
        console.print(
            f"\n{as_options(found.paragraph)}", style=style, highlight=False, markup=False, soft_wrap=True
        )


def several_table(found: SeveralResult) -> Table:
    """A table with one row per run, the best marked, and mean and deviation of runs that only differ by
    seed.
    """
    assert found.best.result is not None  # the best of those that did not diverge
    title = f"baseline: {visible(found.best.result.baseline_rule)}; best by validation {found.metric}"
    table = Table(title=title, title_justify="left", title_style="dim")
    splits = [split for split in ("validation", "test") if split in found.best.result.metrics]
    table.add_column("run")
    for split in splits:
        table.add_column(f"{split} {found.metric}", justify="right")
        table.add_column("baseline", justify="right", style="dim")
    table.add_column("epoch", justify="right")
    table.add_column("seconds", justify="right")
    diagnosed = any(run.result is not None and run.result.diagnosis is not None for run in found.runs)
    if diagnosed:
        table.add_column("diagnosis")
    for run in found.runs:
        if run.result is None:
            table.add_row(run.name, "diverged", style="red")
            continue
        figures = [
            _number(of[split].get(found.metric))
            for split in splits
            for of in (run.result.metrics, run.result.baseline)
        ]
        best = run is found.best
        diagnosis = run.result.diagnosis
        table.add_row(
            run.name + (" *best" if best else ""),
            *figures,
            f"{run.result.best.epoch:g}",
            f"{run.result.seconds:.0f}",
            *([diagnosis.kind if diagnosis else ""] if diagnosed else []),
            style="bold" if best else None,
        )
    for group in found.over_seeds:
        common = "".join(f", {name} {value:g}" for name, value in group.values.items())
        spread = [cell for split in splits for cell in (_spread(group.metrics[split].get(found.metric)), "")]
        table.add_row(f"{len(group.runs)} seeds{common}, mean ± sd", *spread)
    return table


def search_table(found: SearchResult) -> Table:
    """A table with one row per trial, the selected one marked."""
    title = f"trials, by the best validation {found.metric} of each"
    table = Table(title=title, title_justify="left", title_style="dim")
    names = list(found.trials[0].values)
    for name in ("trial", *(name.replace("_", " ") for name in names), found.metric, "epochs"):
        table.add_column(name, justify="right")
    table.add_column("")
    for trial in found.trials:
        kept = trial.number == found.winner
        table.add_row(
            str(trial.number),
            *(f"{trial.values[name]:g}" for name in names),
            _number(trial.value(found.metric)),
            f"{trial.epochs:g}",
            "*kept" if kept else "" if trial.state == "complete" else trial.state,
            style="bold" if kept else "red" if trial.state == "diverged" else None,
        )
    return table


def _spread(found: tuple[float, float] | None) -> str:
    return "" if found is None else f"{found[0]:.4f} ± {found[1]:.4f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
