"""Reading a file that someone else wrote: a bounded number of bytes of a regular file, and sane JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST_BYTES = 64 << 20
"""The largest JSON file that is read; a record of 100,000 labels takes a tenth of that."""
DEEPEST = 40
"""How deep JSON may be nested; what ptuning writes has a depth of about six."""


def read_regular(file: str | os.PathLike[str], most: int | None = None) -> bytes:
    """All bytes of a regular file; a pipe or a device, which might never end, is not waited for.

    Args:
        most: The most bytes that it may have; any number if ``None``.

    Raises:
        OSError: it is no regular file, is larger, or cannot be read; ``strerror`` says which.
    """
    if "\0" in os.fspath(file):
        raise OSError(errno.EINVAL, "no file's name holds a NUL", str(file))
    with open(file, "rb", opener=_without_waiting) as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(file))
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MB", str(file))
        return stream.read()


def _without_waiting(file: str, flags: int) -> int:
    return os.open(file, flags | getattr(os, "O_NONBLOCK", 0))


def is_special(file: Path) -> bool:
    """Whether ``file`` is there, behind links, and neither a file nor a folder: a pipe, a device."""
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def parse_json(data: bytes) -> Any:
    """What JSON text in UTF-8 says, if it is nested no deeper than :data:`DEEPEST`.

    Raises:
        ValueError: no JSON (``NaN`` and ``Infinity`` are none, nor is a number that no double holds), or
            nested deeper.
    """
    try:
        found = json.loads(data.decode(), parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from None
    if _depth(found) > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST}")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _depth(value: Any) -> int:
    """How deep lists and dictionaries are nested in each other, layer by layer."""
    depth, layer = 0, [value]
    while layer := [each for each in layer if isinstance(each, list | dict)]:
        depth += 1
        layer = [inner for each in layer for inner in (each.values() if isinstance(each, dict) else each)]
    return depth
