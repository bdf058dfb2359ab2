"""Labels for a model that has a task already: names, class indices, zeros and ones.

The rules are the same for texts and for token ids:

1. If the labels of the model are defaults (``num_labels=2``: 0 and 1; or those of the backbone's
   configuration), the names in the training rows replace them, if there are as many: those of a
   ``datasets.ClassLabel`` in their order, otherwise the distinct strings (or booleans, or numbers other than
   class indices, such as 1 to C) in the order of :func:`~ptuning.data.infer_task`.
2. If all labels are the task's own, they are used directly.
3. Otherwise whole numbers (0 as well as 0.0) are class indices, and so are booleans for two classes and a
   ``ClassLabel`` without any of the task's names.
4. For multi-label tasks, rows of C zeros and ones say which labels apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ptuning.data.examples import Example
from ptuning.data.labels import infer_task
from ptuning.data.places import listing, shortened
from ptuning.errors import DataError
from ptuning.kinds import LabelForm
from ptuning.model.tasks import is_numbered
from ptuning.task import Label, Task


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The examples of a split, and the class names of its ``ClassLabel`` column in order, if it has one."""

    examples: Sequence[Example]
    names: tuple[Label, ...] | None = None


def task_labels(
    splits: Mapping[str, Labelled], task: Task, *, unnamed: bool
) -> tuple[dict[str, list[Example]], Task]:
    """The examples of all splits with the task's own labels, and the task, possibly with new label names.

    Args:
        splits: The splits by name, including ``train``.
        task: The task of the model.
        unnamed: Whether the labels of the task are defaults, which those of the training rows may replace.

    Raises:
        DataError: a label that the task does not have; names the row.
    """
    examples = {name: list(split.examples) for name, split in splits.items()}
    if not task.labels:
        return examples, task
    if not any(isinstance(label, float) for label in task.labels):
        examples = {name: _whole(split) for name, split in examples.items()}
    given, train = task, Labelled(examples=examples["train"], names=splits["train"].names)
    if unnamed:
        task = _named(train, task)
    for name, split in splits.items():
        if split.names is not None and not any(known in task.labels for known in split.names):
            index = {label: number for number, label in enumerate(split.names)}
            examples[name] = [_with(example, partial(_looked_up, index)) for example in examples[name]]
    if task is given or train.names is not None:  # names that were found just now have no numbers yet
        examples = _indexed(examples, task)
    _check_known(examples["train"], task, unnamed)
    return examples, task


# Names -------------------------------------------------------------------------------------------


def _named(train: Labelled, task: Task) -> Task:
    """The task with the label names in the training rows, if there are as many."""
    if train.names is not None:
        if set(train.names) & set(task.labels):
            return task
        if len(train.names) > task.num_labels:
            raise DataError(
                f"{_place(train)}, labels",
                got=f"{len(train.names)} classes ({listing(train.names, 6)})",
                expected=f"at most {task.num_labels}, because the model was created with "
                f"num_labels={task.num_labels}",
                remedy=f"create it with num_labels={len(train.names)}",
            )
        return replace(task, labels=train.names) if len(train.names) == task.num_labels else task
    items = _items(train.examples)
    kinds = {type(item) for item in items}
    if kinds == {bool} and is_numbered(task) and task.num_labels == 2:
        return replace(task, labels=(False, True))
    if kinds == {int} and is_numbered(task) and len(set(items)) == task.num_labels and not _several(task):
        return replace(task, labels=tuple(sorted(set(items))))
    if kinds != {str} or set(items) & set(task.labels):
        return task
    seen = infer_task(train.examples, problem_type=task.problem_type).labels
    if len(seen) != task.num_labels:
        hint = f"Task(problem_type={task.problem_type!r}, labels={_tuple(seen)})"
        raise DataError(
            f"{_place(train)}, labels",
            got=f"{len(seen)} strings ({listing(seen, 6)})",
            expected=f"{task.num_labels} labels ({listing(task.labels, 6)}), because the model was "
            f"created with "
            f"num_labels={task.num_labels}",
            remedy=f"create it with num_labels={len(seen)}, or pass task={hint}",
        )
    return replace(task, labels=seen)


def _tuple(labels: Sequence[Label]) -> str:
    return repr(tuple(labels)) if len(labels) <= 6 else f"({listing(labels, 3)}, …)"


def _place(split: Labelled) -> str:
    return split.examples[0].origin.name if split.examples else "the training rows"


# Indices -----------------------------------------------------------------------------------------


def _indexed(splits: Mapping[str, list[Example]], task: Task) -> dict[str, list[Example]]:
    """Replace class indices, and rows of zeros and ones, by labels."""
    found = dict(splits)
    pooled = [example for examples in splits.values() for example in examples]
    if _several(task) and _are_switches(pooled, task):
        return {name: [_switched_on(each, task) for each in examples] for name, examples in splits.items()}
    own = {(type(label), label) for label in task.labels}  # because 1 == True
    for kind in (int, bool):
        names = [name for name, examples in splits.items() if {type(x) for x in _items(examples)} == {kind}]
        if kind is bool and task.num_labels != 2:
            continue
        if not {(kind, item) for name in names for item in _items(splits[name])} <= own:
            found |= {name: [_by_index(example, task) for example in splits[name]] for name in names}
    return found


def _items(examples: Sequence[Example]) -> list[Any]:
    """All labels of all rows that have one."""
    given = (example.label for example in examples if example.label is not None)
    return [item for label in given for item in (label if isinstance(label, tuple) else (label,))]


def _whole(examples: list[Example]) -> list[Example]:
    """Labels with whole floats converted to integers, if all of them are; otherwise unchanged."""
    labels = [example.label for example in examples if example.label is not None]
    if not all(isinstance(label, float) and label.is_integer() for label in labels):
        return examples
    return [_with(example, int) for example in examples]


def _looked_up(index: Mapping[Label, int], label: Any) -> Any:
    return index.get(label, label)


def _with(example: Example, change: Callable[[Any], Any]) -> Example:
    if example.label is None:
        return example
    label = example.label
    return replace(example, label=tuple(map(change, label)) if isinstance(label, tuple) else change(label))


def _are_switches(examples: Sequence[Example], task: Task) -> bool:
    """Whether every row has zeros and ones, one per label, as transformers expects for multi-label tasks."""
    rows = [example for example in examples if isinstance(example.label, tuple)]
    items = [item for row in rows for item in row.label or ()]
    if not items or not all(item in (0, 1) for item in items):
        return False
    odd = next((row for row in rows if len(row.label or ()) != task.num_labels), None)
    if odd is not None and any(isinstance(item, float) for item in items):  # a label is never a float
        raise DataError(
            f"{odd.place}, the label",
            got=shortened(list(odd.label or ())),
            expected=f"{task.num_labels} zeros and ones, one for each of {listing(task.labels, 20)}",
            remedy="give every row all of them",
        )
    return odd is None


def _switched_on(example: Example, task: Task) -> Example:
    if not isinstance(example.label, tuple):
        return example
    named = zip(task.labels, example.label, strict=True)
    return replace(example, label=tuple(label for label, on in named if on))


def _by_index(example: Example, task: Task) -> Example:
    def named(index: int) -> Label:
        if not 0 <= index < task.num_labels:
            raise DataError(
                f"{example.place}, the label",
                got=index,
                expected=f"a class index from 0 to {task.num_labels - 1}, or one of "
                f"{listing(task.labels, 20)}",
                remedy="correct the label, or create the model with as many labels as the data have",
            )
        return task.labels[int(index)]

    return _with(example, named)


def _check_known(train: Sequence[Example], task: Task, unnamed: bool) -> None:
    """Refuse training labels that the task does not have; nothing was trained yet."""
    kinds = {type(item) for item in _items(train)}
    if len(kinds) > 1:
        return  # encoding the labels raises an error for a mixture
    own = {(type(label), label) for label in task.labels}
    for example in train:
        for item in _items([example]):
            if (type(item), item) in own or (isinstance(example.label, tuple) != _several(task)):
                continue
            made = f"num_labels={task.num_labels}" if unnamed else "these labels"
            hint = (
                "for scores, create it with num_labels=1"
                if isinstance(item, float)
                else "correct the label, or create the model for the labels of the data: task=Task(labels=…)"
            )
            raise DataError(
                f"{example.place}, the label",
                got=f"{shortened(item)} ({type(item).__name__})",
                expected=f"one of {listing(task.labels, 20)}, because the model was created with {made}",
                remedy=hint,
            )


def _several(task: Task) -> bool:
    return task.kind.form is LabelForm.SEVERAL
