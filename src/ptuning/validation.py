"""Checking what a user wrote, by pydantic, with one sentence for what is wrong."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ptuning.errors import ConfigError

_CHOICES = (
    "prompt",
    "encoder",
    "init",
)  # where pydantic's path names the chosen class, which the user did not write


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
    path = ((under,) if under else ()) + found["loc"]
    chosen = [str(part) for before, part in pairwise(path) if before in _CHOICES]
    keys = [str(part) for i, part in enumerate(path) if not (i and path[i - 1] in _CHOICES)]
    key = ".".join(keys) or "configuration"
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
            return f"{key}.{name}: got {found['ctx']['tag']!r}, expected one of {expected}{more}"
        case "union_tag_not_found":
            return f"{key}.{found['ctx']['discriminator'].strip(chr(39))}: missing{more}"
        case "value_error":
            said = f"{found['ctx']['error']}{more}"
            return f"{key}: {said}" if keys else said  # a check of several keys names them itself
    return f"{key}: got {got!r}, expected {_expected(found['msg'])}{more}"


def _expected(message: str) -> str:
    for beginning in ("Input should be ", "Value should be "):
        message = message.removeprefix(beginning)
    return message.split(", unable to")[0].removeprefix("a valid ")
