"""Faults planted one at a time: does a test find each? ``make mutations``.

    python benchmarks/mutations.py [--only stem] [--left] [--workers 2] [--results FILE]

``faults.toml`` has the faults: each is a piece of source text that occurs once in its file, and its
replacement. For each of them a copy of the project is changed, and the tests that the table names for it run
until the first failure; that test found the fault. At the end the tests that found something run on the
source unchanged, and have to pass. Each run adds to ``benchmarks/results/mutations.json``. Whether every text
still occurs once, and every fault was found, is checked by ``tests/test_benchmarks_mutations.py``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutations.json"
TABLE = ROOT / "benchmarks" / "faults.toml"
PACKAGE = "src/ptuning"
LIMIT = 1200
"""Seconds for the tests of one fault."""


class Fault(NamedTuple):
    """A fault to plant.

    Attributes:
        title: What goes wrong; unique.
        file: Below ``src/ptuning``.
        old: Text that occurs once in the file.
        new: What replaces it.
        tests: What should notice: files of ``tests/``, or ``file::test``, each without its ``test_``.
    """

    title: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def faults() -> list[Fault]:
    """Those of ``faults.toml``."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))["fault"]
    return [Fault(**{**entry, "tests": tuple(entry["tests"].split())}) for entry in table]


def occurrences(fault: Fault, root: Path = ROOT) -> int:
    """How often its text is in its file; 0 for a file that is gone."""
    file = root / PACKAGE / fault.file
    return file.read_text(encoding="utf-8").count(fault.old) if file.exists() else 0


def nodes_of(faults: Iterable[Fault]) -> list[str]:
    """Their tests, as pytest takes them."""
    parts = {tuple(name.split("::")) for fault in faults for name in fault.tests}
    return sorted("::test_".join((f"tests/test_{file}.py", *test)) for file, *test in parts)


def copy_project(to: Path) -> None:
    """What the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for folder in ("src", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, to / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", to)


def warm_up() -> None:
    """Import what the tests import, but for ptuning, so that forks need not."""
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    for name in (
        "accelerate",
        "peft",
        "scipy.stats",
        "sklearn.linear_model",
        "transformers.trainer",
    ):
        import_module(name)
    sys.path.append(str(ROOT / "tests"))
    tiny = import_module("tiny")
    for case in tiny.CASES:  # each architecture's module
        tiny.tiny_case(case)
    sys.path.pop()
    del sys.modules["tiny"]
    assert "ptuning" not in sys.modules, "what is imported already has no fault"
    gc.freeze()


class First:
    """A plugin of pytest's that keeps the first test that fails."""

    def __init__(self) -> None:
        self.failed: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        self.pytest_runtest_logreport(report)


def run_tests(project: Path, tests: Sequence[str]) -> str | None:
    """In a child: the test that fails first; ``None`` if all pass."""
    import pytest

    os.chdir(project)
    sys.path.insert(0, str(project / "src"))
    os.environ["PYTHONPATH"] = str(project / "src")
    first = First()
    code = pytest.main(
        ["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", *tests], plugins=[first]
    )
    return None if code == 0 else first.failed or f"pytest ended with {int(code)}"


class Attempt:
    """The tests of a project in a process of their own."""

    def __init__(self, project: Path, tests: Sequence[str]) -> None:
        self._report, self._until = project / "report.json", time.monotonic() + LIMIT
        self.pid = os.fork()
        if self.pid == 0:
            with (project / "log").open("wb") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            try:
                self._report.write_text(json.dumps(run_tests(project, tests)))
            except BaseException:  # this is a fork: nothing of it may go on
                traceback.print_exc()
            os._exit(0)

    def done(self) -> bool:
        """Whether it has ended, or was ended for taking too long."""
        if time.monotonic() > self._until:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return True
        return os.waitpid(self.pid, os.WNOHANG)[0] != 0

    def found(self) -> str | None:
        """What failed first."""
        if not self._report.exists():
            return f"the tests died, or took more than {LIMIT} s"
        failed: str | None = json.loads(self._report.read_text())
        return failed


def planted(fault: Fault, project: Path) -> Attempt:
    """A copy of the project with the fault, and its tests at work on it."""
    if (count := occurrences(fault)) != 1:
        sys.exit(f"{fault.title}: its text occurs {count} times in {fault.file}, expected once; adapt it")
    copy_project(project)
    file = project / PACKAGE / fault.file
    file.write_text(file.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
    return Attempt(project, nodes_of([fault]))


def attempts(chosen: Sequence[Fault], scratch: Path, workers: int) -> Iterator[tuple[Fault, str | None]]:
    """Each fault and the test that found it, as they end."""
    left, running = list(enumerate(chosen)), dict[Path, tuple[Fault, Attempt]]()
    while left or running:
        while left and len(running) < workers:
            number, fault = left.pop(0)
            project = scratch / str(number)
            running[project] = fault, planted(fault, project)
        time.sleep(0.05)
        for project, (fault, attempt) in list(running.items()):
            if attempt.done():
                del running[project]
                yield fault, attempt.found()
                shutil.rmtree(project)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults whose title has this text")
    parser.add_argument("--left", action="store_true", help="those that the result does not have as found")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="faults at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    everything = faults()
    known = json.loads(given.results.read_text(encoding="utf-8"))["by"] if given.results.exists() else {}
    found: dict[str, str | None] = {fault.title: known.get(fault.title) for fault in everything}
    chosen = [fault for fault in everything if given.only in fault.title]
    if given.left:
        chosen = [fault for fault in chosen if found[fault.title] is None]
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        for fault, by in attempts(chosen, Path(folder), given.workers):
            found[fault.title] = by
            print(f"{'found' if by else 'MISSED'}: {fault.title}: {by}", flush=True)
            write(found, given.results)
        failure = sound({by for by in found.values() if by}, Path(folder) / "sound")
    missed = [title for title, by in found.items() if by is None]
    print(f"{len(found) - len(missed)} of {len(found)} faults found")
    if failure is not None:
        sys.exit(f"without any fault: {failure}; it has to pass there")
    if missed:
        sys.exit(1)


def sound(tests: Iterable[str], project: Path) -> str | None:
    """Which of the tests fails first on the source as it is."""
    copy_project(project)
    attempt = Attempt(project, sorted(tests))
    while not attempt.done():
        time.sleep(0.1)
    return attempt.found()


def write(found: Mapping[str, str | None], file: Path) -> None:
    record = {
        "command": "python benchmarks/mutations.py",
        "date": datetime.now(UTC).date().isoformat(),
        "faults": len(found),
        "found": sum(by is not None for by in found.values()),
        "by": found,
    }
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
