"""infinity with one fully fine-tuned classifier, beside ``ptuning serve`` with 1, 100 and 1,000 tasks.

The same requests to the same route, ``POST /classify``, on the same cores; whoever is not asked holds still.
infinity is in an environment of its own: ``make bench-infinity``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ptuning.model.embedded import resolve
from serving import load, servers
from serving.figures import Side, alternating, compared
from serving.lab import Lab
from serving.load import Load
from serving.over_http import BATCH, FEW, MANY, asked
from serving.servers import Server, alone
from serving.tasks import SENTIMENT

ENVIRONMENT = Path(__file__).parent.parent.parent / ".venv-infinity"
PROGRAM = ENVIRONMENT / "bin" / "infinity_emb"
MODEL = "sentiment"
DTYPE_OF = {"bf16": "bfloat16", "fp32": "float32"}
"""infinity's name of our precisions."""
TESTED = 256
"""Rows on which infinity's accuracy is measured."""
MISSING = "infinity's environment is not there: make it with make bench-infinity"


def measure(lab: Lab) -> dict[str, Any]:
    """Closed loops of 32 rows and of one row a request."""
    if not PROGRAM.exists():
        raise servers.Missing(MISSING)
    folder, classifier = fine_tuned(lab)
    # bf16 only where it is faster than fp32.
    precisions = ["fp32", *({lab.precision} - {"fp32"})]
    dtypes = [*(DTYPE_OF[precision] for precision in precisions), "int8"]
    adapters = lab.adapters(lab.plan.most)
    with ExitStack() as stack:
        running: dict[str, Server] = {}
        for precision in precisions:
            server = stack.enter_context(servers.ptuning(adapters, lab.model, precision=precision))
            running[f"ptuning {precision}"] = server
        for dtype in dtypes:
            with named(f"infinity {dtype}"):
                server = stack.enter_context(servers.infinity(PROGRAM, folder, MODEL, dtype))
            running[f"infinity {dtype}"] = server
        for server in running.values():
            warm_up(lab, server)
        accuracy = {
            name: accuracy_of(lab, server) for name, server in running.items() if name.startswith("infinity")
        }
        sides = dict(_sides(lab, running))
        rounds = alternating(sides, lab.plan.peer_rounds, "infinity")
        memory = {name: server.memory() for name, server in running.items()}
    return {
        "data": "sst2",
        "faster_precision": lab.precision,
        "classifier": classifier,
        "infinity_accuracy": accuracy,
        "infinity": versions(),
        "infinity_options": list(servers.INFINITY_OPTIONS),
        "connections": {f"{BATCH} rows": FEW, "1 row": MANY},
        "sides": beside(rounds),
        "rounds": rounds,
        "memory_mib": memory,
    }


def beside(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Our sides' ratios to infinity in the same precision, and to infinity in its fastest one."""
    same_as = {f"ptuning {precision}": f"infinity {dtype}" for precision, dtype in DTYPE_OF.items()}
    medians = {name: statistics.median(each[name]["rate"] for each in rounds) for name in rounds[0]}
    same, best = {}, {}
    for name in medians:
        server, _, words = name.partition(", ")
        words = words.rpartition(", ")[2]  # without the number of tasks
        if server in same_as:
            theirs = [each for each in medians if each.startswith("infinity") and each.endswith(words)]
            same[name] = f"{same_as[server]}, {words}"
            best[name] = max(theirs, key=lambda each: medians[each])
    found = compared(rounds, same)
    for name, each in compared(rounds, best).items():
        if name in best:
            found[name]["beside_its_best"] = {"reference": best[name], "ratio": each.get("ratio")}
    return found


@contextmanager
def named(what: str) -> Iterator[None]:
    """Errors say what failed."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(f"{what}: {error}") from error


def _sides(lab: Lab, running: dict[str, Server]) -> Iterator[tuple[str, Side]]:
    common = Load(
        urls=(),
        texts=lab.texts,
        route="classify",
        seconds=lab.plan.seconds,
        warm=lab.plan.warm,
    )
    counts = [count for count in lab.plan.tasks if count != 10]
    for rows, connections in ((BATCH, FEW), (1, MANY)):
        words = f"{rows} row{'s' * (rows > 1)} a request"
        for name, server in running.items():
            what = replace(common, urls=(server.url,), rows=rows, connections=connections)
            asked_ = {f"{name}, {words}": replace(what, model=MODEL)}
            if name.startswith("ptuning"):
                asked_ = {
                    f"{name}, {count:,} task{'s' * (count > 1)}, {words}": replace(what, tasks=count)
                    for count in (counts if name.endswith(lab.precision) else counts[-1:])
                }
            for full, each in asked_.items():
                yield full, _while_alone(asked(each), server, list(running.values()))


def _while_alone(side: Side, server: Server, every: list[Server]) -> Side:
    def quiet(number: int) -> dict[str, Any]:
        with alone(server, every):
            return side(number)

    return quiet


def warm_up(lab: Lab, server: Server) -> None:
    """Batches of all sizes, before anything is measured."""
    name = "" if server.ready_path == "/ready" else MODEL
    for rows in (1, BATCH):
        what = Load(urls=(server.url,), texts=lab.texts, route="classify", rows=rows, model=name)
        load.run(replace(what, tasks=1, connections=FEW, seconds=0.5, warm=0.0))


def accuracy_of(lab: Lab, server: Server) -> float:
    """Of infinity's classifier, as it is served: fewer bits may cost some."""
    rows = lab.labelled("sst2", "test")[:TESTED]
    right = 0
    for at in range(0, len(rows), BATCH):
        texts, wanted = zip(*rows[at : at + BATCH], strict=True)
        found = servers.ask(f"{server.url}/classify", {"model": MODEL, "input": texts})["data"]
        best = [max(scores, key=lambda each: float(each["score"]))["label"] for scores in found]
        right += sum(SENTIMENT[label] == name for label, name in zip(wanted, best, strict=True))
    return round(right / len(rows), 3)


def versions() -> dict[str, str]:
    """Of the packages in infinity's environment."""
    names = ("infinity_emb", "torch", "transformers", "sentence-transformers", "uvicorn", "fastapi")
    program = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    done = subprocess.run(
        [ENVIRONMENT / "bin" / "python", "-c", program], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def fine_tuned(lab: Lab) -> tuple[Path, dict[str, Any]]:
    """MiniLM with a linear head on its pooler, every parameter trained on SST-2, as transformers saves it.

    A short training: speed does not depend on how good it is.
    """
    target, about = lab.scratch / "fine-tuned", lab.scratch / "fine-tuned.json"
    source = resolve("demo") if lab.model == "demo" else lab.model
    if about.exists():
        loaded: dict[str, Any] = json.loads(about.read_text())
        return target, loaded
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    labels = dict(enumerate(SENTIMENT))
    model = AutoModelForSequenceClassification.from_pretrained(
        source, dtype=torch.float32, id2label=labels, label2id={name: i for i, name in labels.items()}
    )
    rows = lab.labelled("sst2", "train")[: lab.plan.tuned_rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    for at in range(0, len(rows), BATCH):
        texts, wanted = zip(*rows[at : at + BATCH], strict=True)
        inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        model(**inputs, labels=torch.tensor(wanted)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(target)
    tokenizer.save_pretrained(target)
    tested = lab.labelled("sst2", "test")[:TESTED]
    with torch.inference_mode():
        inputs = tokenizer([text for text, _ in tested], padding=True, truncation=True, return_tensors="pt")
        right = model(**inputs).logits.argmax(-1) == torch.tensor([label for _, label in tested])
    found = {
        "what": "MiniLM, every parameter trained on SST-2 for one short epoch",
        "trained_rows": len(rows),
        "test_accuracy": round(float(right.float().mean()), 3),
    }
    about.write_text(json.dumps(found))
    return target, found
