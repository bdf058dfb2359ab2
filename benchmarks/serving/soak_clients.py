"""Clients of a soak: every protocol, bad bodies, connections that are dropped."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from serving.soak_oracle import Said


@dataclass
class Board:
    """What clients are told, and what they report.

    Attributes:
        url: Of the server.
        tasks: All names.
        moving: Those that may be missing for a while, so that 404 is a right answer.
        texts: What is asked.
        counts: Requests by kind and code.
        answers: To be checked.
        faults: What must not have happened.
    """

    url: str
    tasks: Sequence[str]
    moving: Collection[str]
    texts: Sequence[str]
    counts: Counter[str] = field(default_factory=Counter)
    answers: list[Said] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass
class Client:
    """Sends one request after another, each of a kind that is drawn.

    Args:
        board: Shared with the others.
        session: For HTTP.
        draw: Its randomness.
    """

    board: Board
    session: aiohttp.ClientSession
    draw: random.Random

    async def run(self, ends: float, pause: float) -> None:
        """Until the loop's clock says ``ends``, with pauses of ``pause`` seconds on average."""
        kinds: list[tuple[Callable[[], Awaitable[None]], int]] = [
            *((self.rows, 4), (self.lines, 2), (self.hugging_face, 2), (self.embeddings_inference, 2)),
            *((self.infinity, 2), (self.vllm, 2), (self.open_inference, 2), (self.reads, 2)),
            *((self.bad, 3), (self.killed, 2)),
        ]
        calls, weights = [kind for kind, _ in kinds], [weight for _, weight in kinds]
        clock = asyncio.get_running_loop().time
        while clock() < ends:
            (call,) = self.draw.choices(calls, weights)
            try:
                await call()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.fault(f"{call.__name__}: {type(error).__name__}: {error}")
            except (KeyError, ValueError, TypeError, IndexError) as error:
                self.fault(f"{call.__name__}: an answer that cannot be read: {type(error).__name__}: {error}")
            await asyncio.sleep(self.draw.expovariate(1 / pause))

    def fault(self, what: str) -> None:
        self.board.faults.append(what[:500])

    # -------------------------------------------------------------------------------- the protocols

    def some(self, most: int) -> list[str]:
        return self.draw.choices(self.board.texts, k=self.draw.randint(1, most))

    def task(self) -> str:
        return self.draw.choice(self.board.tasks)

    async def send(
        self, kind: str, path: str, body: Any, task: str = "", method: str = "POST", **headers: str
    ) -> tuple[int, bytes, str]:
        """Code, body, and the digest in the headers; what must not be is reported."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json", **headers}
        stream = None if data is None else io.BytesIO(data)
        async with self.session.request(method, self.board.url + path, data=stream, headers=sent) as response:
            found = await response.read()
            digest = response.headers.get("x-task-digest", "")
        self.board.counts[f"{kind} {response.status}"] += 1
        missing = response.status == 404 and task in self.board.moving
        if task and response.status not in (200, 429) and not missing:
            self.fault(f"{kind}: {response.status} for {task}: {found[:200]!r}")
        elif response.status >= 500:
            self.fault(f"{kind}: {response.status}: {found[:200]!r}")
        return response.status, found, digest

    def said(self, protocol: str, task: str, digest: str, texts: Sequence[str], found: Sequence[Any]) -> None:
        """Answers to be checked: for each text, its scores by label."""
        if len(found) != len(texts):
            self.fault(f"{protocol}: {len(found)} answers for {len(texts)} texts")
            return
        for text, scores in zip(texts, found, strict=True):
            self.board.answers.append(Said(protocol, task, digest, text, scores))

    async def rows(self) -> None:
        given = [{"task": self.task(), "text": text} for text in self.some(8)]
        code, body, _ = await self.send("rows", "/v1/rows", {"rows": given})
        if code == 200:
            self._row_results("rows", given, json.loads(body)["rows"])
        elif code != 429:
            self.fault(f"rows: {code}: {body[:200]!r}")

    async def lines(self) -> None:
        given = [{"task": self.task(), "text": text} for text in self.some(24)]
        data = b"".join(json.dumps(row).encode() + b"\n" for row in given)
        code, body, _ = await self.send("lines", "/v1/rows", data, **{"content-type": "application/x-ndjson"})
        if code == 200:
            self._row_results("lines", given, [json.loads(line) for line in body.splitlines()])
        elif code != 429:
            self.fault(f"lines: {code}: {body[:200]!r}")

    def _row_results(self, protocol: str, given: Sequence[dict[str, str]], found: Sequence[Any]) -> None:
        if len(found) != len(given):
            self.fault(f"{protocol}: {len(found)} answers for {len(given)} rows")
            return
        for row, each in zip(given, found, strict=True):
            if (error := each.get("error")) is None:
                self.said(protocol, row["task"], each["digest"], [row["text"]], [each["probabilities"]])
                continue
            self.board.counts[f"{protocol}, a row {error['code']}"] += 1
            missing = error["code"] == 404 and row["task"] in self.board.moving
            if not missing and error["code"] != 429:
                self.fault(f"{protocol}: a row of {row['task']}: {error}")

    async def hugging_face(self) -> None:
        task, texts = self.task(), self.some(4)
        code, body, digest = await self.send("hugging face", f"/tasks/{task}", {"inputs": texts}, task)
        if code == 200:
            self.said("hugging face", task, digest, texts, [_by_label(row) for row in json.loads(body)])

    async def embeddings_inference(self) -> None:
        task, texts = self.task(), self.some(4)
        asked = {"inputs": [[text] for text in texts]}
        kind = "text-embeddings-inference"
        code, body, digest = await self.send(kind, f"/tasks/{task}/predict", asked, task)
        if code == 200:
            self.said(kind, task, digest, texts, [_by_label(row) for row in json.loads(body)])

    async def infinity(self) -> None:
        task, texts = self.task(), self.some(4)
        asked = {"model": task, "input": texts}
        code, body, digest = await self.send("infinity", "/classify", asked, task)
        if code == 200:
            self.said("infinity", task, digest, texts, [_by_label(row) for row in json.loads(body)["data"]])

    async def vllm(self) -> None:
        task, texts = self.task(), self.some(4)
        asked = {"model": task, "input": texts}
        code, body, digest = await self.send("vllm", "/v1/classify", asked, task)
        if code == 200:
            rows = [_in_order(task, each["probs"]) for each in json.loads(body)["data"]]
            self.said("vllm", task, digest, texts, rows)

    async def open_inference(self) -> None:
        task, texts = self.task(), self.some(4)
        tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
        kind = "open inference"
        code, body, digest = await self.send(kind, f"/v2/models/{task}/infer", {"inputs": [tensor]}, task)
        if code == 200:
            outputs = {each["name"]: each["data"] for each in json.loads(body)["outputs"]}
            flat = outputs["probabilities"]
            pairs = [flat[at : at + 2] for at in range(0, len(flat), 2)]
            self.said(kind, task, digest, texts, [_in_order(task, pair) for pair in pairs])

    # --------------------------------------------------------------------------------- all the rest

    async def reads(self) -> None:
        task = self.task()
        path, its = self.draw.choice(
            [
                *(("/health", ""), ("/ready", ""), ("/metrics", ""), ("/models", ""), ("/v1/info", "")),
                *((f"/tasks/{task}", task), (f"/v2/models/{task}/ready", task)),
            ]
        )
        code, body, _ = await self.send("reads", path, None, its, "GET")
        if not its and code != 200:
            self.fault(f"GET {path}: {code}: {body[:200]!r}")

    async def bad(self) -> None:
        task = self.draw.choice([name for name in self.board.tasks if name not in self.board.moving])
        method, path, body, expected = self.draw.choice(list(_bad(task, self.draw)))
        code, found, _ = await self.send("bad", path, body, method=method)
        if code not in (*expected, 429):
            self.fault(f"{method} {path} with {body[:80] if body else body!r}: {code}, {found[:200]!r}")

    async def killed(self) -> None:
        """A connection that is dropped: at once, while the answer is made, or within the body."""
        given = {"rows": [{"task": self.task(), "text": text} for text in self.some(16)]}
        body = json.dumps(given).encode()
        where = urlsplit(self.board.url)
        _, writer = await asyncio.open_connection(where.hostname, where.port)
        lines = ("POST /v1/rows HTTP/1.1", "host: x", "content-type: application/json")
        head = "\r\n".join((*lines, f"content-length: {len(body)}", "", ""))
        part = len(body) if self.draw.random() < 0.7 else self.draw.randrange(len(body))
        writer.write(head.encode() + body[:part])
        await writer.drain()
        if self.draw.random() < 0.7:
            await asyncio.sleep(self.draw.uniform(0, 0.1))
        if self.draw.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        self.board.counts["killed"] += 1


def _by_label(scores: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {each["label"]: each["score"] for each in scores}


def _in_order(task: str, values: Sequence[float]) -> dict[str, float]:
    return dict(zip((f"{task}-no", f"{task}-yes"), values, strict=True))


def _bad(task: str, draw: random.Random) -> Iterator[tuple[str, str, bytes | None, Collection[int]]]:
    """Requests that must be refused: method, path, body, and the codes that are right."""
    wrong = (400, 422)
    yield "POST", "/v1/rows", b"{", wrong
    yield "POST", "/v1/rows", b"[" * 20_000, wrong
    yield "POST", "/v1/rows", b'{"rows": 3}', wrong
    yield "POST", "/v1/rows", b'{"rows": []}', wrong
    yield "POST", "/v1/rows", draw.randbytes(200), wrong
    yield "POST", f"/tasks/{task}", b'{"inputs": []}', wrong
    yield "POST", f"/tasks/{task}", b'{"inputs": " "}', wrong
    yield "POST", f"/tasks/{task}", b'{"inputs": {"text": "a", "text_pair": "b"}}', (400, 409, 422)
    yield "POST", "/tasks/nothing", b'{"inputs": "a"}', (404,)
    yield "POST", "/classify", b'{"model": 3, "input": "a"}', wrong
    yield "POST", f"/v2/models/{task}/infer", b'{"inputs": [{"name": "text"}]}', wrong
    yield "POST", "/v1/rows", b" " * (3 << 20), (413,)
    yield "GET", "/nothing", None, (404,)
    yield "PATCH", f"/tasks/{task}", b"{}", (405,)
    yield "DELETE", f"/tasks/{task}", None, (401, 403)
    yield "PUT", f"/tasks/{task}", b'{"hub_id": "a/b"}', (401, 403)
