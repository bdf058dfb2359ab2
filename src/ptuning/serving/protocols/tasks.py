"""The tasks themselves: what there is, and, with an admin key, adding and deleting them."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from ptuning.errors import AdapterTooLarge, ConfigError, OutputError, UserError
from ptuning.serving.access import record_of
from ptuning.serving.limits import media_type
from ptuning.serving.openapi import request_body
from ptuning.serving.protocols.exchange import Exchange, own_shape, router_of
from ptuning.serving.protocols.reading import Strict, json_of, refuse_encoding, validated
from ptuning.serving.protocols.rows import Error
from ptuning.serving.protocols.writing import Json
from ptuning.serving.rows import Refusal
from ptuning.serving.tasks import check_name
from ptuning.serving.uploads import PART, Uploads
from ptuning.task import Label
from ptuning.visible import visible

if TYPE_CHECKING:
    from ptuning.serving.tasks import ServedTask

_T = TypeVar("_T")

ARCHIVES = ("application/zip", "application/x-tar", "application/gzip", "application/octet-stream")
FORM = "multipart/form-data"
FULL = {errno.ENOSPC, errno.EDQUOT}
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Error}, "5XX": {"model": Error}}


class TaskSummary(BaseModel):
    """One task, in a list."""

    task: str
    digest: str
    kind: str
    labels: list[Label]
    pair: bool


class TaskDetails(TaskSummary):
    """One task."""

    max_tokens: int | None
    loaded_at: float
    metrics: dict[str, Any]
    card: str


class Tasks(BaseModel):
    """All tasks that the caller may use."""

    tasks: list[TaskSummary]


class FromHub(Strict):
    """An adapter on the Hub."""

    hub_id: str = Field(description="OWNER/NAME on the Hugging Face Hub")
    revision: str | None = Field(None, description="a branch, tag or commit")


def summary(task: ServedTask) -> dict[str, Any]:
    """A task in a list."""
    return {
        "task": task.name,
        "digest": task.digest,
        "kind": task.task.problem_type,
        "labels": list(task.task.labels),
        "pair": task.task.pair,
    }


def details(task: ServedTask) -> dict[str, Any]:
    """A task by itself. Its source is left out: a folder's path is the server's own business."""
    return {
        **summary(task),
        "max_tokens": task.max_tokens,
        "loaded_at": task.loaded_at,
        "metrics": dict(task.metrics),
        "card": task.card,
    }


def router(exchange: Exchange, uploads: Uploads) -> APIRouter:
    """The routes."""
    made = router_of(exchange, own_shape, "tasks")

    @made.get("/tasks", summary="All tasks", response_model=Tasks, responses=ERRORS)
    async def tasks(request: Request) -> Response:
        return Json({"tasks": [summary(task) for task in exchange.tasks(request)]})

    @made.get("/tasks/{task}", summary="A task", response_model=TaskDetails, responses=ERRORS)
    async def one(task: str, request: Request) -> Response:
        return Json(details(exchange.task(request, task)))

    @made.put(
        "/tasks/{task}",
        summary="Add or replace a task",
        response_model=TaskDetails,
        responses=ERRORS,
        openapi_extra=request_body(FromHub, *ARCHIVES, FORM),
    )
    async def put(task: str, request: Request) -> Response:
        caller = exchange.admin(request)
        try:
            check_name(task)
        except ConfigError as error:
            raise Refusal(status=422, kind="invalid", message=str(error)) from None
        if not caller.may(task):
            message = f"this key may not change the task {task!r}: it is not one of the key's tasks"
            raise Refusal(status=403, kind="forbidden", message=message)
        kind = media_type(request.headers)
        if kind in (*ARCHIVES, FORM):
            async with _received(request, kind == FORM) as archive:
                found = await _changed(uploads.upload(task, archive))
        elif kind != "application/json":
            expected = ", ".join(("application/json", *ARCHIVES, FORM))
            message = f"got content type {visible(kind)!r}, expected one of {expected}"
            raise Refusal(status=415, kind="unsupported_media_type", message=message)
        else:
            wanted = validated(FromHub, await json_of(request, 1))
            found = await _changed(uploads.fetch(task, wanted.hub_id, wanted.revision))
        record = record_of(request.scope)
        record.task, record.digest = found.name, found.digest
        return Json(details(found))

    @made.delete("/tasks/{task}", summary="Delete a task", status_code=204, responses=ERRORS)
    async def delete(task: str, request: Request) -> Response:
        exchange.admin(request)
        exchange.task(request, task)
        await _changed(uploads.delete(task))
        return Response(status_code=204)

    return made


async def _changed(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of a change of the tasks.

    Raises:
        Refusal: 413 for an adapter that is too large, 422 for one that cannot be served, 507 for a full disk,
            500 for another failure to write.
    """
    try:
        return await work
    except AdapterTooLarge as error:
        raise Refusal(status=413, kind="adapter_too_large", message=str(error)) from error
    except UserError as error:
        raise Refusal(status=422, kind="invalid_adapter", message=str(error)) from error
    except OutputError as error:
        full = getattr(error.__cause__, "errno", None) in FULL
        raise Refusal(
            status=507 if full else 500, kind="disk_full" if full else "not_written", message=str(error)
        ) from error


@asynccontextmanager
async def _received(request: Request, form: bool) -> AsyncIterator[Path]:
    """The body, or the first file of a form, as a file on disk."""
    refuse_encoding(request)
    with tempfile.TemporaryDirectory(prefix="ptuning-upload-") as place:
        archive = Path(place) / "archive"
        try:
            with archive.open("wb") as stream:
                async for part in _form_file(request) if form else request.stream():
                    await asyncio.to_thread(stream.write, part)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            full = error.errno in FULL
            raise Refusal(
                status=507 if full else 500,
                kind="disk_full" if full else "not_written",
                message=f"the upload could not be stored: {error.strerror}; nothing was changed",
            ) from error
        yield archive


async def _form_file(request: Request) -> AsyncIterator[bytes]:
    """The first file of a form, in parts."""
    async with request.form(max_files=1, max_fields=0) as form:
        file = next((each for each in form.values() if isinstance(each, UploadFile)), None)
        if file is None:
            raise Refusal(status=422, kind="invalid", message="the form has no file")
        while part := await file.read(PART):
            yield part
