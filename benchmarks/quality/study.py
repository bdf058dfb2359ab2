"""How well ptuning's methods and their peers learn, on whole data sets and on few rows: ``make quality``.

    PTUNING_DATA=... PYTHONPATH=benchmarks python -m quality [--list] [--jobs 2] [--datasets mrpc sst2-16]
        [--methods default full] [--seeds 0 1 2] [--limit-minutes 60]

Each run is a process of its own on one thread, and a line of benchmarks/results/quality.jsonl when it ends.
What is there is not done again, so the study can be cut off at any time and gone on with by the same command.
What fails is said and tried again the next time. ``quality.plan`` says what is run, and how rates are picked.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from quality import records
from quality.data import elsewhere, loadable, root
from quality.estimates import estimate
from quality.plan import (
    DATASETS,
    ELSEWHERE,
    METHODS,
    STUDIED,
    Record,
    Run,
    data_set,
    outstanding,
    remaining,
    setfit_python,
)

BENCHMARKS = Path(__file__).parent.parent
REPOSITORY = BENCHMARKS.parent
WORKER = ("-m", "quality.worker")


def main(
    words: Sequence[str] | None = None,
    *,
    datasets: Sequence[str] = (*STUDIED, *ELSEWHERE),
    results: Path = records.RESULTS,
) -> None:
    """The study at the command line.

    Args:
        datasets: Those that are run if none are named.
        results: Where the results are.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, known, usual in (("datasets", DATASETS, datasets), ("methods", METHODS, METHODS)):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            choices=list(known),
            default=list(usual),
            metavar="NAME",
            help="these alone",
        )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="these alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, a thread each")
    parser.add_argument("--limit-minutes", type=float, help="start nothing new after so long")
    parser.add_argument("--list", action="store_true", help="say what is done and left, and run nothing")
    parser.add_argument("--results", type=Path, default=results)
    given = parser.parse_args(words)
    study = Study(given)
    if given.list:
        print(study.listing())
        return
    for backbone in {data_set(name).backbone for name in given.datasets}:
        loadable(backbone)  # without it, and without data, nothing is begun
    if any(not data_set(name).elsewhere for name in given.datasets):
        root()
    wanted = [name for name in given.datasets if data_set(name).elsewhere]
    if missing := [name for name in wanted if not (elsewhere() / data_set(name).source).exists()]:
        print(f"left out: {', '.join(missing)}; make quality-elsewhere fetches them", file=sys.stderr)
        given.datasets = [name for name in given.datasets if name not in missing]
    if "setfit" in given.methods and not setfit_python().exists():
        print("SetFit is left out: make quality-setfit makes its environment", file=sys.stderr)
        given.methods.remove("setfit")
    with _terminated_as_interrupted():
        study.carry_on()
    if study.failed:
        sys.exit(f"{len(study.failed)} runs failed; the same command tries them again")


class Study:
    """The runs that are asked for, and how far they are."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.records: list[Record] = [*records.read(given.results)]
        self.failed: set[tuple[str, str, str, int]] = set()
        self.jobs: list[Job] = []
        self.began = time.monotonic()

    def carry_on(self) -> None:
        """Run what is left, until nothing can be started any more."""
        try:
            while self._start() or self.jobs:
                time.sleep(0.2)
                for job in [job for job in self.jobs if job.process.poll() is not None]:
                    self.jobs.remove(job)
                    self._finish(job)
        except KeyboardInterrupt:
            sys.exit(f"interrupted; {len(self.records)} runs are in {self.given.results.name}")
        finally:
            for job in self.jobs:
                job.end()

    def _start(self) -> bool:
        """Start what there is room and time for; whether anything was."""
        room = self.given.jobs - len(self.jobs)
        if not room:
            return False  # what is left need not be looked through five times a second
        limit = self.given.limit_minutes
        if limit is not None and time.monotonic() - self.began > 60 * limit:
            return False
        known = {job.run.key for job in self.jobs} | self.failed
        todo = [run for run in self._remaining() if run.key not in known]
        started = todo[:room]
        self.jobs += [Job(run) for run in started]
        return bool(started)

    def _remaining(self) -> list[Run]:
        given = self.given
        return remaining(self.records, given.datasets, given.methods, given.seeds)

    def _finish(self, job: Job) -> None:
        found = job.found()
        if isinstance(found, str):
            self.failed.add(job.run.key)
            print(f"FAILED {job.run.name}: {found}", file=sys.stderr, flush=True)
            return
        record = {
            "dataset": job.run.dataset,
            "method": job.run.method,
            "seed": job.run.seed,
            "rate": job.run.setting.get("rate"),
            "setting": dict(job.run.setting),
            **found,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": revision(),
            "command": command(),
        }
        records.append(record, self.given.results)
        self.records = [*records.read(self.given.results)]  # another study may have written to it
        print(self._said(record, job.run), flush=True)

    def _said(self, record: Record, run: Run) -> str:
        """A line for a run that is done. Of the validation rows: nobody should choose by the others."""
        metric = data_set(run.dataset).metric
        if record["metrics"] is None:
            said = f"diverged ({record['diverged']})"
        else:
            value = record["metrics"]["validation"].get(metric)
            said = f"validation {metric} " + ("undefined" if value is None else f"{value:.3f}")
        left, seconds = self._left()
        hours = seconds / 3600 / self.given.jobs
        return f"{run.name}: {said}, {record['wall_seconds']:.0f} s; {left} left, about {hours:.1f} h"

    def _left(self) -> tuple[int, float]:
        """How many runs are left, and about how many seconds they take one after another."""
        cells = [(outstanding(self.records, *cell, self.given.seeds), cell) for cell in self._cells()]
        return (
            sum(left for left, _ in cells),
            sum(left * estimate(self.records, *cell) for left, cell in cells if left),
        )

    def _cells(self) -> Iterator[tuple[str, str]]:
        for method in METHODS:
            for dataset in METHODS[method].datasets:
                if method in self.given.methods and dataset in self.given.datasets:
                    yield dataset, method

    def listing(self) -> str:
        """What is done and left, a line a method on a data set."""
        lines = [f"{'method':18} {'data':12} {'left':>5} {'s a run':>8}"]
        for dataset, method in self._cells():
            left = outstanding(self.records, dataset, method, self.given.seeds)
            seconds = estimate(self.records, dataset, method)
            lines.append(f"{method:18} {dataset:12} {left or 'done':>5} {seconds:8.0f}")
        left, seconds = self._left()
        lines.append(f"{left} runs left, about {seconds / 3600:.1f} hours of one core")
        return "\n".join(lines)


class Job:
    """A run in its process, with a folder of its own that goes when the run is over."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._folder = tempfile.TemporaryDirectory(prefix="ptuning-quality-")
        self._scratch = Path(self._folder.name)
        self._out, self._err = self._scratch / "out", self._scratch / "err"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(self._scratch),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(BENCHMARKS), os.environ.get("PYTHONPATH")))),
            "PTUNING_CACHE": str(self._scratch / "cache"),  # empty: no run is helped by one before it
        }
        # A group of its own: Ctrl-C reaches the study alone, which then ends its runs.
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *WORKER, "--json-run", json.dumps(asdict(run))],
                env=environment,
                stdout=out,
                stderr=err,
                process_group=0,
            )

    def found(self) -> dict[str, Any] | str:
        """What the run that has ended says; why it failed, if it did."""
        lines = self._out.read_text(encoding="utf-8").strip().splitlines()
        said = self._err.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        self._folder.cleanup()
        if self.process.returncode == 0 and lines:
            found: dict[str, Any] = json.loads(lines[-1])
            return found
        return f"exit status {self.process.returncode}: " + " | ".join(said[-3:])

    def end(self) -> None:
        """Stop it, wherever it is, with what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._folder.cleanup()


def revision() -> str | None:
    """The commit that this is, ``+`` if the program differs from it; ``None`` outside of git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "src", "benchmarks/*.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def command() -> str:
    """The command line, without where results went, which is this machine's own business."""
    words = sys.argv[1:]
    at = words.index("--results") if "--results" in words else len(words)
    script = Path(sys.argv[0])
    program = ["-m", "quality"] if script.name == "__main__.py" else [f"benchmarks/{script.name}"]
    return shlex.join(["python", *program, *words[:at], *words[at + 2 :]])


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Being told to end is Ctrl-C, so that runs do not outlive the study."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
