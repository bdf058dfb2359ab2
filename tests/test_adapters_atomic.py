"""A folder is the old one or the new one: after an error, an interrupt or a crash, at every step."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crashes import dies, steps
from ptuning.adapters import atomic
from ptuning.adapters.atomic import (
    atomic_file,
    moved_aside,
    recover,
    remove_folder,
    replace_folder,
    write_bytes,
)
from ptuning.errors import AdapterError, OutputError


def written(text: str) -> Callable[[Path], None]:
    """Two files that must always agree, one of them in a sub-folder."""

    def fill(folder: Path) -> None:
        write_bytes(folder / "one", text.encode())
        (folder / "sub").mkdir()
        write_bytes(folder / "sub" / "two", text.encode())

    return fill


def content(folder: Path) -> str:
    texts = {(folder / name).read_text() for name in ("one", "sub/two")}
    assert len(texts) == 1, f"half of each: {texts}"
    return texts.pop()


@contextmanager
def failing_at(step: int, act: Callable[[], None]) -> Iterator[list[str]]:
    """Call ``act`` before the ``step``-th thing that touches the disk; yields the things seen so far."""
    seen: list[str] = []

    def watched(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            seen.append(name)
            if len(seen) == step:
                act()
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (Path, "mkdir"),
            (Path, "open"),
            (os, "fsync"),
            (os, "rename"),
            (atomic, "_exchange"),
            (shutil, "rmtree"),  # never raises OSError itself, for it is asked to ignore them
        ):
            if act is not full_disk or name != "rmtree":
                patch.setattr(owner, name, watched(name, getattr(owner, name)))
        yield seen


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt() -> None:
    raise KeyboardInterrupt


def no_exchange(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(atomic, "_exchange", lambda one, other: False)


def touches(folder: Path, *, existing: bool) -> int:
    """How many things touch the disk when all goes well."""
    target = folder / "rehearsal"
    if existing:
        replace_folder(target, written("old"))
    with failing_at(0, full_disk) as seen:
        replace_folder(target, written("new"))
    return len(seen)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize(("act", "error"), [(full_disk, OutputError), (interrupt, KeyboardInterrupt)])
def test_a_failure_at_any_step_leaves_old_or_new(
    act: Callable[[], None],
    error: type[BaseException],
    existing: bool,
    exchange: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not exchange:
        no_exchange(monkeypatch)
    total = touches(tmp_path, existing=existing)
    assert total >= 10
    for step in range(1, total + 1):
        target = tmp_path / str(step) / "adapter"
        if existing:
            replace_folder(target, written("old"))
        with failing_at(step, act):
            try:
                replace_folder(target, written("new"))
                failed = False
            except error:
                failed = True
        if existing or target.exists():
            assert content(target) in ("old", "new")
        if failed and error is OutputError and existing:
            assert content(target) == "old", "the message says that what stood there is untouched"
        replace_folder(target, written("next"))  # whatever is left over is in nobody's way
        assert content(target) == "next"


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("existing", [True, False])
def test_a_kill_at_any_step_leaves_old_or_new(existing: bool, exchange: bool, tmp_path: Path) -> None:
    """``recover`` finds what there is, and after the next save nothing else stands there."""

    def begin(target: Path) -> None:
        if existing:
            replace_folder(target, written("old"))
        else:
            target.parent.mkdir(parents=True)

    begin(tmp_path / "0" / "adapter")
    total = steps(lambda: replace_folder(tmp_path / "0" / "adapter", written("new")), exchange=exchange)
    assert total >= 10
    found = set()
    for step in range(1, total + 1):
        target = tmp_path / str(step) / "adapter"
        begin(target)
        assert dies(lambda to=target: replace_folder(to, written("new")), step, exchange=exchange)
        recover(target)
        assert existing <= target.exists()
        found.add(content(target) if target.exists() else None)
        assert names(target.parent) <= {"adapter"}
        replace_folder(target, written("next"))
        assert content(target) == "next"
        assert names(target.parent) == {"adapter"}
    assert found == ({"old", "new"} if existing else {None, "new"})


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_while_it_recovers_loses_nothing_either(exchange: bool, tmp_path: Path) -> None:
    total = steps_of_replacing(tmp_path, exchange)
    for step in range(1, total + 1):
        for second in range(1, 13):
            target = tmp_path / f"{step}-{second}" / "adapter"
            replace_folder(target, written("old"))
            dies(lambda to=target: replace_folder(to, written("new")), step, exchange=exchange)
            if not dies(lambda to=target: recover(to), second):
                break
            recover(target)
            assert content(target) in ("old", "new")
            assert names(target.parent) == {"adapter"}
        assert second < 12


def steps_of_replacing(folder: Path, exchange: bool) -> int:
    target = folder / "rehearsal" / "adapter"
    replace_folder(target, written("old"))
    return steps(lambda: replace_folder(target, written("new")), exchange=exchange)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(sys.platform == "win32", reason="kills a forked process")
def test_a_real_kill_frees_the_lock(tmp_path: Path) -> None:
    """A process that the system kills while it writes; the next save takes its folder away."""
    target = tmp_path / "adapter"
    replace_folder(target, written("old"))
    reading, writing = os.pipe()

    def slow(folder: Path) -> None:
        (folder / "one").write_text("half")
        os.write(writing, b"!")
        time.sleep(60)

    child = os.fork()
    if child == 0:
        replace_folder(target, slow)
        os._exit(0)
    assert os.read(reading, 1) == b"!"
    replace_folder(target, written("beside it"))  # a living process's folder is let alone
    assert len([name for name in names(tmp_path) if ".tmp-" in name]) == 1
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    for handle in (reading, writing):
        os.close(handle)
    replace_folder(target, written("next"))
    assert names(tmp_path) == {"adapter"}
    assert content(target) == "next"


def test_what_a_living_process_writes_is_let_alone(tmp_path: Path) -> None:
    target = tmp_path / "adapter"

    def slow(folder: Path) -> None:
        recover(target)
        replace_folder(target, written("quick"))
        remove_folder(target)
        with atomic_file(target) as new:
            new.write_text("a file")
        target.unlink()
        assert folder.is_dir()
        written("slow")(folder)

    replace_folder(target, slow)
    assert content(target) == "slow"
    assert names(tmp_path) == {"adapter"}


@pytest.mark.parametrize(
    ("name", "age", "locks", "stays"),
    [
        (f".adapter.tmp-{atomic._BOOT}-01234567", 0, True, False),
        (
            f".adapter.tmp-{atomic._BOOT}-01234567",
            0,
            False,
            True,
        ),  # nothing can tell whether its writer lives
        (f".adapter.tmp-{atomic._BOOT}-01234567", 2 * atomic.STALE_SECONDS, False, False),
        (".adapter.tmp-89abcdef-01234567", 0, True, True),  # another machine's, on a disk that both see
        (".adapter.tmp-89abcdef-01234567", 2 * atomic.STALE_SECONDS, True, False),
        (".adapter.tmp-01234567", 0, True, True),  # an older version's, which took no lock
        (".adapter.old-01234567", 2 * atomic.STALE_SECONDS, True, False),
        (".adapter.tmp-mine", 2 * atomic.STALE_SECONDS, True, True),  # somebody's own
        (".adapter2.tmp-01234567", 2 * atomic.STALE_SECONDS, True, True),
        ("adapter.tmp-01234567", 2 * atomic.STALE_SECONDS, True, True),
    ],
)
def test_leftovers_go_when_their_process_is_dead(
    name: str, age: float, locks: bool, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, left = tmp_path / "adapter", tmp_path / name
    replace_folder(target, written("old"))
    left.mkdir()
    (left / "one").write_text("half")
    for path in (left / "one", left):
        os.utime(path, (time.time() - age,) * 2)
    if not locks:
        monkeypatch.setattr(atomic, "_flock", lambda *_, **__: None)
    for act in (lambda: recover(target), lambda: replace_folder(target, written("new"))):
        act()
        assert left.exists() is stays
    assert content(target) == "new"


@pytest.mark.parametrize("kind", ["new", "old"])
def test_the_newer_one_that_is_whole_is_brought_back(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for which in ("new", "old"):
        folder = tmp_path / f".adapter.{which}-{atomic._BOOT}-01234567"
        folder.mkdir()
        written(which)(folder)
    recover(target, lambda folder: (folder / "one").read_text() == kind)
    assert content(target) == kind
    assert names(tmp_path) == {"adapter"}


def test_the_only_copy_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be renamed, and where it is not what it was written as."""
    target, aside = tmp_path / "adapter", tmp_path / f".adapter.old-{atomic._BOOT}-01234567"
    aside.mkdir()
    written("old")(aside)
    recover(target, lambda folder: False)
    assert content(aside) == "old"
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse(errno.EROFS))
        recover(target)
        assert content(aside) == "old"
        assert moved_aside(target) == aside
    recover(target)
    assert content(target) == "old"


def refuse(code: int) -> Callable[..., None]:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return refused


def test_a_kill_at_any_step_of_removing_leaves_all_or_nothing(tmp_path: Path) -> None:
    replace_folder(tmp_path / "0" / "adapter", written("old"))
    total = steps(lambda: remove_folder(tmp_path / "0" / "adapter"))
    assert names(tmp_path / "0") == set()
    for step in range(1, total + 1):
        target = tmp_path / str(step) / "adapter"
        replace_folder(target, written("old"))
        assert dies(lambda to=target: remove_folder(to), step)
        assert not target.exists() or content(target) == "old"
        recover(target)
        assert names(target.parent) <= {"adapter"}
        remove_folder(target)
        assert names(target.parent) == set()


def test_a_kill_at_any_step_of_a_file_leaves_old_or_new(tmp_path: Path) -> None:
    def write(target: Path, text: str) -> None:
        with atomic_file(target) as new:
            write_bytes(new, text.encode())

    total = steps(lambda: write(tmp_path / "rehearsal", "new"))
    for step in range(1, total + 1):
        target = tmp_path / str(step) / "file"
        target.parent.mkdir()
        write(target, "old")
        target.chmod(0o640)
        assert dies(lambda to=target: write(to, "new"), step)
        assert target.read_text() in ("old", "new")
        write(target, "next")
        assert target.read_text() == "next"
        assert target.stat().st_mode & 0o777 == 0o640
        assert names(target.parent) == {"file"}


def test_nothing_is_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "adapter"
    for text in ("one", "two"):
        replace_folder(target, written(text))
    no_exchange(monkeypatch)
    replace_folder(target, written("three"))
    with pytest.raises(OutputError):
        replace_folder(target, lambda folder: full_disk())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert content(target) == "three"


def test_the_old_folder_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_exchange(monkeypatch)
    target = tmp_path / "adapter"
    replace_folder(target, written("old"))
    real = os.rename

    def rename(source: Path, place: Path) -> None:
        if ".tmp-" in str(source):
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, place)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OutputError, match="Permission denied"):
        replace_folder(target, written("new"))
    assert content(target) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_file_that_grows_too_large(tmp_path: Path) -> None:
    """A real refusal of the operating system, for our own files and for safetensors'."""
    target = tmp_path / "adapter"
    replace_folder(target, written("old"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fills: list[Callable[[Path], None]] = [
        lambda folder: write_bytes(folder / "one", bytes(9000)),
        lambda folder: save_file({"x": torch.zeros(9000)}, folder / "x.safetensors"),
    ]
    for fill in fills:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(
                OutputError, match=r"could not write .*adapter: .*(too|Too) large.*is unchanged"
            ) as caught:
                replace_folder(target, fill)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(caught.value)
        assert content(target) == "old"
    signal.signal(signal.SIGXFSZ, former)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
def test_a_full_disk(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        os.symlink("/dev/full", folder / "one")
        write_bytes(folder / "one", b"x")

    with pytest.raises(
        OutputError, match=r"No space left on device\. What was there .* unchanged; free some space"
    ):
        replace_folder(tmp_path / "adapter", fill)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "Permission denied.*choose a folder that you may write to"),
        (errno.EROFS, "Read-only file system.*not read-only"),
        (errno.EIO, "choose another folder"),
    ],
)
def test_the_message_says_what_to_do(
    code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match=message):
        replace_folder(tmp_path / "deep" / "adapter", written("new"))


def test_errors_of_our_own_pass_through(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise AdapterError("not this")

    with pytest.raises(AdapterError, match="not this"):
        replace_folder(tmp_path / "adapter", refuse)
    assert not list(tmp_path.iterdir())


def test_others_may_read_it(tmp_path: Path) -> None:
    """Unlike ``tempfile.mkdtemp``'s, the folder has the permissions that any new folder has."""
    (tmp_path / "usual").mkdir()
    replace_folder(tmp_path / "adapter", written("new"))
    assert (tmp_path / "adapter").stat().st_mode == (tmp_path / "usual").stat().st_mode
