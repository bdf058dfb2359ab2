"""What a run prints: a progress bar with loss, learning rate and time left, and a line per evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsIndex

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ptuning.progress import new_console, progress_bar
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.trials import Trial


class ConsoleCallback(Callback):
    """Prints a line per evaluation; on a terminal and in a notebook it shows a progress bar.

    Args:
        console: Where to print; by default, standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console = console or new_console()
        self._progress = progress_bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._loss: float | None = None
        self._ahead: TaskID | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """A copy in another process, such as a worker of a cluster, prints nothing."""
        return (Callback, ()) if type(self) is ConsoleCallback else super().__reduce_ex__(protocol)

    # -------------------------------------------------------------------------------- the run

    def on_train_begin(self, state: RunState) -> None:
        model = state.model
        trained, total = model.num_parameters(only_trainable=True), model.num_parameters()
        self._print(
            f"training {trained:,} of {total:,} parameters ({100 * trained / total:.2f} %) on "
            f"{model.device}, backbone in {str(model.backbone.dtype).removeprefix('torch.')}; "
            f"{state.total_steps} steps" + (f", continuing from step {state.step}" if state.step else "")
        )
        self._bar("training", state.total_steps, state.step)

    def on_step_end(self, state: RunState) -> None:
        loss = state.loss or 0.0
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        rate = next(iter(state.learning_rates.values()))
        details = f"loss {self._loss:.3f}  learning rate {rate:.1e}  {state.examples_per_second:.0f} rows/s"
        self._progress.update(self._task, completed=state.step, details=details)

    def on_evaluate(self, state: RunState) -> None:
        found, value = state.history[-1], state.metrics.get(state.metric)
        self._print(
            f"epoch {found.epoch:5.2f}  train loss {found.train_loss:.4f}  validation loss "
            f"{found.metrics['loss']:.4f}"
            + (f"  {state.metric} {value:.4f}" if state.metric != "loss" and value is not None else "")
            + ("  *best" if state.is_best else "")
        )

    def on_train_end(self, state: RunState) -> None:
        self._progress.stop()

    def on_exception(self, state: RunState, error: BaseException) -> None:
        self._progress.stop()

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        self._print(f"step {state.step}  " + "  ".join(f"{name} {value:g}" for name, value in values.items()))

    def on_message(self, message: str) -> None:
        self._print(message)

    def on_progress(self, what: str, done: int, total: int) -> None:
        unit, finished = {
            "stem": ("texts", f"the layers below the first prompt have run once for all {total:,} texts"),
            "head": (
                "rows",
                f"the head is fitted to {total:,} rows; epoch 0 is before the first step",
            ),
        }[what]
        if self._ahead is None:
            self._ahead = self._progress.add_task(what, total=total, details=unit)
        self._progress.update(self._ahead, completed=done)
        if done >= total:
            self._progress.remove_task(self._ahead)
            self._ahead = None
            self._print(finished)

    # --------------------------------------------------------------------- several runs, a search

    def on_run_begin(self, name: str, number: int, count: int, finished: bool) -> None:
        self.console.print(
            f"run {number} of {count}: {name}" + (", finished before" if finished else ""),
            style="bold",
            highlight=False,
            soft_wrap=True,
        )

    def on_trial_begin(self, number: int, count: int, steps: int) -> None:
        self._bar(f"trial {number} of {count}", steps, 0)

    def on_trial_step(self, state: RunState) -> None:
        self.on_step_end(state)

    def on_trial_end(self, trial: Trial | None, count: int, metric: str) -> None:
        self._progress.stop()
        if trial is None:
            return
        value = trial.value(metric)
        self._print(
            f"trial {trial.number:2d} of {count}: {trial}: "
            + (f"{metric} {value:.4f}" if value is not None else f"no {metric}")
            + (f", {trial.state} at epoch {trial.epochs:g}" if trial.state != "complete" else "")
        )

    def _print(self, message: str) -> None:
        self.console.print(message, highlight=False, soft_wrap=True)

    def _bar(self, name: str, steps: int, done: int) -> None:
        self._loss = self._ahead = None
        for past in self._progress.task_ids:  # of the previous run
            self._progress.remove_task(past)
        self._progress.start()
        self._task = self._progress.add_task(name, total=steps, completed=done, details="")
