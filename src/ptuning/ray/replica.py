"""One replica of the server, as Ray Serve runs it: our own service, queue and batches, with our application.

Serve counts the tasks of a replica (``serve.multiplexed``) and sends requests that name one in the header
``serve_multiplexed_model_id`` to a replica that holds it. It does not batch: rows of all tasks share our
batches.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING

from ptuning.ray.cluster import Versions

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ptuning.serving.held import Hold
    from ptuning.serving.launching import ServerOptions

_LOG = logging.getLogger("ptuning.serving")


class Replica:
    """What ``serve.ingress`` makes a deployment of.

    Args:
        options: The options of the server.
        tasks: How many tasks are held at the same time.
        versions: Of the process that deployed it.
        session_secret: Shared by all replicas.

    Raises:
        ConfigError: a folder or package that is missing on this node, or an option that is not possible.
        AdapterError, BackboneNotFound: as for ``ptuning serve``.
    """

    def __init__(self, options: ServerOptions, tasks: int, versions: Versions, session_secret: bytes) -> None:
        versions.check()
        from ptuning.errors import UserError
        from ptuning.serving.launching import open_app
        from ptuning.serving.logs import log_to_stderr

        log_to_stderr(requests=not options.no_request_log)
        loop = asyncio.get_running_loop()
        try:
            self._service, self._app = open_app(
                options,
                holding=lambda let_go: _hold(loop, tasks, let_go),
                session_secret=session_secret,
            )
        except UserError as error:
            where = f"on the node {platform.node()}: {error.problem}"
            raise type(error)(where, got=error.got, expected=error.expected, remedy=error.remedy) from error

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; Serve runs its lifespan, which starts and drains the service."""
        return self._app

    def check_health(self) -> None:
        """Serve replaces a replica whose engine has ended, or has been in one batch for too long.

        Raises:
            RuntimeError: it has.
        """
        service = self._service
        if service.failed or not (service.ready or service.draining):
            raise RuntimeError("the thread that runs the model has ended, or is stuck")


class _Held:
    """A task that Serve counts; Serve calls ``__del__`` to let go of it, and Python calls it again."""

    def __init__(self, name: str, let_go: Callable[[str], None]) -> None:
        self._name: str | None = name
        self._let_go = let_go

    def __del__(self) -> None:
        name, self._name = self._name, None
        if name is not None:
            self._let_go(name)


def _hold(loop: asyncio.AbstractEventLoop, limit: int, let_go: Callable[[str], None]) -> Hold:
    """Serve's own order of the tasks that were named most recently."""
    from ray import serve

    @serve.multiplexed(max_num_models_per_replica=limit)  # type: ignore[untyped-decorator]
    async def held_task(name: str) -> _Held:
        return _Held(name, let_go)

    return lambda name: asyncio.run_coroutine_threadsafe(held_task(name), loop)
