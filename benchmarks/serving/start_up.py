"""From the start of the process until it is ready, with one adapter in a folder and with 1,000."""

from __future__ import annotations

from typing import Any

from serving import servers
from serving.figures import Side, alternating, spread
from serving.lab import Lab


def measure(lab: Lab) -> dict[str, Any]:
    """Seconds; the files have been read before, so the disk's speed is not in it."""
    most = lab.plan.most

    def start(count: int) -> Side:
        def side(_: int) -> dict[str, Any]:
            with servers.ptuning(lab.adapters(count), lab.model, precision=lab.precision) as server:
                served = len(servers.ask(f"{server.url}/models")["data"])
                if served != count:
                    raise RuntimeError(f"{served} tasks are served, not {count}")
                return {"rate": 1 / server.seconds_to_ready, "seconds": server.seconds_to_ready} | {
                    "memory_mib": server.memory()
                }

        return side

    sides = {f"{count:,} adapter{'s' * (count > 1)}": start(count) for count in (1, most)}
    rounds = alternating(sides, lab.plan.starts, "starts a second")
    return {
        name: {
            "seconds_to_ready": spread([each[name]["seconds"] for each in rounds], 2),
            "resident_mib": spread([each[name]["memory_mib"]["rss"] for each in rounds]),
        }
        for name in sides
    }
