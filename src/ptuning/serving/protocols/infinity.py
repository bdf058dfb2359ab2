"""infinity: ``POST /classify``; the task is ``model``. And ``GET /models``, in OpenAI's list shape."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from ptuning.serving.protocols.exchange import Answers, Exchange, router_of
from ptuning.serving.protocols.reading import ForModel, pairs_of
from ptuning.serving.protocols.writing import Json, Score, written
from ptuning.serving.rows import Refusal
from ptuning.serving.scores import best_first, scores_of

NOT_NAMED = "default/not-specified"
"""What infinity's client sends as the model if its user names none."""


class Classify(ForModel):
    """Texts for one task."""

    raw_scores: bool = Field(False, description="true or false")


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    total_tokens: int


class Classified(BaseModel):
    """The answer: one list per text, best first."""

    object: Literal["classify"] = "classify"
    data: list[list[Score]]
    model: str
    usage: Usage
    id: str
    created: int


class Problem(BaseModel):
    """What went wrong."""

    message: str
    type: str | None
    param: str | None
    code: int


class Error(BaseModel):
    """An error, as OpenAI's clients read it."""

    error: Problem


class Stats(BaseModel):
    """The queue, which all tasks share."""

    queue_fraction: float
    queue_absolute: int
    results_pending: int
    batch_size: int


class Model(BaseModel):
    """One task."""

    id: str
    stats: Stats
    object: Literal["model"] = "model"
    owned_by: Literal["infinity"] = Field("infinity", description="infinity's client takes no other value")
    created: int
    backend: Literal["torch"] = "torch"
    capabilities: list[Literal["classify"]] = ["classify"]


class Models(BaseModel):
    """All tasks."""

    object: Literal["list"] = "list"
    data: list[Model]


ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Error}, "5XX": {"model": Error}}


def shape(refusal: Refusal) -> Mapping[str, Any]:
    """The shape of OpenAI's errors; vLLM's, too."""
    problem = Problem(message=refusal.message, type=refusal.kind, param=None, code=refusal.status)
    return {"error": problem.model_dump()}


def write(answers: Answers, *, raw: bool) -> dict[str, Any]:
    """The body of the answer."""
    data = [best_first(scores_of(row, "none" if raw else None)) for row in answers.rows]
    return {
        "object": "classify",
        "data": [[{"score": value, "label": name} for name, value in row] for row in data],
        "model": answers.name,
        "usage": {"prompt_tokens": answers.tokens, "total_tokens": answers.tokens},
        "id": f"infinity-{uuid.uuid4()}",
        "created": int(time.time()),
    }


def router(exchange: Exchange) -> APIRouter:
    """The routes."""
    made = router_of(exchange, shape, "infinity")

    @made.post("/classify", summary="Classify texts", response_model=Classified, responses=ERRORS)
    async def classify(body: Classify, request: Request) -> Response:
        task = exchange.named(request, None if body.model == NOT_NAMED else body.model)
        answers = await exchange.answer(request, task, pairs_of(body.input))
        return await written(lambda: Json(write(answers, raw=body.raw_scores)), answers.rows)

    @made.get("/models", summary="The tasks", response_model=Models, responses=ERRORS)
    @made.get("/v1/models", summary="The tasks", response_model=Models, responses=ERRORS)
    async def models(request: Request) -> Response:
        limits, (queued, _) = exchange.service.settings, exchange.service.queued
        stats = Stats(
            queue_fraction=queued / limits.queue_rows,
            queue_absolute=queued,
            results_pending=queued,
            batch_size=limits.batch_rows,
        )
        found = [
            Model(id=task.name, stats=stats, created=int(task.loaded_at)) for task in exchange.tasks(request)
        ]
        return Json(Models(data=found).model_dump())

    return made
