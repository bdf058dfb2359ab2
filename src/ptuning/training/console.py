"""What a run says while it runs: a bar with loss, rate and time left, and a line for each evaluation."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ptuning.model.ptuning import PTuningModel
from ptuning.training.config import FitConfig
from ptuning.training.result import Evaluation
from ptuning.training.trials import Trial


class Reporter(Protocol):
    """Told of everything that happens in a run."""

    def begin(self, model: PTuningModel, steps: int, done: int, config: FitConfig) -> None:
        """A run of ``steps`` optimizer steps begins, ``done`` of them before."""

    def stem(self, done: int, total: int) -> None:
        """The frozen layers below the first prompt have been run for ``done`` of ``total`` distinct texts.

        Not called where they are not run, or where what they gave was kept before.
        """

    def fitting(self, done: int, total: int) -> None:
        """The head, which begins fitted, has ``done`` of the ``total`` rows that it is fitted to."""

    def say(self, message: str) -> None:
        """Something that the user should know, in a sentence."""

    def step(self, step: int, loss: float, rate: float, speed: float) -> None:
        """A step was taken, at ``speed`` rows a second so far."""

    def evaluation(self, found: Evaluation, metric: str, best: bool) -> None:
        """The validation rows were looked at."""

    def end(self) -> None:
        """The run is over, one way or another."""


class SeveralReporter(Reporter, Protocol):
    """Told of everything that happens in several runs, one after another."""

    def run(self, name: str, number: int, count: int, kept: bool) -> None:
        """The run ``name`` is next, ``number`` of ``count``; ``kept`` if it was finished before."""


class SearchReporter(Reporter, Protocol):
    """Told of everything that happens in a search: its trials, one after another, then the winner's run."""

    def trial(self, number: int, count: int, steps: int) -> None:
        """A trial of ``steps`` optimizer steps begins, ``number`` of ``count``."""

    def tried(self, trial: Trial, count: int, metric: str) -> None:
        """A trial is over."""


class Silent:
    """Says nothing."""

    def run(self, name: str, number: int, count: int, kept: bool) -> None: ...

    def trial(self, number: int, count: int, steps: int) -> None: ...

    def tried(self, trial: Trial, count: int, metric: str) -> None: ...

    def begin(self, model: PTuningModel, steps: int, done: int, config: FitConfig) -> None: ...

    def stem(self, done: int, total: int) -> None: ...

    def fitting(self, done: int, total: int) -> None: ...

    def say(self, message: str) -> None: ...

    def step(self, step: int, loss: float, rate: float, speed: float) -> None: ...

    def evaluation(self, found: Evaluation, metric: str, best: bool) -> None: ...

    def end(self) -> None: ...


class ConsoleReporter:
    """A progress bar on a terminal; on anything else the evaluations' lines alone."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._loss: float | None = None
        self._ahead: TaskID | None = None

    def run(self, name: str, number: int, count: int, kept: bool) -> None:
        self.console.print(
            f"run {number} of {count}: {name}" + (", finished before" if kept else ""),
            style="bold",
            highlight=False,
            soft_wrap=True,
        )

    def begin(self, model: PTuningModel, steps: int, done: int, config: FitConfig) -> None:
        trained, total = model.num_parameters(only_trainable=True), model.num_parameters()
        self.console.print(
            f"training {trained:,} of {total:,} numbers ({100 * trained / total:.2f} %) on {model.device}, "
            f"backbone in {str(model.backbone.dtype).removeprefix('torch.')}; {steps} steps"
            + (f", going on from step {done}" if done else ""),
            highlight=False,
            soft_wrap=True,
        )
        self._bar("training", steps, done)

    def trial(self, number: int, count: int, steps: int) -> None:
        self._bar(f"trial {number} of {count}", steps, 0)

    def tried(self, trial: Trial, count: int, metric: str) -> None:
        value = trial.value(metric)
        self.console.print(
            f"trial {trial.number:2d} of {count}: {trial}: "
            + (f"{metric} {value:.4f}" if value is not None else f"no {metric}")
            + (f", {trial.state} at epoch {trial.epochs:g}" if trial.state != "complete" else ""),
            highlight=False,
            soft_wrap=True,
        )

    def _bar(self, name: str, steps: int, done: int) -> None:
        self._loss = self._ahead = None
        for past in self._progress.task_ids:  # of the run before this one
            self._progress.remove_task(past)
        self._progress.start()
        self._task = self._progress.add_task(name, total=steps, completed=done, told="")

    def stem(self, done: int, total: int) -> None:
        if self._before("stem", "texts", done, total):
            self.console.print(
                f"the layers below the first prompt are done for all {total:,} texts, once", highlight=False
            )

    def fitting(self, done: int, total: int) -> None:
        if self._before("head", "rows", done, total):
            self.console.print(
                f"the head is fitted to {total:,} rows; epoch 0 is before the first step", highlight=False
            )

    def _before(self, name: str, unit: str, done: int, total: int) -> bool:
        """A bar of its own for what comes before the first step; returns whether that is over."""
        if self._ahead is None:
            self._ahead = self._progress.add_task(name, total=total, told=unit)
        self._progress.update(self._ahead, completed=done)
        if done < total:
            return False
        self._progress.remove_task(self._ahead)
        self._ahead = None
        return True

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, soft_wrap=True)

    def step(self, step: int, loss: float, rate: float, speed: float) -> None:
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        told = f"loss {self._loss:.3f}  rate {rate:.1e}  {speed:.0f} rows/s"
        self._progress.update(self._task, completed=step, told=told)

    def evaluation(self, found: Evaluation, metric: str, best: bool) -> None:
        value = found.metrics.get(metric)
        self.console.print(
            f"epoch {found.epoch:5.2f}  train loss {found.train_loss:.4f}  validation loss "
            f"{found.metrics['loss']:.4f}"
            + (f"  {metric} {value:.4f}" if metric != "loss" and value is not None else "")
            + ("  *best" if best else ""),
            highlight=False,
            soft_wrap=True,
        )

    def end(self) -> None:
        self._progress.stop()
