"""From a file, a stream, a Hub data set or rows in memory to numbered rows, one at a time.

Nothing is guessed about a value: a CSV cell is the text that stands in it (``NA``, ``null`` and
``nan`` are words), a JSON value keeps its type. Memory stays bounded: one row of a text file, one
batch of a Parquet file.

What a source may be:

* a path: ``.csv``, ``.tsv``, ``.jsonl`` / ``.ndjson`` / ``.json`` (one object a line) or ``.txt`` (one
  text a line), each also with ``.gz``; or ``.parquet``;
* ``"-"`` (standard input) or any binary stream, with ``format`` saying what it holds;
* ``hf:NAME[/CONFIG][:SPLIT]``, a data set on the Hub. ``NAME`` is ``glue`` or ``nyu-mll/glue``; with two
  parts, ``hf:A/B`` means the data set ``A/B`` and, where there is none, the configuration ``B`` of ``A``.
  ``SPLIT`` may be anything ``datasets`` understands (``train``, ``train[:10%]``); a data set that has
  one split needs none;
* a ``datasets.Dataset``, or any iterable of mappings.

CSV and TSV follow Python's ``csv`` module, strictly: a cell that begins with a quote must end with
one, and quotes inside it are doubled, in TSV too. Wholly empty lines are skipped, unless the file has
one column: there an empty line is an empty cell.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

from ptuning.data.places import Origin, listing, shortened
from ptuning.errors import ConfigError, DataError

Format = Literal["csv", "tsv", "jsonl", "text", "parquet"]
Source = str | os.PathLike[str] | IO[bytes] | Iterable[Mapping[str, Any]]
Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]
Names = dict[str, tuple[str, ...]]

FORMATS: tuple[Format, ...] = get_args(Format)
EXTENSIONS: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".parquet": "parquet",
}
LARGEST_CELL = 1 << 24  # characters; the csv module stops at 131,072, one unclosed quote never stops
PARQUET_BATCH = 1024
_FORMAT = "--input_format of ptuning predict, format= in Python"
_UNDECODED = re.compile("[\udc80-\udcff]")  # how "surrogateescape" shows a byte that is not UTF-8


@dataclass(frozen=True, kw_only=True)
class Table:
    """An opened source, its first row already read, so that a wrong file is an error at once.

    Args:
        origin: What errors call this source and its rows.
        columns: The names in the first row, in order.
        rows: The numbered rows; they can be read once.
        label_names: For columns of class labels (``datasets.ClassLabel``), their names in order;
            the rows hold the names, not the numbers, and ``None`` where the number is -1.
    """

    origin: Origin
    columns: tuple[str, ...]
    rows: Rows
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def open_table(source: Source, *, format: Format | None = None) -> Table:
    """Open a source and read its first row.

    Args:
        source: A path, ``"-"``, a binary stream, ``hf:NAME[/CONFIG][:SPLIT]``, or rows in memory.
        format: What a stream holds, or what a path holds in spite of its extension.

    Raises:
        DataError: The source is missing, empty or unreadable; a bad row raises when it is reached.
        ConfigError: ``format`` is missing, unknown, or given where it means nothing.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format {format!r} is unknown; expected one of {listing(FORMATS)}")
    origin, rows, names = _open(source, format)
    first = next(rows, None)
    if first is None:
        raise DataError(
            f"{origin.name}: no rows, expected at least one; check that this is the right file and that "
            "whatever wrote it finished"
        )
    return Table(origin=origin, columns=tuple(first[1]), rows=chain([first], rows), label_names=names)


def _open(source: Source, format: Format | None) -> tuple[Origin, Rows, Names]:
    if isinstance(source, os.PathLike) or (
        isinstance(source, str) and source != "-" and not source.startswith("hf:")
    ):
        return _open_path(Path(source), format)
    if isinstance(source, str) and source == "-":
        if sys.stdin is None:
            raise DataError("standard input is closed, expected rows; pipe them in, or name a file")
        return _open_stream(sys.stdin.buffer, "standard input", format)
    if isinstance(source, io.TextIOBase):
        raise ConfigError(
            "the source is a text stream, expected a binary one so that its encoding can be checked; "
            "pass sys.stdin.buffer, or open the file with mode 'rb'"
        )
    if hasattr(source, "read"):
        stream = cast(IO[bytes], source)
        return _open_stream(stream, str(getattr(stream, "name", "the stream")), format)
    if format is not None:
        raise ConfigError(
            f"format {format!r} was given for a source that needs none (a Hub data set or rows in "
            "memory); leave it out"
        )
    if isinstance(source, str):
        return _open_dataset(_load_hub(source), source)
    return _open_memory(source)


# Files and streams -------------------------------------------------------------------------------


def _open_path(path: Path, format: Format | None) -> tuple[Origin, Rows, Names]:
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a file of rows; name one file in it")
    if not path.exists():
        raise DataError(
            f"{path} does not exist (looked in {Path.cwd()}), expected a file of rows; check the path, or "
            "write hf:NAME for a data set on the Hub"
        )
    zipped = path.suffix.lower() == ".gz"
    extension = (path.with_suffix("") if zipped else path).suffix.lower()
    kind = format or EXTENSIONS.get(extension)
    if kind is None or (zipped and kind == "parquet"):
        raise DataError(
            f"{path} has the extension {''.join(path.suffixes[-2:]) or 'none'!r}, expected one of "
            f"{listing(EXTENSIONS)} (the text ones also with .gz); rename the file, or say what it holds: "
            f"{_FORMAT}, one of {listing(FORMATS)}"
        )
    if kind == "parquet":
        return _open_parquet(path)
    origin = Origin(name=str(path), unit="line")
    with _readable(origin):
        opened = gzip.open(path, "rb") if zipped else path.open("rb")  # noqa: SIM115, closed by _text_rows
        stream = cast(IO[bytes], opened)
    return origin, _text_rows(stream, origin, kind, owned=True), {}


def _open_stream(stream: IO[bytes], name: str, format: Format | None) -> tuple[Origin, Rows, Names]:
    if format is None or format == "parquet":
        got = "has no format" if format is None else "cannot be read as parquet, which needs a file"
        raise ConfigError(
            f"{name} {got}, expected one of 'csv', 'tsv', 'jsonl', 'text'; say it ({_FORMAT}), or give a "
            "path instead"
        )
    origin = Origin(name=name, unit="line")
    return origin, _text_rows(stream, origin, format, owned=False), {}


def _text_rows(stream: IO[bytes], origin: Origin, format: Format, *, owned: bool) -> Rows:
    """The rows of a text file; ``owned`` streams are closed at the end, others are left open."""
    newline = {"csv": "", "tsv": "", "jsonl": "\n", "text": None}[format]
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    try:
        with _readable(origin):
            lines = _decoded(text, origin)
            if format == "jsonl":
                yield from _json_rows(lines, origin)
            elif format == "text":
                yield from ((number, {"text": line.rstrip("\n")}) for number, line in enumerate(lines, 1))
            else:
                yield from _csv_rows(lines, origin, "\t" if format == "tsv" else ",")
    finally:
        if owned:
            text.close()
        else:
            text.detach()


def _decoded(text: io.TextIOWrapper, origin: Origin) -> Iterator[str]:
    """Lines, each checked to be UTF-8; decoding line by line is what lets the error name the line."""
    for number, line in enumerate(text, 1):
        if not line.isascii() and (bad := _UNDECODED.search(line)):
            raise DataError(
                f"{origin.at(number)}: byte 0x{ord(bad.group()) - 0xDC00:02x} at character "
                f"{bad.start() + 1} is not UTF-8, expected UTF-8 text; save the file as UTF-8, for "
                "example with: iconv -f latin1 -t utf-8"
            )
        yield line


def _csv_rows(lines: Iterator[str], origin: Origin, delimiter: str) -> Rows:
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_CELL))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    numbered = _csv_cells(reader, origin)
    header: list[str] = next((cells for _, cells in numbered if cells), [])
    _no_duplicates(header, origin)
    for line, cells in numbered:
        if not cells and len(header) > 1:
            continue
        cells = cells or [""]
        if len(cells) != len(header):
            raise DataError(
                f"{origin.at(line)}: {len(cells)} cells, expected {len(header)} ({listing(header)}); put "
                "double quotes around a cell that holds the separator or a line break, or mend the row"
            )
        yield line, dict(zip(header, cells, strict=True))


def _csv_cells(reader: Any, origin: Origin) -> Iterator[tuple[int, list[str]]]:
    """Rows of cells, each with the line it starts on (a quoted cell may run over several)."""
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{origin.at(start)}: not a row of cells ({error}), expected every opening quote to be "
                'closed and quotes inside a quoted cell to be doubled (""); write the file with a CSV '
                "writer, or use JSON lines"
            ) from error
        yield start, cells


def _json_rows(lines: Iterator[str], origin: Origin) -> Rows:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        yield number, _json_object(line, origin.at(number))


def _json_object(line: str, place: str) -> Row:
    try:
        value = json.loads(line, object_pairs_hook=_unique_pairs)
    except (ValueError, RecursionError) as error:
        message = (
            f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        )
        raise DataError(
            f"{place}: not a JSON object ({message}): {shortened(line.strip())}, expected one complete "
            "object on each line; turn an indented file or an array into lines with: jq -c '.[]' (array) "
            "or jq -c . (objects)"
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: a JSON {type(value).__name__}: {shortened(line.strip())}, expected an object such as "
            '{"text": "…", "label": "…"} on each line; turn an array into lines with: jq -c \'.[]\''
        )
    return value


def _unique_pairs(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {name!r} occurs twice")
    return row


def _no_duplicates(names: Iterable[str], origin: Origin) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        where = " in the file's first line" if origin.unit == "line" else ""
        raise DataError(
            f"{origin.name}: more than one column is named {listing(repeated)}, expected distinct names; "
            f"rename them{where}"
        )


@contextmanager
def _readable(origin: Origin) -> Iterator[None]:
    """Turn what the system says about an unreadable or damaged file into a :class:`DataError`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{origin.name}: not a complete gzip file ({error}), expected one because of its .gz; copy or "
            "compress it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{origin.name} cannot be read ({error.strerror or error}), expected a readable file; check "
            "its permissions and the disk"
        ) from error


def _open_parquet(path: Path) -> tuple[Origin, Rows, Names]:
    origin = Origin(name=str(path))
    parquet = importlib.import_module("pyarrow.parquet")  # lazily: it takes a third of a second
    try:
        file = parquet.ParquetFile(path)
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a Parquet file ({_first_line(error)}), expected one; write or copy it again, or "
            f"say what it holds ({_FORMAT})"
        ) from error
    with_names = b"huggingface" in (file.schema_arrow.metadata or {})
    features = _datasets().Features.from_arrow_schema(file.schema_arrow) if with_names else None
    names = _class_names(features)
    return origin, _named(_parquet_rows(file, origin), names, origin), names


def _parquet_rows(file: Any, origin: Origin) -> Rows:
    with file:
        _no_duplicates(file.schema_arrow.names, origin)
        number = 0
        try:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (OSError, ValueError) as error:
            raise DataError(
                f"{origin.name}: damaged after row {number} ({_first_line(error)}), expected a complete "
                "Parquet file; write or copy it again"
            ) from error


# The Hub and rows in memory ----------------------------------------------------------------------


def _datasets() -> Any:
    return importlib.import_module("datasets")  # lazily: it takes a second and brings pandas


def _load_hub(source: str) -> Any:
    """The data set that ``hf:NAME[/CONFIG][:SPLIT]`` names, memory-mapped by ``datasets``."""
    candidates, split = _parse_hub(source)
    failures: list[str] = []
    cause: Exception | None = None
    for name, config in candidates:
        try:
            found = _datasets().load_dataset(name, config, split=split)
        except Exception as error:  # whatever a builder, the network or the Hub raises
            failures.append(
                f"{name!r}{f' with configuration {config!r}' if config else ''}: {_first_line(error)}"
            )
            cause = cause or error
        else:
            return _only_split(found, source)
    raise DataError(
        f"{source} cannot be loaded ({'; '.join(failures)}), expected a data set on the Hub or in the local "
        "cache, written hf:NAME[/CONFIG][:SPLIT]; check the name, configuration and split, and the network "
        "(HF_HUB_OFFLINE must not be set to fetch one; a private one needs: hf auth login), or give a file"
    ) from cause


def _parse_hub(source: str) -> tuple[list[tuple[str, str | None]], str | None]:
    """What to try, in order, as (name, configuration); and the split."""
    path, colon, split = source.removeprefix("hf:").partition(":")
    parts = path.split("/")
    if not all(parts) or len(parts) > 3 or (colon and not split):
        raise ConfigError(
            f"{source!r} does not name a data set, expected hf:NAME[/CONFIG][:SPLIT], for example "
            "hf:nyu-mll/glue/mrpc:train"
        )
    if len(parts) == 3:
        return [(f"{parts[0]}/{parts[1]}", parts[2])], split or None
    tries: list[tuple[str, str | None]] = [(path, None)]
    return (tries if len(parts) == 1 else [*tries, (parts[0], parts[1])]), split or None


def _only_split(found: Any, source: str) -> Any:
    if not isinstance(found, Mapping):
        return found
    if len(found) == 1:
        return next(iter(found.values()))
    raise DataError(
        f"{source} has {len(found)} splits ({listing(found)}), expected one; name it: "
        f"{source}:{next(iter(found))}"
    )


def _open_memory(source: Iterable[Mapping[str, Any]]) -> tuple[Origin, Rows, Names]:
    datasets = sys.modules.get("datasets")  # a Dataset cannot exist before its module was imported
    if datasets is not None and isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        return _open_dataset(source, "the data set")
    if isinstance(source, (Mapping, bytes)) or not isinstance(source, Iterable):
        raise DataError(
            f"the source is a {type(source).__name__}, expected a path, a binary stream, a datasets.Dataset "
            "or an iterable of mappings; of several splits, pass one"
        )
    return Origin(), _memory_rows(source, Origin()), {}


def _open_dataset(dataset: Any, name: str) -> tuple[Origin, Rows, Names]:
    origin = Origin(name=name)
    names = _class_names(dataset.features)
    rows = _memory_rows(dataset.with_format(None), origin)
    return origin, _named(rows, names, origin), names


def _memory_rows(source: Iterable[Mapping[str, Any]], origin: Origin) -> Rows:
    for number, row in enumerate(source, 1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{origin.at(number)} is a {type(row).__name__}: {shortened(row)}, expected a mapping from "
                "column names to values; for a pandas frame pass frame.to_dict('records')"
            )
        yield number, dict(row)


def _class_names(features: Any) -> Names:
    """The class names of every ``ClassLabel`` column, and of every list of them."""
    found: Names = {}
    for column, feature in (features or {}).items():
        inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
        if type(inner).__name__ == "ClassLabel" and inner.names:
            found[column] = tuple(inner.names)
    return found


def _named(rows: Rows, names: Names, origin: Origin) -> Rows:
    """Rows whose class numbers are replaced by their names."""
    for number, row in rows:
        for column, of_class in names.items():
            row[column] = _class_name(row[column], of_class, f"{origin.at(number)}, column {column!r}")
        yield number, row


def _class_name(value: Any, names: tuple[str, ...], place: str) -> Any:
    if isinstance(value, list):
        return [_class_name(item, names, place) for item in value]
    if value is None or value == -1:  # -1 is how the Hub's test sets say "withheld"
        return None
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise DataError(
        f"{place}: class {value!r}, expected a number below {len(names)} ({listing(names)}); mend the data "
        "set's features or its rows"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
