"""A folder of adapters that is scanned every few seconds: each sub-folder with a record is a task.

A scan is one ``stat`` per adapter, which works on any file system. An adapter that is damaged or half copied
is refused, the previous version of its task stays, and it is read again when one of its files changes.
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
from ptuning.serving.tasks import DIGITS, NAME, TaskRegistry

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
        stamp: Of the record, or of all files if it was refused.
        failed: Whether it was refused.
        digest: Of the version that was last loaded from it, if any.
        gone_since: When it was first missing.
    """

    stamp: Stamp
    failed: bool = False
    digest: str | None = None
    gone_since: float | None = None


@dataclass(kw_only=True)
class FolderWatch:
    """Keeps a registry's tasks as a folder has them. It removes no task that it did not load.

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
        every = {name: self._stamp(name, every=True) or () for name in new}  # before they are read
        with ThreadPoolExecutor(self.threads, "ptuning-load") as pool:
            digests = dict(zip(new, pool.map(self._load, new), strict=True))
        for name, digest in digests.items():
            before = self._seen.get(name)
            self._seen[name] = (
                _Seen(stamp=present[name], digest=digest)
                if digest is not None
                else _Seen(stamp=every[name], failed=True, digest=before.digest if before else None)
            )
        return Changes(
            loaded=tuple(name for name in new if digests[name] is not None),
            refused=tuple(name for name in new if digests[name] is None),
            removed=tuple(name for name in list(self._seen) if name not in present and self._is_gone(name)),
        )

    def _names(self) -> list[str] | None:
        """The names of sub-folders that a task may have; ``None`` if the folder cannot be read."""
        try:
            with os.scandir(self.folder) as entries:
                folders = (entry.name for entry in entries if entry.is_dir())
                names = sorted(name for name in folders if NAME.fullmatch(name) and not is_leftover(name))
        except OSError as error:  # tasks are kept: it may be a network file system that is away
            if not self._unreadable:
                _LOG.warning("the folder %s cannot be read: %s", self.folder, error.strerror or error)
            self._unreadable = True
            return None
        self._unreadable = False
        return names

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

    def _load(self, name: str) -> str | None:
        """Load an adapter: its digest, or ``None`` if it was refused."""
        folder = self.folder / name
        try:
            if name in self.tasks:
                digest: str = adapters.details(folder)[SELF][:DIGITS]
                if self.tasks.get(name).digest == digest:
                    self.tasks.failures.pop(name, None)
                    return digest  # this version is served already
        except (AdapterError, Refusal):
            pass  # loading it says why
        try:
            return self.tasks.load(name, folder).digest
        except AdapterError:
            return None  # the registry has logged it
        except Exception:
            _LOG.exception("the adapter %s could not be loaded", folder)
            return None

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
            if name in self.tasks and self.tasks.get(name).digest != seen.digest:
                return False  # another adapter has taken its name
            self.tasks.remove(name)
        except Refusal:
            return False  # removed by somebody else
        return True
