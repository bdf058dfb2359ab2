"""Templates, and the headers of what they become."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from ptuning.serving.page.asking import Result
from ptuning.serving.page.files import StaticFile
from ptuning.serving.page.tables import HEADERS as FIRST_ROWS
from ptuning.serving.page.tables import NAMES
from ptuning.serving.page.views import SHOWN_BARS

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # not "no-referrer": forms would say that they are from nowhere
    "Vary": "HX-Request, Cookie",
    "X-Content-Type-Options": "nosniff",
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


class Templates:
    """Renders templates, outside the event loop."""

    def __init__(self, static: Mapping[str, StaticFile]) -> None:
        self._environment = Environment(
            loader=PackageLoader("ptuning.serving.page"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(
            htmx=json.dumps(HTMX),
            versions={name: file.version for name, file in static.items()},
            shown_bars=SHOWN_BARS,
            formats=NAMES,
            first_rows=FIRST_ROWS,
        )

    async def response(
        self, request: Request, template: str, values: dict[str, Any], result: Result | None = None
    ) -> HTMLResponse:
        """A template as a response.

        Args:
            result: Its values are the template's too, and its status is the response's.
        """
        known = {"result": result, "root": root_of(request), "part": is_part(request), **values}
        if result is not None:
            known |= result.values
        made = self._environment.get_template(template)
        text = await asyncio.to_thread(made.render, known)
        headers = dict(HEADERS)
        if result is not None and result.retry_after is not None:
            headers["Retry-After"] = str(result.retry_after)
        return HTMLResponse(text, 200 if result is None else result.status, headers=headers)


def is_part(request: Request) -> bool:
    """Whether htmx asks for a part of the page."""
    return "hx-request" in request.headers and "hx-history-restore-request" not in request.headers


def root_of(request: Request) -> str:
    """The path in front of all addresses, if a proxy has one."""
    return str(request.scope.get("root_path", "")).rstrip("/")
