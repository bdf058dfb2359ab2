"""Run the campaigns: ``make torture``.

    PYTHONPATH=benchmarks python -m torture [--campaigns kill,disk] [--seed 1] [--trials 20]

One line a kind of trial; everything follows from ``--seed``. The figures, and of failures that look alike the
smallest, are written to ``benchmarks/results/torture.json``. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

# Before torch and transformers are imported: one thread a process, so that forks are safe, and no network.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", NO_COLOR="1")

from torture.trials import Draw, Found, Line, run, sample

CAMPAIGNS = (
    "kill",
    "adapter",
    "resume",
    "numbers",
    "files",
    "disk",
    "signals",
    "stream",
    "backbones",
    "text",
    "threads",
)
RESULTS = Path(__file__).parent.parent / "results" / "torture.json"


def campaign(name: str, lab: Any, draw: Draw, workers: int, only: str | None = None) -> list[Found]:
    """Run a campaign's lines, or the one of that title, a printed line each."""
    found = []
    for line in import_module(f"torture.{name}").lines(lab, draw):
        if only not in (None, line.title):
            continue
        trials = sample(line.trials, draw.most, f"{draw.seed} {name} {line.title}")
        found.append(run(name, Line(line.title, trials, line.limit), lab.root / "trials", workers))
        print(found[-1], flush=True)
        for failure in found[-1].to_dict()["failures"]:
            print(f"    {failure['alike']} ×: {failure['trial']}: {failure['why']}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--campaigns", default=",".join(CAMPAIGNS), help="names with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, help="at most this many a line; as many as there are")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="trials at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    names = given.campaigns.split(",")
    if unknown := [name for name in names if name not in CAMPAIGNS]:
        parser.error(f"unknown campaign {unknown[0]!r}, expected some of {', '.join(CAMPAIGNS)}")
    draw = Draw(given.seed, given.trials)

    from measuring import machine, write
    from torture.lab import made

    with made() as lab:
        found = [each for name in names for each in campaign(name, lab, draw, given.workers)]
    failed = sum(len(each.failures) for each in found)
    total = sum(each.trials for each in found)
    seconds = sum(each.seconds for each in found)
    print(f"{total - failed:,} of {total:,} held, {seconds:.0f} s")
    result = {
        "what": "trials that try to break ptuning, and how many held",
        "command": shlex.join(["python", "-m", "torture", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "seed": given.seed,
        "trials": total,
        "held": total - failed,
        "seconds": round(seconds),
        "lines": [each.to_dict() for each in found],
    }
    write(given.results, result)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
