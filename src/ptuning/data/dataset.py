"""Open a source, find its columns and read its examples: all of them, or one at a time.

This ties :mod:`tables`, :mod:`columns` and :mod:`examples` together; training loads, prediction streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

from ptuning.data.columns import Columns, find_columns
from ptuning.data.examples import Example, as_examples
from ptuning.data.memory import in_memory
from ptuning.data.options import ReadOptions
from ptuning.data.places import Origin, Problem, listing
from ptuning.data.tables import Format, Source, Table, open_table
from ptuning.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Every example of a source.

    Args:
        origin: What errors call the source.
        columns: The columns that were read.
        examples: The examples, in the source's order.
        label_names: The names of a ``ClassLabel`` column in order, for :func:`ptuning.data.infer_task`.
        problems: The rows that were left out, if they were to be collected.
        notes: What was detected about the source, a sentence each, for the user to read.
    """

    origin: Origin
    columns: Columns
    examples: list[Example]
    label_names: tuple[str, ...] | None = None
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The examples of a source, one at a time; they can be read once, and ``notes`` may grow meanwhile."""

    origin: Origin
    columns: Columns
    examples: Iterator[Example]
    notes: Sequence[str] = ()


def load_examples(
    source: Source,
    *,
    format: Format | None = None,
    need_label: bool = True,
    pair: bool | None = None,
    collect_problems: bool = False,
    **options: Unpack[ReadOptions],
) -> Loaded:
    """Read every example of a source.

    Args:
        source, format: See :func:`ptuning.data.open_table`.
        need_label: Whether every row has to have a label.
        pair: Whether the rows must (or must not) have two texts, where a trained task says so.
        collect_problems: Leave bad rows out and report them, instead of raising at the first.
        options: How the source is read: ``text``, ``text_b`` and ``label`` name its columns (see
            :func:`ptuning.data.find_columns`), ``label_separator`` splits labels (:func:`as_examples`);
            ``separator``, ``encoding``, ``header`` and ``quoting`` say how a file is written
            (:func:`ptuning.data.open_table`).

    Raises:
        DataError: The source, a column or a row cannot be used.
    """
    problems: list[Problem] = []
    table, columns = _open(source, format, need_label, pair, options, problems if collect_problems else None)
    found = as_examples(
        table.rows,
        columns,
        table.origin,
        need_label,
        label_separator=options.get("label_separator"),
        problems=problems if collect_problems else None,
    )
    examples = list(found)
    return Loaded(
        origin=table.origin,
        columns=columns,
        examples=examples,
        label_names=table.label_names.get(columns.label) if columns.label is not None else None,
        problems=tuple(sorted(problems, key=lambda problem: problem.row)),
        notes=tuple(table.notes),
    )


def stream_examples(
    source: Source,
    *,
    format: Format | None = None,
    pair: bool | None = None,
    keep: Sequence[str] = (),
    **options: Unpack[ReadOptions],
) -> Stream:
    """Open a source for prediction: its columns are checked now, its rows as they are taken.

    Args and errors are those of :func:`load_examples`; labels are not read.

    Args:
        keep: Columns that each example carries along (:attr:`Example.kept`); ``"*"`` stands for all of them.
    """
    table, columns = _open(source, format, False, pair, {**options, "label": None})
    kept = _kept(keep, table)
    found = as_examples(table.rows, columns, table.origin, need_label=False, keep=kept)
    return Stream(origin=table.origin, columns=columns, examples=found, notes=table.notes)


def _kept(names: Sequence[str], table: Table) -> list[str]:
    """The columns that are to be carried along, each once."""
    for name in names:
        if name != "*" and name not in table.columns:
            raise DataError(
                f"{table.origin.name}: no column {name!r} to keep, expected one of "
                f"{listing(table.columns, 40)}"
            )
    return list(dict.fromkeys(each for name in names for each in (table.columns if name == "*" else [name])))


def _open(
    source: Source,
    format: Format | None,
    need_label: bool,
    pair: bool | None,
    options: ReadOptions,
    problems: list[Problem] | None = None,
) -> tuple[Table, Columns]:
    table = open_table(
        in_memory(source, labelled=need_label),
        format=format,
        separator=options.get("separator"),
        encoding=options.get("encoding"),
        header=options.get("header", "auto"),
        quoting=options.get("quoting", "auto"),
        named=[name for name in (options.get("text"), options.get("text_b"), options.get("label")) if name],
        problems=problems,
    )
    name = table.origin.name
    try:
        columns = find_columns(
            table.columns,
            options.get("text"),
            options.get("text_b"),
            options.get("label"),
            need_label,
            source_name=name,
        )
    except DataError as error:
        if not table.notes:
            raise
        said = "; ".join(note.removeprefix(f"{name}: ") for note in table.notes)
        raise DataError(f"{error} (the file: {said})") from None
    if pair is not None and columns.pair != pair:
        got = f"{columns.text!r} and {columns.text_b!r}" if columns.pair else f"{columns.text!r} alone"
        raise DataError(
            f"{name}: the text is {got}, expected {'two texts' if pair else 'one text'} in a row, as in "
            f"training; name {'both with text and text_b' if pair else 'it with text'}, of "
            f"{listing(table.columns, 40)}"
        )
    return table, columns
