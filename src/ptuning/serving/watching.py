"""A folder of adapters that is scanned every few seconds: each sub-folder with a record is a task.

A scan is one ``stat`` per adapter, which works on any file system. An adapter that is damaged or half copied
is refused, the previous version of its task stays, and it is read again when one of its files changes. After
an error that may pass, such as a file that cannot be read, it is read again at every scan.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ptuning import adapters
from ptuning.adapters.atomic import is_leftover, moved_aside
from ptuning.adapters.seal import SELF
from ptuning.errors import AdapterError
from ptuning.serving.rows import Refusal
from ptuning.serving.tasks import DIGITS, NAME, NAMES, ServedTask, TaskRegistry
from ptuning.visible import visible

_LOG = logging.getLogger(__name__)

Stamp = tuple[tuple[str, int, int, int], ...]
"""Names, inodes, modification times and sizes of files."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What one scan changed: names of tasks."""

    loaded: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Seen:
    """What is known of one sub-folder.

    Attributes:
        stamp: Of the record, or of all files if it was refused; empty if it is to be read again.
        failed: Whether it was refused.
        gone_since: When it was first missing.
    """

    stamp: Stamp
    failed: bool = False
    gone_since: float | None = None


@dataclass(kw_only=True)
class FolderWatch:
    """Keeps a registry's tasks as a folder has them. It removes no task whose adapter is elsewhere.

    Args:
        folder: The folder.
        tasks: The registry.
        poll_seconds: Seconds between two scans.
        grace_seconds: Seconds for which a sub-folder may be missing before its task is removed.
        threads: Threads that load adapters.
        clock: Seconds, never going back.
    """

    folder: Path
    tasks: TaskRegistry
    poll_seconds: float = 2.0
    grace_seconds: float = 10.0
    threads: int = 2
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _unreadable: bool = False
    _misnamed: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Scan again and again, until cancelled."""
        while True:
            await asyncio.sleep(self.poll_seconds)
            await self.rescan()

    async def rescan(self) -> Changes:
        """As :meth:`scan`, in a thread. An error is logged, and the next scan may succeed."""
        try:
            return await asyncio.to_thread(self.scan)
        except Exception:
            _LOG.exception("the folder %s could not be scanned", self.folder)
            return Changes()

    def scan(self) -> Changes:
        """Compare the folder with what is known of it, and load, replace and remove tasks."""
        names = self._names()
        if names is None:
            return Changes()
        stamps = {name: self._stamp(name) for name in names}
        present = {name: stamp for name, stamp in stamps.items() if stamp is not None}
        new = [name for name, stamp in present.items() if self._changed(name, stamp)]
        with ThreadPoolExecutor(self.threads, "ptuning-load") as pool:
            found = dict(zip(new, pool.map(self._load, new, [present[name] for name in new]), strict=True))
        self._seen |= found
        for served in self.tasks.all():  # also what a request has put there, and another server removed since
            if self._is_inside(served):
                self._seen.setdefault(served.name, _Seen(stamp=()))
        return Changes(
            loaded=tuple(name for name in new if not found[name].failed),
            refused=tuple(name for name in new if found[name].failed),
            removed=tuple(name for name in list(self._seen) if name not in present and self._is_gone(name)),
        )

    def _names(self) -> list[str] | None:
        """The names of sub-folders that a task may have; ``None`` if the folder cannot be read."""
        try:
            with os.scandir(self.folder) as entries:
                folders = sorted(entry.name for entry in entries if entry.is_dir())
        except OSError as error:  # tasks are kept: it may be a network file system that is away
            if not self._unreadable:
                _LOG.warning("the folder %s cannot be read: %s", self.folder, error.strerror or error)
            self._unreadable = True
            return None
        self._unreadable = False
        self._report([name for name in folders if not (name.startswith(".") or NAME.fullmatch(name))])
        return [name for name in folders if NAME.fullmatch(name) and not is_leftover(name)]

    def _report(self, names: list[str]) -> None:
        """Refuse the adapters whose folders have names that no task may have."""
        bad = {visible(name) for name in names if os.path.isfile(self.folder / name / adapters.RECORD)}
        for name in self._misnamed - bad:
            self.tasks.failures.pop(name, None)
        for name in sorted(bad - self._misnamed):
            why = f"the folder {name!r} has a name that no task may have; rename it: {NAMES}"
            self.tasks.failures[name] = why
            self.tasks.refused(name, AdapterError(why))
        self._misnamed = bad

    def _stamp(self, name: str, *, every: bool = False) -> Stamp | None:
        """The stamp of the record, or of every file; ``None`` if there is no record."""
        folder = self.folder / name
        try:
            files = sorted(os.listdir(folder)) if every else [adapters.RECORD]
            found = []
            for file in files:
                info = os.stat(folder / file)
                found.append((file, info.st_ino, info.st_mtime_ns, info.st_size))
        except OSError:
            return None
        return tuple(found)

    def _changed(self, name: str, stamp: Stamp) -> bool:
        seen = self._seen.get(name)
        if seen is None:
            return True
        seen.gone_since = None
        return seen.stamp != (self._stamp(name, every=True) if seen.failed else stamp)

    def _load(self, name: str, stamp: Stamp) -> _Seen:
        """Load an adapter, if another version is served."""
        folder = self.folder / name
        every = self._stamp(name, every=True) or ()  # before it is read
        known = self.tasks.failures.get(name)
        try:
            if not self._is_served(name, folder):
                self.tasks.load(name, folder)
            return _Seen(stamp=stamp)
        except AdapterError as error:
            passing = isinstance(error.__cause__, OSError)
        except Exception:  # no memory, say
            passing = True
            if self.tasks.failures.get(name) != known:
                _LOG.exception("the adapter %s could not be loaded", folder)
        return _Seen(stamp=() if passing else every, failed=True)

    def _is_served(self, name: str, folder: Path) -> bool:
        """Whether the version in the folder is served already."""
        try:
            digest = adapters.details(folder)[SELF][:DIGITS]
            if name not in self.tasks or self.tasks.get(name).digest != digest:
                return False
        except (AdapterError, Refusal):
            return False  # loading it says why
        self.tasks.failures.pop(name, None)
        return True

    def _is_inside(self, served: ServedTask) -> bool:
        """Whether the files of a task are in the folder, under its name."""
        return served.folder == self.folder.absolute() / served.name

    def _is_gone(self, name: str) -> bool:
        """Remove the task of a folder that has been missing for long enough."""
        seen = self._seen[name]
        now = self.clock()
        if seen.gone_since is None:
            seen.gone_since = now
        if now - seen.gone_since < self.grace_seconds or moved_aside(self.folder / name) is not None:
            return False
        del self._seen[name]
        try:
            if name in self.tasks and not self._is_inside(self.tasks.get(name)):
                return False  # another adapter has taken its name
            self.tasks.remove(name)
        except Refusal:
            return False  # removed by somebody else
        return True
