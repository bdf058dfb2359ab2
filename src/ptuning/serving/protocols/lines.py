"""Rows as lines of JSON, streamed in and out: bounded memory, in order, answers while rows still arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ptuning.serving.limits import STREAMED, HttpSettings
from ptuning.serving.rows import Refusal

_T = TypeVar("_T")

WINDOW = 128
"""Maximum lines that are asked together."""
IN_FLIGHT = 4
"""Maximum windows that are asked at once; when so many wait, the body is not read on."""

AnswerLines = Callable[[Sequence[bytes | Refusal]], Coroutine[Any, Any, bytes]]
"""Answers a window of lines with lines; a :class:`Refusal` is a line that could not be read."""


async def patiently(ask: Callable[[], Awaitable[_T]], seconds: float) -> _T:
    """The result of ``ask``, which is tried again while the server is overloaded, for so many seconds.

    Raises:
        Refusal: another one, or the last.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    while True:
        try:
            return await ask()
        except Refusal as refusal:
            wait = min(refusal.retry_after or 1.0, 1.0)
            if refusal.status != 429 or loop.time() + wait > ends:
                raise
            await asyncio.sleep(wait)


class LineSplitter:
    """Splits a body into lines. Blank lines are left out.

    Args:
        limit: Maximum bytes of a line; a longer one becomes a refusal, and is not kept in memory.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rest = bytearray()
        self._too_long = False

    def feed(self, data: bytes) -> Iterator[bytes | Refusal]:
        """The lines that are complete."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._add(line)
            yield from self.end()
        self._add(rest)

    def end(self) -> Iterator[bytes | Refusal]:
        """The last line."""
        line, too_long = bytes(self._rest).strip(), self._too_long
        self._rest.clear()
        self._too_long = False
        if too_long:
            message = f"the line has more than {self.limit:,} bytes"
            yield Refusal(status=413, kind="line_too_long", message=message)
        elif line:
            yield line

    def _add(self, data: bytes) -> None:
        self._too_long |= len(self._rest) + len(data) > self.limit
        if self._too_long:
            self._rest.clear()
        else:
            self._rest += data


class LineStream(Response):
    """An answer of lines to a body of lines; both move at the same time.

    Args:
        request: The request; nothing of its body was read yet.
        answer: Answers a window of lines.
        stopping: When it is set, no more lines are read; an error is the last line of the answer.
        settings: The limit of a line.
    """

    media_type = STREAMED

    def __init__(
        self, request: Request, answer: AnswerLines, *, stopping: asyncio.Event, settings: HttpSettings
    ) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})  # a proxy should pass lines on at once
        del self.headers["content-length"]
        self.request, self.answer, self.stopping = request, answer, stopping
        self.splitter, self.more = LineSplitter(settings.max_line_bytes), True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        windows: asyncio.Queue[Awaitable[bytes] | None] = asyncio.Queue(IN_FLIGHT)
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(group, windows))
                while (window := await windows.get()) is not None:
                    await send({"type": "http.response.body", "body": await window, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                reader.cancel()
        except* ClientDisconnect:
            pass  # nobody reads the answer

    async def _read(self, group: asyncio.TaskGroup, windows: asyncio.Queue[Any]) -> None:
        """Read lines and ask them, a window at a time, then wait for the client to leave."""
        stop = group.create_task(self.stopping.wait())

        async def ask(lines: list[bytes | Refusal]) -> None:
            for first in range(0, len(lines), WINDOW):
                await windows.put(group.create_task(self.answer(lines[first : first + WINDOW])))

        try:
            while self.more:
                await ask(list(self.splitter.feed(await self._next(stop))))
            await ask(list(self.splitter.end()))
        except Refusal as refusal:  # the client is too slow, or the server stops
            await ask([refusal])
        finally:
            stop.cancel()
        await windows.put(None)
        while True:
            with suppress(Refusal):  # a client that was too slow still gets what was asked
                if (await self.request.receive())["type"] == "http.disconnect":
                    raise ClientDisconnect

    async def _next(self, stop: asyncio.Task[Any]) -> bytes:
        """The next part of the body.

        Raises:
            Refusal: the server stops, or the client is too slow.
            ClientDisconnect: the client has gone.
        """
        receiving = asyncio.ensure_future(self.request.receive())
        try:
            await asyncio.wait((receiving, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not receiving.done():
                receiving.cancel()
        if receiving.cancelled() or not receiving.done():
            raise Refusal(status=503, kind="stopping", message="the server is stopping; send the rest again")
        message = receiving.result()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self.more = message.get("more_body", False)
        return bytes(message.get("body", b""))
