"""``train_several(config, seeds=…)``: seeds and rates one after another on one backbone in memory.

Each of them is a run like any other, in a folder of its own, and finds what a run alone would find, to the
bit: what they share (:mod:`ptuning.training.run_cache`) depends on no seed and no rate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ptuning import adapters
from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.training import run_files
from ptuning.training.callbacks import Callback
from ptuning.training.config import FitConfig, TrainConfig
from ptuning.training.extensions import ComputeMetrics, Extensions, Loss, MakeOptimizer, MakeScheduler
from ptuning.training.interrupt import Interrupted, StopRequest, stop_requests
from ptuning.training.metrics import Selection
from ptuning.training.records import OneRun, SeveralResult, TrainResult
from ptuning.training.resumption import check_same
from ptuning.training.run import train_on
from ptuning.training.run_cache import RunCache, new_accelerator
from ptuning.training.run_files import CHECKPOINT, RESULT, unfinished, write
from ptuning.validation import validated

MOST = 64
"""Runs of one set; more are a search, and should be planned as one."""


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """One run of the set: its name, what is its own, its whole configuration."""

    name: str
    values: Mapping[str, int | float]
    config: TrainConfig

    @property
    def checkpoint(self) -> Path:
        return self.config.run_folder / CHECKPOINT

    @property
    def begun(self) -> bool:
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
    """Train every combination of the given seeds and rates on one backbone, and keep the best.

    A run ``seed-1`` writes its adapter to ``OUTPUT.run/seed-1``, its own files to ``OUTPUT.run/seed-1.run``.
    The adapter of the best run by the validation metric (of equals, the first) is also written to
    ``config.output``, and ``OUTPUT.run/result.json`` has all of them. The test rows select nothing.

    A run that diverges is reported as that, and the others go on.

    Args:
        config: What the runs have in common; its own seed and rates give way to those that are listed.
        seeds: Of everything that is drawn, the validation rows included where they are split off.
        learning_rates: Peak learning rates of the prompt.
        head_learning_rates: Peak learning rates of the head.
        resume: Keep what is finished, continue from the checkpoint of what is not, and train the rest.
        restart: Start again although a set is unfinished; without it, that is refused.
        callbacks: As :func:`~ptuning.fit` takes them, for every run.
        compute_metrics: As :func:`~ptuning.fit` takes it.
        loss: As :func:`~ptuning.fit` takes it.
        optimizer: As :func:`~ptuning.fit` takes it.
        lr_scheduler: As :func:`~ptuning.fit` takes it.
        prompt_rates: The earlier name of ``learning_rates``.
        head_rates: The earlier name of ``head_learning_rates``.

    Raises:
        ConfigError: ``recipe: search``, no list, an empty one, a value twice, or more than :data:`MOST` runs.
        TrainingDiverged: all of them diverged.
        Interrupted: Ctrl-C; the run that was on is saved where it was.
    """
    if config.recipe == "search":
        raise ConfigError(
            "recipe: search tries rates itself, for one seed; leave the lists of seeds and rates out"
        )
    extensions = Extensions.checked(
        callbacks, compute_metrics=compute_metrics, loss=loss, optimizer=optimizer, lr_scheduler=lr_scheduler
    )
    lists = {
        "seed": seeds,
        "learning_rate": _either("learning_rates", learning_rates, "prompt_rates", prompt_rates),
        "head_learning_rate": _either("head_learning_rates", head_learning_rates, "head_rates", head_rates),
    }
    plan = _plan(config, lists)
    folder, output = config.run_folder, run_files.prepared(config.output)
    for each in plan:
        run_files.prepared(each.config.output)
    if not restart:
        _refuse_unfinished(plan, folder, resume=resume)
    kept = _kept(plan) if resume else {}
    accelerator = new_accelerator(cpu=config.device == "cpu")
    accelerator.wait_for_everyone()  # all processes have read what the first one now changes

    def beginning() -> None:
        if accelerator.is_main_process:
            _clear(folder, () if resume else plan)

    with stop_requests() as stop:
        runs = _run_all(plan, kept, beginning, stop, resume=resume, extensions=extensions)
    if all(run.result is None for run in runs):  # the set is over, and one of other rates may take its place
        table = {"best": None, "runs": [run.to_dict() for run in runs]}
        write(folder / RESULT, json.dumps(table, indent=1) + "\n", accelerator)
    metric = _metric(runs)
    best = _best(runs, metric)
    result = SeveralResult(metric=metric, runs=tuple(runs), best=best, adapter=output)
    if accelerator.is_main_process:
        adapters.save(adapters.load(folder / best.name), output)
    write(folder / RESULT, json.dumps(result.to_dict(), indent=1) + "\n", accelerator)
    return result


# ---------------------------------------------------------------------------------------- the plan


def _either(
    name: str, values: Sequence[float] | None, old: str, earlier: Sequence[float] | None
) -> Sequence[float] | None:
    if values is not None and earlier is not None:
        raise ConfigError(f"{name} and {old}: got both, expected one of them; {old} is the earlier name")
    return earlier if values is None else values


def _plan(config: TrainConfig, lists: Mapping[str, Sequence[int | float] | None]) -> list[_Planned]:
    """The runs in the order in which they are trained: every combination, the last list's values fastest."""
    given = {name: tuple(values) for name, values in lists.items() if values is not None}
    if not given:
        raise ConfigError(
            "nothing to vary: give seeds, learning_rates or head_learning_rates, or train a single run"
        )
    for name, values in given.items():
        if not values or len(set(values)) != len(values):
            raise ConfigError(f"{name}s: got {list(values)}, expected one value or more, each of them once")
    if "head_learning_rate" in given and not config.prompt.train_head:
        raise ConfigError(
            "head_learning_rates: the head is frozen (prompt.train_head), so its rate changes nothing"
        )
    chosen = [dict(zip(given, values, strict=True)) for values in product(*given.values())]
    if len(chosen) > MOST:
        sizes = " x ".join(f"{len(values)} {name}s" for name, values in given.items())
        raise ConfigError(f"{sizes} are {len(chosen)} runs, expected at most {MOST}; try fewer values")
    return [_planned(config, values) for values in chosen]


def _planned(config: TrainConfig, values: Mapping[str, int | float]) -> _Planned:
    fit: FitConfig = validated(FitConfig, {**config.fit.model_dump(), **values}, "fit")
    own = {name: getattr(fit, name) for name in values}
    name = "_".join(f"{option}-{repr(value).removesuffix('.0')}" for option, value in own.items())
    output = str(config.run_folder / name)
    return _Planned(name=name, values=own, config=config.model_copy(update={"fit": fit, "output": output}))


# ------------------------------------------------------------------------------- what stands there


def _refuse_unfinished(plan: Iterable[_Planned], folder: Path, *, resume: bool) -> None:
    """Refuse to throw away a single run, or without ``resume`` a set of runs, that was not finished."""
    if unfinished(folder):
        raise ConfigError(
            f"{folder} has an unfinished single run; continue it with --resume and without lists of seeds or "
            "learning rates, or start again with --restart (in Python: restart=True)"
        )
    listed = _listed(folder / RESULT)
    left = [each.name for each in plan if each.begun and each.name not in listed]
    if left and not resume:
        raise ConfigError(
            f"{folder} has an unfinished set of runs ({left[0]} is one of them); continue it with --resume, "
            "or start again with --restart (in Python: resume=True, restart=True)"
        )


def _listed(file: Path) -> frozenset[str]:
    """The names of the runs in a finished set's table; none, if it is not there or is a single run's."""
    try:
        return frozenset(run["name"] for run in json.loads(file.read_text(encoding="utf-8"))["runs"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return frozenset()


def _kept(plan: Sequence[_Planned]) -> dict[str, TrainResult]:
    """What the finished runs found, by name.

    Raises:
        ConfigError: there is nothing to go on from, or a run that was made with another configuration.
    """
    begun = [each for each in plan if each.begun]
    if not begun:
        raise ConfigError(
            f"nothing to resume: there is no {plan[0].checkpoint}, nor one of another run of the set; leave "
            "--resume out to begin"
        )
    for each in begun:
        check_same(each.config, each.name)
    return {
        each.name: found
        for each in begun
        if each.result.exists() and adapters.is_adapter(each.config.output)
        if (found := _found(each.result)) is not None
    }


def _found(file: Path) -> TrainResult | None:
    """What a run found; ``None`` of one to go on with: it diverged, or what it found cannot be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return None if "diverged" in values else TrainResult.from_dict(values)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _clear(folder: Path, stale: Iterable[_Planned]) -> None:
    """Take away what runs of these names left to go on from, and after that the table of the set before."""
    for each in stale:
        run_files.clear(each.config.run_folder)
    if _listed(folder / RESULT):  # a single run's result stays until the table of this set takes its place
        run_files.remove(folder / RESULT)


# ---------------------------------------------------------------------------------------- the runs


def _run_all(
    plan: Sequence[_Planned],
    kept: Mapping[str, TrainResult],
    beginning: Callable[[], None],
    stop: StopRequest,
    *,
    resume: bool,
    extensions: Extensions,
) -> list[OneRun]:
    """Train what is not kept; ``beginning`` is called once, before the first step of all."""
    cache, runs = RunCache(), list[OneRun]()
    begun = False

    def began() -> None:
        nonlocal begun
        if stop.made:  # while the model was made
            raise KeyboardInterrupt
        if not begun:
            begun = True
            beginning()

    for number, each in enumerate(plan, 1):
        extensions.callbacks.on_run_begin(each.name, number, len(plan), each.name in kept)
        found, diverged = kept.get(each.name), None
        if found is None:
            go_on = resume and each.begun
            try:
                found = train_on(
                    cache, each.config, resume=go_on, restart=True, extensions=extensions, began=began
                )
            except TrainingDiverged as error:
                diverged = str(error)
            except KeyboardInterrupt as error:
                if not (begun or kept) or not any(other.begun for other in plan):
                    raise
                how = str(error) or (
                    "interrupted; what was saved before is kept; to go on, run the same command with --resume"
                )
                raise Interrupted(f"run {number} of {len(plan)}, {each.name}: {how}") from None
        runs.append(OneRun(name=each.name, values=each.values, result=found, diverged=diverged))
        if stop.made and number < len(plan):  # too late for that run
            raise Interrupted(
                f"interrupted after run {number} of {len(plan)}, {each.name}; what is finished is kept; to "
                "go on, run the same command with --resume"
            )
    return runs


def _metric(runs: Sequence[OneRun]) -> str:
    """What all runs were selected by; the loss, if that was all that some seed's validation rows left."""
    found = {run.result.metric for run in runs if run.result is not None}
    return found.pop() if len(found) == 1 else "loss"


def _best(runs: Sequence[OneRun], metric: str) -> OneRun:
    """The best by this validation metric; of equals, the first."""
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
        raise TrainingDiverged(f"all {len(runs)} runs diverged; the first, {first.name}: {first.diverged}")
    return best[1]
