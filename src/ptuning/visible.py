"""Text of others as a terminal may show it: characters that would act on it, or hide something, as codes.

A label, a file's name or a model's is whatever its author wrote. An escape sequence in it would colour,
move or overwrite what a terminal shows; a bidirectional override shows other letters than there are.
"""

from __future__ import annotations

import json
import re
from typing import Any

_CONTROL = "\x00-\x1f\x7f-\x9f"
"""C0, DEL and C1."""
_FORMAT = (
    "\xad\u061c\u070f\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\U000e0000-\U000e0fff"
)
"""What has no shape of its own and changes what is seen: bidirectional marks and overrides, separators of
lines, blanks of no width, tags. The joiners (U+200C, U+200D), which words and emoji are written with, stay.
"""
_HALVES = "\ud800-\udfff"
"""Halves of a character, which no encoding takes."""

_FORMULA = re.compile("[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_HIDDEN = re.compile(f"[{_CONTROL}{_FORMAT}{_HALVES}]")
_HIDDEN_BUT_LINES = re.compile(f"(?![\n\t])[{_CONTROL}{_FORMAT}{_HALVES}]")


def visible(text: str, *, lines: bool = False) -> str:
    r"""``text`` with what cannot be seen as Python writes it: ``\x1b``, ``\n``, ``\u202e``.

    Args:
        lines: Leave line breaks and tabs as they are, in a text of several lines.
    """
    return (_HIDDEN_BUT_LINES if lines else _HIDDEN).sub(_code, text)


def json_text(value: Any, indent: int | None = None) -> str:
    r"""``value`` as JSON, letters of every script as they are, and what cannot be seen as ``\u202e``.

    Raises:
        ValueError: a number that is not finite: it is no JSON.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    return _HIDDEN_BUT_LINES.sub(lambda found: json.dumps(found[0])[1:-1], text)


def cell(value: Any) -> Any:
    """A value for a table that a spreadsheet may open, which runs a text such as ``=cmd(…)`` as a formula.

    A text that begins one gets an apostrophe in front, as OWASP has it ("CSV injection"); a number stays one.
    Control characters are codes, as in :func:`visible`, but for line breaks and tabs, which CSV can hold.
    """
    if not isinstance(value, str):
        return value
    text = visible(value, lines=True)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _code(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
