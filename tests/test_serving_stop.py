"""How a server stops: what was asked is answered, what comes later is refused, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest
from starlette.testclient import TestClient

from ptuning.errors import PTuningError
from ptuning.serving.app import make_app
from ptuning.serving.keys import Keys
from ptuning.serving.limits import HttpSettings
from ptuning.serving.settings import Settings
from serving_fake import FakeService, Running, serving, wait_for

BODIES = {
    "/tasks/sentiment": {"inputs": "fine"},
    "/tasks/sentiment/predict": {"inputs": "fine"},
    "/classify": {"model": "sentiment", "input": "fine"},
    "/v1/rows": {"rows": [{"task": "sentiment", "text": "fine"}]},
}


def ask(running: Running, method: str, path: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
    connection = HTTPConnection("127.0.0.1", running.port, timeout=30)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text), {name.lower(): value for name, value in answer.getheaders()}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def held(running: Running, pool: ThreadPoolExecutor) -> Future[Any]:
    """A request that is running until the service lets go of it."""
    service: FakeService = running.service
    running.call(lambda: setattr(service, "hold", asyncio.Event()))
    wait_for(lambda: service.hold is not None)
    asked = pool.submit(ask, running, "POST", "/tasks/sentiment", {"inputs": "fine"})
    wait_for(lambda: len(service.asked) == 1)
    return asked


def stop(running: Running) -> None:
    running.call(running.server._begin_to_stop)
    wait_for(lambda: running.server.running.closed)


def test_what_runs_is_answered_and_what_comes_later_is_refused(pool: ThreadPoolExecutor) -> None:
    with serving(FakeService()) as running:
        asked = held(running, pool)
        stop(running)
        assert ask(running, "GET", "/health")[0] == 200
        assert ask(running, "GET", "/ready")[0] == 503
        assert ask(running, "GET", "/v2/health/ready")[0] == 503
        for path, body in BODIES.items():
            status, found, headers = ask(running, "POST", path, body)
            assert status == 503
            assert "stopping" in json.dumps(found)
            assert headers["retry-after"] == "5"
            assert headers["connection"] == "close"
        assert len(running.service.asked) == 1
        assert not asked.done()
        running.call(running.service.hold.set)
        assert asked.result(30)[0] == 200
        running.thread.join(30)
        assert not running.thread.is_alive()
        assert running.service.draining


def test_a_request_that_takes_too_long_is_given_up(pool: ThreadPoolExecutor) -> None:
    service = FakeService(settings=Settings(drain_seconds=0.2))
    with serving(service) as running:
        asked = held(running, pool)
        running.call(running.server._begin_to_stop)
        running.thread.join(30)
        assert not running.thread.is_alive()
        assert asked.result(30)[0] in (200, 503)  # the fake lets go of it when it drains


def test_in_the_delay_requests_are_still_answered() -> None:
    """A balancer needs a moment to see that the server is not ready."""
    with serving(FakeService(), settings=HttpSettings(drain_delay=600)) as running:
        running.call(running.server._begin_to_stop)
        wait_for(lambda: running.server.exchange.stopping.is_set())
        assert ask(running, "GET", "/ready")[0] == 503
        assert ask(running, "POST", "/tasks/sentiment", {"inputs": "fine"})[0] == 200


def test_idle_connections_do_not_hold_it_up() -> None:
    with serving(FakeService()) as running:
        idle = HTTPConnection("127.0.0.1", running.port, timeout=30)
        idle.request("GET", "/health")
        idle.getresponse().read()
        silent = HTTPConnection("127.0.0.1", running.port, timeout=30)
        silent.connect()
        running.call(running.server._begin_to_stop)
        running.thread.join(30)
        assert not running.thread.is_alive()
        idle.close()
        silent.close()


def test_an_error_at_the_start_is_the_error_of_the_command() -> None:
    from ptuning.errors import ConfigError
    from ptuning.serving.app import make_app
    from ptuning.serving.keys import Keys
    from ptuning.serving.server import Server, listen

    class Broken(FakeService):
        async def start(self) -> None:
            raise ConfigError("the backbone cannot run")

    settings = HttpSettings()
    server = Server(make_app(Broken(), Keys(), settings), settings)
    caught: list[BaseException] = []

    def run() -> None:
        try:
            server.run(sockets=[sock])
        except BaseException as error:
            caught.append(error)

    with listen("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(30)
    assert [type(error) for error in caught] == [ConfigError]


def test_a_server_whose_model_died_says_so_and_ends() -> None:
    """The process is to be started anew: it is not alive, and its exit status is not 0."""
    service = FakeService()
    settings = HttpSettings(drain_delay=0.3)
    raised: list[BaseException] = []
    before = threading.excepthook
    threading.excepthook = lambda given: raised.append(given.exc_value or SystemExit())
    try:
        with serving(service, settings=settings) as running:
            assert ask(running, "GET", "/health")[0] == 200
            service.failed = True
            wait_for(lambda: running.server.failed)
            running.thread.join(30)
    finally:
        threading.excepthook = before
    (error,) = raised
    assert isinstance(error, PTuningError)
    assert "the thread that runs the model has ended" in str(error)


def test_a_server_whose_model_died_is_not_alive() -> None:
    service = FakeService()
    service.failed = True
    with TestClient(make_app(service, Keys())) as client:
        for path in ("/health", "/v2/health/live"):
            assert client.get(path).status_code == 503


def test_in_the_delay_of_a_stop_everything_is_accepted_and_then_nothing() -> None:
    service = FakeService()
    line = b'{"task": "sentiment", "text": "fine"}'
    lines = {"content-type": "application/x-ndjson"}
    form = {"task": "sentiment", "text": "fine"}
    with TestClient(make_app(service, Keys())) as client:
        app: Any = client.app
        app.state.exchange.stopping.set()
        assert client.get("/ready").status_code == 503
        assert "label" in client.post("/v1/rows", content=line, headers=lines).json()
        assert client.post("/page/one", data=form).status_code == 200
        app.state.running.closed = True
        app.state.exchange.closing.set()
        assert client.post("/v1/rows", content=line, headers=lines).status_code == 503
        assert client.post("/page/one", data=form).status_code == 503
        assert client.get("/").status_code == 503
