"""What HTTP clients may take: bytes, seconds, connections. And a middleware that enforces it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from starlette.datastructures import Headers

from ptuning.serving.rows import Refusal
from ptuning.validation import Float, Int, checked

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

STREAMED, STREAMED_PATH = "application/x-ndjson", "/v1/rows"
"""Content type and path of a body without a limit of its length: it is read line by line."""

_Count = Annotated[Int, Field(ge=1)]
_Seconds = Annotated[Float, Field(gt=0)]


@checked
@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """The limits of the HTTP side; those of the queue are :class:`ptuning.serving.settings.Settings`.

    Args:
        truncate: Whether a text that is too long is cut, unless the request says otherwise.
        max_upload_bytes: Maximum bytes of an uploaded adapter, packed and unpacked.
        max_line_bytes: Maximum bytes of one line of a streamed body.
        max_header_bytes: Maximum bytes of a request's headers.
        max_connections: Maximum open connections.
        header_seconds: Seconds in which the headers of a request must have arrived.
        body_seconds: Seconds in which its body must have arrived; of a streamed body or an upload, the next
            part.
        send_seconds: Seconds in which a client must take the next part of an answer.
        linger_seconds: Seconds in which the rest of a body that is too large is read and discarded, so that
            the client sees why it was refused.
        keep_alive_seconds: Seconds after which an idle connection is closed.
        drain_delay: Seconds between the signal to stop and the end of accepting requests. The server is not
            ready in that time, so that a load balancer can notice.
        log_texts: Whether the texts of requests are written to the log.
    """

    truncate: bool = True
    max_upload_bytes: _Count = 256 << 20
    max_line_bytes: _Count = 1 << 20
    max_header_bytes: _Count = 64 << 10
    max_connections: _Count = 1024
    header_seconds: _Seconds = 10.0
    body_seconds: _Seconds = 30.0
    send_seconds: _Seconds = 60.0
    linger_seconds: _Seconds = 1.0
    keep_alive_seconds: _Seconds = 75.0
    drain_delay: Annotated[Float, Field(ge=0)] = 0.0
    log_texts: bool = False


def media_type(headers: Headers) -> str:
    """The content type of a body without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


class Limits:
    """Bounds the bytes and seconds of a body; an ASGI middleware.

    A body that says that it is too long is refused before it is read, and the connection is closed. Inside
    the application, :class:`Refusal` is raised where the body is read: 413 for too many bytes, 408 for too
    slow a client.

    Args:
        app: The application.
        max_bytes: The limit of a body by method: ``PUT`` uploads adapters.
        settings: The other limits.
    """

    def __init__(self, app: App, max_bytes: Callable[[str], int], settings: HttpSettings) -> None:
        self.app, self.max_bytes, self.settings = app, max_bytes, settings

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(scope, receive, self.max_bytes(scope["method"]), self.settings)

        async def bounded(message: Message) -> None:
            if message["type"] == "http.response.start" and body.refused:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and body.too_large:
                await send({**message, "more_body": True})
                await body.discard()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self.app(scope, body.receive, bounded)


class _Body:
    """The body of one request."""

    def __init__(
        self, scope: MutableMapping[str, Any], receive: Receive, limit: int, settings: HttpSettings
    ) -> None:
        headers = Headers(scope=scope)  # of a name that is repeated the first, as the application sees it
        self.inner, self.limit, self.seconds = receive, limit, settings.body_seconds
        self.linger = settings.linger_seconds
        self.streamed = media_type(headers) == STREAMED and scope["path"].endswith(STREAMED_PATH)
        self.by_part = self.streamed or scope["method"] == "PUT"  # a large upload may take minutes
        length = headers.get("content-length", "")
        self.announced = int(length) if length.isascii() and length.isdigit() else 0
        self.read, self.ends = 0, asyncio.get_running_loop().time() + self.seconds
        self.complete = self.refused = self.too_large = False

    async def receive(self) -> Message:
        if self.complete:  # waits for the client to go away
            return await self.inner()
        if self.announced > self.limit and not self.streamed:
            raise self._too_large()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + self.seconds if self.by_part else self.ends):
                message = await self.inner()
        except TimeoutError:
            self.refused = True
            raise Refusal(
                status=408,
                kind="body_timeout",
                message=f"the request's body did not arrive within {self.seconds:g} seconds",
            ) from None
        if message["type"] == "http.request":
            self.read += len(message.get("body", b""))
            if self.read > self.limit and not self.streamed:
                raise self._too_large()
            self.complete = not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read on for a moment: a connection that is closed with unread data loses the answer."""
        try:
            async with asyncio.timeout(self.linger):
                left = 4 * self.limit
                while left > 0:
                    message = await self.inner()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            pass

    def _too_large(self) -> Refusal:
        self.refused = self.too_large = True
        got = f"{max(self.announced, self.read):,} bytes"
        return Refusal(
            status=413,
            kind="body_too_large",
            message=f"the body has {got} or more; the limit is {self.limit:,}: send fewer rows at once",
        )
