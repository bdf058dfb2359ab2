"""Files and folders replaced in one step: whoever looks sees the old one or the new one, never half.

While ``NAME`` is written, these stand beside it (``TOKEN`` names this start of the machine, and the writer):

``.NAME.lock``
    locked (``flock``) by everyone who is writing ``NAME``; the system unlocks it when a process dies
``.NAME.tmp-TOKEN``
    not whole yet, or not wanted any more
``.NAME.new-TOKEN``
    a folder that is whole and on the disk, about to take its place
``.NAME.old-TOKEN``
    the folder that stood there, where the system cannot exchange two names (macOS, NFS) and it has to be
    moved aside first

:func:`recover` finishes a replacement that was cut short between two of these steps, and takes away what dead
processes left; every writer does so first. Nothing here knows what is in the folder.
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

ABANDONED = 60 * 60
"""Seconds without a change after which a leftover is a dead process's, where no lock can tell."""

_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.(?P<kind>tmp|new|old)-(?P<token>(?:(?P<boot>[0-9a-f]{8})-)?[0-9a-f]{8})"
)
_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some of your quota, or choose another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a disk that is not read-only",
    errno.EBUSY: "choose a folder that is no mount point",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _this_boot() -> str:
    """What tells this start of this machine from others. Containers on one kernel share it, and its locks."""
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        told = platform.node()
    return hashlib.sha256(told.encode()).hexdigest()[:8]


_BOOT = _this_boot()


# --------------------------------------------------------------------------------------- in one step


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Put a new folder at ``target``, in place of the one that stands there, if one does.

    Args:
        target: An absolute path; its parents are made if need be.
        fill: Writes the content into the new folder that it is given.

    Raises:
        OutputError: it could not be written. What stood at ``target`` stands there still.
    """
    with blaming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _writing(target):
            token = _token()
            made, new, aside = (_beside(target, kind, token) for kind in ("tmp", "new", "old"))
            try:
                made.mkdir()  # not tempfile.mkdtemp, whose folder only its owner may read
                fill(made)
                _flush_tree(made)
                os.rename(made, new)  # from here on it is whole, and recover() may put it in place
                _put(new, target, aside)
            except BaseException:
                if os.path.lexists(aside) and not os.path.lexists(target):
                    os.rename(aside, target)
                for each in (made, new, aside):
                    _discard(each)
                raise
            _flush_folder(target.parent)


def remove_folder(target: Path) -> None:
    """Take a folder away, if one is there: whoever looks sees all of it or nothing.

    Raises:
        OutputError: it could not be moved. It stands there still.
    """
    if not os.path.lexists(target) and not leftovers(target):
        return
    with blaming(target), _writing(target):
        if os.path.lexists(target):
            _discard(target, strict=True)
            _flush_folder(target.parent)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path to write a file to; when the block ends without an error, it is flushed and put at ``target``.

    The permissions of a file that it replaces are kept. An error in the block leaves nothing behind, and what
    the system refuses is an ``OSError``, the block's own too.
    """
    with _writing(target):
        made = _beside(target, "tmp", _token())
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
    """Write a file, in a folder that nobody sees yet, and wait until the disk has it."""
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


# ------------------------------------------------------------------------------------ after a crash


class Leftover(NamedTuple):
    """Something that stands beside a file or folder while it is written."""

    kind: str
    token: str
    boot: str | None
    path: Path


def recover(target: Path, whole: Callable[[Path], bool] = lambda folder: True) -> None:
    """Finish what a killed process was about, and take away what dead ones left beside ``target``.

    If there is no ``target``, the newer whole folder of those that stand ready takes its place. What a living
    process is writing is let alone. Where nothing can be written, nothing happens.

    Args:
        whole: Whether a folder is what its writer made it.
    """
    if not leftovers(target) and not os.path.lexists(_lock_of(target)):
        return
    with suppress(OSError), _writing(target, whole):
        pass
    waited = 0.0
    while moved_aside(target) and waited < 1:  # somebody is about it: between two renames
        time.sleep(0.02)
        waited += 0.02


def leftovers(target: Path) -> list[Leftover]:
    """What stands beside ``target`` for its sake but for the lock, the newest first."""
    found = []
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            name = _LEFTOVER.fullmatch(entry.name)
            if name and name["name"] == target.name:
                with suppress(OSError):  # gone since
                    changed = entry.stat(follow_symlinks=False).st_mtime
                    each = Leftover(name["kind"], name["token"], name["boot"], target.parent / entry.name)
                    found.append((changed, each))
    return [each for _, each in sorted(found, key=lambda one: one[0], reverse=True)]


def is_leftover(name: str) -> bool:
    """Whether a file of that name is one that is written here on the way to another."""
    return bool(_LEFTOVER.fullmatch(name)) or bool(re.fullmatch(r"\..+\.lock", name))


def moved_aside(target: Path) -> Path | None:
    """Where an interrupted replacement left the old folder, if there is none at ``target`` now."""
    if os.path.lexists(target):
        return None
    return next((each.path for each in leftovers(target) if each.kind == "old"), None)


def _tidy(target: Path, whole: Callable[[Path], bool], sure: bool) -> None:
    """Bring ``target`` back if there is none, then remove what dead processes left.

    Args:
        sure: Nobody on this machine is writing to it.
    """
    if not os.path.lexists(target):
        ready = [each for each in leftovers(target) if each.kind in ("new", "old")]
        aside = {each.token for each in ready if each.kind == "old"}  # by who was about to rename the new one
        # A new one is newer than what was moved aside for it.
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
    """Whether its writer is no more. Of another machine's, whose locks may not be seen, its age must tell."""
    if sure and each.boot == _BOOT:
        return True
    try:
        places = [each.path, *(each.path.rglob("*") if each.path.is_dir() else ())]
        newest = max(place.lstat().st_mtime for place in places)
    except OSError:  # it is being written, or taken away
        return False
    return bool(time.time() - newest > ABANDONED)


# -------------------------------------------------------------------------------------------- locks


@contextmanager
def _writing(target: Path, whole: Callable[[Path], bool] = lambda folder: True) -> Iterator[None]:
    """Tidy up beside ``target``; then nobody takes what this process writes there for a dead one's."""
    handle, alone = _lock(_lock_of(target))
    try:
        if alone is not False:
            _tidy(target, whole, sure=bool(alone))
        if alone and handle is not None:
            _flock(handle, exclusive=False, wait=True)
        yield
    finally:
        if handle is not None:
            try:
                if _flock(handle, exclusive=True, wait=False):  # nobody else has it: it can go
                    _lock_of(target).unlink(missing_ok=True)
            except OSError:
                pass  # whoever comes next takes it away
            finally:
                os.close(handle)


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _lock(file: Path) -> tuple[int | None, bool | None]:
    """Open and lock ``file``: the handle, and whether nobody else has it; ``None`` where no lock can tell."""
    if fcntl is None:
        return None, None
    while True:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except PermissionError:
            try:
                handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                return None, None  # if nothing may be written here, the next step says so
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # something else of that name
                return None, None
            raise
        try:
            alone = _flock(handle, exclusive=True, wait=False)
            if alone is False:
                _flock(handle, exclusive=False, wait=True)  # at most while another one tidies up
            now = os.stat(file)
            held = os.fstat(handle)
            if (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino):
                return handle, alone
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # whoever had it before took it away meanwhile


def _flock(handle: int, *, exclusive: bool, wait: bool) -> bool | None:
    """Lock it; ``False`` if another has it, ``None`` where there are no locks."""
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


def _beside(target: Path, kind: str, token: str) -> Path:
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
    """Remove a file or a folder, which first gets a name that says that it may be half there."""
    found = _LEFTOVER.fullmatch(path.name)
    junk = path
    if not found or found["kind"] != "tmp":
        junk = _beside(Path(path.with_name(found["name"]) if found else path), "tmp", _token())
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


@contextmanager
def blaming(target: Path) -> Iterator[None]:
    """Say of what the system refuses in the ``with`` block that ``target`` could not be written.

    Raises:
        OutputError: instead of the system's error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        if isinstance(error, PTuningError):
            raise
        raise OutputError(_could_not_write(target, error)) from error


def _could_not_write(target: Path, error: OSError | SafetensorError) -> str:
    code = getattr(error, "errno", None)
    reason = (getattr(error, "strerror", None) or " ".join(str(error).split())).rstrip(".")
    remedy = _REMEDIES.get(code or 0, "choose another folder")
    return f"could not write {target}: {reason}. What stood there before is untouched; {remedy}"
