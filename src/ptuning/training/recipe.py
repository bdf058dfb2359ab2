"""``recipe: auto``: what a user left out of ``fit``, chosen from facts of data, backbone and prompt.

:func:`choice` is the only place that sets values. An option that the recipe may choose is optional in
:class:`~ptuning.training.config.FitConfig`, required in :class:`Settled`, and gets its value there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ptuning.training.config import FitConfig

if TYPE_CHECKING:
    from ptuning.data.tokens import TokenRow
    from ptuning.model.ptuning import PTuningModel
    from ptuning.task import Task


class Settled(FitConfig):
    """Every option of ``fit``, with nothing left to choose."""

    num_train_epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    head_learning_rate: float = Field(gt=0)
    backbone_dropout: bool
    evaluate_every: Annotated[int, Field(ge=1)] | Literal["epoch"]


CHOSEN = tuple(Settled.__annotations__)
"""The options of ``fit`` that a recipe chooses where the user does not."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a recipe decides by.

    Attributes:
        rows: Training rows.
        tokens: Of all of them, without the prompt.
        depth: Where the prompt enters.
        encoder: What makes the prompt while training.
        virtual_tokens: P.
        first_layer: The first layer with a prompt; 0 at input depth.
        virtual_units: U.
        fitted: Whether the head starts fitted to the rows.
        scaled: Whether prompt and head have scaled learning rates, as under PEFT's names.
    """

    rows: int
    tokens: int
    depth: Literal["input", "deep"] = "deep"
    encoder: str = "embedding"
    virtual_tokens: int = 20
    first_layer: int = 0
    virtual_units: int = 0
    fitted: bool = False
    scaled: bool = False

    @classmethod
    def of(cls, model: PTuningModel, rows: Sequence[TokenRow]) -> Facts:
        """The facts of training ``model`` on ``rows``."""
        from ptuning.training.head_init import begins_fitted  # takes its time

        prompt = model.prompt_config
        return cls(
            rows=len(rows),
            tokens=sum(map(len, rows)),
            depth=prompt.depth,
            encoder=prompt.encoder.kind,
            virtual_tokens=prompt.virtual_tokens,
            first_layer=prompt.first_layer if prompt.depth == "deep" else 0,
            virtual_units=(prompt.num_virtual_units or 0) if prompt.depth == "deep" else 0,
            fitted=begins_fitted(model),
            scaled=model.learning_rate_scales != (1.0, 1.0),
        )

    def steps(self, fit: FitConfig, epochs: int) -> int:
        """Optimizer steps of so many epochs; with ``fit.batch_tokens`` about so many."""
        batches = math.ceil(self.rows / fit.batch_size)
        if fit.batch_tokens is not None:
            batches = max(batches, math.ceil(self.tokens / fit.batch_tokens))
        return epochs * math.ceil(batches / fit.gradient_accumulation_steps)


EPOCHS = 8
"""Epochs of an ordinary run; the learning rates fall to 0 over them."""
LEAST_STEPS = 300
"""Minimum optimizer steps: with fewer, small data sets are not learned at all."""
MOST_STEPS = 12_500
"""Maximum optimizer steps: large data sets need fewer epochs, but at least 2."""
FASTEST = 3.0
"""Maximum factor on the prompt's learning rate in a run of fewer than :data:`LEAST_STEPS`, if asked for."""
HEAD_WAY = 2.5
"""The head's learning rate times the run's steps: as far in a short run as in a long one, which overfits."""
FITTED_EPOCHS = 5
"""Epochs if the head starts fitted: there is less left to learn."""
FITTED_HEAD = 2e-4
"""A fitted head's learning rate: it only has to follow the prompt."""
UNITS = 20
"""Virtual units, if there are enough rows for them."""
QUERIES = 2
"""Queries, likewise."""
MANY_ROWS = 5000
"""Enough rows for both, whatever the task."""
EVALUATIONS = 16
"""Evaluations of a run with more epochs than this: one costs about as much as such a short epoch."""


def choice(facts: Facts, fit: FitConfig) -> dict[str, Any]:
    """The recipe's value for every option of :data:`CHOSEN`; ``fit`` is what the user gave.

    docs/recipes.md says how they were found. An input prompt without an encoder has further to go than a deep
    one; one with an encoder moves with each of its weights. If the head starts fitted, half of the task is
    done, and few rows justify only small changes to what the backbone knows.
    """
    steps = facts.steps(fit, 1)
    least, usual = (LEAST_STEPS // 2, FITTED_EPOCHS) if facts.fitted else (LEAST_STEPS, EPOCHS)
    epochs = fit.num_train_epochs or max(
        math.ceil(least / steps), min(usual, max(2, round(MOST_STEPS / steps)))
    )
    if facts.fitted:
        prompt = _short(min(3e-2, max(2e-3, 1e-2 * math.sqrt(facts.rows / 200))))
    elif facts.depth == "deep":
        hurry = min(FASTEST, max(1.0, LEAST_STEPS / (epochs * steps)))
        prompt = _short(hurry * 2e-2)
    else:
        prompt = 1e-1 if facts.encoder == "embedding" and not facts.scaled else 1e-2
    often: int | str = "epoch"
    if epochs > EVALUATIONS:
        often = math.ceil(epochs * steps / EVALUATIONS)
    elif epochs < usual and steps * usual > MOST_STEPS:  # so many rows that there are few epochs
        often = math.ceil(epochs * steps / usual)
    head = FITTED_HEAD if facts.fitted else _short(min(1e-2, max(1e-3, HEAD_WAY / (epochs * steps))))
    return {
        "num_train_epochs": epochs,
        "learning_rate": prompt,
        "head_learning_rate": head,
        "backbone_dropout": facts.virtual_units > 0 and facts.first_layer == 0,  # a stem is without
        "evaluate_every": often,
    }


def units_and_queries(task: Task, rows: int) -> tuple[int, int]:
    """How many virtual units and queries suit a task and its rows, if the head reads all layers.

    Both need :data:`MANY_ROWS` rows. With fewer, they only help to learn the rows by heart, except where a
    label says more than one of two classes does: then single texts get :data:`UNITS`. Few pairs gained
    nothing, nor did few rows with several labels each.
    """
    if rows >= MANY_ROWS:
        return UNITS, QUERIES
    return (UNITS if task.kind.is_fine_grained(task) and not task.pair else 0), 0


def _short(rate: float) -> float:
    """Rounded to two digits, as people write it."""
    return float(f"{rate:.2g}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a run is trained, and which options the user did not choose.

    Attributes:
        name: ``auto`` or ``search``.
        fit: Every option.
        chose: The options that the recipe chose, and the first layer that a search chose.
    """

    fit: Settled
    name: Literal["auto", "search"] = "auto"
    chose: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: FitConfig, facts: Facts, found: Mapping[str, Any] | None = None) -> Recipe:
        """What ``given`` leaves out is what a search has ``found``, and otherwise :func:`choice`'s."""
        left = [name for name in CHOSEN if getattr(given, name) is None]
        numbers = choice(facts, given) | dict(found or {})
        fit = Settled(**{**given.model_dump(), **{name: numbers[name] for name in left}})
        beside = {name: value for name, value in (found or {}).items() if name not in CHOSEN}
        chose = beside | {name: numbers[name] for name in left}
        return cls(fit=fit, name="auto" if found is None else "search", chose=chose)

    def record(self) -> dict[str, Any]:
        """What results and adapters record of it, next to the options."""
        return {"name": self.name, "chose": dict(self.chose)}

    def __str__(self) -> str:
        fit = self.fit
        whose = f"recipe: {self.name}" if self.chose else "as given"
        epochs = f"{fit.num_train_epochs} epoch{'s' if fit.num_train_epochs > 1 else ''}"
        return (
            f"{whose}: {epochs}, batch size {fit.batch_size}, learning rates {fit.learning_rate:g} "
            f"(prompt) and {fit.head_learning_rate:g} (head)"
            + (", the backbone's dropout on" if fit.backbone_dropout else "")
        )
