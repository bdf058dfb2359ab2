"""Runs side by side: from their results to the plain data of :mod:`ptuning.report`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ptuning import adapters
from ptuning.errors import AdapterError
from ptuning.report.data import Comparison, Entry
from ptuning.report.facts import facts_of
from ptuning.training.config import run_folder
from ptuning.training.metrics import Selection
from ptuning.training.records import SeveralResult, TrainResult
from ptuning.training.run_files import RESULT
from ptuning.training.trials import Trial

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
"""What reading a file of results may raise."""


def comparison_of_runs(found: SeveralResult) -> Comparison:
    """The runs of one training. Their adapters are in the run's folder."""
    folder = run_folder(found.adapter)
    entries = []
    for run in found.runs:
        values = {name: f"{value:g}" for name, value in run.values.items()}
        if run.result is None:
            entries.append(Entry(name=run.name, metrics={}, facts=values, note=run.diverged))
            continue
        facts = _facts(folder / run.name)
        entries.append(entry_of(run.name, run.result, {**values, **facts}, best=run is found.best))
    return Comparison(
        title=found.adapter.name,
        what="run",
        entries=tuple(entries),
        metric=found.metric,
        spread=all(set(run.values) == {"seed"} for run in found.runs),
    )


def comparison_of_trials(name: str, trials: Iterable[Trial], kept: int, metric: str) -> Comparison:
    """The trials of a search.

    Args:
        name: Of the adapter.
        kept: The number of the trial that is kept.
    """
    select = Selection(metric=metric)
    entries = []
    for trial in trials:
        best = max(trial.history, key=lambda each: select.key(each.metrics), default=None)
        entries.append(
            Entry(
                name=f"trial {trial.number}",
                metrics={} if best is None else {"validation": best.metrics},
                history=tuple(asdict(each) for each in trial.history),
                averaged=() if best is None else (best.step,),
                facts={**{name: f"{value:g}" for name, value in trial.values.items()}, "state": trial.state},
                best=trial.number == kept,
            )
        )
    return Comparison(title=f"{name}: search", what="trial", entries=tuple(entries), metric=metric)


def entry_of(name: str, result: TrainResult, facts: Mapping[str, str], *, best: bool = False) -> Entry:
    """A run by its result."""
    return Entry(
        name=name,
        metrics={split: _finite(values) for split, values in result.metrics.items()},
        baseline={split: _finite(values) for split, values in result.baseline.items()},
        history=tuple(
            {
                "epoch": float(each.epoch),
                "step": int(each.step),
                "train_loss": float(each.train_loss),
                "metrics": _finite(each.metrics),
            }
            for each in result.history
        ),
        averaged=tuple(int(each.step) for each in result.averaged),
        facts={**facts, "kept": result.kept, "seconds": f"{result.seconds:.0f}"},
        note=result.advice,
        best=best,
        greater_is_better={result.metric: bool(result.greater_is_better)},
    )


def recorded(adapter: Path) -> Iterator[tuple[Path, Entry]]:
    """What is recorded about an adapter: its run's result; of a training with several runs, each of them.

    Args:
        adapter: Its folder.

    Yields:
        The folder of each run's adapter, and what is recorded about it.

    Raises:
        AdapterError: there is no adapter.
    """
    record = adapters.details(adapter)
    path = adapter.resolve()
    folder = path.with_name(f"{path.name}.run")  # run_folder() refuses where none may be written
    if several := list(_runs(folder)):
        yield from several
        return
    facts = facts_of(record)
    if (result := _result(folder / RESULT)) is not None and _same(result.metrics, record.get("metrics", {})):
        yield adapter, entry_of(adapter.name, result, facts)
        return
    metrics = record.get("metrics", {})
    found = {name: adapters.finite_numbers(metrics.get(name)) for name in ("validation", "test")}
    found = {name: values for name, values in found.items() if values}
    split = "test" if "test" in found else "validation"
    baseline = {split: adapters.finite_numbers(metrics.get("baseline"))}
    yield adapter, Entry(name=adapter.name, metrics=found, baseline=baseline, facts=facts)


def _runs(folder: Path) -> Iterator[tuple[Path, Entry]]:
    """The runs that a table of several in ``folder`` lists, as far as they can be read."""
    table = _read(folder / RESULT)
    runs = table.get("runs")
    for run in runs if isinstance(runs, list) else ():
        name = run.get("name") if isinstance(run, dict) else None
        if not isinstance(name, str) or name != Path(name).name:
            continue
        if (found := _result(run_folder(folder / name) / RESULT)) is not None:
            best = name == table.get("best")
            yield folder / name, entry_of(name, found, _facts(folder / name), best=best)


def _same(result: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether a run's result is that of the adapter, which may have been replaced since."""
    return all(record.get(split) == values for split, values in result.items())


def _facts(folder: Path) -> dict[str, str]:
    try:
        return facts_of(adapters.details(folder))
    except AdapterError:
        return {}


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}


def _result(file: Path) -> TrainResult | None:
    values = _read(file)
    try:
        result = TrainResult.from_dict(values)
        entry_of("", result, {})  # it may be anything that a result is made of
        return result
    except UNREADABLE:
        return None


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
