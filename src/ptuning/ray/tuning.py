"""Searches and sets of runs on a Ray cluster, with the results and files of those on one machine.

The logic is that of :mod:`ptuning.training.search` and :mod:`ptuning.training.several`; Ray Tune runs the
trials and the runs. Data files are read in this process, and the files of the runs are written by it, so only
the backbone has to be there on the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.ray.cluster import connected, require_ray
from ptuning.ray.tune_experiment import Work, Workers, run_experiment
from ptuning.ray.tune_runs import RunHere, raise_reported
from ptuning.ray.tune_worker import Report, Shared, Task
from ptuning.training.callbacks import Callback
from ptuning.training.config import TrainConfig
from ptuning.training.extensions import ComputeMetrics, Extensions, Loss, MakeOptimizer, MakeScheduler
from ptuning.training.interrupt import Interrupted, stop_requests
from ptuning.training.records import OneRun, SeveralResult, TrainResult
from ptuning.training.run_cache import RunCache, new_accelerator
from ptuning.training.search import Search, SearchResult, search_with
from ptuning.training.several import Runs, several_with
from ptuning.training.trials import Trial, Watch


def train_search(
    config: TrainConfig,
    *,
    address: str = "auto",
    concurrency: int = 1,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    resume: bool = False,
    restart: bool = False,
    callbacks: Iterable[Callback] | None = None,
    compute_metrics: ComputeMetrics | None = None,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
    lr_scheduler: MakeScheduler | None = None,
) -> SearchResult:
    """:func:`ptuning.train_search` with the trials, and then the winner's run, on a Ray cluster.

    Args:
        address: Of the cluster (:func:`~ptuning.ray.cluster.connected`). A connection that this process has
            is used.
        concurrency: How many trials run at once. A trial is proposed, and pruned, by those that finished so
            many before it. So the result depends on this number, but neither on the size of the cluster nor
            on which trial finishes first; with 1 it is that of one machine.
        num_cpus: CPU cores of a trial, which is also how many threads compute.
        num_gpus: GPUs of a trial; if left out, one where the cluster has any.
        resume, restart: As there.
        callbacks: Called on the workers, so they are copied there; messages and the begin and end of a trial
            are told to those in this process.
        compute_metrics, loss, optimizer, lr_scheduler: As there; they are copied to the workers.

    Raises:
        ConfigError: as there; or no cluster, other versions on a worker, something that cannot be copied.
        OutputError: a node was lost again and again, or the result could not be written.
    """
    workers = _workers(concurrency, num_cpus, num_gpus)
    extensions = _extensions(
        config,
        callbacks,
        compute_metrics=compute_metrics,
        loss=loss,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
    )
    with connected(address):
        _check_can_be_sent(extensions)
        return search_with(
            partial(_search, workers=workers),
            config,
            extensions,
            resume=resume,
            restart=restart,
            concurrency=concurrency,
        )


def train_several(
    config: TrainConfig,
    *,
    seeds: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    head_learning_rates: Sequence[float] | None = None,
    address: str = "auto",
    concurrency: int | None = None,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    resume: bool = False,
    restart: bool = False,
    callbacks: Iterable[Callback] | None = None,
    compute_metrics: ComputeMetrics | None = None,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
    lr_scheduler: MakeScheduler | None = None,
) -> SeveralResult:
    """:func:`ptuning.train_several` with the runs on a Ray cluster.

    Args:
        concurrency: How many runs are trained at once; if left out, as many as the cluster has room for. The
            result does not depend on it.
        seeds, learning_rates, head_learning_rates, resume, restart: As there.
        address, num_cpus, num_gpus: As :func:`train_search` takes them.
        callbacks, compute_metrics, loss, optimizer, lr_scheduler: As :func:`train_search` takes them.

    Raises:
        ConfigError: as there; or no cluster, other versions on a worker, something that cannot be copied.
        OutputError: a node was lost again and again, or the result could not be written.
    """
    workers = _workers(concurrency, num_cpus, num_gpus)
    extensions = _extensions(
        config,
        callbacks,
        compute_metrics=compute_metrics,
        loss=loss,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
    )
    lists = {"seed": seeds, "learning_rate": learning_rates, "head_learning_rate": head_learning_rates}
    with connected(address):
        _check_can_be_sent(extensions)
        execute = partial(_several, config=config, workers=workers)
        return several_with(execute, config, lists, extensions, resume=resume, restart=restart)


def _workers(concurrency: int | None, num_cpus: float, num_gpus: float | None) -> Workers:
    if concurrency is not None and concurrency < 1:
        raise ConfigError("concurrency", got=concurrency, expected="a whole number above 0")
    if not 0 < num_cpus < float("inf"):
        raise ConfigError("num_cpus", got=num_cpus, expected="a number above 0")
    if num_gpus is not None and not 0 <= num_gpus < float("inf"):
        raise ConfigError("num_gpus", got=num_gpus, expected="a number, 0 or more")
    return Workers(concurrency=concurrency, num_cpus=num_cpus, num_gpus=num_gpus)


def _extensions(
    config: TrainConfig, callbacks: Iterable[Callback] | None, **functions: Callable[..., Any] | None
) -> Extensions:
    require_ray()
    if config.track:
        raise ConfigError(
            "track: not on a Ray cluster",
            got=", ".join(config.track),
            remedy="leave it out, or use a callback of your own",
        )
    return Extensions.checked(callbacks, **functions)


def _check_can_be_sent(extensions: Extensions) -> None:
    """Refuse what cannot be copied to a worker.

    Raises:
        ConfigError: names it.
    """
    import ray

    parts = {f"callbacks[{index}]": each for index, each in enumerate(extensions.callbacks.callbacks)}
    for name in ("compute_metrics", "loss", "optimizer", "lr_scheduler"):
        parts[name] = getattr(extensions, name)
    for name, part in parts.items():
        try:
            ray.put(part)
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"{name} cannot be copied to the workers ({reason.strip()})",
                remedy="open files, locks and connections in it when it is first called, or leave it out",
            ) from error


# ---------------------------------------------------------------------------------------- a search


def _search(search: Search, *, workers: Workers) -> TrainResult:
    """Run the trials of a search that are left, and the winner's run."""
    with stop_requests() as stop:
        search.begin()
        trials = _Trials(search)
        shared = Shared.of(search.config, search.cache, search.extensions)
        try:
            run_experiment(trials, shared, workers, search.config, search.callbacks, lambda: stop.made)
        finally:
            trials.close()
        if trials.result is None:
            if not search.started:
                raise KeyboardInterrupt
            raise Interrupted(
                f"interrupted with {len(search.trials)} of {search.count} trials finished; what is finished "
                "is kept; to continue, run the same command with --resume"
            )
    return trials.result


class _Trials(Work):
    """The trials of a search, and then the run of their winner."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.count = search.count + 1
        self.running: dict[int, Watch] = {}
        self.last: RunHere | None = None

    @property
    def result(self) -> TrainResult | None:
        return None if self.last is None else self.last.result

    @property
    def over(self) -> bool:
        return self.last is not None

    def close(self) -> None:
        """Tell the callbacks that the trials which did not finish have ended."""
        if self.running:
            self.search.callbacks.on_trial_end(None, self.search.count, self.search.select.metric)

    def next(self) -> Task | None:
        search, finished = self.search, {trial.number for trial in self.search.trials}
        for number in range(1, search.count + 1) if search.has_time else ():
            if number in finished or number in self.running:
                continue
            if not finished.issuperset(range(1, number - search.concurrency + 1)):
                return None  # it is proposed from these
            watch = self.running[number] = search.watch(number)
            return Task(
                number=number,
                config=search.config,
                values=watch.proposed.values,
                epochs=search.space.epochs,
            )
        if self.running:
            return None
        kept = search.decide()
        self.last = RunHere(
            number=self.count,
            config=search.config,
            resume=search.continues,
            values=kept.values,
            say=search.say,
            accelerator=search.accelerator,
            on_start=lambda: None,
        )
        return self.last.task()

    def take(self, task: Task, report: Report) -> Task | None:
        if task.epochs is None:
            assert self.last is not None
            again = self.last.take(task, report)
            if self.last.diverged is not None:
                raise self.last.diverged
            return again
        search, number = self.search, task.number
        if report.ended and not isinstance(report.error, TrainingDiverged):
            raise_reported(report)
        if report.ended:
            self._end(task, report, "complete" if report.error is None else "diverged")
            return None
        if report.started:  # perhaps again, after its node was lost
            self.running[number] = search.watch(number)
            search.start()
        elif report.evaluation is None:
            search.callbacks.on_trial_begin(number, search.count, report.steps)
        elif self.running[number].prunes(report.evaluation, report.steps):
            self._end(task, report, "pruned")
            return None
        return task

    def _end(self, task: Task, report: Report, state: Literal["complete", "pruned", "diverged"]) -> None:
        watch = self.running.pop(task.number)
        self.search.add(
            Trial(
                number=task.number,
                values=watch.proposed.values,
                state=state,
                history=tuple(watch.history),
                seconds=report.seconds,
            )
        )


# ------------------------------------------------------------------------------------- several runs


def _several(
    runs: Runs, stopping: Callable[[], bool], *, config: TrainConfig, workers: Workers
) -> list[OneRun]:
    """Train the runs of a set that are not finished."""
    cache, callbacks = RunCache(), runs.extensions.callbacks
    for number, each in enumerate(runs.plan, 1):
        if each.name in runs.kept:
            runs.begin(number)
    work = _Set(runs)
    if work.left:
        shared = Shared.of(config, cache, runs.extensions)
        cache.say_notes(config, callbacks.on_message)
        run_experiment(work, shared, workers, config, callbacks, stopping)
    if not work.finished:  # it was asked to stop
        if not runs.can_be_resumed:
            raise KeyboardInterrupt
        raise Interrupted(
            "interrupted; finished runs and the last checkpoints of the others are kept; to continue, run "
            "the same command with --resume"
        )
    return work.results()


class _Set(Work):
    """The runs of a set that are not finished."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        accelerator = new_accelerator(cpu=True)  # this process only writes files
        self.here = {
            number: RunHere(
                number=number,
                config=each.config,
                resume=runs.resume and each.started,
                values=None,
                say=partial(self._say, each.name),
                accelerator=accelerator,
                on_start=runs.start,
            )
            for number, each in enumerate(runs.plan, 1)
            if each.name not in runs.kept
        }
        self.left = list(self.here)
        self.count = len(self.left)

    def _say(self, name: str, message: str) -> None:
        self.runs.extensions.callbacks.on_message(f"{name}: {message}")

    @property
    def over(self) -> bool:
        return not self.left

    @property
    def finished(self) -> bool:
        return all(run.result is not None or run.diverged is not None for run in self.here.values())

    def next(self) -> Task | None:
        number = self.left.pop(0)
        self.runs.begin(number)
        return self.here[number].task()

    def take(self, task: Task, report: Report) -> Task | None:
        return self.here[task.number].take(task, report)

    def results(self) -> list[OneRun]:
        found = []
        for number, each in enumerate(self.runs.plan, 1):
            run = self.here.get(number)
            result = self.runs.kept[each.name] if run is None else run.result
            diverged = None if run is None or run.diverged is None else str(run.diverged)
            found.append(OneRun(name=each.name, values=each.values, result=result, diverged=diverged))
        return found
