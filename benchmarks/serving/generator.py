"""A load generator in a process of its own: ``python -m serving.generator '{…}'``, with a ``load.Load``.

Requests are encoded before the clock runs. In an open loop each is sent at its intended time, however late
the answers before it are, and its latency counts from that time; so waiting in a queue is not hidden.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from serving.load import Load
from serving.names import drawn

POOL = 512
"""Different requests; they are sent in turn."""
PATIENCE = 30.0
"""Seconds after which a request counts as not answered."""


@dataclass(frozen=True)
class Request:
    """One request, encoded."""

    url: str
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What came of a request. Times are seconds of ``time.perf_counter``.

    Attributes:
        intended: When it should have been sent; in a closed loop, when it was.
        sent: When it was.
        done: When the answer was there.
        code: Of HTTP; 0 for none.
    """

    intended: float
    sent: float
    done: float
    code: int


def requests(load: Load) -> list[Request]:
    """The requests of a load."""
    texts: list[str] = json.loads(Path(load.texts).read_text())
    draw = random.Random(load.seed)
    tasks = drawn(load.tasks, POOL * load.rows, load.draw, load.seed)
    number = {name: int(name.rpartition("-")[2]) for name in set(tasks)}
    found = []
    for at in range(0, len(tasks), load.rows):
        chosen = draw.choices(texts, k=load.rows)
        first = tasks[at]
        url = load.urls[number[first] % len(load.urls)]
        if load.route == "rows":
            given: Any = {
                "rows": [
                    {"task": task, "text": text}
                    for task, text in zip(tasks[at : at + load.rows], chosen, strict=True)
                ]
            }
            path = "/v1/rows"
        elif load.route == "classify":
            given = {"model": load.model or first, "input": chosen}
            path = "/classify"
        else:
            given = {"inputs": chosen}
            path = f"/tasks/{first}"
        found.append(Request(url + path, json.dumps(given).encode()))
    return found


class Sender:
    """Sends requests and keeps what came of them."""

    def __init__(self, session: aiohttp.ClientSession, load: Load) -> None:
        self.session, self.load = session, load
        self.requests = cycle(requests(load))
        self.answers: list[Answer] = []
        self.clock = time.perf_counter  # the loop's own counts in milliseconds

    async def send(self, intended: float | None = None) -> None:
        request = next(self.requests)
        sent = self.clock()
        code = 0
        try:
            headers = {"content-type": "application/json"}
            async with self.session.post(request.url, data=request.body, headers=headers) as response:
                body = await response.read()
                code = response.status
                if self.load.route == "rows" and b'"error"' in body:
                    code = 0
        except (aiohttp.ClientError, TimeoutError):
            pass
        self.answers.append(Answer(sent if intended is None else intended, sent, self.clock(), code))

    async def closed(self, ends: float) -> None:
        """Every connection sends a request when the one before is answered."""

        async def connection() -> None:
            while self.clock() < ends:
                await self.send()

        await asyncio.gather(*(connection() for _ in range(self.load.connections)))

    async def open(self, begins: float, ends: float) -> None:
        """Poisson arrivals."""
        draw = random.Random(self.load.seed)
        at = begins
        open_ = []
        while (at := at + draw.expovariate(self.load.rate)) < ends:
            if (wait := at - self.clock()) > 0:
                await asyncio.sleep(wait)
            open_.append(asyncio.create_task(self.send(at)))
        await asyncio.gather(*open_)


async def measure(load: Load) -> dict[str, Any]:
    """Run the load."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        sender = Sender(session, load)
        busy, begins = time.process_time(), sender.clock()
        ends = begins + load.warm + load.seconds
        await (sender.open(begins, ends) if load.rate else sender.closed(ends))
        busy = (time.process_time() - busy) / (sender.clock() - begins)
    return summary(sender.answers, load, begins + load.warm, ends, busy)


def summary(answers: Sequence[Answer], load: Load, begins: float, ends: float, busy: float) -> dict[str, Any]:
    """What the requests came to.

    Args:
        begins, ends: What is measured: answers of a closed loop that came in this time, and requests of an
            open loop that were to be sent in it.
        busy: Cores that the generator used.

    Returns:
        Rates of what was answered with 200, latencies in milliseconds, requests by code (0: none, or rows
        without an answer), and how late requests were sent.
    """
    if load.rate:
        counted = [each for each in answers if begins <= each.intended < ends]
    else:
        counted = [each for each in answers if begins <= each.done < ends]
    good = [each for each in counted if each.code == 200]
    rate = len(good) / (ends - begins)
    waited = sorted(1000 * (each.done - each.intended) for each in good)
    late = sorted(1000 * (each.sent - each.intended) for each in counted)
    return {
        "requests": len(counted),
        "codes": dict(sorted(Counter(str(each.code) for each in counted).items())),
        "requests_per_second": round(rate, 2),
        "rows_per_second": round(rate * load.rows, 1),
        "milliseconds": {
            "mean": round(statistics.fmean(waited), 2) if waited else None,
            **{f"p{part}": percentile(waited, part) for part in (50, 95, 99)},
            "max": percentile(waited, 100),
        },
        "sent_late_p99": percentile(late, 99),
        "generator_cores": round(busy, 3),
    }


def percentile(values: Sequence[float], part: float) -> float | None:
    """Of sorted ``values``: the smallest that is no less than ``part`` % of them."""
    if not values:
        return None
    return round(values[max(0, math.ceil(part / 100 * len(values)) - 1)], 2)


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure(Load.from_json(sys.argv[1])))))
