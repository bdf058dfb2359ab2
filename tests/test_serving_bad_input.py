"""Bad input over HTTP: a clear JSON error each, and nothing else disturbed."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from ptuning.serving.app import make_app
from ptuning.serving.keys import Keys
from ptuning.serving.limits import HttpSettings
from ptuning.serving.protocols.embeddings_inference import Predict
from ptuning.serving.protocols.huggingface import TextClassification
from ptuning.serving.protocols.infinity import Classify as InfinityClassify
from ptuning.serving.protocols.open_inference import Infer
from ptuning.serving.protocols.rows import Rows
from ptuning.serving.protocols.vllm import Classify as VllmClassify
from ptuning.serving.rows import Refusal
from ptuning.serving.settings import Settings
from serving_fake import FakeService, Running, send_for_ever, serving, wait_for

SETTINGS = Settings(max_rows=50, max_body_bytes=100_000)


@pytest.fixture(scope="module")
def service() -> FakeService:
    return FakeService(settings=SETTINGS)


@pytest.fixture(scope="module")
def client(service: FakeService) -> Iterator[TestClient]:
    app = make_app(service, Keys(), HttpSettings(linger_seconds=0.05))
    with TestClient(app, raise_server_exceptions=False) as made:
        yield made


POSTS = {
    "/tasks/sentiment": {"inputs": "fine"},
    "/tasks/sentiment/predict": {"inputs": "fine"},
    "/classify": {"model": "sentiment", "input": "fine"},
    "/v1/classify": {"model": "sentiment", "input": "fine"},
    "/v2/models/sentiment/infer": {
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["fine"]}]
    },
    "/v1/rows": {"rows": [{"task": "sentiment", "text": "fine"}]},
}
JSON = {"content-type": "application/json"}


def message_of(answer: Any) -> str:
    error = answer.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def test_these_are_all_the_routes_with_rows(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    posts = {path.replace("{task}", "sentiment") for path, methods in paths.items() if "post" in methods}
    assert posts == set(POSTS)
    for path, body in POSTS.items():
        assert client.post(path, json=body).status_code == 200, path


MALFORMED = {
    "empty": b"",
    "cut": b'{"inputs": "fi',
    "trailing comma": b'{"inputs": "fine",}',
    "not a number": b'{"inputs": NaN}',
    "infinite": b'{"inputs": -Infinity}',
    "deep": b"[" * 50_000,
    "deep objects": b'{"inputs":' * 5_000,
    "a lone surrogate": b'{"inputs": "\\ud800"}',
    "not UTF-8": b'{"inputs": "\xff"}',
    "a huge number": b'{"inputs": ' + b"9" * 50_000 + b"}",
    "a byte order mark": b'\xef\xbb\xbf{"inputs": "fine"}',
    "UTF-16": '{"inputs": "fine"}'.encode("utf-16"),
    "two values": b'{"inputs": "fine"} {}',
}


@pytest.mark.parametrize("path", POSTS)
def test_malformed_json(client: TestClient, path: str) -> None:
    for name, body in MALFORMED.items():
        answer = client.post(path, content=body, headers=JSON)
        assert answer.status_code == 400, name
        assert "not JSON" in message_of(answer), name


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body", [None, 1, "fine", [], [{}], {}, {"inputs": None}, {"rows": 3, "input": {}, "model": 1}]
)
def test_wrong_types(client: TestClient, path: str, body: object) -> None:
    answer = client.post(path, content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422
    assert message_of(answer)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tasks/sentiment", {"inputs": 3}, 'not valid, expected a text, a {"text", "text_pair"} object'),
        ("/tasks/sentiment", {}, "inputs: missing, expected a text"),
        ("/tasks/sentiment", {"inputs": "a", "parameters": {"top_k": 0}}, 'parameters: not valid, expected'),
        ("/tasks/sentiment", {"inputs": "a", "parameters": {"top_k": "3"}}, 'parameters: not valid'),
        ("/tasks/sentiment", {"inputs": {"txt": "a"}}, "inputs: not valid"),
        ("/tasks/sentiment/predict", {"inputs": [["a", "b", "c"]]}, 'a batch [["a"], ["c", "d"]]'),
        ("/tasks/sentiment/predict", {"inputs": "a", "truncation_direction": "Left"}, "the end of a text"),
        ("/tasks/sentiment/predict", {"inputs": "a", "raw_scores": "yes"}, "not valid, expected true"),
        ("/classify", {"input": "a"}, "model: missing, expected the name of a task"),
        ("/v1/classify", {"model": "sentiment", "input": [3]}, "input: not valid"),
    ],
)  # fmt: skip
def test_the_message_says_what_was_expected(client: TestClient, path: str, body: object, words: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert words in message_of(answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tasks/sentiment", {"inputs": []}),
        ("/tasks/sentiment/predict", {"inputs": []}),
        ("/classify", {"model": "sentiment", "input": []}),
        ("/v1/classify", {"model": "sentiment", "input": []}),
        ("/v1/rows", {"rows": []}),
    ],
)
def test_an_empty_list(client: TestClient, path: str, body: object) -> None:
    assert client.post(path, json=body).status_code in (400, 422)


@pytest.mark.parametrize("path", POSTS)
def test_too_many_rows(client: TestClient, path: str) -> None:
    bodies = {
        "/tasks/sentiment": {"inputs": ["a"] * 10_000},
        "/tasks/sentiment/predict": {"inputs": [["a"]] * 10_000},
        "/v1/rows": {"rows": [{"task": "sentiment", "text": ""}] * 2_000},
        "/v2/models/sentiment/infer": {
            "inputs": [{"name": "text", "shape": [10_000], "datatype": "BYTES", "data": ["a"] * 10_000}]
        },
    }
    body = bodies.get(path, {"model": "sentiment", "input": ["a"] * 10_000})
    answer = client.post(path, json=body)
    assert answer.status_code == 413
    assert "rows" in message_of(answer)


LISTS = {
    "/tasks/sentiment": '{"inputs": LIST}',
    "/tasks/sentiment/predict": '{"inputs": LIST}',
    "/classify": '{"model": "sentiment", "input": LIST}',
    "/v1/classify": '{"model": "sentiment", "input": LIST}',
    "/v1/rows": '{"rows": LIST}',
    "/v2/models/sentiment/infer": '{"inputs": LIST}',
}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("item", ["1", "null", "[]", "{}", '""', '{"a":1}', '["a","b","c"]'])
def test_a_list_is_not_looked_into_if_it_is_too_long(
    client: TestClient, path: str, item: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: a body of 2 MB with a million wrong items was checked for minutes, in gigabytes."""
    count = SETTINGS.max_body_bytes // 2 // (len(item) + 1)
    body = LISTS[path].replace("LIST", f"[{','.join([item] * count)}]")
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 413
    assert f"{count:,} rows" in message_of(answer)


@pytest.mark.parametrize("model", [TextClassification, Predict, InfinityClassify, VllmClassify, Rows, Infer])
@pytest.mark.parametrize("item", [1, None, [], {}, {"a": 1}, [[]], ["a", "b", "c"]])
def test_few_errors_are_made_of_many_wrong_items(model: type[BaseModel], item: object) -> None:
    for field in model.model_fields:
        with pytest.raises(ValidationError) as caught:
            model.model_validate({field: [item] * 1000, "no such field": 1, "rows": 1, "inputs": [1] * 1000})
        assert caught.value.error_count() < 50, field
    with pytest.raises(ValidationError) as caught:
        model.model_validate({f"field {number}": 1 for number in range(10_000)})
    assert caught.value.error_count() == 1


def test_many_fields_are_one_error(client: TestClient) -> None:
    fields = {f"{number}": 1 for number in range(5_000)}
    for body in (fields, {"rows": [fields]}, {"rows": [{"task": "a", "text": "b", **fields}]}):
        answer = client.post("/v1/rows", json=body)
        assert answer.status_code == 422
        assert len(answer.content) < 500


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_too_large(client: TestClient, path: str) -> None:
    answer = client.post(path, content=b" " * 200_000, headers=JSON)
    assert answer.status_code == 413
    assert "100,000" in message_of(answer)
    for kind in ("application/json", "application/x-ndjson", "text/plain", "application/octet-stream"):
        if (path, kind) == ("/v1/rows", "application/x-ndjson"):  # has no limit: it is read line by line
            continue
        chunked = client.post(path, content=iter([b" " * 60_000] * 3), headers={"content-type": kind})
        assert chunked.status_code in (413, 415), kind
        if chunked.status_code == 413:
            assert chunked.headers["connection"] == "close"


def test_other_content_types_and_encodings(client: TestClient) -> None:
    form = client.post("/tasks/sentiment", data={"inputs": "fine"})
    assert form.status_code == 415
    assert "application/json" in message_of(form)
    packed = client.post("/tasks/sentiment", content=b"x", headers={**JSON, "content-encoding": "gzip"})
    assert packed.status_code == 415
    other = {"content-type": "application/problem+json"}
    assert client.post("/tasks/sentiment", json={"inputs": "a"}, headers=other).status_code == 200


def test_no_such_path_and_method(client: TestClient) -> None:
    answer = client.get("/predictions/sentiment")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "unknown_path"
    assert client.get("/classify").status_code == 405
    assert client.get("/classify").headers["allow"] == "POST"
    assert client.get("/docs").status_code == 404


@pytest.mark.parametrize("name", ["x" * 5_000, "..%2f..%2fetc", "%00", "a%0d%0ab", "%ff", "\u202e", "*"])
def test_names_of_tasks(client: TestClient, name: str) -> None:
    for path in (f"/tasks/{name}", f"/tasks/{name}/predict", f"/v2/models/{name}/infer"):
        answer = client.post(path, json={"inputs": "a"})
        assert answer.status_code in (404, 422), path
        assert message_of(answer).isprintable()
        assert len(answer.content) < 1_000


def test_nul_bytes_are_text(client: TestClient) -> None:
    answer = client.post("/tasks/sentiment", json={"inputs": "a\0b"})
    assert answer.status_code == 200


def test_texts_that_a_task_cannot_take(client: TestClient) -> None:
    pair = client.post("/tasks/sentiment", json={"inputs": {"text": "a", "text_pair": "b"}})
    assert pair.status_code == 422
    assert client.post("/tasks/same", json={"inputs": "a"}).status_code == 422
    second = client.post("/tasks/sentiment", json={"inputs": ["fine", " "]})
    assert message_of(second) == "text 1: the text is empty"


@pytest.mark.parametrize("path", POSTS)
def test_refusals_of_the_service(client: TestClient, service: FakeService, path: str) -> None:
    for status, kind in ((429, "overloaded"), (503, "not_ready"), (504, "timeout"), (413, "too_many_rows")):
        service.refusal = Refusal(status=status, kind=kind, message="why", retry_after=3)
        answer = client.post(path, json=POSTS[path])
        service.refusal = None
        assert answer.status_code == status
        assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize("path", POSTS)
def test_a_bug_is_no_traceback(
    client: TestClient, service: FakeService, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    service.raises = ValueError("the secret text of a row")
    answer = client.post(path, json=POSTS[path], headers={"x-request-id": "abc-1"})
    service.raises = None
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "abc-1" in message_of(answer)
    assert "request abc-1 failed: ValueError" in caplog.text
    assert "secret" not in caplog.text
    assert client.post(path, json=POSTS[path]).status_code == 200


def test_a_bug_outside_of_all_routes_is_recorded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    message = "the secret text of a row"

    def broken(*_: object) -> None:
        raise ValueError(message)

    caplog.set_level(logging.INFO, "ptuning.access")
    monkeypatch.setattr("ptuning.serving.limits._Body", broken)
    answer = client.get("/tasks", headers={"x-request-id": "abc-2"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "abc-2"
    assert "abc-2" in message_of(answer)
    record = json.loads(caplog.records[-1].message)
    assert (record["status"], record["refusal"]) == (500, "internal")
    assert "secret" not in caplog.text


# --------------------------------------------------------------------------------------- any JSON

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
NAMES = st.sampled_from(
    ["inputs", "input", "model", "rows", "text", "text_pair", "task", "tasks", "parameters", "top_k", "id",
     "function_to_apply", "truncate", "raw_scores", "outputs", "name", "shape", "datatype", "data", "timeout",
     "binary_data_size", "binary_data_output"]
)  # fmt: skip
WORDS = st.sampled_from(["sentiment", "topics", "similar", "BYTES", "text", "softmax", "none", "*", "label"])
ANY = st.recursive(
    LEAVES | WORDS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5)
)


@examples(max_examples=150, deadline=None)
@given(
    path=st.sampled_from([*POSTS, "/tasks/similar", "/tasks/topics/predict"]), body=ANY, valid=st.booleans()
)
def test_no_json_is_an_error_of_the_server(client: TestClient, path: str, body: Any, valid: bool) -> None:
    if valid and isinstance(body, dict):  # most of a request that would be answered
        body = {**POSTS.get(path, {"inputs": {"text": "a", "text_pair": "b"}}), **body}
    answer = client.post(path, json=body)
    assert answer.status_code < 500, answer.text
    assert answer.status_code == 200 or message_of(answer)


@examples(max_examples=100, deadline=None)
@given(path=st.sampled_from([*POSTS]), body=st.binary(max_size=200), length=st.none() | st.integers(0, 300))
def test_no_bytes_are_an_error_of_the_server(
    client: TestClient, path: str, body: bytes, length: int | None
) -> None:
    headers = JSON if length is None else {**JSON, "inference-header-content-length": str(length)}
    assert client.post(path, content=body, headers=headers).status_code < 500


# ----------------------------------------------------------------------------------- raw sockets


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    limits = HttpSettings(
        header_seconds=1.0, body_seconds=1.0, max_header_bytes=4096, max_connections=20, send_seconds=0.5
    )
    with serving(FakeService(settings=SETTINGS), settings=limits) as made:
        yield made


def connect(running: Running) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", running.port), timeout=20)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def everything(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


ROWS = b"POST /v1/rows HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
HEAD = b"POST /tasks/sentiment HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def answers(running: Running) -> bool:
    """Whether others are answered."""
    with connect(running) as other:
        other.sendall(HEAD + b"content-length: 18\r\nconnection: close\r\n\r\n" + b'{"inputs": "fine"}')
        return everything(other).startswith(b"HTTP/1.1 200")


SLOW_OR_NONSENSE = [
    (b"", b"408"),
    (b"POST /tasks/sent", b"408"),
    (HEAD, b"408"),
    (b"\r\n\r\n", b"408"),
    (HEAD + b"content-length: 18\r\n\r\n", b"408"),
    (HEAD + b"content-length: 18\r\n\r\n" + b'{"inputs"', b"408"),
    (HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{\"inp", b"408"),
    (HEAD + b"content-length: 999999999999999\r\n\r\n", b"413"),
    (ROWS + b"content-type: application/x-ndjson\r\ncontent-length: 200000\r\n\r\n", b"413"),
    (HEAD + b"x: " + b"y" * 10_000, b"431"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
    (b"GARBAGE\r\n\r\n", b"400"),
    (HEAD + b"content-length: -1\r\n\r\n", b"400"),
    (HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\n", b"400"),
    (HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", b"400"),
    (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", b"4"),
]  # fmt: skip


def test_clients_that_are_slow_or_talk_nonsense(running: Running) -> None:
    """All at the same time, and others are answered meanwhile."""
    connections = [connect(running) for _ in SLOW_OR_NONSENSE]
    for connection, (sent, _) in zip(connections, SLOW_OR_NONSENSE, strict=True):
        connection.sendall(sent)
    assert answers(running)
    found = [everything(connection) for connection in connections]  # all are closed: recv would time out
    for connection in connections:
        connection.close()
    wrong = {
        sent: answer
        for (sent, status), answer in zip(SLOW_OR_NONSENSE, found, strict=True)
        if not answer.startswith(b"HTTP/1.1 " + status)
    }
    assert wrong == {}


def test_a_client_that_drips_headers(running: Running) -> None:
    with connect(running) as connection:
        start = time.monotonic()
        try:
            for byte in HEAD * 50:
                connection.sendall(bytes([byte]))
                time.sleep(0.01)
        except OSError:
            pass
        assert time.monotonic() - start < 10  # 1 s, and not the 40 s that all of it takes


def test_a_client_that_drips_a_body(running: Running) -> None:
    with connect(running) as connection:
        connection.sendall(HEAD + b"content-length: 5000\r\n\r\n")
        start = time.monotonic()
        try:
            for _ in range(1000):
                connection.sendall(b" ")
                time.sleep(0.01)
        except OSError:
            pass
        assert time.monotonic() - start < 9
        assert answers(running)


def test_an_idle_connection_after_an_answer_may_go_on(running: Running) -> None:
    with connect(running) as connection:
        for _ in range(2):
            connection.sendall(HEAD + b"content-length: 18\r\n\r\n" + b'{"inputs": "fine"}')
            found = b""
            while not found.endswith(b"}]]"):
                found += connection.recv(65536)
            time.sleep(1.1)  # longer than headers may take


def test_too_many_connections(running: Running) -> None:
    idle = [connect(running) for _ in range(30)]
    found = [everything(connection)[:12] for connection in idle]
    assert found.count(b"HTTP/1.1 503") == 10
    assert found.count(b"HTTP/1.1 408") == 20
    for connection in idle:
        connection.close()
    assert answers(running)


def test_hundred_megabytes_are_refused_at_once(running: Running) -> None:
    with connect(running) as connection:
        connection.sendall(HEAD + b"content-length: 104857600\r\n\r\n" + b" " * 1000)
        found = connection.recv(65536)
        while b"}" not in found:
            found += connection.recv(65536)
        assert found.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in found.lower()
        everything(connection)


def test_a_client_that_does_not_take_its_answer(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Small answers stay in the server's buffers; the connection ends nevertheless."""
    body = json.dumps({"inputs": ["fine"] * 50}).encode()
    request = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    with connect(running) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with pytest.raises(OSError, match=r"reset|Broken pipe"):  # not a timeout
            send_for_ever(connection, request)
    wait_for(lambda: not running.server.server_state.connections)
    wait_for(lambda: not running.server.server_state.tasks)
    assert [each.message for each in caplog.records if each.levelno >= logging.ERROR] == []


def test_a_client_that_goes_away_takes_its_rows_along(running: Running) -> None:
    service: FakeService = running.service
    before, count = service.cancelled, len(service.asked)
    held: list[Any] = []

    def hold() -> None:
        import asyncio

        service.hold = asyncio.Event()
        held.append(service.hold)

    running.call(hold)
    wait_for(lambda: bool(held))
    connection = connect(running)
    connection.sendall(HEAD + b"content-length: 18\r\n\r\n" + b'{"inputs": "fine"}')
    wait_for(lambda: len(service.asked) > count)
    connection.close()
    wait_for(lambda: service.cancelled == before + 1)
    service.hold = None
    assert answers(running)


def test_logs_are_json_without_texts(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ptuning.access"), connect(running) as connection:
        body = b'{"inputs": "confidential"}'
        connection.sendall(
            HEAD
            + b"x-request-id: my-id.7\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        found = everything(connection)
    assert b"x-request-id: my-id.7" in found
    [line] = [json.loads(each.message) for each in caplog.records if "my-id.7" in each.message]
    assert line["route"] == "/tasks/{task}"
    assert line["task"] == "sentiment"
    assert line["status"] == 200
    assert line["rows"] == 1
    assert "confidential" not in caplog.text


@pytest.mark.parametrize("given", ["a b", "x" * 200, "é", 'a"b', ""])
def test_a_strange_request_id_is_replaced(client: TestClient, given: str) -> None:
    found = client.get("/health", headers={"x-request-id": given.encode()}).headers["x-request-id"]
    assert found != given
    assert len(found) == 16


def test_texts_are_logged_if_asked(caplog: pytest.LogCaptureFixture) -> None:
    settings = HttpSettings(log_texts=True)
    with (
        caplog.at_level(logging.INFO, "ptuning.access"),
        TestClient(make_app(FakeService(), Keys(), settings)) as client,
    ):
        client.post("/tasks/sentiment", json={"inputs": "fine"})
    [line] = [json.loads(each.message) for each in caplog.records if each.name == "ptuning.access"]
    assert line["texts"] == [["fine", None]]
