"""A folder is the old one or the new one: after an error, an interrupt or a crash, at every step."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ptuning.adapters import atomic
from ptuning.adapters.atomic import moved_aside, replace_folder, write_bytes
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


def steps(folder: Path, *, existing: bool) -> int:
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
    total = steps(tmp_path, existing=existing)
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="kills a forked process; exchanging names is Linux's")
@pytest.mark.parametrize("exchange", [True, False])
def test_a_crash_at_any_step_leaves_old_or_new(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        no_exchange(monkeypatch)
    for step in range(1, steps(tmp_path, existing=True) + 1):
        target = tmp_path / str(step) / "adapter"
        replace_folder(target, written("old"))
        child = os.fork()
        if child == 0:
            with failing_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                replace_folder(target, written("new"))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        aside = moved_aside(target)
        if aside is not None:  # between two renames, where no exchange is to be had: nothing is lost
            assert not exchange
            os.rename(aside, target)
        assert content(target) in ("old", "new")
        replace_folder(target, written("next"))
        assert content(target) == "next"


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
                OutputError, match=r"could not write .*adapter: .*(too|Too) large.*is untouched"
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
        OutputError, match=r"No space left on device\. What stood .* untouched; free some space"
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
