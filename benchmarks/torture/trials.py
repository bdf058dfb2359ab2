"""Running many trials in child processes, so that one that hangs, dies or eats the memory is a figure too.

A few workers are forked from this warmed-up process. Each takes trial after trial of a line and reports
through a pipe; one that overruns its limit is killed with all that it started, and another goes on behind it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

MEMORY = 2 << 30
"""Bytes of address space that a worker may take on top of what it began with."""


class NotHeld(Exception):
    """A trial found a fault; the message says what was seen."""


@dataclass(frozen=True)
class Trial:
    """One attempt.

    Attributes:
        name: What is done, enough to do it again.
        attempt: Does it, in an empty folder of its own. Returning means held; any exception means not.
        size: How much was damaged: the smallest of several alike failures is kept.
    """

    name: str
    attempt: Callable[[Path], None]
    size: int = 0


@dataclass(frozen=True)
class Line:
    """Trials of one kind, whose figures make one line.

    Attributes:
        title: What was tried.
        trials: In the order in which they are run.
        limit: Seconds after which a trial hangs.
    """

    title: str
    trials: Sequence[Trial]
    limit: float = 30.0


@dataclass
class Found:
    """What the trials of a line came to."""

    campaign: str
    title: str
    trials: int
    seconds: float = 0.0
    failures: list[tuple[Trial, str]] = field(default_factory=list)

    def __str__(self) -> str:
        held = self.trials - len(self.failures)
        return f"{self.campaign}, {self.title}: {held} of {self.trials} held ({self.seconds:.0f} s)"

    def to_dict(self) -> dict[str, Any]:
        """For the result file; of failures that look alike the smallest, and how many there were."""
        alike: dict[str, list[tuple[Trial, str]]] = {}
        for trial, why in self.failures:
            alike.setdefault(re.sub(r"[0-9a-f]{8}|\d+|'[^']*'", "…", why)[:60], []).append((trial, why))
        smallest = [(min(found, key=lambda each: each[0].size), len(found)) for found in alike.values()]
        return {
            "campaign": self.campaign,
            "line": self.title,
            "trials": self.trials,
            "held": self.trials - len(self.failures),
            "seconds": round(self.seconds, 1),
            "failures": [
                {"trial": trial.name, "why": why, "alike": count}
                for (trial, why), count in sorted(smallest, key=lambda each: -each[1])
            ],
        }


@dataclass(frozen=True)
class Draw:
    """Where a campaign's randomness and the number of its trials come from.

    Attributes:
        seed: Of everything.
        most: Trials a line; left out, as many as the campaign thinks right.
    """

    seed: int
    most: int | None = None

    def count(self, usual: int) -> int:
        """How many trials a line of random ones has."""
        return usual if self.most is None else self.most

    def random(self, *what: object) -> Random:
        """Its own for every trial, so that one can be done again alone."""
        return Random(repr((self.seed, *what)))


def sample(trials: Sequence[Trial], most: int | None, seed: str) -> Sequence[Trial]:
    """At most ``most`` of the trials, drawn, in their order."""
    if most is None or len(trials) <= most:
        return trials
    chosen = sorted(Random(seed).sample(range(len(trials)), most))
    return [trials[i] for i in chosen]


def run(campaign: str, line: Line, scratch: Path, workers: int) -> Found:
    """Try every trial of a line.

    Args:
        scratch: A folder; each worker has a folder in it, emptied before every trial.
        workers: How many trials run at once.
    """
    began = time.monotonic()
    found = Found(campaign, line.title, len(line.trials))
    shares = [range(first, len(line.trials), workers) for first in range(workers)]
    crew = [_Worker(line, list(share), scratch / f"worker-{n}") for n, share in enumerate(shares) if share]
    while running := [worker for worker in crew if worker.left]:
        select.select([worker.pipe for worker in running], [], [], 0.1)
        for worker in running:
            worker.listen()
    for worker in crew:
        worker.end()
        found.failures += [(line.trials[index], why) for index, why in worker.failures]
    found.seconds = time.monotonic() - began
    return found


class _Worker:
    """A child that tries its share of a line, and another in its place whenever it is lost."""

    def __init__(self, line: Line, share: list[int], folder: Path) -> None:
        self.left = share
        self.failures: list[tuple[int, str]] = []
        self._line = line
        self._folder = folder
        self._begin()

    def _begin(self) -> None:
        self.pipe, far = os.pipe()
        os.set_blocking(self.pipe, False)
        self._heard = b""
        self._since = time.monotonic()
        self._pid = os.fork()
        if not self._pid:
            os.close(self.pipe)
            os.setsid()  # a group of its own, to be ended with all that it starts
            _work(self._line, self.left, self._folder, far)
        os.close(far)

    def listen(self) -> None:
        """Take what the child has reported; replace it if it is lost."""
        try:
            data = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            if time.monotonic() - self._since > self._line.limit:
                self._lost(f"hangs: not done after {self._line.limit:.0f} s")
            return
        if not data:
            self._lost("the process died")
            return
        *reports, self._heard = (self._heard + data).split(b"\n")
        for report in reports:
            why = json.loads(report)
            if why is not None:
                self.failures.append((self.left[0], why))
            self.left.pop(0)
            self._since = time.monotonic()

    def _lost(self, why: str) -> None:
        status = self.end()
        if not self.left:
            return
        self.failures.append((self.left.pop(0), f"{why} (exit {status})" if "died" in why else why))
        if self.left:
            self._begin()

    def end(self) -> int:
        """End the child and what it started; its exit status, below 0 for a signal."""
        if not self._pid:
            return 0
        with suppress(ProcessLookupError, PermissionError):  # it has ended by itself
            os.killpg(self._pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        os.close(self.pipe)
        self._pid = 0
        shutil.rmtree(self._folder, ignore_errors=True)
        return status


def _work(line: Line, share: list[int], folder: Path, pipe: int) -> None:
    """In the child: try the share's trials, a report a line; never returns."""
    try:
        _limit_memory()
        for standard in (1, 2):  # what libraries warn of would stand between the figures
            os.dup2(os.open(os.devnull, os.O_WRONLY), standard)
        for index in share:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            os.chdir(folder)
            try:
                line.trials[index].attempt(folder)
            except BaseException as error:  # whatever it is, it is the trial's result
                why: str | None = _said(error, folder)
            else:
                why = None
            os.write(pipe, json.dumps(why).encode() + b"\n")
    finally:
        os._exit(0)


def _limit_memory() -> None:
    taken = Path("/proc/self/statm")
    if taken.exists():  # Linux
        now = int(taken.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def _said(error: BaseException, folder: Path) -> str:
    """A failure in a line that names no place of this machine."""
    if isinstance(error, NotHeld):
        text = str(error)
    else:
        frames = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(frames) if "ptuning" in Path(f.filename).parts), None)
        where = f" at {Path(place.filename).name}:{place.lineno}" if place else ""
        text = f"{type(error).__name__}{where}: {error}"
    text = text.replace(str(folder), "TRIAL").replace(str(folder.parent.parent), "LAB")
    return text.encode("unicode_escape").decode()[:600]
