"""What was computed once and may be needed again, on disk: bounded, and shared by processes.

It is at ``$PTUNING_CACHE``, or in ``ptuning`` under ``$XDG_CACHE_HOME``, or in ``~/.cache/ptuning``;
``PTUNING_CACHE=off`` switches it off. A cache is never a reason to fail: where it cannot be read there is
nothing in it, and where it cannot be written nothing is put there. It may be deleted at any time.

Nothing is locked. An entry is one file that appears whole under its name or not at all, and whoever has it
open keeps it after it was thrown out. It is not flushed to the disk, so after a power cut it may be damaged:
readers check what they read, and take anything odd for a miss.
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
ABANDONED = 24 * 60 * 60
"""Seconds after which a file that somebody began to write belongs to a process that is no more."""

_KEY = re.compile(r"[0-9a-f]{32,}")
_ENTRY = re.compile(rf"{_KEY.pattern}{re.escape(SUFFIX)}")
_PART = re.compile(rf"\.{_KEY.pattern}\.[0-9a-f]{{8}}\.part")


def root() -> Path | None:
    """The folder of all kinds, whether or not it is there; ``None`` where caching is switched off."""
    if (given := os.environ.get("PTUNING_CACHE")) == "off":
        return None
    try:
        if given:
            return Path(given).expanduser().absolute()
        home = os.environ.get("XDG_CACHE_HOME", "")
        # The specification has a relative path ignored.
        return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "ptuning"
    except RuntimeError:  # a user without a home
        return None


class _File(NamedTuple):
    """One file of a cache: when it was last used, in ns of the epoch, and its bytes."""

    used: int
    path: Path
    size: int


@dataclass(frozen=True)
class Cache:
    """The entries of one kind, each a file under a key.

    Attributes:
        kind: The subfolder.
        limit: Bytes of all entries together. If they are more, those that were not used for longest
            go. 0 switches this cache off.
    """

    kind: Kind
    limit: int

    @property
    def folder(self) -> Path | None:
        """Where the entries are, whether or not there are any; ``None`` where caching is switched off."""
        top = root()
        return None if top is None else top / self.kind

    def get(self, key: str) -> Path | None:
        """The entry's file, which counts as used now; ``None`` if there is none.

        It may be thrown out before it is opened: that is a miss too.

        Args:
            key: A digest in lower-case hexadecimal, of all that the entry depends on.
        """
        path = self._path(key)
        if path is None:
            return None
        with suppress(OSError):  # somebody else's, or on a disk that is read-only: still good to read
            os.utime(path)
        try:
            return path if path.is_file() else None
        except OSError:  # a folder that may not be looked into
            return None

    @contextmanager
    def adding(self, key: str, size: int) -> Iterator[Path | None]:
        """A path to write the entry to, in the ``with`` block; on leaving it, the entry is there, whole.

        An exception in the block, or an empty file, leaves nothing behind. What the system refuses
        while the block writes (a full disk) is the block's own ``OSError``.

        Args:
            key: As in :meth:`get`. An entry that is there already is replaced.
            size: Bytes that will be written, for which room is made before.

        Yields:
            The path, or ``None`` where the entry would not fit or the folder cannot be written.
        """
        part = self._begin(key, size)
        if part is None:
            yield None
            return
        try:
            yield part
            with suppress(OSError):  # the folder was cleared, or went, meanwhile
                if part.stat().st_size:
                    os.utime(part)  # now is when it is used, not when its first byte was written
                    os.replace(part, part.with_name(key + SUFFIX))
                    self._trim(part.parent, self.limit)  # others may have added at the same time
        finally:
            with suppress(OSError):
                part.unlink()

    def usage(self) -> tuple[int, int]:
        """How many entries there are, and their bytes."""
        folder = self.folder
        found = [] if folder is None else _files(folder, _ENTRY)
        return len(found), sum(file.size for file in found)

    def clear(self) -> tuple[int, int]:
        """Delete every entry, and what was half-written; how many entries they were, and the bytes freed."""
        folder = self.folder
        if folder is None:
            return 0, 0
        entries = [file for file in _files(folder, _ENTRY) if _unlinked(file)]
        parts = [file for file in _files(folder, _PART) if _unlinked(file)]
        return len(entries), sum(file.size for file in (*entries, *parts))

    def _path(self, key: str) -> Path | None:
        """The entry's place; ``None`` where this cache is switched off."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"cache key: got {key!r}, expected a digest, 32 or more of 0-9 and a-f")
        folder = self.folder
        return None if folder is None or self.limit <= 0 else folder / (key + SUFFIX)

    def _begin(self, key: str, size: int) -> Path | None:
        """A new file beside the entry's place, with room for ``size`` bytes; ``None`` if there cannot be."""
        path = self._path(key)
        if path is None or size > self.limit:
            return None
        part = path.with_name(f".{key}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.open("xb").close()  # the one sure way to learn whether it may be written
        except OSError:
            return None
        self._trim(path.parent, self.limit - size)
        return part

    def _trim(self, folder: Path, limit: int) -> None:
        """Throw out what crashes left, and what was not used for longest until ``limit`` bytes are left."""
        for file in _files(folder, _PART):
            if file.used < (time.time() - ABANDONED) * 1e9:
                _unlinked(file)
        entries = _files(folder, _ENTRY)
        total = sum(file.size for file in entries)
        for file in sorted(entries):
            if total <= limit:
                return
            _unlinked(file)
            total -= file.size  # also where another process was quicker


def _files(folder: Path, name: re.Pattern[str]) -> list[_File]:
    """The folder's files of that name; others in it are not ours to count, and never deleted."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):  # thrown out since
                    if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        facts = entry.stat(follow_symlinks=False)
                        found.append(_File(facts.st_mtime_ns, Path(entry.path), facts.st_size))
    except OSError:
        return []
    return found


def _unlinked(file: _File) -> bool:
    """Delete it; whether this call did."""
    try:
        file.path.unlink()
    except OSError:
        return False
    return True
