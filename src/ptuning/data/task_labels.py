"""Labels of rows for a model whose task is there already: names, class indices, zeros and ones.

The rule is one, whether the rows are texts or token ids:

1. A model whose labels nobody chose (``num_labels=2``: 0 and 1; or those of the backbone's configuration)
   takes over the names in its training rows, if there are as many: those of a ``datasets.ClassLabel`` in
   their order, otherwise the distinct strings (or truth values, or numbers that are no class indices, such as
   1 to C) in the order that :func:`~ptuning.data.infer_task` gives them.
2. Labels that are all the task's own are that.
3. Otherwise whole numbers (0 and 0.0 alike) are class indices, and so are truth values for two classes and a
   ``ClassLabel`` that has no name of the task's.
4. For several labels a row, rows of C zeros and ones say which labels apply.
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
    """A split's examples, and the names of its ``ClassLabel`` in order, if its labels are of one."""

    examples: Sequence[Example]
    names: tuple[Label, ...] | None = None


def task_labels(
    splits: Mapping[str, Labelled], task: Task, *, unnamed: bool
) -> tuple[dict[str, list[Example]], Task]:
    """The splits' examples, each with the task's own label, and the task, which may have taken over names.

    Args:
        splits: By name, ``train`` among them.
        task: What the model's logits mean.
        unnamed: Whether nobody chose the task's labels, so that those of the training rows may replace them.

    Raises:
        DataError: a label that the task does not have; the row is named.
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
    """The task with the names in the training rows, if they can only be its labels."""
    if train.names is not None:
        if set(train.names) & set(task.labels):
            return task
        if len(train.names) > task.num_labels:
            raise DataError(
                f"{_place(train)}: the labels have {len(train.names)} classes ({listing(train.names, 6)}), "
                f"but the model was made for {task.num_labels}; make it with num_labels={len(train.names)}"
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
            f"{_place(train)}: the labels are strings ({listing(seen, 6)}), but the model was made with "
            f"num_labels={task.num_labels} (labels {listing(task.labels, 6)}); make it with "
            f"num_labels={len(seen)}, or pass task={hint}"
        )
    return replace(task, labels=seen)


def _tuple(labels: Sequence[Label]) -> str:
    return repr(tuple(labels)) if len(labels) <= 6 else f"({listing(labels, 3)}, …)"


def _place(split: Labelled) -> str:
    return split.examples[0].origin.name if split.examples else "the training rows"


# Indices -----------------------------------------------------------------------------------------


def _indexed(splits: Mapping[str, list[Example]], task: Task) -> dict[str, list[Example]]:
    """Class indices, and rows of zeros and ones, as the labels that they stand for."""
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
    """Labels that are all whole floats, one a row, as the numbers that they are; others as they are."""
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
    """Whether every row is zeros and ones, which transformers takes for several labels: one a label."""
    rows = [example for example in examples if isinstance(example.label, tuple)]
    items = [item for row in rows for item in row.label or ()]
    if not items or not all(item in (0, 1) for item in items):
        return False
    odd = next((row for row in rows if len(row.label or ()) != task.num_labels), None)
    if odd is not None and any(isinstance(item, float) for item in items):  # which no label is
        raise DataError(
            f"{odd.place}: the label is {shortened(list(odd.label or ()))}, expected {task.num_labels} zeros "
            f"and ones, one for each of {listing(task.labels, 20)}; give every row all of them"
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
                f"{example.place}: the label {index} is no class, expected a number from 0 to "
                f"{task.num_labels - 1}, or one of {listing(task.labels, 20)}; correct the label, or make "
                "the model with as many labels as the data have"
            )
        return task.labels[int(index)]

    return _with(example, named)


def _check_known(train: Sequence[Example], task: Task, unnamed: bool) -> None:
    """Refuse labels in the training rows that are not the task's; nothing was trained yet."""
    kinds = {type(item) for item in _items(train)}
    if len(kinds) > 1:
        return  # a mixture is named where labels are encoded
    own = {(type(label), label) for label in task.labels}
    for example in train:
        for item in _items([example]):
            if (type(item), item) in own or (isinstance(example.label, tuple) != _several(task)):
                continue
            made = f"num_labels={task.num_labels}" if unnamed else "these labels"
            hint = (
                "for scores, make it with num_labels=1"
                if isinstance(item, float)
                else "correct the label, or make the model for the labels of the data: task=Task(labels=…)"
            )
            raise DataError(
                f"{example.place}: the label is {shortened(item)} ({type(item).__name__}), expected one of "
                f"{listing(task.labels, 20)}, because the model was made with {made}; {hint}"
            )


def _several(task: Task) -> bool:
    return task.kind.form is LabelForm.SEVERAL
