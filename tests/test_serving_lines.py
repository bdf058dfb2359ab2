"""Rows streamed as lines: in order, in bounded memory, while more of them arrive."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ptuning.serving.app import make_app
from ptuning.serving.keys import Keys
from ptuning.serving.limits import HttpSettings
from ptuning.serving.protocols.lines import IN_FLIGHT, WINDOW, LineSplitter
from ptuning.serving.rows import Refusal
from ptuning.serving.settings import Settings
from serving_fake import FakeService, Running, send_for_ever, serving, wait_for

NDJSON = {"content-type": "application/x-ndjson"}


@pytest.fixture
def service() -> FakeService:
    return FakeService(settings=Settings(max_body_bytes=1000, timeout=5))


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with TestClient(make_app(service, Keys(), HttpSettings(max_line_bytes=500))) as made:
        yield made


def line(text: str = "fine", task: str = "sentiment", **more: Any) -> bytes:
    return json.dumps({"task": task, "text": text, **more}).encode()


def ask(client: TestClient, body: Any, **options: Any) -> list[Any]:
    answer = client.post("/v1/rows", content=body, headers=NDJSON, **options)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(each) for each in answer.text.splitlines()]


@examples(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(max_size=30).map(lambda data: data.replace(b"\n", b" "))), st.lists(st.integers(1, 40))
)
def test_lines_are_the_same_however_they_arrive(lines: list[bytes], sizes: list[int]) -> None:
    body, splitter, found = b"\n".join(lines), LineSplitter(20), []
    for size in sizes:
        found += list(splitter.feed(body[:size]))
        body = body[size:]
    found += list(splitter.feed(body))
    found += list(splitter.end())
    expected = ["too long" if len(each) > 20 else each.strip() for each in lines]
    read = ["too long" if isinstance(each, Refusal) else each for each in found]
    assert read == [each for each in expected if each]


def test_a_line_without_an_end_takes_no_memory() -> None:
    splitter = LineSplitter(1000)
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 10_000)) == []
        assert len(splitter._rest) <= 1000
    [refusal, last] = [*splitter.feed(b"\nfine"), *splitter.end()]
    assert isinstance(refusal, Refusal)
    assert last == b"fine"


def test_every_line_has_its_own_answer_or_error(client: TestClient) -> None:
    lines = [
        line("fine", id="a"), b"{", line(task="nothing"), b"", b'{"task": "sentiment"}', line("x" * 1000),
        b"NaN", line("a", "similar", text_pair="b"), b"\xff", line(" "), line("last"),
    ]  # fmt: skip
    found = ask(client, b"\n".join(lines))
    kinds = [each.get("error", {}).get("type", "answer") for each in found]
    assert kinds == [
        "answer", "malformed_json", "unknown_task", "invalid", "line_too_long", "malformed_json",
        "answer", "malformed_json", "empty_text", "answer",
    ]  # fmt: skip
    assert found[0]["id"] == "a"
    assert found[0]["digest"] == "sentiment-1"


def test_a_body_longer_than_the_limit_of_others(client: TestClient, service: FakeService) -> None:
    found = ask(client, b"\n".join(line(f"text {number}") for number in range(2000)))
    assert len(found) == 2000
    assert [row.text for row in service.asked] == [f"text {number}" for number in range(2000)]


def test_options_are_in_the_query(client: TestClient) -> None:
    long = line("word " * 80)
    assert "error" not in ask(client, long)[0]
    assert ask(client, long, params={"truncate": "false"})[0]["error"]["type"] == "too_long"
    assert client.post("/v1/rows?truncate=maybe", content=long, headers=NDJSON).status_code == 422


def test_overload_waits_and_other_refusals_are_each_lines(client: TestClient, service: FakeService) -> None:
    tries = []
    answer = service.answer

    async def busy(*args: Any, **kwargs: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise Refusal(status=429, kind="overloaded", message="busy", retry_after=0.01)
        return await answer(*args, **kwargs)

    service.answer = busy  # type: ignore[method-assign]
    assert "label" in ask(client, line())[0]
    assert len(tries) == 3
    service.answer = answer  # type: ignore[method-assign]
    service.refusal = Refusal(status=504, kind="timeout", message="too late")
    assert [each["error"]["code"] for each in ask(client, line() + b"\n{\n" + line())] == [504, 400, 504]


# ----------------------------------------------------------------------------------- real sockets


@pytest.fixture
def running(service: FakeService) -> Iterator[Running]:
    with serving(service, settings=HttpSettings(send_seconds=1.0)) as made:
        yield made


HEAD = (
    b"POST /v1/rows HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def connect(running: Running) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", running.port), timeout=20)
    made.sendall(HEAD)
    return made


def read_until(connection: socket.socket, end: bytes) -> bytes:
    found = b""
    while end not in found:
        part = connection.recv(65536)
        assert part, found
        found += part
    return found


def test_answers_come_while_rows_still_arrive(running: Running) -> None:
    with connect(running) as connection:
        for number in range(3):
            connection.sendall(chunk(line(id=number) + b"\n"))
            read_until(connection, b'"id":%d' % number)
        connection.sendall(chunk(line(id="last")) + b"0\r\n\r\n")
        assert b"0\r\n\r\n" in read_until(connection, b"0\r\n\r\n")


def hold(running: Running) -> FakeService:
    service: FakeService = running.service
    running.call(lambda: setattr(service, "hold", asyncio.Event()))
    wait_for(lambda: service.hold is not None)
    return service


def test_the_body_is_read_no_further_than_the_answers_come(running: Running) -> None:
    """A client that sends as fast as it can is held back, and the server's memory stays bounded."""
    service = hold(running)
    with connect(running) as connection:
        connection.settimeout(0.5)
        block, sent = chunk(b"\n".join([line()] * 1000) + b"\n"), 0
        with suppress(TimeoutError):
            for _ in range(1000):
                sent += connection.send(block)
        assert sent < 30 << 20
        assert len(service.asked) <= (IN_FLIGHT + 2) * WINDOW
        assert running.server.running.count == 1
        assert service.hold is not None
        running.call(service.hold.set)
    wait_for(lambda: running.server.running.count == 0)  # it is seen that the client has left
    assert len(service.asked) < sent // len(line())


def test_a_client_that_stops_sending_is_told(service: FakeService) -> None:
    with (
        serving(service, settings=HttpSettings(body_seconds=1.0)) as running,
        connect(running) as connection,
    ):
        connection.sendall(chunk(line() + b"\n"))
        found = read_until(connection, b"body_timeout")
        assert b'"label"' in found


def test_a_client_that_was_too_slow_still_gets_what_it_asked(service: FakeService) -> None:
    with serving(service, settings=HttpSettings(body_seconds=0.1)) as running, connect(running) as connection:
        hold(running)
        connection.sendall(chunk(line(id=7) + b"\n"))
        wait_for(lambda: bool(service.asked))
        time.sleep(0.5)  # the next part is late, and late again
        assert service.hold is not None
        running.call(service.hold.set)
        found = read_until(connection, b"0\r\n\r\n")
        assert b'"id":7,"digest"' in found
        assert found.count(b"body_timeout") == 1


def test_a_client_that_sends_and_never_reads_is_disconnected(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(running) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        block = chunk(b"\n".join([line()] * 1000) + b"\n")
        with pytest.raises(OSError, match=r"reset|Broken pipe"):  # not a timeout
            send_for_ever(connection, block)
    wait_for(lambda: running.server.running.count == 0)
    assert [each.message for each in caplog.records if each.levelno >= logging.ERROR] == []


def test_a_client_that_leaves_cancels_its_rows(running: Running) -> None:
    service = hold(running)
    connection = connect(running)
    connection.sendall(chunk(line() + b"\n"))
    wait_for(lambda: bool(service.asked))
    connection.close()
    wait_for(lambda: service.cancelled == 1)


def test_a_stop_ends_a_stream_with_an_error(running: Running) -> None:
    with connect(running) as connection:
        connection.sendall(chunk(line() + b"\n"))
        found = read_until(connection, b'"label"')
        start = time.monotonic()
        running.call(running.server._begin_to_stop)
        found += read_until(connection, b"0\r\n\r\n")
        assert b'"type":"stopping"' in found
        assert time.monotonic() - start < 20
    running.thread.join(20)
    assert not running.thread.is_alive()
