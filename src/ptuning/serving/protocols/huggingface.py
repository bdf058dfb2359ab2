"""The shape of Hugging Face's inference API: ``huggingface_hub.InferenceClient(model=URL)`` works unchanged.

``POST /tasks/{task}`` with ``{"inputs": "text"}`` answers ``[[{"label": …, "score": …}, …]]``: one list per
input, best first. A task without labels, such as a regression, answers
``[[{"label": "score", "score": 3.4}]]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from ptuning.serving.protocols.exchange import Answers, Exchange, router_of
from ptuning.serving.protocols.reading import Inputs, Lenient, pairs_of
from ptuning.serving.protocols.writing import Json, Score, written
from ptuning.serving.rows import Refusal
from ptuning.serving.scores import Function, best_first, scores_of


class Parameters(Lenient):
    """How the scores are made."""

    top_k: Annotated[int, Field(ge=1)] | None = Field(None, description="a number above 0; null for all")
    function_to_apply: Function | None = Field(None, description="softmax, sigmoid or none")


class TextClassification(Lenient):
    """One input or several."""

    inputs: Inputs
    parameters: Parameters | None = Field(
        None,
        description='an object with "top_k" (a number above 0) and "function_to_apply" (softmax, '
        "sigmoid or none)",
    )


class Error(BaseModel):
    """An error."""

    error: str
    error_type: str


def shape(refusal: Refusal) -> Mapping[str, Any]:
    """The body of an error."""
    return {"error": refusal.message, "error_type": refusal.kind}


def write(answers: Answers, parameters: Parameters) -> list[list[dict[str, Any]]]:
    """The body of the answer."""
    found = []
    for row in answers.rows:
        scores = best_first(scores_of(row, parameters.function_to_apply))
        found.append([{"label": name, "score": value} for name, value in scores[: parameters.top_k]])
    return found


def router(exchange: Exchange) -> APIRouter:
    """The routes."""
    made = router_of(exchange, shape, "Hugging Face")

    @made.post(
        "/tasks/{task}",
        summary="Classify texts",
        response_model=list[list[Score]],
        responses={"4XX": {"model": Error}, "5XX": {"model": Error}},
    )
    async def classify(task: str, body: TextClassification, request: Request) -> Response:
        answers = await exchange.answer(request, task, pairs_of(body.inputs))
        return await written(lambda: Json(write(answers, body.parameters or Parameters())), answers.rows)

    return made
