"""The class weights of the loss, from the configuration."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptuning.model.tasks import no_classes
from ptuning.task import Task
from ptuning.training.config import FitConfig


def class_weights(config: FitConfig, targets: np.ndarray[Any, Any], task: Task) -> tuple[float, ...] | None:
    """The loss weight per class, ``[C]``, that the configuration asks for.

    Raises:
        ConfigError: ``balanced`` for a task without classes.
    """
    if config.class_weights != "balanced":
        return config.class_weights
    if not task.labels:
        raise no_classes("fit.class_weights", task)
    return task.kind.balanced_weights(targets, task)
