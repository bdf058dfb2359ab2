"""Checking what a user wrote, by pydantic, with one sentence for what is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ptuning.errors import ConfigError

_CHOICES = ("prompt", "encoder", "init")
"""Where pydantic's path names the chosen class, which the user did not write."""
_KIND = re.compile(r"int|float|str|bool|none|constrained-\w+|\w+\[.*\]")
"""What pydantic calls the alternatives of a value that may be one of several things."""


def validated(kind: Any, values: Any, under: str = "") -> Any:
    """``values`` as an instance of ``kind``, a pydantic model or a dataclass, or a choice of them.

    Args:
        under: The key that ``values`` stand under, for messages.

    Raises:
        ConfigError: one line: the key, what was got, what was expected.
    """
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise ConfigError(explain(error, under)) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def explain(error: ValidationError, under: str = "") -> str:
    """Pydantic's first complaint as one sentence."""
    found, *others = error.errors()
    beginning = f"{_key(found['loc'])}."
    if inner := [each for each in others if _key(each["loc"]).startswith(beginning)]:
        found, others = inner[0], inner[1:]  # the alternative that fits, but for something in it
    path = _path(found["loc"], under)
    chosen = [str(part) for before, part in pairwise(path) if before in _CHOICES]
    key = _key(path)
    more = f" (and {len(others)} more)" if others else ""
    got = found["input"]
    match found["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            owner = f"; it does not go with {' '.join(chosen)}" if chosen else ""
            return f"{key}: unknown option{owner}{more}"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{key}: missing, and it has no default{more}"
        case "union_tag_invalid":
            name = found["ctx"]["discriminator"].strip("'")
            expected = found["ctx"]["expected_tags"].replace("'", "")
            return f"{key}.{name}: got {shortened(found['ctx']['tag'])}, expected one of {expected}{more}"
        case "union_tag_not_found":
            return f"{key}.{found['ctx']['discriminator'].strip(chr(39))}: missing{more}"
        case "model_attributes_type":
            expected = "a dictionary of options, or an instance of a class that has them"
            return f"{key}: got {shortened(got)}, expected {expected}{more}"
        case "value_error":
            said = f"{found['ctx']['error']}{more}"
            return f"{key}: {said}" if key else said  # a check of several keys names them itself
    # Of a value that may be one of several things, pydantic says of each why it is not that.
    same = [each for each in others if _key(_path(each["loc"], under)) == key and each["input"] is got]
    expected = " or ".join(dict.fromkeys(_expected(each["msg"]) for each in (found, *same)))
    more = f" (and {len(others) - len(same)} more)" if len(others) > len(same) else ""
    return f"{key or 'configuration'}: got {shortened(got)}, expected {expected}{more}"


def shortened(value: Any, limit: int = 200) -> str:
    """A value as Python writes it, cut to ``limit`` characters so that an error stays one line."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _path(places: Sequence[int | str], under: str) -> tuple[int | str, ...]:
    return ((under,) if under else ()) + tuple(places)


def _key(path: Sequence[int | str]) -> str:
    """A path as the user writes it: without the names that pydantic gives to the choices at a place."""
    plain = (part for i, part in enumerate(path) if not (i and path[i - 1] in _CHOICES))
    return ".".join(str(part) for part in plain if not _KIND.fullmatch(str(part)))


def _expected(message: str) -> str:
    for beginning in ("Input should be ", "Value should be "):
        message = message.removeprefix(beginning)
    return message.split(", unable to")[0].removeprefix("a valid ").replace("tuple", "list")
