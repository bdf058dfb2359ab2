"""Callbacks: they can watch, stop, save or log a run while it trains.

The console, checkpoint writing and early stopping are callbacks, too, in the same list as a user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptuning.errors import ConfigError

if TYPE_CHECKING:
    from ptuning.model.ptuning import PTuningModel
    from ptuning.training.checkpoint import Position
    from ptuning.training.plan import Plan
    from ptuning.training.records import Evaluation, TrainResult
    from ptuning.training.trials import Trial


class RunState:
    """The state of a run that a callback can read, and flags that it can set.

    Attributes:
        model: The model that is trained.
        plan: The decisions before the first step; ``plan.fit`` has every option.
        total_steps: Optimizer steps of the run.
        loss: The loss of the last step; ``None`` before the first.
        learning_rates: By parameter group, ``prompt`` and ``head``.
        folder: The folder of the run's files; ``None`` if nothing is written.
        is_main_process: Whether this process writes files. Callbacks run in every process.
        result: The result of the run; only in ``on_train_end``.
        log_history: The values passed to :meth:`log`, with step and epoch.
        should_stop: Set it to end the run after this step. The model is evaluated once more, and the best
            checkpoints are kept, as at the end of any run.
        should_save: Set it to write a checkpoint now. It has no effect without an output folder.
        should_evaluate: Set it to evaluate now.
    """

    def __init__(
        self,
        model: PTuningModel,
        plan: Plan,
        position: Position,
        batches: Sequence[int],
        *,
        total_steps: int,
        folder: Path | None,
        is_main_process: bool,
    ) -> None:
        self.model, self.plan, self.total_steps = model, plan, total_steps
        self.folder, self.is_main_process = folder, is_main_process
        self.loss: float | None = None
        self.learning_rates: Mapping[str, float] = {}
        self.result: TrainResult | None = None
        self.log_history: list[dict[str, float]] = []
        self.should_stop = self.should_save = self.should_evaluate = False
        self._position, self._batches = position, batches
        self._on_log: Callable[[Mapping[str, float]], None] = lambda values: None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._position.step

    @property
    def epoch(self) -> float:
        """Epochs done, with a fraction inside an epoch."""
        done = self._position
        return done.epoch + (done.batch and done.batch / self._batches[done.epoch])

    @property
    def history(self) -> tuple[Evaluation, ...]:
        """Every evaluation so far."""
        return tuple(self._position.history)

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the last evaluation; empty before the first."""
        return self._position.history[-1].metrics if self._position.history else {}

    @property
    def best(self) -> Evaluation | None:
        """The best evaluation so far."""
        return None if self._position.best is None else self._position.history[self._position.best]

    @property
    def metric(self) -> str:
        """The metric that selects the best evaluation."""
        return self.plan.select.metric

    @property
    def is_best(self) -> bool:
        """Whether the last evaluation is the best so far."""
        return self._position.best is not None and self._position.best == len(self._position.history) - 1

    @property
    def evaluations_since_best(self) -> int:
        """Evaluations since :attr:`metric` last improved."""
        return self._position.stale

    @property
    def examples_per_second(self) -> float:
        """Training rows per second so far."""
        return self._position.rows / max(self._position.train_seconds, 1e-9)

    def log(self, values: Mapping[str, float]) -> None:
        """Record values at this step, and pass them to every callback's ``on_log``."""
        self.log_history.append({"step": self.step, "epoch": self.epoch, **values})
        self._on_log(values)


class Callback:
    """Override what you need; every method does nothing by default.

    An exception in a callback ends the run and reaches the caller unchanged. The last checkpoint is kept, and
    the run can be resumed from it. Callbacks run in every process of a distributed run.
    """

    def on_train_begin(self, state: RunState) -> None:
        """Before the first step. In a resumed run ``state.step`` is where it continues."""

    def on_step_end(self, state: RunState) -> None:
        """After an optimizer step."""

    def on_evaluate(self, state: RunState) -> None:
        """After an evaluation on the validation rows; ``state.metrics`` has its metrics."""

    def on_epoch_end(self, state: RunState) -> None:
        """After an epoch's last step, before the evaluation that may follow it."""

    def on_save(self, state: RunState) -> None:
        """After a checkpoint was written."""

    def on_train_end(self, state: RunState) -> None:
        """At the end of a run without an interruption: ``state.result`` is set, the adapter is saved."""

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        """A callback called ``state.log(values)``."""

    def on_exception(self, state: RunState, error: BaseException) -> None:
        """The run ends with an exception, an interruption included."""

    def on_message(self, message: str) -> None:
        """A message for the user, in one sentence."""

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Before the first step: ``done`` of ``total`` texts have passed the frozen layers below the prompt
        (``what`` is ``stem``), or ``done`` of ``total`` rows are ready for fitting the head (``head``).
        """

    def on_run_begin(self, name: str, number: int, count: int, finished: bool) -> None:
        """In :func:`ptuning.train_several`: run ``number`` of ``count`` starts, or was finished before."""

    def on_trial_begin(self, number: int, count: int, steps: int) -> None:
        """In :func:`ptuning.train_search`: a trial of ``steps`` optimizer steps starts."""

    def on_trial_step(self, state: RunState) -> None:
        """In :func:`ptuning.train_search`: after a trial's optimizer step."""

    def on_trial_end(self, trial: Trial | None, count: int, metric: str) -> None:
        """In :func:`ptuning.train_search`: a trial is over; ``None`` if it ended with an exception."""


class CallbackList(Callback):
    """Several callbacks as one; they are called in order."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def on_train_begin(self, state: RunState) -> None:
        for each in self.callbacks:
            each.on_train_begin(state)

    def on_step_end(self, state: RunState) -> None:
        for each in self.callbacks:
            each.on_step_end(state)

    def on_evaluate(self, state: RunState) -> None:
        for each in self.callbacks:
            each.on_evaluate(state)

    def on_epoch_end(self, state: RunState) -> None:
        for each in self.callbacks:
            each.on_epoch_end(state)

    def on_save(self, state: RunState) -> None:
        for each in self.callbacks:
            each.on_save(state)

    def on_train_end(self, state: RunState) -> None:
        for each in self.callbacks:
            each.on_train_end(state)

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        for each in self.callbacks:
            each.on_log(state, values)

    def on_exception(self, state: RunState, error: BaseException) -> None:
        for each in self.callbacks:
            each.on_exception(state, error)

    def on_message(self, message: str) -> None:
        for each in self.callbacks:
            each.on_message(message)

    def on_progress(self, what: str, done: int, total: int) -> None:
        for each in self.callbacks:
            each.on_progress(what, done, total)

    def on_run_begin(self, name: str, number: int, count: int, finished: bool) -> None:
        for each in self.callbacks:
            each.on_run_begin(name, number, count, finished)

    def on_trial_begin(self, number: int, count: int, steps: int) -> None:
        for each in self.callbacks:
            each.on_trial_begin(number, count, steps)

    def on_trial_step(self, state: RunState) -> None:
        for each in self.callbacks:
            each.on_trial_step(state)

    def on_trial_end(self, trial: Trial | None, count: int, metric: str) -> None:
        for each in self.callbacks:
            each.on_trial_end(trial, count, metric)


class EarlyStopping(Callback):
    """Stops a run after ``patience`` evaluations without a better one."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_begin(self, state: RunState) -> None:  # the run may be resumed after its last evaluation
        self.on_evaluate(state)

    def on_evaluate(self, state: RunState) -> None:
        if state.evaluations_since_best >= self.patience:
            state.should_stop = True


class CheckpointWriter(Callback):
    """Writes a checkpoint after each evaluation, and whenever a callback asks for one.

    Args:
        write: The function that writes it.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write

    def on_evaluate(self, state: RunState) -> None:
        state.should_save = True

    def on_save(self, state: RunState) -> None:
        self._write()


def checked_callbacks(callbacks: Iterable[Callback] | None) -> CallbackList:
    """A user's ``callbacks=`` as a list.

    Raises:
        ConfigError: something is not an instance of :class:`Callback`.
    """
    given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
    for each in given:
        if not isinstance(each, Callback):
            raise ConfigError(
                "callbacks",
                got=getattr(each, "__name__", None) or type(each).__name__,
                expected="instances of ptuning.Callback",
                remedy="call the class" if isinstance(each, type) and issubclass(each, Callback) else None,
            )
    return CallbackList(given)
