"""From the labels that stand in the data to a task, and from labels to targets.

Labels keep their type: the number 1 of a JSON file and the text "1" of a CSV are different labels, and
one column does not mix them. Their order never depends on the order of the rows: numbers (and texts that
are all numbers) by value, ``False`` before ``True``, other texts by their characters, and class labels
that come with names in the order of the names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

from ptuning.data.examples import Example
from ptuning.data.places import listing, option, shortened
from ptuning.errors import ConfigError, DataError
from ptuning.task import Label, ProblemType, Task

#: Under "auto", more distinct labels than this are taken for a mistake.
MOST_LABELS = 1000
#: Under "auto", above this many rows, labels that are distinct in over half of them are a mistake.
FEW_ROWS = 50
#: Under "auto", so small a share of labels that are no number, among numbers not all whole, is a mistake.
FURTHEST = 1e18
"""How many spreads of the training scores a score may lie from their mean."""
FEW_OTHERS = 0.1

#: Of targets, as a share of their mean: with less the rounding of what a model answers would be as large.
LEAST_SPREAD = 1e-5

#: Of rows with the same fault, so many are named.
NAMED_ROWS = 20

_Key = tuple[type, Label]  # because 1 == 1.0 == True for a dictionary


def infer_task(
    examples: Sequence[Example],
    *,
    problem_type: ProblemType | Literal["auto"] = "auto",
    names: Sequence[Label] | None = None,
) -> Task:
    """The task that training examples describe.

    Under ``"auto"``: lists of labels make it multi-label; numbers (or texts that are all finite numbers)
    of which one is not whole make it regression, and what is no number among them (``NA``) is a mistake
    if it is rare; anything else is one label a row. ``names`` (a ``ClassLabel``'s) rule regression out.

    Args:
        examples: The training examples, with labels.
        problem_type: The kind of task, or ``"auto"``.
        names: All labels, in order, also those that no example has; without, those that are seen.

    Raises:
        DataError: The labels do not fit the kind of task, or "auto" cannot tell.
        ConfigError: ``problem_type`` is unknown.
    """
    if problem_type != "auto" and problem_type not in get_args(ProblemType):
        raise ConfigError(
            f"problem_type {problem_type!r} is unknown, expected one of "
            f"{listing(('auto', *get_args(ProblemType)))}"
        )
    if not examples:
        raise DataError("no examples to infer a task from, expected at least two; check the training data")
    pair = examples[0].text_b is not None
    kind = _detect(examples, names) if problem_type == "auto" else problem_type
    if kind == "regression":
        mean, scale = _scaling(examples)
        return Task(problem_type=kind, pair=pair, mean=mean, scale=scale)
    pairs = _labelled(examples, kind)
    seen = _distinct(pairs)
    if problem_type == "auto" and names is None and kind == "single_label_classification":
        _refuse_many(seen, examples)
    if kind == "single_label_classification" and len(seen) == 1:
        raise DataError(
            f"{examples[0].origin.name}: every row has the label {pairs[0][1]!r}, expected at least two "
            "different labels; check the label column, or add rows of another class"
        )
    if not seen:
        raise DataError(
            f"{examples[0].origin.name}: no row has any label, expected at least one; check the label column"
        )
    if names is None:
        labels = _ordered(seen)
    else:
        labels = tuple(names)
        _indices(pairs, labels)  # every label is among the names
    return Task(problem_type=kind, labels=labels, pair=pair)


def encode_labels(examples: Sequence[Example], task: Task) -> list[int] | list[float] | list[list[float]]:
    """The targets of examples, in order, for a task.

    Returns:
        Class indices for one label a row; numbers in the data's own unit for regression (the caller
        subtracts ``task.mean`` and divides by ``task.scale``); rows of 0.0 and 1.0, one column a label,
        for multi-label.

    Raises:
        DataError: A label that the task does not know, or that does not fit its kind; the row is named.
    """
    if task.problem_type == "regression":
        targets = _targets(examples)
        _refuse_far(examples, targets, task)
        return targets
    pairs = _labelled(examples, task.problem_type)
    indices = _indices(pairs, task.labels)
    if task.problem_type == "single_label_classification":
        return indices
    hot = iter(indices)
    rows = [[0.0] * task.num_labels for _ in examples]
    for row, example in zip(rows, examples, strict=True):
        for _ in example.label or ():
            row[next(hot)] = 1.0
    return rows


# Kinds -------------------------------------------------------------------------------------------


def _detect(examples: Sequence[Example], names: Sequence[Label] | None) -> ProblemType:
    lists = next((example for example in examples if isinstance(example.label, tuple | list)), None)
    if lists is not None:
        return "multi_label_classification"
    if names is not None:
        return "single_label_classification"
    numbers = [number(example.label) for example in examples]
    if not any(each != round(each) for each in numbers if each):
        return "single_label_classification"
    if None not in numbers:
        return "regression"
    if numbers.count(None) <= FEW_OTHERS * len(numbers):
        odd = examples[numbers.index(None)]
        raise DataError(
            f"{odd.place}: the label is {shortened(odd.label)} and nearly all others are numbers, expected a "
            "number; mend or remove the row, or, if each label is a class, set "
            f"{option('problem_type', 'single_label_classification')}"
        )
    return "single_label_classification"


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


def _refuse_many(seen: Sequence[Label], examples: Sequence[Example]) -> None:
    rows = len(examples)
    if len(seen) > MOST_LABELS or (rows > FEW_ROWS and len(seen) > rows / 2):
        raise DataError(
            f"{examples[0].origin.name}: {len(seen)} different labels in {rows} rows ({listing(seen, 3)}), "
            f"as ids or free text have, expected far fewer labels than rows; name the label's column with "
            f"{option('label')}, or, if it is right, say what it is with {option('problem_type')}: "
            "'single_label_classification' or 'regression'"
        )


# Regression --------------------------------------------------------------------------------------


def _targets(examples: Sequence[Example]) -> list[float]:
    targets = [number(example.label) for example in examples]
    odd = [example for example, target in zip(examples, targets, strict=True) if target is None]
    if odd:
        raise DataError(
            f"{odd[0].place}: the label is {shortened(odd[0].label)}, expected a finite number "
            f"(regression); mend or remove the row, or set another {option('problem_type')}"
            + _also(odd, "are no number")
        )
    return [target for target in targets if target is not None]


def _refuse_far(examples: Sequence[Example], targets: Sequence[float], task: Task) -> None:
    """Refuse a score whose squared error, in units of the training rows' spread, is beyond fp32."""
    for example, target in zip(examples, targets, strict=True):
        if abs(target - task.mean) > FURTHEST * task.scale:
            raise DataError(
                f"{example.place}: the label is {shortened(example.label)}, expected a score like those of "
                f"training, which are {task.mean:.3g} give or take {task.scale:.3g}; mend or remove the row"
            )


def _scaling(examples: Sequence[Example]) -> tuple[float, float]:
    """The mean and the population standard deviation of the targets."""
    targets = _targets(examples)
    _refuse_mixture(((example, example.label) for example in examples), numbers_mix=True)
    name = examples[0].origin.name
    if min(targets) == max(targets):
        raise DataError(
            f"{name}: every target is {targets[0]!r}, expected different numbers; check the label column, or "
            "add rows with other targets"
        )
    try:
        mean = math.fsum(targets) / len(targets)
        scale = math.sqrt(math.fsum((target - mean) ** 2 for target in targets) / len(targets))
    except OverflowError:
        scale = math.inf
    if not 0 < scale < math.inf:
        raise DataError(
            f"{name}: the targets run from {min(targets)!r} to {max(targets)!r}, whose spread cannot be "
            "computed, expected ordinary numbers; give them in another unit"
        )
    if scale < LEAST_SPREAD * abs(mean):
        raise DataError(
            f"{name}: the targets are {mean:.9g} give or take {scale:.3g}, too close for 32-bit numbers, "
            "expected a spread that is more of their size; subtract the same number from all of them"
        )
    return mean, scale


# Classes -----------------------------------------------------------------------------------------


def _labelled(examples: Sequence[Example], kind: ProblemType) -> list[tuple[Example, Label]]:
    """Every (example, label), several for an example with several; all of a kind and of one type."""
    pairs: list[tuple[Example, Label]] = []
    for example in examples:
        pairs.extend((example, label) for label in _labels_of(example, kind))
    _refuse_mixture(pairs)
    return pairs


def _labels_of(example: Example, kind: ProblemType) -> Iterator[Label]:
    label = example.label
    several = isinstance(label, tuple | list)
    if label is None or (isinstance(label, float) and not math.isfinite(label)):
        raise DataError(f"{example.place}: the label is {label}, expected one; fill it in, or remove the row")
    if several != (kind == "multi_label_classification"):
        raise DataError(
            f"{example.place}: the label is {'the list ' if several else ''}{shortened(label)}, expected "
            + ("one label" if several else "a list of labels")
            + f" ({kind}); "
            + (
                "write one label in every row, or lists in every row with "
                + option("problem_type", "multi_label_classification")
                if several
                else f"write a list in every row, or, in a CSV, give {option('label_separator')}"
            )
        )
    items: Sequence[Label] = label if several else (label,)
    for position, item in enumerate(items):
        if several and isinstance(item, float):
            raise DataError(
                f"{example.place}: the list of labels holds {item!r}, expected names or whole numbers; "
                "scores cannot be learnt as labels, round them or list the labels that apply"
            )
        if item in items[:position]:
            raise DataError(
                f"{example.place}: the label {item!r} stands twice in {shortened(list(items))}, expected the "
                "labels that apply, each once; rows of zeros and ones need as many in every row as there are "
                "labels"
            )
        yield item


def _refuse_mixture(pairs: Iterable[tuple[Example, object]], *, numbers_mix: bool = False) -> None:
    """One column, one type: ``1`` and ``"1"`` side by side are a mistake in the file."""
    first: tuple[Example, object] | None = None
    for example, label in pairs:
        one, this = first = first or (example, label)
        alike = type(label) is type(this)
        if not alike and not (numbers_mix and {type(label), type(this)} == {int, float}):
            raise DataError(
                f"{one.place}: the label is {this!r} ({type(this).__name__}), but {label!r} "
                f"({type(label).__name__}) in {example.origin.unit} {example.row}, expected one type "
                "throughout; write them all the same way, for example all in quotes"
            )


def _distinct(pairs: Iterable[tuple[Example, Label]]) -> list[Label]:
    return [label for _, label in {(type(label), label): None for _, label in pairs}]


def _ordered(labels: Iterable[Label]) -> tuple[Label, ...]:
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
        raise DataError(unseen(example, label, labels, _distinct(pairs)) + also)
    return [index for index in indices if index is not None]


def _also(rows: Sequence[Example], what: str) -> str:
    """The other rows of which the same is to be said, by number and label."""
    if len(rows) == 1:
        return ""
    first = rows[0]
    named = ", ".join(f"{each.row} ({shortened(each.label, 30)})" for each in rows[1:NAMED_ROWS])
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    unit = f"{first.origin.unit}{'s' if len(rows) > 2 else ''}"
    return f"; the labels of {len(rows) - 1} other rows {what} as well: {unit} {named}{more}"


def unseen(example: Example, label: Label, labels: Sequence[Label], here: Sequence[Label] = ()) -> str:
    """What to say of a label that the task does not know.

    Args:
        labels: Those that it knows.
        here: All labels of this source; how both look is said where more than this one is unknown.
    """
    twin = next((known for known in labels if str(known) == str(label)), None)
    alike = next((known for known in labels if _folded(known) == _folded(label)), None)
    if twin is not None:
        remedy = f"{twin!r} was a {type(twin).__name__} in training, so write it as the training data did"
    elif alike is not None:
        remedy = f"it differs from {alike!r} in case or spaces alone, so write it as training had it"
    elif _folded(label) in _NONE:
        remedy = f"if it means that a row has no label, {option('no_label', str(label))} leaves such rows out"
    else:
        remedy = "correct the label, remove the row, or train again with rows that have it"
    others = [each for each in here if each not in labels]
    look = (
        f"; the labels in training: {listing(labels, 5)} ({_look(labels)}), here: "
        f"{listing(_ordered(here), 5)} ({_look(here)})"
        if len(others) > 1
        else ""
    )
    return (
        f"{example.place}: the label {shortened(label)} was unseen in training, expected one of "
        f"{listing(labels, 20)}; {remedy}{look}"
    )


#: What often stands where a row has no label.
_NONE = frozenset({"-1", "-1.0", "-", "?", "na", "n/a", "nan", "null", "none"})


def _folded(label: Label) -> str:
    return " ".join(str(label).casefold().split())


def _look(labels: Sequence[Label]) -> str:
    """What kind of thing the labels are."""
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
