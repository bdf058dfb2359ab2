"""The schema of ``ptuning.json`` and of the record in a state dict: all fields, their types and bounds.

A valid digest shows that a record was not changed, but not who wrote it. So all of it is checked before it is
used. The user's own fields (``metrics``, ``extra``) may be any JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from ptuning.errors import ConfigError
from ptuning.model.config import label_name, prompt_from_dict, prompt_to_dict
from ptuning.model.template import MASK
from ptuning.task import MAX_OVERLAP, MAX_WINDOWS, OVERLAP, ProblemType, Task
from ptuning.validation import explain, shortened

_INT64_MAX = 2**63 - 1


def _text(value: Any) -> str:
    """Any string. Pydantic's own check refuses lone surrogates, which file names may contain."""
    if not isinstance(value, str):
        raise ValueError(f"got {shortened(value)}, expected a string")
    return value


def _label(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(f"got {shortened(value)}, expected a string, a number, true or false")
    return value


def _file_name(value: str) -> str:
    parts = PurePosixPath(value).parts
    if not parts or len(value) > 1000 or any(len(part.encode("utf-8", "replace")) > 255 for part in parts):
        raise ValueError(f"got {shortened(value)}, expected a file name of at most 1000 characters")
    if "\0" in value:
        raise ValueError(f"got {shortened(value)}, expected a file name without NUL characters")
    return value


def _filled(text: str) -> str:
    if not text:
        raise ValueError("got '', expected a string of at least one character")
    return text


Text = Annotated[str, PlainValidator(_text)]
Label = Annotated[Any, PlainValidator(_label)]
FileName = Annotated[Text, AfterValidator(_file_name)]
Size = Annotated[int, Field(ge=1, le=_INT64_MAX)]
TokenId = Annotated[int, Field(ge=0, le=_INT64_MAX)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Fields(BaseModel):
    """Strict types: strings and booleans are not accepted as numbers. Unknown fields are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="ignore")


class TaskFields(_Fields):
    """:class:`~ptuning.task.Task`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")
    problem_type: ProblemType
    labels: list[Label] = []
    pair: bool = False
    mean: Finite = 0.0
    scale: Positive = 1.0
    max_length: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    max_windows: Annotated[int, Field(ge=1, le=MAX_WINDOWS)] = 1
    window_overlap: Annotated[float, Field(ge=0, le=MAX_OVERLAP)] = OVERLAP
    temperature: Positive = 1.0
    thresholds: list[Annotated[float, Field(gt=0, lt=1)]] = []


class BackboneFields(_Fields):
    """``BackboneFacts``; ``None`` for facts that are missing in PEFT's files."""

    name: Text | None
    revision: Annotated[Text, AfterValidator(_filled)] | None
    model_type: Annotated[Text, Field(max_length=200)] | None
    num_layers: Size | None
    hidden_size: Size | None
    embedding_size: Size | None
    key_value_size: Size | None
    vocab_size: Size | None
    num_parameters: Size | None = None
    fingerprint: Digest | None


class ClozeFields(_Fields):
    """:class:`~ptuning.adapters.record.ClozeTokens`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")
    words: Annotated[
        list[Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]],
        Field(min_length=1),
    ]
    mask: TokenId | None
    head: Digest


class _Shared(_Fields):
    format_version: Annotated[int, Field(ge=1)]
    task: TaskFields
    prompt: dict[str, Any]
    backbone: BackboneFields
    anchors: list[list[TokenId]]
    cloze: ClozeFields | None = None


class RecordFields(_Shared):
    """``ptuning.json`` without its own digest, which is checked first."""

    metrics: dict[str, Any]
    extra: dict[str, Any]
    versions: dict[Text, Text]
    created: Text
    files: dict[FileName, Digest]


class StateFields(_Shared):
    """The record in a state dict."""

    head: list[Text]
    rate_scales: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    class_weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    sha256: Digest


def check_fields(fields: type[_Shared], values: Mapping[str, Any]) -> None:
    """Check a record against its schema.

    Raises:
        ValueError: one line with the field, what was got and what was expected.
    """
    try:
        fields.model_validate(values)
        Task.from_dict(values["task"])
        _check_choices("prompt", values["prompt"], prompt_to_dict(prompt_from_dict(values["prompt"])))
    except ValidationError as error:
        raise ValueError(_brief(str(explain(error)))) from None
    except ConfigError as error:
        raise ValueError(_brief(str(error))) from None
    _check_tokens(values)


def _check_tokens(values: Mapping[str, Any]) -> None:
    """Refuse token ids that the backbone does not have, and words that do not fit task and template."""
    vocabulary, cloze = values["backbone"]["vocab_size"], values.get("cloze")
    anchors = [each for anchor in values["anchors"] for each in anchor]
    words = [] if cloze is None else [each for label in cloze["words"] for word in label for each in word]
    for name, ids in (("anchors", anchors), ("cloze.words", words)):
        if vocabulary is not None and (strange := [each for each in ids if each >= vocabulary]):
            raise ValueError(f"{name}: got the token id {strange[0]}, expected one below {vocabulary}")
    prompt = prompt_from_dict(values["prompt"])
    if (prompt.head is None) != (cloze is None):
        raise ValueError(
            f"cloze: got {'none' if cloze is None else 'words'}, expected words with a cloze head alone"
        )
    if cloze is None and prompt.depth == "input":
        return
    pieces = [piece.anchor for piece in prompt.insertions if piece.anchor]
    if len(values["anchors"]) != len(pieces):
        raise ValueError(
            f"anchors: got {len(values['anchors'])}, expected {len(pieces)}, as the template has"
        )
    for piece, ids in zip(pieces, values["anchors"], strict=True):
        if piece.replace(MASK, "").strip() and not ids:
            raise ValueError(f"anchors: got no tokens for the words {shortened(piece)} of the template")
    if cloze is None:
        return
    if (got := len(cloze["words"])) != (expected := len(values["task"]["labels"])):
        raise ValueError(f"cloze.words: got those of {got} labels, expected {expected}")
    if cloze["mask"] is not None and anchors.count(cloze["mask"]) != 1:
        raise ValueError(f"cloze.mask: got {cloze['mask']}, expected a token that is once among the anchors")
    assert prompt.head is not None
    _check_words(cloze["words"], values["task"]["labels"], prompt.head.verbalizer)


def _check_words(
    words: Sequence[Sequence[Sequence[int]]], labels: Sequence[Any], verbalizer: Mapping[str, Sequence[str]]
) -> None:
    """Refuse tokens that are not those of the verbalizer's words."""
    names = [label_name(label) for label in labels]
    if strange := [name for name in verbalizer if name not in names]:
        raise ValueError(
            f"prompt.head.verbalizer: got the label {strange[0]!r}, which the task does not have"
        )
    known: dict[frozenset[tuple[int, Fraction]], str] = {}
    for name, its in zip(names, words, strict=True):
        if len(its) != (expected := len(verbalizer.get(name, (name,)))):
            raise ValueError(f"cloze.words: got {len(its)} words of the label {name!r}, expected {expected}")
        shares: dict[int, Fraction] = {}
        for word in its:
            for each in word:
                shares[each] = shares.get(each, Fraction()) + Fraction(1, len(its) * len(word))
        if (other := known.setdefault(frozenset(shares.items()), name)) != name:
            raise ValueError(f"cloze.words: got the same tokens for two labels, {other!r} and {name!r}")


def _brief(sentence: str) -> str:
    """``sentence`` with its middle cut out if it is long."""
    return sentence if len(sentence) <= 500 else f"{sentence[:350]}…{sentence[-149:]}"


def _check_choices(key: str, got: Any, read: Any) -> None:
    """Refuse values that were converted on reading: in a record, "4" is not accepted as 4."""
    if isinstance(got, dict) and isinstance(read, dict):
        for name, value in got.items():
            _check_choices(f"{key}.{name}", value, read.get(name))
    elif got != read or isinstance(got, bool) != isinstance(read, bool):
        raise ValueError(
            f"{key}: got {shortened(got)}, expected what ptuning writes, such as {shortened(read)}"
        )
