"""The task of rows that a trained task is continued with: the same one, perhaps with more labels, or another.

Labels are matched by value, and type: the number 1 and the string "1" are different labels, as in all
data. The labels of the trained task come first, in their order, whether or not the rows have them; the
others follow in the order of :func:`~ptuning.data.infer_task`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ptuning.data.examples import Example
from ptuning.data.labels import infer_task, kind_of, labels_of, number, ordered, refuse_many, unseen
from ptuning.data.places import listing, option
from ptuning.errors import ConfigError
from ptuning.kinds import LabelForm
from ptuning.task import Label, Task

NEW_HEAD = "to train another task from its prompt alone, set init_head: new"
OTHER_UNIT = 10.0
"""How many standard deviations of the old targets away, or how many times as spread, new ones are in another
unit."""


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A task that starts from a trained one.

    Attributes:
        task: The task of the rows.
        same: Whether it is the trained task, perhaps with more labels; its head can be kept.
        notes: What the user should know, one sentence each.
    """

    task: Task
    same: bool
    notes: tuple[str, ...] = ()


def continued_task(
    examples: Sequence[Example],
    old: Task,
    *,
    problem_type: str = "auto",
    head: Literal["auto", "new"] = "auto",
    names: Sequence[Label] | None = None,
) -> Continued:
    """The task of training rows for a run that starts from the task ``old``.

    Args:
        examples: The training rows, with labels.
        problem_type: The kind of task, or ``"auto"``: that of ``old`` if the labels have its form.
        head: ``new`` if the rows are of another task in any case.
        names: All labels of the column, in order, if it is a ``ClassLabel``.

    Raises:
        ConfigError: it is not clear whether the rows are of the same task; texts and pairs.
        DataError: labels that the kind of task cannot have, or that differ from the old ones by type alone.
    """
    asked = problem_type
    if asked == "auto" and examples:
        kind = kind_of(examples, names)
        asked = old.problem_type if kind.form is old.kind.form else kind.name
        if head == "auto":
            _refuse_unclear(examples, old, asked)
    if head == "new" or asked != old.problem_type or not examples:
        task = infer_task(examples, problem_type=asked, names=names)
        return Continued(task=task, same=False)
    if (pair := examples[0].text_b is not None) != old.pair:
        texts = ("one text", "two texts")
        raise ConfigError(
            "init_from: the rows and the adapter differ",
            got=f"{texts[pair]} per row",
            expected=f"{texts[old.pair]}, as the adapter was trained with",
            remedy=f"name the columns with {option('text')} and {option('text_b')}, or, {NEW_HEAD}",
        )
    if not old.labels:
        return Continued(task=old.uncalibrated(), same=True, notes=_unit_notes(examples, old))
    return _with_new_labels(examples, old, problem_type, names)


def _with_new_labels(
    examples: Sequence[Example], old: Task, problem_type: str, names: Sequence[Label] | None
) -> Continued:
    known = {(type(label), label) for label in old.labels}
    pairs = labels_of(examples, old.kind)
    seen = list(dict.fromkeys((type(label), label) for _, label in pairs))
    texts = {str(label) for label in old.labels}
    for example, label in pairs:
        if (type(label), label) not in known and str(label) in texts:
            raise unseen(example, label, old.labels, [each for _, each in seen])
    given = [label for _, label in seen] if names is None else list(names)
    new = [label for label in given if (type(label), label) not in known]
    if not any(key in known for key in seen):
        raise ConfigError(
            "init_from: no training row has a label of the adapter",
            got=listing(given, 6),
            expected=f"rows of some of {listing(old.labels, 6)}, which would be forgotten otherwise",
            remedy=f"add such rows, or, {NEW_HEAD}",
        )
    if problem_type == "auto" and names is None and old.kind.form is LabelForm.ONE:
        refuse_many(new, examples)
    if names is None:
        new = list(ordered(new))
    task = replace(old.uncalibrated(), labels=(*old.labels, *new))
    found = {label for _, label in seen}
    lost = [label for label in old.labels if label not in found]
    notes = []
    if new:
        notes.append(f"{len(new)} new label{'s' if len(new) > 1 else ''}: {listing(new, 6)}")
    if lost:
        notes.append(
            f"no training row has {listing(lost, 6)}, so the model keeps "
            f"{'this label' if len(lost) == 1 else 'these labels'} but may forget "
            f"{'it' if len(lost) == 1 else 'them'}; add some rows of {'it' if len(lost) == 1 else 'each'}"
        )
    return Continued(task=task, same=True, notes=tuple(notes))


def _refuse_unclear(examples: Sequence[Example], old: Task, asked: str) -> None:
    """Refuse labels that may or may not be of the trained task, of another form than its own."""
    if asked == old.problem_type:
        return
    form, where = old.kind.form, f"{option('problem_type')}"
    if form is LabelForm.NUMBER and all(number(example.label) is not None for example in examples):
        raise ConfigError(
            "init_from: the adapter predicts a number, and the labels are whole numbers, which may be scores "
            "or classes",
            remedy=f"say which with {where} {old.problem_type} or {asked}",
        )
    if form is LabelForm.SEVERAL and {example.label for example in examples} & {*old.labels}:
        raise ConfigError(
            "init_from: the adapter predicts several labels per row, and the rows have one of them each",
            remedy=f"give {option('label_separator')}, or say what they are with {where} {old.problem_type} "
            f"or {asked}",
        )


def _unit_notes(examples: Sequence[Example], old: Task) -> tuple[str, ...]:
    """A note if the targets seem to have another unit than those of the trained task."""
    targets = [value for example in examples if (value := number(example.label)) is not None]
    if not targets:
        return ()
    mean = sum(targets) / len(targets)
    spread = (sum((value - mean) ** 2 for value in targets) / len(targets)) ** 0.5
    near = abs(mean - old.mean) <= OTHER_UNIT * old.scale
    if near and spread <= OTHER_UNIT * old.scale:
        return ()
    return (
        f"the targets are {mean:.3g} ± {spread:.3g}, and the adapter's were {old.mean:.3g} ± "
        f"{old.scale:.3g}; if they have another unit, set init_head: new",
    )
