"""Whether the server lives, is ready, and how it is: for load balancers, Prometheus and people."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from ptuning import __version__
from ptuning.serving.protocols.exchange import Exchange, own_shape, router_of
from ptuning.serving.protocols.rows import Error
from ptuning.serving.protocols.writing import Json
from ptuning.serving.rows import Refusal

if TYPE_CHECKING:
    from ptuning.serving.service import Service

ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Error}, "5XX": {"model": Error}}


class Status(BaseModel):
    """One word."""

    status: str


class Limits(BaseModel):
    """What one request may have."""

    max_rows: int
    max_text_characters: int
    max_body_bytes: int
    timeout: float
    truncate: bool


class Info(BaseModel):
    """What the server is."""

    version: str
    backbone: str
    precision: str
    device: str
    tasks: int
    limits: Limits
    failures: dict[str, str]


_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/:;,'\"]+/)+")


def failures_of(service: Service) -> dict[str, str]:
    """Why the newest adapter of a task was refused, by task. Where the server's folders are is its own
    business.
    """
    return {name: _FOLDERS.sub("", why) for name, why in sorted(service.tasks.failures.items())}


def router(exchange: Exchange) -> APIRouter:
    """The routes."""
    made = router_of(exchange, own_shape, "health")

    @made.head("/health", include_in_schema=False)
    @made.get("/health", summary="Whether the server runs", response_model=Status, responses=ERRORS)
    async def health() -> Response:
        exchange.refuse_failed()
        return Json({"status": "ok"})

    @made.head("/ready", include_in_schema=False)
    @made.get(
        "/ready", summary="Whether the server accepts requests", response_model=Status, responses=ERRORS
    )
    async def ready() -> Response:
        exchange.refuse_unready()
        return Json({"status": "ready"})

    @made.get(
        "/metrics",
        summary="Prometheus metrics; with keys, for callers who may use every task",
        response_class=Response,
        responses=ERRORS,
    )
    async def metrics(request: Request) -> Response:
        if not exchange.caller(request).may_all:
            raise Refusal(status=403, kind="forbidden", message="this key may not use every task")
        body, kind = exchange.service.metrics.render()
        return Response(body, headers={"content-type": kind})

    @made.get("/v1/info", summary="Versions and limits", response_model=Info, responses=ERRORS)
    async def info(request: Request) -> Response:
        caller, service = exchange.caller(request), exchange.service
        limits = Limits(
            max_rows=service.settings.max_rows,
            max_text_characters=service.settings.max_text_characters,
            max_body_bytes=service.settings.max_body_bytes,
            timeout=service.settings.timeout,
            truncate=exchange.settings.truncate,
        )
        facts = Info(
            version=__version__,
            backbone=exchange.about.backbone,
            precision=exchange.about.precision,
            device=exchange.about.device,
            tasks=len(exchange.tasks(request)),
            limits=limits,
            failures=failures_of(service) if caller.may_all else {},
        )
        return Json(facts.model_dump())

    return made
