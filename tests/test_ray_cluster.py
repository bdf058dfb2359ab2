"""The connection to a cluster, and the errors that come from it."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import threading
from typing import Any

import pytest

from ptuning.errors import ConfigError, DataError, OutputError
from ptuning.ray import cluster as module
from ptuning.ray.cluster import Versions, connected, errors_of_workers
from ray_cluster import ray_cluster  # noqa: F401

ray = pytest.importorskip("ray")


def test_nothing_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        pytest.raises(ConfigError, match="no answer within") as caught,
        connected(f"127.0.0.1:{port}"),
    ):
        pass
    assert "ray status" in str(caught.value)


def test_another_server_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_accept, args=(server,), daemon=True)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match="expected the head of a Ray cluster"), connected(address):
            pass


def _accept(server: socket.socket) -> None:
    try:
        while True:
            connection, _ = server.accept()
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    except OSError:
        pass


def test_no_cluster_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**options: Any) -> None:  # "auto" finds every cluster of this machine, those of other tests too
        assert options["address"] == "auto"
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", none)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="no cluster that runs on this machine"), connected("auto"):
        pass


@pytest.mark.parametrize("address", ["nowhere", "host:", ":6379", "host:99999", "ray://host:10001", ""])
def test_not_an_address(address: str) -> None:
    with pytest.raises(ConfigError, match="auto, local, or HOST:PORT"), connected(address):
        pass


def test_another_version_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_check_answers", lambda address: None)

    def refuse(**options: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9\n")

    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(ConfigError, match=r"cannot be used: Version mismatch.* Ray: 2\.9"),
        connected("host:6379"),
    ):
        pass


def test_connecting_changes_neither_signals_nor_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_check_answers", lambda address: None)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    seen: list[str | None] = []

    def init(**options: Any) -> None:
        seen.append(os.environ.get("RAY_USAGE_STATS_ENABLED"))
        signal.signal(signal.SIGTERM, lambda *_: None)
        raise ConnectionError

    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigError, match="not the head of a cluster"), connected("host:10001"):
        pass
    assert seen == ["0"]
    assert signal.getsignal(signal.SIGTERM) == before
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


def test_versions_of_workers() -> None:
    here = Versions.here()
    here.check()
    other = dataclasses.replace(here, packages=(("ptuning", "0.0.1"), *here.packages[1:]))
    with pytest.raises(ConfigError, match=r"ptuning on the node .*expected 0\.0\.1"):
        other.check()
    with pytest.raises(ConfigError, match="Python on the node"):
        dataclasses.replace(here, python="3.1").check()


def test_what_a_worker_raises_is_raised_here(ray_cluster: Any) -> None:  # noqa: F811
    @ray.remote
    def refuse() -> None:
        raise DataError("row 3", got="nothing", expected="a text", remedy="correct it")

    @ray.remote
    def fail() -> None:
        raise ZeroDivisionError

    @ray.remote(max_retries=0)
    def die() -> None:
        import os

        os._exit(1)

    with connected("auto"):  # the connection that there is
        with pytest.raises(DataError) as caught, errors_of_workers():
            ray.get(refuse.remote())
        assert (caught.value.got, caught.value.remedy) == ("nothing", "correct it")
        with pytest.raises(ZeroDivisionError), errors_of_workers():
            ray.get(fail.remote())
        with pytest.raises(OutputError, match="the cluster lost the work"), errors_of_workers():
            ray.get(die.remote())
    assert ray.is_initialized()
