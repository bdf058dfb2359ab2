"""Latencies at fixed rates: Poisson arrivals of one row each, tasks drawn Zipf-like from 1,000.

Latency counts from the time at which a request was to be sent. All servers get the same rates, shares of what
``ptuning serve`` takes in a closed loop. infinity has one model, in the same precision and in int8. The load
generator's own ceiling is measured against a server that does nothing.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from serving import load, servers
from serving.against_infinity import DTYPE_OF, MISSING, MODEL, PROGRAM, fine_tuned, warm_up
from serving.figures import spread
from serving.lab import Lab
from serving.load import Load
from serving.over_http import MANY

SHARES = (0.3, 0.6, 0.8)
OURS = "ptuning"


def measure(lab: Lab) -> dict[str, Any]:
    """Capacities, then the open loops in turn."""
    if not PROGRAM.exists():
        raise servers.Missing(MISSING)
    folder, _ = fine_tuned(lab)
    dtypes = (DTYPE_OF[lab.precision], "int8")
    with ExitStack() as stack:
        adapters = lab.adapters(lab.plan.most)
        running = {
            OURS: stack.enter_context(servers.ptuning(adapters, lab.model, precision=lab.precision)),
            **{
                f"infinity {dtype}": stack.enter_context(servers.infinity(PROGRAM, folder, MODEL, dtype))
                for dtype in dtypes
            },
        }
        nothing = stack.enter_context(servers.trivial())
        common = Load(
            urls=(nothing.url,),
            texts=lab.texts,
            route="classify",
            rows=1,
            connections=MANY,
            seconds=lab.plan.seconds,
            warm=lab.plan.warm,
        )
        loads = {name: replace(common, urls=(server.url,), model=MODEL) for name, server in running.items()}
        loads[OURS] = replace(loads[OURS], model="", tasks=lab.plan.most, draw="zipf")

        for server in running.values():
            warm_up(lab, server)

        def asked(name: str, what: Load) -> dict[str, Any]:
            with servers.alone(running[name], list(running.values())):
                return load.run(what)

        for server in running.values():
            server.pause()
        ceiling = load.run(common)
        for server in running.values():
            server.resume()
        closed: dict[str, list[float]] = {name: [] for name in running}
        for number in range(lab.plan.peer_rounds):
            for name, what in loads.items():
                closed[name].append(asked(name, replace(what, seed=number))["requests_per_second"])
        capacity = {name: statistics.median(rates) for name, rates in closed.items()}
        rates = {f"{share:.0%} of {OURS}'s capacity": max(1, share * capacity[OURS]) for share in SHARES}
        rounds: list[dict[str, Any]] = []
        for number in range(lab.plan.open_rounds):
            results: dict[str, Any] = {}
            rounds.append(results)
            for words, rate in rates.items():
                for name in list(running) if number % 2 == 0 else list(running)[::-1]:
                    what = replace(loads[name], rate=rate, seconds=lab.plan.open_seconds, seed=number)
                    results[f"{name}, {words}"] = {"offered_per_second": round(rate, 1), **asked(name, what)}
        for server in running.values():
            server.pause()
        top = max(rates.values())
        at_top = load.run(replace(common, rate=top, seconds=lab.plan.open_seconds))
    return {
        "data": "sst2",
        "precision": lab.precision,
        "tasks": lab.plan.most,
        "capacity_per_second": {name: spread(its) for name, its in closed.items()},
        "generator": {
            "what": "the same generator against a server that does nothing, on the same cores",
            "closed": ceiling,
            "open": {"offered_per_second": round(top, 1), **at_top},
        },
        "latencies": _latencies(rounds),
        "rounds": rounds,
    }


def _latencies(rounds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Medians over the rounds, in milliseconds."""
    found: dict[str, dict[str, Any]] = {}
    for name in rounds[0]:
        its = [each[name] for each in rounds]
        found[name] = {"offered_per_second": its[0]["offered_per_second"]}
        for part in ("p50", "p95", "p99"):
            values = [each["milliseconds"][part] for each in its if each["milliseconds"][part] is not None]
            found[name][part] = spread(values) if values else None
        answered = sum(each["codes"].get("200", 0) for each in its)
        found[name]["answered"] = round(answered / max(1, sum(each["requests"] for each in its)), 4)
    return found
