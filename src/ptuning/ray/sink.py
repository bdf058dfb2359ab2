"""The tasks that write predictions: a data sink of Ray's."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain

import pyarrow as pa
from pyarrow import fs
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink
from ray.data.datasource.datasink import WriteResult

from ptuning.ray.parts import OutputFormat, Part, split, write_table, writing_to


class Sink(Datasink[list[Part]]):
    """Writes the good and the bad rows of a task into a file each.

    The name of a file has a random part, so a task that is run again, and one that was taken for dead, have
    different files.

    Args:
        filesystem: Where to write.
        folder: The folder of the run.
        run: Its name.
        form: The format.
        prefix: As of :func:`~ptuning.ray.parts.split`.
        file_bytes: Bytes of rows per file, about; they are collected for a task in memory.

    Attributes:
        returned: After the work: the files of the tasks that count, and the rows that they received.
    """

    def __init__(
        self,
        filesystem: fs.FileSystem,
        folder: str,
        run: str,
        form: OutputFormat,
        prefix: str | None,
        file_bytes: int,
    ) -> None:
        self._filesystem, self._folder, self._run = filesystem, folder, run
        self._form, self._prefix, self._file_bytes = form, prefix, file_bytes
        self.returned: tuple[list[Part], int] = ([], 0)

    def write(self, blocks: Iterable[Block], ctx: object) -> list[Part]:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if table.num_rows]
        if not tables:
            return []
        with writing_to(self._folder):
            table = pa.concat_tables(tables, promote_options="permissive")
        both = split(table, self._prefix)
        number = getattr(ctx, "task_idx", 0)
        return [
            self._write(table, bad, number)
            for table, bad in zip(both, (False, True), strict=True)
            if table.num_rows
        ]

    def _write(self, table: pa.Table, bad: bool, number: int) -> Part:
        name = f"part-{self._run}-{number:06d}-{uuid.uuid4().hex[:8]}.{self._form}"
        path = f"{self._folder}/{name}"
        with writing_to(path):
            try:
                with self._filesystem.open_output_stream(path) as stream:
                    write_table(table, stream, self._form)
                    nbytes = stream.tell()
            except BaseException:
                with suppress(OSError):
                    self._filesystem.delete_file(path)
                raise
        return Part(name=name, bad=bad, rows=table.num_rows, nbytes=nbytes, node=platform.node())

    def on_write_complete(self, write_result: WriteResult[list[Part]]) -> None:
        parts = list(chain.from_iterable(write_result.write_returns))
        self.returned = parts, int(write_result.num_rows)

    @property
    def min_bytes_per_write(self) -> int:
        return self._file_bytes
