"""Faults planted one at a time: does a test find each? ``make mutations``.

    python benchmarks/mutations.py [--only stem] [--workers 2] [--results FILE]

``faults.toml`` has the faults: each is a piece of source text that occurs once in its file, and what replaces
it. For each of them a copy of the project is changed, and the tests that the table names for it run until the
first failure; that test found the fault. Before that the tests run unchanged, and have to pass. The result is
``benchmarks/results/mutations.json``. ``tests/test_benchmarks_mutations.py`` checks that every text still occurs
once, and that the result has every fault as found.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutations.json"
TABLE = ROOT / "benchmarks" / "faults.toml"
PACKAGE = "src/ptuning"
LIMIT = 600
"""Seconds for the tests of one fault."""


class Fault(NamedTuple):
    """A fault to plant.

    Attributes:
        title: What goes wrong; unique.
        file: Below ``src/ptuning``.
        old: Text that occurs once in the file.
        new: What replaces it.
        tests: Files of ``tests/`` that should notice, by the part of their names after ``test_``.
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


def files_of(faults: Iterable[Fault]) -> list[str]:
    return sorted({f"tests/test_{name}.py" for fault in faults for name in fault.tests})


def copy_project(to: Path) -> None:
    """What the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for folder in ("src", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, to / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", to)


def first_failure(project: Path, tests: Sequence[str]) -> str | None:
    """The test that fails first, or how pytest ended otherwise; ``None`` if all pass."""
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
    words = ["-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:randomly", *tests]
    try:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT} s"
    failed = [
        line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))
    ]
    if failed:
        return failed[0].partition(" - ")[0]
    return None if done.returncode == 0 else f"pytest ended with {done.returncode}"


def plant(fault: Fault, scratch: Path) -> str | None:
    """What found the fault; ``None`` if all its tests pass."""
    if (count := occurrences(fault)) != 1:
        sys.exit(f"{fault.title}: its text occurs {count} times in {fault.file}, expected once; adapt it")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        project = Path(folder)
        copy_project(project)
        file = project / PACKAGE / fault.file
        file.write_text(file.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")
        return first_failure(project, files_of([fault]))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults whose title has this text")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="faults at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    planted = [fault for fault in faults() if given.only in fault.title]
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(given.workers) as pool:
        sound = Path(scratch) / "sound"
        copy_project(sound)
        if (failure := first_failure(sound, files_of(planted))) is not None:
            sys.exit(f"without any fault: {failure}; the tests have to pass first")
        for fault, by in zip(
            planted, pool.map(lambda each: plant(each, Path(scratch)), planted), strict=True
        ):
            found[fault.title] = by
            print(f"{'found' if by else 'MISSED'}: {fault.title}: {by}", flush=True)
    missed = [title for title, by in found.items() if by is None]
    record = {
        "command": shlex.join(["python", "benchmarks/mutations.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "faults": len(found),
        "found": len(found) - len(missed),
        "by": found,
    }
    given.results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(found) - len(missed)} of {len(found)} faults found")
    if missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
