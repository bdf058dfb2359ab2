"""A service without a model, and a server in a thread: for tests of HTTP alone."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from ptuning.errors import AdapterError
from ptuning.serving.app import make_app
from ptuning.serving.keys import Keys
from ptuning.serving.limits import HttpSettings
from ptuning.serving.metrics import Metrics
from ptuning.serving.rows import Refusal, Row, RowAnswer, Timing
from ptuning.serving.server import Server, listen
from ptuning.serving.settings import Settings
from ptuning.task import Task

SENTIMENT = Task(problem_type="single_label_classification", labels=("negative", "positive"))
TOPICS = Task(problem_type="multi_label_classification", labels=("sport", "war", "art"))
SIMILAR = Task(problem_type="regression", pair=True, mean=2.0, scale=1.5)
SAME = Task(problem_type="single_label_classification", labels=(0, 1), pair=True)
TASKS = {"sentiment": SENTIMENT, "topics": TOPICS, "similar": SIMILAR, "same": SAME}


@dataclass(frozen=True, kw_only=True)
class Served:
    name: str
    digest: str
    task: Task
    max_tokens: int | None = 62
    loaded_at: float = 1_790_000_000.5
    source: str = "/adapters"
    folder: Path = Path("/adapters")
    card: str = "# A card"
    metrics: Mapping[str, Any] = field(default_factory=lambda: {"test": {"accuracy": 0.9}})
    details: Mapping[str, Any] = field(default_factory=dict)


class Registry:
    """As :class:`ptuning.serving.tasks.TaskRegistry`, of tasks without tensors."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.served = {name: Served(name=name, digest=f"{name}-1", task=task) for name, task in tasks.items()}
        self.failures: dict[str, str] = {}
        self.refuse: Callable[[Path], str | None] = lambda folder: None

    def get(self, name: str, visible: Callable[[str], bool] = lambda name: True) -> Served:
        if name in self.served and visible(name):
            return self.served[name]
        known = [each for each in self.served if visible(each)]
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Refusal(status=404, kind="unknown_task", message=f"no task {name[:128]!r}{hint}")

    def all(self) -> list[Served]:
        return [self.served[name] for name in sorted(self.served)]

    async def put(
        self, name: str, folder: Path, source: str | None = None, home: Path | None = None
    ) -> Served:
        if (why := self.refuse(folder)) is not None:
            raise AdapterError(why)
        assert (folder / "ptuning.json").is_file()
        before = self.served.get(name)
        version = 1 if before is None else int(before.digest.rpartition("-")[2]) + 1
        found = Served(name=name, digest=f"{name}-{version}", task=SENTIMENT, source=source or str(folder))
        self.served[name] = found
        return found

    def remove(self, name: str) -> None:
        self.get(name)
        del self.served[name]


class FakeService:
    """Answers with logits made of the text: its length for every label, plus the label's place."""

    def __init__(self, tasks: Mapping[str, Task] = TASKS, settings: Settings | None = None) -> None:
        self.tasks = Registry(tasks)
        self.settings = settings or Settings()
        self.metrics = Metrics()
        self.ready = self.draining = self.failed = False
        self.queued = (3, 60)
        self.asked: list[Row] = []
        self.callers: list[str] = []
        self.cancelled = 0
        self.hold: asyncio.Event | None = None  # answers wait for it
        self.refusal: Refusal | None = None
        self.raises: Exception | None = None

    async def start(self) -> None:
        self.ready = True

    async def drain(self) -> None:
        self.draining, self.ready = True, False
        if self.hold is not None:
            self.hold.set()

    async def close(self) -> None:
        self.ready = False

    async def answer(
        self,
        rows: Sequence[Row],
        *,
        truncate: bool = True,
        timeout: float | None = None,
        caller: str = "",
        visible: Callable[[str], bool] = lambda name: True,
    ) -> tuple[list[RowAnswer | Refusal], Timing]:
        if len(rows) > self.settings.max_rows:
            raise Refusal(status=413, kind="too_many_rows", message=f"{len(rows)} rows")
        self.asked += rows
        self.callers.append(caller)
        if self.raises is not None:
            raise self.raises
        if self.refusal is not None:
            raise self.refusal
        try:
            if self.hold is not None:
                async with asyncio.timeout(timeout or self.settings.timeout):
                    await self.hold.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        except TimeoutError:
            raise Refusal(status=504, kind="timeout", message="too late") from None
        found = each_row(self.tasks, rows, visible, partial(self._answer, truncate))
        return found, Timing(tokenise=0.001, queue=0.002, inference=0.003)

    def _answer(self, truncate: bool, row: Row, served: Served) -> RowAnswer | Refusal:
        if (row.text_pair is not None) != served.task.pair:
            return Refusal(status=422, kind="wrong_texts", message="expected one text, or two")
        if not row.text.strip():
            return Refusal(status=422, kind="empty_text", message="the text is empty")
        words = len(row.text.split())
        if words > 62 and not truncate:
            return Refusal(status=422, kind="too_long", message=f"the text has {words} tokens")
        return RowAnswer(
            name=row.task,
            digest=served.digest,
            task=served.task,
            logits=logits_of(row, served.task),
            tokens=min(words, 62) + 2,
            truncated=words > 62,
        )


def each_row(
    tasks: Any,
    rows: Sequence[Row],
    visible: Callable[[str], bool],
    answer: Callable[[Row, Any], RowAnswer | Refusal],
) -> list[RowAnswer | Refusal]:
    """What a fake answers to rows: a refusal where the task is not there, otherwise what ``answer`` says."""
    found: list[RowAnswer | Refusal] = []
    for row in rows:
        try:
            served = tasks.get(row.task, visible)
        except Refusal as refusal:
            found.append(refusal)
        else:
            found.append(answer(row, served))
    return found


def logits_of(row: Row, task: Task) -> tuple[float, ...]:
    """The logits that the fake answers with."""
    size = len(row.text) + 2 * len(row.text_pair or "")
    return tuple((size + place * 7) % 5 - 2.0 for place in range(task.num_labels))


@dataclass
class Running:
    """A server in a thread."""

    url: str
    port: int
    server: Server
    service: Any
    thread: threading.Thread

    def call(self, function: Callable[[], Any]) -> None:
        """Call a function in the server's loop."""
        assert self.server._loop is not None
        self.server._loop.call_soon_threadsafe(function)


@contextmanager
def serving(
    service: Any, keys: Keys | None = None, settings: HttpSettings | None = None, **options: Any
) -> Iterator[Running]:
    """A real server on a free port of the loopback interface, in a thread."""
    settings = settings or HttpSettings()
    app = make_app(service, keys or Keys(), settings, **options)
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    server = Server(app, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    ends = time.monotonic() + 60
    while not server.started and time.monotonic() < ends and thread.is_alive():
        time.sleep(0.005)
    assert server.started
    try:
        yield Running(f"http://127.0.0.1:{port}", port, server, service, thread)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def send_for_ever(connection: socket.socket, data: bytes) -> None:
    """Send until the other side ends the connection.

    Raises:
        OSError: it did; a ``TimeoutError`` if it does not take any more.
    """
    while True:
        connection.sendall(data)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until a condition is true."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.005)
