"""What all protocols share: strict JSON, errors in a protocol's shape, answers for a caller."""

from __future__ import annotations

import asyncio
import logging
import math
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ptuning.serving.access import CLIENT_GONE, record_of
from ptuning.serving.keys import Caller, Keys
from ptuning.serving.limits import HttpSettings, media_type
from ptuning.serving.protocols.connected import while_connected
from ptuning.serving.protocols.writing import Json
from ptuning.serving.rows import Refusal, Row, RowAnswer
from ptuning.task import Task
from ptuning.visible import visible

if TYPE_CHECKING:
    from ptuning.serving.service import Service
    from ptuning.serving.tasks import ServedTask

logger = logging.getLogger("ptuning.serving")

HEALTH = frozenset({"/health", "/ready", "/v2/health/live", "/v2/health/ready"})
"""Paths that are answered without a key, and while the server stops."""

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)
Shape = Callable[[Refusal], Mapping[str, Any]]
"""Makes the body of a protocol's error."""


MAX_FIELDS = 100
"""Of a JSON object. A model would report every one that it does not know, which takes seconds."""


class _Checked(BaseModel):
    """JSON data from a client. Lists have to be ``Few``: the first error in them is enough."""

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", "an object with too many fields")
        return value


class Strict(_Checked):
    """A request of our own protocol: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Lenient(_Checked):
    """A request of another server's protocol: fields that mean nothing here are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


Few = Annotated[list[_T], Field(fail_fast=True)]
"""A list in a request. Otherwise a million wrong items would be a million errors."""


class TextPair(Strict):
    """A text, or a pair of texts, as transformers' pipeline takes them."""

    text: str
    text_pair: str | None = None


@dataclass(frozen=True, kw_only=True)
class About:
    """What the server runs, for people and clients.

    Args:
        backbone: Its name.
        precision: Of the backbone: ``fp32`` or ``bf16``.
        device: Such as ``cpu``.
    """

    backbone: str = "unknown"
    precision: str = "fp32"
    device: str = "cpu"


@dataclass(frozen=True)
class Answers:
    """The answers to the rows of one request, at least one, all by one version of one task.

    Args:
        rows: The answers.
    """

    rows: Sequence[RowAnswer]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.rows[0].name

    @property
    def digest(self) -> str:
        """Of the adapter that answered."""
        return self.rows[0].digest

    @property
    def task(self) -> Task:
        """What the logits mean."""
        return self.rows[0].task

    @property
    def tokens(self) -> int:
        """All tokens of the texts."""
        return sum(row.tokens for row in self.rows)


class Exchange:
    """Answers rows for whoever sent a request.

    Args:
        service: Answers rows.
        keys: Says who sends a request.
        settings: The limits.
        about: What the server runs.

    Attributes:
        stopping: Set by the signal to stop.
        closing: Set when requests are not accepted any more.
    """

    def __init__(self, service: Service, keys: Keys, settings: HttpSettings, about: About) -> None:
        self.service, self.keys, self.settings, self.about = service, keys, settings, about
        self.stopping, self.closing = asyncio.Event(), asyncio.Event()

    def refuse_failed(self) -> None:
        """Say that the process has to be started anew.

        Raises:
            Refusal: 503.
        """
        if self.service.failed:
            message = "the thread that runs the model has ended; the server stops"
            raise Refusal(status=503, kind="failed", message=message)

    def refuse_unready(self) -> None:
        """Refuse to answer before the tasks are loaded, and from the signal to stop on.

        Raises:
            Refusal: 503.
        """
        if self.stopping.is_set() or self.service.draining:
            raise Refusal(status=503, kind="stopping", message="the server is stopping", retry_after=5)
        if not self.service.ready:
            raise Refusal(status=503, kind="not_ready", message="the server is not ready yet", retry_after=1)

    def admit(self, request: Request) -> None:
        """Refuse a request before anything of it is read.

        Raises:
            Refusal: 401, or 503 for one that came after the server stopped to accept requests.
        """
        refuse_late(request)
        self.caller(request)

    def caller(self, request: Request) -> Caller:
        """Who sent the request.

        Raises:
            Refusal: 401.
        """
        found = self.keys.caller(request.headers.get("authorization"))
        record_of(request.scope).caller = found.name
        return found

    def admin(self, request: Request) -> Caller:
        """Who sent the request, if that is an administrator.

        Raises:
            Refusal: 401 or 403.
        """
        found = self.caller(request)
        if found.admin:
            return found
        if self.keys.has_admin and not found.name:
            raise Refusal(status=401, kind="unauthorized", message="this needs the admin key")
        why = "this key is not an admin key" if self.keys.has_admin else "this server has no admin key"
        raise Refusal(status=403, kind="forbidden", message=f"tasks cannot be changed: {why}")

    def task(self, request: Request, name: str) -> ServedTask:
        """A task that the caller may use.

        Raises:
            Refusal: 401, or 404 for an unknown task, and for one that the caller may not use.
        """
        found = self.service.tasks.get(name, self.caller(request).may)
        record = record_of(request.scope)
        record.task, record.digest = found.name, found.digest
        return found

    def tasks(self, request: Request) -> list[ServedTask]:
        """All tasks that the caller may use.

        Raises:
            Refusal: 401.
        """
        caller = self.caller(request)
        return [task for task in self.service.tasks.all() if caller.may(task.name)]

    def named(self, request: Request, name: str | None) -> str:
        """The name of the task of a request, which may be left out if there is one task only.

        Raises:
            Refusal: 401, or 422.
        """
        if name is not None:
            return name
        tasks = self.tasks(request)
        if len(tasks) != 1:
            message = f"model: missing, expected the name of a task, because there are {len(tasks):,}"
            raise Refusal(status=422, kind="invalid", message=message)
        return tasks[0].name

    async def answer_all(
        self,
        request: Request,
        rows: Sequence[Row],
        *,
        truncate: bool | None = None,
        timeout: float | None = None,
    ) -> list[RowAnswer | Refusal]:
        """The answers to rows of any tasks, in order; what cannot be answered is a refusal in its place.

        If the client closes the connection, the rows leave the queue.

        Raises:
            Refusal: for the entire request.
            ClientDisconnect: there is nobody to answer to.
        """
        work = self.run(request, self.caller(request), rows, truncate=truncate, timeout=timeout)
        return await while_connected(request, work)

    async def run(
        self,
        request: Request,
        caller: Caller,
        rows: Sequence[Row],
        *,
        truncate: bool | None = None,
        timeout: float | None = None,
    ) -> list[RowAnswer | Refusal]:
        """As :meth:`answer_all`, whether or not the client is there.

        Raises:
            Refusal: for the entire request.
        """
        found, timing = await self.service.answer(
            rows,
            truncate=self.settings.truncate if truncate is None else truncate,
            timeout=timeout,
            caller=caller.name,
            visible=caller.may,
        )
        record = record_of(request.scope)
        answered = [each for each in found if isinstance(each, RowAnswer)]
        record.add(rows, timing, answered)
        if self.settings.log_texts:
            record.texts += [(row.text, row.text_pair) for row in rows]
        return found

    async def answer(
        self, request: Request, name: str, given: Sequence[TextPair], *, truncate: bool | None = None
    ) -> Answers:
        """The answers of one task; a row that cannot be answered refuses the request.

        Raises:
            Refusal: for the request or for one of its rows.
            ClientDisconnect: there is nobody to answer to.
        """
        self.task(request, name)
        rows = [Row(task=name, text=each.text, text_pair=each.text_pair) for each in given]
        if not rows:
            raise Refusal(status=400, kind="empty", message="there are no texts: got an empty list")
        found: list[RowAnswer] = []
        for number, each in enumerate(await self.answer_all(request, rows, truncate=truncate)):
            if isinstance(each, Refusal):
                where = f"text {number}: " if len(rows) > 1 else ""
                raise Refusal(
                    status=each.status,
                    kind=each.kind,
                    message=where + each.message,
                    retry_after=each.retry_after,
                )
            found.append(each)
        return Answers(found)


# ------------------------------------------------------------------------------------ JSON and errors


def parsed(body: bytes) -> Any:
    """JSON data.

    Raises:
        Refusal: 400 for what is not JSON, NaN and deep nesting included.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(status=400, kind="malformed_json", message=f"the body is not JSON: {error}") from None


class _Request(Request):
    """A request with a JSON body that was read strictly."""

    async def read(self, max_rows: int) -> None:
        """Read the body; see :func:`json_of`."""
        self._parsed = await json_of(self, max_rows)

    async def json(self) -> Any:
        return self._parsed


async def json_of(request: Request, max_rows: int) -> Any:
    """The JSON data of a request's body.

    Args:
        max_rows: The maximum length of a list in the body's object.

    Raises:
        Refusal: 400, 408, 413 or 415.
    """
    kind = media_type(request.headers)
    if kind != "application/json" and not kind.endswith("+json"):
        raise Refusal(
            status=415,
            kind="unsupported_media_type",
            message=f"got content type {visible(kind)!r}, expected application/json; with curl: "
            "-H 'Content-Type: application/json'",
        )
    refuse_encoding(request)
    found = parsed(await request.body())
    refuse_many(found, max_rows)
    return found


def refuse_many(value: Any, max_rows: int) -> None:
    """Refuse an object with a list that is too long, before anything is done for its items.

    Raises:
        Refusal: 413.
    """
    lists = [each for each in value.values() if isinstance(each, list)] if isinstance(value, dict) else []
    if (longest := max(map(len, lists), default=0)) > max_rows:
        raise Refusal(
            status=413,
            kind="too_many_rows",
            message=f"the request has {longest:,} rows, and the server takes at most {max_rows:,}; "
            "send several requests",
        )


def refuse_encoding(request: Request) -> None:
    """Refuse a compressed body: its size is not known before it is read.

    Raises:
        Refusal: 415.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal(
            status=415,
            kind="unsupported_encoding",
            message=f"got content encoding {visible(encoding)!r}; send the body uncompressed",
        )


def error_response(refusal: Refusal, shape: Shape) -> Response:
    """A refusal as a protocol writes it."""
    headers = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(refusal.retry_after)))
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Json(dict(shape(refusal)), refusal.status, headers)


def own_shape(refusal: Refusal) -> Mapping[str, Any]:
    """The errors of our own protocol."""
    return {"error": {"code": refusal.status, "type": refusal.kind, "message": refusal.message}}


def validated(model: type[_Model], value: Any) -> _Model:
    """JSON data as a model.

    Raises:
        Refusal: 422.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error.errors(), model) from None


def invalid(errors: Sequence[Any], model: Any) -> Refusal:
    """What is wrong with JSON data, in a sentence about the first field that is wrong.

    Args:
        errors: Those of pydantic.
    """
    first = errors[0]
    where = [visible(str(part)) for part in first["loc"]]
    described = getattr(model, "model_fields", {}).get(where[0]) if where else None
    if first["type"] == "extra_forbidden":
        message = f"{'.'.join(where)}: unknown field"
    elif not where:
        message = "got another JSON value, expected an object"
    elif described is not None and described.description:
        problem = "missing" if first["type"] == "missing" and len(where) == 1 else "not valid"
        message = f"{where[0]}: {problem}, expected {described.description}"
    else:
        message = f"{'.'.join(where)}: {first['msg']}"
    return Refusal(status=422, kind="invalid", message=message)


def refuse_late(request: Request) -> None:
    """Refuse a request that came after the server stopped to accept requests.

    Raises:
        Refusal: 503.
    """
    if record_of(request.scope).late:
        raise Refusal(status=503, kind="stopping", message="the server is stopping", retry_after=5)


def router_of(exchange: Exchange, shape: Shape, tag: str) -> APIRouter:
    """A router whose errors have this shape, and whose routes know the caller before they read a body."""

    class ShapedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            model = None if self.body_field is None else self.body_field.field_info.annotation
            is_open = self.path in HEALTH

            async def handler(request: Request) -> Response:
                async def answer() -> Response:
                    if not is_open:
                        exchange.admit(request)
                    if model is None:
                        return await handle(request)
                    strict = _Request(request.scope, request.receive)
                    await strict.read(exchange.service.settings.max_rows)
                    return await handle(strict)

                return await answered(request, answer, shape, model)

            return handler

    return APIRouter(route_class=ShapedRoute, tags=[tag])


async def answered(
    request: Request, answer: Callable[[], Awaitable[Response]], shape: Shape, model: Any = None
) -> Response:
    """The response of ``answer``, or the error that it raises in a protocol's shape."""
    record = record_of(request.scope)
    try:
        return await answer()
    except Refusal as error:
        refusal = error
    except RequestValidationError as error:
        errors = [{**each, "loc": each["loc"][1:]} for each in error.errors()]  # without "body"
        refusal = invalid(errors, model)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    except HTTPException as error:
        refusal = Refusal(status=error.status_code, kind="http", message=str(error.detail))
    except Exception as error:
        refusal = bug(error, record.id)
    record.refusal = refusal.kind
    return error_response(refusal, shape)


def bug(error: Exception, request_id: str) -> Refusal:
    """The refusal for an error that nobody expected. Its message may have a text, so it is not logged."""
    trace = "".join(traceback.format_tb(error.__traceback__))
    logger.error("request %s failed: %s\n%s", request_id, type(error).__name__, trace)
    return Refusal(
        status=500,
        kind="internal",
        message=f"the server failed, which is not your fault; the log has more about request {request_id}",
    )
