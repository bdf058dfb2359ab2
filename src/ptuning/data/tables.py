"""From a file, a stream, a Hub data set or rows in memory to numbered rows, one at a time.

Values are not guessed: a CSV cell is its text (``NA``, ``null`` and ``nan`` are words), a JSON value keeps
its type. How a file is written is detected only if it is certain, is reported (:attr:`Table.notes`), and can
be set by options. Memory is bounded: one row of a text file, one batch of a Parquet file, or the entire file
for JSON that is a single object.

A source may be:

* a path: CSV or TSV, JSON of any form, ``.txt`` (one text per line, or fastText's labels and texts), each
  also compressed or alone in a zip archive; Parquet, Arrow or Excel;
* a folder with one sub-folder of ``.txt`` files per label, or with parts of one table;
* ``"-"`` (standard input) or any binary stream, with ``format``;
* ``hf:NAME[/CONFIG][:SPLIT]``, a data set on the Hub: see :mod:`ptuning.data.hub`;
* a ``datasets.Dataset``, or any iterable of mappings.

The readers are :mod:`separated`, :mod:`json_files`, :mod:`columnar`, :mod:`spreadsheet` and :mod:`hub`, on
top of :mod:`cells`, :mod:`text_files`, :mod:`encodings` and :mod:`containers`.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

from ptuning.data.columnar import columnar_rows
from ptuning.data.containers import (
    COMPRESSED,
    Opener,
    TextFile,
    compression_of,
    decompressed,
    is_zip,
    member_at,
    only_member,
    readable,
    refuse_foreign,
    refuse_splits,
    text_files,
    visible,
    zip_names,
)
from ptuning.data.hub import dataset_rows, load_hub, memory_rows
from ptuning.data.json_files import json_rows
from ptuning.data.places import Origin, Parts, Problem, listing
from ptuning.data.reading import Header, Quoting, Reading, Rows
from ptuning.data.separated import row_width, separated_rows
from ptuning.data.spreadsheet import workbook_rows
from ptuning.data.text_files import LONGEST, SAMPLE, Text, encoding_of, sampled, too_long, undecoded
from ptuning.errors import ConfigError, DataError
from ptuning.paths import local_path

Format = Literal["csv", "tsv", "jsonl", "text", "parquet"]
Source = str | os.PathLike[str] | IO[bytes] | Iterable[Mapping[str, Any]]

FORMATS: tuple[Format, ...] = get_args(Format)
EXTENSIONS: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".xlsx": "excel",
}
_BINARY = ("parquet", "arrow", "excel")
_LABEL = "__label__"


@dataclass(frozen=True, kw_only=True)
class Table:
    """An opened source. Its first row has been read, so that a wrong file is an error right away.

    Args:
        origin: The name of the source and its rows in messages.
        columns: The column names of the first row, in order.
        rows: The numbered rows; they can be read once.
        label_names: For columns of class labels (``datasets.ClassLabel``), the class names in order; the rows
            have the names, not the numbers, and ``None`` for -1.
        notes: What was detected, one sentence each, for the user. More may be added while rows are read.
    """

    origin: Origin
    columns: tuple[str, ...]
    rows: Rows
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def open_table(
    source: Source,
    *,
    format: Format | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    header: Header = "auto",
    quoting: Quoting = "auto",
    named: Iterable[str] = (),
    problems: list[Problem] | None = None,
) -> Table:
    """Open a source and read its first row.

    Args:
        source: A path, ``"-"``, a binary stream, ``hf:NAME[/CONFIG][:SPLIT]``, or rows in memory.
        format: The format of a stream, or of a path with another extension.
        separator: The separator of CSV and TSV; detected if ``None``. This option and the next three are
            ignored for other kinds of sources.
        encoding: The encoding of a text file; detected if ``None``.
        header: Whether the first row of CSV, TSV and Excel has the column names: ``first``, ``none`` (columns
            are then called "1", "2", …), or ``auto`` (detected).
        quoting: The meaning of double quotes in CSV and TSV: ``csv``, ``none`` (ordinary characters), or
            ``auto`` (detected).
        named: The columns that the user named, which help to detect a header.
        problems: A list to which the unreadable rows are added, which are then left out; if ``None``, the
            first bad row raises.

    Raises:
        DataError: The source is missing, empty or unreadable, or its format cannot be detected; a bad row
            raises when it is reached.
        ConfigError: ``format`` is missing, unknown, or does not apply; ``separator`` or ``encoding`` is
            invalid.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format {format!r} is unknown", expected=f"one of {listing(FORMATS)}")
    reading = Reading(
        origin=Origin(name=os.fspath(source) if isinstance(source, os.PathLike | str) else "the rows"),
        separator=separator,
        encoding=encoding,
        header=header,
        quoting=quoting,
        named=frozenset(named),
        problems=problems,
    )
    rows = _rows(source, format, reading)
    first = next(rows, None)
    if first is None:
        reading.refuse_empty(
            DataError(
                "no rows",
                expected="at least one",
                remedy="check that this is the right file and that whatever wrote it finished",
            )
        )
    return Table(
        origin=reading.origin,
        columns=tuple(first[1]),
        rows=chain([first], rows),
        label_names=reading.label_names,
        notes=reading.notes,
    )


def _rows(source: Source, format: Format | None, reading: Reading) -> Rows:
    if isinstance(source, os.PathLike) or (
        isinstance(source, str) and source != "-" and not source.startswith("hf:")
    ):
        return _path_rows(local_path(source, "the data", error=DataError, expand=False), format, reading)
    if isinstance(source, str) and source == "-":
        if sys.stdin is None:
            raise DataError("standard input is closed", expected="rows in it", remedy="name a file")
        return _stream_rows(sys.stdin.buffer, "standard input", format, reading)
    if isinstance(source, io.TextIOBase):
        raise ConfigError(
            "the source is a text stream",
            expected="a binary one so that its encoding can be checked",
            remedy="pass sys.stdin.buffer, or open the file with mode 'rb'",
        )
    if hasattr(source, "read"):
        stream = cast(IO[bytes], source)
        return _stream_rows(stream, str(getattr(stream, "name", "the stream")), format, reading)
    if format is not None:
        raise ConfigError(
            f"format {format!r} was given for a Hub data set or rows in memory, which need none",
            remedy="leave it out",
        )
    if isinstance(source, str):
        return dataset_rows(load_hub(source), reading)
    return memory_rows(source, reading)


# Files and streams -------------------------------------------------------------------------------


def _path_rows(path: Path, format: Format | None, reading: Reading) -> Rows:
    if path.is_dir():
        return _folder_rows(path, format, reading)
    if not path.exists():
        if (member := member_at(path)) is not None:
            return _file_rows(member.path, member.open, format, reading)
        raise DataError(
            f"{path} does not exist (looked in {Path.cwd()})",
            expected="a file of rows",
            remedy="check the path, or write hf:NAME for a data set on the Hub",
        )
    return _file_rows(path, lambda: path.open("rb"), format, reading)


def kind_of(path: Path) -> str | None:
    """The format of a file by its extension, ignoring ``.gz`` and the like."""
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return EXTENSIONS.get(plain.suffix.lower())


def _file_rows(path: Path, opener: Opener, format: Format | None, reading: Reading) -> Rows:
    """The rows of a file on disk or in an archive; its format by its first bytes and its name."""
    reading.origin = Origin(name=str(path))
    with readable(str(path)), opener() as stream:
        head = stream.read(1024)
    refuse_foreign(head, str(path))
    kind = format or kind_of(path)
    if is_zip(head) and path.is_file():
        names = zip_names(path)
        if "xl/workbook.xml" in names:
            return workbook_rows(path, reading)
        if "content.xml" in names and "mimetype" in names:
            raise DataError(
                f"{path} is an OpenDocument file (.ods)",
                expected="a file of rows",
                remedy="open it, and save the sheet as CSV (UTF-8) or .xlsx",
            )
        member = only_member(path, names, lambda name: kind_of(Path(name)) is not None)
        reading.add_note(f"the file {member.name!r} in it is read")
        return _file_rows(member.path, member.open, format, reading)
    if head.startswith(b"PAR1") and format is None:
        kind = "parquet"
    how = COMPRESSED.get(path.suffix.lower()) or compression_of(head)
    if kind in _BINARY:
        if how is not None or not path.is_file():
            raise DataError(
                f"{path} is compressed or in an archive",
                expected="an uncompressed file of this kind",
                remedy="unpack it first",
            )
        return workbook_rows(path, reading) if kind == "excel" else columnar_rows(path, kind, reading)
    if is_zip(head):
        raise DataError(
            f"{path} is an archive in an archive",
            expected="a file of rows",
            remedy="unpack the outer one first",
        )

    def text() -> IO[bytes]:
        return opener() if how is None else decompressed(opener(), how)

    reading.count_in("line")
    return _text_rows(text, kind, format is not None, reading)


def _stream_rows(stream: IO[bytes], name: str, format: Format | None, reading: Reading) -> Rows:
    if format is None or format == "parquet":
        got = "has no format" if format is None else "cannot be read as parquet, which needs a file"
        raise ConfigError(
            f"{name} {got}",
            expected="one of 'csv', 'tsv', 'jsonl', 'text'",
            remedy="set it with --input_format (ptuning predict) or format= (Python), or give a path instead",
        )
    reading.origin = Origin(name=name, unit="line")
    return _text_rows(stream, format, True, reading)


def _text_rows(source: IO[bytes] | Opener, kind: str | None, certain: bool, reading: Reading) -> Rows:
    """The rows of a text file, which is closed at the end, or of a stream, which is left open.

    Args:
        source: A stream, or a function that opens the file, as often as needed.
        kind: The format; ``None`` to detect it from the content.
        certain: Whether the user set ``kind``; otherwise it is from the file's name.
    """
    name = reading.origin.name
    owned: list[IO[bytes]] = []
    with readable(name):
        try:
            if callable(source):
                owned.append(source())
            stream = owned[0] if owned else cast(IO[bytes], source)
            head, complete, stream = sampled(stream, wait=bool(owned))
            if not owned and (how := compression_of(head)) is not None:
                head, complete, stream = sampled(decompressed(stream, how), wait=False)
            refuse_foreign(head, name)
            text = Text(head, complete, stream, reading)
            kind = kind if certain or kind not in (None, "text") else _kind_by_content(text, kind, reading)

            @contextmanager
            def reopen() -> Iterator[Iterator[str]]:
                with cast(Opener, source)() as stream, text.of(stream, "") as opened:
                    yield opened

            if kind == "jsonl":
                yield from json_rows(text, reading)
            elif kind == "text":
                lines = text.lines(None)
                yield from ((lines.number, {"text": line.rstrip("\n")}) for line in lines.sound(reading))
            elif kind == "fasttext":
                yield from _fasttext_rows(text, reading)
            else:
                separator = "\t" if kind == "tsv" else ","
                yield from separated_rows(text, separator, reading, reopen if owned else None)
        finally:
            for stream in owned:
                stream.close()


def _kind_by_content(text: Text, kind: str | None, reading: Reading) -> str:
    """The format of a ``.txt`` file or a file with an unknown extension, by its content."""
    lines = [line for line in text.first_lines() if line.strip()]
    if lines and all(line.startswith(_LABEL) for line in lines):
        reading.add_note(f"read as fastText: {_LABEL} starts a label, the rest of the line is the text")
        return "fasttext"
    if len(lines) > 1 and all(line.count("\t") == lines[0].count("\t") > 0 for line in lines):
        reading.add_note("read as tab-separated: every line has the same number of tabs")
        return "tsv"
    if kind is not None:
        return kind
    if text.beginning.lstrip()[:1] in ("{", "["):
        reading.add_note("read as JSON, which it looks like")
        return "jsonl"
    widths = {separator: row_width(lines, separator) for separator in ",;|"}
    if len(lines) > 1 and any(width > 1 and share == 1 for width, share in widths.values()):
        reading.add_note("read as CSV, which it looks like")
        return "csv"
    path = Path(reading.origin.name)
    raise DataError(
        f"{path} has the extension {path.suffix or 'none'!r} and does not look like rows of cells or JSON",
        expected=f"one of {listing(EXTENSIONS)} (the text ones also compressed: {listing(COMPRESSED)}, .zip)",
        remedy="rename the file",
    )


def _fasttext_rows(text: Text, reading: Reading) -> Rows:
    several = any(
        line.split(maxsplit=2)[1:2] and line.split()[1].startswith(_LABEL)
        for line in text.first_lines()
        if line.strip()
    )
    lines = text.lines(None)
    for line in lines.sound(reading):
        words = line.strip()
        labels: list[str] = []
        while words.startswith(_LABEL):
            label, _, words = words.partition(" ")
            labels.append(label.removeprefix(_LABEL))
            words = words.lstrip()
        if not labels and not words:
            continue
        if not several and len(labels) > 1:
            reading.bad_row(
                lines.number,
                "label",
                DataError(
                    got=f"{len(labels)} labels",
                    expected="one, as in the first rows of the file",
                    remedy="keep one",
                ),
            )
            continue
        yield lines.number, {"text": words, "label": labels if several else labels[0] if labels else None}


# Folders ------------------------------------------------------------------------------------------


def _folder_rows(folder: Path, format: Format | None, reading: Reading) -> Rows:
    texts, left_out = text_files(folder)
    files = [each for each in visible(folder) if each.is_file()]
    # A .json next to other files usually describes them; files of other kinds mean that it is not a table.
    tables = [
        each for each in files if kind_of(each) not in (None, "text") and each.suffix.lower() != ".json"
    ]
    if any(each not in tables and each.suffix.lower() not in ("", ".md", ".txt", ".json") for each in files):
        tables = []
    if texts:
        counts = sorted({text.label for text in texts if text.label is not None})
        reading.add_note(
            f"a folder of texts, its {len(counts)} sub-folders the labels: {listing(counts, 6)}"
            + (f"; left out: {listing(left_out)}" if left_out else "")
        )
        return _texts_rows(folder, texts, reading)
    if tables:
        if len({kind_of(each) for each in tables}) > 1:
            raise DataError(
                f"{folder} is a folder with files of several kinds "
                f"({listing([each.name for each in tables], 6)})",
                expected="a file of rows, or parts of one table",
                remedy="name one file in it",
            )
        refuse_splits(folder, tables)
        reading.add_note(
            f"a folder of {len(tables)} files ({listing([each.name for each in tables], 4)}), read as one "
            "table"
        )
        return _part_rows(folder, tables, format, reading)
    plain = [TextFile(path=each, label=None) for each in files if each.suffix.lower() == ".txt"]
    if plain:
        reading.add_note(f"a folder of {len(plain)} texts, without labels")
        return _texts_rows(folder, plain, reading)
    raise DataError(
        f"{folder} is a folder",
        expected="a file of rows, or a folder with a sub-folder of .txt files for each label",
        remedy="name one file in it",
    )


def _texts_rows(folder: Path, texts: Sequence[TextFile], reading: Reading) -> Rows:
    """One text per file, all in the same encoding."""
    parts = Parts()
    reading.origin = Origin(name=str(folder), unit="row", parts=parts)
    sample = b""
    with readable(str(folder)):
        for text in texts:
            if len(sample) < SAMPLE:
                with text.path.open("rb") as file:
                    sample += file.read(SAMPLE) + b"\n"
    return _texts_decoded(texts, parts, encoding_of(sample[:SAMPLE], reading), reading)


def _texts_decoded(texts: Sequence[TextFile], parts: Parts, encoding: str, reading: Reading) -> Rows:
    for number, text in enumerate(texts, 1):
        parts.add(number - 1, str(text.path))
        with readable(str(text.path)), text.path.open(encoding=encoding, errors="ptuning.undecoded") as file:
            words = file.read(LONGEST + 1)
        problem = too_long("text") if len(words) > LONGEST else undecoded(words, encoding)
        if problem is not None:
            reading.bad_row(number, "encoding", problem)
        elif text.label is None:
            yield number, {"text": words.rstrip("\r\n")}
        else:
            yield number, {"text": words.rstrip("\r\n"), "label": text.label}


def _part_rows(folder: Path, files: Sequence[Path], format: Format | None, reading: Reading) -> Rows:
    """The rows of several files with the same columns, numbered consecutively."""
    parts = Parts()
    reading.origin = Origin(name=str(folder), unit="row", parts=parts)
    return _joined(files, parts, format, reading)


def _joined(files: Sequence[Path], parts: Parts, format: Format | None, reading: Reading) -> Rows:
    columns: tuple[str, ...] | None = None
    known_notes: set[str] = set()
    last = 0
    for file in files:
        before = last
        own = replace(reading, notes=[], label_names={}, problems=None if reading.problems is None else [])
        rows = _path_rows(file, format, own)
        for number, row in rows:
            if columns is None:
                columns, reading.label_names = tuple(row), own.label_names
            if before == last:
                if tuple(row) != columns and kind_of(file) != "jsonl":
                    raise DataError(
                        f"{file}: its columns are {listing(row)}",
                        expected=f"{listing(columns)} as in {files[0].name}",
                        remedy="name one file, or use the same columns in all",
                    )
                parts.add(before, own.origin)
            last = before + number
            yield last, row
        for problem in own.problems or []:
            last = max(last, before + problem.row)
            cast(list[Problem], reading.problems).append(replace(problem, row=before + problem.row))
        for note in own.notes:
            without_name = note.removeprefix(f"{file}: ")
            if without_name not in known_notes:
                known_notes.add(without_name)
                reading.notes.append(note)
