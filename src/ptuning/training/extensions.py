"""The parts of the training loop that a user can supply: callbacks, metrics, loss, optimizer, schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import EvalPrediction

from ptuning.errors import ConfigError
from ptuning.task import Task
from ptuning.training.callbacks import Callback, CallbackList, checked_callbacks
from ptuning.training.config import FitConfig

ComputeMetrics = Callable[[EvalPrediction], Mapping[str, float]]
Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer, int], Any]


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """The parts of a run that a user supplied.

    Attributes:
        callbacks: Called in order, before ptuning's console.
        compute_metrics: Further metrics, from a :class:`transformers.EvalPrediction` with ``predictions``
            (logits ``[N, C]``) and ``label_ids`` (``[N]``, or ``[N, C]`` for several labels per row).
        loss: In place of the task's: from logits ``[B, C]`` and labels to the mean over the batch's rows.
        optimizer: In place of AdamW: from parameter groups, each with its ``lr`` and ``weight_decay``.
        lr_scheduler: In place of ``lr_scheduler_type``: from the optimizer and the number of steps.
    """

    callbacks: CallbackList = field(default_factory=lambda: CallbackList(()))
    compute_metrics: ComputeMetrics | None = None
    loss: Loss | None = None
    optimizer: MakeOptimizer | None = None
    lr_scheduler: MakeScheduler | None = None

    @classmethod
    def checked(
        cls, callbacks: Iterable[Callback] | None, **functions: Callable[..., Any] | None
    ) -> Extensions:
        """The parts that a user passed, checked.

        Raises:
            ConfigError: something that cannot be called, or is not a callback.
        """
        for name, function in functions.items():
            if function is not None and not callable(function):
                raise ConfigError(name, got=function, expected="a function")
        made: Any = functions
        return cls(callbacks=checked_callbacks(callbacks), **made)

    def check(self, fit: FitConfig, class_weights: Any) -> None:
        """Refuse options that have no effect because of a user's parts.

        Raises:
            ConfigError: names the first one.
        """
        if self.loss is not None and class_weights is not None:
            raise ConfigError("class_weights: a loss of your own does not use them", remedy="leave one out")
        if self.lr_scheduler is not None:
            default = FitConfig()
            for name in ("warmup_ratio", "lr_scheduler_type"):
                if getattr(fit, name) != getattr(default, name):
                    raise ConfigError(f"fit.{name}: lr_scheduler= decides it", remedy="leave one of them out")

    def measure(self, logits: NDArray[Any], targets: NDArray[np.float64], task: Task) -> dict[str, float]:
        """The user's metrics of logits ``[N, C]``.

        Raises:
            ConfigError: ``compute_metrics`` gave something else than names and numbers.
        """
        if self.compute_metrics is None:
            return {}
        labels = task.kind.as_labels(targets).numpy()
        found = self.compute_metrics(EvalPrediction(predictions=logits, label_ids=labels))
        if not isinstance(found, Mapping):
            raise ConfigError("compute_metrics", got=type(found).__name__, expected="a dictionary of numbers")
        values: dict[str, float] = {}
        for name, value in found.items():
            try:
                values[str(name)] = float(value)
            except (TypeError, ValueError):
                raise ConfigError(f"compute_metrics: {name}", got=value, expected="a number") from None
        if "loss" in values:
            raise ConfigError(
                "compute_metrics", got="'loss'", expected="another name", remedy="set the loss with loss="
            )
        return values

    def loss_of(self, logits: Tensor, labels: Tensor, task: Task) -> Tensor:
        """The user's loss for a batch; labels are class indices, or floats in the dtype of the logits.

        Raises:
            ConfigError: it gave something else than one number.
        """
        assert self.loss is not None
        found = self.loss(logits, task.kind.as_targets(labels, logits, task))
        if not isinstance(found, Tensor) or found.numel() != 1:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError("loss", got=shape, expected="a tensor with one number, the mean over the rows")
        return found.reshape(())


NO_EXTENSIONS = Extensions()


def name_of(function: Callable[..., Any] | None) -> str | None:
    """What a function is called, for a checkpoint: a run resumes with the functions it started with."""
    if function is None:
        return None
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
