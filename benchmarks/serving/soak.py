"""An hour of mixed load: ``make soak``.

    PTUNING_DATA=... PYTHONPATH=benchmarks python -m serving.soak [--minutes 60]

Clients speak every protocol, send bad bodies and drop connections, while tasks are replaced in the watched
folder and by upload, deleted, added again, and damaged. Every answer is held against an offline prediction
of the digest that it names. The result goes to ``benchmarks/results/serving-soak.json``; the exit code is 1
if an answer was wrong or the server failed.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import random
import re
import secrets
import shlex
import shutil
import sys
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import aiohttp
import numpy as np
from transformers.utils import logging

from measuring import machine, write
from ptuning import adapters
from ptuning.adapters.atomic import remove_folder, replace_folder
from ptuning.adapters.folder import WEIGHTS
from ptuning.adapters.seal import SELF
from serving import servers
from serving.lab import Lab, folder
from serving.names import name_of
from serving.plan import Plan
from serving.servers import Server
from serving.soak_clients import Board, Client
from serving.soak_oracle import Oracle

RESULTS = Path(__file__).parent.parent / "results" / "serving-soak.json"
DIGITS = 12
"""Of a digest, as answers name it."""
SETTLED = 0.2
"""The share of the time that the slope of the memory leaves out."""


@dataclass(frozen=True, kw_only=True)
class Soak:
    """How long, and how much.

    Args:
        seconds: Of load.
        tasks: How many there are; every other one may be deleted.
        clients: At once.
        pause: Seconds between two requests of a client, on average.
        change: Seconds between two changes of the tasks, on average.
        texts: Different texts.
        grace: Seconds that the server waits before it removes a task whose folder is gone: its own default.
        seed: Of everything.
    """

    seconds: float = 3600.0
    tasks: int = 40
    clients: int = 12
    pause: float = 0.5
    change: float = 2.0
    texts: int = 40
    grace: float = 10.0
    seed: int = 0


@dataclass
class Changes:
    """Changes the tasks while they are asked.

    Args:
        soak: How often.
        board: What clients know.
        oracle: Is told of each version before the server can have it.
        folder: That the server watches.
        scratch: Where versions are written first.
        key: The admin key.
    """

    soak: Soak
    board: Board
    oracle: Oracle
    folder: Path
    scratch: Path
    key: str
    counts: Counter[str] = field(default_factory=Counter)
    latest: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    def version(self, task: str) -> tuple[Path, str]:
        """A new version of a task, published, in a folder of its own; and its digest."""
        self.seed += 1
        place = self.scratch / f"version-{self.seed}"
        adapters.save(self.oracle.adapter(task, self.seed), place)
        digest = adapters.details(place)[SELF][:DIGITS]
        self.oracle.publish(task, self.seed, digest)
        return place, digest

    def replace(self, task: str) -> None:
        """A new version in the watched folder."""
        place, self.latest[task] = self.version(task)
        self._put(task, place)

    def _put(self, task: str, place: Path) -> None:
        def fill(new: Path) -> None:
            shutil.copytree(place, new, dirs_exist_ok=True)

        replace_folder(self.folder / task, fill)
        shutil.rmtree(place)

    def damage(self, task: str) -> None:
        """A version that is damaged, which the server refuses; the one before it goes on."""
        place, _ = self.version(task)
        file = place / WEIGHTS
        data = bytearray(file.read_bytes())
        data[-3] ^= 0xFF
        file.write_bytes(data)
        self._put(task, place)

    def outdated(self) -> list[str]:
        """Tasks that the server does not have in their last version, a few scans of the folder later."""
        ends = time.monotonic() + 2 * self.soak.grace
        while True:
            served = {
                each["task"]: each["digest"] for each in servers.ask(f"{self.board.url}/tasks")["tasks"]
            }
            found = [task for task, digest in self.latest.items() if served.get(task) != digest]
            if not found or time.monotonic() > ends:
                return found
            time.sleep(0.5)

    async def run(self, ends: float, session: aiohttp.ClientSession) -> None:
        """Until the loop's clock says ``ends``."""
        draw = random.Random(self.soak.seed)
        clock = asyncio.get_running_loop().time
        kinds = {"replace": 5, "upload": 3, "damage": 1, "delete": 2, "remove": 1}
        while clock() < ends:
            (kind,) = draw.choices(list(kinds), list(kinds.values()))
            movable = kind in ("delete", "remove")
            task = draw.choice(sorted(self.board.moving) if movable else list(self.board.tasks))
            if kind in ("replace", "damage"):
                await asyncio.to_thread(getattr(self, kind), task)
            elif kind == "upload":
                await self.upload(task, session)
            elif kind == "delete":
                await self.delete(task, session)
                await asyncio.sleep(draw.uniform(0, self.soak.change))
                await self.upload(task, session)
            elif (self.folder / task).exists():
                await asyncio.to_thread(remove_folder, self.folder / task)
                await asyncio.sleep(draw.uniform(0, 2 * self.soak.grace))
                await asyncio.to_thread(self.replace, task)
            self.counts[kind] += 1
            await asyncio.sleep(draw.expovariate(1 / self.soak.change))

    async def upload(self, task: str, session: aiohttp.ClientSession) -> None:
        """A new version by ``PUT``."""
        place, digest = await asyncio.to_thread(self.version, task)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for file in sorted(place.iterdir()):
                archive.write(file, file.name)
        self.latest[task] = digest
        shutil.rmtree(place)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/zip"}
        async with session.put(
            f"{self.board.url}/tasks/{task}", data=io.BytesIO(packed.getvalue()), headers=headers
        ) as response:
            body = await response.text()
            if response.status != 200 or (await response.json())["digest"] != digest:
                self.board.faults.append(f"PUT {task}: {response.status}, {body[:300]}")

    async def delete(self, task: str, session: aiohttp.ClientSession) -> None:
        """By ``DELETE``; it may be away already, because its folder was removed."""
        headers = {"authorization": f"Bearer {self.key}"}
        async with session.delete(f"{self.board.url}/tasks/{task}", headers=headers) as response:
            if response.status not in (204, 404):
                self.board.faults.append(f"DELETE {task}: {response.status}, {(await response.text())[:300]}")


async def load(
    soak: Soak, board: Board, changes: Changes, oracle: Oracle, server: Server
) -> list[dict[str, float]]:
    """All of it at once; the server's memory, sampled."""
    clock = asyncio.get_running_loop().time
    began = clock()
    ends = began + soak.seconds
    samples: list[dict[str, float]] = []

    async def sampling() -> None:
        every = max(0.5, soak.seconds / 600)
        while clock() < ends:
            samples.append({"seconds": round(clock() - began, 1), **resources(server.process.pid)})
            await asyncio.sleep(every)

    async def checking() -> None:
        while clock() < ends or board.answers:
            given, board.answers = board.answers[:2000], board.answers[2000:]
            await asyncio.to_thread(oracle.check, given)
            await asyncio.sleep(0.2)
            if len(board.answers) > 20_000:
                raise RuntimeError("answers come faster than they can be checked: take fewer clients")

    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        clients = [
            Client(board, session, random.Random(f"{soak.seed} {number}")) for number in range(soak.clients)
        ]
        await asyncio.gather(
            sampling(),
            checking(),
            changes.run(ends, session),
            *(client.run(ends, soak.pause) for client in clients),
        )
        await asyncio.to_thread(oracle.check, board.answers)
    return samples


def resources(pid: int) -> dict[str, float]:
    """Resident MiB, open files and threads of a process."""
    place = Path(f"/proc/{pid}")
    pages = int((place / "statm").read_text().split()[1])
    return {
        "rss_mib": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "files": len(os.listdir(place / "fd")),
        "threads": len(os.listdir(place / "task")),
    }


def measure(lab: Lab, soak: Soak) -> dict[str, Any]:
    """Run it."""
    names = [name_of(number) for number in range(soak.tasks)]
    oracle = Oracle(lab.backbone("fp32"), lab.tokenizer)
    watched, key = lab.scratch / "soak", secrets.token_hex(16)
    texts = lab.rows("sst2")[: soak.texts]
    board = Board("", names, frozenset(names[1::2]), texts)
    changes = Changes(soak, board, oracle, watched, lab.scratch, key)
    for name in names:
        changes.replace(name)
    with servers.ptuning(
        watched, lab.model, precision="fp32", environment={"PTUNING_ADMIN_KEY": key}
    ) as server:
        board.url = server.url
        samples = asyncio.run(load(soak, board, changes, oracle, server))
        outdated = changes.outdated()
        code = server.stop()
    failures = {kind: count for kind, count in board.counts.items() if re.search(r" 5\d\d$", kind)}
    return {
        "seconds": soak.seconds,
        "tasks": soak.tasks,
        "clients": soak.clients,
        "checked": oracle.checked,
        "without_one_digest": oracle.unnamed,
        "wrong": len(oracle.wrong),
        "wrong_examples": oracle.wrong[:10],
        "faults": len(board.faults),
        "fault_examples": board.faults[:10],
        "server_errors": failures,
        "control": oracle.control(),
        "versions": len(oracle.versions),
        "outdated_at_the_end": outdated,
        "changes": dict(sorted(changes.counts.items())),
        "requests": dict(sorted(board.counts.items())),
        "refused_overloaded": sum(count for kind, count in board.counts.items() if kind.endswith(" 429")),
        "server": grown(samples),
        "samples": samples[:: max(1, len(samples) // 60)],
        "exit_code": code,
    }


def grown(samples: list[dict[str, float]]) -> dict[str, Any]:
    """First and last of memory, files and threads, and the slope of the memory once it has settled."""
    late = samples[int(SETTLED * len(samples)) :]
    found: dict[str, Any] = {
        name: {"first": samples[0][name], "settled": late[0][name], "last": samples[-1][name]}
        for name in ("rss_mib", "files", "threads")
    }
    if len(late) > 2:
        slope, _ = np.polyfit([each["seconds"] for each in late], [each["rss_mib"] for each in late], 1)
        found["rss_mib_per_hour"] = round(float(slope) * 3600, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--tasks", type=int, default=Soak.tasks)
    parser.add_argument("--clients", type=int, default=Soak.clients)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    logging.disable_progress_bar()
    soak = Soak(seconds=60 * given.minutes, tasks=given.tasks, clients=given.clients, seed=given.seed)
    began = time.perf_counter()
    with folder(None) as scratch:
        found = measure(Lab(Plan(), scratch), soak)
    words = [word for word in sys.argv[1:] if word not in ("--results", str(given.results))]
    write(
        given.results,
        {
            "what": "mixed load: answers held against offline predictions, the server's errors and memory",
            "command": shlex.join(["python", "-m", "serving.soak", *words]),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            **found,
        },
    )
    print(
        f"{found['checked']:,} answers checked, {found['wrong']} wrong; {found['faults']} faults; "
        f"{found['server'].get('rss_mib_per_hour')} MiB an hour; {time.perf_counter() - began:.0f} s"
    )
    sys.exit(1 if found["wrong"] or found["faults"] or found["outdated_at_the_end"] else 0)


if __name__ == "__main__":
    main()
