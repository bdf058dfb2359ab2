"""Our own protocol: rows that each name their task, and one text for many tasks.

``POST /v1/rows`` answers every row in order, with its own error if there is one, and with the digest of the
adapter that answered. As ``application/x-ndjson``, rows are streamed in and answers out (``lines.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from ptuning.serving.keys import Caller
from ptuning.serving.limits import STREAMED, media_type
from ptuning.serving.openapi import request_body
from ptuning.serving.protocols.exchange import (
    Exchange,
    Few,
    Strict,
    json_of,
    own_shape,
    parsed,
    router_of,
    validated,
)
from ptuning.serving.protocols.lines import LineStream, patiently
from ptuning.serving.protocols.writing import Json, json_bytes, written
from ptuning.serving.rows import Refusal, Row, RowAnswer
from ptuning.serving.scores import answer_of
from ptuning.task import Label


class TaskRow(Strict):
    """One row for one task."""

    task: str = Field(description="the name of a task")
    text: str = Field(description="a text")
    text_pair: str | None = Field(None, description="the second text, for a task of pairs")
    id: str | int | None = Field(None, description="a text or a whole number, which the answer repeats")


class Rows(Strict):
    """Rows of any tasks; or one text for several tasks."""

    rows: Few[TaskRow] | None = Field(
        None, description='a list of {"task", "text"} objects, for pairs with "text_pair" as well'
    )
    text: str | None = Field(None, description="a text, for all of the tasks")
    text_pair: str | None = Field(None, description="a second text, for all of the tasks")
    tasks: Few[str] | Literal["*"] | None = Field(
        None, description='a list of tasks, or "*" for all that take a text (or a pair, with "text_pair")'
    )
    truncate: bool | None = Field(None, description="true to cut a text that is too long, false to refuse it")
    timeout: Annotated[float, Field(gt=0)] | None = Field(None, description="seconds, above 0")


class Problem(BaseModel):
    """Why a row, or a request, has no answer."""

    code: int
    type: str
    message: str


class Error(BaseModel):
    """An error."""

    error: Problem


class RowResult(BaseModel):
    """One row's answer: a label with probabilities, or the value of a task without labels, or an error."""

    task: str | None = None
    id: str | int | None = None
    digest: str | None = None
    label: Label | list[Label] | None = None
    probabilities: dict[str, float] | None = None
    value: float | None = None
    tokens: int | None = None
    truncated: bool | None = None
    error: Problem | None = None


class Results(BaseModel):
    """The answers, in the order of the rows."""

    rows: list[RowResult]


def read(request: Rows, exchange: Exchange, http: Request) -> Sequence[TaskRow]:
    """The rows of a request.

    Raises:
        Refusal: 400 or 422.
    """
    if (request.rows is None) == (request.text is None):
        raise Refusal(status=422, kind="invalid", message='expected either "rows", or "text" with "tasks"')
    if request.rows is not None:
        if request.tasks is not None or request.text_pair is not None:
            raise Refusal(status=422, kind="invalid", message='"tasks" and "text_pair" go with "text"')
        rows = request.rows
    else:
        if request.tasks is None:
            raise Refusal(
                status=422, kind="invalid", message='tasks: missing, expected a list of tasks or "*"'
            )
        pair = request.text_pair is not None
        names = (
            [task.name for task in exchange.tasks(http) if task.task.pair == pair]
            if request.tasks == "*"
            else request.tasks
        )
        rows = [TaskRow(task=name, text=request.text or "", text_pair=request.text_pair) for name in names]
    if not rows:
        raise Refusal(status=400, kind="empty", message="there are no rows: got an empty list")
    return rows


def write(row: TaskRow, answer: RowAnswer | Refusal) -> dict[str, Any]:
    """The answer to one row."""
    named: dict[str, Any] = {"task": row.task} | ({} if row.id is None else {"id": row.id})
    if isinstance(answer, Refusal):
        return {**named, **own_shape(answer)}
    found = answer_of(answer)
    said: Mapping[str, Any]
    if found.probabilities:
        label = list(found.label) if isinstance(found.label, tuple) else found.label
        chances = {str(name): value for name, value in found.probabilities}
        said = {"label": label, "probabilities": chances}
    else:
        said = {"value": found.label}
    return {
        **named,
        "digest": answer.digest,
        **said,
        "tokens": answer.tokens,
        "truncated": answer.truncated,
    }


def _as_row(row: TaskRow) -> Row:
    return Row(task=row.task, text=row.text, text_pair=row.text_pair)


def router(exchange: Exchange) -> APIRouter:
    """The routes."""
    made = router_of(exchange, own_shape, "ptuning")

    @made.post(
        "/v1/rows",
        summary="Answer rows of any tasks",
        response_model=Results,
        responses={"4XX": {"model": Error}, "5XX": {"model": Error}},
        openapi_extra=request_body(Rows, STREAMED),
    )
    async def rows(request: Request, truncate: bool | None = None) -> Response:
        caller = exchange.caller(request)
        if media_type(request.headers) == STREAMED:
            answer = _LineAnswers(exchange, request, caller, truncate)
            return LineStream(request, answer, stopping=exchange.closing, settings=exchange.settings)
        asked = validated(Rows, await json_of(request, exchange.service.settings.max_rows))
        given = read(asked, exchange, request)
        wanted = truncate if asked.truncate is None else asked.truncate
        at_once = exchange.service.settings.max_rows if asked.tasks == "*" else len(given)
        found: list[RowAnswer | Refusal] = []
        for first in range(0, len(given), at_once):  # there may be more tasks than rows in a request
            part = [_as_row(row) for row in given[first : first + at_once]]
            found += await exchange.answer_all(request, part, truncate=wanted, timeout=asked.timeout)
        return await written(
            lambda: Json({"rows": [write(row, each) for row, each in zip(given, found, strict=True)]}), found
        )

    return made


class _LineAnswers:
    """Answers lines of a streamed body."""

    def __init__(self, exchange: Exchange, request: Request, caller: Caller, truncate: bool | None) -> None:
        self.exchange, self.request, self.caller, self.truncate = exchange, request, caller, truncate

    async def __call__(self, lines: Sequence[bytes | Refusal]) -> bytes:
        """The answers to lines, or the error of each, as lines."""
        given = [_row_of(line) for line in lines]
        rows = [row for row in given if isinstance(row, TaskRow)]

        async def ask() -> Sequence[RowAnswer | Refusal]:
            return await self.exchange.run(
                self.request, self.caller, [_as_row(row) for row in rows], truncate=self.truncate
            )

        found: Sequence[RowAnswer | Refusal] = ()
        if rows:
            try:
                found = await patiently(ask, self.exchange.service.settings.timeout)
            except Refusal as refusal:
                found = [refusal] * len(rows)

        def as_lines() -> bytes:
            answers = iter(found)
            return b"".join(
                json_bytes(own_shape(row) if isinstance(row, Refusal) else write(row, next(answers))) + b"\n"
                for row in given
            )

        return await written(as_lines, found)


def _row_of(line: bytes | Refusal) -> TaskRow | Refusal:
    if isinstance(line, Refusal):
        return line
    try:
        return validated(TaskRow, parsed(line))
    except Refusal as refusal:
        return refusal
