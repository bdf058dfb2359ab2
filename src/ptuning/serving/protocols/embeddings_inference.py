"""text-embeddings-inference: its clients work with ``http://HOST/tasks/TASK`` as base URL.

``inputs`` is read as that server does: a text; two texts in a list are ONE pair; a list of lists of one or
two texts is a batch. The answer is flat for one input, nested for a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from ptuning import __version__
from ptuning.serving.protocols.exchange import Answers, Exchange, Few, Lenient, TextPair, router_of
from ptuning.serving.protocols.writing import Json, written
from ptuning.serving.rows import Refusal
from ptuning.serving.scores import best_first, names_of, scores_of

Texts = Annotated[Few[str], Field(min_length=1, max_length=2)]

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""By our names for them."""
ERROR_TYPES = {400: "empty", 429: "overloaded", 503: "unhealthy", 500: "backend", 504: "backend"}
"""By status; every other error is ``validation``."""


class Predict(Lenient):
    """One input, or a batch."""

    inputs: str | Texts | Few[Texts] = Field(
        description='a text, a pair ["a", "b"], or a batch [["a"], ["c", "d"]]'
    )
    truncate: bool | None = Field(None, description="true, false or null")
    truncation_direction: Literal["Right", "right"] = Field(
        "Right", description='"Right": the end of a text that is too long is cut'
    )
    raw_scores: bool = Field(False, description="true or false")


class Prediction(BaseModel):
    """A label and its score."""

    score: float
    label: str


class Error(BaseModel):
    """An error."""

    error: str
    error_type: Literal["unhealthy", "backend", "overloaded", "validation", "tokenizer", "empty"]


class Labels(BaseModel):
    """The labels of a classifier."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(BaseModel):
    """What the model does."""

    classifier: Labels


class Info(BaseModel):
    """What a client needs to know about the model."""

    model_id: str
    model_sha: str
    model_dtype: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int | None
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: None = None
    docker_label: None = None


def shape(refusal: Refusal) -> Mapping[str, Any]:
    """The body of an error."""
    kind = ERROR_TYPES.get(refusal.status, "validation")
    return {"error": "Model is overloaded" if kind == "overloaded" else refusal.message, "error_type": kind}


def read(request: Predict) -> tuple[Sequence[TextPair], bool]:
    """The texts of a request, and whether they are a batch."""
    match request.inputs:
        case str() as text:
            return [TextPair(text=text)], False
        case [str(), *_]:
            return [_pair(request.inputs)], False
        case _:
            return [_pair(each) for each in request.inputs], True


def _pair(texts: Any) -> TextPair:
    text, *more = texts
    return TextPair(text=text, text_pair=more[0] if more else None)


def write(answers: Answers, *, raw: bool, batch: bool) -> list[Any]:
    """The body of the answer."""
    found = [
        [
            {"score": value, "label": name}
            for name, value in best_first(scores_of(row, "none" if raw else None))
        ]
        for row in answers.rows
    ]
    return found if batch else found[0]


def router(exchange: Exchange) -> APIRouter:
    """The routes."""
    made = router_of(exchange, shape, "text-embeddings-inference")
    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": Error}, "5XX": {"model": Error}}

    @made.post(
        "/tasks/{task}/predict",
        summary="Classify texts",
        response_model=list[Prediction] | list[list[Prediction]],
        responses=errors,
    )
    async def predict(task: str, body: Predict, request: Request) -> Response:
        texts, batch = read(body)
        answers = await exchange.answer(request, task, texts, truncate=body.truncate)
        return await written(lambda: Json(write(answers, raw=body.raw_scores, batch=batch)), answers.rows)

    @made.get("/tasks/{task}/info", summary="Limits and labels", response_model=Info, responses=errors)
    async def info(task: str, request: Request) -> Response:
        found, limits = exchange.task(request, task), exchange.service.settings
        names = names_of(found.task)
        labels = {
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
        }
        facts = Info(
            model_id=found.name,
            model_sha=found.digest,
            model_dtype=DTYPES.get(exchange.about.precision, exchange.about.precision),
            model_type=ModelType(classifier=Labels(**labels)),
            max_concurrent_requests=exchange.settings.max_connections,
            max_input_length=found.max_tokens,
            max_batch_tokens=limits.batch_tokens,
            max_batch_requests=limits.batch_rows,
            max_client_batch_size=limits.max_rows,
            auto_truncate=exchange.settings.truncate,
            tokenization_workers=limits.tokenise_threads,
            version=__version__,
        )
        return Json(facts.model_dump())

    @made.get("/tasks/{task}/health", summary="Whether the task can be asked", responses=errors)
    async def health(task: str, request: Request) -> Response:
        exchange.task(request, task)
        exchange.refuse_unready()
        return Response(status_code=200)

    return made
