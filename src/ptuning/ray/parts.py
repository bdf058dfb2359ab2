"""The files that tasks of bulk scoring write: rows with a prediction, and rows without."""

from __future__ import annotations

import errno
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pyarrow import compute, parquet

from ptuning.data.places import first_line
from ptuning.errors import OutputError, PTuningError
from ptuning.inference.writing import plain
from ptuning.visible import json_text

BAD_ROWS = "_bad_rows"
"""The folder of the rows without a prediction; readers of Parquet skip it."""
OutputFormat = Literal["parquet", "jsonl"]
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


def split(table: pa.Table, prefix: str) -> tuple[pa.Table, pa.Table]:
    """The rows with a prediction, and those without, each without the columns that are null there."""
    error = f"{prefix}error"
    good = compute.is_null(table.column(error))
    predicted = [name for each in _PREDICTED if (name := f"{prefix}{each}") in table.column_names]
    return table.filter(good).drop_columns([error]), table.filter(compute.invert(good)).drop_columns(
        predicted
    )


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
