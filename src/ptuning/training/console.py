"""What a run says while it runs: a bar with loss, rate and time left, and a line for each evaluation."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ptuning.model.ptuning import PTuningModel
from ptuning.training.config import FitConfig
from ptuning.training.result import Evaluation


class Reporter(Protocol):
    """Told of everything that happens in a run."""

    def begin(self, model: PTuningModel, steps: int, done: int, config: FitConfig) -> None:
        """A run of ``steps`` optimizer steps begins, ``done`` of them before."""

    def step(self, step: int, loss: float, rate: float, speed: float) -> None:
        """A step was taken, at ``speed`` rows a second so far."""

    def evaluation(self, found: Evaluation, metric: str, best: bool) -> None:
        """The validation rows were looked at."""

    def end(self) -> None:
        """The run is over, one way or another."""


class Silent:
    """Says nothing."""

    def begin(self, model: PTuningModel, steps: int, done: int, config: FitConfig) -> None: ...

    def step(self, step: int, loss: float, rate: float, speed: float) -> None: ...

    def evaluation(self, found: Evaluation, metric: str, best: bool) -> None: ...

    def end(self) -> None: ...


class ConsoleReporter:
    """A progress bar on a terminal; on anything else the evaluations' lines alone."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]:.3f}  rate {task.fields[rate]:.1e}  {task.fields[speed]:.0f} rows/s"
            ),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._loss: float | None = None

    def begin(self, model: PTuningModel, steps: int, done: int, config: FitConfig) -> None:
        trained, total = model.num_parameters(only_trainable=True), model.num_parameters()
        self.console.print(
            f"training {trained:,} of {total:,} numbers ({100 * trained / total:.2f} %) on {model.device}, "
            f"backbone in {str(model.backbone.dtype).removeprefix('torch.')}; {steps} steps"
            + (f", going on from step {done}" if done else ""),
            highlight=False,
            soft_wrap=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(
            "training", total=steps, completed=done, loss=0.0, rate=0.0, speed=0.0
        )

    def step(self, step: int, loss: float, rate: float, speed: float) -> None:
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        self._progress.update(self._task, completed=step, loss=self._loss, rate=rate, speed=speed)

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
