"""Connections to HTTP clients: uvicorn's, with limits of the time and size of headers and of their number."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ptuning.serving.limits import HttpSettings

_AT_ONCE = struct.pack("ii", 1, 0)
"""Linger for 0 seconds: the client is told that the connection ended, and nothing is kept to be sent."""


def limited_protocol(settings: HttpSettings) -> type[HttpToolsProtocol]:
    """A protocol class for ``uvicorn.Config(http=…)``.

    uvicorn waits for ever for the rest of a request's headers, and keeps as many of them as arrive. Here a
    connection is closed if the headers of a request are not complete in ``header_seconds`` (408), if they are
    longer than ``max_header_bytes`` (431), or if there are more connections than ``max_connections`` (503).
    A client that does not take an answer is disconnected after ``send_seconds``.
    """

    class LimitedProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None
        _current: RequestResponseCycle | None = None
        _in_headers = True
        _header_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                self._refuse(b"503 Service Unavailable", b"too many connections", b"retry-after: 1\r\n")
            else:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._arrived()
            self._taken()
            self._leave()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.parser is None or self.transport.is_closing():
                return
            if not self._in_headers and (self.cycle is None or self.cycle.response_complete):
                self._wait()  # the rest of a body that nobody reads
            if self._in_headers:
                self._header_bytes += len(data)
                if self._header_bytes > settings.max_header_bytes:
                    self._refuse(b"431 Request Header Fields Too Large", b"the headers are too long")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_headers, self._header_bytes = True, 0
            self._wait()

        def on_headers_complete(self) -> None:
            self._in_headers = False
            self._arrived()
            super().on_headers_complete()

        def timeout_keep_alive_handler(self) -> None:
            self._arrived()
            super().timeout_keep_alive_handler()
            self._sending()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self._sending()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._sending()

        def resume_writing(self) -> None:
            super().resume_writing()
            if not self.transport.is_closing():
                self._taken()

        def _sending(self) -> None:
            """Disconnect later: closing waits until everything is sent, which a client can prevent."""
            if self._stalled is None:
                self._stalled = self.loop.call_later(settings.send_seconds, self._cut)

        def _cut(self) -> None:
            self._leave()
            if (connected := self.transport.get_extra_info("socket")) is not None:
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.transport.abort()

        def _leave(self) -> None:
            """Tell every request of this connection that its client has gone; uvicorn tells the last one."""
            for cycle in (self._current, self.cycle, *(waiting for waiting, _ in self.pipeline)):
                if cycle is not None and not cycle.response_complete:
                    cycle.disconnected = True
                    cycle.message_event.set()
            self.pipeline.clear()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._current = cycle
            super()._start_asgi_task(cycle, app)

        def _taken(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def _wait(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(settings.header_seconds, self._late)

        def _arrived(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self._refuse(b"408 Request Timeout", b"the request did not arrive in time")

        def _refuse(self, status: bytes, message: bytes, headers: bytes = b"") -> None:
            self._arrived()
            if self.cycle is None or self.cycle.response_complete:  # otherwise an answer is being written
                self.transport.write(
                    b"HTTP/1.1 " + status + b"\r\n" + headers + b"content-type: text/plain\r\n"
                    b"content-length: %d\r\nconnection: close\r\n\r\n" % len(message) + message
                )
            self.transport.close()
            self._sending()

    return LimitedProtocol
