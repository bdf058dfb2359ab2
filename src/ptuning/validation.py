"""Validation of configurations by pydantic, with errors of one sentence.

A configuration class is a :class:`Checked` model or a dataclass under :func:`checked`. A wrong value raises a
:class:`~ptuning.errors.ConfigError`, whether it comes from a file, the command line or Python.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, TypeVar, cast, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, core_schema

from ptuning.errors import ConfigError

C = TypeVar("C", bound=type)

STRICT: ConfigDict = {"extra": "forbid", "frozen": True, "allow_inf_nan": False}
_CHOICES = ("prompt", "encoder", "init")
"""Options that are one of several classes. Pydantic's path has the class name after them."""
_KIND = re.compile(r"int|float|str|bool|none|constrained-\w+|[\w-]+\[.*\]", re.DOTALL)
"""Pydantic's names for the alternatives of a union."""


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("no_number", "Input should be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
"""A whole number. ``True`` is refused, although Python counts it as 1."""
Float = Annotated[float, BeforeValidator(_no_bool)]
"""A number. ``True`` is refused, although Python counts it as 1."""


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The type of a text with a few values, as ``Literal``, where these are known at run time only.

    Args:
        words: Gives the values.
    """

    words: Callable[[], Iterable[str]]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def _checked(self, value: Any) -> str:
        known = tuple(self.words())
        if not isinstance(value, str) or value not in known:
            *others, last = map(repr, known)
            expected = f"{', '.join(others)} or {last}"
            raise PydanticCustomError("one_of", "Input should be {expected}", {"expected": expected})
        return value


class Checked(BaseModel):
    """A pydantic model that raises :class:`~ptuning.errors.ConfigError`, one sentence, for wrong options."""

    model_config = STRICT

    def __init__(self, *args: Any, **values: Any) -> None:
        name = type(self).__name__
        if args:
            first = next(iter(type(self).model_fields))
            raise ConfigError(
                f"{name}", got="a positional argument", expected=f"options by name, such as {name}({first}=…)"
            )
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explain(error, known=_option_names(type(self))) from None

    # Makes pydantic build nested models itself, so that its errors have the full path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def checked(kind: C) -> C:
    """A class decorator: a dataclass of keyword options that raises ``ConfigError`` for a wrong one.

    Unknown and missing options are refused, and each value is checked against its type, as for a value from a
    file. ``__post_init__`` runs after that, for checks that types cannot express.
    """
    fields: Any = dataclasses.fields(cast(Any, kind))
    required = [
        each.name
        for each in fields
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    own_init: Callable[..., None] = kind.__init__  # type: ignore[misc]
    own_post: Callable[..., None] | None = getattr(kind, "__post_init__", None)

    @functools.wraps(own_init)
    def init(self: Any, *args: Any, **values: Any) -> None:
        name, known = type(self).__name__, [each.name for each in fields]
        if args:
            raise ConfigError(
                f"{name}",
                got="a positional argument",
                expected=f"options by name, such as {name}({known[0]}=…)",
            )
        for option in values:
            if option not in known:
                hint = _did_you_mean(option, dict(zip(known, known, strict=True)))
                raise ConfigError(f"{name}: unknown option {option}", remedy=hint)
        if missing := [option for option in required if option not in values]:
            raise ConfigError(f"{name}: {missing[0]} is missing, and it has no default")
        own_init(self, **values)
        if own_post is None:
            check_types(self)

    def check_types(self: Any) -> None:
        for name, own in _field_types(cast(Hashable, kind)).items():
            object.__setattr__(self, name, validated(own, getattr(self, name), name))
        if own_post is not None:
            own_post(self)

    kind.__init__ = init  # type: ignore[misc]
    if own_post is not None:  # pydantic calls it too
        kind.__post_init__ = check_types  # type: ignore[attr-defined]
    kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return kind


@cache
def _field_types(kind: Hashable) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    hints = get_type_hints(kind, include_extras=True)
    return {each.name: hints[each.name] for each in dataclasses.fields(cast(Any, kind))}


def current_names(values: Any, old: Mapping[str, str]) -> Any:
    """A mapping of options with earlier names replaced by today's.

    Args:
        old: Today's name by each earlier one.

    Raises:
        ConfigError: an option by both names.
    """
    if not isinstance(values, Mapping):
        return values
    for before, now in old.items():
        if before in values and now in values:
            raise ConfigError(
                f"{now} and {before}: got both, expected one of them; {before} is the earlier name"
            )
    return {old.get(name, name) if isinstance(name, str) else name: value for name, value in values.items()}


def validated(kind: Any, values: Any, under: str = "") -> Any:
    """``values`` as an instance of ``kind``: a pydantic model, a dataclass, or a union of them.

    Args:
        under: The key of ``values`` in messages.

    Raises:
        ConfigError: one line with the key, what was got and what was expected.
    """
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise explain(error, under, _option_names(kind)) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _option_names(kind: Any) -> dict[str, str]:
    """The options of a class, nested ones dotted, to suggest one for an unknown name.

    Earlier names are among the keys, with the current name as the value.
    """
    found: dict[str, str] = {}
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return found
    for name, info in kind.model_fields.items():
        made = info.annotation
        inner = _option_names(made) if isinstance(made, type) else {}
        dotted = {f"{name}.{each}": f"{name}.{now}" for each, now in inner.items()}
        found |= dotted or {name: name}
    return found | dict(getattr(kind, "OLD_NAMES", {}))


def explain(error: ValidationError, under: str = "", known: Mapping[str, str] | None = None) -> ConfigError:
    """Pydantic's first error as an error of ptuning's.

    Args:
        under: The key of the validated value.
        known: All option names, dotted, with the current name of each.
    """
    found, *others = sorted(error.errors(), key=_comes_later)
    prefix = f"{_key(found['loc'])}."
    if inner := [each for each in others if _key(each["loc"]).startswith(prefix)]:
        found, others = inner[0], inner[1:]  # of a union: an error inside the alternative that was meant
    path = _path(found["loc"], under)
    chosen = [str(part) for before, part in pairwise(path) if before in _CHOICES]
    key = _key(path)
    got = found["input"]
    match found["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            hint = f"it does not apply to {' '.join(chosen)}" if chosen else _did_you_mean(key, known or {})
            return ConfigError(f"{key}: unknown option", remedy=_with_count(hint, others))
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return ConfigError(f"{key}: missing, and it has no default", remedy=_with_count(None, others))
        case "union_tag_invalid":
            name = found["ctx"]["discriminator"].strip("'")
            tags = found["ctx"]["expected_tags"].replace("'", "")
            return ConfigError(
                f"{key}.{name}",
                got=shortened(found["ctx"]["tag"]),
                expected=f"one of {tags}",
                remedy=_with_count(None, others),
            )
        case "union_tag_not_found":
            name = found["ctx"]["discriminator"].strip("'")
            return ConfigError(f"{key}.{name}: missing", remedy=_with_count(None, others))
        case "model_attributes_type":
            return ConfigError(
                key,
                got=shortened(got),
                expected="a dictionary of options, or an instance of a class that has them",
                remedy=_with_count(None, others),
            )
        case "value_error":
            inside = found["ctx"]["error"]
            # A check of several keys names them itself.
            named = not key or re.match(rf"{re.escape(key)}(\W|$)", str(getattr(inside, "problem", "")))
            prefix = "" if named else f"{key}: "
            if not isinstance(inside, ConfigError):
                return ConfigError(f"{prefix}{inside}", remedy=_with_count(None, others))
            return ConfigError(
                f"{prefix}{inside.problem}",
                got=inside.got,
                expected=inside.expected,
                remedy=_with_count(inside.remedy, others),
            )
    # Of a union, pydantic has an error for each alternative.
    same = [each for each in others if _key(_path(each["loc"], under)) == key and each["input"] is got]
    return ConfigError(
        key or "configuration",
        got=shortened(got),
        expected=" or ".join(dict.fromkeys(_expected(each["msg"]) for each in (found, *same))),
        remedy=_with_count(None, others[len(same) :]),
    )


def _comes_later(error: Any) -> bool:
    """A missing option may be there under a wrong name, which is the better message."""
    return error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument")


def _with_count(remedy: str | None, others: Sequence[Any]) -> str | None:
    """``remedy``, and how many other options are wrong."""
    more = f"and {len(others)} more wrong {'option' if len(others) == 1 else 'options'}" if others else None
    return "; ".join(filter(None, (remedy, more))) or None


def _did_you_mean(name: str, known: Mapping[str, str]) -> str | None:
    """The option that was probably meant; its section may be missing or wrong."""
    options = list(known)
    last = {option.rpartition(".")[2]: option for option in reversed(options)}
    close = get_close_matches(name, options, n=1) or get_close_matches(name.rpartition(".")[2], last, n=1)
    return f"did you mean {known[last.get(close[0], close[0])]}?" if close else None


def shortened(value: Any, limit: int = 200) -> str:
    """``repr(value)``, cut to ``limit`` characters so that an error stays one line."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _path(places: Sequence[int | str], under: str) -> tuple[int | str, ...]:
    return ((under,) if under else ()) + tuple(places)


def _key(path: Sequence[int | str]) -> str:
    """A path as the user writes it: without pydantic's names for the alternatives of a union."""
    plain = (part for i, part in enumerate(path) if not (i and path[i - 1] in _CHOICES))
    return ".".join(str(part) for part in plain if not _KIND.fullmatch(str(part)))


def _expected(message: str) -> str:
    for prefix in ("Input should be ", "Value should be "):
        message = message.removeprefix(prefix)
    return message.split(", unable to")[0].removeprefix("a valid ").replace("tuple", "list")
