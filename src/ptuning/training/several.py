"""``train_several(config, seeds=…)``: several seeds and learning rates, run in turn on one backbone.

Each run has a folder of its own, and its result is the same to the bit as that of a separate run: what the
runs share (:mod:`ptuning.training.run_cache`) does not depend on the seed or the learning rates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ptuning import adapters
from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.model.config import trains_head
from ptuning.training import run_files
from ptuning.training.callbacks import Callback
from ptuning.training.comparing import comparison_of_runs
from ptuning.training.config import FitConfig, TrainConfig
from ptuning.training.extensions import ComputeMetrics, Extensions, Loss, MakeOptimizer, MakeScheduler
from ptuning.training.interrupt import Interrupted, stop_requests
from ptuning.training.metrics import Selection
from ptuning.training.processes import any_process, noticing_lost
from ptuning.training.records import OneRun, SeveralResult, TrainResult
from ptuning.training.reporting import write_report
from ptuning.training.resumption import check_same
from ptuning.training.run import train_on
from ptuning.training.run_cache import RunCache, new_accelerator
from ptuning.training.run_files import CHECKPOINT, REPORT, RESULT, unfinished, write
from ptuning.training.tracking import tracked
from ptuning.validation import validated

MAX_RUNS = 64
"""Maximum number of runs in a set; for more, ``recipe: search`` is better."""
_RESUME = "finished runs are kept; to continue, run the same command with --resume (in Python: resume=True)"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of the set: its name, the values that it varies, its complete configuration."""

    name: str
    values: Mapping[str, int | float]
    config: TrainConfig

    @property
    def checkpoint(self) -> Path:
        return self.config.run_folder / CHECKPOINT

    @property
    def started(self) -> bool:
        return run_files.has_checkpoint(self.config.run_folder)

    @property
    def result(self) -> Path:
        return self.config.run_folder / RESULT


def train_several(
    config: TrainConfig,
    *,
    seeds: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    head_learning_rates: Sequence[float] | None = None,
    resume: bool = False,
    restart: bool = False,
    callbacks: Iterable[Callback] | None = None,
    compute_metrics: ComputeMetrics | None = None,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
    lr_scheduler: MakeScheduler | None = None,
    prompt_rates: Sequence[float] | None = None,
    head_rates: Sequence[float] | None = None,
) -> SeveralResult:
    """Train every combination of the given seeds and learning rates on one backbone, and keep the best.

    A run ``seed-1`` writes its adapter to ``OUTPUT.run/seed-1``, its own files to ``OUTPUT.run/seed-1.run``.
    The adapter of the run with the best validation metric (with a tie, the first) is also written to
    ``config.output``, and ``OUTPUT.run/result.json`` lists all runs. The test rows do not affect the choice.

    If a run diverges, this is recorded, and the next run starts.

    Args:
        config: What the runs have in common. A list below replaces the value in it.
        seeds: Random seeds; they also decide which rows are split off for validation.
        learning_rates: Peak learning rates of the prompt.
        head_learning_rates: Peak learning rates of the head.
        resume: Keep the finished runs, continue the unfinished one from its checkpoint, and train the rest.
        restart: Start again although a set is unfinished; without it, that is refused.
        callbacks: As :func:`~ptuning.fit` takes them, for every run.
        compute_metrics: As :func:`~ptuning.fit` takes it.
        loss: As :func:`~ptuning.fit` takes it.
        optimizer: As :func:`~ptuning.fit` takes it.
        lr_scheduler: As :func:`~ptuning.fit` takes it.
        prompt_rates: The earlier name of ``learning_rates``.
        head_rates: The earlier name of ``head_learning_rates``.

    Raises:
        ConfigError: ``recipe: search``, no list, an empty list, a repeated value, or more than
            :data:`MAX_RUNS` runs.
        TrainingDiverged: all runs diverged.
        Interrupted: Ctrl-C; the current run is saved where it was.
    """
    extensions = Extensions.checked(
        callbacks, compute_metrics=compute_metrics, loss=loss, optimizer=optimizer, lr_scheduler=lr_scheduler
    )
    lists = {
        "seed": seeds,
        "learning_rate": _either("learning_rates", learning_rates, "prompt_rates", prompt_rates),
        "head_learning_rate": _either("head_learning_rates", head_learning_rates, "head_rates", head_rates),
    }
    extensions = tracked(extensions, config)
    return several_with(in_turn, config, lists, extensions, resume=resume, restart=restart)


def several_with(
    execute: Execute,
    config: TrainConfig,
    lists: Mapping[str, Sequence[int | float] | None],
    extensions: Extensions,
    *,
    resume: bool,
    restart: bool,
) -> SeveralResult:
    """:func:`train_several` with another way to train the runs.

    Args:
        execute: Trains the runs.
        lists: The values of ``seed``, ``learning_rate`` and ``head_learning_rate``.
    """
    if config.recipe == "search":
        raise ConfigError(
            "recipe: search tries learning rates itself, with one seed",
            remedy="leave the lists of seeds and learning rates out",
        )
    plan = _plan(config, lists)
    folder, output = config.run_folder, run_files.prepared(config.output)
    for each in plan:
        run_files.prepared(each.config.output)
    if not restart:
        _refuse_unfinished(plan, folder, resume=resume)
    kept = _kept(plan) if resume else {}
    with noticing_lost(lambda: _RESUME if any(each.started for each in plan) else None):
        accelerator = new_accelerator(cpu=config.device == "cpu")
        accelerator.wait_for_everyone()  # the main process changes files that the others have read

        def before_first_step() -> None:
            if accelerator.is_main_process:
                _clear(folder, () if resume else plan)

        with stop_requests() as stop:
            runs = execute(
                Runs(plan, kept, before_first_step, resume=resume, extensions=extensions),
                lambda: any_process(accelerator, stop.made),
            )
        if all(run.result is None for run in runs):  # finished, so a set with other values can be started
            table = {"best": None, "runs": [run.to_dict() for run in runs]}
            write(folder / RESULT, json.dumps(table, indent=1) + "\n", accelerator)
        metric = _metric(runs)
        best = _best(runs, metric)
        result = SeveralResult(metric=metric, runs=tuple(runs), best=best, adapter=output)
        if accelerator.is_main_process:
            adapters.save(adapters.load(folder / best.name), output)
        write(folder / RESULT, json.dumps(result.to_dict(), indent=1) + "\n", accelerator)
        if config.report and accelerator.is_main_process:  # last: the set is finished without it
            say = extensions.callbacks.on_message
            write_report(folder / REPORT, lambda: comparison_of_runs(result), say)
        accelerator.wait_for_everyone()  # so that each process finds the files
        return result


# ---------------------------------------------------------------------------------------- the plan


def _either(
    name: str, values: Sequence[float] | None, old: str, earlier: Sequence[float] | None
) -> Sequence[float] | None:
    if values is not None and earlier is not None:
        raise ConfigError(
            f"{name} and {old}",
            got="both",
            expected="one of them",
            remedy=f"{old} is the earlier name of {name}",
        )
    return earlier if values is None else values


def _plan(config: TrainConfig, lists: Mapping[str, Sequence[int | float] | None]) -> list[Planned]:
    """Every combination, in training order; the values of the last list change fastest."""
    given = {name: tuple(values) for name, values in lists.items() if values is not None}
    if not given:
        raise ConfigError(
            "nothing to vary",
            got="no list",
            expected="seeds, learning_rates or head_learning_rates",
            remedy="give one, or train a single run with ptuning.train",
        )
    for name, values in given.items():
        if not values or len(set(values)) != len(values):
            raise ConfigError(f"{name}s", got=list(values), expected="one value or more, without repetition")
    if "head_learning_rate" in given and not trains_head(config.prompt):
        raise ConfigError(
            "head_learning_rates: the head is frozen (prompt.train_head), so they would have no effect",
            remedy="leave them out",
        )
    chosen = [dict(zip(given, values, strict=True)) for values in product(*given.values())]
    if len(chosen) > MAX_RUNS:
        sizes = " x ".join(f"{len(values)} {name}s" for name, values in given.items())
        raise ConfigError(
            sizes, got=f"{len(chosen)} runs", expected=f"at most {MAX_RUNS}", remedy="give fewer values"
        )
    return [_planned(config, values) for values in chosen]


def _planned(config: TrainConfig, values: Mapping[str, int | float]) -> Planned:
    fit: FitConfig = validated(FitConfig, {**config.fit.model_dump(), **values}, "fit")
    varied = {name: getattr(fit, name) for name in values}
    name = "_".join(f"{option}-{repr(value).removesuffix('.0')}" for option, value in varied.items())
    output = str(config.run_folder / name)
    return Planned(name=name, values=varied, config=config.model_copy(update={"fit": fit, "output": output}))


# ------------------------------------------------------------------------- the files that are there


def _refuse_unfinished(plan: Iterable[Planned], folder: Path, *, resume: bool) -> None:
    """Refuse to overwrite an unfinished single run, or, without ``resume``, an unfinished set of runs."""
    if unfinished(folder):
        raise ConfigError(
            f"{folder} has an unfinished single run",
            remedy="continue it with --resume and without lists of seeds or learning rates, or start again "
            "with --restart (in Python: restart=True)",
        )
    listed = _listed(folder / RESULT)
    left = [each.name for each in plan if each.started and each.name not in listed]
    if left and not resume:
        raise ConfigError(
            f"{folder} has an unfinished set of runs ({left[0]} is one of them)",
            remedy="continue it with --resume, or start again with --restart (in Python: resume=True, "
            "restart=True)",
        )


def _listed(file: Path) -> frozenset[str]:
    """The names of the runs in a finished set's table; empty if there is no table, or only a single run."""
    try:
        return frozenset(run["name"] for run in json.loads(file.read_text(encoding="utf-8"))["runs"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return frozenset()


def _kept(plan: Sequence[Planned]) -> dict[str, TrainResult]:
    """The results of the finished runs, by name.

    Raises:
        ConfigError: there is nothing to resume, or a run that was started with another configuration.
    """
    started = [each for each in plan if each.started]
    if not started:
        raise ConfigError(
            f"nothing to resume: there is no {plan[0].checkpoint}, nor one of another run of the set",
            remedy="leave --resume out to start",
        )
    for each in started:
        check_same(each.config, each.name)
    return {
        each.name: found
        for each in started
        if each.result.exists() and adapters.is_adapter(each.config.output)
        if (found := _found(each.result)) is not None
    }


def _found(file: Path) -> TrainResult | None:
    """The result of a run; ``None`` if it has to be trained: it diverged, or its result cannot be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return None if "diverged" in values else TrainResult.from_dict(values)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _clear(folder: Path, stale: Iterable[Planned]) -> None:
    """Remove the files of earlier runs with these names, and then the table of the previous set."""
    for each in stale:
        run_files.clear(each.config.run_folder)
    if _listed(folder / RESULT):  # a single run's result stays until this set's table replaces it
        run_files.remove(folder / RESULT)


# ---------------------------------------------------------------------------------------- the runs


class Runs:
    """The runs of a set, and those of them that are finished.

    Args:
        kept: The results of those that were finished before, by name.
        before_first_step: Called once, before the first step of any of them.
        resume: Whether a run that was started is continued.
    """

    def __init__(
        self,
        plan: Sequence[Planned],
        kept: Mapping[str, TrainResult],
        before_first_step: Callable[[], None],
        *,
        resume: bool,
        extensions: Extensions,
    ) -> None:
        self.plan, self.kept, self.resume, self.extensions = plan, kept, resume, extensions
        self.started = False
        self._before_first_step = before_first_step

    def start(self) -> None:
        """Before the first step of a run."""
        if not self.started:
            self.started = True
            self._before_first_step()

    def begin(self, number: int) -> None:
        """Report that a run, from 1, starts or was finished before."""
        name = self.plan[number - 1].name
        self.extensions.callbacks.on_run_begin(name, number, len(self.plan), name in self.kept)

    @property
    def can_be_resumed(self) -> bool:
        """Whether there is something to keep."""
        return bool(self.started or self.kept) and any(each.started for each in self.plan)


Execute = Callable[[Runs, Callable[[], bool]], list[OneRun]]
"""Trains the runs of a set that are not finished, and returns all of them, in order.

The function that it gets says whether a signal asked to stop, in any process.
"""


def in_turn(several: Runs, stopping: Callable[[], bool]) -> list[OneRun]:
    """Train the runs one after another in this process, on one backbone."""
    cache, runs, plan = RunCache(), list[OneRun](), several.plan

    def on_start() -> None:
        if stopping():  # while the model was created
            raise KeyboardInterrupt
        several.start()

    for number, each in enumerate(plan, 1):
        several.begin(number)
        found, diverged = several.kept.get(each.name), None
        if found is None:
            try:
                found = train_on(
                    cache,
                    each.config,
                    resume=several.resume and each.started,
                    restart=True,
                    extensions=several.extensions,
                    on_start=on_start,
                )
            except TrainingDiverged as error:
                diverged = str(error)
            except KeyboardInterrupt as error:
                if not several.can_be_resumed:
                    raise
                how = str(error) or (
                    "interrupted; the last checkpoint is kept; to continue, run the same command with "
                    "--resume"
                )
                raise Interrupted(f"run {number} of {len(plan)}, {each.name}: {how}") from None
        runs.append(OneRun(name=each.name, values=each.values, result=found, diverged=diverged))
        if number < len(plan) and stopping():  # the signal came after that run's last step
            raise Interrupted(
                f"interrupted after run {number} of {len(plan)}, {each.name}; finished runs are kept; to "
                "continue, run the same command with --resume"
            )
    return runs


def _metric(runs: Sequence[OneRun]) -> str:
    """The metric that selected all runs; the loss, if they differ (some rows leave a metric undefined)."""
    found = {run.result.metric for run in runs if run.result is not None}
    return found.pop() if len(found) == 1 else "loss"


def _best(runs: Sequence[OneRun], metric: str) -> OneRun:
    """The run with the best validation metric; with a tie, the first."""
    best: tuple[float, OneRun] | None = None
    for run in runs:
        if run.result is not None:
            greater = run.result.greater_is_better if run.result.metric == metric else None
            select = Selection(metric=metric, greater_is_better=greater)
            value = select.key(run.result.metrics["validation"])[0]
            if best is None or value > best[0]:
                best = (value, run)
    if best is None:
        first = runs[0]
        raise TrainingDiverged(
            f"all {len(runs)} runs diverged", remedy=f"the first, {first.name}: {first.diverged}"
        )
    return best[1]
