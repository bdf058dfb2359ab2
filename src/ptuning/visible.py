"""Untrusted text made safe to display: control and invisible characters are shown as escape codes.

Labels and the names of files and models are whatever their author wrote. An escape sequence in one would
colour, move or overwrite what a terminal shows; a bidirectional override shows letters in another order.
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
"""Invisible characters that change how other text is displayed: bidirectional marks and overrides, line
separators, zero-width spaces, tags. The joiners (U+200C, U+200D), which are part of words and emoji, stay.
"""
_HALVES = "\ud800-\udfff"
"""Lone surrogates, which cannot be encoded."""

_FORMULA = re.compile("[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_HIDDEN = re.compile(f"[{_CONTROL}{_FORMAT}{_HALVES}]")
_HIDDEN_BUT_LINES = re.compile(f"(?![\n\t])[{_CONTROL}{_FORMAT}{_HALVES}]")


def visible(text: str, *, lines: bool = False) -> str:
    r"""``text`` with control and invisible characters as escape codes: ``\x1b``, ``\n``, ``\u202e``.

    Args:
        lines: Whether to keep line breaks and tabs.
    """
    return (_HIDDEN_BUT_LINES if lines else _HIDDEN).sub(_code, text)


def json_text(value: Any, indent: int | None = None) -> str:
    r"""``value`` as JSON: non-ASCII letters as they are, invisible characters as escape codes (``\u202e``).

    Raises:
        ValueError: a number that is not finite, which JSON cannot represent.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    return _HIDDEN_BUT_LINES.sub(lambda found: json.dumps(found[0])[1:-1], text)


def cell(value: Any) -> Any:
    """A value made safe for a CSV that a spreadsheet may open, where ``=cmd(…)`` would run as a formula.

    Text that starts like a formula gets an apostrophe in front, as OWASP recommends ("CSV injection");
    numbers do not. Control characters are escaped as in :func:`visible`, except line breaks and tabs.
    """
    if not isinstance(value, str):
        return value
    text = visible(value, lines=True)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _code(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
