"""``train_search(config)``: short trials with several learning rates and first layers, then one full run.

The trials share one backbone in memory (:mod:`ptuning.training.run_cache`), so every text is tokenised once
and the layers below a prompt run once per first layer. A trial is recorded when it ends; a resumed search
gives the same result as one without an interruption (:mod:`ptuning.training.trials`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.kinds import metric_named
from ptuning.model.config import prompt_to_dict
from ptuning.training import checkpoint, run_files
from ptuning.training.callbacks import Callback, CallbackList, RunState
from ptuning.training.comparing import comparison_of_trials
from ptuning.training.config import TrainConfig, dump
from ptuning.training.extensions import ComputeMetrics, Extensions, Loss, MakeOptimizer, MakeScheduler
from ptuning.training.interrupt import Interrupted, StopRequest, stop_requests
from ptuning.training.job import make_job
from ptuning.training.plan import Earlier, plan_run
from ptuning.training.plot import plot
from ptuning.training.processes import any_process, from_main, noticing_lost
from ptuning.training.recipe import Facts
from ptuning.training.records import TrainResult
from ptuning.training.reporting import write_report
from ptuning.training.resumption import check_same, recording_divergence
from ptuning.training.run import run, train_on
from ptuning.training.run_cache import RunCache, new_accelerator
from ptuning.training.run_files import (
    CONFIG,
    PLOT,
    REPORT,
    RESULT,
    SEARCH,
    START_AGAIN,
    refuse_unfinished,
    write,
)
from ptuning.training.tracking import tracked
from ptuning.training.trials import Space, Trial, Values, Watch, proposal, require_optuna, winner

_RESUME = "finished trials are kept; to continue, run the same command with --resume (in Python: resume=True)"


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The result of a search.

    Attributes:
        metric: The validation metric that compares the trials.
        trials: In the order in which they ran; the first has the auto recipe's choices.
        winner: The number of the trial that was kept: the best one, or the first, if the best is ahead of
            it by no more than a standard error of the validation metric.
        result: The result of the full run with the winner's values.
        folder: Where ``result.json``, the table of the trials, and ``search.png``, their plot, are.
    """

    metric: str
    trials: tuple[Trial, ...]
    winner: int
    result: TrainResult
    folder: Path


def train_search(
    config: TrainConfig,
    *,
    resume: bool = False,
    restart: bool = False,
    callbacks: Iterable[Callback] | None = None,
    compute_metrics: ComputeMetrics | None = None,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
    lr_scheduler: MakeScheduler | None = None,
) -> SearchResult:
    """Search the learning rates and the first layer that ``config`` leaves open, and train the winner.

    Every trial is a short run. The first has what ``recipe: auto`` would choose, the next few the same with
    other first layers. Optuna draws the rest around them, and stops trials that, after a quarter of their
    steps or later, are worse than the median of the trials before them. The trial with the best validation
    metric is then trained at full length, to ``config.output``. If its lead over the first trial may be
    chance, the first is trained instead, which is the auto run. The test rows are evaluated once, at the end.

    Args:
        resume: Keep the finished trials, and continue with the rest or with the winner's run.
        restart: Start again although a search is unfinished; without it, that is refused.
        callbacks: As :func:`~ptuning.fit` takes them. For a trial, ``on_trial_begin``,
            ``on_trial_step`` and ``on_trial_end`` are called.
        compute_metrics: As :func:`~ptuning.fit` takes it, for trials too.
        loss: As :func:`~ptuning.fit` takes it, for trials too.
        optimizer: As :func:`~ptuning.fit` takes it, for trials too.
        lr_scheduler: As :func:`~ptuning.fit` takes it, for trials too.

    Raises:
        ConfigError: the recipe is not ``search``, or there is nothing left to search.
        TrainingDiverged: all trials diverged, or the winner's run did.
        Interrupted: Ctrl-C; finished trials are kept, and the winner's run is saved where it was.
    """
    extensions = Extensions.checked(
        callbacks, compute_metrics=compute_metrics, loss=loss, optimizer=optimizer, lr_scheduler=lr_scheduler
    )
    return search_with(in_turn, config, tracked(extensions, config), resume=resume, restart=restart)


def search_with(
    execute: Execute,
    config: TrainConfig,
    extensions: Extensions,
    *,
    resume: bool,
    restart: bool,
    concurrency: int = 1,
) -> SearchResult:
    """:func:`train_search` with another way to run the trials.

    Args:
        execute: Runs the trials, and trains the winner.
        concurrency: How many trials may run at once. A trial is proposed from those that finished so many
            before it, so the trials depend on it, but not on which of them finishes first.
    """
    if config.recipe != "search":
        raise ConfigError(
            "recipe",
            got=repr(config.recipe),
            expected="'search'",
            remedy="use ptuning.train for a single run",
        )
    require_optuna()
    wanted = config.fit.greater_is_better
    if wanted not in (None, not metric_named(config.fit.select_by).lower_is_better):
        raise ConfigError(
            "fit.greater_is_better: a search infers it from the metric's name",
            got=str(wanted).lower(),
            remedy="if a smaller value is better, give the metric a name that ends in loss",
        )
    folder = config.run_folder
    run_files.prepared(config.output)
    if not (resume or restart):
        refuse_unfinished(folder)
    if resume:
        _check_started(config)
    with noticing_lost(lambda: _RESUME if run_files.unfinished(folder) else None):
        return _search(execute, Search(config, extensions, resume=resume, concurrency=concurrency))


def _search(execute: Execute, search: Search) -> SearchResult:
    try:
        result = execute(search)
    except Interrupted:
        raise
    except KeyboardInterrupt:
        if not (search.started and run_files.unfinished(search.config.run_folder)):
            raise
        raise Interrupted(
            "interrupted; the finished trials are kept; to continue, run the same command with --resume"
        ) from None
    return SearchResult(
        metric=search.select.metric,
        trials=tuple(search.trials),
        winner=search.winner[0].number,
        result=result,
        folder=search.folder,
    )


def in_turn(search: Search) -> TrainResult:
    """Run the trials one after another in this process, then the winner's run."""
    with stop_requests() as stop:
        search.begin()
        while search.left:
            search.add(_try(search, stop))
            if any_process(search.accelerator, stop.made):  # the signal came after the trial's last step
                raise search.interrupted(len(search.trials))
        kept = search.decide()
    return train_on(
        search.cache,
        search.config,
        resume=search.continues,
        restart=True,
        extensions=search.extensions,
        found=kept.values,
    )


class Search:
    """The trials of a search so far, and what they have in common.

    Attributes:
        count: How many trials there will be, without a limit of minutes.
        trials: Those that are finished, by number.
        started: Whether a trial has begun, now or before the search was resumed.
        continues: Whether the winner's run has a checkpoint to continue from.
    """

    def __init__(
        self, config: TrainConfig, extensions: Extensions, *, resume: bool, concurrency: int = 1
    ) -> None:
        self.config, self.extensions, self.started = config, extensions, resume
        self.concurrency = concurrency
        self.continues = resume and run_files.has_checkpoint(config.run_folder)
        self.callbacks, self.say = extensions.callbacks, extensions.callbacks.on_message
        self.folder = config.run_folder / SEARCH
        self.cache = RunCache()
        self.accelerator = new_accelerator(cpu=config.device == "cpu")
        job = make_job(self.cache, config, self.accelerator, say=self.say)
        model, data = job.model, self.cache.data(job.model, job.examples, job.too_long)
        facts = Facts.of(model, data.train.rows, job.start)
        self.space = Space.of(config, facts, model.backbone)
        self.count = int(min(config.search.trials, self.space.size))
        plan = plan_run(model, job.prompt, data, config.fit, extensions=extensions, start=job.start)
        self.select, self.rows = plan.select, plan.effective_rows
        self.setting = {
            **{name: plan.setting[name] for name in ("data", "backbone", "precision", "init_from")},
            # What depends on the training rows.
            **{
                f"prompt.{name}": value
                for name, value in prompt_to_dict(model.prompt_config).items()
                if name in ("pooling", "num_virtual_units", "num_queries")
            },
            "concurrency": concurrency,
        }
        self.trials = _kept(self.folder / RESULT, self.setting) if resume else []
        self.accelerator.wait_for_everyone()  # the main process changes files that the others have read

    @property
    def winner(self) -> tuple[Trial, str]:
        """The trial that is kept, and why.

        Raises:
            TrainingDiverged: no trial was completed.
        """
        found = winner(self.trials, self.select.metric, self.rows)
        if found is None:
            raise TrainingDiverged(
                f"all {len(self.trials)} trials of the search diverged, the first with {self.trials[0]}",
                remedy="set precision: fp32, or fit.learning_rate and fit.head_learning_rate to a hundredth "
                "of that",
            )
        return found

    @property
    def left(self) -> bool:
        """Whether another trial may be started; the main process decides for all."""
        return len(self.trials) < self.count and self.has_time

    @property
    def has_time(self) -> bool:
        """Whether the minutes that the trials may take together have not passed."""
        minutes = self.config.search.minutes
        if minutes is None or not self.trials:
            return True
        return from_main(self.accelerator, sum(trial.seconds for trial in self.trials) < 60 * minutes)

    def begin(self) -> None:
        """Report the plan."""
        self.cache.say_notes(self.config, self.say)
        lowest = self.space.auto.get("first_layer", 0)
        start = f", from layer {lowest:g}" if lowest else ""
        plan = f"{self.count} trials of {self.space.epochs} epochs; the first as recipe: auto chooses{start}"
        self.say(f"search: {plan}" + (f"; {len(self.trials)} finished before" if self.trials else ""))
        if self.select.note is not None:
            self.say(self.select.note)

    def watch(self, number: int) -> Watch:
        """What trial ``number`` tries, and when it is pruned."""
        seen = [trial for trial in self.trials if trial.number <= number - self.concurrency]
        proposed = proposal(self.space, seen, self.select.metric, self.config.fit.seed, number)
        return Watch(proposed, self.select)

    def start(self) -> None:
        """Before the first step of the first trial: remove the files of the previous run."""
        if self.started:
            return
        self.started = True
        if self.accelerator.is_main_process:
            run_files.clear(self.config.run_folder)
        write(self.config.run_folder / CONFIG, dump(self.config), self.accelerator)
        self._keep()

    def add(self, trial: Trial) -> None:
        """Record a trial that is over."""
        self.trials = sorted([*self.trials, trial], key=lambda each: each.number)
        self._keep()
        self.callbacks.on_trial_end(trial, self.count, self.select.metric)

    def decide(self) -> Trial:
        """The winner of all trials, which are plotted.

        Raises:
            TrainingDiverged: no trial was completed; this is recorded.
        """
        with recording_divergence(self.config.run_folder, self.accelerator):
            kept, why = self.winner
        self._keep(kept.number)
        if self.accelerator.is_main_process:
            picture = plot(self.trials, kept, self.select.metric, self.rows)
            write(self.folder / PLOT, picture, self.accelerator)
            if self.config.report:
                name, metric = self.config.run_folder.stem, self.select.metric
                make = partial(comparison_of_trials, name, self.trials, kept.number, metric)
                write_report(self.folder / REPORT, make, self.say)
        self.say(f"{why}: {kept}; trained in full")
        return kept

    def interrupted(self, number: int) -> Interrupted:
        return Interrupted(
            f"interrupted at trial {number} of {self.count}; finished trials are kept; to continue, run the "
            "same command with --resume"
        )

    def _keep(self, kept: int | None = None) -> None:
        """Write the trials so far, completely or not at all."""
        file = self.folder / RESULT
        values = {
            "metric": self.select.metric,
            "winner": kept,
            "setting": self.setting,
            "trials": [asdict(trial) for trial in self.trials],
        }
        write(file, json.dumps(values, indent=1) + "\n", self.accelerator)


Execute = Callable[[Search], TrainResult]
"""Runs the trials of a search that are left, and trains the winner."""


# ---------------------------------------------------------------------------------------- one trial


def run_trial(
    cache: RunCache,
    config: TrainConfig,
    values: Values,
    epochs: int,
    *,
    extensions: Extensions,
    on_start: Callable[[], None],
) -> None:
    """Run a trial; ``extensions.callbacks`` are told of its evaluations.

    Args:
        values: What it tries.
        on_start: Called before its first step.
    """
    # A new one per trial, because it keeps references to what it prepares.
    accelerator = new_accelerator(cpu=config.device == "cpu")
    job = make_job(cache, config, accelerator, Earlier(found=values))
    job = replace(
        job,
        examples=replace(job.examples, test=[]),  # no trial is evaluated on the test rows
        config=config.fit.model_copy(update={"num_train_epochs": epochs}),
    )
    run(job, accelerator, extensions=extensions, cache=cache, on_start=on_start)


def _try(search: Search, stop: StopRequest) -> Trial:
    """Run the next trial in this process."""
    number, start = len(search.trials) + 1, time.perf_counter()
    watch = search.watch(number)
    callbacks = CallbackList([_TrialCallback(search, watch, stop)])
    state: Literal["complete", "pruned", "diverged"] = "complete"
    try:
        run_trial(
            search.cache,
            search.config,
            watch.proposed.values,
            search.space.epochs,
            extensions=replace(search.extensions, callbacks=callbacks),
            on_start=search.start,
        )
    except Pruned:
        state = "pruned"
    except TrainingDiverged:
        state = "diverged"
    except KeyboardInterrupt:
        if not search.started:
            raise
        raise search.interrupted(number) from None
    return Trial(
        number=number,
        values=watch.proposed.values,
        state=state,
        history=tuple(watch.history),
        seconds=time.perf_counter() - start,
    )


class Pruned(Exception):
    """A trial was stopped: others were better at the same point."""


class _TrialCallback(Callback):
    """Records a trial's evaluations, prunes it, and passes its progress on."""

    def __init__(self, search: Search, watch: Watch, stop: StopRequest) -> None:
        self.search, self.watch, self.stop_request = search, watch, stop

    def on_train_begin(self, state: RunState) -> None:
        search = self.search
        if any_process(search.accelerator, self.stop_request.made):  # while the model was created
            raise Interrupted
        search.callbacks.on_trial_begin(len(search.trials) + 1, search.count, state.total_steps)

    def on_progress(self, what: str, done: int, total: int) -> None:
        if what == "stem":  # a trial does not report the fit of its head
            self.search.callbacks.on_progress(what, done, total)

    def on_step_end(self, state: RunState) -> None:
        self.search.callbacks.on_trial_step(state)

    def on_evaluate(self, state: RunState) -> None:
        if self.watch.prunes(state.history[-1], state.total_steps):
            raise Pruned

    def on_exception(self, state: RunState, error: BaseException) -> None:
        if not isinstance(error, Pruned | TrainingDiverged):
            self.search.callbacks.on_trial_end(None, self.search.count, self.search.select.metric)


# ------------------------------------------------------------------------- the files that are there


def _check_started(config: TrainConfig) -> None:
    """Refuse to resume without a search, or with another configuration."""
    file = config.run_folder / SEARCH / RESULT
    if not file.exists():
        raise ConfigError(f"nothing to resume: there is no {file}", remedy="leave --resume out to start")
    check_same(config, "the search")


def _kept(file: Path, setting: Mapping[str, Any]) -> list[Trial]:
    """The finished trials in ``file``.

    Raises:
        ConfigError: the file cannot be read, or the data or the backbone have changed.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        trials, then = [Trial.read(each) for each in found["trials"]], dict(found["setting"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"cannot resume: {file} cannot be read ({error})", remedy=START_AGAIN) from None
    checkpoint.refuse_changes(then, setting)
    return trials
