"""A process for each task, beside one process with as many tasks: memory and rows a second."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving import servers
from serving.figures import Side, alternating, compared
from serving.lab import Lab
from serving.load import Load
from serving.over_http import MANY, asked


def measure(lab: Lab) -> dict[str, Any]:
    """Requests of one row, each for one of the tasks."""
    count = lab.plan.processes
    with ExitStack() as stack:

        def serving(folder: Path) -> servers.Server:
            return stack.enter_context(servers.ptuning(folder, lab.model, precision=lab.precision))

        one = serving(lab.adapters(count))
        many = [serving(lab.adapters(1, first)) for first in range(count)]
        common = Load(
            urls=(one.url,),
            texts=lab.texts,
            route="classify",
            rows=1,
            tasks=count,
            connections=MANY,
            seconds=lab.plan.seconds,
            warm=lab.plan.warm,
        )
        together, apart = f"one process, {count} tasks", f"{count} processes, a task each"
        sides: dict[str, Side] = {
            together: asked(common),
            apart: asked(replace(common, urls=tuple(server.url for server in many))),
        }
        rounds = alternating(sides, lab.plan.peer_rounds, "processes")
        memory = {together: [one.memory()], apart: [server.memory() for server in many]}
    return {
        "data": "sst2",
        "precision": lab.precision,
        "connections": MANY,
        "sides": compared(rounds, {apart: together}),
        "rounds": rounds,
        "memory_mib": memory,
        "resident_mib": {name: round(sum(each["rss"] for each in its)) for name, its in memory.items()},
        "proportional_mib": {name: round(sum(each["pss"] for each in its)) for name, its in memory.items()},
    }
