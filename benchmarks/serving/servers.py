"""Servers in processes of their own: started, waited for, held still while others are measured, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STARTING = 300.0
"""Seconds that a server may take until it is ready."""
HERE = Path(__file__).parent


class Missing(Exception):
    """A part needs something that is not there; the message says how to get it."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        process: Its process.
        url: Where it answers.
        ready_path: Answers 200 when it can be asked.
        seconds_to_ready: From the start of the process.
        log: What it wrote.
    """

    process: subprocess.Popen[bytes]
    url: str
    ready_path: str
    seconds_to_ready: float
    log: Path

    def pause(self) -> None:
        """Take the cores from it."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Give them back; returns when it answers."""
        self.process.send_signal(signal.SIGCONT)
        wait_for(self.url + self.ready_path, self.process, self.log, 30)

    def memory(self) -> dict[str, float]:
        """MiB: resident, and proportional, in which pages shared by n processes count 1/n. Linux alone."""
        return memory_of(self.process.pid)

    def stop(self) -> int:
        """End it; its exit code."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def memory_of(pid: int) -> dict[str, float]:
    """MiB of a process; see :meth:`Server.memory`."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name.lower()] = round(int(rest.split()[0]) / 1024, 1)
    return found


@contextmanager
def started(
    command: Sequence[str],
    url: str,
    ready_path: str,
    environment: Mapping[str, str] | None = None,
    starting: float = STARTING,
) -> Iterator[Server]:
    """A server that is ready, for as long as the context is open.

    Raises:
        RuntimeError: it ended, or is not ready in time; with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="ptuning-serving-log-") as place:
        log = Path(place) / "log"
        began = time.perf_counter()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
            )
        server = Server(process, url, ready_path, 0.0, log)
        try:
            wait_for(url + ready_path, process, log, starting)
            yield Server(process, url, ready_path, time.perf_counter() - began, log)
        finally:
            server.stop()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Until ``url`` answers 200.

    Raises:
        RuntimeError: the process has ended, or time is over.
    """
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {_tail(log)}")
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    raise RuntimeError(f"the server was not ready after {seconds:.0f} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(url: str, body: Any = None) -> Any:
    """The JSON at ``url``; the answer to ``body`` if there is one."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as response:
        return json.load(response)


@contextmanager
def ptuning(
    folder: Path,
    model: str,
    *,
    precision: str,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """``ptuning serve`` with the adapters in a folder."""
    port = free_port()
    command = [sys.executable, "-m", "ptuning", "serve", "--folder", str(folder), "--backbone", model]
    command += ["--precision", precision, "--port", str(port), "--no_request_log", *options]
    with started(command, f"http://127.0.0.1:{port}", "/ready", environment) as server:
        yield server


INFINITY_OPTIONS = (
    *("--engine", "torch", "--device", "cpu"),
    "--no-bettertransformer",  # there is none in the transformers that it runs with
    "--no-model-warmup",  # the loads warm it up
    "--no-vector-disk-cache",
)


@contextmanager
def infinity(program: Path, folder: Path, model: str, dtype: str) -> Iterator[Server]:
    """``infinity_emb`` with one classifier."""
    port = free_port()
    command = [str(program), "v2", "--model-id", str(folder), "--served-model-name", model]
    command += ["--dtype", dtype, "--host", "127.0.0.1", "--port", str(port), *INFINITY_OPTIONS]
    environment = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with started(command, f"http://127.0.0.1:{port}", "/health", environment) as server:
        yield server


@contextmanager
def trivial() -> Iterator[Server]:
    """The server that does nothing."""
    port = free_port()
    command = [sys.executable, str(HERE / "trivial.py"), str(port)]
    with started(command, f"http://127.0.0.1:{port}", "/", starting=10) as server:
        yield server


@contextmanager
def alone(server: Server, others: Sequence[Server]) -> Iterator[None]:
    """While one is measured, the others hold still."""
    for other in others:
        if other is not server:
            other.pause()
    try:
        yield
    finally:
        for other in others:
            if other is not server:
                other.resume()
