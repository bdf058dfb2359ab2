"""Checking what a user wrote, by pydantic, with one sentence for what is wrong.

A configuration class is a :class:`Checked` model, or a dataclass under :func:`checked`: what is wrong is a
:class:`~ptuning.errors.ConfigError` wherever it is made, from a file, an option or in Python.
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
"""Where pydantic's path names the chosen class, which the user did not write."""
_KIND = re.compile(r"int|float|str|bool|none|constrained-\w+|[\w-]+\[.*\]", re.DOTALL)
"""What pydantic calls the alternatives of a value that may be one of several things."""


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("no_number", "Input should be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
"""A whole number. ``True`` is none, though Python counts it as 1."""
Float = Annotated[float, BeforeValidator(_no_bool)]
"""A number. ``True`` is none, though Python counts it as 1."""


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
    """A pydantic model whose complaints are a :class:`~ptuning.errors.ConfigError` of one sentence."""

    model_config = STRICT

    def __init__(self, *args: Any, **values: Any) -> None:
        name = type(self).__name__
        if args:
            first = next(iter(type(self).model_fields))
            raise ConfigError(f"{name}: its options are given by name, such as {name}({first}=…)")
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, known=_names(type(self)))) from None

    # Pydantic then fills in a nested model itself, and so knows the whole path of what is wrong in it.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def checked(kind: C) -> C:
    """Make a dataclass of keyword options refuse what is none of them with a ``ConfigError``.

    Each option is held to its type, as where a file is read: in Python, too, nothing is taken for another.
    ``__post_init__`` comes after that, for what no type says.
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
            raise ConfigError(f"{name}: its options are given by name, such as {name}({known[0]}=…)")
        for option in values:
            if option not in known:
                raise ConfigError(
                    f"{name}: unknown option {option}{_hint(option, dict(zip(known, known, strict=True)))}"
                )
        if missing := [option for option in required if option not in values]:
            raise ConfigError(f"{name}: {missing[0]} is missing, and it has no default")
        own_init(self, **values)
        if own_post is None:
            settle(self)

    def settle(self: Any) -> None:
        for name, own in _kinds(cast(Hashable, kind)).items():
            object.__setattr__(self, name, validated(own, getattr(self, name), name))
        if own_post is not None:
            own_post(self)

    kind.__init__ = init  # type: ignore[misc]
    if own_post is not None:  # which pydantic calls as well
        kind.__post_init__ = settle  # type: ignore[attr-defined]
    kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return kind


@cache
def _kinds(kind: Hashable) -> dict[str, Any]:
    """The types of a dataclass's options."""
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
    """``values`` as an instance of ``kind``, a pydantic model or a dataclass, or a choice of them.

    Args:
        under: The key that ``values`` stand under, for messages.

    Raises:
        ConfigError: one line: the key, what was got, what was expected.
    """
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise ConfigError(explain(error, under, _names(kind))) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _names(kind: Any) -> dict[str, str]:
    """The options of a class, those of a section dotted: what may have been meant by an unknown one.

    Earlier names are among them, with today's as value.
    """
    found: dict[str, str] = {}
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return found
    for name, info in kind.model_fields.items():
        made = info.annotation
        inner = _names(made) if isinstance(made, type) else {}
        dotted = {f"{name}.{each}": f"{name}.{now}" for each, now in inner.items()}
        found |= dotted or {name: name}
    return found | dict(getattr(kind, "OLD_NAMES", {}))


def explain(error: ValidationError, under: str = "", known: Mapping[str, str] | None = None) -> str:
    """Pydantic's first complaint as one sentence.

    Args:
        known: The options there are, dotted, with today's name of each.
    """
    found, *others = sorted(error.errors(), key=_comes_later)
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
            owner = f"; it does not go with {' '.join(chosen)}" if chosen else _hint(key, known or {})
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


def _comes_later(error: Any) -> bool:
    """An option that is missing may be there under a wrong name, which is the better thing to say."""
    return error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument")


def _hint(name: str, known: Mapping[str, str]) -> str:
    """The option that was probably meant; its section may be missing, or wrong."""
    options = list(known)
    last = {option.rpartition(".")[2]: option for option in reversed(options)}
    close = get_close_matches(name, options, n=1) or get_close_matches(name.rpartition(".")[2], last, n=1)
    return f"; did you mean {known[last.get(close[0], close[0])]}?" if close else ""


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
