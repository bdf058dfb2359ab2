"""How the files of bulk scoring are read: formats, columns, and errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pyarrow import compute, csv, dataset, fs, json, parquet

from ptuning.data.encodings import checked_encoding
from ptuning.data.places import first_line, listing
from ptuning.data.separated import checked_separator
from ptuning.errors import ConfigError, DataError

InputFormat = Literal["csv", "tsv", "jsonl", "parquet"]
_ROWS = 8192
"""Rows of a Parquet file that are read at once."""
_LONGEST_LINE = 64 << 20
"""Bytes of a JSON line at most."""
_LONGEST_ROW = 16 << 20
"""Bytes of a row of CSV or TSV at most."""
_LARGEST = 2**63
"""Whole numbers from here on are read as floats by pyarrow unless their type is given."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How CSV and TSV are written; see :class:`~ptuning.data.options.ReadOptions`.

    Raises:
        ConfigError: ``separator`` is not one character of ASCII, or there is no such encoding.
    """

    separator: str | None = None
    encoding: str | None = None
    header: Literal["auto", "first", "none"] = "auto"
    quoting: Literal["auto", "csv", "none"] = "auto"

    def __post_init__(self) -> None:
        if self.separator is not None and not checked_separator(self.separator).isascii():
            raise ConfigError("data.separator", got=repr(self.separator), expected="a character of ASCII")
        if self.encoding is not None:
            checked_encoding(self.encoding)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the files of a data set are read.

    Attributes:
        form: Their format.
        schema: The columns in the files. Parquet files are read with these types. The types of JSON lines are
            those of the first lines of the first file: the types of the others have to go together with them.
        options: How CSV and TSV are written.
        strings: The columns that are read as strings; of CSV and TSV, all are.
        keep: The columns that are read; ``None`` for all.
        folders: The columns whose values are in the names of the folders: ``day=2024-01-01/part.parquet``.
        base: The folder below which these folders are.
    """

    form: InputFormat
    schema: pa.Schema
    options: TextOptions
    strings: frozenset[str] = frozenset()
    keep: frozenset[str] | None = None
    folders: tuple[str, ...] = ()
    base: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns."""
        return *self.schema.names, *self.folders

    def kept(self, names: Sequence[str]) -> list[str]:
        """Those of ``names`` that are read."""
        return [name for name in names if self.keep is None or name in self.keep]


def first_columns(filesystem: fs.FileSystem, path: str, form: InputFormat, options: TextOptions) -> pa.Schema:
    """The columns of a file that is not Parquet, by its first lines.

    Raises:
        DataError: it cannot be read.
    """
    with reading(path), filesystem.open_input_stream(path, compression="detect") as stream:
        if form == "jsonl":
            return _json_table(_lines(stream), frozenset()).schema
        with csv.open_csv(stream, _csv_reading(options, ()), _csv_parsing(options, form, ())) as reader:
            found = list(reader.schema.names)
    if options.header == "none":
        found = [str(number) for number in range(1, len(found) + 1)]
    return pa.schema((name, pa.string()) for name in found)


def _lines(stream: Any, size: int = 1 << 20) -> bytes:
    """The first lines of a stream: about ``size`` bytes, at least one line."""
    found = bytearray()
    while b"\n" not in found[size:] and len(found) < _LONGEST_LINE:
        if not (part := stream.read(size)):
            return bytes(found)
        found += part
    return bytes(found[: found.rindex(b"\n") + 1])


def folder_values(path: str, base: str) -> dict[str, str | None]:
    """The values in the names of the folders of a file below ``base``, as Hive writes them."""
    below = path[len(base) :].lstrip("/") if path.startswith(base) else ""
    names = dict.fromkeys(part.partition("=")[0] for part in below.split("/")[:-1] if "=" in part)
    scheme = dataset.HivePartitioning(pa.schema((name, pa.string()) for name in names))
    found: dict[str, str | None] = dataset.get_partition_keys(scheme.parse(below)) if names else {}
    return {name: found.get(name) for name in names}


def check_names(path: str, got: Sequence[str], expected: Sequence[str], what: str = "the columns") -> None:
    """Refuse a file that has other columns than the first.

    Raises:
        DataError: names the file.
    """
    if set(got) != set(expected):
        raise DataError(
            f"{path}, {what}",
            got=listing(got, 20),
            expected=f"{listing(expected, 20)}, as in the first file",
            remedy="name files with the same columns, with a pattern such as 'folder/part-*.parquet'",
        )
    if repeated := sorted({name for name in got if list(got).count(name) > 1}):
        raise DataError(f"{path}: more than one column is named {repeated[0]!r}", remedy="rename one of them")


def together(path: str, types: pa.Schema, expected: pa.Schema, remedy: str) -> pa.Schema:
    """The types that hold the columns of a file and those of the files before it.

    Raises:
        DataError: names the file, if a column has a type that does not go together with the other one.
    """
    if types.equals(expected):
        return expected
    try:
        return pa.unify_schemas([expected, types], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: a column has another type than in the files before it ({first_line(error)})",
            remedy=remedy,
        ) from error


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
        words = str(error)
        if "straddling" in words or "Empty CSV file or block" in words:  # no end of a row in a block
            raise DataError(
                f"{path}: a row is too long" if "straddling" in words else f"{path}: no row is complete",
                expected=f"at most {_LONGEST_ROW >> 20} MiB in CSV, {_LONGEST_LINE >> 20} MiB in JSON lines",
                remedy="shorten it, or write Parquet",
            ) from error
        raise DataError(
            f"{path} cannot be read ({first_line(error)})", remedy="write or copy it again, or leave it out"
        ) from error


def _csv_reading(options: TextOptions, names: Sequence[str]) -> csv.ReadOptions:
    encoding = checked_encoding(options.encoding or "utf-8").removesuffix("-sig")  # pyarrow skips the mark
    made = csv.ReadOptions(use_threads=False, block_size=_LONGEST_ROW, encoding=encoding)
    if options.header == "none":
        if names:
            made.column_names = list(names)
        else:
            made.autogenerate_column_names = True
    return made


def _csv_parsing(options: TextOptions, form: InputFormat, names: Sequence[str]) -> csv.ParseOptions:
    quotes = options.quoting != "none"
    return csv.ParseOptions(
        delimiter=checked_separator(options.separator or ("tab" if form == "tsv" else ",")),
        quote_char='"' if quotes else False,
        newlines_in_values=quotes,
        ignore_empty_lines=len(names) != 1,  # with one column, an empty line is a row without a text
    )


def tables_of(layout: Layout, stream: Any, path: str) -> Iterator[pa.Table]:
    """The rows of one file, part by part.

    Args:
        layout: How it is read.
        stream: The open file; it can be sought if it is Parquet.
        path: Its name, for messages.
    """
    values = folder_values(path, layout.base)
    for table in _tables_in(layout, stream, path):
        for name in layout.kept(layout.folders):
            if name in table.column_names:  # JSON lines may have it in some files only
                continue
            column = pa.repeat(pa.scalar(values[name], pa.string()), table.num_rows)
            table = table.append_column(name, column)
        yield table


def _tables_in(layout: Layout, stream: Any, path: str) -> Iterator[pa.Table]:
    """The rows without the columns of the folders."""
    if layout.form == "parquet":
        names = layout.kept(layout.schema.names)
        schema = pa.schema([layout.schema.field(name) for name in names])
        file = parquet.ParquetFile(stream)
        for batch in file.iter_batches(batch_size=_ROWS, columns=names, use_threads=False):
            yield pa.Table.from_batches([batch]).select(names).cast(schema)
    elif layout.form == "jsonl":
        content = stream.read()
        if content.strip():
            table = _json_table(content, layout.strings)
            yield _like_the_first(table.select(layout.kept(table.column_names)), layout, path)
    else:
        yield from _csv_tables(layout, stream, path)


def _csv_tables(layout: Layout, stream: Any, path: str) -> Iterator[pa.Table]:
    options, names = layout.options, layout.schema.names
    types = csv.ConvertOptions(column_types=layout.schema)
    with csv.open_csv(
        stream, _csv_reading(options, names), _csv_parsing(options, layout.form, names), types
    ) as rows:
        check_names(path, rows.schema.names, names)
        for batch in rows:
            yield pa.Table.from_batches([batch]).select(layout.kept(names))


def _like_the_first(table: pa.Table, layout: Layout, path: str) -> pa.Table:
    """JSON lines with the columns of the first file, and types that hold those of both."""
    expected = pa.schema(
        [layout.schema.field(name) for name in layout.kept(layout.schema.names) if name not in layout.strings]
    )
    remedy = "write the column with one type, or keep other columns with --keep (in Python: keep=…)"
    schema = together(path, table.schema, expected, remedy)
    for name in schema.names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows))
    return table.cast(pa.schema([schema.field(name) for name in table.column_names]))


def _json_table(content: bytes, strings: frozenset[str]) -> pa.Table:
    """JSON lines, in which strings like dates stay strings, and large whole numbers keep their digits."""
    given = dict.fromkeys(sorted(strings), pa.string())
    table = _read_json(content, given)
    for field in table.schema:
        chunks = table.column(field.name).chunks
        dateless = _faithful(field.type, chunks, pa.float64())
        exact = _faithful(field.type, chunks, pa.decimal128(38, 0))
        if exact != dateless and _fits(content, field.name, exact):
            given[field.name] = exact
        elif dateless != field.type:
            given[field.name] = dateless
    return _read_json(content, given) if len(given) > len(strings) else table


def _faithful(inferred: pa.DataType, chunks: Sequence[pa.Array], large: pa.DataType) -> pa.DataType:
    """The type that keeps what JSON has, also in lists and objects.

    Args:
        inferred: The type that pyarrow has chosen.
        chunks: The values.
        large: The type of numbers some of which are too large for an integer.
    """
    if pa.types.is_temporal(inferred):
        return pa.string()
    if pa.types.is_floating(inferred):
        most = (compute.max(compute.abs(chunk)).as_py() for chunk in chunks)
        return large if any(each is not None and each >= _LARGEST for each in most) else inferred
    if pa.types.is_struct(inferred):
        return pa.struct(
            field.with_type(_faithful(field.type, [chunk.field(number) for chunk in chunks], large))
            for number, field in enumerate(inferred)
        )
    if pa.types.is_list(inferred):
        return pa.list_(_faithful(inferred.value_type, [chunk.flatten() for chunk in chunks], large))
    return inferred


def _fits(content: bytes, name: str, kind: pa.DataType) -> bool:
    """Whether all values of a column can be read as this type: whole numbers, not floats."""
    try:
        _read_json(content, {name: kind}, others="ignore")
    except pa.ArrowException:
        return False
    return True


def _read_json(content: bytes, types: Mapping[str, pa.DataType], *, others: str = "infer") -> pa.Table:
    return json.read_json(
        pa.BufferReader(content),
        json.ReadOptions(block_size=_LONGEST_LINE, use_threads=False),
        json.ParseOptions(explicit_schema=pa.schema(types.items()), unexpected_field_behavior=others),
    )
