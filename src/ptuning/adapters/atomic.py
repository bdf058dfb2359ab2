"""Atomic replacement of files and folders: a reader sees the old one or the new one, never a partial one.

While ``NAME`` is written, these are next to it (``TOKEN`` identifies the machine's boot and the writer):

``.NAME.lock``
    locked (``flock``) by all writers of ``NAME``; the system unlocks it when a process dies
``.NAME.tmp-TOKEN``
    incomplete, or to be deleted
``.NAME.new-TOKEN``
    a complete folder on disk that is about to replace ``NAME``
``.NAME.old-TOKEN``
    the previous folder, on systems that cannot exchange two names (macOS, NFS), where it is moved aside first

:func:`recover` completes a replacement that was interrupted between two of these steps, and deletes the files
of dead processes; every writer does so first. This module does not depend on the contents of the folder.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from ptuning.errors import OutputError, PTuningError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STALE_SECONDS = 60 * 60
"""Age at which leftover files are assumed to belong to a dead process, if there are no locks."""

_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.(?P<kind>tmp|new|old)-(?P<token>(?:(?P<boot>[0-9a-f]{8})-)?[0-9a-f]{8})"
)
_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some of your quota, or choose another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a disk that is not read-only",
    errno.EBUSY: "choose a folder that is not a mount point",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _this_boot() -> str:
    """An id of this machine's current boot. Containers on one kernel share it, and the locks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


_BOOT = _this_boot()


# --------------------------------------------------------------------------------------- in one step


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Write a new folder to ``target``, replacing the existing one if there is one.

    Args:
        target: An absolute path; missing parents are created.
        fill: Writes the contents into the new folder that it is given.

    Raises:
        OutputError: it could not be written. ``target`` is unchanged.
    """
    with writing_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _writing(target):
            token = _token()
            made, new, aside = (_sibling(target, kind, token) for kind in ("tmp", "new", "old"))
            try:
                made.mkdir()  # not tempfile.mkdtemp, because only the owner may read its folder
                fill(made)
                _flush_tree(made)
                os.rename(made, new)  # from here on it is complete, and recover() may put it in place
                _put(new, target, aside)
            except BaseException:
                if os.path.lexists(aside) and not os.path.lexists(target):
                    os.rename(aside, target)
                for each in (made, new, aside):
                    _discard(each)
                raise
            _flush_folder(target.parent)


def remove_folder(target: Path) -> None:
    """Remove a folder, if it exists, atomically.

    Raises:
        OutputError: it could not be removed. It is unchanged.
    """
    if not os.path.lexists(target) and not leftovers(target):
        return
    with writing_errors(target), _writing(target):
        if os.path.lexists(target):
            _discard(target, strict=True)
            _flush_folder(target.parent)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write a file to; when the block ends without an error, the file replaces ``target``.

    The permissions of a replaced file are kept. If the block raises, nothing is left behind. System errors
    are raised as ``OSError``.
    """
    with _writing(target):
        made = _sibling(target, "tmp", _token())
        try:
            yield made
            with made.open("rb+") as stream:
                os.fsync(stream.fileno())
            if target.exists():
                shutil.copymode(target, made)
            os.replace(made, target)
        finally:
            made.unlink(missing_ok=True)
        _flush_folder(target.parent)


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file, in a folder that is not visible yet, and flush it to disk."""
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


# ------------------------------------------------------------------------------------ after a crash


class Leftover(NamedTuple):
    """A temporary file or folder next to one that is being written."""

    kind: str
    token: str
    boot: str | None
    path: Path


def recover(target: Path, whole: Callable[[Path], bool] = lambda folder: True) -> None:
    """Complete the replacement of a killed process, and delete what dead processes left next to ``target``.

    If there is no ``target``, the newest complete folder takes its place. Files of living processes are left
    alone. If the folder is not writable, nothing happens.

    Args:
        whole: Whether a folder is complete.
    """
    if not leftovers(target) and not os.path.lexists(_lock_of(target)):
        return
    with suppress(OSError), _writing(target, whole):
        pass
    waited = 0.0
    while moved_aside(target) and waited < 1:  # another process is between two renames
        time.sleep(0.02)
        waited += 0.02


def leftovers(target: Path) -> list[Leftover]:
    """The temporary files and folders of ``target`` without the lock, newest first."""
    found = []
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            name = _LEFTOVER.fullmatch(entry.name)
            if name and name["name"] == target.name:
                with suppress(OSError):  # deleted since
                    changed = entry.stat(follow_symlinks=False).st_mtime
                    each = Leftover(name["kind"], name["token"], name["boot"], target.parent / entry.name)
                    found.append((changed, each))
    return [each for _, each in sorted(found, key=lambda one: one[0], reverse=True)]


def is_leftover(name: str) -> bool:
    """Whether this is the name of a temporary file or lock of this module."""
    return bool(_LEFTOVER.fullmatch(name)) or bool(re.fullmatch(r"\..+\.lock", name))


def moved_aside(target: Path) -> Path | None:
    """The old folder of an interrupted replacement, if there is no ``target`` now."""
    if os.path.lexists(target):
        return None
    return next((each.path for each in leftovers(target) if each.kind == "old"), None)


def _clean_up(target: Path, whole: Callable[[Path], bool], sure: bool) -> None:
    """Restore ``target`` if it is missing, then delete the files of dead processes.

    Args:
        sure: Whether no process on this machine is writing to it.
    """
    if not os.path.lexists(target):
        ready = [each for each in leftovers(target) if each.kind in ("new", "old")]
        aside = {each.token for each in ready if each.kind == "old"}  # of writers that were about to rename
        # A new folder is newer than the one that was moved aside for it.
        for each in sorted(ready, key=lambda one: one.kind == "old"):
            ours = each.token in aside or _is_dead(each, sure)
            if ours and each.path.is_dir() and whole(each.path):
                os.rename(each.path, target)
                _flush_folder(target.parent)
                break
    there = os.path.lexists(target)
    for each in leftovers(target):
        if _is_dead(each, sure) and (there or each.kind != "old"):
            _discard(each.path)


def _is_dead(each: Leftover, sure: bool) -> bool:
    """Whether its writer is dead. On another machine, where locks may not be visible, its age decides."""
    if sure and each.boot == _BOOT:
        return True
    try:
        places = [each.path, *(each.path.rglob("*") if each.path.is_dir() else ())]
        newest = max(place.lstat().st_mtime for place in places)
    except OSError:  # it is being written or deleted
        return False
    return bool(time.time() - newest > STALE_SECONDS)


# -------------------------------------------------------------------------------------------- locks


@contextmanager
def _writing(target: Path, whole: Callable[[Path], bool] = lambda folder: True) -> Iterator[None]:
    """Clean up next to ``target``, and hold its lock while this process writes to it."""
    handle, alone = _lock(_lock_of(target))
    try:
        if alone is not False:
            _clean_up(target, whole, sure=bool(alone))
        if alone and handle is not None:
            _flock(handle, exclusive=False, wait=True)
        yield
    finally:
        if handle is not None:
            try:
                if _flock(handle, exclusive=True, wait=False):  # no other process has it
                    _lock_of(target).unlink(missing_ok=True)
            except OSError:
                pass  # the next writer deletes it
            finally:
                os.close(handle)


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _lock(file: Path) -> tuple[int | None, bool | None]:
    """Open and lock ``file``: the handle, and whether no other process has it; ``None`` without locks."""
    if fcntl is None:
        return None, None
    while True:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except PermissionError:
            try:
                handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                return None, None  # if the folder is not writable, the next step raises
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # something else with that name
                return None, None
            raise
        try:
            alone = _flock(handle, exclusive=True, wait=False)
            if alone is False:
                _flock(handle, exclusive=False, wait=True)  # at most while another process cleans up
            now = os.stat(file)
            held = os.fstat(handle)
            if (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino):
                return handle, alone
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the previous owner deleted it meanwhile


def _flock(handle: int, *, exclusive: bool, wait: bool) -> bool | None:
    """Lock it; ``False`` if another process has it, ``None`` if the system has no locks."""
    how = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


# -------------------------------------------------------------------------------------------- steps


def _token() -> str:
    return f"{_BOOT}-{secrets.token_hex(4)}"


def _sibling(target: Path, kind: str, token: str) -> Path:
    return target.with_name(f".{target.name}.{kind}-{token}")


def _put(new: Path, target: Path, aside: Path) -> None:
    if not os.path.lexists(target):
        os.rename(new, target)
    elif _exchange(new, target):
        _discard(new)
    else:
        os.rename(target, aside)
        os.rename(new, target)
        _discard(aside)


def _discard(path: Path, *, strict: bool = False) -> None:
    """Delete a file or a folder, after renaming it so that a partial deletion is recognised."""
    found = _LEFTOVER.fullmatch(path.name)
    junk = path
    if not found or found["kind"] != "tmp":
        junk = _sibling(Path(path.with_name(found["name"]) if found else path), "tmp", _token())
        try:
            os.rename(path, junk)
        except OSError:
            if strict:
                raise
            return
    if junk.is_dir() and not junk.is_symlink():
        shutil.rmtree(junk, ignore_errors=True)
    else:
        with suppress(OSError):
            junk.unlink()


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically; ``False``, without any change, if the system cannot."""
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
    """Flush new names to disk. Some systems cannot flush a folder, and do so some time later."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def writing_errors(target: Path) -> Iterator[None]:
    """Turn system errors of the ``with`` block into an error that ``target`` could not be written.

    Raises:
        OutputError: instead of the system's error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        if isinstance(error, PTuningError):
            raise
        code = getattr(error, "errno", None)
        reason = (getattr(error, "strerror", None) or " ".join(str(error).split())).rstrip(".")
        raise OutputError(
            f"could not write {target}: {reason}. What was there before is unchanged",
            remedy=_REMEDIES.get(code or 0, "choose another folder"),
        ) from error
