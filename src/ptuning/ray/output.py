"""The predictions of a data set as Parquet or JSON lines files in a folder, all of them or none.

While work runs, everything is in ``OUT/_temporary``, which readers of Parquet skip. A task writes files with
names of its own and returns the names, and only the files are published that the tasks which count have
returned. So a task that is run again after its node was lost leaves no row twice. ``OUT/_SUCCESS`` is written
last::

    OUT/part-RUN-000000-….parquet            rows with their predictions
    OUT/_bad_rows/part-RUN-000000-….parquet  rows without, each with the reason in its column ``error``
    OUT/_SUCCESS                             JSON: counts, files, versions
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from ptuning.data.places import counted
from ptuning.errors import ConfigError, OutputError
from ptuning.ray.cluster import errors_of_workers
from ptuning.ray.parts import BAD_ROWS, OutputFormat, Part, writing_to
from ptuning.ray.runs import ALIVE, BEAT, Runs
from ptuning.ray.storage import Place, place_of

if TYPE_CHECKING:
    from ray.data import Dataset

    from ptuning.ray.sink import Sink

SUCCESS, TEMPORARY = "_SUCCESS", "_temporary"
FILE_BYTES = 64 << 20
_THREADS = 16
"""Files that are published at the same time."""
_MINUTE = 60.0


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        rows_read: Rows of the data set.
        rows_written: Rows with a prediction.
        bad_rows: Rows without.
        files: The names of the files in the folder, sorted.
    """

    rows_read: int
    rows_written: int
    bad_rows: int
    files: tuple[str, ...]


def write_predictions(
    dataset: Dataset,
    output: str,
    *,
    form: OutputFormat = "parquet",
    prefix: str | None = None,
    rows: int | None = None,
    file_bytes: int = FILE_BYTES,
    about: Mapping[str, Any] | None = None,
    num_cpus: float = 1,
    concurrency: int | None = None,
    filesystem: fs.FileSystem | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Run the work of a data set of :func:`~ptuning.ray.predict_dataset`, and write its rows.

    Args:
        dataset: The rows with their predictions.
        output: The folder to write, as a path or URI. All nodes have to reach it.
        form: The format of the files.
        prefix: As it was passed to :func:`~ptuning.ray.predict_dataset`. It is needed only if a step since
            then, such as one on rows or on pandas, has made new columns: others know what was added.
        rows: How many rows the data set has, if that is known.
        file_bytes: Bytes of rows per file, about, before they are compressed; they are in memory.
        about: Added to ``_SUCCESS``.
        num_cpus: Cores per task that writes.
        concurrency: How many of these tasks run at once, at most; Ray decides if ``None``.
        filesystem: A file system on which ``output`` is a path.
        progress: Called about every minute, in a thread of its own, with the number of files that were
            written so far, and their bytes.

    Raises:
        ConfigError: the folder exists and is not empty, or another run writes there.
        DataError: the rows are not those of :func:`~ptuning.ray.predict_dataset`.
        OutputError: it could not be written, rows are missing, or the cluster lost the work. Nothing is in
            the folder then.
    """
    folder = Folder(place_of(output, "--output", filesystem))
    folder.check()
    folder.start()
    try:
        sink = _sink(folder, form, prefix, file_bytes)
        with folder.alive(progress), errors_of_workers():
            dataset.write_datasink(sink, ray_remote_args={"num_cpus": num_cpus}, concurrency=concurrency)
        parts, received = sink.returned
        read = received if rows is None else rows
        found = sum(part.rows for part in parts)
        if not found == received == read:
            raise OutputError(
                f"{output}: {counted(found)} would be written of {counted(read)} that were read",
                remedy="nothing was written; run it again, and report this with Ray's logs",
            )
        bad = sum(part.rows for part in parts if part.bad)
        files = tuple(sorted(part.place for part in parts))
        written = Written(rows_read=read, rows_written=found - bad, bad_rows=bad, files=files)
        versions = {name: version(name) for name in ("ptuning", "torch", "transformers", "ray", "pyarrow")}
        folder.publish(parts, {**asdict(written), **(about or {}), "versions": versions})
        return written
    finally:
        folder.clear()


class Folder:
    """The folder that is written.

    Args:
        place: Where it is.
    """

    def __init__(self, place: Place) -> None:
        self.filesystem, self.path, self.shown = place
        self.run = uuid.uuid4().hex[:12]
        self.temporary = f"{self.path}/{TEMPORARY}"
        self.parts = f"{self.temporary}/{self.run}"
        self.runs = Runs(self.filesystem, self.temporary, self.run)

    def check(self) -> None:
        """Refuse a folder with anything in it, except what an interrupted run has left.

        Raises:
            ConfigError: it is not empty, it is a file, or another run writes there.
            OutputError: it cannot be read.
        """
        with self._errors("read"):
            names = self._names()
            self._refuse_living()
        if not names:
            return
        if names - self._leftovers(names):
            done = SUCCESS in names
            raise ConfigError(
                "--output",
                got=f"{self.shown}, which {'has the results of another run' if done else 'is not empty'}",
                expected="a folder that is empty or does not exist",
                remedy="choose another folder, or delete this one",
            )

    def start(self) -> None:
        """Make the folder of this run, in place of what an interrupted one has left.

        Raises:
            ConfigError: another run writes there.
            OutputError: it cannot be written.
        """
        with self._errors("written"):
            self._refuse_living()
            for name in sorted(self._leftovers(self._names())):
                path = f"{self.path}/{name}"
                if self.filesystem.get_file_info(path).type == fs.FileType.Directory:
                    self.filesystem.delete_dir(path)
                else:
                    self.filesystem.delete_file(path)
            self.filesystem.create_dir(self.temporary, recursive=True)
            self.runs.announce()
            self.filesystem.create_dir(self.parts, recursive=True)
            try:
                self._refuse_living()  # one that has started at the same moment
            except ConfigError:
                self.clear()
                raise

    @contextmanager
    def alive(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        beat: float = BEAT,
        every: float = _MINUTE,
    ) -> Iterator[None]:
        """Say in the folder that this run is alive, while the block runs.

        Args:
            progress: As of :func:`write_predictions`.
            beat: Seconds between two times that it is said.
            every: Seconds between two calls of ``progress``, at least.
        """
        told = time.monotonic()

        def tell() -> None:
            nonlocal told
            if progress is not None and time.monotonic() - told >= every:
                told = time.monotonic()
                found = self._there()
                progress(len(found), sum(found.values()))

        with self.runs.beating(tell, beat):
            yield

    def publish(self, parts: Iterable[Part], success: Mapping[str, Any]) -> None:
        """Move the files of a run into place, and write ``_SUCCESS``.

        Raises:
            OutputError: a file is not there, because the node that wrote it does not share the folder; or
                the file system failed.
        """
        parts = list(parts)
        with self._errors("written"):
            if self._names() - {TEMPORARY} or not self.runs.is_only():
                raise self._not_alone()
            there = self._there()
            for part in parts:
                if there.get(part.name) != part.nbytes:
                    raise OutputError(
                        f"{self.shown}: {part.name}, which the node {part.node} wrote, is not here",
                        expected="a folder that all nodes share",
                        remedy="choose a shared file system, or a URI such as s3://bucket/folder",
                    )
            if any(part.bad for part in parts):
                self.filesystem.create_dir(f"{self.path}/{BAD_ROWS}", recursive=True)
            try:
                with ThreadPoolExecutor(_THREADS) as threads:
                    list(threads.map(self._publish, parts))
                self._write(f"{self.parts}/{SUCCESS}", success)
                self.filesystem.move(f"{self.parts}/{SUCCESS}", f"{self.path}/{SUCCESS}")
                own = {part.name for part in parts} | {TEMPORARY, BAD_ROWS, SUCCESS}
                if self._names() - own or not self.runs.is_only():
                    raise self._not_alone()
            except BaseException:
                self._withdraw(parts)
                raise

    def clear(self) -> None:
        """Delete the folder of this run, and what is empty without it. Errors are ignored."""
        with suppress(OSError):
            self.filesystem.delete_dir(self.parts)
        self.runs.remove()
        for path in (self.temporary, f"{self.path}/{BAD_ROWS}", self.path):
            with suppress(OSError):
                if not self.filesystem.get_file_info(fs.FileSelector(path)):
                    self.filesystem.delete_dir(path)

    def _publish(self, part: Part) -> None:
        self.filesystem.move(f"{self.parts}/{part.name}", self._target(part))

    def _withdraw(self, parts: Iterable[Part]) -> None:
        """Delete what was published: ``_SUCCESS`` first, and nothing if that cannot be deleted."""
        success = f"{self.path}/{SUCCESS}"
        try:
            if self.filesystem.get_file_info(success).type != fs.FileType.NotFound:
                self.filesystem.delete_file(success)
        except OSError:
            return
        for part in parts:
            with suppress(OSError):
                self.filesystem.delete_file(self._target(part))

    def _refuse_living(self) -> None:
        """Refuse a folder that another run writes to.

        Raises:
            ConfigError: names its process.
        """
        if others := self.runs.others_alive():
            raise ConfigError(
                "--output",
                got=f"{self.shown}, which {others[0]} writes to",
                expected="a folder for this run only",
                remedy="choose another folder, or wait until that run has ended; if it was killed, it counts "
                f"as ended after {ALIVE / 60:g} minutes",
            )

    def _not_alone(self) -> OutputError:
        return OutputError(
            f"{self.shown}: another run has written there meanwhile", remedy="choose another folder"
        )

    def _there(self) -> dict[str, int]:
        """The files that tasks have written, and their bytes."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.parts, allow_not_found=True))
        return {info.base_name: info.size or 0 for info in found}

    def _target(self, part: Part) -> str:
        return f"{self.path}/{part.place}"

    def _names(self) -> set[str]:
        """What is in the folder."""
        info = self.filesystem.get_file_info(self.path)
        if info.type == fs.FileType.NotFound:
            return set()
        if info.type == fs.FileType.File:
            raise ConfigError("--output", got=f"the file {self.shown}", expected="a folder")
        return {each.base_name for each in self.filesystem.get_file_info(fs.FileSelector(self.path))}

    def _leftovers(self, names: Iterable[str]) -> set[str]:
        """Those of ``names`` that an interrupted run has left."""
        names = set(names)
        if TEMPORARY not in names or SUCCESS in names:
            return set()
        every = self.filesystem.get_file_info(fs.FileSelector(self.temporary))
        runs = self.runs.all()
        if not runs and every:
            return set()
        starts = tuple(f"part-{run.name}-" for run in runs)
        return {name for name in names if name in (TEMPORARY, BAD_ROWS) or name.startswith(starts)}

    def _write(self, path: str, content: Mapping[str, Any]) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(json.dumps(content, indent=2, ensure_ascii=False).encode())

    def _errors(self, what: str) -> AbstractContextManager[None]:
        return writing_to(self.shown, what)


def _sink(folder: Folder, form: OutputFormat, prefix: str | None, file_bytes: int) -> Sink:
    from ptuning.ray.sink import Sink

    return Sink(folder.filesystem, folder.parts, folder.run, form, prefix, file_bytes)
