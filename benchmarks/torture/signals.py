"""Signals at random instants: a run is saved, ends with 128 + signal, and can be gone on from."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from torture.lab import Lab, command, console, ended, fork, held, state, strays, weights
from torture.trials import Draw, Line, NotHeld, Trial

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PROMPT = 10.0
"""Seconds in which a program has ended after a signal, on a busy machine."""


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    for title, count, again in (("once, of train", 80, False), ("twice, of train", 48, True)):
        trials = []
        for i in range(draw.count(count)):
            random, number = draw.random(title, i), SIGNALS[i % len(SIGNALS)]
            share, gap = random.random() * 1.05, random.random() * 0.05 if again else None
            name = f"{number.name} after {share:.3f} of a run's time"
            trials.append(Trial(name, _train(lab, number, share * lab.seconds, gap)))
        yield Line(title, trials)
    trials = []
    for i in range(draw.count(24)):
        random, number = draw.random("predict", i), SIGNALS[i % len(SIGNALS)]
        seconds = random.random() * 0.6
        trials.append(Trial(f"{number.name} after {seconds:.2f} s", _predict(lab, number, seconds)))
    yield Line("of predict", trials)


def _signalled(
    work: Callable[[], object], log: Path, number: signal.Signals, seconds: float, gap: float | None
) -> int:
    """The exit code of a child that is sent a signal, or two."""
    child = fork(work, log)
    time.sleep(0.02 + seconds)
    os.kill(child, number)
    began = time.monotonic()
    if gap is not None:
        time.sleep(gap)
        os.kill(child, number)  # not waited for yet, so it is there
    code = ended(child)
    held(time.monotonic() - began < PROMPT, f"took {time.monotonic() - began:.1f} s to end")
    text = log.read_text(errors="replace")
    held("Traceback" not in text, f"a traceback: {(text.strip().splitlines() or [''])[-1]}")
    held(code in (0, 128 + number), f"exit code {code}, expected {128 + number}: {text[-200:]}")
    if code:
        said = [line for line in text.splitlines() if line.startswith("ptuning:")]
        held(len(said) == 1, f"{len(said)} sentences, expected 1: {said}")
    return code


def _train(lab: Lab, number: signal.Signals, seconds: float, gap: float | None) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        output, log = place / "adapter", lab.root / f"log-{place.name}"
        code = _signalled(console(lab.argv(output)), log, number, seconds, gap)
        if gap is None:  # a second one may cut short the cleaning up, which the next run then does
            held(not (left := strays(place)), f"left behind: {', '.join(left[:3])}")
        held(state(output) in ("absent", weights(lab.reference)), "another adapter stands there")
        if code:
            ran = command(lab.argv(output, "--resume"))
            if ran.code:
                plain = command(lab.argv(output))
                held(plain.code == 0, f"stuck: --resume says: {ran.said}; the plain command: {plain.said}")
        held(state(output) == weights(lab.reference), "the run that was gone on from has other weights")
        held(not (left := strays(place)), f"left behind by the finished run: {', '.join(left[:3])}")

    return attempt


def _predict(lab: Lab, number: signal.Signals, seconds: float) -> Callable[[Path], None]:
    """What is written to a file appears whole, or not at all."""

    def attempt(place: Path) -> None:
        source, output, log = lab.root / "many.txt", place / "out", lab.root / f"log-{place.name}"
        if not source.exists():
            source.write_text("".join(f"good film {i % 97}\n" for i in range(8000)))
        argv = ["predict", str(lab.reference), "--input", str(source), "--output", str(output)]
        code = _signalled(console(argv), log, number, seconds, None)
        held(not (left := strays(place)), f"left behind: {', '.join(left[:3])}")
        held(output.exists() == (code == 0), f"exit code {code}, and the output is there: {output.exists()}")
        if code == 0 and len(output.read_text().splitlines()) != 8000:
            raise NotHeld("the output lacks rows")

    return attempt
