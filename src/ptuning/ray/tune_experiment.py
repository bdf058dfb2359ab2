"""An experiment of Ray Tune: its searcher asks for tasks, its scheduler takes their reports.

Tune schedules, limits how many tasks run at once, tries again what a node lost, and stops what is pruned. The
results are kept in the files of a run, so Tune's own state is only needed while the experiment runs.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptuning.errors import OutputError
from ptuning.ray.cluster import cause
from ptuning.ray.tune_worker import REPORTED, TASK, Report, Shared, Task, Worker
from ptuning.training.callbacks import Callback
from ptuning.training.config import TrainConfig

RETRIES = 3
"""How often a task is tried again whose process or node ended."""
_FOLDER = "tune"
"""In the run's folder, while an experiment runs."""
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a summary however little it is asked for
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no copies of the results as CSV, JSON, TensorBoard
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # it is not restored from Tune's state
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
}


class Work(ABC):
    """The tasks of an experiment; the methods are called in this process, one at a time."""

    count: int
    """How many tasks there are at most."""

    @abstractmethod
    def next(self) -> Task | None:
        """The next task; ``None`` if there is none yet, or no more."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether :meth:`next` has given every task."""

    @abstractmethod
    def take(self, task: Task, report: Report) -> Task | None:
        """A worker's report.

        Returns:
            The task as it would have to be tried again; ``None`` if it is over.
        """


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What a task gets from the cluster.

    Attributes:
        concurrency: How many tasks run at once; ``None`` for as many as there is room for.
        num_cpus: CPU cores of each, which is also how many threads compute.
        num_gpus: GPUs of each; ``None`` for one if the cluster has any and they may be used.
    """

    concurrency: int | None
    num_cpus: float = 1
    num_gpus: float | None = None

    def resources(self, config: TrainConfig, callbacks: Callback) -> dict[str, float]:
        """Those of a task. If no node has them now, this is reported."""
        import ray

        every: Callable[[], list[dict[str, Any]]] = ray.nodes
        nodes = [node["Resources"] for node in every() if node["Alive"]]
        gpus = self.num_gpus
        if gpus is None:
            gpus = float(config.device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes))
        if not any(node.get("CPU", 0) >= self.num_cpus and node.get("GPU", 0) >= gpus for node in nodes):
            wanted = f"{self.num_cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
            callbacks.on_message(f"no node of the cluster has {wanted}; waiting for one that does")
        return {"cpu": self.num_cpus, "gpu": gpus}


def run_experiment(
    work: Work,
    shared: Shared,
    workers: Workers,
    config: TrainConfig,
    callbacks: Callback,
    stopping: Callable[[], bool],
) -> None:
    """Run all tasks on the cluster that this process is connected to, or those before ``stopping()`` is true.

    Raises:
        PTuningError: what a worker reported, or what ``work`` raised.
        OutputError: a task was lost more than :data:`RETRIES` times.
    """
    import ray
    from ray import tune

    run = _Run(work, stopping)
    searcher, scheduler, stopper, callback = _parts(run)
    with _storage(config.run_folder) as storage, _quiet():
        trainable = tune.with_resources(
            _function(Worker(ray.put(shared))), workers.resources(config, callbacks)
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=work.count,
                max_concurrent_trials=workers.concurrency,
                reuse_actors=True,  # so that a process loads the backbone once
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="experiment",
                storage_path=str(storage),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                stop=stopper,
                callbacks=[callback],
                verbose=0,
            ),
        )
        errors = tuner.fit().errors
    if run.error is not None:
        raise run.error
    if errors and not stopping():
        error = errors[0]
        if isinstance(found := cause(error), Exception):
            raise found from error
        raise OutputError(
            f"a task was lost again after {RETRIES} retries: {_last_line(error)}",
            remedy="what is finished is kept: run the same command with --resume",
        ) from error


class _Run:
    """The state of an experiment that its parts share."""

    def __init__(self, work: Work, stopping: Callable[[], bool]) -> None:
        self.work, self.stopping = work, stopping
        self.error: Exception | None = None
        self.lost = False

    def suggest(self) -> Task | None:
        try:
            return self.work.next()
        except Exception as error:  # Tune would only log it
            self.error = error
            return None

    def take(self, task: Task, report: Report) -> Task | None:
        try:
            return self.work.take(task, report)
        except Exception as error:
            self.error = error
            return None

    @property
    def over(self) -> bool:
        return self.lost or self.error is not None or self.stopping() or self.work.over


def _parts(run: _Run) -> tuple[Any, Any, Any, Any]:
    """Searcher, scheduler, stopper and callback of Tune. Their classes need Ray, so they are made here."""
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher as TuneSearcher

    class Stays:
        """Tune writes down its configuration; what belongs to this process is left out."""

        def __reduce__(self) -> tuple[type[object], tuple[()]]:
            return object, ()

    class Searcher(Stays, TuneSearcher):
        def suggest(self, trial_id: str) -> Any:
            if run.over:
                return TuneSearcher.FINISHED
            task = run.suggest()
            return None if task is None else {TASK: task}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            run.lost |= error  # begin nothing more

        def save(self, checkpoint_path: str) -> None:
            pass

    class Scheduler(Stays, FIFOScheduler):
        def __init__(self) -> None:
            FIFOScheduler.__init__(self)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
            report, task = result.get(REPORTED), trial.config[TASK]
            if report is None:
                return str(FIFOScheduler.CONTINUE)
            again = run.take(task, report)
            if again is not task:
                trial.set_config({TASK: again or replace(task, checkpoint=None)})
            return str(FIFOScheduler.STOP if again is None else FIFOScheduler.CONTINUE)

    class Stopper(Stays, tune.Stopper):
        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return run.error is not None or run.stopping()

    class TuneCallback(Stays, tune.Callback):
        def __init__(self) -> None:
            self.handler = signal.getsignal(signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else None

        def setup(self, *args: Any, **info: Any) -> None:
            """Take back the signal that Tune has just taken."""
            if self.handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGUSR1, self.handler)

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            result.pop(REPORTED, None)  # it has been taken; Tune would keep it

    return Searcher(), Scheduler(), Stopper(), TuneCallback()


def _function(worker: Worker) -> Any:
    """A worker as the function that Tune wants."""

    def train(config: dict[str, Any]) -> None:
        worker(config)

    return train


@contextmanager
def _storage(folder: Path) -> Iterator[Path]:
    """A folder for what Tune writes while it runs; without anything else in ``folder``, that goes too."""
    storage = folder / _FOLDER
    shutil.rmtree(storage, ignore_errors=True)  # of a process that was killed
    try:
        storage.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{storage} could not be made: {error.strerror}") from error
    try:
        yield storage
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune prints and logs nothing, and has the settings that this module needs; later all is as before."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    loggers = [logging.getLogger(f"ray.{name}") for name in ("air", "train", "tune")]
    levels = [logger.level for logger in loggers]
    os.environ.update(_ENVIRONMENT)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))
