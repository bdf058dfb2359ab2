"""JSON from clients, read strictly: errors are one sentence, and what is too long is not looked into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json
from starlette.requests import Request

from ptuning.serving.limits import media_type
from ptuning.serving.rows import Refusal
from ptuning.visible import visible

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)

MAX_FIELDS = 100
"""Of a JSON object. A model would report every one that it does not know, which takes seconds."""


class _Checked(BaseModel):
    """JSON data from a client. Lists have to be ``Few``: the first error in them is enough."""

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", "an object with too many fields")
        return value


class Strict(_Checked):
    """A request of our own protocol: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Lenient(_Checked):
    """A request of another server's protocol: fields that mean nothing here are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


Few = Annotated[list[_T], Field(fail_fast=True)]
"""A list in a request. Otherwise a million wrong items would be a million errors."""


class TextPair(Strict):
    """A text, or a pair of texts, as transformers' pipeline takes them."""

    text: str
    text_pair: str | None = None


Input = str | TextPair
Inputs = Annotated[
    Input | Few[Input],
    Field(description='a text, a {"text", "text_pair"} object, or a list of these'),
]
"""What other servers' protocols take: one input or several."""


def pairs_of(given: Input | list[Input]) -> Sequence[TextPair]:
    """The texts of a request."""
    texts = given if isinstance(given, list) else [given]
    return [TextPair(text=each) if isinstance(each, str) else each for each in texts]


class ForModel(Lenient):
    """Texts for the task that ``model`` names."""

    model: str | None = Field(
        None, description="the name of a task; it may be left out if there is one task only"
    )
    input: Inputs


def parsed(body: bytes) -> Any:
    """JSON data.

    Raises:
        Refusal: 400 for what is not JSON, NaN and deep nesting included.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(status=400, kind="malformed_json", message=f"the body is not JSON: {error}") from None


class JsonRequest(Request):
    """A request with a JSON body that was read strictly."""

    async def read(self, max_rows: int) -> None:
        """Read the body; see :func:`json_of`."""
        self._parsed = await json_of(self, max_rows)

    async def json(self) -> Any:
        return self._parsed


async def json_of(request: Request, max_rows: int) -> Any:
    """The JSON data of a request's body.

    Args:
        max_rows: The maximum length of a list in the body's object.

    Raises:
        Refusal: 400, 408, 413 or 415.
    """
    kind = media_type(request.headers)
    if kind != "application/json" and not kind.endswith("+json"):
        raise Refusal(
            status=415,
            kind="unsupported_media_type",
            message=f"got content type {visible(kind)!r}, expected application/json; with curl: "
            "-H 'Content-Type: application/json'",
        )
    refuse_encoding(request)
    found = parsed(await request.body())
    refuse_many(found, max_rows)
    return found


def refuse_many(value: Any, max_rows: int) -> None:
    """Refuse an object with a list that is too long, before anything is done for its items.

    Raises:
        Refusal: 413.
    """
    lists = [each for each in value.values() if isinstance(each, list)] if isinstance(value, dict) else []
    if (longest := max(map(len, lists), default=0)) > max_rows:
        raise Refusal(
            status=413,
            kind="too_many_rows",
            message=f"the request has {longest:,} rows, and the server takes at most {max_rows:,}; "
            "send several requests",
        )


def refuse_encoding(request: Request) -> None:
    """Refuse a compressed body: its size is not known before it is read.

    Raises:
        Refusal: 415.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal(
            status=415,
            kind="unsupported_encoding",
            message=f"got content encoding {visible(encoding)!r}; send the body uncompressed",
        )


def validated(model: type[_Model], value: Any) -> _Model:
    """JSON data as a model.

    Raises:
        Refusal: 422.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error.errors(), model) from None


def invalid(errors: Sequence[Any], model: Any) -> Refusal:
    """What is wrong with JSON data, in a sentence about the first field that is wrong.

    Args:
        errors: Those of pydantic.
    """
    first = errors[0]
    where = [visible(str(part)) for part in first["loc"]]
    described = getattr(model, "model_fields", {}).get(where[0]) if where else None
    if first["type"] == "extra_forbidden":
        message = f"{'.'.join(where)}: unknown field"
    elif not where:
        message = "got another JSON value, expected an object"
    elif described is not None and described.description:
        problem = "missing" if first["type"] == "missing" and len(where) == 1 else "not valid"
        message = f"{where[0]}: {problem}, expected {described.description}"
    else:
        message = f"{'.'.join(where)}: {first['msg']}"
    return Refusal(status=422, kind="invalid", message=message)
