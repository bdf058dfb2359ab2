"""The files that tasks of bulk scoring write: rows with a prediction, and rows without."""

from __future__ import annotations

import errno
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pyarrow import compute, parquet

from ptuning.data.places import first_line, listing
from ptuning.errors import DataError, OutputError, PTuningError
from ptuning.inference.writing import plain
from ptuning.visible import json_text

BAD_ROWS = "_bad_rows"
"""The folder of the rows without a prediction; readers of Parquet skip it."""
OutputFormat = Literal["parquet", "jsonl"]
ADDED = b"ptuning:added"
"""The key of the metadata of the column with the errors: the names of all added columns, as JSON."""
_PREDICTED = ("label", "value", "probabilities", "abstained")
_AT_ONCE = 1024
"""Rows that are turned into JSON at once."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file that a task has written.

    Attributes:
        name: In the folder of the run.
        bad: Whether it has bad rows.
        rows: How many.
        nbytes: Its size.
        node: The node that wrote it.
    """

    name: str
    bad: bool
    rows: int
    nbytes: int
    node: str

    @property
    def place(self) -> str:
        """Its path in the output."""
        return f"{BAD_ROWS}/{self.name}" if self.bad else self.name


@contextmanager
def writing_to(shown: str, what: str = "written") -> Iterator[None]:
    """Turn an error of a file system into one that a user can act on.

    Raises:
        OutputError: instead of it.
    """
    try:
        yield
    except PTuningError:
        raise
    except pa.ArrowException as error:
        raise OutputError(
            f"{shown} could not be {what} on the node {platform.node()}: {first_line(error)}",
            remedy="nothing was published; if it is a column that the format cannot hold, leave it out with "
            "--keep (in Python: keep=…), or choose --format jsonl (in Python: form='jsonl')",
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = error.strerror or first_line(error)
        raise OutputError(
            f"{shown} could not be {what} on the node {platform.node()}: {why}",
            remedy="nothing was published; "
            + (
                "free some space, or choose another folder"
                if full
                else "check the folder and your access to it"
            ),
        ) from error


def split(table: pa.Table, prefix: str | None = None) -> tuple[pa.Table, pa.Table]:
    """The rows with a prediction, and those without, each without the added columns that are null there.

    Args:
        table: Rows of :func:`~ptuning.ray.predict_dataset`, which marks the columns that it adds.
        prefix: What the names of the added columns start with, if a step since then has lost the marks.

    Raises:
        DataError: no column is marked, and none has the name that ``prefix`` says.
    """
    error, predicted = _added(table.schema, prefix)
    unmarked = pa.schema([_unmarked(field) for field in table.schema], table.schema.metadata)
    table = pa.Table.from_arrays(table.columns, schema=unmarked)
    good = compute.is_null(table.column(error))
    return table.filter(good).drop_columns([error]), table.filter(compute.invert(good)).drop_columns(
        predicted
    )


def _added(schema: pa.Schema, prefix: str | None) -> tuple[str, list[str]]:
    """The name of the column with the errors, and the names of the other added columns."""
    marked = [field for field in schema if ADDED in (field.metadata or {})]
    if marked:  # the last one, if rows were scored twice
        error, added = marked[-1].name, json.loads(marked[-1].metadata[ADDED])
    elif prefix is not None and f"{prefix}error" in schema.names:
        error, added = f"{prefix}error", [f"{prefix}{name}" for name in _PREDICTED]
    else:
        raise DataError(
            "rows to write" if prefix is None else f"rows to write with the prefix {prefix!r}",
            got=f"the columns {listing(schema.names, 40)}, none of which predict_dataset has marked",
            expected="rows of predict_dataset",
            remedy="if a step since then, such as one on rows or pandas, made new columns, pass the prefix "
            "of predict_dataset to write_predictions (prefix='' if it had none)",
        )
    return error, [name for name in schema.names if name in added and name != error]


def _unmarked(field: pa.Field) -> pa.Field:
    others = {key: value for key, value in (field.metadata or {}).items() if key != ADDED}
    return field.with_metadata(others or None)


def write_table(table: pa.Table, stream: Any, form: OutputFormat) -> None:
    """Write a table in a format."""
    if form == "parquet":
        parquet.write_table(table, stream)
        return
    maps = [field.name for field in table.schema if pa.types.is_map(field.type)]
    for start in range(0, table.num_rows, _AT_ONCE):
        lines = []
        for row in table.slice(start, _AT_ONCE).to_pylist():
            row.update({name: dict(row[name]) for name in maps if row[name] is not None})
            lines.append(json_text(plain(row)))
        stream.write("".join(f"{line}\n" for line in lines).encode())
