"""The addresses of the page."""

from __future__ import annotations

import asyncio
import string
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from ptuning.errors import UserError
from ptuning.serving.access import CLIENT_GONE, record_of
from ptuning.serving.keys import Caller
from ptuning.serving.limits import HttpSettings
from ptuning.serving.page.asking import Question, Result, refused
from ptuning.serving.page.files import static_files
from ptuning.serving.page.forms import Asked, asked, text_of
from ptuning.serving.page.rendering import HEADERS, Templates, is_part, root_of
from ptuning.serving.page.sessions import Sessions, SignedSessions, check_origin
from ptuning.serving.page.tasks import about, summary, task_item, task_list
from ptuning.serving.page.views import Trouble, trouble
from ptuning.serving.protocols.connected import while_connected
from ptuning.serving.protocols.exchange import bug, refuse_late
from ptuning.serving.protocols.health import failures_of
from ptuning.serving.rows import Refusal, RowAnswer
from ptuning.serving.service import Service
from ptuning.serving.tasks import ServedTask

Handler = Callable[[Request], Awaitable[Response]]

VIEWS = ("one", "rows", "about")
MAX_QUERY = 200
MAX_FIELDS = 20_000
"""Fields of a form: one per task that is ticked."""


def make_page(service: Service, sessions: Sessions | SignedSessions, settings: HttpSettings) -> APIRouter:
    """The router of the page.

    Args:
        service: Answers rows.
        sessions: Of the keys that the server accepts. If it requires one, the page asks for it and shows
            only the tasks of that key.
        settings: Says whether texts that are too long are cut, unless the user says otherwise.
    """
    page = _Page(service, sessions, settings)
    router = APIRouter(include_in_schema=False)

    def add(method: str, path: str, handler: Handler) -> None:
        @wraps(handler)
        async def safe(request: Request) -> Response:
            try:
                refuse_late(request)
                if method == "POST":
                    check_origin(request)
                return await handler(request)
            except Refusal as refusal:
                return await page.refusal(request, refusal)
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except HTTPException as error:  # a form that cannot be parsed
                unread = Refusal(status=error.status_code, kind="http", message=str(error.detail))
                return await page.refusal(request, unread)
            except Exception as error:
                return await page.refusal(request, bug(error, record_of(request.scope).id))

        methods = ["GET", "HEAD"] if path == "/" else [method]
        router.add_api_route(path, safe, methods=methods, response_class=Response)

    add("GET", "/", page.home)
    add("GET", "/page/tasks", page.tasks)
    add("GET", "/page/static/{name}", page.static)
    add("GET", "/page/{rest:path}", page.back)
    add("POST", "/page/one", page.one)
    add("POST", "/page/all", page.all)
    add("POST", "/page/rows", page.rows)
    add("POST", "/page/download", page.download)
    add("POST", "/page/key", page.key)
    add("POST", "/page/forget", page.forget)
    return router


class _Page:
    """The handlers, and what they share."""

    def __init__(self, service: Service, sessions: Sessions | SignedSessions, settings: HttpSettings) -> None:
        self._service, self._sessions, self._settings = service, sessions, settings
        self._static = static_files()
        self._templates = Templates(self._static)

    # ------------------------------------------------------------------------------------------- reading

    async def home(self, request: Request) -> Response:
        try:
            caller = self._sessions.caller(request)
        except Refusal:
            return await self._templates.response(request, "key.html", {"trouble": None})
        name, view = request.query_params.get("task"), request.query_params.get("view", "one")
        if name is None:
            return await self._work(request, caller, "all")
        return await self._work(request, caller, view if view in VIEWS else "one", name)

    async def tasks(self, request: Request) -> Response:
        """A part of the list of tasks."""
        params, caller = request.query_params, self._sessions.caller(request)
        start = params.get("start", "0")
        query, current = params.get("q", "")[:MAX_QUERY], _task_of(request.headers.get("hx-current-url", ""))
        found = await asyncio.to_thread(
            task_list,
            self._visible(caller),
            query,
            current=current,
            ticked=params.getlist("only"),
            start=int(start) if start.isascii() and start.isdigit() and len(start) < 9 else 0,
        )
        values = {"list": found, "current": current, "query": query}
        return await self._templates.response(request, "_tasks.html", values)

    async def static(self, request: Request) -> Response:
        file = self._static.get(request.path_params["name"])
        return Response("Not found", 404, media_type="text/plain") if file is None else file.response()

    async def back(self, request: Request) -> Response:
        """To the page, from the address of a form that was reloaded or typed."""
        return RedirectResponse(f"{root_of(request)}/", 303)

    # ------------------------------------------------------------------------------------------- answers

    async def one(self, request: Request) -> Response:
        return await self._answered(request, "one", lambda caller, question: question.one())

    async def all(self, request: Request) -> Response:
        return await self._answered(
            request, "all", lambda caller, question: question.all(self._visible(caller))
        )

    async def rows(self, request: Request) -> Response:
        return await self._answered(request, "rows", lambda caller, question: question.rows())

    async def _answered(
        self, request: Request, view: str, ask: Callable[[Caller, Question], Coroutine[Any, Any, Result]]
    ) -> Response:
        caller, record = self._sessions.caller(request), record_of(request.scope)
        record.caller = caller.name
        async with self._form(request) as form:
            given = asked(form)
            question = Question(
                service=self._service,
                caller=caller,
                asked=given,
                base=str(request.base_url).rstrip("/"),
                key=self._sessions.keys.required,
            )
            try:
                result = await while_connected(request, ask(caller, question))
            except Refusal as refusal:
                record.refusal, result = refusal.kind, refused(trouble(refusal), refusal.status)
            except UserError as error:
                result = refused(Trouble(title="These rows cannot be read", message=str(error)), 422)
        record.task = "" if view == "all" or not question.answered else given.task
        for rows, found, timing in question.answered:
            record.add(rows, timing, [each for each in found if isinstance(each, RowAnswer)])
            if self._settings.log_texts:
                record.texts += [(row.text, row.text_pair) for row in rows]
        if is_part(request):
            return await self._templates.response(request, "_result.html", {}, result)
        return await self._work(request, caller, view, given.task, given=given, result=result)

    async def download(self, request: Request) -> Response:
        """The table that the page shows, as a file. The page has it; nothing is kept on the server."""
        self._sessions.caller(request)
        async with self._form(request) as form:
            text, name = text_of(form, "csv"), _file_name(text_of(form, "name"))
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    # ---------------------------------------------------------------------------------------------- keys

    async def key(self, request: Request) -> Response:
        """Start a session."""
        async with self._form(request) as form:
            key = text_of(form, "key").strip()
        response = RedirectResponse(f"{root_of(request)}/", 303, headers=HEADERS)
        try:
            self._sessions.start(key, request, response)
        except Refusal as refusal:
            result = refused(trouble(refusal), refusal.status)
            return await self._templates.response(request, "key.html", {}, result)
        return response

    async def forget(self, request: Request) -> Response:
        """End a session."""
        response = RedirectResponse(f"{root_of(request)}/", 303, headers=HEADERS)
        self._sessions.end(request, response)
        return response

    # --------------------------------------------------------------------------------------------- pages

    async def refusal(self, request: Request, refusal: Refusal) -> Response:
        """For a request that was not accepted at all."""
        record_of(request.scope).refusal = refusal.kind
        result = refused(trouble(refusal), refusal.status)
        template = "_result.html" if is_part(request) else "refused.html"
        return await self._templates.response(request, template, {}, result)

    async def _work(
        self,
        request: Request,
        caller: Caller,
        view: str,
        name: str | None = None,
        *,
        given: Asked | None = None,
        result: Result | None = None,
    ) -> Response:
        """The page, or its main part if htmx asks for that."""
        tasks, task = self._visible(caller), None
        if view != "all":
            try:
                task = self._service.tasks.get(name or "", caller.may)
            except Refusal as refusal:
                view, result = "none", refused(trouble(refusal), refusal.status)
        given = given or Asked(truncate=self._settings.truncate)
        values: dict[str, Any] = {
            "view": view,
            "task": task,
            "item": None if task is None else task_item(task),
            "summary": "" if task is None else summary(task.task),
            "count": len(tasks),
            "pairs": sum(each.task.pair for each in tasks),
            "asked": given,
            "max_rows": self._service.settings.max_rows,
        }
        if view == "about" and task is not None:
            values["about"] = await asyncio.to_thread(about, task)
        if is_part(request):
            return await self._templates.response(request, "_work.html", values, result)
        query = request.query_params.get("q", "")[:MAX_QUERY]
        current = "" if task is None else task.name
        values |= {
            "query": query,
            "current": current,
            "list": await asyncio.to_thread(task_list, tasks, query, current=current, ticked=given.only),
            "failures": failures_of(self._service) if caller.may_all else {},
            "signed_in": caller.name if self._sessions.keys.required else None,
        }
        return await self._templates.response(request, "page.html", values, result)

    def _visible(self, caller: Caller) -> list[ServedTask]:
        return [task for task in self._service.tasks.all() if caller.may(task.name)]

    def _form(self, request: Request) -> Any:
        return request.form(
            max_files=1, max_fields=MAX_FIELDS, max_part_size=self._service.settings.max_body_bytes
        )


def _task_of(address: str) -> str:
    """The task of the page with this address."""
    return parse_qs(address.partition("?")[2]).get("task", [""])[0]


def _file_name(name: str) -> str:
    """A name for a download: what is not a plain character becomes ``_``."""
    plain = string.ascii_letters + string.digits + "._- "
    return "".join(each if each in plain else "_" for each in name[:128])
