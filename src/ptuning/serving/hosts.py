"""The names under which a server that needs no key may be asked.

A page of another site can make a browser resolve that site's own name to a loopback address ("DNS
rebinding"), and then read what a server on this machine answers. The ``Host`` header still has that name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from ptuning.serving.access import record_of
from ptuning.serving.limits import App, Receive, Send
from ptuning.serving.rows import Refusal
from ptuning.visible import visible


def is_loopback(host: str) -> bool:
    """Whether a name or address is one of this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LoopbackOnly:
    """Refuses requests for other hosts; an ASGI middleware.

    Args:
        app: The application.
        answer: Makes the response of a refusal.
    """

    def __init__(self, app: App, answer: Callable[[Refusal], Response]) -> None:
        self.app, self.answer = app, answer

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_loopback(
            host := _without_port(Headers(scope=scope).get("host", ""))
        ):
            await self.app(scope, receive, send)
            return
        refusal = Refusal(
            status=421,
            kind="other_host",
            message=f"got the host {visible(host[:200])!r}, expected localhost or 127.0.0.1, because this "
            "server needs no key; for other names start it with --keys, or with --no_auth",
        )
        record_of(scope).refusal = refusal.kind
        await self.answer(refusal)(scope, receive, send)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
