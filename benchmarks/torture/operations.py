"""The file operations of a run, counted, so that a trial can do something at the k-th of them."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink")


def watch(root: Path, at: Callable[[int, str], None]) -> None:
    """Call ``at`` before every operation that changes ``root``, for the rest of this process.

    Args:
        at: Is given the operation's number, from 1 on, and its name; what it raises, the operation raises.
    """
    count = 0

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            mode, flags = given[1], given[2] if isinstance(given[2], int) else 0
            writes = any(letter in mode for letter in "wxa+") if isinstance(mode, str) else False
            if not writes and not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in EVENTS:
            return
        place = given[0]
        if isinstance(place, (str, bytes, os.PathLike)) and Path(os.fsdecode(place)).is_relative_to(root):
            count += 1
            at(count, f"{event} {_named(Path(os.fsdecode(place)), root)}")

    sys.addaudithook(hook)


def counted(root: Path, work: Callable[[], object], report: Path) -> None:
    """Do ``work`` and write the names of its operations, a line each."""
    names: list[str] = []
    watch(root, lambda number, name: names.append(name))
    work()
    found = list(names)  # the report is an operation as well
    report.write_text("\n".join(found))


def telling(names: Sequence[str], random: Random) -> list[tuple[int, str]]:
    """The numbers of the operations worth trying: of each name the first, the last and one between."""
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names, start=1):
        places.setdefault(name, []).append(number)
    chosen = {n for found in places.values() for n in (found[0], random.choice(found), found[-1])}
    return [(number, name) for number, name in enumerate(names, start=1) if number in chosen]


def kill_at(number: int, *, inside: int | None = None) -> Callable[[int, str], None]:
    """For :func:`watch`: SIGKILL at an operation; or, where it opens a file, behind so many bytes of it."""

    def at(count: int, name: str) -> None:
        if count == number and (inside is None or not name.startswith("open ")):
            os.kill(os.getpid(), signal.SIGKILL)
        elif count == number and inside is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (inside, inside))

    return at


def fail_from(number: int, code: int) -> Callable[[int, str], None]:
    """For :func:`watch`: operations fail from one on; on a disk that is full, deleting and renaming go on."""
    full = code in (errno.ENOSPC, errno.EDQUOT)

    def at(count: int, name: str) -> None:
        if count >= number and not (full and name.startswith(("os.rename", "os.remove", "os.rmdir"))):
            raise OSError(code, os.strerror(code))

    return at


def _named(place: Path, root: Path) -> str:
    """A place below the root, without the random part of a temporary name."""
    return re.sub(r"-[0-9a-f]{6,}", "-XXXX", str(place.relative_to(root)))
