"""``ptuning serve`` with 1,000 tasks, beside the same rows in this process."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from ptuning import Task
from ptuning.inference.mixed import MultiPredictor
from serving import load, servers, tasks
from serving.figures import Side, alternating, compared
from serving.lab import Lab
from serving.load import Load
from serving.names import drawn

BATCH = 32
FEW, MANY = 8, 64
"""Connections, for requests of 32 rows and of one."""
INSIDE = f"in process, batches of {BATCH}"
SERVED = 64
"""The server's rows a batch."""


def loads(lab: Lab, url: str) -> dict[str, Load]:
    """What is asked."""
    common = Load(
        urls=(url,),
        texts=lab.texts,
        route="rows",
        rows=BATCH,
        tasks=lab.plan.most,
        connections=FEW,
        seconds=lab.plan.seconds,
        warm=lab.plan.warm,
    )
    return {
        f"POST /v1/rows, {BATCH} rows a request": common,
        "POST /v1/rows, 1 row a request": replace(common, rows=1, connections=MANY),
        f"POST /classify, {BATCH} rows a request": replace(common, route="classify"),
    }


def measure(lab: Lab) -> dict[str, Any]:
    """Closed loops, in the machine's faster precision."""
    folder = lab.adapters(lab.plan.most)
    task = Task(problem_type="single_label_classification", labels=tasks.SENTIMENT)
    backbone = lab.backbone(lab.precision)
    table = tasks.like(backbone, tasks.default_prompt(), task, lab.plan.most)
    texts = lab.rows("sst2")
    with servers.ptuning(folder, lab.model, precision=lab.precision) as server:

        def inside(batch: int) -> Side:
            def side(number: int) -> dict[str, Any]:
                predictor = MultiPredictor(table, lab.tokenizer, batch_size=batch)
                rows = (texts * (1 + 2 * lab.plan.rows // len(texts)))[: 2 * lab.plan.rows]
                names = drawn(lab.plan.most, len(rows), "uniform", seed=number)
                server.pause()
                began = time.perf_counter()
                predictor.predict(rows, names)
                seconds = time.perf_counter() - began
                server.resume()
                return {"rate": len(rows) / seconds}

            return side

        sides: dict[str, Side] = {INSIDE: inside(BATCH), f"in process, batches of {SERVED}": inside(SERVED)}
        sides[INSIDE](-1)
        sides |= {name: asked(each) for name, each in loads(lab, server.url).items()}
        rounds = alternating(sides, lab.plan.rounds, "HTTP")
        memory = server.memory()
    references = {name: INSIDE for name in sides if name != INSIDE}
    return {
        "data": "sst2",
        "precision": lab.precision,
        "tasks": lab.plan.most,
        "connections": {f"{BATCH} rows": FEW, "1 row": MANY},
        "sides": compared(rounds, references),
        "rounds": rounds,
        "server_memory_mib": memory,
    }


def asked(what: Load) -> Side:
    """A load as a side; each round draws other tasks and texts."""

    def side(number: int) -> dict[str, Any]:
        found = load.run(replace(what, seed=number))
        return {"rate": found["rows_per_second"], **found}

    return side
