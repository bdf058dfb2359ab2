"""What a task is to a model: transformers' words for it in a configuration, and its loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.errors import ConfigError
from ptuning.model import targets as targets_
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
    return Task(problem_type=kind, labels=label_names(config) or tuple(range(count)))


def label_names(config: Any) -> tuple[str, ...]:
    """The names of the labels in a backbone's ``config.id2label``; none where they are only numbered."""
    count = int(config.num_labels)
    names = tuple(str(config.id2label.get(i)) for i in range(count))
    plain = names == tuple(f"LABEL_{i}" for i in range(count))
    return () if plain or len(set(names)) < count else names


def is_numbered(task: Task) -> bool:
    """Whether the task's labels have no names: they are 0 to C-1."""
    numbers = all(type(label) is int for label in task.labels)  # True is 1 as well, and has a name
    return numbers and task.labels == tuple(range(task.num_labels))


def new_task(config: Any, num_labels: int | None, problem_type: ProblemType | None) -> Task:
    """The task of a model on a backbone, as far as the user says it, and as its configuration says the rest.

    Its labels are the names in the configuration, where they are as many.

    Raises:
        ConfigError: as :func:`plain_task`.
    """
    if num_labels is None and problem_type is None:
        return task_of(config)
    width = 1 if problem_type == "regression" else int(config.num_labels)
    task = plain_task(width if num_labels is None else num_labels, problem_type)
    names = label_names(config)
    return replace(task, labels=names) if len(names) == len(task.labels) else task


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
    plain = task.is_regression or is_numbered(task)
    labels = [f"LABEL_{i}" for i in range(task.num_labels)] if plain else [str(x) for x in task.labels]
    named.id2label = dict(enumerate(labels))
    named.label2id = {label: i for i, label in named.id2label.items()}
    return named


def loss_of(logits: Tensor, labels: Tensor, task: Task, weights: Tensor | None) -> Tensor:
    """As :meth:`~ptuning.model.ptuning.PTuningModel.loss` says; ``weights`` is what
    :func:`weigh` gives.
    """
    targets = targets_.as_targets(labels, logits, task)
    seen = targets.device.type == "cpu"
    if seen and not task.is_regression:  # a target that is not finite makes the loss so
        targets_.refuse(targets, task)
    targets = targets.to(logits.device)
    valid = None if seen else targets_.valid(targets, task)
    match task.problem_type:
        case "regression":
            found = ((logits.view(-1) - targets) / task.scale).square().mean()
        case "multi_label_classification":
            found = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
        case "single_label_classification":
            if valid is not None:
                targets = targets.where(valid, targets_.IGNORED)
            found = F.cross_entropy(logits, targets, weight=weights, ignore_index=targets_.IGNORED)
    return found if valid is None else found.where(valid.all(), math.nan)


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
