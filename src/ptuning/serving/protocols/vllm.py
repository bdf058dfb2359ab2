"""vLLM and SGLang: ``POST /v1/classify``; the task is ``model``. Probabilities are in the labels' order."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from ptuning.serving.protocols import infinity
from ptuning.serving.protocols.exchange import Answers, Exchange, router_of
from ptuning.serving.protocols.infinity import ERRORS, shape
from ptuning.serving.protocols.reading import ForModel, pairs_of
from ptuning.serving.protocols.writing import Json, written
from ptuning.serving.scores import scores_of


class Classify(ForModel):
    """Texts for one task."""

    use_activation: bool | None = Field(None, description="false for logits; true or null for probabilities")


class Classification(BaseModel):
    """The answer to one text."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Usage(infinity.Usage):
    """Tokens."""

    completion_tokens: Literal[0] = 0
    prompt_tokens_details: None = None


class Classified(BaseModel):
    """The answer."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: Usage


def write(answers: Answers, *, raw: bool) -> dict[str, Any]:
    """The body of the answer; ``label`` is that of the highest score."""
    data = []
    for index, row in enumerate(answers.rows):
        scores = scores_of(row, "none" if raw else None)
        label = max(scores, key=lambda each: each[1])[0]
        values = [value for _, value in scores]
        data.append({"index": index, "label": label, "probs": values, "num_classes": len(values)})
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": answers.name,
        "data": data,
        "usage": {
            "prompt_tokens": answers.tokens,
            "total_tokens": answers.tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }


def router(exchange: Exchange) -> APIRouter:
    """The routes."""
    made = router_of(exchange, shape, "vLLM")

    @made.post("/v1/classify", summary="Classify texts", response_model=Classified, responses=ERRORS)
    async def classify(body: Classify, request: Request) -> Response:
        answers = await exchange.answer(request, exchange.named(request, body.model), pairs_of(body.input))
        return await written(lambda: Json(write(answers, raw=body.use_activation is False)), answers.rows)

    return made
