"""The loss's weight of each class, as the configuration asks."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptuning.errors import ConfigError
from ptuning.task import Task
from ptuning.training.config import FitConfig


def class_weights(config: FitConfig, targets: np.ndarray[Any, Any], task: Task) -> tuple[float, ...] | None:
    """The loss's weight of each class, as the configuration asks.

    ``balanced`` gives a class N / (C · its rows), as scikit-learn does; a label of several gets as
    many times the weight for its positives as it has more negatives.
    """
    if config.class_weights != "balanced":
        return config.class_weights
    if task.is_regression:
        raise ConfigError("fit.class_weights: a regression has no classes; leave it out")
    if task.problem_type == "multi_label_classification":
        positive = np.maximum(targets.sum(0), 1)
        return tuple(np.maximum(len(targets) - positive, 1) / positive)
    counts = np.bincount(targets.astype(int), minlength=task.num_labels)
    return tuple(len(targets) / (task.num_labels * np.maximum(counts, 1)))
