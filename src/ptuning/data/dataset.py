"""Opens a source, finds its columns and reads its examples: all at once (training) or one at a time
(prediction).

This combines :mod:`tables`, :mod:`columns`, :mod:`examples` and :mod:`label_forms`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Unpack

from ptuning.data.bad_rows import LeftOut, none_left, refusal
from ptuning.data.columns import Columns, UnclearColumns, find_columns
from ptuning.data.duplicates import without_repeats
from ptuning.data.examples import Example, as_examples
from ptuning.data.label_forms import read_labels
from ptuning.data.labels import are_scores
from ptuning.data.memory import in_memory
from ptuning.data.options import ReadOptions
from ptuning.data.peek import peek
from ptuning.data.places import Note, Origin, Problem, counted, listing, option
from ptuning.data.tables import Format, Source, Table, open_table
from ptuning.errors import DataError
from ptuning.kinds import LabelForm, kind_named
from ptuning.task import Label, Task


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """All examples of a source.

    Args:
        origin: The name of the source in messages.
        columns: The columns that were read.
        examples: The examples, in the order of the source.
        label_names: All labels in order, if the source defines them (a ``ClassLabel`` column, columns or rows
            of 0 and 1), for :func:`ptuning.data.infer_task`.
        problems: The rows that were left out because they cannot be used.
        notes: What was detected, changed or left out while reading, for the user.
    """

    origin: Origin
    columns: Columns
    examples: list[Example]
    label_names: tuple[Label, ...] | None = None
    problems: tuple[Problem, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The examples of a source, one at a time; ``examples`` can be read once.

    Args:
        left_out: The bad rows so far, with ``bad_rows="skip"``.
        notes: What was detected about the source, for the user; more may be added while rows are read.
    """

    origin: Origin
    columns: Columns
    examples: Iterator[Example]
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: Sequence[str] = ()


def load_examples(
    source: Source,
    *,
    format: Format | None = None,
    need_label: bool = True,
    pair: bool | None = None,
    problem_type: str = "auto",
    task: Task | None = None,
    collect_problems: bool = False,
    **options: Unpack[ReadOptions],
) -> Loaded:
    """Read all examples of a source.

    Args:
        source, format: See :func:`ptuning.data.open_table`.
        need_label: Whether every row must have a label.
        pair: Whether the rows must (or must not) have two texts, if a trained task requires it.
        problem_type: The kind of task, which decides how lists and numbers in text are read.
        task: The task, if it is known from a trained model or from the training rows.
        collect_problems: Leave out bad rows and report them whatever ``bad_rows`` is, even if no row is left.
        options: How to read the source. ``text``, ``text_b`` and ``label`` name its columns (see
            :func:`ptuning.data.find_columns`), ``label_separator`` splits labels (:func:`as_examples`),
            ``no_label`` lists the labels that mean "no label", ``bad_rows`` and ``duplicates`` say what to do
            with rows that cannot be used or have the same text; ``separator``, ``encoding``, ``header`` and
            ``quoting`` say how a file is written (:func:`ptuning.data.open_table`).

    Raises:
        DataError: The source, a column or rows cannot be used; one error names up to twenty rows.
    """
    problems: list[Problem] = []
    unlabelled: list[int] = []
    table, columns = _open(source, format, need_label, pair, task, options, problems)
    found = list(
        as_examples(
            table.rows,
            columns,
            table.origin,
            need_label,
            label_separator=options.get("label_separator"),
            no_label=_several(options.get("no_label")),
            unlabelled=unlabelled,
            problems=problems,
        )
    )
    names: tuple[Label, ...] | None = None
    if columns.label is not None:
        names = table.label_names.get(columns.label)
    notes = [*map(Note, table.notes), *(Note(f"{table.origin.name}: {note}") for note in columns.notes)]
    if unlabelled:
        given = f"data.no_label: {', '.join(_several(options.get('no_label')))}"
        message = f"{table.origin.name}: left out {counted(len(unlabelled))} without a label ({given})"
        notes.append(Note(message, rows=tuple(unlabelled)))
    if columns.labels:
        names = columns.labels
    elif need_label:
        read = read_labels(found, problem_type=problem_type, names=names, task=task, column=columns.label)
        found, names = read.examples, read.names
        notes += read.notes
        problems += read.problems
    problems.sort(key=lambda problem: problem.row)
    if not collect_problems and problems:
        left_out = LeftOut()
        left_out.add(problems)
        if not found and len(problems) > 1:
            raise none_left(table.origin, left_out)
        if not found or options.get("bad_rows", "error") == "error":
            raise refusal(table.origin, problems, len(found))
        if (note := left_out.note(table.origin, len(found))) is not None:
            notes.append(note)
    if options.get("duplicates", "keep") == "drop":
        kind = problem_type if task is None else task.problem_type
        scores = are_scores(found) if kind == "auto" else kind_named(kind).form is LabelForm.NUMBER
        found, dropped = without_repeats(found, table.origin, scores=scores)
        notes += [dropped] if dropped is not None else []
    return Loaded(
        origin=table.origin,
        columns=columns,
        examples=found,
        label_names=names,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def stream_examples(
    source: Source,
    *,
    format: Format | None = None,
    pair: bool | None = None,
    keep: Sequence[str] = (),
    task_column: str | None = None,
    **options: Unpack[ReadOptions],
) -> Stream:
    """Open a source for prediction. Its columns are checked now, its rows when they are read.

    Arguments and errors are those of :func:`load_examples`; labels are not read. With ``bad_rows="error"``,
    the first bad row raises after the rows before it; with ``"skip"``, bad rows are counted in
    :attr:`Stream.left_out`.

    Args:
        keep: Additional columns to keep in :attr:`Example.kept`; ``"*"`` means all columns.
        task_column: The column with the name of each row's task, if rows of different tasks are mixed. Each
            row then has one text or two: a second text that is missing, null or blank is none.
    """
    skip = options.get("bad_rows", "error") == "skip"
    problems: list[Problem] | None = [] if skip else None
    given: ReadOptions = {**options, "label": None}
    table, columns = _open(source, format, False, pair, None, given, problems, task_column)
    table.notes.extend(f"{table.origin.name}: {note}" for note in columns.notes)
    found = as_examples(
        table.rows, columns, table.origin, need_label=False, keep=_kept(keep, table), problems=problems
    )
    left_out = LeftOut()
    return Stream(
        origin=table.origin,
        columns=columns,
        examples=found if problems is None else _counting(found, problems, left_out),
        left_out=left_out,
        notes=table.notes,
    )


def _counting(examples: Iterator[Example], problems: list[Problem], left_out: LeftOut) -> Iterator[Example]:
    """``examples``, while the ``problems`` between them are counted and forgotten."""
    for example in examples:
        _move(problems, left_out)
        yield example
    _move(problems, left_out)


def _move(problems: list[Problem], left_out: LeftOut) -> None:
    left_out.add(problems)
    problems.clear()


def _several(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """A value, values separated by commas, or a list, as a tuple."""
    if isinstance(given, str):
        return tuple(part.strip() for part in given.split(","))
    return tuple(given or ())


def _kept(names: Sequence[str], table: Table) -> list[str]:
    """The columns to keep, without duplicates."""
    for name in names:
        if name != "*" and name not in table.columns:
            raise DataError(
                f"{table.origin.name}: no column {name!r} to keep",
                expected=f"one of {listing(table.columns, 40)}",
            )
    return list(dict.fromkeys(each for name in names for each in (table.columns if name == "*" else [name])))


def _open(
    source: Source,
    format: Format | None,
    need_label: bool,
    pair: bool | None,
    task: Task | None,
    options: ReadOptions,
    problems: list[Problem] | None,
    task_column: str | None = None,
) -> tuple[Table, Columns]:
    label = options.get("label")
    given = (options.get("text"), options.get("text_b"), task_column, label, *_several(label))
    table = open_table(
        in_memory(source, labelled=need_label),
        format=format,
        separator=options.get("separator"),
        encoding=options.get("encoding"),
        header=options.get("header", "auto"),
        quoting=options.get("quoting", "auto"),
        named=[each for each in given if isinstance(each, str)],
        problems=problems,
    )
    name = table.origin.name
    notes: tuple[str, ...] = ()
    if label is None and need_label and task is not None and _are_columns(task, table.columns):
        label = [str(each) for each in task.labels]
        notes = (f"labels: the columns {listing(label, 20)}, as in training",)
    if task_column is not None and task_column not in table.columns:
        raise DataError(
            f"{name}: no column {task_column!r} for task_column",
            expected=f"one of {listing(table.columns, 40)}",
        )
    find = partial(
        find_columns,
        [each for each in table.columns if each != task_column],
        options.get("text"),
        options.get("text_b"),
        label,
        need_label,
        source_name=name,
    )
    try:
        columns = find()
    except UnclearColumns:  # decide by the values
        first, rows = peek(table.rows)
        table = replace(table, rows=rows)
        known = () if task is None else task.labels
        try:
            columns = find(rows=[values for _, values in first], known_labels=known)
        except DataError as error:
            raise _with_notes(error, table) from None
    except DataError as error:
        raise _with_notes(error, table) from None
    columns = replace(columns, task=task_column, notes=(*columns.notes, *notes))
    if pair is not None and columns.pair != pair:
        both = f"both with {option('text')} and {option('text_b')}"
        raise DataError(
            f"{name}, text",
            got=f"{columns.text!r} and {columns.text_b!r}" if columns.pair else f"only {columns.text!r}",
            expected=f"{'two texts' if pair else 'one text'} per row, as in training",
            remedy=f"name {both if pair else 'it with ' + option('text')}, of {listing(table.columns, 40)}",
        )
    return table, columns


def _with_notes(error: DataError, table: Table) -> DataError:
    """An error about columns, with what was detected about the file."""
    notes = "; ".join(note.removeprefix(f"{table.origin.name}: ") for note in table.notes)
    if not notes:
        return error
    remedy = f"{error.remedy or ''} (the file: {notes})".strip()
    return DataError(error.problem, got=error.got, expected=error.expected, remedy=remedy)


def _are_columns(task: Task, columns: Sequence[str]) -> bool:
    """Whether the labels of a multi-label task are columns of their own."""
    return task.kind.form is LabelForm.SEVERAL and all(label in columns for label in task.labels)
