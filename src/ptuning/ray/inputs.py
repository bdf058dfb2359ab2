"""The rows of CSV, TSV, JSON lines and Parquet files as a Ray data set.

The files are read by a data source of our own, so that an error names the file, and so that the cells of a
CSV stay text. Everything else about reading is Ray's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import fs, parquet

from ptuning.data.places import listing
from ptuning.errors import ConfigError, DataError
from ptuning.ray.layout import (
    InputFormat,
    Layout,
    TextOptions,
    check_names,
    first_columns,
    folder_values,
    reading,
    together,
)
from ptuning.ray.storage import files_of

if TYPE_CHECKING:
    from ray.data import Dataset

_ENDINGS: dict[str, InputFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSED = (".gz", ".zst", ".bz2", ".br", ".lz4")
_THREADS = 32
"""Footers that are read at the same time."""


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

    def dataset(
        self,
        strings: Iterable[str | None] = (),
        *,
        keep: Iterable[str] | None = None,
        num_cpus: float = 1,
        concurrency: int | None = None,
    ) -> Dataset:
        """The rows.

        Args:
            strings: Columns that are read as strings: the texts and the task.
            keep: The other columns that are read; ``None`` for all.
            num_cpus: Cores per task that reads.
            concurrency: How many of these tasks run at once, at most; Ray decides if ``None``.
        """
        import ray.data

        from ptuning.ray.source import FileSource

        texts = frozenset(name for name in strings if name is not None)
        kept = None if keep is None else texts.union(keep)
        layout = replace(self.layout, strings=texts, keep=kept)
        source = FileSource(self.paths, self.filesystem, layout)
        made: Dataset = ray.data.read_datasource(source, num_cpus=num_cpus, concurrency=concurrency)
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
    # An empty file of text has no rows; an empty Parquet file is a damaged one.
    paths = tuple(each.path for each in found if each.nbytes or form == "parquet")
    if not paths:
        raise DataError(f"{source}: there are no rows")
    rows: int | None = None
    if form == "parquet":
        schema, rows = _footers(place.filesystem, paths)
    else:
        schema = first_columns(place.filesystem, paths[0], form, options)
    return Files(
        filesystem=place.filesystem,
        paths=paths,
        layout=Layout(
            form=form,
            schema=schema,
            options=options,
            folders=tuple(name for name in _folders(paths, place.path) if name not in schema.names),
            base=place.path,
        ),
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


def _folders(paths: Sequence[str], base: str) -> tuple[str, ...]:
    """The columns whose values are in the names of the folders."""
    first = tuple(folder_values(paths[0], base))
    for path in paths:
        check_names(path, tuple(folder_values(path, base)), first, "the columns in the names of its folders")
    return first


def _footers(filesystem: fs.FileSystem, paths: Sequence[str]) -> tuple[pa.Schema, int]:
    """The columns of Parquet files, with types that hold those of all of them, and the number of rows."""

    def footer(path: str) -> tuple[pa.Schema, int]:
        with reading(path), filesystem.open_input_file(path) as stream:
            file = parquet.ParquetFile(stream)
            return file.schema_arrow.remove_metadata(), file.metadata.num_rows

    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(footer, paths))
    schema = found[0][0]
    for path, (types, _) in zip(paths, found, strict=True):
        check_names(path, types.names, schema.names)
        schema = together(path, types, schema, "write the column with one type in all files")
    return schema, sum(rows for _, rows in found)
