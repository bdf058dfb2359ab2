"""The page's static files, read once, with headers that let browsers keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from starlette.responses import Response

_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


@dataclass(frozen=True, kw_only=True)
class StaticFile:
    """One file.

    Attributes:
        version: Part of its digest. It is in the file's address, so a new version has a new address.
    """

    content: bytes
    media_type: str
    version: str

    def response(self) -> Response:
        headers = {
            "Cache-Control": "public, max-age=31536000, immutable",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(self.content, media_type=self.media_type, headers=headers)


def static_files() -> Mapping[str, StaticFile]:
    """The files by name."""
    found = {}
    for file in (files("ptuning.serving.page") / "static").iterdir():
        kind = file.name.rpartition(".")[2]
        if kind in _TYPES:
            content = file.read_bytes()
            version = sha256(content).hexdigest()[:12]
            found[file.name] = StaticFile(content=content, media_type=_TYPES[kind], version=version)
    return found
