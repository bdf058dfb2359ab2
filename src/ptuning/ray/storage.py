"""Files on any file system of pyarrow: a local path, or a URI such as ``s3://bucket/folder``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from ptuning.data.places import first_line
from ptuning.errors import ConfigError, DataError
from ptuning.paths import local_path

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WILD = re.compile(r"[*?\[]")


class Place(NamedTuple):
    """A path on a file system.

    Attributes:
        filesystem: The file system.
        path: The path, as the file system has it.
        shown: As the user named it.
    """

    filesystem: fs.FileSystem
    path: str
    shown: str


class Found(NamedTuple):
    """A file.

    Attributes:
        path: As the file system has it.
        nbytes: Its size.
    """

    path: str
    nbytes: int


def place_of(name: str, option: str, filesystem: fs.FileSystem | None = None) -> Place:
    """Where a name of a user's is.

    Args:
        name: A local path or a URI; with ``filesystem``, a path on it.
        option: What names it, for the message.
        filesystem: A file system of the caller's.

    Raises:
        ConfigError: no such kind of file system, or it cannot be opened.
    """
    if filesystem is not None:
        return Place(filesystem, name.rstrip("/"), name)
    if not _URI.match(name):
        path = os.path.abspath(local_path(name, option))
        return Place(fs.LocalFileSystem(), path, name)
    try:
        found, path = fs.FileSystem.from_uri(name)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ValueError) as error:
        raise ConfigError(
            option,
            got=f"{name} ({first_line(error)})",
            expected="a path, or a URI that pyarrow can open: s3://, gs://, abfss://, hdfs://, file://",
        ) from error
    return Place(found, path.rstrip("/"), name)


def files_of(name: str, option: str, filesystem: fs.FileSystem | None = None) -> tuple[Place, list[Found]]:
    """The files that a name of a user's means, sorted: a file, a folder with its sub-folders, or a pattern.

    In a pattern, ``*`` and ``?`` match within a name and ``**`` any folders. The name of a file or folder
    that exists is not a pattern. In a URI, ``?`` begins the options of the file system. Files and folders
    with a name that starts with ``_`` or ``.`` are left out unless they are named.

    Raises:
        ConfigError: see :func:`place_of`.
        DataError: no file is there, or it cannot be listed.
    """
    options = ""
    path = name
    if filesystem is None and _URI.match(name):
        path, mark, rest = name.partition("?")
        options = mark + rest
    wild = _WILD.search(path)
    if wild is None or _exists(name, option, filesystem):
        place = place_of(name, option, filesystem)
        with _listing(name):
            info = place.filesystem.get_file_info(place.path)
            if info.type == fs.FileType.File:
                return place, [Found(place.path, info.size)]
            if info.type == fs.FileType.NotFound:
                raise DataError(f"{option}: there is no {name}", remedy="check the name")
            found = _below(place, recursive=True)
    else:
        base = path[: path.rindex("/", 0, wild.start()) + 1] if "/" in path[: wild.start()] else ""
        place = place_of((base or ("." if filesystem is None else "")) + options, option, filesystem)
        pattern = _expression(path[len(base) :])
        start = len(place.path.rstrip("/")) + 1 if place.path else 0
        with _listing(name):
            every = _below(place, recursive="/" in path[wild.start() :] or "**" in path)
        found = [each for each in every if pattern.fullmatch(each.path[start:])]
    if not found:
        raise DataError(f"{option}: there are no files in {name}", remedy="check the name")
    return Place(place.filesystem, place.path, name), sorted(found)


def _exists(name: str, option: str, filesystem: fs.FileSystem | None) -> bool:
    """Whether a name with the characters of a pattern is that of a file or folder."""
    try:
        place = place_of(name, option, filesystem)
        return bool(place.filesystem.get_file_info(place.path).type != fs.FileType.NotFound)
    except (ConfigError, OSError, pa.ArrowException):
        return False  # what is wrong is said where the folder is listed


def _below(place: Place, *, recursive: bool) -> list[Found]:
    """The files in a folder that are not hidden."""
    start = len(place.path)
    selector = fs.FileSelector(place.path, recursive=recursive)
    return [
        Found(info.path, info.size)
        for info in place.filesystem.get_file_info(selector)
        if info.type == fs.FileType.File
        and not any(part.startswith(("_", ".")) for part in info.path[start:].split("/") if part)
    ]


def _expression(pattern: str) -> re.Pattern[str]:
    """A pattern of names as a regular expression."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return re.compile(
        "".join(
            parts.get(token) or (token.replace("[!", "[^") if token[:1] == "[" else re.escape(token))
            for token in tokens
        )
    )


@contextmanager
def _listing(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{name} cannot be listed ({first_line(error)})", remedy="check the name and your access to it"
        ) from error
