"""The trials of a search: the search space, and Optuna, which samples and prunes them.

A search has no state except its finished trials: :func:`proposal` is a function of them, so a resumed search
proposes the same as one without an interruption.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ptuning.errors import ConfigError
from ptuning.model.config import trains_head
from ptuning.model.settling import settle_prompt
from ptuning.training.config import OLD_NAMES, TrainConfig
from ptuning.training.metrics import Selection, standard_error
from ptuning.training.recipe import MIN_STEPS, Facts, Recipe
from ptuning.training.records import Evaluation

if TYPE_CHECKING:
    import optuna

    from ptuning.model.backbone import Backbone

Values = Mapping[str, int | float]
"""What a trial tries, by name: ``first_layer``, ``learning_rate``, ``head_learning_rate``."""

RANGE = 5.0
"""Learning rates are tried from a fifth to five times of the auto recipe's choice."""
UNPRUNED = 3
"""Trials that must be complete before any trial is pruned."""
PRUNE_AFTER = 0.25
"""The share of its steps before a trial can be pruned: low learning rates are behind at first."""
RANDOM = 6
"""Trials, including the auto recipe's, before Optuna's sampling is guided by their results."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A short run of a search.

    Attributes:
        number: From 1.
        values: The values that it tried.
        state: ``pruned`` if it was stopped because others were better at the same point.
        history: Its evaluations.
        seconds: Wall time.
    """

    number: int
    values: Values
    state: Literal["complete", "pruned", "diverged"]
    history: tuple[Evaluation, ...]
    seconds: float

    @property
    def epochs(self) -> float:
        """The epoch of its last evaluation."""
        return self.history[-1].epoch if self.history else 0.0

    def best(self, select: Selection) -> Evaluation | None:
        """Its best evaluation."""
        return max(self.history, key=lambda each: select.key(each.metrics), default=None)

    def value(self, metric: str) -> float | None:
        """The metric at its best evaluation."""
        best = self.best(Selection(metric=metric))
        return None if best is None else best.metrics.get(metric)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Trial:
        """The inverse of ``dataclasses.asdict``, by way of JSON."""
        tried = {OLD_NAMES.get(name, name): value for name, value in values["values"].items()}
        history = tuple(Evaluation(**each) for each in values["history"])
        return cls(**{**values, "values": tried, "history": history})

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.values.items())


def best_of(trials: Sequence[Trial], metric: str) -> Trial | None:
    """The best complete trial: by the metric, then by the loss; with a tie, the first."""
    select = Selection(metric=metric)
    keys = [
        (select.key(best.metrics), trial)
        for trial in trials
        if trial.state == "complete" and (best := trial.best(select)) is not None
    ]
    return max(keys, key=lambda each: each[0])[1] if keys else None


def chance(trials: Sequence[Trial], metric: str, rows: float) -> float | None:
    """The lead over the first trial that may be chance; ``None`` if either trial has no value."""
    best = best_of(trials, metric)
    reached = None if best is None else best.value(metric)
    if reached is None or trials[0].state != "complete" or trials[0].value(metric) is None:
        return None
    return standard_error(metric, reached, rows)


def winner(trials: Sequence[Trial], metric: str, rows: float) -> tuple[Trial, str] | None:
    """The trial to keep, and why; ``None`` if no trial is complete.

    The best of a dozen is usually the luckiest. So the first, which has the auto recipe's choices, is kept
    unless the best is ahead of it by more than a standard error of the metric (Breiman et al., Classification
    and Regression Trees, 1984, section 3.4.3).

    Args:
        rows: The number of validation rows that the metric depends on
            (:func:`~ptuning.training.metrics.effective_rows`).
    """
    best = best_of(trials, metric)
    if best is None:
        return None
    first, why = trials[0], f"trial {best.number} is the best"
    reached, default, error = best.value(metric), first.value(metric), chance(trials, metric, rows)
    if best is first or error is None or reached is None or default is None or abs(reached - default) > error:
        return best, why
    return first, (
        f"{why}, but {metric} {reached:.4f} instead of {default:.4f} may be chance (the validation rows' "
        f"standard error is {error:.2g}); trial {first.number} is kept"
    )


@dataclass(frozen=True, kw_only=True)
class Space:
    """The search space.

    Attributes:
        auto: The auto recipe's choice, by name.
        layers: The values of ``first_layer``, the auto recipe's first; empty if it is not searched.
        rates: The range of each learning rate that is searched.
        epochs: Epochs per trial.
    """

    auto: Values
    layers: tuple[int, ...]
    rates: Mapping[str, tuple[float, float]]
    epochs: int

    @classmethod
    def of(cls, config: TrainConfig, facts: Facts, backbone: Backbone) -> Space:
        """The space of what ``config`` leaves open.

        Raises:
            ConfigError: there is nothing left to search.
        """
        recipe = Recipe.of(config.fit, facts)
        names = ["learning_rate"] + (["head_learning_rate"] if trains_head(config.prompt) else [])
        rates = {name: float(recipe.chose[name]) for name in names if name in recipe.chose}
        layers = _layers(config, backbone)
        if not rates and len(layers) < 2:
            raise ConfigError(
                "recipe: search: learning rates and first layer are given, so nothing is left to search",
                remedy="leave out fit.learning_rate or fit.head_learning_rate, or use recipe: auto",
            )
        return cls(
            auto=({"first_layer": layers[0]} if layers else {}) | rates,
            layers=layers,
            rates={name: (_rounded(rate / RANGE), _rounded(rate * RANGE)) for name, rate in rates.items()},
            epochs=config.search.epochs or _epochs(config, facts, recipe.fit.num_train_epochs),
        )

    @property
    def size(self) -> float:
        """How many different trials there are."""
        return math.inf if self.rates else len(self.layers)

    @property
    def beginning(self) -> list[Values]:
        """The trials before Optuna samples: the auto recipe's choice with each first layer."""
        return [{**self.auto, "first_layer": layer} for layer in self.layers] or [self.auto]

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        found: dict[str, optuna.distributions.BaseDistribution] = {
            name: FloatDistribution(low, high, log=True) for name, (low, high) in self.rates.items()
        }
        return ({"first_layer": CategoricalDistribution(self.layers)} if self.layers else {}) | found


def _epochs(config: TrainConfig, facts: Facts, full: int) -> int:
    """A third of the full run's epochs, but enough that a prompt can learn something."""
    enough = math.ceil(MIN_STEPS / facts.steps(config.fit, 1))
    return min(full, max(math.ceil(full / 3), enough))


def _layers(config: TrainConfig, backbone: Backbone) -> tuple[int, ...]:
    """The first layers to try: 0, and a third and half of the layers."""
    prompt, given = config.prompt, config.search.first_layers
    if config.init_from is not None:  # the adapter's prompt has its layers
        return ()
    if prompt.depth == "input" or (given is None and prompt.first_layer > 0):
        return ()
    if given is not None:
        for layer in given:
            settle_prompt(replace(prompt, first_layer=layer), backbone)  # checks that the layer exists
        return tuple(sorted(given))
    if not backbone.port.can.layers:  # it only supports a prompt in all layers
        return ()
    depth = backbone.num_layers
    layers = tuple(sorted({0, depth // 3, depth // 2}))
    return layers if len(layers) > 1 else ()


# ------------------------------------------------------------------------------------------- Optuna


def require_optuna() -> None:
    """Check that the packages of the ``search`` extra are installed.

    Raises:
        ConfigError: one is missing.
    """
    for name in ("optuna", "matplotlib"):
        if find_spec(name) is None:
            raise ConfigError(
                f"recipe: search needs {name}, which is not installed",
                remedy="install it with: pip install 'ptuning[search]'",
            )


class Proposal:
    """The next trial: what to try, and whether to stop it early."""

    def __init__(self, values: Values, trial: optuna.Trial) -> None:
        self.values = values
        self._trial = trial

    def should_prune(self, reached: Sequence[float], share: float) -> bool:
        """Whether the other trials' median was better at this point.

        Args:
            reached: The metric at the evaluations so far.
            share: The share of the trial that is done.
        """
        with _quiet():
            self._trial.report(reached[-1], len(reached))
            return share >= PRUNE_AFTER and self._trial.should_prune()


class Watch:
    """The evaluations of a trial that is running, and whether to stop it.

    Args:
        select: What compares the trials.
    """

    def __init__(self, proposed: Proposal, select: Selection) -> None:
        self.proposed, self.select = proposed, select
        self.history: list[Evaluation] = []

    def prunes(self, evaluation: Evaluation, steps: int) -> bool:
        """Take one more evaluation of a trial of ``steps``; whether others were better at that point."""
        self.history.append(evaluation)
        reached = [self.select.key(each.metrics)[0] for each in self.history]
        inside = 0 < evaluation.step < steps  # at step 0 only the head was fitted
        return inside and self.proposed.should_prune(reached, evaluation.step / steps)


def proposal(
    space: Space, trials: Sequence[Trial], metric: str, seed: int, number: int | None = None
) -> Proposal:
    """What to try after ``trials``: the auto recipe's learning rates with each first layer, then Optuna's.

    The proposal depends on the arguments only.

    Args:
        number: The number of the trial, from 1, if not all of those before it are in ``trials``.
    """
    number = len(trials) + 1 if number is None else number
    given = space.beginning[number - 1 : number]
    with _quiet():
        study = _study(space, trials, metric, (seed, number - 1))
        for values in given:
            study.enqueue_trial(dict(values))
        asked = study.ask(space.distributions())
    drawn = {name: _rounded(value) if name in space.rates else value for name, value in asked.params.items()}
    return Proposal(given[0] if given else drawn, asked)


def _study(space: Space, trials: Sequence[Trial], metric: str, seed: tuple[int, int]) -> optuna.Study:
    """Optuna's study of ``trials``; one that diverged is added as pruned, without values."""
    import optuna
    from optuna.trial import TrialState

    sampler_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=sampler_seed, n_startup_trials=RANDOM),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED),
    )
    select = Selection(metric=metric)
    for trial in trials:
        reached = [] if trial.state == "diverged" else [select.key(each.metrics)[0] for each in trial.history]
        complete = trial.state == "complete"
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                value=max(reached) if complete else None,
                params=dict(trial.values),
                distributions=space.distributions(),
                intermediate_values=dict(enumerate(reached, 1)),
            )
        )
    return study


def _rounded(rate: float) -> float:
    """A learning rate rounded to three digits, for readable output."""
    return float(f"{rate:.3g}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Optuna's log and its warnings about experimental features from the user."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
