"""Disks that are full or read-only, things in the way: whole or nothing, and the run goes on."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ptuning.errors import PTuningError
from ptuning.training.run import train
from torture.damage import changed
from torture.kill import operations_of, scene
from torture.lab import (
    NEW,
    Lab,
    check,
    command,
    ended,
    fork,
    go_on,
    held,
    state,
    strays,
    weights,
)
from torture.operations import fail_from, telling, watch
from torture.trials import Draw, Line, Trial


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    full = [
        Trial(f"{_over(old)}, full from operation {n}: {name}", _failing(lab, old, n, errno.ENOSPC), n)
        for old in (False, True)
        for n, name in telling(operations_of(lab, old, True), draw.random("full", old))
    ]
    yield Line("full from some file operation on", full)
    sizes = [
        Trial(f"{_over(old)}, a file has room for {size} bytes", _short(lab, old, size), size)
        for i in range(draw.count(40))
        for old, size in [(i % 2 == 1, int(2 ** draw.random("size", i).uniform(0, 16)))]
    ]
    yield Line("full inside a file", sizes)
    refusals = [
        Trial(f"{os.strerror(code)}, {_over(old)}", _failing(lab, old, 1, code))
        for code in (errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO)
        for old in (False, True)
    ]
    yield Line("where nothing may be written", refusals)
    in_the_way = [Trial(name, _place(lab, case)) for name, case in IN_THE_WAY.items()]
    yield Line("things in the way", in_the_way)
    cache = [Trial(f"change {i} of every cached file", _cache(lab, draw, i)) for i in range(draw.count(40))]
    yield Line("a cache that was altered", cache)
    odd = [Trial(f"PTUNING_CACHE={value[:20]!r}", _odd_cache(lab, value)) for value in ODD_CACHES]
    yield Line("odd places for a cache", odd)
    seconds = [draw.random("two", i).random() * lab.seconds for i in range(draw.count(12))]
    two = [
        Trial(f"two runs on one output, {delay:.2f} s apart", _two(lab, delay, i % 2 == 0))
        for i, delay in enumerate(seconds)
    ]
    yield Line("two runs on one output", two)


# ------------------------------------------------------------------------------- full disks


def _over(old: bool) -> str:
    return "over an old adapter" if old else "fresh"


def _failing(lab: Lab, over_old: bool, number: int, code: int) -> Callable[[Path], None]:
    return _no_room(lab, over_old, lambda place: watch(place, fail_from(number, code)))


def _short(lab: Lab, over_old: bool, size: int) -> Callable[[Path], None]:
    def limited(place: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return _no_room(lab, over_old, limited)


def _no_room(lab: Lab, over_old: bool, limit: Callable[[Path], None]) -> Callable[[Path], None]:
    """A run fails with a sentence, keeps what stood there, and goes on when there is room again."""

    def attempt(place: Path) -> None:
        output = scene(lab, place, over_old)
        near, far = os.pipe()  # no file, so it has room

        def work() -> int:
            limit(place)
            try:
                train(lab.config(output, fit=NEW))
            except Exception as error:
                os.write(far, f"{type(error).__name__}: {error}"[:2000].encode())
                return 1 if isinstance(error, PTuningError) else 99
            return 0

        code = ended(fork(work))
        os.close(far)
        said = os.read(near, 4000).decode()
        os.close(near)
        held(code in (0, 1), f"a traceback: {said}")
        found, new, old = state(output), weights(lab.reference), weights(lab.old)
        if code == 0:
            held(found == new, "the run said that it was done, and another adapter stands there")
        else:
            allowed = (old,) if over_old else ("absent",)
            held(found in (*allowed, new), "what stood there before is not untouched")
        held(not (left := strays(place)), f"left behind: {', '.join(left[:3])}")
        config = lab.config(output, fit=NEW)
        if code != 0:
            go_on(lambda resume: train(config, resume=resume))
        held(state(output) == new, "the run that was gone on from has other weights")

    return attempt


# ---------------------------------------------------------------------------------- places


@dataclass(frozen=True)
class InTheWay:
    """What stands where a run writes.

    Attributes:
        files: By path, a text; or a link, as ``-> target``. Those that say ``mine`` must be there afterwards.
        codes: The exit codes that are right.
        over_old: Whether it is put over a finished run.
    """

    files: Mapping[str, str]
    codes: Sequence[int] = (0, 2)
    over_old: bool = False


OVER = {"adapter.run/result.json": "{}"}
"""A run that is over, as far as anybody can see."""
ELSE = {"else/mine.doc": "mine"}
IN_THE_WAY = {
    "the output is a file": InTheWay({"adapter": "mine"}, (2,)),
    "the output is another folder": InTheWay({"adapter/mine.doc": "mine"}, (2,)),
    "the output is an adapter with a file more": InTheWay({"adapter/mine.doc": "mine"}, (2,), True),
    "the output is an adapter whose card is edited": InTheWay({"adapter/README.md": "mine"}, (2,), True),
    "the output is a link to a folder": InTheWay({**ELSE, "adapter": "-> else"}),
    "the output is a link to itself": InTheWay({**ELSE, "adapter": "-> adapter"}, (1, 2)),
    "the output is a link to nothing": InTheWay({**ELSE, "adapter": "-> nothing"}),
    "the run folder is a file": InTheWay({"adapter.run": "mine"}, (1, 2)),
    "the run folder is a link to a folder": InTheWay({**ELSE, "adapter.run": "-> else"}),
    "the run folder holds more": InTheWay({"adapter.run/mine.doc": "mine"}),
    "the checkpoint is another folder": InTheWay({**OVER, "adapter.run/checkpoint/mine.doc": "mine"}),
    "the checkpoint is a link": InTheWay({**OVER, **ELSE, "adapter.run/checkpoint": "-> ../else"}),
    "the checkpoint holds a file more": InTheWay({"adapter.run/checkpoint/mine.doc": "mine"}, over_old=True),
    "the checkpoint's card is edited": InTheWay({"adapter.run/checkpoint/README.md": "mine"}, over_old=True),
    "the search folder is another": InTheWay({**OVER, "adapter.run/search/mine.doc": "mine"}),
    "the result is a folder": InTheWay({"adapter.run/result.json/mine.doc": "mine"}, (0, 1, 2)),
    "a folder that looks left behind": InTheWay({".adapter.tmp-thesis00/mine.doc": "mine"}),
}


def _place(lab: Lab, case: InTheWay) -> Callable[[Path], None]:
    """What is not the run's own is still there afterwards."""

    def attempt(place: Path) -> None:
        output = scene(lab, place, case.over_old)
        for name, text in case.files.items():
            file = place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                file.symlink_to(text[3:])
            else:
                file.write_text(text)
        check(command(lab.argv(output, fit={"epochs": 1})), case.codes)
        mine = [place / name for name, text in case.files.items() if text == "mine"]
        lost = [file.name for file in mine if not file.is_file() or file.read_text() != "mine"]
        held(not lost, f"{', '.join(lost)} is lost")

    return attempt


# ----------------------------------------------------------------------------------- cache


def _cache(lab: Lab, draw: Draw, number: int) -> Callable[[Path], None]:
    """Whatever became of cached files, a run comes to the same weights."""

    def attempt(place: Path) -> None:
        random, cache = draw.random("cache", number), place / "cache"
        os.environ["PTUNING_CACHE"] = str(cache)
        try:
            train(lab.config(place / "one", fit=NEW))
            files = [file for file in sorted(cache.rglob("*")) if file.is_file()]
            held(files, "nothing was cached")
            for file in files:
                kind = random.choice(["changed", "changed", "changed", "a folder", "a link"])
                data = file.read_bytes()
                file.unlink()
                if kind == "a folder":
                    file.mkdir()
                elif kind == "a link":
                    file.symlink_to(os.devnull)
                else:
                    file.write_bytes(changed(data, random)[0] if data else b"x")
            train(lab.config(place / "two", fit=NEW))
        finally:
            os.environ["PTUNING_CACHE"] = str(lab.root / "cache")
        held(weights(place / "two") == weights(lab.reference), "the run has other weights")
        held(not list(cache.rglob("*.part")), "half a file was left in the cache")

    return attempt


ODD_CACHES = (
    "",
    "off",
    "relative",
    "~nosuchuser/x",
    "/proc/x",
    "/dev/null",
    "/" + "a" * 5000,
    "FILE",
    "\udcff",
)


def _odd_cache(lab: Lab, value: str) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        file = place / "file"
        file.write_text("mine")
        os.environ["PTUNING_CACHE"] = str(file) if value == "FILE" else value
        try:
            check(command(lab.argv(place / "out")), (0,))
            held(weights(place / "out") == weights(lab.reference), "the run has other weights")
            check(command(["cache"]), (0, 1, 2))
        finally:
            os.environ["PTUNING_CACHE"] = str(lab.root / "cache")
        held(file.read_text() == "mine", "the file in the way is lost")

    return attempt


def _two(lab: Lab, delay: float, alike: bool) -> Callable[[Path], None]:
    """The later of two runs on one output wins, or is refused; what stands there is whole."""

    def attempt(place: Path) -> None:
        output = place / "adapter"
        logs = [place / "one.log", place / "two.log"]
        children = []
        for n, log in enumerate(logs):
            fit = {**NEW, "seed": NEW["seed"] if alike else n}
            children.append(fork(partial(_coded, lab.argv(output, fit=fit)), log))
            time.sleep(delay if n == 0 else 0)
        codes = [ended(child) for child in children]
        said = [log.read_text(errors="replace") for log in logs]
        held(
            all(code in (0, 1, 2) for code in codes),
            f"exit codes {codes}: {said[codes[0] in (0, 1, 2)][-200:]}",
        )
        held(not any("Traceback" in text for text in said), "a traceback")
        held(0 in codes, f"neither ended well: {codes}")
        held(state(output) != "absent", "no adapter stands there")

    return attempt


def _coded(argv: list[str]) -> int:
    from ptuning import cli

    return cli.main(argv)
