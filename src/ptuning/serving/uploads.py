"""Adapters that are sent to the server: unpacked with care, verified, and put in place in one step."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, TypeVar

from ptuning import adapters
from ptuning.adapters.atomic import remove_folder, replace_folder, writing_errors
from ptuning.errors import AdapterError, ConfigError, OutputError

if TYPE_CHECKING:
    from ptuning.serving.tasks import ServedTask, TaskRegistry

_T = TypeVar("_T")

MAX_FILES = 100
PART = 1 << 20
STAGED = ".upload-"
"""The prefix of folders that are being written; a watched folder's tasks do not start with a dot."""
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)

_NAMES = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
"""Errors that the names in an archive cause."""

Member = tuple[str, int, Callable[[], IO[bytes]]]
"""One file of an archive: its name, its size, and what opens it."""


class Uploads:
    """Adds and deletes tasks on request, one at a time.

    Args:
        tasks: The server's tasks.
        folder: Where adapters are written: the watched folder, or one of the server's own.
        max_bytes: Maximum bytes of all files of an adapter.
    """

    def __init__(self, tasks: TaskRegistry, folder: Path, max_bytes: int) -> None:
        self.tasks, self.folder, self.max_bytes = tasks, folder, max_bytes
        self._one_at_a_time = asyncio.Lock()

    async def upload(self, name: str, archive: Path) -> ServedTask:
        """Serve the adapter in an archive, zip or tar.

        Raises:
            AdapterError: not an archive of one adapter, an altered one, or one for another backbone.
            OutputError: it could not be written. What was served before is unchanged.
        """
        return await self._put(name, lambda new: unpack(archive, new, self.max_bytes), None)

    async def fetch(self, name: str, hub_id: str, revision: str | None) -> ServedTask:
        """Serve an adapter from the Hub.

        Raises:
            AdapterError: as for :meth:`upload`, or it is not reachable.
            OutputError: as for :meth:`upload`.
        """
        if not _HUB_ID.fullmatch(hub_id) or Path(hub_id).exists():
            raise ConfigError("hub_id", got=repr(hub_id), expected="OWNER/NAME on the Hub")
        found = await asyncio.to_thread(adapters.locate, hub_id, revision=revision)

        def copy(new: Path) -> None:
            for file in adapters.OWN_FILES:
                if (found / file).is_file():
                    shutil.copyfile(found / file, new / file)

        return await self._put(name, copy, hub_id)

    async def delete(self, name: str) -> None:
        """Remove a task, and its folder if that is in :attr:`folder`.

        Raises:
            OutputError: the folder could not be removed. The task is still served.
            Refusal: 404, there is no such task.
        """
        async with self._one_at_a_time:
            self.tasks.get(name)
            await asyncio.to_thread(remove_folder, self.folder / name)
            await self.tasks.delete(name)

    async def _put(self, name: str, fill: Callable[[Path], None], source: str | None) -> ServedTask:
        target = self.folder / name
        async with self._one_at_a_time:
            with self._staging(target) as staged:
                await asyncio.to_thread(_filled, staged, target, fill)
                await self.tasks.put(name, staged, source)  # refuses what does not fit
                try:
                    await asyncio.to_thread(replace_folder, target, lambda new: _move(staged, new))
                except OutputError:
                    await self._restore(name, target)
                    raise
                return await self.tasks.put(name, target, source)

    async def _restore(self, name: str, target: Path) -> None:
        """Serve what is on disk again."""
        if adapters.is_adapter(target):
            await self.tasks.put(name, target)
        else:
            await self.tasks.delete(name)

    @contextmanager
    def _staging(self, target: Path) -> Iterator[Path]:
        """A folder next to the place of the adapter, so that moving it there needs no space."""
        with writing_errors(target):
            self.folder.mkdir(0o700, parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(prefix=STAGED, dir=self.folder))
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
        AdapterError: not such an archive, or more than ``max_bytes`` or :data:`MAX_FILES`.
    """
    try:
        with _opened(archive) as members:
            _write(members, folder, max_bytes)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"the archive cannot be read: {error}") from error
    except RuntimeError as error:  # zipfile's, for an encrypted file
        raise AdapterError(f"the archive cannot be read: {error}") from error
    inner = list(folder.iterdir())
    if len(inner) == 1 and inner[0].is_dir():
        aside = inner[0].rename(folder / f"{STAGED}inner")
        _move(aside, folder)
        aside.rmdir()


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield _zipped(packed)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as packed_tar:
            yield _tarred(packed_tar)
    else:
        raise AdapterError("the body", got="something else", expected="a zip or tar of an adapter folder")


def _zipped(packed: zipfile.ZipFile) -> Iterator[Member]:
    for info in packed.infolist():
        mode = info.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise AdapterError(f"the archive has {info.filename!r}, which is not an ordinary file")
        if not info.is_dir():
            yield info.filename, info.file_size, lambda info=info: packed.open(info)  # type: ignore[misc]


def _tarred(packed: tarfile.TarFile) -> Iterator[Member]:
    for info in packed:
        if info.isdir():
            continue
        if not info.isreg():
            raise AdapterError(f"the archive has {info.name!r}, which is not an ordinary file")
        yield info.name, info.size, lambda info=info: packed.extractfile(info)  # type: ignore[misc]


def _write(members: Iterator[Member], folder: Path, max_bytes: int) -> None:
    left = max_bytes
    for number, (name, size, opened) in enumerate(members, start=1):
        if number > MAX_FILES:
            raise AdapterError(f"the archive has more than {MAX_FILES} files")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
            raise AdapterError(f"the archive has {name!r}, which is not a path inside of it")
        if size > left:
            raise AdapterError(f"the archive's files have more than {max_bytes:,} bytes")
        target = folder.joinpath(*path.parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            made = open(target, "xb")  # noqa: SIM115
        except OSError as error:
            if error.errno not in _NAMES:
                raise
            raise AdapterError(f"the archive has {name!r}: {error.strerror}") from error
        with opened() as source, made as stream:
            while part := source.read(PART):
                left -= len(part)  # a zip's sizes may be wrong
                if left < 0:
                    raise AdapterError(f"the archive's files have more than {max_bytes:,} bytes")
                stream.write(part)
