"""The process: a socket, signals, and a stop that loses no request."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ptuning.errors import ConfigError, PTuningError
from ptuning.serving.access import Running
from ptuning.serving.connections import limited_protocol
from ptuning.serving.limits import HttpSettings
from ptuning.serving.protocols.exchange import Exchange

logger = logging.getLogger("ptuning.serving")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; clients are accepted later.

    Raises:
        ConfigError: the address is in use, or is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise ConfigError("--port", got=port, expected="from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError("--host", got=host, expected="an address of this machine") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        made.close()
        remedy = "stop what listens there, or choose another --port"
        raise ConfigError(f"{host}:{port} cannot be used", got=error.strerror, remedy=remedy) from error
    return made


class Server(uvicorn.Server):
    """uvicorn's server, which ends well.

    On the first SIGTERM or SIGINT, ``/ready`` answers 503 at once; after ``drain_delay`` seconds, new
    requests are refused with 503, and when the others are answered (or ``drain_seconds`` have passed) the
    server stops. A second signal ends the process at once. It stops in the same way, and :meth:`run` raises,
    if the service fails.

    Args:
        app: From :func:`ptuning.serving.app.make_app`.
        settings: The limits of connections.
        on_start: Called when the server accepts requests.
    """

    def __init__(
        self, app: FastAPI, settings: HttpSettings, on_start: Callable[[], None] = lambda: None
    ) -> None:
        config = uvicorn.Config(
            app,
            http=limited_protocol(settings),
            loop="auto",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=round(settings.keep_alive_seconds),
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self.settings, self.on_start = settings, on_start
        self.exchange: Exchange = app.state.exchange
        self.running: Running = app.state.running
        self.failed = False
        self._stop: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until there is a signal.

        Raises:
            PTuningError: the service failed.
        """
        super().run(sockets)
        if self.failed:
            raise PTuningError("the thread that runs the model has ended; the log says why")

    async def on_tick(self, counter: int) -> bool:
        if self.exchange.service.failed and not self.failed:
            self.failed = True
            logger.critical("the thread that runs the model has ended; the server stops")
            if self._stop is None:
                self._begin_to_stop()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            if (failure := self.config.app.state.failure) is not None:  # type: ignore[union-attr]
                raise failure from None
            raise
        self.on_start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # uvicorn's would raise them again
        if threading.current_thread() is not threading.main_thread():
            yield  # Python handles signals in the main thread only
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._captured_signals:
            os._exit(128 + sig)
        self._captured_signals.append(sig)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        self.exchange.stopping.set()
        self._stop = asyncio.ensure_future(self.drain())

    async def drain(self) -> None:
        """Answer what was asked, refuse the rest, and stop."""
        await asyncio.sleep(self.settings.drain_delay)
        self.running.closed = True
        self.exchange.closing.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.exchange.service.settings.drain_seconds):
                await self.running.idle()
        await self.exchange.service.drain()  # what is left gets 503
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.running.idle()
        self.should_exit = True
