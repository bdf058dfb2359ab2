"""Parsing of single label cells: switches, lists written as text, numbers in other notations."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from itertools import pairwise
from typing import Any

Item = str | int | float | bool

LONGEST_LIST = 10_000  # characters; Python's parser needs far more memory than that

_ON = frozenset({"1", "1.0", "true", "yes"})
_OFF = frozenset({"0", "0.0", "false", "no"})
_SPACED_NUMBERS = re.compile(r"\[\s*[-+.\deE]+(\s+[-+.\deE]+)*\s*\]")  # as numpy writes an array
_SIDE_BY_SIDE = re.compile(r"""['"]\s*['"]""")
_COMMA = re.compile(r"[-+]?\d+,\d+")
_PLAIN = re.compile(r"[-+]?\d+(\.\d+)?")
_PERCENT = re.compile(r"([-+]?\d+(?:[.,]\d+)?)\s*%")


def switch(value: object) -> bool | None:
    """Whether a cell says that a label applies: 1 or 0, true or false, yes or no; ``None`` for neither."""
    word = str(value).strip().casefold()
    return True if word in _ON else False if word in _OFF else None


def looks_like_list(cell: str) -> bool:
    """Whether a cell has the brackets of a list."""
    cell = cell.strip()
    return len(cell) > 1 and (cell[0], cell[-1]) in {("[", "]"), ("(", ")"), ("{", "}")}


def list_in(cell: str) -> tuple[Item, ...] | None:
    """The flat list that a cell contains in the notation of Python, JSON or numpy; ``None`` if there is none.

    ``"['a', 'b']"``, ``"[0, 1]"``, ``"[0 1]"``, ``"['a' 'b']"``, ``"[true]"`` and ``"[a, b]"`` are lists.
    """
    cell = cell.strip()
    if not looks_like_list(cell) or len(cell) > LONGEST_LIST:
        return None
    found = _parsed(cell)
    if isinstance(found, set | frozenset):
        found = sorted(found, key=str)
    if not isinstance(found, list | tuple) or not all(isinstance(item, Item) for item in found):
        return None
    return tuple(item.strip() if isinstance(item, str) else item for item in found)


def _parsed(cell: str) -> Any:
    if _SPACED_NUMBERS.fullmatch(cell):
        cell = "[" + ", ".join(cell[1:-1].split()) + "]"
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        return _strings(cell) if _side_by_side(cell) else ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        pass
    inner = cell[1:-1]
    if cell[0] != "[" or not inner.strip() or re.search(r"[\[\]{}()'\"]", inner):
        return None
    items = [item.strip() for item in inner.split(",")]
    return items if all(items) else None


def _side_by_side(cell: str) -> bool:
    """Whether there are adjacent strings, which Python would join."""
    if not _SIDE_BY_SIDE.search(cell):
        return False
    kinds = [token.type for token in _tokens(cell)]
    return (tokenize.STRING, tokenize.STRING) in pairwise(kinds)


def _strings(cell: str) -> list[str] | None:
    """Adjacent strings separated by spaces, as written by numpy; ``None`` for anything else."""
    first, *strings, last = _tokens(cell)
    if (first.string, last.string) != ("[", "]") or any(each.type != tokenize.STRING for each in strings):
        return None
    if any(one.end == next_one.start for one, next_one in pairwise(strings)):
        return None  # a quote that was doubled
    return [ast.literal_eval(each.string) for each in strings]


def _tokens(cell: str) -> list[tokenize.TokenInfo]:
    ends = {tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER}
    return [each for each in tokenize.generate_tokens(io.StringIO(cell).readline) if each.type not in ends]


def decimal_comma(cell: str) -> str | None:
    """``3,5`` with a decimal point, or a number without a comma; ``None`` for anything else."""
    cell = cell.strip()
    return cell.replace(",", ".") if _COMMA.fullmatch(cell) or _PLAIN.fullmatch(cell) else None


def could_be_thousands(cell: str) -> bool:
    """Whether ``1,234`` may have a thousands separator."""
    return re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", cell.strip()) is not None


def percentage(cell: str) -> str | None:
    """``80%`` as a share, ``0.8``; ``None`` for anything else."""
    found = _PERCENT.fullmatch(cell.strip())
    return repr(round(float(found[1].replace(",", ".")) / 100, 12)) if found else None


def parts(cell: str, separator: str) -> tuple[str, ...]:
    """The labels between the separators of a cell."""
    return tuple(part.strip() for part in cell.split(separator))
