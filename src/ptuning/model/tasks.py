"""What a task is to a model: transformers' words for it in a configuration, and its loss."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.errors import ConfigError
from ptuning.task import ProblemType, Task


def task_of(config: Any) -> Task:
    """The task as a backbone's configuration says it: number and names of labels, kind."""
    count = int(config.num_labels)
    kind: ProblemType = config.problem_type or ("regression" if count == 1 else "single_label_classification")
    if kind == "regression":
        if count > 1:
            raise ConfigError(
                f"the backbone's configuration says regression with {count} numbers a text, and ptuning "
                "predicts one; load it with num_labels=1, or one task for each number"
            )
        return Task(problem_type="regression")
    names = tuple(str(config.id2label[i]) for i in range(count))
    plain = names == tuple(f"LABEL_{i}" for i in range(count))
    return Task(problem_type=kind, labels=tuple(range(count)) if plain else names)


MOST = 1_000_000
"""Labels; each has a name, and a row of the head."""


def plain_task(num_labels: int, problem_type: ProblemType | None) -> Task:
    """A task whose labels are numbers; its kind is told from how many, if it is not given.

    Raises:
        ConfigError: a regression of several numbers a text, or a kind or number that there is not.
    """
    whole = isinstance(num_labels, SupportsIndex) and not isinstance(num_labels, bool)
    if not whole or not 1 <= num_labels <= MOST:
        raise ConfigError(f"num_labels: got {num_labels!r:.80}, expected a whole number from 1 to {MOST:,}")
    num_labels = int(num_labels)
    kind: ProblemType = problem_type or ("regression" if num_labels == 1 else "single_label_classification")
    if kind == "regression" and num_labels > 1:
        raise ConfigError(
            f"num_labels: got {num_labels}, but a regression predicts one number a text; leave it out, or "
            "make one task for each number"
        )
    return Task(problem_type=kind, labels=() if kind == "regression" else tuple(range(num_labels)))


def known_as(config: Any, task: Task) -> Any:
    """A copy of a backbone's configuration that speaks of the task: its labels, its kind."""
    named = copy.deepcopy(config)
    named.problem_type = task.problem_type
    numbers = all(type(label) is int for label in task.labels)  # True is 1 as well, and has a name
    plain = task.is_regression or (numbers and task.labels == tuple(range(task.num_labels)))
    labels = [f"LABEL_{i}" for i in range(task.num_labels)] if plain else [str(x) for x in task.labels]
    named.id2label = dict(enumerate(labels))
    named.label2id = {label: i for i, label in named.id2label.items()}
    return named


def loss_of(logits: Tensor, labels: Tensor, task: Task, weights: Tensor | None) -> Tensor:
    """As :meth:`~ptuning.model.ptuning.PTuningModel.loss` says; ``weights`` is what
    :func:`weigh` gives.
    """
    match task.problem_type:
        case "regression":
            error = (logits.view(-1) - labels.float().view(-1)) / task.scale
            return error.square().mean()
        case "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights)
        case "single_label_classification":
            if labels.dim() == 2 and labels.is_floating_point():
                raise ConfigError(
                    f"labels: got zeros and ones of shape {list(labels.shape)}, several labels a row, "
                    "but the task has one; make it with problem_type 'multi_label_classification' "
                    "(under PEFT's names: in the backbone's configuration)"
                )
            return F.cross_entropy(logits, labels.view(-1), weight=weights)


def weigh(weights: Sequence[float] | None, task: Task) -> Tensor | None:
    """The loss's weight of each class, ``[C]`` in fp32, of what a user gave.

    Raises:
        ConfigError: not one number above 0 for each class.
    """
    if weights is None:
        return None
    if task.is_regression or len(weights) != task.num_labels or not all(w > 0 for w in weights):
        raise ConfigError(
            f"class_weights: got {list(weights)}; expected {task.num_labels} numbers above 0, one a class"
            if not task.is_regression
            else "class_weights: a regression has no classes; leave it out"
        )
    return torch.tensor(list(weights), dtype=torch.float32)
