"""The runs that write to one folder: each has a file there that says that it is alive."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version

from pyarrow import fs

BEAT = 20.0
"""Seconds between two updates of a run's file."""
ALIVE = 180.0
"""After so many seconds without an update a run counts as ended."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the file of a run says.

    Attributes:
        name: Its name.
        host: The machine of its process; empty if the file is not readable.
        pid: Its process.
        time: Of the last update, in seconds since 1970.
    """

    name: str
    host: str
    pid: int
    time: float

    @property
    def alive(self) -> bool:
        """Whether it may still write: a run on this machine until its process ends."""
        if time.time() - self.time > ALIVE:
            return False
        return self.host != platform.node() or _exists(self.pid)

    def __str__(self) -> str:
        return f"the process {self.pid} on {self.host}" if self.host else f"the run {self.name}"


class Runs:
    """The files of the runs in a folder.

    Args:
        filesystem: Where the folder is.
        folder: The folder.
        own: The name of the run of this process.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str, own: str) -> None:
        self._filesystem, self._folder, self._own = filesystem, folder, own
        self._path = f"{folder}/{own}.json"

    def all(self) -> list[Run]:
        """All of them, in the order of their names.

        Raises:
            OSError: the folder cannot be read.
        """
        found = self._filesystem.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        files = [info for info in found if info.base_name.endswith(".json")]
        return [self._read(info) for info in sorted(files, key=lambda info: info.base_name)]

    def others_alive(self) -> list[Run]:
        """Those that may still write, without the own."""
        return [run for run in self.all() if run.name != self._own and run.alive]

    def is_only(self) -> bool:
        """Whether there is only the own, and nobody has deleted it."""
        return [run.name for run in self.all()] == [self._own]

    def announce(self) -> None:
        """Write the own file."""
        about = {"host": platform.node(), "pid": os.getpid(), "time": time.time()}
        with self._filesystem.open_output_stream(self._path) as stream:
            stream.write(json.dumps({"run": self._own, "ptuning": version("ptuning"), **about}).encode())

    def remove(self) -> None:
        """Delete the own file. Errors are ignored."""
        with suppress(OSError):
            self._filesystem.delete_file(self._path)

    @contextmanager
    def beating(self, then: Callable[[], None] = lambda: None, seconds: float = BEAT) -> Iterator[None]:
        """Update the own file while the block runs, unless somebody has deleted it.

        Args:
            then: Called after each update, in a thread of its own. An ``OSError`` of it is ignored.
            seconds: Between two updates.
        """
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(seconds):
                with suppress(OSError):
                    if self._filesystem.get_file_info(self._path).type == fs.FileType.File:
                        self.announce()
                    then()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _read(self, info: fs.FileInfo) -> Run:
        name = info.base_name.removesuffix(".json")
        try:
            with self._filesystem.open_input_stream(info.path) as stream:
                found = json.loads(stream.read())
            return Run(name=name, host=found["host"], pid=int(found["pid"]), time=float(found["time"]))
        except FileNotFoundError:
            return Run(name=name, host="", pid=0, time=0.0)
        except (ValueError, KeyError, TypeError):  # it is being written, or was when its process was killed
            return Run(name=name, host="", pid=0, time=info.mtime.timestamp() if info.mtime else 0.0)


def _exists(pid: int) -> bool:
    """Whether there is a process of this number here; true where this cannot be asked."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
