"""A data source of Ray's for the files of :mod:`ptuning.ray.inputs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import fs
from ray.data.datasource import FileBasedDatasource

from ptuning.ray.layout import Layout, reading, tables_of


class FileSource(FileBasedDatasource):
    """Reads files; an error names the file.

    Args:
        paths: The files.
        filesystem: Where they are.
        layout: How they are read.
    """

    def __init__(self, paths: Sequence[str], filesystem: fs.FileSystem, layout: Layout) -> None:
        super().__init__(list(paths), filesystem=filesystem)
        self._layout = layout  # not the paths: every task gets a copy of this object

    def _open_input_source(self, filesystem: Any, path: str, **options: Any) -> Any:
        with reading(path):
            if self._layout.form == "parquet":
                return filesystem.open_input_file(path)  # its footer is at the end
            return super()._open_input_source(filesystem, path, **options)

    def _read_stream(self, f: Any, path: str) -> Iterator[pa.Table]:
        with reading(path):
            yield from tables_of(self._layout, f, path)
