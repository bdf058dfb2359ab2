"""What every request gets: an id, headers that say what happened, a log line, a count, a span."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ptuning.serving.limits import App, HttpSettings, Message, Receive, Send
from ptuning.serving.metrics import Metrics
from ptuning.serving.rows import Row, RowAnswer, Timing
from ptuning.serving.tracing import Tracing

logger = logging.getLogger("ptuning.access")

RECORD = "ptuning.record"
"""The key of a request's :class:`Record` in its ASGI scope."""
CLIENT_GONE = 499
"""The status in logs and metrics of a request whose client closed the connection first."""
_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")


@dataclass(kw_only=True)
class Record:
    """What is known about one request when it ends.

    Attributes:
        id: From the client's ``X-Request-Id``, or made here.
        caller: The key's name.
        task: The task's name; empty for none or several.
        digest: Of the adapter that answered, or of the task that was asked; empty for several.
        answered: The digests of all adapters that answered.
        rows: How many there were.
        tokens: How many they had.
        timing: Seconds by stage.
        refusal: The kind of the refusal, if there was one.
        texts: The texts, if they are logged.
        late: Whether it came after the server stopped to accept requests.
    """

    id: str
    caller: str = ""
    task: str = ""
    digest: str = ""
    answered: set[str] = field(default_factory=set)
    rows: int = 0
    tokens: int = 0
    timing: Timing | None = None
    refusal: str = ""
    texts: list[Any] = field(default_factory=list)
    late: bool = False

    def add(self, rows: Sequence[Row], timing: Timing, answers: Sequence[RowAnswer]) -> None:
        """Note rows and the answers to them; a streamed request has several such parts."""
        before = self.timing or Timing()
        self.rows += len(rows)
        self.tokens += sum(answer.tokens for answer in answers)
        self.answered |= {answer.digest for answer in answers}
        if self.answered:
            self.digest = next(iter(self.answered)) if len(self.answered) == 1 else ""
        self.timing = Timing(
            tokenise=before.tokenise + timing.tokenise,
            queue=before.queue + timing.queue,
            inference=before.inference + timing.inference,
        )

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers."""
        found = [(b"x-request-id", self.id.encode())]
        if self.digest:
            found.append((b"x-task-digest", self.digest.encode()))
        if self.timing is not None:
            stages = (f"{name};dur={1e3 * getattr(self.timing, name):.1f}" for name in _STAGES)
            found.append((b"server-timing", ", ".join(stages).encode()))
        return found


_STAGES = ("tokenise", "queue", "inference")


def record_of(scope: MutableMapping[str, Any]) -> Record:
    """The record of a request."""
    found: Record = scope[RECORD]
    return found


class Running:
    """The requests that are not answered yet.

    Attributes:
        count: How many there are.
        closed: Whether further requests are late: they are not counted, and most of them are refused.
    """

    def __init__(self) -> None:
        self.closed = False
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def one(self, record: Record) -> Iterator[None]:
        """Count a request while it runs."""
        record.late = self.closed
        if record.late:
            yield
            return
        self.count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until there are none."""
        await self._idle.wait()


class Access:
    """Records every request; an ASGI middleware, the outermost.

    Args:
        app: The application.
        running: Counts requests while they run.
        metrics: Counts requests.
        tracing: Makes spans.
        settings: Says whether texts are logged.
        on_bug: Logs an error that nobody expected, and makes the response.
    """

    def __init__(
        self,
        app: App,
        *,
        running: Running,
        metrics: Metrics,
        tracing: Tracing,
        settings: HttpSettings,
        on_bug: Callable[[Record, Exception], App],
    ) -> None:
        self.app, self.running, self.metrics, self.tracing = app, running, metrics, tracing
        self.settings, self.on_bug = settings, on_bug

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        record = Record(id=given if _ID.fullmatch(given) else secrets.token_hex(8))
        scope[RECORD] = record
        status, start = CLIENT_GONE, time.perf_counter()

        async def recorded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                leave = [(b"connection", b"close")] if self.running.closed else []
                message["headers"] = [*message.get("headers", ()), *record.headers(), *leave]
            await send(message)

        try:
            with (
                self.running.one(record),
                self.tracing.request(f"{scope['method']} request", headers) as span,
            ):
                try:
                    await self.app(scope, receive, recorded)
                except Exception as error:
                    response = self.on_bug(record, error)
                    if (
                        status == CLIENT_GONE
                    ):  # otherwise a part has been sent, and uvicorn cuts the connection
                        await response(scope, receive, recorded)
                finally:
                    if span is not None:
                        self._describe(span, scope, record, status)
        finally:
            seconds = time.perf_counter() - start
            self.metrics.request(task=record.task, route=_route(scope), code=status, seconds=seconds)
            self._log(scope, record, status, seconds)

    def _describe(self, span: Any, scope: MutableMapping[str, Any], record: Record, status: int) -> None:
        if record.timing is not None:
            self.tracing.stages(record.timing)
        span.update_name(f"{scope['method']} {_route(scope)}")
        facts = {
            "http.request.method": scope["method"],
            "http.route": _route(scope),
            "http.response.status_code": status,
            "ptuning.task": record.task,
            "ptuning.digest": record.digest,
            "ptuning.rows": record.rows,
            "ptuning.tokens": record.tokens,
            "ptuning.request_id": record.id,
        }
        span.set_attributes({name: value for name, value in facts.items() if value != ""})

    def _log(self, scope: MutableMapping[str, Any], record: Record, status: int, seconds: float) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        facts = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": record.id,
            "client": (scope.get("client") or ("",))[0],
            "caller": record.caller,
            "method": scope["method"],
            "route": _route(scope),
            "task": record.task,
            "status": status,
            "refusal": record.refusal,
            "seconds": round(seconds, 6),
            "rows": record.rows,
            "tokens": record.tokens,
            "texts": record.texts if self.settings.log_texts else [],
        }
        logger.info(json.dumps({name: value for name, value in facts.items() if value not in ("", [])}))


def _route(scope: MutableMapping[str, Any]) -> str:
    """The template of the route: a path would make a label for everything that a client can think of."""
    return str(getattr(scope.get("route"), "path", "") or "other")
