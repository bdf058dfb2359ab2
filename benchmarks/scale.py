"""Bulk scoring: ``ptuning predict`` by itself, and on a Ray cluster with one and two workers of one core.

Two nodes with one core each are started on this machine, and a head without any. Every arm is a whole command
on the same Parquet files, with one thread of torch per worker. Each runs on a small and on a large number of
rows; the difference of the two is the rate without the start of the process (imports, backbone, actors), and
what is left is the start. In each round every arm runs once, in reversed order every other round; the figures
are medians.

A batch is what an actor is called with, here the rows of a file. Its overhead is the CPU time per row beyond
the command without Ray, times the rows of a batch.

``--memory`` scores a data set of several times the size of the object stores (each row carries bytes that are
kept), and samples the memory of all processes of the cluster.

``--tokenising`` measures how many rows a core tokenises in a second.

    PTUNING_DATA=... python benchmarks/scale.py [--rounds 3] [--memory | --tokenising]

Two cores are needed for two workers; driver and scheduler need some, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from measuring import machine, write

RESULTS = Path(__file__).parent / "results"
FILES = 8
STORE = 1_000_000_000
"""Bytes of each node's object store. Ray Data's blocks have up to 128 MB, so a store of a few hundred spends
its time on spilling."""
ARMS: dict[str, int] = {"plain": 0, "ray, 1 worker": 1, "ray, 2 workers": 2}
"""The arms, by their number of workers on the cluster."""
SECONDS = 1800
"""After this a command is killed."""


def texts() -> list[str]:
    """The sentences of SST-2's test rows."""
    file = Path(os.environ["PTUNING_DATA"]) / "sst2" / "test.jsonl"
    return [json.loads(line)["sentence"] for line in file.read_text(encoding="utf-8").splitlines()]


def rows(folder: Path, count: int, *, payload: int = 0) -> Path:
    """Parquet files with ``count`` rows: an id, a text, and ``payload`` random bytes."""
    place = folder / f"{count}-{payload}"
    place.mkdir()
    found = texts()
    for part in range(FILES):
        ids = list(range(part, count, FILES))
        columns: dict[str, Any] = {"id": ids, "text": [found[each % len(found)] for each in ids]}
        if payload:
            columns["payload"] = pa.array([os.urandom(payload) for _ in ids], pa.binary())
        pq.write_table(pa.table(columns), place / f"{part}.parquet")
    return place


def adapter(folder: Path) -> Path:
    """An adapter for SST-2 on the demo backbone: the default recipe on its first rows."""
    source = Path(os.environ["PTUNING_DATA"]) / "sst2" / "train.jsonl"
    lines = source.read_text(encoding="utf-8").splitlines()[:400]
    data, output = folder / "train.jsonl", folder / "adapter"
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [*ptuning(), "train", str(data), "--output", str(output), "--fit.num_train_epochs", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return output


def ptuning() -> list[str]:
    return [sys.executable, "-m", "ptuning"]


@contextmanager
def nodes(folder: Path) -> Iterator[str]:
    """The address of a cluster with two nodes of one core each."""
    os.environ |= {
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        yield cluster.address
    finally:
        cluster.shutdown()


def command(arm: str, model: Path, data: Path, output: Path, address: str) -> list[str]:
    """What a user would type."""
    workers = ARMS[arm]
    if not workers:
        return [
            *ptuning(),
            "predict",
            str(model),
            "--input",
            str(data),
            "--keep",
            "id",
            "--output",
            f"{output}.jsonl",
        ]
    return [
        *(
            *ptuning(),
            "predict",
            str(model),
            "--input",
            f"{data}/*.parquet",
            "--keep",
            "id",
            "--output",
            str(output),
        ),
        *("--ray", address, "--ray_workers", str(workers), "--ray_cpus", "1"),
    ]


def run(words: list[str]) -> dict[str, float]:
    """Wall seconds of a command, and the share of the machine's cores that all processes took."""
    began, before = time.perf_counter(), psutil.cpu_times()
    subprocess.run(words, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, psutil.cpu_times()
    busy = sum(after) - sum(before) - (after.idle - before.idle) - (after.iowait - before.iowait)
    return {"seconds": round(wall, 2), "cpu_seconds": round(busy, 2)}


def speed(folder: Path, model: Path, address: str, sizes: tuple[int, int], rounds: int) -> dict[str, Any]:
    """The rounds, and what they say."""
    data = {size: rows(folder, size) for size in sizes}
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        for arm in list(ARMS) if number % 2 == 0 else reversed(ARMS):
            for size in sizes:
                output = folder / "out"
                figures = run(command(arm, model, data[size], output, address))
                shutil.rmtree(output, ignore_errors=True)
                found.append({"round": number, "arm": arm, "rows": size, **figures})
                print(json.dumps(found[-1]), flush=True)
    return {"rounds": found, "arms": {arm: figures_of(found, arm, sizes) for arm in ARMS}}


def figures_of(found: list[dict[str, Any]], arm: str, sizes: tuple[int, int]) -> dict[str, float]:
    """Medians over the rounds: rows a second beyond the start, seconds of the start, CPU time per row."""
    small, large = sizes
    rates, starts, cpu = [], [], []
    for number in sorted({each["round"] for each in found}):
        one = {each["rows"]: each for each in found if (each["round"], each["arm"]) == (number, arm)}
        per_row = (one[large]["seconds"] - one[small]["seconds"]) / (large - small)
        rates.append(1 / per_row)
        starts.append(one[small]["seconds"] - per_row * small)
        cpu.append((one[large]["cpu_seconds"] - one[small]["cpu_seconds"]) / (large - small))
    return {
        "rows_per_second": round(median(rates), 1),
        "start_seconds": round(median(starts), 1),
        "cpu_ms_per_row": round(1000 * median(cpu), 3),
    }


# ------------------------------------------------------------------------------------------- memory


class Sampling(threading.Thread):
    """Samples the memory of the cluster's processes, which this one has started, every second, by kind.

    It is each process's own memory: without the pages of the object store, which is shared.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.samples: list[dict[str, float]] = []
        self._folder, self._ended = folder, threading.Event()

    def run(self) -> None:
        began = time.perf_counter()
        while not self._ended.wait(1):
            sample: dict[str, float] = {"second": round(time.perf_counter() - began, 1)}
            for process in psutil.Process().children(recursive=True):
                try:
                    words = " ".join(process.cmdline())
                    kind = next((name for name in KINDS if KINDS[name] in words), None)
                    if kind is not None:
                        used = process.memory_info()
                        size = (used.rss - used.shared) / 2**20
                        sample[kind] = round(max(sample.get(kind, 0.0), size), 1)
                except psutil.Error:
                    continue
            spilled = sum(file.stat().st_size for file in self._folder.rglob("ray_spilled_objects*/*"))
            self.samples.append(sample | {"spilled": round(spilled / 2**20, 1)})

    def stop(self) -> None:
        self._ended.set()
        self.join()


KINDS = {"worker": "ray::MapWorker", "driver": "ptuning predict", "node": "raylet/raylet"}
"""Processes by what is in their command line; of several of a kind, the largest counts."""


def memory(folder: Path, model: Path, address: str, count: int, payload: int) -> dict[str, Any]:
    """The largest MiB of each kind of process in each quarter of the run."""
    data = rows(folder, count, payload=payload)
    size = sum(file.stat().st_size for file in data.iterdir())
    words = command("ray, 2 workers", model, data, folder / "out", address)
    place = words.index("--keep")
    del words[place : place + 2]  # all columns are kept
    sampling = Sampling(folder)
    sampling.start()
    try:
        figures = run(words)
    finally:
        sampling.stop()
    seen = sampling.samples
    quarters = [seen[len(seen) * each // 4 : len(seen) * (each + 1) // 4] for each in range(4)]
    peaks = {
        kind: [max((one.get(kind, 0.0) for one in part), default=0.0) for part in quarters]
        for kind in (*KINDS, "spilled")
    }
    written = sum(file.stat().st_size for file in (folder / "out").rglob("*.parquet"))
    shutil.rmtree(folder / "out")
    return {
        "rows": count,
        "data_mib": round(size / 2**20),
        "object_stores_mib": round(3 * STORE / 2**20),
        "written_mib": round(written / 2**20),
        **figures,
        "peak_mib_by_quarter": peaks,
    }


def tokenising() -> dict[str, Any]:
    """Rows that one core tokenises in a second of CPU time, with the demo backbone's tokenizer."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from ptuning.model.loading import load_tokenizer

    tokenizer, found, rates = load_tokenizer("demo"), texts() * 5, []
    tokens = [len(ids) for ids in tokenizer(found)["input_ids"]]
    for _ in range(5):
        began = time.process_time()
        tokenizer(found)
        rates.append(len(found) / (time.process_time() - began))
    return {"rows_per_second": round(median(rates)), "tokens_per_row": round(sum(tokens) / len(tokens), 1)}


def keep(file: Path, found: dict[str, dict[str, Any]]) -> None:
    """Write parts of the result next to those that the file has, and print them."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine() | {"ray": version("ray")},
        "command": " ".join(["python", "benchmarks/scale.py", *sys.argv[1:]]),
    }
    write(file, {**before, **{name: {**about, **each} for name, each in found.items()}})
    for name, each in found.items():
        print(name, json.dumps({key: value for key, value in each.items() if key != "rounds"}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs=2, default=[4096, 16384], help="of the two sizes")
    parser.add_argument("--memory", action="store_true", help="memory instead of speed")
    parser.add_argument("--tokenising", action="store_true", help="the rate of the tokenizer instead")
    parser.add_argument(
        "--memory_rows", type=int, nargs=2, default=[70_000, 60_000], help="rows, bytes per row"
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "scale.json")
    given = parser.parse_args()
    if given.tokenising:
        keep(given.results, {"tokenising": tokenising()})
        return
    with tempfile.TemporaryDirectory(prefix="pt-", dir="/tmp") as scratch:
        folder = Path(scratch)
        model = adapter(folder)
        with nodes(folder) as address:
            if given.memory:
                found = {"memory": memory(folder, model, address, *given.memory_rows)}
            else:
                found = {"speed": speed(folder, model, address, tuple(given.rows), given.rounds)}
    keep(given.results, found)


if __name__ == "__main__":
    main()
