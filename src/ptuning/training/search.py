"""``train_search(config)``: short runs that try rates and first layers, then one of them in full.

Its trials share one backbone in memory (:mod:`ptuning.training.run_cache`), so every text is tokenised once
and the layers below a prompt are run once for each first layer. A trial is recorded when it ends; a resumed
search is the straight one (:mod:`ptuning.training.trials`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from accelerate.utils import broadcast_object_list

from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.kinds import metric_named
from ptuning.model.config import prompt_to_dict
from ptuning.training import checkpoint, run_files
from ptuning.training.callbacks import Callback, CallbackList, RunState
from ptuning.training.config import TrainConfig, dump
from ptuning.training.extensions import ComputeMetrics, Extensions, Loss, MakeOptimizer, MakeScheduler
from ptuning.training.interrupt import Interrupted, StopRequest, stop_requests
from ptuning.training.job import make_job
from ptuning.training.plan import Earlier, plan_run
from ptuning.training.plot import plot
from ptuning.training.recipe import Facts
from ptuning.training.records import Evaluation, TrainResult
from ptuning.training.resumption import check_same, over_if_diverged
from ptuning.training.run import run, train_on
from ptuning.training.run_cache import RunCache, new_accelerator
from ptuning.training.run_files import CONFIG, PLOT, RESULT, SEARCH, START_AGAIN, refuse_unfinished, write
from ptuning.training.trials import Proposal, Space, Trial, proposal, require_optuna, winner


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        metric: The metric that the trials were compared by, on the validation rows.
        trials: In the order in which they ran, the auto recipe's own choice first.
        winner: The one that was kept, by its number: the best of them, or the first, if the best is ahead of
            it by no more than a standard error of the validation metric.
        result: What the winner's choices found in a run of full length.
        folder: Where the trials' table, ``result.json``, and their picture, ``search.png``, are.
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
    """Search what ``config`` leaves open of rates and first layer, and train the winner to ``config.output``.

    Every trial is a short run. The first has what ``recipe: auto`` would choose, the next few the same from
    other first layers; Optuna draws the rest around them, and stops those that after a quarter or later do
    worse than the median of the trials before them. The best by the validation metric is then trained at full
    length, as any run; but if it is ahead of the first by no more than chance, the first is, and that is the
    auto run. The test rows are looked at once, at the end of that.

    Args:
        resume: Keep the finished trials, continue with the rest, or with the run of the winner.
        restart: Start again although a search is unfinished; without it, that is refused.
        callbacks: As :func:`~ptuning.fit` takes them. Of trials they are called at start, step and end.
        compute_metrics: As :func:`~ptuning.fit` takes it, for trials too.
        loss: As :func:`~ptuning.fit` takes it, for trials too.
        optimizer: As :func:`~ptuning.fit` takes it, for trials too.
        lr_scheduler: As :func:`~ptuning.fit` takes it, for trials too.

    Raises:
        ConfigError: a configuration whose recipe is not ``search``, or that leaves nothing to search.
        TrainingDiverged: all trials diverged, or the winner's run did.
        Interrupted: Ctrl-C; finished trials are kept, and the run of the winner is saved where it was.
    """
    if config.recipe != "search":
        raise ConfigError(
            f"recipe: got {config.recipe!r}, expected 'search'; ptuning.train makes a single run"
        )
    require_optuna()
    wanted = config.fit.greater_is_better
    if wanted not in (None, not metric_named(config.fit.select_by).lower_is_better):
        raise ConfigError(
            "fit.greater_is_better: a search goes by the metric's name",
            got=str(wanted).lower(),
            remedy="give a metric that is to be small a name that ends in loss",
        )
    extensions = Extensions.checked(
        callbacks, compute_metrics=compute_metrics, loss=loss, optimizer=optimizer, lr_scheduler=lr_scheduler
    )
    folder = config.run_folder
    run_files.prepared(config.output)
    if not (resume or restart):
        refuse_unfinished(folder)
    if resume:
        _check_begun(config)
    search = _Search(config, extensions, resume=resume)
    try:
        with stop_requests() as stop, over_if_diverged(folder, search.accelerator):
            search.try_all(stop)
        kept, why = search.winner
        search.say(f"{why}: {kept}; trained in full")
        result = train_on(
            search.cache,
            config,
            resume=resume and run_files.has_checkpoint(folder),
            restart=True,
            extensions=extensions,
            found=kept.values,
        )
    except Interrupted:
        raise
    except KeyboardInterrupt:
        if not search.begun:
            raise
        raise Interrupted(
            "interrupted; the finished trials are kept; to go on, run the same command with --resume"
        ) from None
    return SearchResult(
        metric=search.select.metric,
        trials=tuple(search.trials),
        winner=kept.number,
        result=result,
        folder=search.folder,
    )


class _Search:
    """What is the same for all trials of a search, and those that were made."""

    def __init__(self, config: TrainConfig, extensions: Extensions, *, resume: bool) -> None:
        self.config, self.extensions, self.begun = config, extensions, resume
        self.callbacks, self.say = extensions.callbacks, extensions.callbacks.on_message
        self.folder = config.run_folder / SEARCH
        self.cache = RunCache()
        self.accelerator = new_accelerator(cpu=config.device == "cpu")
        job = make_job(self.cache, config, self.accelerator, say=self.say)
        model, data = job.model, self.cache.data(job.model, job.examples, job.too_long)
        self.space = Space.of(config, Facts.of(model, data.train.rows), model.backbone)
        self.count = int(min(config.search.trials, self.space.size))
        plan = plan_run(model, job.prompt, data, config.fit, extensions=extensions)
        self.select, self.rows = plan.select, plan.effective_rows
        self.setting = {
            **{name: plan.setting[name] for name in ("data", "backbone", "precision")},
            # What was measured of the rows, and decided by their number.
            **{
                f"prompt.{name}": value
                for name, value in prompt_to_dict(model.prompt_config).items()
                if name in ("pooling", "num_virtual_units", "num_queries")
            },
        }
        self.trials = _kept(self.folder / RESULT, self.setting) if resume else []
        self.accelerator.wait_for_everyone()  # all processes have read what the first one now changes

    @property
    def winner(self) -> tuple[Trial, str]:
        """The trial that is kept, and why.

        Raises:
            TrainingDiverged: none ran to its end.
        """
        found = winner(self.trials, self.select.metric, self.rows)
        if found is None:
            raise TrainingDiverged(
                f"all {len(self.trials)} trials of the search diverged, the first with {self.trials[0]}; set "
                "precision: fp32, or fit.learning_rate and fit.head_learning_rate to a hundredth of that"
            )
        return found

    def try_all(self, stop: StopRequest) -> None:
        """Make the trials that are left, then the picture of all of them."""
        self.cache.say_notes(self.config.data, self.say)
        lowest = self.space.auto.get("first_layer", 0)
        first = f"rates from layer {lowest:g}" if lowest else "own"
        told = f"search: {self.count} trials of {self.space.epochs} epochs, recipe: auto's {first} the first"
        self.say(told + (f"; {len(self.trials)} finished before" if self.trials else ""))
        if self.select.note is not None:
            self.say(self.select.note)
        while len(self.trials) < self.count and self._in_time():
            trial = self._try(stop)
            self.trials.append(trial)
            self._keep()
            self.callbacks.on_trial_end(trial, self.count, self.select.metric)
            if stop.made:  # too late for the trial
                raise self._interrupted(len(self.trials))
        kept, _ = self.winner
        self._keep(kept.number)
        if self.accelerator.is_main_process:
            picture = plot(self.trials, kept, self.select.metric, self.rows)
            write(self.folder / PLOT, picture, self.accelerator)

    def _try(self, stop: StopRequest) -> Trial:
        config, number, began = self.config, len(self.trials) + 1, time.perf_counter()
        proposed = proposal(self.space, self.trials, self.select.metric, config.fit.seed)
        watch = _Watch(self, proposed, stop)
        state: Literal["complete", "pruned", "diverged"] = "complete"
        accelerator = new_accelerator(cpu=config.device == "cpu")  # it holds on to what it prepares
        job = make_job(self.cache, config, accelerator, Earlier(found=proposed.values))
        job = replace(
            job,
            examples=replace(job.examples, test=[]),  # no trial is evaluated on the test rows
            config=config.fit.model_copy(update={"num_train_epochs": self.space.epochs}),
        )
        try:
            run(
                job,
                accelerator,
                extensions=replace(self.extensions, callbacks=CallbackList([watch])),
                cache=self.cache,
                began=self._begin,
            )
        except Pruned:
            state = "pruned"
        except TrainingDiverged:
            state = "diverged"
        except KeyboardInterrupt:
            if not self.begun:
                raise
            raise self._interrupted(number) from None
        return Trial(
            number=number,
            values=proposed.values,
            state=state,
            history=tuple(watch.history),
            seconds=time.perf_counter() - began,
        )

    def _begin(self) -> None:
        """Before the first step of all: take away what the run before this one left."""
        if self.begun:
            return
        self.begun = True
        if self.accelerator.is_main_process:
            run_files.clear(self.config.run_folder)
        write(self.config.run_folder / CONFIG, dump(self.config), self.accelerator)
        self._keep()

    def _in_time(self) -> bool:
        """Whether the budget allows another trial; the first process's clock says so for all."""
        minutes = self.config.search.minutes
        if minutes is None or not self.trials:
            return True
        said = [sum(trial.seconds for trial in self.trials) < 60 * minutes]
        broadcast_object_list(said)
        return said[0]

    def _keep(self, kept: int | None = None) -> None:
        """Write what was found so far, whole or not at all."""
        file = self.folder / RESULT
        values = {
            "metric": self.select.metric,
            "winner": kept,
            "setting": self.setting,
            "trials": [asdict(trial) for trial in self.trials],
        }
        write(file, json.dumps(values, indent=1) + "\n", self.accelerator)

    def _interrupted(self, number: int) -> Interrupted:
        return Interrupted(
            f"interrupted at trial {number} of {self.count}; those that are finished are kept; to go on, run "
            "the same command with --resume"
        )


class Pruned(Exception):
    """A trial is not gone on with: others were better at the same point."""


class _Watch(Callback):
    """A trial's callback: keeps its evaluations, stops it if it is hopeless, moves the bar."""

    def __init__(self, search: _Search, proposed: Proposal, stop: StopRequest) -> None:
        self.search, self.proposed, self.stop_request = search, proposed, stop
        self.history: list[Evaluation] = []

    def on_train_begin(self, state: RunState) -> None:
        if self.stop_request.made:  # while the model was made
            raise Interrupted
        search = self.search
        search.callbacks.on_trial_begin(len(search.trials) + 1, search.count, state.total_steps)

    def on_progress(self, what: str, done: int, total: int) -> None:
        if what == "stem":  # of the head, trials say what they reached and nothing else
            self.search.callbacks.on_progress(what, done, total)

    def on_step_end(self, state: RunState) -> None:
        self.search.callbacks.on_trial_step(state)

    def on_evaluate(self, state: RunState) -> None:
        self.history.append(state.history[-1])
        reached = [self.search.select.key(each.metrics)[0] for each in self.history]
        begun = 0 < state.step < state.total_steps  # at 0 it is the fitted head's
        if begun and self.proposed.hopeless(reached, state.step / state.total_steps):
            raise Pruned

    def on_exception(self, state: RunState, error: BaseException) -> None:
        if not isinstance(error, Pruned | TrainingDiverged):
            self.search.callbacks.on_trial_end(None, self.search.count, self.search.select.metric)


# ------------------------------------------------------------------------------- what stands there


def _check_begun(config: TrainConfig) -> None:
    """Refuse to go on where there is no search, or one of another configuration."""
    file = config.run_folder / SEARCH / RESULT
    if not file.exists():
        raise ConfigError(f"nothing to resume: there is no {file}; leave --resume out to begin")
    check_same(config, "the search")


def _kept(file: Path, setting: Mapping[str, Any]) -> list[Trial]:
    """The trials that are finished.

    Raises:
        ConfigError: the file cannot be read, or it is of other data or another backbone.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        trials, then = [Trial.read(each) for each in found["trials"]], dict(found["setting"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"cannot resume: {file} cannot be read ({error}); {START_AGAIN}") from None
    checkpoint.refuse_changes(then, setting)
    return trials
