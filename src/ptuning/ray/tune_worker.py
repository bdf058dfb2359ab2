"""What a worker of Ray Tune does: it trains a trial of a search, or a run, and reports to the driver.

A run's files are made in a temporary folder and sent with the reports, so nodes share no file system. What a
worker raises is reported as well: Tune tries again only what ended with its process.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptuning.adapters import atomic
from ptuning.ray.cluster import Versions
from ptuning.training.callbacks import Callback, CallbackList, RunState
from ptuning.training.config import TrainConfig, run_folder
from ptuning.training.extensions import Extensions
from ptuning.training.prepare import Gathered
from ptuning.training.records import Evaluation, TrainResult
from ptuning.training.run import train_on
from ptuning.training.run_cache import RunCache
from ptuning.training.run_files import CHECKPOINT, REPORT
from ptuning.training.search import run_trial
from ptuning.training.trials import Values
from ptuning.training.warm_start import Source

TASK, REPORTED = "task", "report"
"""The keys of a Tune trial's configuration and of its results."""


@dataclass(frozen=True)
class Files:
    """The files of a folder, by their relative names."""

    content: Mapping[str, bytes]

    @classmethod
    def of(cls, folder: Path) -> Files:
        """Those that are in ``folder``."""
        return cls(
            {
                file.relative_to(folder).as_posix(): file.read_bytes()
                for file in sorted(folder.rglob("*"))
                if file.is_file() and not atomic.is_leftover(file.name)
            }
        )

    def write(self, folder: Path) -> None:
        """Write them into ``folder``."""
        for name, data in self.content.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(file, data)

    def __repr__(self) -> str:  # Tune makes names of it
        return f"{len(self.content)} files"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One trial of a search, or one run in full.

    Attributes:
        number: From 1.
        config: The run's configuration.
        values: What a search chose.
        epochs: The length of a trial; ``None`` for a run.
        checkpoint: What a run continues from.
    """

    number: int
    config: TrainConfig
    values: Values | None = None
    epochs: int | None = None
    checkpoint: Files | None = None

    def __repr__(self) -> str:  # Tune makes names of it
        return f"{'run' if self.epochs is None else 'trial'} {self.number}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker tells the driver, which lets it go on afterwards.

    Attributes:
        seconds: Since the task began.
        started: The first step is next.
        steps: Of a trial, in all.
        evaluation: The last one.
        checkpoint: The files of a run's checkpoint.
        messages: For the user, since the last report.
        ended: The task is over; without ``error`` it is complete.
        error: What ended it.
        node: Where.
        result: Of a run that is complete.
        adapter: Its files.
        page: Its report, if it has one.
    """

    seconds: float
    started: bool = False
    steps: int = 0
    evaluation: Evaluation | None = None
    checkpoint: Files | None = None
    messages: tuple[str, ...] = ()
    ended: bool = False
    error: Exception | None = None
    node: str = ""
    result: TrainResult | None = None
    adapter: Files | None = None
    page: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all tasks have in common; it is sent to every worker once.

    Attributes:
        versions: Of the driver.
        directory: Its working directory, for relative names where nodes share a file system.
        rows: What the data files have.
        source: The adapter that the runs start from.
        extensions: The user's.
    """

    versions: Versions
    directory: str
    rows: Gathered
    source: Source | None
    extensions: Extensions

    @classmethod
    def of(cls, config: TrainConfig, cache: RunCache, extensions: Extensions) -> Shared:
        """What runs of ``config`` need, read in this process."""
        return cls(
            versions=Versions.here(),
            directory=os.getcwd(),
            rows=cache.gathered(config),
            source=cache.source(config),
            extensions=extensions,
        )


class Worker:
    """The trainable of Ray Tune, as a function of a task; in a worker it keeps what tasks share.

    Args:
        shared: A reference to a :class:`Shared` in Ray's object store.
    """

    def __init__(self, shared: Any) -> None:
        self.shared = shared
        self._opened: tuple[RunCache, Extensions] | None = None

    def __call__(self, config: Mapping[str, Any]) -> None:
        """Train ``config[TASK]``."""
        teller = _Teller()
        try:
            cache, extensions = self._open(config[TASK].config)
            if config[TASK].epochs is None:
                _train(config[TASK], cache, extensions, teller)
            else:
                _try(config[TASK], cache, extensions, teller)
        except Exception as error:
            teller.tell(ended=True, error=_sendable(error), node=platform.node())

    def _open(self, config: TrainConfig) -> tuple[RunCache, Extensions]:
        if self._opened is None:
            import ray

            shared: Shared = ray.get(self.shared)
            shared.versions.check()
            with suppress(OSError):
                os.chdir(shared.directory)
            # This process is used for one task after another; the last one may take a while to end.
            os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
            cache = RunCache()
            cache.keep(config, shared.rows, shared.source)
            cache.say_notes(config, lambda note: None)  # the driver has
            self._opened = cache, shared.extensions
        return self._opened


class _Teller:
    """Sends reports with the messages that came up since the last one."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.messages: list[str] = []

    def tell(self, **values: Any) -> None:
        from ray import tune

        report = Report(seconds=time.perf_counter() - self.began, messages=tuple(self.messages), **values)
        self.messages.clear()
        tune.report({REPORTED: report})

    def start(self) -> None:
        self.tell(started=True)


def _try(task: Task, cache: RunCache, extensions: Extensions, teller: _Teller) -> None:
    """Run a trial."""
    assert task.values is not None
    assert task.epochs is not None
    callbacks = CallbackList([_OfTrial(_Here(extensions.callbacks.callbacks), teller)])
    run_trial(
        cache,
        task.config,
        task.values,
        task.epochs,
        extensions=replace(extensions, callbacks=callbacks),
        on_start=teller.start,
    )
    teller.tell(ended=True)


def _train(task: Task, cache: RunCache, extensions: Extensions, teller: _Teller) -> None:
    """Train a run in full."""
    with tempfile.TemporaryDirectory(prefix="ptuning-") as temporary:
        output = Path(temporary) / task.config.run_folder.name.removesuffix(".run")
        folder = run_folder(str(output))
        if task.checkpoint is not None:
            task.checkpoint.write(folder / CHECKPOINT)
        callbacks = CallbackList([_Here(extensions.callbacks.callbacks), _OfRun(folder, teller)])
        result = train_on(
            cache,
            task.config.model_copy(update={"output": str(output)}),
            resume=task.checkpoint is not None,
            restart=True,
            extensions=replace(extensions, callbacks=callbacks),
            on_start=teller.start,
            found=task.values,
        )
        page = folder / REPORT
        teller.tell(
            ended=True,
            result=result,
            adapter=Files.of(output),
            page=page.read_bytes() if page.exists() else None,
        )


class _Here(CallbackList):
    """The user's callbacks in a worker; the driver calls theirs for messages, runs and trials."""

    def on_message(self, message: str) -> None:
        pass


class _OfRun(Callback):
    """Reports a run's messages, evaluations and checkpoints."""

    def __init__(self, folder: Path, teller: _Teller) -> None:
        self.folder, self.teller = folder, teller

    def on_message(self, message: str) -> None:
        self.teller.messages.append(message)

    def on_evaluate(self, state: RunState) -> None:
        found, value = state.history[-1], state.metrics.get(state.metric)
        self.teller.messages.append(
            f"epoch {found.epoch:5.2f}  train loss {found.train_loss:.4f}  validation loss "
            f"{found.metrics['loss']:.4f}"
            + (f"  {state.metric} {value:.4f}" if state.metric != "loss" and value is not None else "")
            + ("  *best" if state.is_best else "")
        )

    def on_save(self, state: RunState) -> None:
        self.teller.tell(checkpoint=Files.of(self.folder / CHECKPOINT))


class _OfTrial(Callback):
    """Reports a trial's evaluations; the driver decides whether it is pruned."""

    def __init__(self, user: CallbackList, teller: _Teller) -> None:
        self.user, self.teller = user, teller

    def on_train_begin(self, state: RunState) -> None:
        self.teller.tell(steps=state.total_steps)

    def on_progress(self, what: str, done: int, total: int) -> None:
        if what == "stem":
            self.user.on_progress(what, done, total)

    def on_step_end(self, state: RunState) -> None:
        self.user.on_trial_step(state)

    def on_evaluate(self, state: RunState) -> None:
        self.teller.tell(evaluation=state.history[-1], steps=state.total_steps)


def _sendable(error: Exception) -> Exception:
    """The error, or what it says, if it cannot be sent to another process."""
    import ray.exceptions

    try:
        ray.put(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
