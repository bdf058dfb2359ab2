"""A cache on disk, of bounded size, shared by processes.

It is at ``$PTUNING_CACHE``, in ``ptuning`` under ``$XDG_CACHE_HOME``, or in ``~/.cache/ptuning``;
``PTUNING_CACHE=off`` switches it off. The cache never makes a program fail: if it cannot be read, every
lookup is a miss, and if it cannot be written, nothing is stored. It may be deleted at any time.

There are no locks. An entry is one file that is moved into place when it is complete, and a process that has
it open keeps it after eviction. Files are not flushed to disk, so an entry may be damaged after a power cut:
readers verify what they read and treat a damaged entry as a miss.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

Kind = Literal["tokens", "stems"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SUFFIX = ".safetensors"
STALE_SECONDS = 24 * 60 * 60
"""Age at which a partly written file is assumed to belong to a dead process."""

_KEY = re.compile(r"[0-9a-f]{32,}")
_ENTRY = re.compile(rf"{_KEY.pattern}{re.escape(SUFFIX)}")
_PART = re.compile(rf"\.{_KEY.pattern}\.[0-9a-f]{{8}}\.part")


def root() -> Path | None:
    """The cache folder, which may not exist yet; ``None`` if caching is switched off."""
    if (given := os.environ.get("PTUNING_CACHE")) == "off":
        return None
    try:
        if given:
            return Path(given).expanduser().absolute()
        home = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification says to ignore a relative path.
        return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "ptuning"
    except RuntimeError:  # a user without a home folder
        return None


class _File(NamedTuple):
    """One file of the cache: when it was last used (ns since the epoch), and its size in bytes."""

    used: int
    path: Path
    size: int


@dataclass(frozen=True)
class Cache:
    """The cache entries of one kind, each a file named after its key.

    Attributes:
        kind: The name of the subfolder.
        limit: Maximum total size in bytes. Above it, the least recently used entries are evicted. 0 switches
            this cache off.
    """

    kind: Kind
    limit: int

    @property
    def folder(self) -> Path | None:
        """The folder of the entries, which may not exist yet; ``None`` if caching is switched off."""
        top = root()
        return None if top is None else top / self.kind

    def get(self, key: str) -> Path | None:
        """The entry's file, marked as used now; ``None`` on a miss.

        Another process may evict it before the caller opens it; that is a miss too.

        Args:
            key: A digest, in lower-case hexadecimal, of everything that the entry depends on.
        """
        path = self._path(key)
        if path is None:
            return None
        with suppress(OSError):  # owned by another user, or read-only: still readable
            os.utime(path)
        try:
            return path if path.is_file() else None
        except OSError:  # a folder without permission
            return None

    @contextmanager
    def adding(self, key: str, size: int) -> Iterator[Path | None]:
        """A path to write the entry to in the ``with`` block; leaving the block adds the complete entry.

        If the block raises, or leaves the file empty, nothing is added. An ``OSError`` of the block's own
        writes (a full disk) is raised as usual.

        Args:
            key: As in :meth:`get`. An existing entry is replaced.
            size: Bytes that will be written; older entries are evicted to make room.

        Yields:
            The path, or ``None`` if the entry does not fit or the folder is not writable.
        """
        part = self._start(key, size)
        if part is None:
            yield None
            return
        try:
            yield part
            with suppress(OSError):  # the folder may have been cleared or deleted meanwhile
                if part.stat().st_size:
                    os.utime(part)  # last used now, not when writing started
                    os.replace(part, part.with_name(key + SUFFIX))
                    self._trim(part.parent, self.limit)  # others may have added at the same time
        finally:
            with suppress(OSError):
                part.unlink()

    def usage(self) -> tuple[int, int]:
        """The number of entries, and their total size in bytes."""
        folder = self.folder
        found = [] if folder is None else _files(folder, _ENTRY)
        return len(found), sum(file.size for file in found)

    def clear(self) -> tuple[int, int]:
        """Delete all entries and partly written files. Returns the number of entries and the bytes freed."""
        folder = self.folder
        if folder is None:
            return 0, 0
        entries = [file for file in _files(folder, _ENTRY) if _unlinked(file)]
        parts = [file for file in _files(folder, _PART) if _unlinked(file)]
        return len(entries), sum(file.size for file in (*entries, *parts))

    def _path(self, key: str) -> Path | None:
        """The path of an entry; ``None`` if this cache is switched off."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"cache key: got {key!r}, expected a digest, 32 or more of 0-9 and a-f")
        folder = self.folder
        return None if folder is None or self.limit <= 0 else folder / (key + SUFFIX)

    def _start(self, key: str, size: int) -> Path | None:
        """A new file next to the entry's path, with room for ``size`` bytes; ``None`` if not possible."""
        path = self._path(key)
        if path is None or size > self.limit:
            return None
        part = path.with_name(f".{key}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.open("xb").close()  # the only reliable check for write permission
        except OSError:
            return None
        self._trim(path.parent, self.limit - size)
        return part

    def _trim(self, folder: Path, limit: int) -> None:
        """Delete stale partly written files, then the oldest entries until ``limit`` bytes remain."""
        for file in _files(folder, _PART):
            if file.used < (time.time() - STALE_SECONDS) * 1e9:
                _unlinked(file)
        entries = _files(folder, _ENTRY)
        total = sum(file.size for file in entries)
        for file in sorted(entries):
            if total <= limit:
                return
            _unlinked(file)
            total -= file.size  # even if another process deleted it first


def _files(folder: Path, name: re.Pattern[str]) -> list[_File]:
    """The folder's files with names that match; other files are never counted or deleted."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):  # evicted since
                    if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        facts = entry.stat(follow_symlinks=False)
                        found.append(_File(facts.st_mtime_ns, Path(entry.path), facts.st_size))
    except OSError:
        return []
    return found


def _unlinked(file: _File) -> bool:
    """Delete the file. Returns whether this call deleted it."""
    try:
        file.path.unlink()
    except OSError:
        return False
    return True
