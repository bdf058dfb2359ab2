"""What a load generator is asked to do, and running one in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from serving.names import Draw

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests to one server, or to several that have different tasks.

    Args:
        urls: Of the servers; the k-th task is at the k-th of them, in turn.
        texts: A JSON file with a list of texts.
        route: ``rows`` is ``POST /v1/rows`` with a task a row; ``classify`` is ``POST /classify``, with a
            task a request; ``task`` is ``POST /tasks/{task}``.
        rows: Rows a request.
        tasks: How many tasks are asked.
        model: The name of the only model, in place of tasks.
        draw: How tasks are drawn.
        connections: Of a closed loop: each sends a request when the one before is answered.
        rate: Requests a second of an open loop, with Poisson arrivals; 0 for a closed loop.
        seconds: How long is measured.
        warm: Seconds before that.
        seed: Of the draws.
    """

    urls: tuple[str, ...]
    texts: str
    route: Literal["rows", "classify", "task"]
    rows: int = 32
    tasks: int = 1
    model: str = ""
    draw: Draw = "uniform"
    connections: int = 8
    rate: float = 0.0
    seconds: float = 3.0
    warm: float = 0.5
    seed: int = 0

    @classmethod
    def from_json(cls, text: str) -> Load:
        given = json.loads(text)
        return cls(**{**given, "urls": tuple(given["urls"])})


def run(load: Load) -> dict[str, Any]:
    """What the generator saw; see :func:`serving.generator.summary`.

    Raises:
        RuntimeError: it failed.
    """
    places = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "serving.generator", json.dumps(asdict(load))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
        timeout=load.seconds + load.warm + 120,
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
