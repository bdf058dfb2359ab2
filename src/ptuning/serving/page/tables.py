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
from ptuning.data.columns import TEXT_NAMES
from ptuning.data.containers import compression_of, is_zip
from ptuning.data.reading import Header
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
HEADERS: Mapping[Header, str] = {"auto": "detect", "first": "the names of the columns", "none": "a row"}


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
    header: Header = "auto",
    limit: int,
) -> RowsRead:
    """The rows of a file, or of pasted text.

    Args:
        content: The bytes of the file.
        name: Its name; empty for pasted text.
        form: The format; by the name or the content if ``None``.
        pair: Whether the task needs two texts.
        text, text_b: The columns, if their names do not say.
        header: Whether the first row has the names of the columns.
        limit: Maximum rows.

    Raises:
        DataError: rows that cannot be read, or more than ``limit``.
    """
    called = name or "the pasted rows"
    if compression_of(content[:16]) or is_zip(content[:16]):
        raise DataError(f"{called}: a compressed file, an archive or a spreadsheet", remedy="save it as CSV")
    found = form or FORMATS.get(PurePath(name).suffix[1:].lower()) or detected(content, pair=pair)
    if pair and found in ("csv", "tsv") and header == "auto" and not (text or text_b):
        width, named = _first_row(content, found)
        if width == 2 and not named:  # two columns as pasted from a spreadsheet
            header, text, text_b = "none", "1", "2"
    try:
        stream = stream_examples(
            _Upload(content, called),
            format=found,
            pair=pair,
            text=text or None,
            text_b=text_b or None,
            header=header,
            keep=["*"],
            bad_rows="skip",
        )
        examples = list(islice(stream.examples, limit + 1))
    except DataError as error:
        raise DataError(
            error.problem, got=error.got, expected=error.expected, remedy=_for_the_page(error.remedy)
        ) from None
    if len(examples) > limit:
        raise DataError(
            f"{called}: more than {limit:,} rows",
            remedy="send fewer at once, or use ptuning predict or /v1/rows",
        )
    notes = [note for note in map(_without_options, stream.notes) if note]
    if (left_out := stream.left_out.note(stream.origin, len(examples))) is not None:
        notes.append(str(left_out))
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
    width, named = _first_row(content, "csv")
    return "csv" if pair or (named and (width > 1 or len(lines) > 1)) else "text"


def _first_row(content: bytes, form: Format) -> tuple[int, bool]:
    """How many cells it has, and whether one of them is the name of a text column."""
    text = content[: 1 << 20].decode("utf-8-sig", "replace").lstrip("\r\n")
    cells = next(csv.reader(text.splitlines()[:1], delimiter="\t" if form == "tsv" else ","), [])
    known = {*TEXT_NAMES, *(name for names in TEXT_NAMES.values() for name in names)}
    return len(cells), not known.isdisjoint(cell.strip().casefold() for cell in cells)


def _without_options(words: str) -> str:
    """Words of ``ptuning predict`` without the clauses about its options, which the page does not have."""
    return "; ".join(clause for clause in words.split("; ") if "--data" not in clause)


def _for_the_page(remedy: str | None) -> str | None:
    if remedy is None or "--data" not in remedy:
        return remedy
    return "; ".join(filter(None, (_without_options(remedy), "see “Format and columns” below the rows")))


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
