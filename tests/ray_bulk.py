"""What the tests of bulk scoring run on workers. It imports no torch, which takes a worker seconds."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec.implementations.local
import pyarrow as pa


def until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


class Gate:
    """Rows with an id from ``first`` on wait until a file exists."""

    def __init__(self, file: Path, first: int) -> None:
        self.file, self.first = file, first

    def __call__(self, rows: pa.Table) -> pa.Table:
        if rows.num_rows and rows["id"][0].as_py() >= self.first:
            until(self.file.exists)
        return rows


class Full(fsspec.implementations.local.LocalFileSystem):  # type: ignore[misc]
    """A disk without room for data."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode and path.endswith((".parquet", ".jsonl")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super()._open(path, mode, **options)


def unscored(gate: Gate | None = None) -> Any:
    """Forty rows as an actor leaves them, in four blocks."""
    import ray.data

    from ptuning.ray.parts import ADDED

    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("label", pa.string()),
            pa.field("error", pa.string(), metadata={ADDED: '["label", "error"]'}),
        ]
    )
    rows = pa.table({"id": list(range(40)), "label": ["a"] * 40, "error": [None] * 40}, schema)
    found = ray.data.from_arrow([rows.slice(start, 10) for start in range(0, 40, 10)])
    return found if gate is None else found.map_batches(gate, batch_format="pyarrow", num_cpus=0)
