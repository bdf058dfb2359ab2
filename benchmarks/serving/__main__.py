"""Measure how many tasks are served: ``make bench-serving``.

    PTUNING_DATA=... PYTHONPATH=benchmarks python -m serving [--parts in-process,http] [--quick]

Each part's figures are written to ``benchmarks/results/serving.json`` as soon as it is done; those of parts
that were not asked for stay. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from transformers.utils import logging

from measuring import machine, write
from serving.lab import Lab, folder
from serving.plan import QUICK, Plan
from serving.servers import Missing

PARTS = {
    "in-process": "in_process",
    "peft": "peft_switching",
    "http": "over_http",
    "infinity": "against_infinity",
    "processes": "processes",
    "open-loop": "open_loop",
    "startup": "start_up",
}
"""The module of each part; it has ``measure(lab)``."""
RESULTS = Path(__file__).parent.parent / "results" / "serving.json"
PACKAGES = ("peft", "fastapi", "uvicorn", "uvloop", "httptools", "aiohttp")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="names with commas between")
    parser.add_argument("--quick", action="store_true", help="see that everything runs; the figures are void")
    parser.add_argument("--rounds", type=int, help="of each part, open loops aside")
    parser.add_argument("--seconds", type=float, help="that each load over HTTP lasts in a round")
    parser.add_argument("--scratch", type=Path, help="keep adapters and models here for the next run")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    names = given.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    asked = {"rounds": given.rounds, "seconds": given.seconds}
    base = QUICK if given.quick else Plan()
    plan = Plan(**{**vars(base), **{name: value for name, value in asked.items() if value is not None}})
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with folder(given.scratch) as scratch:
        lab = Lab(plan, scratch)
        for name in names:
            began = datetime.now(UTC)
            try:
                figures = import_module(f"serving.{PARTS[name]}").measure(lab)
            except Missing as missing:
                print(f"{name}: left out: {missing}", file=sys.stderr)
                continue
            seconds = (datetime.now(UTC) - began).total_seconds()
            keep(given.results, name, {**heading(began, seconds, given.quick), "figures": figures})
            print(f"{name}: done in {seconds:.0f} s", file=sys.stderr)


def heading(began: datetime, seconds: float, quick: bool) -> dict[str, Any]:
    """How and on what a part was measured."""
    words = sys.argv[1:]
    for option in ("--results", "--scratch"):  # this machine's own business
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    return {
        "command": shlex.join(["python", "-m", "serving", *words]),
        "date": began.date().isoformat(),
        "seconds": round(seconds),
        **({"quick": True} if quick else {}),
        "machine": machine() | {name: version(name) for name in PACKAGES},
    }


def keep(results: Path, name: str, part: dict[str, Any]) -> None:
    """Put a part's figures among those of the others, in the order of :data:`PARTS`."""
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    parts = {**found.get("parts", {}), name: part}
    what = "many tasks on one backbone: rows a second, latencies, memory, beside what else there is"
    write(results, {"what": what, "parts": {each: parts[each] for each in PARTS if each in parts}})


if __name__ == "__main__":
    main()
