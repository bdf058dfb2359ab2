"""From the labels in the data to a task, and from labels to targets.

Labels keep their type: the number 1 of a JSON file and the string "1" of a CSV are different labels, and a
column must not mix them. The order of labels does not depend on the order of the rows: numbers (and strings
that are all numbers) by value, ``False`` before ``True``, other strings by their characters, and class labels
in the order of their names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from ptuning.data.examples import Example
from ptuning.data.places import listing, option, shortened
from ptuning.errors import DataError
from ptuning.kinds import BY_FORM, Kind, LabelForm, kind_named
from ptuning.task import Label, Task

#: With "auto", more distinct labels than this are an error.
MOST_LABELS = 1000
#: With "auto" and more rows than this, distinct labels in over half of them are an error.
FEW_ROWS = 50
#: With "auto", a smaller share of other values among numbers that are not all whole is an error.
FEW_OTHERS = 0.1

#: Maximum number of rows that a message names.
NAMED_ROWS = 20

_Key = tuple[type, Label]  # because 1 == 1.0 == True for a dictionary


def infer_task(
    examples: Sequence[Example],
    *,
    problem_type: str = "auto",
    names: Sequence[Label] | None = None,
) -> Task:
    """Infer the task from training examples.

    With ``"auto"``: lists of labels mean multi-label; numbers (or strings that are all finite numbers) that
    are not all whole mean regression, and rare other values among them (``NA``) are an error; anything else
    means one label per row. With ``names`` (of a ``ClassLabel``), it is never regression.

    Args:
        examples: The training examples, with labels.
        problem_type: The kind of task, or ``"auto"``.
        names: All labels, in order, including those that no example has; ``None`` for the labels in
            ``examples``.

    Raises:
        DataError: The labels do not fit the kind of task, or it cannot be inferred.
        ConfigError: ``problem_type`` is unknown.
    """
    asked = None if problem_type == "auto" else kind_named(problem_type, "auto")
    if not examples:
        raise DataError(
            "no examples to infer a task from", expected="at least two", remedy="check the training data"
        )
    pair = examples[0].text_b is not None
    kind = asked or kind_of(examples, names)
    if kind.form is LabelForm.NUMBER:
        mean, scale = _scaling(examples, kind)
        return Task(problem_type=kind.name, pair=pair, mean=mean, scale=scale)
    labels = _classes(examples, kind, names)
    if asked is None and names is None and kind.form is LabelForm.ONE:
        refuse_many(_distinct(labels_of(examples, kind)), examples)
    return Task(problem_type=kind.name, labels=labels, pair=pair)


def encode_labels(examples: Sequence[Example], task: Task) -> list[int] | list[float] | list[list[float]]:
    """The targets of examples, in order, for a task.

    Returns:
        Class indices for single-label tasks; numbers in the unit of the data for regression (the caller
        subtracts ``task.mean`` and divides by ``task.scale``); rows of 0.0 and 1.0, with one column per
        label, for multi-label tasks.

    Raises:
        DataError: A label that the task does not have, or that does not fit its kind; names the row.
    """
    kind = task.kind
    if kind.form is LabelForm.NUMBER:
        return _numbers(examples, task)
    indices = _indices(labels_of(examples, kind), task.labels)
    if kind.form is LabelForm.ONE:
        return indices
    hot = iter(indices)
    rows = [[0.0] * task.num_labels for _ in examples]
    for row, example in zip(rows, examples, strict=True):
        for _ in example.label or ():
            row[next(hot)] = 1.0
    return rows


# Which kind --------------------------------------------------------------------------------------


def kind_of(examples: Sequence[Example], names: Sequence[Label] | None = None) -> Kind:
    """The kind of task that ``"auto"`` infers from training examples; see :func:`infer_task`."""
    return BY_FORM[_form(examples, names)]


def _form(examples: Sequence[Example], names: Sequence[Label] | None) -> LabelForm:
    """The form of the labels of training examples."""
    if any(isinstance(example.label, tuple | list) for example in examples):
        return LabelForm.SEVERAL
    if names is not None:
        return LabelForm.ONE
    numbers = [number(example.label) for example in examples]
    if not any(each != round(each) for each in numbers if each):
        return LabelForm.ONE
    if None not in numbers:
        return LabelForm.NUMBER
    if numbers.count(None) <= FEW_OTHERS * len(numbers):
        odd = examples[numbers.index(None)]
        raise DataError(
            odd.place,
            got=f"the label {shortened(odd.label)}, while nearly all others are numbers",
            expected="a number",
            remedy="correct or remove the row, or, if each label is a class, set "
            f"{option('problem_type', BY_FORM[LabelForm.ONE].name)}",
        )
    return LabelForm.ONE


def are_scores(examples: Sequence[Example]) -> bool:
    """Whether all labels are numbers and one of them is not whole, which under "auto" makes a regression."""
    numbers = [number(example.label) for example in examples]
    return None not in numbers and any(each != round(each) for each in numbers if each)


def number(label: object) -> float | None:
    """The finite number that a label is or spells."""
    if isinstance(label, bool) or not isinstance(label, int | float | str) or "_" in str(label):
        return None
    try:
        found = float(label)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def refuse_many(seen: Sequence[Label], examples: Sequence[Example]) -> None:
    """Refuse labels that look like ids or free text, because there are so many different ones."""
    rows = len(examples)
    if len(seen) > MOST_LABELS or (rows > FEW_ROWS and len(seen) > rows / 2):
        kinds = " or ".join(repr(BY_FORM[form].name) for form in (LabelForm.ONE, LabelForm.NUMBER))
        raise DataError(
            examples[0].origin.name,
            got=f"{len(seen)} different labels in {rows} rows ({listing(seen, 3)}), which looks like ids or "
            "free text",
            expected="far fewer labels than rows",
            remedy=f"name the label's column with {option('label')}, or, if it is right, say what it is with "
            f"{option('problem_type')}: {kinds}",
        )


# Numbers -----------------------------------------------------------------------------------------


def _numbers(examples: Sequence[Example], task: Task) -> list[float]:
    targets = _targets(examples, task.kind)
    for example, target in zip(examples, targets, strict=True):
        if (expected := task.kind.expected_target(target, task)) is not None:
            raise DataError(
                example.place,
                got=f"the label {shortened(example.label)}",
                expected=expected,
                remedy="correct or remove the row",
            )
    return targets


def _targets(examples: Sequence[Example], kind: Kind) -> list[float]:
    targets = [number(example.label) for example in examples]
    odd = [example for example, target in zip(examples, targets, strict=True) if target is None]
    if odd:
        raise DataError(
            odd[0].place,
            got=f"the label {shortened(odd[0].label)}",
            expected=f"a finite number ({kind.name})",
            remedy=f"correct or remove the row, or set another {option('problem_type')}"
            + _also(odd, "are not numbers"),
        )
    return [target for target in targets if target is not None]


def _scaling(examples: Sequence[Example], kind: Kind) -> tuple[float, float]:
    targets = _targets(examples, kind)
    _refuse_mixture(((example, example.label) for example in examples), numbers_mix=True)
    return kind.scaling(targets, examples[0].origin.name)


# Classes -----------------------------------------------------------------------------------------


def _classes(examples: Sequence[Example], kind: Kind, names: Sequence[Label] | None) -> tuple[Label, ...]:
    """The labels of a task in the order of its logits: ``names``, or those that examples have."""
    pairs = labels_of(examples, kind)
    seen = _distinct(pairs)
    if not seen:
        raise DataError(
            examples[0].origin.name,
            got="no label in any row",
            expected="at least one",
            remedy="check the label column",
        )
    if kind.form is LabelForm.ONE and len(seen) == 1:
        raise DataError(
            examples[0].origin.name,
            got=f"the label {pairs[0][1]!r} in every row",
            expected="at least two different labels",
            remedy="check the label column, or add rows of another class",
        )
    if names is None:
        return ordered(seen)
    _indices(pairs, names)  # every label is among the names
    return tuple(names)


def labels_of(examples: Sequence[Example], kind: Kind) -> list[tuple[Example, Label]]:
    """Every (example, label), several for an example with several; all of a kind and of one type."""
    pairs: list[tuple[Example, Label]] = []
    for example in examples:
        pairs.extend((example, label) for label in _labels_of(example, kind))
    _refuse_mixture(pairs)
    return pairs


def _labels_of(example: Example, kind: Kind) -> Iterator[Label]:
    label = example.label
    several = isinstance(label, tuple | list)
    if label is None or (isinstance(label, float) and not math.isfinite(label)):
        raise DataError(
            example.place,
            got=f"the label {label}",
            expected="a label",
            remedy="fill it in, or remove the row",
        )
    if several != (kind.form is LabelForm.SEVERAL):
        raise DataError(
            example.place,
            got=f"the {'list' if several else 'label'} {shortened(label)}",
            expected=f"{kind.form.value} ({kind.name})",
            remedy="write one label in every row, or lists in every row with "
            + option("problem_type", BY_FORM[LabelForm.SEVERAL].name)
            if several
            else f"write a list in every row, or, in a CSV, give {option('label_separator')}",
        )
    items: Sequence[Label] = label if several else (label,)
    for position, item in enumerate(items):
        if several and isinstance(item, float):
            raise DataError(
                example.place,
                got=f"{item!r} in the list of labels",
                expected="names or whole numbers",
                remedy="scores cannot be learned as labels: round them, or list the labels that apply",
            )
        if item in items[:position]:
            raise DataError(
                example.place,
                got=f"the label {item!r} twice in {shortened(list(items))}",
                expected="each label that applies once",
                remedy="if these are zeros and ones, give every row as many as there are labels",
            )
        yield item


def _refuse_mixture(pairs: Iterable[tuple[Example, object]], *, numbers_mix: bool = False) -> None:
    """One type per column: ``1`` and ``"1"`` in the same column are a mistake in the file."""
    first: tuple[Example, object] | None = None
    for example, label in pairs:
        one, this = first = first or (example, label)
        alike = type(label) is type(this)
        if not alike and not (numbers_mix and {type(label), type(this)} == {int, float}):
            raise DataError(
                one.place,
                got=f"the label {this!r} ({type(this).__name__}), but {label!r} ({type(label).__name__}) in "
                f"{example.origin.unit} {example.row}",
                expected="one type in the entire column",
                remedy="write them all the same way, for example all in quotes",
            )


def _distinct(pairs: Iterable[tuple[Example, Label]]) -> list[Label]:
    return [label for _, label in {(type(label), label): None for _, label in pairs}]


def ordered(labels: Iterable[Label]) -> tuple[Label, ...]:
    """Labels by value if all are numbers or spell one, otherwise by their characters."""
    labels = list(labels)
    numbers = {label: value for label in labels if (value := number(label)) is not None}
    if len(numbers) == len(labels):
        return tuple(sorted(labels, key=lambda label: (numbers[label], str(label))))
    return tuple(sorted(labels, key=lambda label: label if isinstance(label, bool) else str(label)))


def _indices(pairs: Sequence[tuple[Example, Label]], labels: Sequence[Label]) -> list[int]:
    known: dict[_Key, int] = {(type(label), label): index for index, label in enumerate(labels)}
    indices = [known.get((type(label), label)) for _, label in pairs]
    if None in indices:
        odd = [pair for pair, index in zip(pairs, indices, strict=True) if index is None]
        example, label = odd[0]
        rows = list({id(example): example for example, _ in odd}.values())
        none_known = len(odd) == len(pairs) > 1
        also = "; no other label is known either" if none_known else _also(rows, "are unknown")
        raise unseen(example, label, labels, _distinct(pairs), also)
    return [index for index in indices if index is not None]


def _also(rows: Sequence[Example], what: str) -> str:
    """The other rows with the same problem, by number and label."""
    if len(rows) == 1:
        return ""
    first = rows[0]
    named = ", ".join(f"{each.row} ({shortened(each.label, 30)})" for each in rows[1:NAMED_ROWS])
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    unit = f"{first.origin.unit}{'s' if len(rows) > 2 else ''}"
    return f"; the labels of {len(rows) - 1} other rows {what} as well: {unit} {named}{more}"


def unseen(
    example: Example, label: Label, labels: Sequence[Label], here: Sequence[Label] = (), also: str = ""
) -> DataError:
    """The error for a label that the task does not have.

    Args:
        labels: The labels of the task.
        here: All labels of this source; both are described if several of them are unknown.
        also: The end of the message.
    """
    twin = next((known for known in labels if str(known) == str(label)), None)
    alike = next((known for known in labels if _folded(known) == _folded(label)), None)
    if twin is not None:
        remedy = f"{twin!r} was a {type(twin).__name__} in training, so write it as in the training data"
    elif alike is not None:
        remedy = f"it differs from {alike!r} only in case or spaces, so write it as in the training data"
    elif _folded(label) in _NONE:
        remedy = f"if it means that a row has no label, {option('no_label', str(label))} leaves such rows out"
    else:
        remedy = "correct the label, remove the row, or train again with rows that have it"
    others = [each for each in here if each not in labels]
    look = (
        f"; the labels in training: {listing(labels, 5)} ({_look(labels)}), here: "
        f"{listing(ordered(here), 5)} ({_look(here)})"
        if len(others) > 1
        else ""
    )
    return DataError(
        f"{example.place}: the label {shortened(label)} does not occur in the training rows",
        expected=f"one of {listing(labels, 20)}",
        remedy=f"{remedy}{look}{also}",
    )


#: Common spellings of "no label".
_NONE = frozenset({"-1", "-1.0", "-", "?", "na", "n/a", "nan", "null", "none"})


def _folded(label: Label) -> str:
    return " ".join(str(label).casefold().split())


def _look(labels: Sequence[Label]) -> str:
    """A description of the labels' kind."""
    kinds = {
        "true and false"
        if isinstance(label, bool)
        else "numbers"
        if not isinstance(label, str)
        else "numbers as text"
        if number(label) is not None
        else "words"
        for label in labels
    }
    return " and ".join(sorted(kinds))
