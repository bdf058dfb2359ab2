"""Adapters that are sent to the server: unpacked with care, verified, and put in place in one step."""

from __future__ import annotations

import asyncio
import errno
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, TypeVar

from ptuning import adapters
from ptuning.adapters.atomic import remove_folder, replace_folder, writing_errors
from ptuning.errors import AdapterError, AdapterTooLarge, ConfigError, OutputError
from ptuning.serving.rows import Refusal

if TYPE_CHECKING:
    from ptuning.serving.tasks import ServedTask, TaskRegistry

_T = TypeVar("_T")

KIB = 1 << 10
MAX_FILES = 100
"""Of an archive, folders included."""
PART = 1 << 20
STAGED = ".upload-"
"""The prefix of folders that are being written; a watched folder's tasks do not start with a dot."""
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)

_ZIP_END = 22
"""Bytes of the last record of a zip, without its comment."""
_ZIP_END_SIGNATURE, _ZIP64_SIGNATURE = b"PK\x05\x06", b"PK\x06\x07"

_NAMES = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
"""Errors that the names in an archive cause."""

_UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,  # an encrypted file of a zip, or an unknown compression
)
"""What the standard library raises for damaged archives."""

Member = tuple[str, int, Callable[[], IO[bytes]]]
"""One file of an archive: its name, its size, and what opens it."""


class Uploads:
    """Adds and deletes tasks on request, one at a time.

    Args:
        tasks: The server's tasks.
        folder: Where adapters are written: the watched folder, or one of the server's own; ``None`` to
            refuse them.
        max_bytes: Maximum bytes of all files of an adapter.
        shared: Whether other servers serve the same tasks. Then only adapters in ``folder`` are deleted.
    """

    def __init__(
        self, tasks: TaskRegistry, folder: Path | None, max_bytes: int, *, shared: bool = False
    ) -> None:
        self.tasks, self.folder, self.max_bytes, self._shared = tasks, folder, max_bytes, shared
        self._one_at_a_time = asyncio.Lock()

    async def upload(self, name: str, archive: Path) -> ServedTask:
        """Serve the adapter in an archive, zip or tar.

        Raises:
            AdapterError: not an archive of one adapter, an altered one, or one for another backbone.
            AdapterTooLarge: more than :attr:`max_bytes`.
            OutputError: it could not be written. What was served before is unchanged.
            Refusal: 409, the task's folder exists and is not an adapter.
        """
        return await self._put(name, lambda new: unpack(archive, new, self.max_bytes), None)

    async def fetch(self, name: str, hub_id: str, revision: str | None) -> ServedTask:
        """Serve an adapter from the Hub.

        Raises:
            AdapterError: as for :meth:`upload`, or it is not reachable.
            OutputError, Refusal: as for :meth:`upload`.
        """
        if not _HUB_ID.fullmatch(hub_id) or Path(hub_id).exists():
            raise ConfigError("hub_id", got=repr(hub_id), expected="OWNER/NAME on the Hub")
        found = await asyncio.to_thread(adapters.locate, hub_id, revision=revision, max_bytes=self.max_bytes)

        def copy(new: Path) -> None:
            for file in adapters.OWN_FILES:
                if (found / file).is_file():
                    shutil.copyfile(found / file, new / file)

        return await self._put(name, copy, hub_id)

    async def delete(self, name: str) -> None:
        """Remove a task, and its folder if that is in :attr:`folder`.

        Raises:
            OutputError: the folder could not be removed. The task is still served.
            Refusal: 404, there is no such task; 403, other servers would still serve it.
        """
        async with self._one_at_a_time:
            served, target = self.tasks.get(name), self._folder() / name
            if adapters.is_adapter(target):  # otherwise it is somebody's other folder
                await asyncio.to_thread(remove_folder, target)
            elif self._shared and served.folder != target.absolute():  # otherwise another server removed it
                raise _fixed(f"the task {name!r} is not in the servers' folder")
            await asyncio.to_thread(self.tasks.remove, name)

    async def _put(self, name: str, fill: Callable[[Path], None], source: str | None) -> ServedTask:
        folder = self._folder()
        target = folder / name
        async with self._one_at_a_time:
            if os.path.lexists(target) and not adapters.is_adapter(target):
                message = (
                    f"the server's folder has {name!r} already, which is not an adapter; choose another name"
                )
                raise Refusal(status=409, kind="not_an_adapter", message=message)
            with _staging(folder, target) as staged:
                await asyncio.to_thread(_filled, staged, target, fill)
                served = await self.tasks.put(  # refuses what does not fit
                    name, staged, source or str(target), target
                )
                try:
                    await asyncio.to_thread(replace_folder, target, lambda new: _move(staged, new))
                except OutputError:
                    await self._restore(name, target)
                    raise
                return served

    async def _restore(self, name: str, target: Path) -> None:
        """Serve what is on disk again."""
        if adapters.is_adapter(target):
            await self.tasks.put(name, target)
        else:
            await asyncio.to_thread(self.tasks.remove, name)

    def _folder(self) -> Path:
        """Where adapters are written.

        Raises:
            Refusal: 403, nowhere.
        """
        if self.folder is None:
            raise _fixed("the servers have no folder that they share (--folder)")
        return self.folder


def _fixed(why: str) -> Refusal:
    return Refusal(status=403, kind="forbidden", message=f"tasks cannot be changed: {why}")


@contextmanager
def _staging(folder: Path, target: Path) -> Iterator[Path]:
    """A folder next to the place of the adapter, so that moving it there needs no space."""
    with writing_errors(target):
        folder.mkdir(0o700, parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=STAGED, dir=folder))
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _filled(staged: Path, target: Path, fill: Callable[[Path], None]) -> None:
    with writing_errors(target):
        fill(staged)
    adapters.verify(staged)


def _move(staged: Path, new: Path) -> None:
    for each in list(staged.iterdir()):
        os.rename(each, new / each.name)


# ---------------------------------------------------------------------------------------- archives


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Write the files of a zip or tar archive of one adapter to a folder.

    A folder that everything in the archive is in is left out. Nothing is written outside ``folder``, and
    nothing but ordinary files.

    Raises:
        AdapterError: not such an archive, or more than :data:`MAX_FILES`.
        AdapterTooLarge: more than ``max_bytes``.
    """
    try:
        with _opened(archive) as members:
            _write(members, folder, max_bytes)
    except AdapterError:
        raise
    except _UNREADABLE as error:
        raise AdapterError(f"the archive cannot be read: {error}") from error
    except OSError as error:
        # The disk's, except a place in front of the file. Those of gzip and bzip2 have no number.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise AdapterError(f"the archive cannot be read: {error}") from error
    inner = list(folder.iterdir())
    if len(inner) == 1 and inner[0].is_dir():
        aside = inner[0].rename(folder / f"{STAGED}inner")
        _move(aside, folder)
        aside.rmdir()


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[Member]]:
    if zipfile.is_zipfile(archive):
        _check_directory(archive)
        with zipfile.ZipFile(archive) as packed:
            yield _zipped(packed)
        return
    try:
        packed_tar = tarfile.open(archive, tarinfo=_Member)  # noqa: SIM115
    except tarfile.ReadError:
        expected = "a zip or tar of an adapter folder"
        raise AdapterError("the body", got="something else", expected=expected) from None
    with packed_tar:
        yield _tarred(packed_tar)


def _check_directory(archive: Path) -> None:
    """Refuse a zip whose list of files is long: it would be read into memory entirely.

    Raises:
        AdapterError: it is.
    """
    with archive.open("rb") as stream:
        stream.seek(max(0, archive.stat().st_size - _ZIP_END - 0xFFFF))
        tail = stream.read()
    last = tail[-_ZIP_END:]  # where it is, unless there is a comment behind it
    plain = last.startswith(_ZIP_END_SIGNATURE) and last.endswith(b"\0\0")
    start = len(tail) - _ZIP_END if plain else tail.rfind(_ZIP_END_SIGNATURE)
    size = int.from_bytes(tail[start + 12 : start + 16], "little")
    if size > MAX_FILES * KIB or tail[max(0, start - 20) : start].startswith(_ZIP64_SIGNATURE):
        raise _too_many()


def _zipped(packed: zipfile.ZipFile) -> Iterator[Member]:
    for info in _few(packed.infolist()):
        mode = info.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise AdapterError(f"the archive has {info.filename!r}, which is not an ordinary file")
        if not info.is_dir():
            yield info.filename, info.file_size, lambda info=info: packed.open(info)  # type: ignore[misc]


class _Member(tarfile.TarInfo):
    """A file of a tar whose name is not long: names that are stored as files are read into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in tarfile.REGULAR_TYPES and self.size > 64 * KIB:
            raise AdapterError("the archive has a name or attributes that are too long")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return found


def _tarred(packed: tarfile.TarFile) -> Iterator[Member]:
    for info in _few(packed):
        if info.isdir():
            continue
        if not info.isreg():
            raise AdapterError(f"the archive has {info.name!r}, which is not an ordinary file")
        yield info.name, info.size, lambda info=info: packed.extractfile(info)  # type: ignore[misc]


def _few(members: Iterable[_T]) -> Iterator[_T]:
    for number, member in enumerate(members, start=1):
        if number > MAX_FILES:
            raise _too_many()
        yield member


def _too_many() -> AdapterError:
    return AdapterError(f"the archive has more than {MAX_FILES} files")


def _too_large(max_bytes: int) -> AdapterTooLarge:
    return AdapterTooLarge(f"the archive's files have more than {max_bytes:,} bytes")


def _write(members: Iterator[Member], folder: Path, max_bytes: int) -> None:
    left = max_bytes
    for name, size, opened in members:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
            raise AdapterError(f"the archive has {name!r}, which is not a path inside of it")
        if size > left:
            raise _too_large(max_bytes)
        target = folder.joinpath(*path.parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            made = open(target, "xb")  # noqa: SIM115
        except OSError as error:
            if error.errno not in _NAMES:
                raise
            raise AdapterError(f"the archive has {name!r}: {error.strerror}") from error
        with made as stream, opened() as source:
            while part := source.read(PART):
                left -= len(part)  # a zip's sizes may be wrong
                if left < 0:
                    raise _too_large(max_bytes)
                stream.write(part)
