"""Rows of Parquet and Arrow files, one batch at a time, with the class names that ``datasets`` writes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptuning.data.cells import distinct
from ptuning.data.hub import class_names, named_rows
from ptuning.data.places import first_line
from ptuning.data.reading import Reading, Rows
from ptuning.errors import DataError

BATCH = 1024


def columnar_rows(path: Path, kind: str, reading: Reading) -> Rows:
    """The rows of a file of ``kind``: ``parquet`` or ``arrow``."""
    reading.count_in("row")
    what = {"parquet": "Parquet", "arrow": "Arrow"}[kind]
    try:
        schema, batches = (_parquet if kind == "parquet" else _arrow)(path)
        names = list(schema.names)
    except PermissionError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror})", remedy="check its permissions"
        ) from error
    except (OSError, ValueError, KeyError, NotImplementedError, OverflowError) as error:
        raise DataError(
            f"{path}: not {'an' if kind == 'arrow' else 'a'} {what} file ({first_line(error)})",
            remedy="write or copy it again; if it is another kind of file, rename it",
        ) from error
    reading.label_names = _class_names(schema, reading)
    rows = _rows(batches, distinct(names, reading), what, reading)
    return named_rows(rows, reading)


def _parquet(path: Path) -> tuple[Any, Iterator[Any]]:
    parquet = importlib.import_module("pyarrow.parquet")  # lazily: it takes a third of a second
    file = parquet.ParquetFile(path)

    def batches() -> Iterator[Any]:
        with file:
            yield from file.iter_batches(batch_size=BATCH)

    return file.schema_arrow, batches()


def _arrow(path: Path) -> tuple[Any, Iterator[Any]]:
    pa, ipc = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.ipc")
    source = pa.memory_map(str(path))
    try:
        file = ipc.open_file(source)
        found = (file.get_batch(index) for index in range(file.num_record_batches))
    except pa.ArrowInvalid:  # datasets writes the stream format
        source.seek(0)
        file = ipc.open_stream(source)
        found = iter(file)

    def batches() -> Iterator[Any]:
        with source:
            for batch in found:
                batch.validate(full=True)  # pyarrow does not check offsets otherwise
                for start in range(0, batch.num_rows, BATCH):
                    yield batch.slice(start, BATCH)

    return file.schema, batches()


def _class_names(schema: Any, reading: Reading) -> dict[str, tuple[str, ...]]:
    """The class names of each column of class numbers, from the metadata that ``datasets`` writes."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    datasets = importlib.import_module("datasets")  # lazily: it takes a second and brings pandas
    types = importlib.import_module("pyarrow.types")
    try:
        found = class_names(datasets.Features.from_arrow_schema(schema))
    except Exception as error:  # arbitrary metadata
        reading.add_note(
            f"its metadata for datasets cannot be read ({first_line(error)}) and is ignored; classes keep "
            "their numbers"
        )
        return {}
    names = {}
    for column, of_class in found.items():
        index = schema.get_field_index(column)
        kind = schema.field(index).type if index >= 0 else None
        inner = (
            kind.value_type
            if kind is not None and types.is_nested(kind) and hasattr(kind, "value_type")
            else kind
        )
        if inner is not None and types.is_integer(inner):
            names[column] = of_class
        else:
            reading.add_note(
                f"column {column!r} has no class numbers, although its metadata says so; its values are used "
                "unchanged"
            )
    return names


def _rows(batches: Iterator[Any], names: list[str], what: str, reading: Reading) -> Rows:
    number = 0
    unread: set[str] = set()
    try:
        for batch in batches:
            columns: dict[str, list[Any]] = {}
            for index, name in enumerate(names):
                try:
                    columns[name] = batch.column(index).to_pylist()
                except (OverflowError, ValueError, NotImplementedError) as error:
                    # Python cannot represent some values, such as dates in the year 30000. That is no problem
                    # unless the column is needed.
                    if name not in unread:
                        unread.add(name)
                        why = f"of type {batch.column(index).type} ({first_line(error)})"
                        reading.add_note(f"column {name!r} is left out, because Python cannot read it: {why}")
            for values in zip(*columns.values(), strict=True):
                number += 1
                yield number, dict(zip(columns, values, strict=True))
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise DataError(
            f"{reading.origin.name}: damaged after row {number} ({first_line(error)})",
            expected=f"a complete {what} file",
            remedy="write or copy it again",
        ) from error
