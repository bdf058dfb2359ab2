"""A task in the terms of transformers' configuration: ``num_labels``, ``id2label``, ``problem_type``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from ptuning.errors import ConfigError
from ptuning.kinds import kind_named, kind_of_config, standard_kind
from ptuning.task import Task


def task_of(config: Any) -> Task:
    """The task in a backbone's configuration: number and names of labels, kind."""
    count = int(config.num_labels)
    kind = kind_of_config(config.problem_type, count)
    numbers = kind.numbered_labels(
        count,
        "num_labels of the backbone's configuration",
        remedy="load it with num_labels=1, or make one task per number",
    )
    names = label_names(config)
    return Task(problem_type=kind.name, labels=names if len(names) == len(numbers) else numbers)


def label_names(config: Any) -> tuple[str, ...]:
    """The names of the labels in a backbone's ``config.id2label``; empty if they are only numbered."""
    count = int(config.num_labels)
    names = tuple(str(config.id2label.get(i)) for i in range(count))
    numbered = names == tuple(f"LABEL_{i}" for i in range(count))
    return () if numbered or len(set(names)) < count else names


def is_numbered(task: Task) -> bool:
    """Whether the task's labels are the numbers 0 to C-1, without names."""
    numbers = all(type(label) is int for label in task.labels)  # not isinstance, because True == 1
    return numbers and task.labels == tuple(range(task.num_labels))


def new_task(config: Any, num_labels: int | None, problem_type: str | None) -> Task:
    """The task of a model on a backbone. What the user leaves out is taken from the configuration.

    The labels have the names in the configuration, if the number of labels is the same.

    Raises:
        ConfigError: as :func:`plain_task` raises it.
    """
    if num_labels is None and problem_type is None:
        return task_of(config)
    if num_labels is None:
        num_labels = width_of(problem_type) or int(config.num_labels)
    task = plain_task(num_labels, problem_type)
    names = label_names(config)
    return replace(task, labels=names) if len(names) == len(task.labels) else task


def width_of(problem_type: str | None) -> int | None:
    """The number of logits that all tasks of a kind have; ``None`` if it varies.

    Raises:
        ConfigError: a kind that does not exist.
    """
    return None if problem_type is None else kind_named(problem_type).width


MAX_LABELS = 1_000_000
"""Each label has a name and a row of the head, so more would need too much memory."""


def plain_task(num_labels: int, problem_type: str | None) -> Task:
    """A task with numbered labels; without ``problem_type``, 1 means regression.

    Raises:
        ConfigError: a kind that does not exist, or that cannot have so many logits.
    """
    whole = isinstance(num_labels, SupportsIndex) and not isinstance(num_labels, bool)
    if not whole or not 1 <= num_labels <= MAX_LABELS:
        raise ConfigError(
            "num_labels", got=f"{num_labels!r:.80}", expected=f"a whole number from 1 to {MAX_LABELS:,}"
        )
    num_labels = int(num_labels)
    kind = standard_kind(num_labels) if problem_type is None else kind_named(problem_type)
    return Task(problem_type=kind.name, labels=kind.numbered_labels(num_labels))


def known_as(config: Any, task: Task) -> Any:
    """A copy of a backbone's configuration with the task's labels and kind."""
    named = copy.deepcopy(config)
    named.problem_type = task.kind.transformers_name
    unnamed = not task.labels or is_numbered(task)
    labels = [f"LABEL_{i}" for i in range(task.num_labels)] if unnamed else [str(x) for x in task.labels]
    named.id2label = dict(enumerate(labels))
    named.label2id = {label: i for i, label in named.id2label.items()}
    return named


def class_weights_of(weights: Sequence[float] | None, task: Task) -> Tensor | None:
    """The loss weight per class, ``[C]`` in fp32, from a user's numbers.

    Raises:
        ConfigError: anything except one number above 0 per class.
    """
    if weights is None:
        return None
    if not task.labels:
        raise no_classes("class_weights", task)
    if len(weights) != task.num_labels or not all(w > 0 for w in weights):
        raise ConfigError(
            "class_weights", got=list(weights), expected=f"{task.num_labels} numbers above 0, one per class"
        )
    return torch.tensor(list(weights), dtype=torch.float32)


def no_classes(option: str, task: Task) -> ConfigError:
    """The error for class weights of a task without classes."""
    return ConfigError(f"{option}: a {task.kind.title} has no classes", remedy="leave it out")
