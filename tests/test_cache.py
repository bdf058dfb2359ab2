"""The cache on disk: whole entries, a limit that holds, and other processes at the same time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptuning import cache as module
from ptuning.cache import Cache, root


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("PTUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def add(cache: Cache, name: str, size: int, age: float = 0) -> bool:
    """Add ``size`` bytes, last used ``age`` seconds ago; whether a place for them was given."""
    with cache.adding(key(name), size) as part:
        if part is None:
            return False
        part.write_bytes(name[:1].encode() * size)
    found = cache.folder / f"{key(name)}.safetensors" if cache.folder else None
    if age and found is not None:
        then = time.time() - age
        os.utime(found, (then, then))
    return True


def names(cache: Cache) -> list[str]:
    assert cache.folder is not None
    return sorted(os.listdir(cache.folder))


# -------------------------------------------------------------------------------------------- where


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert root() == tmp_path / "cache"
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("PTUNING_CACHE", "~/kept")
    assert root() == tmp_path / "me" / "kept"
    monkeypatch.delenv("PTUNING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert root() == tmp_path / "xdg" / "ptuning"
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert root() == tmp_path / "me" / ".cache" / "ptuning"
    monkeypatch.setenv("PTUNING_CACHE", "")
    assert root() == tmp_path / "me" / ".cache" / "ptuning"


def test_off_keeps_nothing(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    cache = Cache("tokens", 100)
    assert add(cache, "a", 10)
    monkeypatch.setenv("PTUNING_CACHE", "off")
    assert root() is None
    assert cache.folder is None
    assert cache.get(key("a")) is None
    assert not add(cache, "b", 10)
    assert cache.usage() == (0, 0)
    assert cache.clear() == (0, 0)
    assert not Path("off").exists()
    monkeypatch.setenv("PTUNING_CACHE", str(home))
    assert cache.usage() == (1, 10)


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PTUNING_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    assert root() is None


def test_a_limit_of_nought_is_off(home: Path) -> None:
    assert add(Cache("tokens", 100), "a", 10)
    off = Cache("tokens", 0)
    assert off.get(key("a")) is None
    assert not add(off, "b", 0)
    assert off.usage() == (1, 10)  # it still sees what is there, and can delete it
    assert off.clear() == (1, 10)
    assert names(off) == []


# ------------------------------------------------------------------------------------------- entries


def test_an_entry_is_found_under_its_key_alone(home: Path) -> None:
    cache = Cache("tokens", 100)
    assert cache.get(key("a")) is None
    assert not home.exists()  # asking makes nothing
    assert add(cache, "a", 10)
    found = cache.get(key("a"))
    assert found == home / "tokens" / f"{key('a')}.safetensors"
    assert found.read_bytes() == b"a" * 10
    assert cache.get(key("b")) is None
    assert Cache("stems", 100).get(key("a")) is None
    assert cache.usage() == (1, 10)


def test_an_entry_is_replaced_and_who_reads_the_old_one_goes_on(home: Path) -> None:
    cache = Cache("tokens", 100)
    add(cache, "a", 10)
    found = cache.get(key("a"))
    assert found is not None
    with found.open("rb") as stream:
        add(cache, "a", 20)
        cache.clear()
        assert stream.read() == b"a" * 10


@pytest.mark.parametrize("wrong", ["", "a", "../" + "a" * 32, "A" * 32, "a" * 32 + ".x", "a" * 31])
def test_a_key_is_a_digest(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"cache key: got .* expected a digest"):
        Cache("tokens", 100).get(wrong)
    with pytest.raises(ValueError, match="cache key"), Cache("tokens", 100).adding(wrong, 1):
        pass


def test_until_the_block_is_left_there_is_no_entry() -> None:
    cache = Cache("tokens", 100)
    with cache.adding(key("a"), 10) as part:
        assert part is not None
        part.write_bytes(b"half")
        assert cache.get(key("a")) is None
        assert cache.usage() == (0, 0)
    assert cache.usage() == (1, 4)


def test_an_exception_leaves_nothing_and_goes_on() -> None:
    cache = Cache("tokens", 100)

    def write() -> None:
        with cache.adding(key("a"), 10) as part:
            assert part is not None
            part.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert names(cache) == []


def test_writing_nothing_leaves_nothing() -> None:
    cache = Cache("tokens", 100)
    with cache.adding(key("a"), 10) as part:
        assert part is not None
    assert names(cache) == []


# ----------------------------------------------------------------------------------------- the limit


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = Cache("tokens", 100)
    for age, name in enumerate(("a", "b", "c", "d")):
        assert add(cache, name, 25, age=100 - age)
    assert cache.usage() == (4, 100)
    assert cache.get(key("a"))  # now b is the oldest
    assert add(cache, "e", 30)
    assert [name for name in "abcde" if cache.get(key(name))] == ["a", "d", "e"]
    assert cache.usage() == (3, 80)


def test_an_entry_that_could_never_fit_is_not_begun(home: Path) -> None:
    cache = Cache("tokens", 100)
    assert add(cache, "a", 100)
    assert not add(cache, "b", 101)
    assert cache.get(key("a"))  # and nothing was thrown out for it


def test_the_limit_holds_for_what_was_written_not_for_what_was_said() -> None:
    cache = Cache("tokens", 100)
    assert add(cache, "a", 60, age=10)
    with cache.adding(key("b"), 1) as part:
        assert part is not None
        part.write_bytes(b"b" * 80)
    assert cache.get(key("a")) is None
    assert cache.usage() == (1, 80)
    with cache.adding(key("c"), 1) as part:
        assert part is not None
        part.write_bytes(b"c" * 101)
    assert cache.usage() == (0, 0)


def test_kinds_do_not_share_a_limit() -> None:
    assert add(Cache("tokens", 100), "a", 100)
    assert add(Cache("stems", 100), "a", 100)
    assert Cache("tokens", 100).usage() == Cache("stems", 100).usage() == (1, 100)


def test_what_is_not_ours_is_neither_counted_nor_deleted(home: Path) -> None:
    folder = home / "tokens"
    (folder / f"{key('x')}.safetensors").mkdir(parents=True)  # a folder under an entry's name
    for name in ("train.safetensors", "notes.txt", f"{key('y')}.bin", ".hidden"):
        (folder / name).write_bytes(b"z" * 90)
        os.utime(folder / name, (0, 0))
    before = names(Cache("tokens", 100))
    assert add(Cache("tokens", 100), "a", 50)
    assert Cache("tokens", 100).clear() == (1, 50)
    assert names(Cache("tokens", 100)) == before
    assert Cache("tokens", 100).get(key("x")) is None


def test_what_a_crash_left_is_swept_a_day_later(home: Path) -> None:
    cache = Cache("tokens", 100)
    with cache.adding(key("a"), 10) as part:
        assert part is not None
        old, new = (part.with_name(part.name.replace(key("a"), key(name))) for name in ("old", "new"))
    for left, age in ((old, module.STALE_SECONDS + 60), (new, module.STALE_SECONDS - 60)):
        left.write_bytes(b"half")
        os.utime(left, (time.time() - age,) * 2)
    assert cache.usage() == (0, 0)
    assert add(cache, "b", 10)
    assert not old.exists()
    assert new.exists()  # somebody may still be writing it
    assert cache.clear() == (1, 14)
    assert names(cache) == []


# ------------------------------------------------------------------------- what the system refuses


def test_a_folder_that_cannot_be_made(home: Path) -> None:
    home.write_text("a file where the folder should be")
    cache = Cache("tokens", 100)
    assert not add(cache, "a", 10)
    assert cache.get(key("a")) is None
    assert cache.usage() == (0, 0)
    assert cache.clear() == (0, 0)


def test_a_folder_that_may_not_be_written_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache("tokens", 100)
    add(cache, "a", 10)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:  # root, as whom tests may run, may write anywhere
        for owner, name in ((os, "utime"), (os, "replace"), (Path, "open"), (Path, "unlink")):
            patch.setattr(owner, name, refused)
        assert cache.get(key("a")) is not None
        assert not add(cache, "b", 10)
        assert cache.clear() == (0, 0)
    assert cache.usage() == (1, 10)


def test_a_folder_that_goes_while_an_entry_is_written(home: Path) -> None:
    cache = Cache("tokens", 100)
    with cache.adding(key("a"), 10) as part:
        assert part is not None
        part.write_bytes(b"whole")
        assert cache.clear() == (0, 5)
        (home / "tokens").rmdir()
    assert cache.get(key("a")) is None


def test_an_entry_that_vanishes_while_room_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process was quicker: what it freed counts, and no entry goes in its stead."""
    cache = Cache("tokens", 100)
    for age, name in enumerate("abcd"):
        add(cache, name, 25, age=100 - age)
    unlink = Path.unlink

    def quicker(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=True)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", quicker)
    assert add(cache, "e", 25)
    assert [name for name in "abcde" if cache.get(key(name))] == ["b", "c", "d", "e"]


# ----------------------------------------------------------------------------------- other processes

WORKER = """
import hashlib, random, sys
from ptuning.cache import Cache

draw, cache, hits = random.Random(int(sys.argv[1])), Cache("tokens", 20_000), 0
for turn in range(400):
    name = str(draw.randrange(12))
    key = hashlib.sha256(name.encode()).hexdigest()
    whole = name.encode() * 4000
    found = cache.get(key)
    if found is not None:
        try:
            read = found.read_bytes()
        except FileNotFoundError:
            continue
        assert read == whole, (len(read), len(whole))
        hits += 1
    else:
        with cache.adding(key, len(whole)) as part:
            assert part is not None
            with part.open("wb") as stream:
                for at in range(0, len(whole), 1000):
                    stream.write(whole[at : at + 1000])
                    stream.flush()
print(hits)
"""


def test_processes_share_it(home: Path) -> None:
    """Three at once, on the same keys, with a limit that holds a third of them: every read is whole."""
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    said = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert all(int(hits) > 0 for hits in said)
    cache = Cache("tokens", 20_000)
    entries, size = cache.usage()
    assert 0 < entries == len(names(cache))  # no half-written file is left
    assert 0 < size <= 20_000
