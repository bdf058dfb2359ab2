"""The HTTP application: every protocol on one service."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ptuning import __version__
from ptuning.serving.access import Access, Record, Running, record_of
from ptuning.serving.hosts import LoopbackOnly
from ptuning.serving.keys import Keys
from ptuning.serving.limits import HttpSettings, Limits
from ptuning.serving.page import make_page
from ptuning.serving.page.sessions import Sessions, SignedSessions
from ptuning.serving.protocols import (
    embeddings_inference,
    health,
    huggingface,
    infinity,
    open_inference,
    rows,
    tasks,
    vllm,
)
from ptuning.serving.protocols.exchange import About, Exchange, bug, error_response, own_shape
from ptuning.serving.rows import Refusal
from ptuning.serving.tracing import Tracing
from ptuning.serving.uploads import Uploads

if TYPE_CHECKING:
    from ptuning.serving.service import Service

DESCRIPTION = """\
Text classification and regression by many tasks on one frozen backbone. It speaks the protocols of the
Hugging Face inference API, text-embeddings-inference, infinity, vLLM and the Open Inference Protocol.
"""


def make_app(
    service: Service,
    keys: Keys,
    settings: HttpSettings | None = None,
    *,
    about: About | None = None,
    folder: Path | None = None,
    tracing: Tracing | None = None,
    root_path: str = "",
    loopback_only: bool = False,
    several: bool = False,
    session_secret: bytes | None = None,
) -> FastAPI:
    """The application. Its lifespan starts and closes the service.

    Args:
        service: Answers rows.
        keys: Who may ask.
        settings: The limits.
        about: What the server runs.
        folder: Where uploaded adapters are written; by default a temporary folder, which is deleted when the
            server stops.
        tracing: Makes spans.
        root_path: The path under which a proxy shows the server.
        loopback_only: Whether to refuse requests for other hosts than this machine; see
            :class:`~ptuning.serving.hosts.LoopbackOnly`.
        several: Whether this is one of several servers behind one address. Then tasks are only changed in
            ``folder``, which all of them see.
        session_secret: What several servers share, so that each of them knows the sessions of the page that
            another one has started; ``None`` if there is one server.

    Returns:
        The application; ``app.state`` has ``exchange``, ``running`` (:class:`Running`), and ``failure``, the
        error that prevented the start.
    """
    settings, tracing = settings or HttpSettings(), tracing or Tracing()
    exchange, running = Exchange(service, keys, settings, about or About()), Running()
    own = Path(tempfile.gettempdir(), f"ptuning-serve-{secrets.token_hex(8)}")
    uploads = Uploads(
        service.tasks, folder or (None if several else own), settings.max_upload_bytes, shared=several
    )
    sessions = Sessions(keys=keys) if session_secret is None else SignedSessions(keys, session_secret)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
        except Exception as error:
            app.state.failure = error
            raise
        try:
            yield
        finally:
            await service.close()
            tracing.close()
            shutil.rmtree(own, ignore_errors=True)

    app = _Application(
        title="ptuning",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        root_path=root_path,
        lifespan=lifespan,
    )
    app.state.exchange, app.state.running, app.state.failure = exchange, running, None
    for protocol in (huggingface, embeddings_inference, infinity, vllm, open_inference, rows, health):
        app.include_router(protocol.router(exchange))
    app.include_router(tasks.router(exchange, uploads))
    app.include_router(make_page(service, sessions, settings), include_in_schema=False)
    app.add_exception_handler(HTTPException, _not_routed)

    def max_bytes(method: str) -> int:
        return settings.max_upload_bytes if method == "PUT" else service.settings.max_body_bytes

    app.add_middleware(Limits, max_bytes=max_bytes, settings=settings)
    if loopback_only:
        app.add_middleware(LoopbackOnly, answer=lambda refusal: error_response(refusal, own_shape))
    app.add_middleware(
        Access,
        running=running,
        metrics=service.metrics,
        tracing=tracing,
        settings=settings,
        on_bug=_unexpected,
    )
    return app


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        found = super().openapi()
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{}, {"key": []}]  # a server may need none
        return found


async def _not_routed(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    refusal = Refusal(status=error.status_code, kind="http", message=str(error.detail))
    if error.status_code == 404:
        refusal = Refusal(status=404, kind="unknown_path", message="there is nothing here; see /openapi.json")
    record_of(request.scope).refusal = refusal.kind
    found = error_response(refusal, own_shape)
    found.headers.update(error.headers or {})
    return found


def _unexpected(record: Record, error: Exception) -> Response:
    refusal = bug(error, record.id)
    record.refusal = refusal.kind
    return error_response(refusal, own_shape)
