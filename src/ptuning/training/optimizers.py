"""The optimizer and its learning rate schedule: ptuning's, or a user's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import get_scheduler

from ptuning.errors import ConfigError
from ptuning.model.ptuning import PTuningModel
from ptuning.training.extensions import MakeOptimizer, MakeScheduler
from ptuning.training.recipe import Settled

GROUPS = ("prompt", "head")
"""The parameter groups, in the order of :meth:`PTuningModel.parameter_groups`."""


def parameter_groups(model: PTuningModel, fit: Settled) -> list[dict[str, Any]]:
    """The trained parameters in groups with a learning rate each, named as in :data:`GROUPS`.

    Raises:
        ConfigError: nothing is trained.
    """
    rates = fit.learning_rate, fit.head_learning_rate
    groups = [
        {"params": group, "lr": rate, "weight_decay": fit.weight_decay, "name": name}
        for name, group, rate in zip(GROUPS, model.parameter_groups(), rates, strict=True)
        if group
    ]
    if not groups:
        raise ConfigError(
            "nothing to train: every parameter of the model is frozen",
            remedy="unfreeze the prompt or the head (requires_grad)",
        )
    return groups


def make_optimizer(model: PTuningModel, fit: Settled, own: MakeOptimizer | None) -> torch.optim.Optimizer:
    """AdamW, or what a user's function creates from the parameter groups.

    Raises:
        ConfigError: the function returned something else, or added other parameters.
    """
    groups = parameter_groups(model, fit)
    if own is None:
        return torch.optim.AdamW(groups)
    made = own(groups)
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError("optimizer", got=type(made).__name__, expected="a torch.optim.Optimizer")
    trained = {id(value) for value in model.task_parameters().values()}
    if any(id(value) not in trained for group in made.param_groups for value in group["params"]):
        raise ConfigError(
            "optimizer: it has parameters that the task does not train",
            remedy="create it from the parameter groups that are passed to the function",
        )
    return made


def make_scheduler(
    optimizer: torch.optim.Optimizer, fit: Settled, own: MakeScheduler | None, *, step: int, steps: int
) -> Any:
    """The learning rate schedule of a run of ``steps``, at ``step``.

    ptuning's schedule is a function of the step. A user's scheduler is stepped from 0 to ``step``, so a
    resumed run has the same learning rates as one without an interruption.

    Raises:
        ConfigError: a user's function did not return a scheduler.
    """
    if own is not None:
        made = own(optimizer, steps)
        if not callable(getattr(made, "step", None)) or not hasattr(made, "get_last_lr"):
            raise ConfigError(
                "lr_scheduler", got=type(made).__name__, expected="a torch.optim.lr_scheduler.LRScheduler"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns if a scheduler is stepped before its optimizer
            for _ in range(step):
                made.step()
        return made
    scheduler = get_scheduler(
        fit.lr_scheduler_type,
        optimizer,
        num_warmup_steps=math.ceil(fit.warmup_ratio * steps),
        num_training_steps=steps,
    )
    for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
        factor: Callable[[int], float] = scheduler.lr_lambdas[0]
        group["lr"] = rate * factor(step)
    scheduler.last_epoch = step
    return scheduler


def learning_rates(optimizer: torch.optim.Optimizer) -> Mapping[str, float]:
    """The learning rates of the next step, by parameter group."""
    return {
        str(group.get("name", f"group {number}")): float(group["lr"])
        for number, group in enumerate(optimizer.param_groups)
    }
