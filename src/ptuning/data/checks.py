"""What can be wrong, or merely odd, with data before anything is trained on it.

:func:`check` looks at all splits of a task and gives a :class:`Report` of plain dataclasses: what is
there, and findings with a level and the rows they are about. Rendering belongs elsewhere;
:meth:`Report.lines` is the plain-text form.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

from ptuning.data.bad_rows import NAMED
from ptuning.data.columns import Columns
from ptuning.data.dataset import Loaded, load_examples
from ptuning.data.duplicates import repeats
from ptuning.data.examples import Example
from ptuning.data.label_oddities import label_oddities
from ptuning.data.labels import encode_labels, infer_task, number
from ptuning.data.memory import named_splits
from ptuning.data.places import Note, Problem, listing, option
from ptuning.data.splits import same_text, split_off
from ptuning.errors import DataError
from ptuning.kinds import LabelForm
from ptuning.task import Label, Task

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

SAMPLE_ROWS = NAMED
MOST_LABELS_SHOWN = 20  # of more, half as many of the most and of the least frequent are
FEW_EXAMPLES = 5  # a training label with fewer rows can hardly be learnt
IMBALANCE = 0.9  # a majority above this makes accuracy say little
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_MISSING_WORDS = frozenset({"na", "n/a", "nan", "null", "none"})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about the data.

    Args:
        level: ``error`` stops training, ``warning`` spoils its result, ``note`` is worth knowing.
        split: The split it is about.
        message: One sentence or two, with what to do.
        count: How many rows it is about.
        rows: The first of them, as the user counts.
    """

    level: Level
    split: str
    message: str
    count: int = 0
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelCount:
    """How many rows of a split have a label, and their share of all rows."""

    label: Label
    rows: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a split scores without reading a text.

    Args:
        kind: ``majority``: always the training set's most common label (or set of labels), scored by
            accuracy. ``mean``: always its mean, scored by root mean squared error in the data's unit.
        answer: The label, the labels or the mean.
        score: The accuracy or the error.
    """

    kind: Literal["majority", "mean"]
    answer: Any
    score: float


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Quantiles of the inputs' lengths (both texts of a pair together); ``over`` exceed ``limit``."""

    unit: Literal["tokens", "characters"]
    shortest: int
    median: int
    p90: int
    p99: int
    longest: int
    limit: int | None
    over: int


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What a split holds; ``labels`` is empty for regression, ``baseline`` where labels cannot be used."""

    name: str
    rows: int
    left_out: int
    labels: tuple[LabelCount, ...]
    baseline: Baseline | None
    lengths: Lengths | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything :func:`check` found, errors first."""

    columns: Columns | None
    task: Task | None
    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether training can start: there is no error."""
        return all(finding.level != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, ``ok`` included."""
        return {
            "ok": self.ok,
            "columns": asdict(self.columns) if self.columns else None,
            "task": self.task.to_dict() if self.task else None,
            "splits": [asdict(split) for split in self.splits],
            "findings": [{**asdict(finding), "rows": list(finding.rows)} for finding in self.findings],
        }

    def lines(self) -> list[str]:
        """The report as plain text, one line a fact."""
        return list(_lines(self))


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
    fraction: float | None = None,
) -> Report:
    """Look for what would stop, spoil or flatter a training run.

    Args:
        splits: Examples by split; the one called ``train``, or else the first, is what is learnt from.
            Examples without any label are looked at for their texts alone. Or data in any form that
            :func:`load_examples` takes, by split or the training split alone; then ``columns``,
            ``problems`` and ``names`` are found.
        columns: The columns they were read from, for the report.
        problems: The rows of each split that could not be read (``collect_problems`` when loading).
        skipping: Whether training leaves such rows out; otherwise they are errors.
        notes: What was decided while each split was read.
        problem_type, names: See :func:`ptuning.data.infer_task`.
        lengths: Gives inputs' lengths in tokens; without, lengths are in characters.
        limit: The longest input, in tokens; only looked at with ``lengths``.
        fraction: What will be split off for validation, where there is no split of that name.
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
        findings += _too_long(name, examples, sizes)
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
    """The rows of every split, those that cannot be used apart."""
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
    """The task the training split describes, or the error that says why it describes none."""
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
    """The examples whose labels the task knows, and one finding for every label it does not."""
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
    """That no validation rows can be put aside, if that is so."""
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
        message = f"labels that no training row has: {listing(absent)}; they cannot be learnt"
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
            f"{report.baseline.score:.1%} of the rows have the label {report.baseline.answer!r}; accuracy "
            "will say little, compare F1 or the Matthews correlation"
        )
        yield _finding("note", name, message)


# Texts -------------------------------------------------------------------------------------------


def _unreadable(name: str, problems: Sequence[Problem], skipping: bool) -> Iterator[Finding]:
    kinds: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[problem.kind].append(problem)
    for found in kinds.values():
        level: Level = "warning" if skipping else "error"
        said = "; left out" if skipping else f", or leave such rows out with {option('bad_rows', 'skip')}"
        yield _finding(level, name, found[0].message + said, (problem.row for problem in found))


def _texts(example: Example) -> tuple[str, ...]:
    return (example.text,) if example.text_b is None else (example.text, example.text_b)


def _odd_texts(name: str, examples: Sequence[Example]) -> Iterator[Finding]:
    tests: tuple[tuple[Level, str, Callable[[str], object]], ...] = (
        ("error", "a blank text; fill it in, or remove the row", lambda text: not text.strip()),
        (
            "warning",
            "the character U+FFFD, which stands for lost ones; make the file again from its source as UTF-8",
            lambda text: "\ufffd" in text,
        ),
        ("warning", "control characters; remove them", _CONTROL.search),
        (
            "note",
            "a text such as 'NA' or 'null', read as a word; remove the row if it means a missing one",
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
        yield _finding("note", name, "rows whose two texts are the same", same)


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
    name: str, examples: Sequence[Example], sizes: tuple[Lengths, list[int]] | None
) -> Iterator[Finding]:
    if sizes is None or not sizes[0].over or sizes[0].limit is None:
        return
    found, each = sizes
    limit = found.limit or 0
    rows = [example.row for example, size in zip(examples, each, strict=True) if size > limit]
    message = (
        f"{found.over / len(examples):.1%} of the inputs are longer than the limit of {limit} tokens and "
        f"will be cut (the longest has {found.longest}); raise the limit if the backbone allows it, or "
        "split the texts"
    )
    yield _finding("warning", name, message, rows)


# Repeats and leaks -------------------------------------------------------------------------------


def _repeats(name: str, examples: Sequence[Example], task: Task | None) -> Iterator[Finding]:
    """Rows that stand twice, and rows with the same text whose labels contradict each other."""
    found = repeats(examples)
    if found.contradicting:
        scores = task is not None and task.kind.form is LabelForm.NUMBER
        message = found.contradiction if not scores else found.difference
        yield _finding("note" if scores else "warning", name, message, found.contradicting)
    if found.again:
        yield _finding("note", name, found.repetition, found.again)


def _leaks(splits: Mapping[str, Sequence[Example]]) -> Iterator[Finding]:
    """Rows of a later split whose text, but for case and spaces, is in an earlier one."""
    keys = {name: [same_text(example) for example in examples] for name, examples in splits.items()}
    for earlier, later in combinations(splits, 2):
        known = set(keys[earlier])
        pairs = zip(splits[later], keys[later], strict=True)
        rows = [example.row for example, key in pairs if key in known]
        if rows:
            message = (
                f"{len(rows) / len(splits[later]):.1%} of the rows have a text that is also in {earlier}, so "
                f"scores on {later} flatter; remove them from {earlier}"
            )
            yield _finding("warning", later, message, rows)


# Plain text --------------------------------------------------------------------------------------


def _lines(report: Report) -> Iterator[str]:
    if report.columns:
        several = ", ".join(report.columns.labels) or None
        named = {"text": report.columns.text, "text_b": report.columns.text_b, "label": report.columns.label}
        named["labels"] = several
        yield "columns: " + ", ".join(f"{role} = {name}" for role, name in named.items() if name is not None)
    if report.task:
        yield f"task: {report.task.problem_type}, {'two texts' if report.task.pair else 'one text'} a row"
    for split in report.splits:
        left_out = f", {split.left_out} left out" if split.left_out else ""
        yield f"{split.name}: {split.rows} rows{left_out}"
        yield from _label_lines(split.labels)
        if split.baseline:
            score = "accuracy" if split.baseline.kind == "majority" else "RMSE"
            yield f"  always {split.baseline.answer!r}: {score} {split.baseline.score:.4g}"
        if split.lengths:
            size = split.lengths
            limit = f", {size.over} over the limit of {size.limit}" if size.limit is not None else ""
            yield (
                f"  {size.unit}: {size.shortest} to {size.longest}, median {size.median}, "
                f"90% up to {size.p90}, 99% up to {size.p99}{limit}"
            )
    for finding in report.findings:
        rows = ", ".join(map(str, finding.rows)) + (", …" if finding.count > len(finding.rows) else "")
        unit = "row" if finding.count == 1 else "rows"
        about = f" [{finding.count} {unit}: {rows}]" if finding.count else ""
        yield f"{finding.level}: {finding.split}: {finding.message}{about}"


def _label_lines(labels: Sequence[LabelCount]) -> Iterator[str]:
    """Each label with its rows; of many, the most and the least frequent, and how many stand between."""
    lines = [f"  {label.label!r}: {label.rows} ({label.share:.1%})" for label in labels]
    if len(labels) <= MOST_LABELS_SHOWN:
        yield from lines
        return
    half = MOST_LABELS_SHOWN // 2
    order = sorted(range(len(labels)), key=lambda place: (-labels[place].rows, place))
    between = [labels[place].rows for place in order[half:-half]]
    yield f"  {len(labels)} labels; the {half} most frequent:"
    yield from (f"  {lines[place]}" for place in order[:half])
    yield f"  {len(between)} others with {between[-1]} to {between[0]} rows, then the {half} least frequent:"
    yield from (f"  {lines[place]}" for place in order[-half:])
