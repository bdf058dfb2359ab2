"""Answers as JSON. The event loop writes small ones only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.responses import JSONResponse

from ptuning.serving.rows import Refusal, RowAnswer

_T = TypeVar("_T")

FEW = 2000
"""Scores that the event loop writes itself: a few milliseconds."""
_PIECE, _FLAT_PIECE = 8, 4096
"""Items of a list that are encoded at once, with lists and objects in them or without: the encoder lets no
other thread run meanwhile."""


class Score(BaseModel):
    """A label and its score."""

    label: str
    score: float


class Json(JSONResponse):
    """A JSON answer. Half of a surrogate pair, which a label may have, becomes its escape code."""

    def render(self, content: Any) -> bytes:
        return json_bytes(content)


def json_bytes(content: Any) -> bytes:
    """A value as JSON."""
    return "".join(_pieces(content)).encode("utf-8", "backslashreplace")


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for number, (name, each) in enumerate(value.items()):
            yield f"{',' if number else ''}{_encoded(name)}:"
            yield from _pieces(each)
        yield "}"
    elif isinstance(value, list) and value:
        size = _PIECE if isinstance(value[0], (list, dict)) else _FLAT_PIECE
        for start in range(0, len(value), size):
            yield ("," if start else "[") + _encoded(value[start : start + size])[1:-1]
        yield "]"
    else:
        yield _encoded(value)


def _encoded(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


async def written(make: Callable[[], _T], answers: Sequence[RowAnswer | Refusal]) -> _T:
    """What ``make`` makes of answers; of many scores, in a thread."""
    scores = sum(len(each.logits) for each in answers if isinstance(each, RowAnswer))
    return make() if scores <= FEW else await asyncio.to_thread(make)
