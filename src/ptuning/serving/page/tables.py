"""Rows that are pasted or dropped on the page, and their answers as a file.

Rows are read by :mod:`ptuning.data`, as ``ptuning predict`` reads them, and written as it writes them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath

from ptuning.data import Example, stream_examples
from ptuning.data.columns import TEXT_NAMES, UnclearColumns
from ptuning.data.containers import compression_of, is_zip
from ptuning.data.tables import Format
from ptuning.errors import DataError
from ptuning.inference.writing import writer
from ptuning.serving.page.views import prediction
from ptuning.serving.rows import Refusal, RowAnswer
from ptuning.task import Task

FORMATS: Mapping[str, Format] = {
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "json": "jsonl",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "txt": "text",
}
"""The formats by the ending of the file's name."""
NAMES: Mapping[Format, str] = {
    "text": "one text per line",
    "csv": "CSV",
    "tsv": "TSV, as pasted from a spreadsheet",
    "jsonl": "JSON Lines",
}


@dataclass(frozen=True, kw_only=True)
class RowsRead:
    """Rows to answer.

    Attributes:
        notes: What was detected and what was left out, one sentence each.
    """

    examples: Sequence[Example]
    form: Format
    notes: Sequence[str]


class _Upload(io.BytesIO):
    """Bytes with a name for messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def read_rows(
    content: bytes,
    name: str = "",
    *,
    form: Format | None = None,
    pair: bool,
    text: str | None = None,
    text_b: str | None = None,
    limit: int,
) -> RowsRead:
    """The rows of a file, or of pasted text.

    Args:
        content: The bytes of the file.
        name: Its name; empty for pasted text.
        form: The format; by the name or the content if ``None``.
        pair: Whether the task needs two texts.
        text, text_b: The columns, if their names do not say.
        limit: Maximum rows.

    Raises:
        DataError: rows that cannot be read, or more than ``limit``.
    """
    called = name or "the pasted rows"
    if compression_of(content[:16]) or is_zip(content[:16]):
        raise DataError(f"{called}: a compressed file, an archive or a spreadsheet", remedy="save it as CSV")
    found = form or FORMATS.get(PurePath(name).suffix[1:].lower()) or detected(content, pair=pair)
    try:
        stream = stream_examples(
            _Upload(content, called),
            format=found,
            pair=pair,
            text=text or None,
            text_b=text_b or None,
            keep=["*"],
            bad_rows="skip",
        )
        examples = list(islice(stream.examples, limit + 1))
    except UnclearColumns as error:
        raise DataError(
            error.problem, got=error.got, remedy="write the name of the column under “Columns”"
        ) from None
    if len(examples) > limit:
        raise DataError(
            f"{called}: more than {limit:,} rows",
            remedy="send fewer at once, or use ptuning predict or /v1/rows",
        )
    notes = list(stream.notes)
    if (left_out := stream.left_out.note(stream.origin, len(examples))) is not None:
        notes.append(left_out)
    if not examples:
        raise DataError(f"{called}: no row can be used", got="; ".join(notes) or None)
    return RowsRead(examples=examples, form=found, notes=notes)


def detected(content: bytes, *, pair: bool) -> Format:
    """The format of pasted text or of a file whose name does not say.

    Text with commas is CSV only if its first line has the name of a text column: a comma alone is part of
    most sentences.
    """
    lines = [line for line in content[: 1 << 20].decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines:
        return "text"
    if lines[0].lstrip("\ufeff \t").startswith(("{", "[{")):
        return "jsonl"
    if (tabs := lines[0].count("\t")) and all(line.count("\t") == tabs for line in lines[:100]):
        return "tsv"
    header = {cell.strip().casefold() for cell in next(csv.reader(lines[:1]), [])}
    known = {*TEXT_NAMES, *(name for names in TEXT_NAMES.values() for name in names)}
    if header & known and (len(header) > 1 or len(lines) > 1):
        return "csv"
    return "csv" if pair else "text"


def answers_csv(
    task: Task, examples: Sequence[Example], answers: Sequence[RowAnswer | Refusal], *, keep: bool
) -> str:
    """What ``ptuning predict --format csv`` writes for the rows that were answered.

    Args:
        keep: Whether to copy the columns of the input, as ``--keep '*'`` does.
    """
    stream = io.StringIO()
    write = writer(stream, "csv", task)
    for example, answer in zip(examples, answers, strict=True):
        if isinstance(answer, RowAnswer):
            write(prediction(example.row, answer, dict(example.kept or {}) if keep else None))
    return stream.getvalue()
