"""Compressed files, archives and folders, and errors for unreadable ones."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from ptuning.data.places import listing
from ptuning.errors import DataError

Opener = Callable[[], IO[bytes]]

COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
_FOREIGN = {
    b"\xd0\xcf\x11\xe0": "an old Excel file (.xls) or one with a password",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite database",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x80\x04\x95": "a pickle, which is never read because it could run code",
}


def compression_of(head: bytes) -> str | None:
    """The compression of a file with these first bytes, if any."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


class _Decompressed(io.BufferedIOBase):
    """A decompressed stream, which closes the compressed one as well."""

    def __init__(self, inner: Any, outer: IO[bytes]) -> None:
        self._inner = inner
        self._outer = outer

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        return cast(bytes, self._inner.read(None if size == -1 else size))

    def read1(self, size: int = -1) -> bytes:
        return cast(bytes, self._inner.read1(size))

    def close(self) -> None:
        super().close()
        self._inner.close()
        self._outer.close()


def decompressed(stream: IO[bytes], how: str) -> IO[bytes]:
    """``stream``, decompressed."""
    inner: Any
    if how == "zstandard":
        pa = importlib.import_module("pyarrow")
        inner = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd"))
    elif how == "gzip":
        inner = gzip.GzipFile(fileobj=stream)
    elif how == "bzip2":
        inner = bz2.BZ2File(stream)
    else:
        inner = lzma.LZMAFile(stream)  # noqa: SIM115, closed with what it is in
    return cast(IO[bytes], _Decompressed(inner, stream))


def refuse_foreign(head: bytes, name: str) -> None:
    """Refuse files of other kinds by their first bytes.

    Raises:
        DataError: It is a known kind of file that cannot be read as a table.
    """
    what = next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), None)
    if what is None and head[257:262] == b"ustar":
        what = "a tar archive"
    if what is not None:
        raise DataError(
            f"{name} is {what}",
            expected="a file of rows",
            remedy="open it where it was made and save the rows as CSV (UTF-8), .xlsx, JSON lines or Parquet",
        )


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn system errors for unreadable or damaged files into a :class:`DataError`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{name}: not a complete {_kind(name, error)} file ({error})",
            expected="one, judging by its name or first bytes",
            remedy="copy or compress it again",
        ) from error
    except OSError as error:
        raise DataError(
            f"{name} cannot be read ({error.strerror or error})",
            expected="a readable file",
            remedy="check its permissions and the disk",
        ) from error


def _kind(name: str, error: Exception) -> str:
    if isinstance(error, zipfile.BadZipFile):
        return "zip"
    return next((kind for suffix, kind in COMPRESSED.items() if name.lower().endswith(suffix)), "compressed")


# Archives -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a zip archive."""

    archive: Path
    name: str

    @property
    def path(self) -> Path:
        """Its name, as if the archive were a folder."""
        return self.archive / self.name

    def open(self) -> IO[bytes]:
        """Its bytes, as a stream."""
        with zipfile.ZipFile(self.archive) as archive:
            try:
                return archive.open(self.name)  # keeps the file open until it is closed itself
            except (RuntimeError, NotImplementedError, ValueError) as error:
                raise DataError(
                    f"{self.path} cannot be read ({error})",
                    expected="a zip archive without a password, packed in a common way",
                    remedy="unpack it, and name the file",
                ) from error


def is_zip(head: bytes) -> bool:
    """Whether a file with these first bytes is a zip archive."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def zip_names(path: Path) -> list[str]:
    """The files in an archive, without hidden and system files."""
    with readable(str(path)):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise zipfile.BadZipFile(str(error)) from error
    hidden = (".", "__MACOSX")
    return [
        name
        for name in names
        if name and not name.endswith("/") and not any(part.startswith(hidden) for part in name.split("/"))
    ]


def only_member(path: Path, names: list[str], wanted: Callable[[str], bool]) -> Member:
    """The only file of rows in an archive.

    Raises:
        DataError: There is no such file, or more than one.
    """
    tables = [name for name in names if wanted(name)] or names
    if len(tables) != 1:
        how = (
            f"name the one to be read, such as {path}/{tables[0]}"
            if tables
            else "check that this is the right file"
        )
        raise DataError(
            str(path),
            got=f"{len(tables)} files ({listing(tables, 8)})",
            expected="one file of rows",
            remedy=how,
        )
    return Member(archive=path, name=tables[0])


def member_at(path: Path) -> Member | None:
    """The file inside an archive that a path names, as if the archive were a folder."""
    for parent in path.parents:
        if parent.is_file():
            with parent.open("rb") as file:
                if not is_zip(file.read(4)):
                    return None
            name = path.relative_to(parent).as_posix()
            names = zip_names(parent)
            if name not in names:
                raise DataError(f"{parent} has no file {name!r}", expected=f"one of {listing(names, 8)}")
            return Member(archive=parent, name=name)
    return None


# Folders ------------------------------------------------------------------------------------------

SPLITS = ("train", "training", "test", "testing", "dev", "val", "valid", "validation", "eval")
UNLABELLED = ("unsup", "unsupervised", "unlabelled", "unlabeled")


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A text in a file of its own. Its label is the name of the folder, if there are several folders."""

    path: Path
    label: str | None


def text_files(folder: Path) -> tuple[list[TextFile], list[str]]:
    """The ``.txt`` files of a folder with one sub-folder per label, and the sub-folders that are left out.

    Raises:
        DataError: The sub-folders are splits.
    """
    inside = visible(folder)
    folders = [each for each in inside if each.is_dir()]
    labels = {each.name: _texts(each) for each in folders}
    if any(name.lower() in SPLITS for name in labels):
        raise DataError(
            f"{folder} has a sub-folder per split ({listing(labels)})",
            expected="the rows of one split",
            remedy=f"name one, such as {folders[0]}",
        )
    left_out = [name for name in labels if name.lower() in UNLABELLED]
    return [
        TextFile(path=path, label=name)
        for name, paths in labels.items()
        if name not in left_out
        for path in paths
    ], left_out


def visible(folder: Path) -> list[Path]:
    """The entries of a folder, sorted, without hidden ones."""
    return sorted(each for each in folder.iterdir() if not each.name.startswith((".", "_")))


def _texts(folder: Path) -> list[Path]:
    return [each for each in visible(folder) if each.suffix.lower() == ".txt" and each.is_file()]


def refuse_splits(folder: Path, files: list[Path]) -> None:
    """Refuse a folder with files of several splits, which would be mixed.

    Raises:
        DataError: It has files of several splits.
    """
    kinds: dict[Any, Path] = {}
    for file in files:
        word = file.name.lower().replace("-", ".").replace("_", ".").split(".")[0]
        kinds.setdefault(word if word in SPLITS else None, file)
    if len(kinds) > 1 or (len(files) > 1 and None not in kinds and len(kinds) != 1):
        raise DataError(
            f"{folder} has files of several splits ({listing([file.name for file in files], 6)})",
            expected="the rows of one",
            remedy=f"name a file, such as {next(iter(kinds.values()))}",
        )
