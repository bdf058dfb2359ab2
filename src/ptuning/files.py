"""Safe reading of untrusted files: regular files of bounded size, and JSON of bounded depth."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON_BYTES = 64 << 20
"""Maximum size of a JSON file; a record of 100,000 labels takes a tenth of that."""
MAX_JSON_DEPTH = 40
"""Maximum nesting of JSON; files that ptuning writes have a depth of about six."""


def read_regular(file: str | os.PathLike[str], max_bytes: int | None = None) -> bytes:
    """All bytes of a regular file. Pipes and devices, which might never end, are refused without waiting.

    Args:
        max_bytes: Maximum size; unlimited if ``None``.

    Raises:
        OSError: not a regular file, too large, or unreadable; ``strerror`` says which.
    """
    if "\0" in os.fspath(file):
        raise OSError(errno.EINVAL, "its name contains a NUL character", str(file))
    with open(file, "rb", opener=_open_nonblocking) as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(file))
        if max_bytes is not None and found.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"it is larger than {max_bytes >> 20} MB", str(file))
        return stream.read()


def _open_nonblocking(file: str, flags: int) -> int:
    return os.open(file, flags | getattr(os, "O_NONBLOCK", 0))


def is_special(file: Path) -> bool:
    """Whether ``file`` exists (links followed) and is neither a file nor a folder: a pipe, a device."""
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def parse_json(data: bytes) -> Any:
    """The value of JSON text in UTF-8, nested at most :data:`MAX_JSON_DEPTH` deep.

    Raises:
        ValueError: not valid JSON (``NaN``, ``Infinity`` and numbers beyond a double are refused too), or
            nested deeper.
    """
    try:
        found = json.loads(data.decode(), parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH}") from None
    if _depth(found) > MAX_JSON_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH}")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _depth(value: Any) -> int:
    """How deep lists and dictionaries are nested."""
    depth, layer = 0, [value]
    while layer := [each for each in layer if isinstance(each, list | dict)]:
        depth += 1
        layer = [inner for each in layer for inner in (each.values() if isinstance(each, dict) else each)]
    return depth
