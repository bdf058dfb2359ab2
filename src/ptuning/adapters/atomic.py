"""A folder replaced in one step: whoever looks sees the old one or the new one, never half.

It is written beside its place as ``.NAME.tmp-XXXXXXXX``, flushed to the disk, and swapped in. Where Linux
can exchange two names it does; elsewhere the old folder is moved aside first, and back if that fails.
Nothing here knows what is in the folder. Left-over siblings of a crashed process are never read.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path

from safetensors import SafetensorError

from ptuning.errors import OutputError, PTuningError

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some of your quota, or choose another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a disk that is not read-only",
    errno.EBUSY: "choose a folder that is no mount point",
}


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Put a new folder at ``target``, in place of the one that stands there, if one does.

    Args:
        target: An absolute path; its parents are made if need be.
        fill: Writes the content into the new folder that it is given.

    Raises:
        OutputError: it could not be written. What stood at ``target`` stands there still.
    """
    new = _sibling(target, "tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()  # not tempfile.mkdtemp, whose folder only its owner may read
        fill(new)
        _flush_tree(new)
        _put(new, target)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        # safetensors reports a full disk as an error of its own
        if isinstance(error, OSError | SafetensorError) and not isinstance(error, PTuningError):
            raise OutputError(_could_not_write(target, error)) from error
        raise


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def moved_aside(target: Path) -> Path | None:
    """Where an interrupted replacement left the old folder, if there is none at ``target`` now."""
    if target.exists() or not target.parent.is_dir():
        return None
    return max(target.parent.glob(f".{escape(target.name)}.old-????????"), key=_age, default=None)


def _sibling(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}-{secrets.token_hex(4)}")


def _age(folder: Path) -> float:
    return folder.stat().st_mtime


def _put(new: Path, target: Path) -> None:
    if not target.exists():
        os.rename(new, target)
    elif _exchange(new, target):
        shutil.rmtree(new, ignore_errors=True)
    else:
        aside = _sibling(target, "old")
        os.rename(target, aside)
        try:
            os.rename(new, target)
        except BaseException:
            os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _flush_folder(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in a single step; ``False``, with nothing done, where the system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return (
        renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
    )


def _flush_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb+") as stream:
                os.fsync(stream.fileno())
        _flush_folder(Path(place))


def _flush_folder(folder: Path) -> None:
    """Make new names durable. Some systems cannot flush a folder; the names then follow in their own time."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _could_not_write(target: Path, error: OSError | SafetensorError) -> str:
    code = getattr(error, "errno", None)
    reason = (getattr(error, "strerror", None) or " ".join(str(error).split())).rstrip(".")
    remedy = _REMEDIES.get(code or 0, "choose another folder")
    return f"could not write {target}: {reason}. What stood there before is untouched; {remedy}"
