"""Notes about training labels that may have been misread."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from ptuning.data.examples import Example
from ptuning.data.labels import number
from ptuning.data.places import Note, listing, option
from ptuning.kinds import BY_FORM, LabelForm
from ptuning.task import Label, Task

#: Words that mean a missing label in many files.
_NO_LABEL = frozenset(
    {"-", "--", "?", "na", "n/a", "#n/a", "<na>", "nan", "null", "nil", "unlabeled", "unlabelled"}
)
#: Words that do so if few rows have them.
_RARELY_A_LABEL = frozenset({"none", "unknown", "missing", "undefined"})
_RARE = 0.05
_SCORES = re.compile(r"(?i)(^|_)(score|rating|stars?|overall|grade|polarity)s?$")
_OWN = "is read as a class of its own"
_SCALES = frozenset({5, 7, 10})


def label_oddities(
    examples: Sequence[Example], task: Task | None, column: str | None = None
) -> Iterator[Note]:
    """Notes about the labels of training examples.

    Args:
        column: The label column; its name may suggest that it is a score.
    """
    if task is None or not examples:
        return
    twins: dict[str, list[Label]] = defaultdict(list)
    for label in task.labels:
        twins[" ".join(str(label).casefold().split())].append(label)
    for alike in twins.values():
        if len(alike) > 1:
            message = f"labels that differ only in case or spaces: {listing(alike)}; write them the same way"
            yield Note(message, level="warning")
    if task.kind.form is not LabelForm.ONE:
        return
    counts = Counter(repr(example.label) for example in examples)
    for label in task.labels:
        share = counts[repr(label)] / len(examples)
        if share and (why := _no_label(label, task.labels, share)):
            rows = [example.row for example in examples if repr(example.label) == repr(label)]
            yield Note(
                f"the label {label!r} {why}, {option('no_label', str(label))} leaves its rows out",
                level="warning",
                rows=rows,
            )
    if (scale := _scale(task.labels, column)) is not None:
        yield Note(
            f"the labels {scale} are read as classes without an order; "
            f"{option('problem_type', BY_FORM[LabelForm.NUMBER].name)} would use it"
        )


def _no_label(label: Label, labels: Sequence[Label], share: float) -> str | None:
    """Why a label may mean "no label"."""
    word = str(label).strip().casefold()
    if isinstance(label, str) and (word in _NO_LABEL or (word in _RARELY_A_LABEL and share < _RARE)):
        return f"{_OWN}; if it means that a row has no label, as it often does"
    if number(label) != -1:
        return None
    numbers = [number(each) for each in labels]
    if None in numbers or {0.0, -1.0} - set(numbers):
        return None
    others = sorted(each for each in numbers if each is not None and each != -1)
    if others != [float(each) for each in range(len(others))]:
        return None
    if len(others) == 2:  # -1, 0 and 1 may well be a scale
        return f"{_OWN}; if it means that a row has no label"
    return (
        f"occurs next to 0 to {len(others) - 1} and {_OWN}; if it means that a row has no label, as it often "
        "does"
    )


def _scale(labels: Sequence[Label], column: str | None) -> str | None:
    """``1 to 5``, if the labels look like points of a scale."""
    numbers = [number(label) for label in labels]
    if len(labels) < 3 or any(each is None or each != round(each) for each in numbers):
        return None
    whole = sorted(int(each) for each in numbers if each is not None)
    called = column is not None and _SCORES.search(column.strip())
    if not called and not (whole[0] in (0, 1) and whole[-1] in _SCALES and len(whole) > 3):
        return None
    if whole == list(range(whole[0], whole[-1] + 1)):
        return f"{whole[0]} to {whole[-1]}"
    return listing(whole, 5)
