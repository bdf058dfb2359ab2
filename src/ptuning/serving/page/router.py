"""The addresses of the page. Each reads a form, asks the service, and renders a template."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from fastapi import APIRouter
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ptuning.data import Example, Format
from ptuning.errors import UserError
from ptuning.serving.page.curl import rows_curl, task_curl
from ptuning.serving.page.files import static_files
from ptuning.serving.page.sessions import Sessions, check_origin
from ptuning.serving.page.tables import NAMES, RowsRead, answers_csv, read_rows
from ptuning.serving.page.tasks import about, summary, task_item, task_list
from ptuning.serving.page.views import (
    SHOWN_BARS,
    AnswerView,
    Trouble,
    answer_or_trouble,
    answer_view,
    stages,
    together,
    totals,
    trouble,
)
from ptuning.serving.rows import Refusal, Row, RowAnswer, Timing
from ptuning.serving.service import Service
from ptuning.serving.settings import Settings
from ptuning.serving.tasks import ServedTask

if TYPE_CHECKING:
    from ptuning.serving.keys import Caller, Keys

SHOWN_ROWS = 200
"""Rows of a table that the page shows; the file has all."""
VIEWS = ("one", "all", "rows", "about")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Vary": "HX-Request, Cookie",
}
HTMX = {
    "allowEval": False,
    "allowScriptTags": False,
    "includeIndicatorStyles": False,
    "historyCacheSize": 0,  # texts do not stay in the browser's storage
    "refreshOnHistoryMiss": True,
    "responseHandling": [{"code": "204", "swap": False}, {"code": "...", "swap": True}],
}
"""htmx's settings: those that a strict policy needs, and errors shown in place."""


def make_page(service: Service, keys: Keys, settings: Settings) -> APIRouter:
    """The router of the page.

    Args:
        keys: The keys that the server accepts. If it requires one, the page asks for it and shows only the
            tasks of that key.
        settings: The limits of the server.
    """
    page = _Page(service, Sessions(keys=keys), settings)
    router = APIRouter(include_in_schema=False)
    for path, handler in (
        ("/", page.home),
        ("/page/tasks", page.tasks),
        ("/page/static/{name}", page.static),
        ("/page/{rest:path}", page.back),
    ):
        router.add_api_route(path, handler, methods=["GET"], response_class=Response)
    for path, handler in (
        ("/page/one", page.one),
        ("/page/all", page.all),
        ("/page/rows", page.rows),
        ("/page/download", page.download),
        ("/page/key", page.key),
        ("/page/forget", page.forget),
    ):
        router.add_api_route(path, handler, methods=["POST"], response_class=Response)
    return router


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a form asked, to show it again."""

    text: str = ""
    text_pair: str = ""
    truncate: bool = True
    only: tuple[str, ...] = ()
    order: str = "name"
    rows: str = ""
    form: str = ""
    column: str = ""
    column_pair: str = ""
    keep: bool = True


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What the page shows below a form: the template and its values, and the status."""

    template: str
    said: str
    values: dict[str, Any]
    status: int = 200
    retry_after: int | None = None


class _Page:
    """The handlers, and what they share."""

    def __init__(self, service: Service, sessions: Sessions, settings: Settings) -> None:
        self._service, self._sessions, self._settings = service, sessions, settings
        self._static = static_files()
        self._templates = Environment(
            loader=PackageLoader("ptuning.serving.page"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(
            htmx=json.dumps(HTMX),
            versions={name: file.version for name, file in self._static.items()},
            shown_bars=SHOWN_BARS,
            shown_rows=SHOWN_ROWS,
            formats=NAMES,
        )

    # ------------------------------------------------------------------------------------------- reading

    async def home(self, request: Request) -> Response:
        try:
            caller = self._sessions.caller(request)
        except Refusal:
            return await self._key_form(request)
        view, name = request.query_params.get("view", "one"), request.query_params.get("task")
        if name is None or view not in VIEWS:
            view = "all"
        return await self._work(request, caller, view, name)

    async def tasks(self, request: Request) -> Response:
        try:
            caller = self._sessions.caller(request)
        except Refusal as refusal:
            return await self._refused(request, refusal)
        params = request.query_params
        start = params.get("start", "0")
        found = await asyncio.to_thread(
            task_list,
            self._visible(caller),
            params.get("q", "")[:200],
            params.getlist("only"),
            int(start) if start.isascii() and start.isdigit() and len(start) < 9 else 0,
        )
        values = {"list": found, "current": params.get("task", ""), "query": params.get("q", "")[:200]}
        return await self._render(request, "_tasks.html", values)

    async def static(self, request: Request) -> Response:
        file = self._static.get(request.path_params["name"])
        return Response("Not found", 404, media_type="text/plain") if file is None else file.response()

    async def back(self, request: Request) -> Response:
        """To the page, from the address of a form that was reloaded or typed."""
        return RedirectResponse(f"{_root(request)}/", 303)

    # ------------------------------------------------------------------------------------------- answers

    async def one(self, request: Request) -> Response:
        return await self._answered(request, "one", self._ask_one)

    async def all(self, request: Request) -> Response:
        return await self._answered(request, "all", self._ask_all)

    async def rows(self, request: Request) -> Response:
        return await self._answered(request, "rows", self._ask_rows)

    async def _answered(
        self, request: Request, view: str, ask: Callable[[Request, Caller, FormData, _Asked], Any]
    ) -> Response:
        try:
            check_origin(request)
            caller = self._sessions.caller(request)
        except Refusal as refusal:
            return await self._refused(request, refusal)
        async with request.form(
            max_files=1, max_fields=20_000, max_part_size=self._settings.max_body_bytes
        ) as form:
            asked, name = _asked(form), _field(form, "task") or None
            try:
                result: _Result = await ask(request, caller, form, asked)
            except Refusal as refusal:
                result = _trouble(trouble(refusal), refusal.status)
            except UserError as error:
                result = _trouble(Trouble(title="These rows cannot be read", message=str(error)), 422)
        if _is_part(request):
            values = {"result": result, **result.values}
            return await self._render(request, "_result.html", values, result)
        return await self._work(request, caller, view, name, asked=asked, result=result)

    async def _ask_one(self, request: Request, caller: Caller, form: FormData, asked: _Asked) -> _Result:
        task = self._service.tasks.get(_field(form, "task"), caller.may)
        row = Row(task=task.name, text=asked.text, text_pair=asked.text_pair if task.task.pair else None)
        (found,), timing = await self._answer([row], caller, asked)
        if isinstance(found, Refusal):
            return _trouble(trouble(found), found.status)
        answer = await asyncio.to_thread(answer_view, found)
        return _Result(
            template="_one.html",
            said=" ".join(filter(None, (f"{task.name}: {answer.headline}", answer.sure))),
            values={
                "answer": answer,
                "stages": stages(timing),
                "max_tokens": task.max_tokens,
                "curl": task_curl(
                    _base(request), row, truncate=asked.truncate, key=self._sessions.keys.required
                ),
            },
        )

    async def _ask_all(self, request: Request, caller: Caller, form: FormData, asked: _Asked) -> _Result:
        if not asked.text.strip():
            raise Refusal(status=422, kind="empty", message="Type a text first.")
        chosen = set(asked.only)
        tasks = [task for task in self._visible(caller) if not chosen or task.name in chosen]
        pair = asked.text_pair if asked.text_pair.strip() else None
        able = [task for task in tasks if pair is not None or not task.task.pair]
        if not able:
            raise Refusal(
                status=422,
                kind="no_task",
                message="These tasks compare two texts: type the second one, too." if tasks else "No task is there.",
            )
        rows = [
            Row(task=task.name, text=asked.text, text_pair=pair if task.task.pair else None) for task in able
        ]
        found, timing = await self._answer(rows, caller, asked)
        answers = await asyncio.to_thread(
            lambda: [answer_or_trouble(row.task, each) for row, each in zip(rows, found, strict=True)]
        )
        if asked.order == "sure":
            answers.sort(key=_certainty)
        refused = sum(isinstance(each, Trouble) for each in answers)
        return _Result(
            template="_all.html",
            said=f"{len(answers) - refused} tasks answered",
            values={
                "answers": answers,
                "refused": refused,
                "unasked": len(tasks) - len(able),
                "stages": stages(timing),
                "tokens": sum(each.tokens for each in answers if isinstance(each, AnswerView)),
                "curl": rows_curl(
                    _base(request), rows, truncate=asked.truncate, key=self._sessions.keys.required
                ),
            },
        )

    async def _ask_rows(self, request: Request, caller: Caller, form: FormData, asked: _Asked) -> _Result:
        task = self._service.tasks.get(_field(form, "task"), caller.may)
        file = form.get("file")
        name, content = "", asked.rows.encode("utf-8", "replace")
        if isinstance(file, UploadFile) and file.filename:
            name, content = file.filename, await file.read()
        if not content.strip():
            raise Refusal(status=422, kind="empty", message="Paste rows, or choose a file first.")
        read = await asyncio.to_thread(
            read_rows,
            content,
            name,
            form=_format(asked.form),
            pair=task.task.pair,
            text=asked.column,
            text_b=asked.column_pair,
            limit=self._settings.max_rows,
        )
        rows = [
            Row(task=task.name, text=each.text, text_pair=each.text_b if task.task.pair else None)
            for each in read.examples
        ]
        found, timing = await self._answer(rows, caller, asked)
        values = await asyncio.to_thread(self._table, task, read, found, asked)
        values |= {
            "stages": stages(timing),
            "curl": rows_curl(_base(request), rows, truncate=asked.truncate, key=self._sessions.keys.required),
        }
        return _Result(template="_rows.html", said=f"{values['totals'].answered} rows answered", values=values)

    def _table(
        self, task: ServedTask, read: RowsRead, found: Sequence[RowAnswer | Refusal], asked: _Asked
    ) -> dict[str, Any]:
        shown = list(zip(read.examples, found, strict=True))[:SHOWN_ROWS]
        return {
            "table": [(each.row, each, answer_or_trouble(task.name, answer)) for each, answer in shown],
            "totals": totals(found),
            "rows": len(found),
            "notes": [str(note) for note in read.notes],
            "form": NAMES[read.form],
            "csv": answers_csv(task.task, read.examples, found, keep=asked.keep),
            "file_name": f"{task.name}.csv",
        }

    async def _answer(
        self, rows: Sequence[Row], caller: Caller, asked: _Asked
    ) -> tuple[list[RowAnswer | Refusal], Timing]:
        """The answers to any number of rows, in as many requests as the server's limit needs."""
        answers: list[RowAnswer | Refusal] = []
        timings: list[Timing] = []
        for start in range(0, len(rows), self._settings.max_rows):
            found, timing = await self._service.answer(
                rows[start : start + self._settings.max_rows],
                truncate=asked.truncate,
                caller=caller.name,
                visible=caller.may,
            )
            answers += found
            timings.append(timing)
        return answers, together(timings)

    async def download(self, request: Request) -> Response:
        """The table that the page shows, as a file. It is in the page; nothing is kept on the server."""
        try:
            check_origin(request)
            self._sessions.caller(request)
        except Refusal as refusal:
            return await self._refused(request, refusal)
        async with request.form(max_files=0, max_fields=4, max_part_size=self._settings.max_body_bytes) as form:
            text = _field(form, "csv")  # forms send line breaks as CR LF; the file has LF
            name = "".join(each if each.isascii() and each not in '"\\/%;' and each.isprintable() else "_"
                           for each in _field(form, "name")[:128])  # fmt: skip
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{name or "answers.csv"}"'}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    # ---------------------------------------------------------------------------------------------- keys

    async def key(self, request: Request) -> Response:
        try:
            check_origin(request)
        except Refusal as refusal:
            return await self._refused(request, refusal)
        async with request.form(max_files=0, max_fields=4) as form:
            key = _field(form, "key").strip()
        response = RedirectResponse(f"{_root(request)}/", 303, headers=HEADERS)
        try:
            self._sessions.start(key, request, response)
        except Refusal as refusal:
            return await self._key_form(request, trouble(refusal))
        return response

    async def forget(self, request: Request) -> Response:
        try:
            check_origin(request)
        except Refusal as refusal:
            return await self._refused(request, refusal)
        response = RedirectResponse(f"{_root(request)}/", 303, headers=HEADERS)
        self._sessions.end(request, response)
        return response

    # --------------------------------------------------------------------------------------------- pages

    def _visible(self, caller: Caller) -> list[ServedTask]:
        return [task for task in self._service.tasks.all() if caller.may(task.name)]

    async def _work(
        self,
        request: Request,
        caller: Caller,
        view: str,
        name: str | None,
        *,
        asked: _Asked | None = None,
        result: _Result | None = None,
    ) -> Response:
        """The page, or its main part if htmx asks for that."""
        tasks = self._visible(caller)
        task = None
        if name is not None and view != "all":
            try:
                task = self._service.tasks.get(name, caller.may)
            except Refusal as refusal:
                view, result = "none", _trouble(trouble(refusal), refusal.status)
        values: dict[str, Any] = {
            "view": view,
            "task": task,
            "item": None if task is None else task_item(task),
            "summary": "" if task is None else summary(task.task),
            "count": len(tasks),
            "pairs": sum(each.task.pair for each in tasks),
            "asked": asked or _Asked(),
            "max_rows": self._settings.max_rows,
            "result": result,
            **({} if result is None else result.values),
        }
        if view == "about" and task is not None:
            values["about"] = await asyncio.to_thread(about, task)
        if _is_part(request):
            return await self._render(request, "_work.html", values, result)
        query = request.query_params.get("q", "")[:200]
        values |= {
            "list": await asyncio.to_thread(task_list, tasks, query, values["asked"].only),
            "current": "" if task is None else task.name,
            "query": query,
            "failures": dict(self._service.tasks.failures) if caller.may_all else {},
            "signed_in": caller.name if self._sessions.keys.required else None,
        }
        return await self._render(request, "page.html", values, result)

    async def _key_form(self, request: Request, problem: Trouble | None = None) -> Response:
        status = 200 if problem is None else 401
        return await self._render(request, "key.html", {"trouble": problem}, status=status)

    async def _refused(self, request: Request, refusal: Refusal) -> Response:
        """For a form that was not accepted at all."""
        result = _trouble(trouble(refusal), refusal.status)
        template = "_result.html" if _is_part(request) else "refused.html"
        return await self._render(request, template, {"result": result, **result.values}, result)

    async def _render(
        self,
        request: Request,
        template: str,
        values: dict[str, Any],
        result: _Result | None = None,
        *,
        status: int = 200,
    ) -> HTMLResponse:
        made = self._templates.get_template(template)
        text = await asyncio.to_thread(made.render, root=_root(request), part=_is_part(request), **values)
        headers = dict(HEADERS)
        if result is not None:
            status = result.status
            if result.retry_after is not None:
                headers["Retry-After"] = str(result.retry_after)
        return HTMLResponse(text, status, headers=headers)


# -------------------------------------------------------------------------------------------- requests


def _is_part(request: Request) -> bool:
    """Whether htmx asks for a part of the page."""
    return "hx-request" in request.headers and "hx-history-restore-request" not in request.headers


def _root(request: Request) -> str:
    """The path in front of all addresses, if a proxy has one."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _field(form: FormData, name: str) -> str:
    """A field as text with the line breaks that were typed."""
    value = form.get(name)
    return value.replace("\r\n", "\n") if isinstance(value, str) else ""


def _asked(form: FormData) -> _Asked:
    return _Asked(
        text=_field(form, "text"),
        text_pair=_field(form, "text_pair"),
        truncate=_field(form, "truncate") == "yes",
        only=tuple(each for each in form.getlist("only") if isinstance(each, str)),
        order=_field(form, "order"),
        rows=_field(form, "rows"),
        form=_field(form, "format"),
        column=_field(form, "column").strip(),
        column_pair=_field(form, "column_pair").strip(),
        keep=_field(form, "keep") == "yes",
    )


def _format(name: str) -> Format | None:
    return next((form for form in NAMES if form == name), None)


def _trouble(problem: Trouble, status: int) -> _Result:
    return _Result(
        template="_trouble.html",
        said="",
        values={"trouble": problem},
        status=status,
        retry_after=problem.retry_after,
    )


def _certainty(found: AnswerView | Trouble) -> tuple[int, float]:
    """Most certain first, then numbers, then refusals."""
    if isinstance(found, Trouble):
        return 2, 0.0
    return (1, 0.0) if found.score is None else (0, -found.score)
