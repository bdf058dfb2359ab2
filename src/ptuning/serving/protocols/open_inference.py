"""The Open Inference Protocol, version 2, as KServe and Triton's clients speak it.

A task takes the tensors ``text`` and, for pairs, ``text_pair`` (``BYTES``, ``[N]``). It answers with
``label`` (``BYTES``, ``[N]``) and ``probabilities`` (``FP32``, ``[N, C]``), or with ``value`` (``FP64``,
``[N]``) if it has no labels. A multi-label task's ``label`` is a JSON list of the labels above their
threshold. Tensors may be binary (the extension ``binary_tensor_data``).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from ptuning import __version__
from ptuning.serving.openapi import request_body
from ptuning.serving.protocols.exchange import Answers, Exchange, router_of
from ptuning.serving.protocols.reading import (
    Few,
    Lenient,
    TextPair,
    parsed,
    refuse_encoding,
    refuse_many,
    validated,
)
from ptuning.serving.protocols.writing import Json, json_bytes, written
from ptuning.serving.rows import Refusal
from ptuning.serving.scores import answer_of, names_of
from ptuning.task import Task
from ptuning.visible import visible

if TYPE_CHECKING:
    from ptuning.serving.tasks import ServedTask

HEADER = "inference-header-content-length"
"""How many bytes of the body are JSON; the rest are binary tensors."""


class InputTensor(Lenient):
    """Texts."""

    name: str
    shape: Annotated[Few[int], Field(max_length=4)]
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class RequestedOutput(Lenient):
    """A tensor that the answer has to have."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Infer(Lenient):
    """Texts for one task."""

    id: str | None = None
    inputs: Few[InputTensor]
    outputs: Few[RequestedOutput] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class OutputTensor(BaseModel):
    """One part of the answer."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Inferred(BaseModel):
    """The answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """What a tensor has to be; -1 is any number."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = Field(default_factory=dict)


class ModelMetadata(BaseModel):
    """What a task takes and answers."""

    name: str
    versions: list[str]
    platform: str = "ptuning"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """What the server is."""

    name: str = "ptuning"
    version: str = __version__
    extensions: list[str] = ["binary_tensor_data"]


class Error(BaseModel):
    """An error."""

    error: str


ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Error}, "5XX": {"model": Error}}


def shape(refusal: Refusal) -> Mapping[str, Any]:
    """The body of an error."""
    return {"error": refusal.message}


# ------------------------------------------------------------------------------------------ reading


def read(body: bytes, json_bytes: int | None, max_rows: int) -> tuple[Infer, Sequence[TextPair]]:
    """The request and its texts.

    Args:
        json_bytes: How much of the body is JSON; ``None`` for all of it.
        max_rows: Maximum texts.

    Raises:
        Refusal: 400, 413 or 422.
    """
    head, binary = (body, b"") if json_bytes is None else (body[:json_bytes], body[json_bytes:])
    value = parsed(head)
    refuse_many(value, max_rows)
    request = validated(Infer, value)
    texts: dict[str, list[str]] = {}
    for tensor in request.inputs:
        if tensor.name not in ("text", "text_pair") or tensor.name in texts:
            raise _invalid(f"inputs: got {tensor.name!r}, expected 'text' and 'text_pair', once each")
        if tensor.datatype != "BYTES":
            raise _invalid(f"{tensor.name}: got datatype {tensor.datatype!r}, expected 'BYTES'")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            found = list(islice(_flat(tensor.data or []), max_rows + 1))
        else:
            if type(size) is not int or not 0 <= size <= len(binary):
                raise _invalid(f"{tensor.name}: binary_data_size does not fit the body")
            found = list(islice(_unpacked(binary[:size], tensor.name), max_rows + 1))
            binary = binary[size:]
        refuse_many({"texts": found}, max_rows)
        if not all(isinstance(text, str) for text in found):
            raise _invalid(f"{tensor.name}: expected strings as data")
        if tensor.shape not in ([len(found)], [len(found), 1]):
            raise _invalid(f"{tensor.name}: got shape {tensor.shape} and {len(found)} texts")
        texts[tensor.name] = found
    if "text" not in texts:
        raise _invalid("inputs: expected the tensor 'text'")
    pairs = texts.get("text_pair", [None] * len(texts["text"]))
    if len(pairs) != len(texts["text"]):
        raise _invalid(f"text_pair: got {len(pairs)} texts, but text has {len(texts['text'])}")
    return request, [TextPair(text=a, text_pair=b) for a, b in zip(texts["text"], pairs, strict=True)]


def _flat(data: Any) -> Iterator[Any]:
    for each in data:
        if isinstance(each, list):
            yield from _flat(each)
        else:
            yield each


def _unpacked(data: bytes, name: str) -> Iterator[str]:
    """Texts, each behind its length in four bytes."""
    place = 0
    while place < len(data):
        if place + 4 > len(data):
            raise _invalid(f"{name}: the binary data ends within a length")
        (length,) = struct.unpack_from("<I", data, place)
        place += 4
        if place + length > len(data):
            raise _invalid(f"{name}: the binary data ends within a text")
        try:
            yield data[place : place + length].decode("utf-8")
        except UnicodeDecodeError:
            raise _invalid(f"{name}: a text is not UTF-8") from None
        place += length


def _invalid(message: str) -> Refusal:
    return Refusal(status=422, kind="invalid", message=message)


# ------------------------------------------------------------------------------------------ answering


def _labels(answers: Answers) -> OutputTensor:
    found = []
    for row in answers.rows:
        label = answer_of(row).label
        found.append(
            json.dumps([str(each) for each in label], ensure_ascii=False)
            if isinstance(label, tuple)
            else str(label)
        )
    return OutputTensor(name="label", shape=[len(found)], datatype="BYTES", data=found)


def _probabilities(answers: Answers) -> OutputTensor:
    found = [value for row in answers.rows for _, value in answer_of(row).probabilities]
    shape = [len(answers.rows), len(answers.task.labels)]
    return OutputTensor(name="probabilities", shape=shape, datatype="FP32", data=found)


def _value(answers: Answers) -> OutputTensor:
    found = [answer_of(row).label for row in answers.rows]
    return OutputTensor(name="value", shape=[len(found)], datatype="FP64", data=found)


def outputs_of(task: Task) -> Mapping[str, Callable[[Answers], OutputTensor]]:
    """What a task can answer."""
    return {"label": _labels, "probabilities": _probabilities} if task.labels else {"value": _value}


def write(request: Infer, answers: Answers) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary part of the answer.

    Raises:
        Refusal: 422 for an output that there is not.
    """
    possible = outputs_of(answers.task)
    wanted = request.outputs or [RequestedOutput(name=name) for name in possible]
    all_binary = request.parameters.get("binary_data_output") is True
    outputs, binary = [], b""
    for each in wanted:
        if each.name not in possible:
            raise _invalid(f"outputs: got {each.name!r}, expected some of {', '.join(possible)}")
        tensor = possible[each.name](answers).model_dump()
        if each.parameters.get("binary_data", all_binary) is True:
            packed = _packed(tensor["datatype"], tensor.pop("data"))
            tensor["parameters"] = {"binary_data_size": len(packed)}
            binary += packed
        outputs.append(tensor)
    body = {"model_name": answers.name, "model_version": answers.digest, "outputs": outputs}
    return body | ({} if request.id is None else {"id": request.id}), binary


def _response(request: Infer, answers: Answers) -> Response:
    body, binary = write(request, answers)
    if not binary:
        return Json(body)
    head = json_bytes(body)
    headers = {HEADER: str(len(head))}
    return Response(head + binary, 200, headers, media_type="application/octet-stream")


def _packed(datatype: str, data: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        texts = [text.encode("utf-8", "replace") for text in data]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack(f"<{len(data)}{'f' if datatype == 'FP32' else 'd'}", *data)


def metadata(task: ServedTask) -> ModelMetadata:
    """What a task takes and answers."""
    inputs = ["text", "text_pair"] if task.task.pair else ["text"]
    labels = {"labels": names_of(task.task)}
    outputs = (
        [
            TensorMetadata(name="label", datatype="BYTES", shape=[-1]),
            TensorMetadata(
                name="probabilities", datatype="FP32", shape=[-1, len(task.task.labels)], parameters=labels
            ),
        ]
        if task.task.labels
        else [TensorMetadata(name="value", datatype="FP64", shape=[-1])]
    )
    return ModelMetadata(
        name=task.name,
        versions=[task.digest],
        inputs=[TensorMetadata(name=name, datatype="BYTES", shape=[-1]) for name in inputs],
        outputs=outputs,
    )


def router(exchange: Exchange) -> APIRouter:
    """The routes."""
    made = router_of(exchange, shape, "Open Inference Protocol")

    @made.get("/v2", summary="The server", response_model=ServerMetadata, responses=ERRORS)
    async def server(request: Request) -> Response:
        return Json(ServerMetadata().model_dump())

    @made.get("/v2/health/live", summary="Whether the server runs", responses=ERRORS)
    async def live() -> Response:
        exchange.refuse_failed()
        return Response()

    @made.get("/v2/health/ready", summary="Whether the server accepts requests", responses=ERRORS)
    async def ready() -> Response:
        exchange.refuse_unready()
        return Response()

    path = "/v2/models/{task}/versions/{version}"

    def found(request: Request, task: str, version: str | None = None) -> ServedTask:
        served = exchange.task(request, task)
        if version not in (None, served.digest):
            message = f"{task} has no version {visible(version or '')!r}: it is served as {served.digest}"
            raise Refusal(status=404, kind="unknown_version", message=message)
        return served

    @made.get("/v2/models/{task}", summary="A task", response_model=ModelMetadata, responses=ERRORS)
    async def model(task: str, request: Request) -> Response:
        return Json(metadata(found(request, task)).model_dump())

    @made.get(path, summary="A version of a task", response_model=ModelMetadata, responses=ERRORS)
    async def model_version(task: str, version: str, request: Request) -> Response:
        return Json(metadata(found(request, task, version)).model_dump())

    @made.get("/v2/models/{task}/ready", summary="Whether a task can be asked", responses=ERRORS)
    async def model_ready(task: str, request: Request) -> Response:
        found(request, task)
        exchange.refuse_unready()
        return Response()

    @made.get(f"{path}/ready", summary="Whether a version of a task can be asked", responses=ERRORS)
    async def version_ready(task: str, version: str, request: Request) -> Response:
        found(request, task, version)
        exchange.refuse_unready()
        return Response()

    async def inferred(request: Request, task: str, version: str | None = None) -> Response:
        found(request, task, version)
        refuse_encoding(request)
        max_rows = exchange.service.settings.max_rows
        length = request.headers.get(HEADER)
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 10):
            raise Refusal(status=400, kind="invalid", message=f"{HEADER}: expected a number of bytes")
        asked, texts = read(await request.body(), None if length is None else int(length), max_rows)
        answers = await exchange.answer(request, task, texts)
        if version not in (None, answers.digest):
            found(request, task, version)  # it was replaced meanwhile
        return await written(lambda: _response(asked, answers), answers.rows)

    facts: dict[str, Any] = {
        "response_model": Inferred,
        "responses": ERRORS,
        "openapi_extra": request_body(Infer),
    }

    @made.post("/v2/models/{task}/infer", summary="Classify texts", **facts)
    async def infer(task: str, request: Request) -> Response:
        return await inferred(request, task)

    @made.post(f"{path}/infer", summary="Classify texts by a version of a task", **facts)
    async def version_infer(task: str, version: str, request: Request) -> Response:
        return await inferred(request, task, version)

    return made
