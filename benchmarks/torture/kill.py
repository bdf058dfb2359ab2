"""SIGKILL at any instant or file operation of a run or a save, which is then gone on from as a user would."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ptuning.adapters import atomic
from ptuning.training.run import train
from torture.lab import (
    NEW,
    TEXTS,
    Lab,
    answers,
    command,
    copy_run,
    ended,
    fork,
    go_on,
    held,
    same,
    state,
    strays,
    weights,
)
from torture.operations import counted, kill_at, telling, watch
from torture.trials import Draw, Line, Trial

KILLED = -signal.SIGKILL


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    instants = [
        Trial(
            f"{'over an old adapter' if over_old else 'fresh'}, killed after {share:.3f} of a run's time",
            _killed_at(lab, over_old, share * lab.seconds),
        )
        for i in range(draw.count(80))
        for share, over_old in [(draw.random("instant", i).random() * 1.05, i % 2 == 1)]
    ]
    yield Line("random instants of a run", instants)
    for title, over_old, exchange in (
        ("file operations of a fresh run", False, True),
        ("file operations of a run over an old one", True, True),
        ("the same where names cannot be exchanged", True, False),
    ):
        trials = [
            Trial(f"killed at operation {n}: {name}", _killed_in(lab, over_old, exchange, n, None), n)
            for n, name in telling(operations_of(lab, over_old, exchange), draw.random(title))
        ]
        yield Line(title, trials)
    inside = [
        Trial(f"killed behind byte 20 of {name}", _killed_in(lab, over_old, True, n, 20), n)
        for over_old in (False, True)
        for n, name in telling(operations_of(lab, over_old, True), draw.random("inside"))
        if name.startswith("open ")
    ]
    yield Line("inside a file that is written", inside)
    yield Line("file operations of a set of runs", _set_of_runs(lab, draw))
    saves = [
        Trial(f"killed after {seconds:.3f} s of saving again and again", _killed_saving(lab, seconds))
        for i in range(draw.count(60))
        for seconds in [0.005 + draw.random("save", i).random() * 0.1]
    ]
    yield Line("while an adapter is saved", saves)


def _train(lab: Lab, output: Path) -> object:
    return train(lab.config(output, fit=NEW))


def operations_of(lab: Lab, over_old: bool, exchange: bool) -> list[str]:
    """The names of a run's file operations, by doing it once."""
    place = lab.root / "counting" / f"{over_old}-{exchange}"
    report = lab.root / "operations" / place.name
    if not report.exists():
        report.parent.mkdir(exist_ok=True)
        place.mkdir(parents=True)
        output = scene(lab, place, over_old)
        work = _exchanging(exchange, lambda: counted(place, lambda: _train(lab, output), report))
        ended(fork(work), must=0)
    return report.read_text().splitlines()


def _exchanging(exchange: bool, work: Callable[[], object]) -> Callable[[], object]:
    """``work`` where two names can be exchanged in one step, or as if on a system where they cannot."""

    def without() -> object:
        if not exchange:
            assert callable(atomic._exchange)
            atomic._exchange = lambda one, other: False
        return work()

    return without


def scene(lab: Lab, place: Path, over_old: bool) -> Path:
    output = place / "adapter"
    if over_old:
        copy_run(lab.old, output)
    return output


def _killed_at(lab: Lab, over_old: bool, seconds: float) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        output = scene(lab, place, over_old)
        child = fork(lambda: _train(lab, output))
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        held(ended(child) in (KILLED, 0), "a run that was left alone failed")
        _judge(lab, output, over_old, True)

    return attempt


def _killed_in(
    lab: Lab, over_old: bool, exchange: bool, number: int, inside: int | None
) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        output = scene(lab, place, over_old)

        def work() -> None:
            watch(place, kill_at(number, inside=inside))
            _train(lab, output)

        code = ended(fork(_exchanging(exchange, work)))
        held(code in (KILLED, -signal.SIGXFSZ, 0), f"the run ended with {code} instead of being killed")
        _judge(lab, output, over_old, exchange)

    return attempt


def _judge(lab: Lab, output: Path, over_old: bool, exchange: bool) -> None:
    """Absent, old or whole; and the run goes on to the same weights and leaves nothing in passing."""
    found, new, old = state(output), weights(lab.reference), weights(lab.old)
    if not over_old:
        held(found in ("absent", new), "another adapter than the run's stands there")
    elif found == "absent":  # between two renames; the old one has to be beside it
        aside = [place for place in output.parent.glob(f".{output.name}.old-*") if state(place) == old]
        held(not exchange and aside, "the old adapter is lost")
    else:
        held(found in (old, new), "neither the old adapter nor the new one stands there")
    go_on(lambda resume: train(lab.config(output, fit=NEW), resume=resume))
    held(state(output) == new, "the run that was gone on from has other weights than the straight one")
    held(not (left := strays(output.parent)), f"left behind by the finished run: {', '.join(left[:3])}")


def _killed_saving(lab: Lab, seconds: float) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        output = place / "adapter"
        lab.model.save_pretrained(output)

        def saving() -> None:
            while True:
                lab.model.save_pretrained(output)

        child = fork(saving)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        ended(child, must=KILLED)
        held(state(output) == weights(lab.reference), "the saved adapter is another one")
        held(same(answers(lab.load(output)), answers(lab.model, TEXTS)), "it answers otherwise")
        lab.model.save_pretrained(output)
        held(not (left := strays(place)), f"left behind by a further save: {', '.join(left[:3])}")

    return attempt


def _set_of_runs(lab: Lab, draw: Draw) -> Sequence[Trial]:
    """Two seeds in one command; killed at operations of the first, between them and in the second."""
    report, reference = lab.root / "operations" / "set", lab.root / "set"

    def argv(output: Path, *more: str) -> list[str]:
        return lab.argv(output, "--seeds=0,1", *more, fit={"epochs": 1})

    def straight() -> None:
        held((ran := command(argv(reference))).code == 0, ran.said)

    if not report.exists():
        report.parent.mkdir(exist_ok=True)
        ended(fork(lambda: counted(lab.root, straight, report)), must=0)

    def killed(number: int, inside: int | None) -> Callable[[Path], None]:
        def attempt(place: Path) -> None:
            def work() -> None:
                watch(place, kill_at(number, inside=inside))
                command(argv(place / "adapter"))

            held(ended(fork(work)) != 99, "the command failed before it was killed")
            ran = command(argv(place / "adapter", "--resume"))
            if ran.code != 0:
                plain = command(argv(place / "adapter"))
                held(plain.code == 0, f"stuck: --resume says: {ran.said}; the plain command: {plain.said}")
            held(state(place / "adapter") == weights(reference), "another adapter than the straight set's")
            held(not (left := strays(place)), f"left behind by the finished set: {', '.join(left[:3])}")

        return attempt

    trials = []
    for number, name in telling(report.read_text().splitlines(), draw.random("set")):
        inside = 20 if name.startswith("open ") and draw.random("set", number).random() < 0.5 else None
        where = f"behind byte 20 of {name}" if inside else f"at operation {number}: {name}"
        trials.append(Trial(f"killed {where}", killed(number, inside), number))
    return trials
