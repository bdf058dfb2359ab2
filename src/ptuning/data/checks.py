"""Checks of a data set before training.

:func:`check` inspects all splits of a task and returns a :class:`~ptuning.data.report.Report` with statistics
and findings.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from ptuning.data.bad_rows import NAMED
from ptuning.data.columns import Columns
from ptuning.data.dataset import Loaded, load_examples
from ptuning.data.duplicates import repeats
from ptuning.data.examples import Example
from ptuning.data.label_oddities import label_oddities
from ptuning.data.labels import encode_labels, infer_task, number
from ptuning.data.memory import named_splits
from ptuning.data.places import Note, Problem, listing, option
from ptuning.data.report import LEVELS, Baseline, Finding, LabelCount, Lengths, Level, Report, SplitReport
from ptuning.data.splits import same_text, split_off
from ptuning.errors import DataError
from ptuning.kinds import LabelForm
from ptuning.task import Label, Task

SAMPLE_ROWS = NAMED
FEW_EXAMPLES = 5  # a label with fewer training rows can hardly be learned
IMBALANCE = 0.9  # above this share of one label, accuracy is not informative
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_MISSING_WORDS = frozenset({"na", "n/a", "nan", "null", "none"})


def check(
    splits: Any,
    *,
    columns: Columns | None = None,
    problems: Mapping[str, Sequence[Problem]] | None = None,
    skipping: bool = False,
    notes: Mapping[str, Sequence[Note]] | None = None,
    problem_type: str = "auto",
    names: Sequence[Label] | None = None,
    lengths: Callable[[Sequence[Example]], list[int]] | None = None,
    limit: int | None = None,
    windows: bool = False,
    fraction: float | None = None,
) -> Report:
    """Check data for problems that would prevent training, harm its result, or make it look too good.

    Args:
        splits: Examples by split; ``train``, or else the first split, is for training. Without labels, only
            the texts are checked. Or data in any form that :func:`load_examples` accepts, by split or only
            the training split; then ``columns``, ``problems`` and ``names`` are found automatically.
        columns: The columns that were read, for the report.
        problems: The rows of each split that could not be read (``collect_problems`` when loading).
        skipping: Whether training leaves out such rows; otherwise they are errors.
        notes: The notes from reading each split.
        problem_type, names: See :func:`ptuning.data.infer_task`.
        lengths: A function for the lengths of inputs in tokens; if ``None``, lengths are in characters.
        limit: The maximum input length in tokens; only used with ``lengths``.
        windows: Whether longer inputs are read in windows; otherwise they are truncated.
        fraction: The share that will be split off for validation if there is no validation split.
    """
    if not _are_examples(splits):
        loaded = _load(splits)
        splits = {name: split.examples for name, split in loaded.items()}
        problems = {name: split.problems for name, split in loaded.items()}
        columns, names = loaded["train"].columns, loaded["train"].label_names
        notes = {name: split.notes for name, split in loaded.items()}
    problems, notes = problems or {}, notes or {}
    train = "train" if "train" in splits else next(iter(splits), "train")
    task, findings = _task(splits.get(train, ()), train, problem_type, names)
    reports: list[SplitReport] = []
    for name, examples in splits.items():
        left_out = problems.get(name, ())
        sizes = _lengths(examples, lengths, limit if lengths else None)
        findings += [_finding(note.level, name, note, note.rows) for note in notes.get(name, ())]
        findings += [*_unreadable(name, left_out, skipping), *_odd_texts(name, examples)]
        findings += _repeats(name, examples, task)
        findings += _too_long(name, examples, sizes, windows)
        usable, unusable = _usable(name, examples, task)
        findings += unusable
        if name == train and "validation" not in splits and fraction is not None:
            findings += _not_split(name, usable, task, fraction)
        reports.append(
            SplitReport(
                name=name,
                rows=len(examples),
                left_out=len(left_out),
                labels=_counts(usable, task),
                baseline=_baseline(usable, splits[train], task),
                lengths=sizes[0] if sizes else None,
            )
        )
    for note in label_oddities(splits.get(train, ()), task, columns.label if columns is not None else None):
        findings.append(_finding(note.level, train, note, note.rows))
    findings += _label_oddities(train, next((one for one in reports if one.name == train), None), task)
    findings += _leaks(splits)
    ordered = sorted(findings, key=lambda finding: LEVELS.index(finding.level))
    return Report(columns=columns, task=task, splits=tuple(reports), findings=tuple(ordered))


def _are_examples(splits: Any) -> bool:
    if not isinstance(splits, Mapping):
        return False
    lists = all(isinstance(split, list | tuple) for split in splits.values())
    return lists and all(isinstance(example, Example) for split in splits.values() for example in split[:1])


def _load(data: Any) -> dict[str, Loaded]:
    """The rows of every split, with bad rows collected separately."""
    loaded: dict[str, Loaded] = {}
    for name, source in named_splits(data).items():
        pair = loaded["train"].columns.pair if "train" in loaded else None
        loaded[name] = load_examples(source, pair=pair, collect_problems=True)
    return loaded


def _finding(level: Level, split: str, message: str, rows: Iterable[int] = ()) -> Finding:
    found = tuple(rows)
    return Finding(level=level, split=split, message=message, count=len(found), rows=found[:SAMPLE_ROWS])


# Labels ------------------------------------------------------------------------------------------


def _has_labels(examples: Sequence[Example]) -> bool:
    return any(example.label is not None for example in examples)


def _task(
    train: Sequence[Example],
    name: str,
    problem_type: str,
    names: Sequence[Label] | None,
) -> tuple[Task | None, list[Finding]]:
    """The task inferred from the training split, or a finding with the reason why it cannot be inferred."""
    if not train:
        message = "no usable rows, expected at least two; check the file and its columns"
        return None, [_finding("error", name, message)]
    if not _has_labels(train):
        return None, []
    try:
        return infer_task(train, problem_type=problem_type, names=names), []
    except DataError as error:
        return None, [_finding("error", name, str(error))]


def _usable(
    name: str, examples: Sequence[Example], task: Task | None
) -> tuple[Sequence[Example], list[Finding]]:
    """The examples with known labels, and one finding for each unknown label."""
    if task is None or not _has_labels(examples):
        return (), []
    try:
        encode_labels(examples, task)
    except DataError:
        pass
    else:
        return examples, []
    usable: list[Example] = []
    bad: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for example in examples:
        try:
            encode_labels([example], task)
        except DataError as error:
            bad[repr(example.label)].append((example.row, str(error)))
        else:
            usable.append(example)
    findings = [_finding("error", name, found[0][1], (row for row, _ in found)) for found in bad.values()]
    return usable, findings


def _not_split(name: str, examples: Sequence[Example], task: Task | None, fraction: float) -> list[Finding]:
    """A finding if no validation rows can be split off."""
    if task is None or not examples:
        return []
    try:
        split_off(examples, task, fraction=fraction, seed=0)
    except DataError as error:
        return [_finding("error", name, str(error))]
    return []


def _counts(examples: Sequence[Example], task: Task | None) -> tuple[LabelCount, ...]:
    if task is None or not examples:
        return ()
    counts = Counter(label for example in examples for label in _labels(example))
    total = len(examples)
    return tuple(LabelCount(label=one, rows=counts[one], share=counts[one] / total) for one in task.labels)


def _labels(example: Example) -> tuple[Label, ...]:
    label: Any = example.label
    return tuple(label) if isinstance(label, tuple | list) else (label,)


def _baseline(examples: Sequence[Example], train: Sequence[Example], task: Task | None) -> Baseline | None:
    if task is None or not examples:
        return None
    if task.kind.form is LabelForm.NUMBER:
        known = [value for example in train if (value := number(example.label)) is not None]
        mean = math.fsum(known) / len(known)
        targets: list[Any] = encode_labels(examples, task)
        score = math.sqrt(math.fsum((target - mean) ** 2 for target in targets) / len(targets))
        return Baseline(kind="mean", answer=mean, score=score)
    answers = Counter(_answer(example) for example in train)
    answer = min(answers, key=lambda one: (-answers[one], [str(label) for label in one]))
    hits = sum(_answer(example) == answer for example in examples)
    several = task.kind.form is LabelForm.SEVERAL
    return Baseline(
        kind="majority", answer=list(answer) if several else answer[0], score=hits / len(examples)
    )


def _answer(example: Example) -> tuple[Label, ...]:
    return tuple(sorted(_labels(example), key=str))


def _label_oddities(name: str, report: SplitReport | None, task: Task | None) -> Iterator[Finding]:
    """Labels of the training split that are absent, rare or too common."""
    if report is None or task is None or not report.labels:
        return
    absent = [one.label for one in report.labels if not one.rows]
    if absent:
        message = f"labels without training rows: {listing(absent)}; they cannot be learned"
        yield _finding("warning", name, message)
    rare = [one.label for one in report.labels if 0 < one.rows < FEW_EXAMPLES]
    if rare:
        message = (
            f"labels with fewer than {FEW_EXAMPLES} training rows: {listing(rare)}; add rows, or merge them "
            "with another label"
        )
        yield _finding("warning", name, message)
    if report.baseline and report.baseline.score > IMBALANCE:
        message = (
            f"{report.baseline.score:.1%} of the rows have the label {report.baseline.answer!r}; accuracy is "
            "not informative, compare F1 or the Matthews correlation"
        )
        yield _finding("note", name, message)


# Texts -------------------------------------------------------------------------------------------


def _unreadable(name: str, problems: Sequence[Problem], skipping: bool) -> Iterator[Finding]:
    kinds: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[problem.kind].append(problem)
    for found in kinds.values():
        level: Level = "warning" if skipping else "error"
        end = "; left out" if skipping else f", or leave such rows out with {option('bad_rows', 'skip')}"
        yield _finding(level, name, found[0].message + end, (problem.row for problem in found))


def _texts(example: Example) -> tuple[str, ...]:
    return (example.text,) if example.text_b is None else (example.text, example.text_b)


def _odd_texts(name: str, examples: Sequence[Example]) -> Iterator[Finding]:
    tests: tuple[tuple[Level, str, Callable[[str], object]], ...] = (
        ("error", "a blank text; fill it in, or remove the row", lambda text: not text.strip()),
        (
            "warning",
            "the character U+FFFD, which replaces lost characters; write the file again from its source as "
            "UTF-8",
            lambda text: "\ufffd" in text,
        ),
        ("warning", "control characters; remove them", _CONTROL.search),
        (
            "note",
            "a text such as 'NA' or 'null', which is read as a word; remove the row if it means a "
            "missing text",
            lambda text: len(text) < 9 and text.strip().casefold() in _MISSING_WORDS,
        ),
    )
    for level, what, test in tests:
        rows = [example.row for example in examples if any(map(test, _texts(example)))]
        if rows:
            yield _finding(level, name, f"rows with {what}", rows)
    if len({example.text_b is None for example in examples}) > 1:
        rows = [example.row for example in examples if example.text_b is None]
        yield _finding("error", name, "rows with one text among rows with two; give every row both", rows)
    same = [example.row for example in examples if example.text_b == example.text]
    if same:
        yield _finding("note", name, "rows with two equal texts", same)


def _lengths(
    examples: Sequence[Example], measure: Callable[[Sequence[Example]], list[int]] | None, limit: int | None
) -> tuple[Lengths, list[int]] | None:
    if not examples:
        return None
    sizes = measure(examples) if measure else [sum(map(len, _texts(example))) for example in examples]
    ranked = sorted(sizes)

    def quantile(share: float) -> int:
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

    over = sum(size > limit for size in sizes) if limit is not None else 0
    found = Lengths(
        unit="tokens" if measure else "characters",
        shortest=ranked[0],
        median=int(statistics.median_low(ranked)),
        p90=quantile(0.9),
        p99=quantile(0.99),
        longest=ranked[-1],
        limit=limit,
        over=over,
    )
    return found, sizes


def _too_long(
    name: str, examples: Sequence[Example], sizes: tuple[Lengths, list[int]] | None, windows: bool
) -> Iterator[Finding]:
    if sizes is None or not sizes[0].over or sizes[0].limit is None:
        return
    found, each = sizes
    limit = found.limit or 0
    rows = [example.row for example, size in zip(examples, each, strict=True) if size > limit]
    message = (
        f"{found.over / len(examples):.1%} of the inputs are longer than the limit of {limit} tokens and "
        f"will be {'read in windows' if windows else 'truncated'} (the longest has {found.longest})"
    )
    if windows:
        yield _finding("note", name, message, rows)
        return
    remedy = "raise the limit if the backbone allows it, or read them in windows (data.too_long: windows)"
    yield _finding("warning", name, f"{message}; {remedy}", rows)


# Repeats and leaks -------------------------------------------------------------------------------


def _repeats(name: str, examples: Sequence[Example], task: Task | None) -> Iterator[Finding]:
    """Findings about repeated rows, and rows with the same text and contradicting labels."""
    found = repeats(examples)
    if found.contradicting:
        scores = task is not None and task.kind.form is LabelForm.NUMBER
        message = found.contradiction if not scores else found.difference
        yield _finding("note" if scores else "warning", name, message, found.contradicting)
    if found.again:
        yield _finding("note", name, found.repetition, found.again)


def _leaks(splits: Mapping[str, Sequence[Example]]) -> Iterator[Finding]:
    """Findings about texts of a later split that are also in an earlier one, ignoring case and spaces."""
    keys = {name: [same_text(example) for example in examples] for name, examples in splits.items()}
    for earlier, later in combinations(splits, 2):
        known = set(keys[earlier])
        pairs = zip(splits[later], keys[later], strict=True)
        rows = [example.row for example, key in pairs if key in known]
        if rows:
            message = (
                f"{len(rows) / len(splits[later]):.1%} of the rows have a text that is also in {earlier}, so "
                f"scores on {later} are too high; remove them from {earlier}"
            )
            yield _finding("warning", later, message, rows)
