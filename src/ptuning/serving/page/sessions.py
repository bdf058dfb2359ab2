"""Who uses the page, if the server asks for keys.

The browser gets a random session id in a cookie that scripts cannot read and other sites cannot send
(``HttpOnly``, ``SameSite=Strict``). The key's digest stays in the memory of this process and is checked again
at every request, so a key that is withdrawn ends its sessions, and a cookie that leaks is worth a few hours,
not a key. The price: after a restart, and on another server, the page asks for the key again.

Several servers behind one address use :class:`SignedSessions`: the cookie has the name of the key, the end of
the session and a signature with a secret that they share. The price: a session that the user ends is over in
that browser only; a copied cookie is valid until the session ends or the key is withdrawn.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from ptuning.serving.keys import Caller, Keys, digest
from ptuning.serving.rows import Refusal

COOKIE = "ptuning_session"
LIFETIME = 12 * 3600.0
CAPACITY = 10_000
PER_KEY = 100


@dataclass(kw_only=True)
class Sessions:
    """The sessions of one process.

    Args:
        keys: The keys that the server accepts.
        lifetime: Seconds after which the key is asked for again.
        capacity: Maximum sessions; the oldest ends when there is one more.
        per_key: Maximum sessions of one key; its oldest ends when there is one more.
        clock: Seconds that never go back.
    """

    keys: Keys
    lifetime: float = LIFETIME
    capacity: int = CAPACITY
    per_key: int = PER_KEY
    clock: Callable[[], float] = time.monotonic
    _open: OrderedDict[str, tuple[str, float]] = field(default_factory=OrderedDict, init=False)

    def caller(self, request: Request) -> Caller:
        """Who sent a request of the page.

        Raises:
            Refusal: 401, the page has to ask for a key.
        """
        session = request.cookies.get(COOKIE, "")
        found, end = self._open.get(session, ("", 0.0))
        if found and self.clock() < end:
            return self.keys.caller_of(found)
        self._open.pop(session, None)
        return self.keys.caller(None)

    def start(self, key: str, request: Request, response: Response) -> None:
        """Start a session, if the server asks for keys.

        Raises:
            Refusal: 401, this is not a key.
        """
        if not self.keys.required:
            return
        self.keys.caller_of(found := digest(key))
        own = [session for session, (each, _) in self._open.items() if each == found]
        if len(own) >= self.per_key:
            del self._open[own[0]]
        session = secrets.token_urlsafe(32)
        self._open[session] = (found, self.clock() + self.lifetime)
        while len(self._open) > self.capacity:
            self._open.popitem(last=False)
        _set_cookie(session, request, response)

    def end(self, request: Request, response: Response) -> None:
        """End the session of a request."""
        self._open.pop(request.cookies.get(COOKIE, ""), None)
        response.delete_cookie(COOKIE, path=_path(request))


class SignedSessions:
    """Sessions that every server with the same keys and secret knows; nothing is stored.

    Args:
        keys: The keys that the server accepts.
        secret: At least 32 random bytes.
        clock: Seconds since the epoch.
    """

    def __init__(self, keys: Keys, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self.keys, self._secret, self._clock = keys, secret, clock

    def caller(self, request: Request) -> Caller:
        """Who sent a request of the page.

        Raises:
            Refusal: 401, the page has to ask for a key.
        """
        rest, _, signature = request.cookies.get(COOKIE, "").rpartition(".")
        name, _, end = rest.rpartition(".")
        if end.isascii() and end.isdigit() and len(end) < 12 and self._clock() < int(end):
            for known in self.keys.digests_of(name):
                if hmac.compare_digest(signature.encode(), self._signature(rest, known).encode()):
                    return self.keys.caller_of(known)
        return self.keys.caller(None)

    def start(self, key: str, request: Request, response: Response) -> None:
        """Start a session, if the server asks for keys.

        Raises:
            Refusal: 401, this is not a key.
        """
        if not self.keys.required:
            return
        caller = self.keys.caller_of(found := digest(key))
        rest = f"{caller.name}.{int(self._clock() + LIFETIME)}"
        _set_cookie(f"{rest}.{self._signature(rest, found)}", request, response)

    def end(self, request: Request, response: Response) -> None:
        """End the session of a request, in this browser."""
        response.delete_cookie(COOKIE, path=_path(request))

    def _signature(self, rest: str, known: str) -> str:
        """Of the name of a key, the end of the session, and the key's digest, which is not in the cookie."""
        return hmac.new(self._secret, f"{rest}.{known}".encode(), "sha256").hexdigest()


def _set_cookie(value: str, request: Request, response: Response) -> None:
    response.set_cookie(
        COOKIE,
        value,
        path=_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def _path(request: Request) -> str:
    return f"{request.scope.get('root_path', '')}/"


def check_origin(request: Request) -> None:
    """Refuse a form that another site sent with the user's browser.

    Browsers send ``Sec-Fetch-Site`` to https and localhost, and ``Origin`` with every form; a program such as
    curl sends neither and has no cookie that could be abused.

    Raises:
        Refusal: 403.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not own:
        raise Refusal(status=403, kind="other_site", message="this form was sent by another site")
