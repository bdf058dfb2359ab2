"""The rows of CSV, TSV, JSON lines and Parquet files as a Ray data set.

The files are read by a data source of our own, so that an error names the file, and so that the cells of a
CSV stay text. Everything else about reading is Ray's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pyarrow import csv, fs, json, parquet

from ptuning.data.places import first_line, listing
from ptuning.errors import ConfigError, DataError
from ptuning.ray.storage import files_of

if TYPE_CHECKING:
    from ray.data import Dataset

InputFormat = Literal["csv", "tsv", "jsonl", "parquet"]
_ENDINGS: dict[str, InputFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSED = (".gz", ".zst", ".bz2", ".br", ".lz4")
_ROWS = 8192
"""Rows of a Parquet file that are read at once."""
_LONGEST_LINE = 64 << 20
"""Bytes of a JSON line at most."""
_THREADS = 32
"""Footers that are read at the same time."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How CSV and TSV are written; see :class:`~ptuning.data.options.ReadOptions`."""

    separator: str | None = None
    encoding: str | None = None
    header: Literal["auto", "first", "none"] = "auto"
    quoting: Literal["auto", "csv", "none"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the files of a data set are read.

    Attributes:
        form: Their format.
        names: Their columns.
        options: How CSV and TSV are written.
        strings: The columns that are read as strings; of CSV and TSV, all are.
    """

    form: InputFormat
    names: tuple[str, ...]
    options: TextOptions
    strings: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a data set, checked as far as this process can without reading all of them.

    Attributes:
        filesystem: Where they are.
        paths: Sorted.
        layout: How they are read.
        rows: How many rows they have, if their format says so.
        shown: As the user named them.
    """

    filesystem: fs.FileSystem
    paths: tuple[str, ...]
    layout: Layout
    rows: int | None
    shown: str

    def dataset(self, strings: Iterable[str | None] = (), *, num_cpus: float = 1) -> Dataset:
        """The rows.

        Args:
            strings: Columns that are read as strings: the texts and the task.
            num_cpus: Cores per task that reads.
        """
        import ray.data

        from ptuning.ray.source import FileSource

        layout = replace(self.layout, strings=frozenset(name for name in strings if name is not None))
        source = FileSource(self.paths, self.filesystem, layout)
        made: Dataset = ray.data.read_datasource(source, num_cpus=num_cpus)
        return made


def find_files(
    source: str,
    form: InputFormat | None = None,
    options: TextOptions | None = None,
    *,
    filesystem: fs.FileSystem | None = None,
) -> Files:
    """The files that ``source`` names.

    The footers of all Parquet files are read; of other files, the columns of the first.

    Args:
        source: A file, folder or pattern, as a path or URI.
        form: Their format; by their names if ``None``.
        options: How CSV and TSV are written.
        filesystem: A file system on which ``source`` is a path.

    Raises:
        ConfigError: the format is not clear, or not one that can be read in parts.
        DataError: there is no file, one is damaged, or one has other columns.
    """
    place, found = files_of(source, "--input", filesystem)
    form = form or _format_of([each.path for each in found], source)
    options = options or TextOptions()
    paths = tuple(each.path for each in found)
    rows: int | None = None
    if form == "parquet":
        names, rows = _footers(place.filesystem, paths)
    else:
        nonempty = [each.path for each in found if each.nbytes]
        if not nonempty:
            raise DataError(f"{source}: there are no rows")
        names = _first_names(place.filesystem, nonempty[0], form, options)
    return Files(
        filesystem=place.filesystem,
        paths=paths,
        layout=Layout(form=form, names=names, options=options),
        rows=rows,
        shown=source,
    )


def _format_of(paths: Sequence[str], source: str) -> InputFormat:
    found: dict[InputFormat | None, str] = {}
    for path in paths:
        name = path.lower()
        for ending in _COMPRESSED:
            name = name.removesuffix(ending)
        form = next((form for ending, form in _ENDINGS.items() if name.endswith(ending)), None)
        found.setdefault(form, path)
    if None in found or len(found) > 1:
        raise ConfigError(
            "--input",
            got=f"{source} with {listing(found.values(), 4)}",
            expected=f"files of one format, with names that end in {', '.join(_ENDINGS)}",
            remedy="name them with a pattern such as 'folder/*.parquet', or set --input_format",
        )
    (form,) = found
    assert form is not None
    return form


def _footers(filesystem: fs.FileSystem, paths: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The columns of Parquet files, and their number of rows."""

    def footer(path: str) -> tuple[tuple[str, ...], int]:
        with reading(path), filesystem.open_input_file(path) as stream:
            file = parquet.ParquetFile(stream)
            return tuple(file.schema_arrow.names), file.metadata.num_rows

    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(footer, paths))
    first = found[0][0]
    for path, (names, _) in zip(paths, found, strict=True):
        check_names(path, names, first)
    return first, sum(rows for _, rows in found)


def _first_names(
    filesystem: fs.FileSystem, path: str, form: InputFormat, options: TextOptions
) -> tuple[str, ...]:
    with reading(path), filesystem.open_input_stream(path, compression="detect") as stream:
        if form == "jsonl":
            return tuple(_read_json(_lines(stream), frozenset()).column_names)
        with csv.open_csv(stream, _csv_reading(options, ()), _csv_parsing(options, form)) as reader:
            found = list(reader.schema.names)
    return tuple(map(str, range(1, len(found) + 1))) if options.header == "none" else tuple(found)


def _lines(stream: Any, size: int = 1 << 20) -> bytes:
    """The first lines of a stream: about ``size`` bytes, at least one line."""
    found = bytearray()
    while b"\n" not in found[size:] and len(found) < _LONGEST_LINE:
        if not (part := stream.read(size)):
            return bytes(found)
        found += part
    return bytes(found[: found.rindex(b"\n") + 1])


def check_names(path: str, got: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse a file that has other columns than the first.

    Raises:
        DataError: names the file.
    """
    if set(got) != set(expected):
        raise DataError(
            f"{path}, the columns",
            got=listing(got, 20),
            expected=f"{listing(expected, 20)}, as in the first file",
            remedy="name files with the same columns, with a pattern such as 'folder/part-*.parquet'",
        )
    if repeated := sorted({name for name in got if list(got).count(name) > 1}):
        raise DataError(f"{path}: more than one column is named {repeated[0]!r}", remedy="rename one of them")


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn an error while reading into one that names the file.

    Raises:
        DataError: instead of pyarrow's or the system's error.
    """
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({first_line(error)})", remedy="write or copy it again, or leave it out"
        ) from error


def _csv_reading(options: TextOptions, names: Sequence[str]) -> csv.ReadOptions:
    made = csv.ReadOptions(use_threads=False, encoding=options.encoding or "utf8")
    if options.header == "none":
        if names:
            made.column_names = list(names)
        else:
            made.autogenerate_column_names = True
    return made


def _csv_parsing(options: TextOptions, form: InputFormat) -> csv.ParseOptions:
    separator = options.separator or ("\t" if form == "tsv" else ",")
    separator = "\t" if separator == "tab" else separator
    quotes = options.quoting != "none"
    return csv.ParseOptions(
        delimiter=separator, quote_char='"' if quotes else False, newlines_in_values=quotes
    )


def tables_of(layout: Layout, stream: Any, path: str) -> Iterator[pa.Table]:
    """The rows of one file, part by part.

    Args:
        layout: How it is read.
        stream: The open file; it can be sought if it is Parquet.
        path: Its name, for messages.
    """
    if layout.form == "parquet":
        for batch in parquet.ParquetFile(stream).iter_batches(batch_size=_ROWS, use_threads=False):
            yield pa.Table.from_batches([batch])
    elif layout.form == "jsonl":
        content = stream.read()
        if content.strip():
            yield _json_table(content, layout.strings)
    else:
        yield from _csv_tables(layout, stream, path)


def _csv_tables(layout: Layout, stream: Any, path: str) -> Iterator[pa.Table]:
    options, names = layout.options, layout.names
    types = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    with csv.open_csv(
        stream, _csv_reading(options, names), _csv_parsing(options, layout.form), types
    ) as rows:
        check_names(path, rows.schema.names, names)
        for batch in rows:
            yield pa.Table.from_batches([batch])


def _json_table(content: bytes, strings: frozenset[str]) -> pa.Table:
    table = _read_json(content, strings)
    dates = {field.name for field in table.schema if pa.types.is_temporal(field.type)}
    return _read_json(content, strings | dates) if dates else table  # strings like dates stay strings


def _read_json(content: bytes, strings: frozenset[str]) -> pa.Table:
    schema = pa.schema([(name, pa.string()) for name in sorted(strings)])
    return json.read_json(
        pa.BufferReader(content),
        json.ReadOptions(block_size=_LONGEST_LINE, use_threads=False),
        json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer"),
    )
