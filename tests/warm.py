"""Programs in processes of their own, forked from one that has imported torch and ptuning already.

These imports take ten seconds of a core in a new interpreter, and none in a fork. A program has its own
arguments, environment, folder and standard streams, and default signals, and ends as one does. Tests
of imports and of launchers start interpreters of their own.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

IMPORTED = (
    *("accelerate", "scipy.stats", "sklearn.linear_model", "torch", "torch.distributed", "transformers"),
    *("transformers.models.bert.modeling_bert", "transformers.trainer"),
    *("ptuning.cli.predict", "ptuning.cli.train", "ptuning.inference.predictor", "ptuning.training.run"),
)


class Program:
    """One that runs.

    Args:
        status: A pipe with a line for its process id and, when it has ended, one for its exit code.
    """

    def __init__(self, status: int) -> None:
        self._status = status
        self.pid = int(self._line())
        self.returncode: int | None = None

    def wait(self, timeout: float = 120) -> int:
        """Its exit code; a signal's number below 0."""
        if self.returncode is None:
            assert select.select([self._status], [], [], timeout)[0], f"not done after {timeout} s"
            self.returncode = int(self._line())
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        running = self.returncode is None and not select.select([self._status], [], [], 0)[0]
        return None if running else self.wait()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _line(self) -> bytes:
        found = b""
        while not found.endswith(b"\n"):
            part = os.read(self._status, 1)
            assert part, "the server of programs has ended"
            found += part
        return found


class Programs:
    """Starts programs; its server is started with the first one."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any],
        stderr: int | IO[Any],
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """Run a script, or a module after ``-m``, as ``python`` would with these arguments.

        Args:
            argv: What would stand behind ``python``.
            stdin: This and the others are files, or their descriptors.
            env: What is set on top of this process's environment.
        """
        if self._socket is None:
            self._begin()
        assert self._socket is not None
        order = {"argv": list(argv), "cwd": os.getcwd(), "env": {**os.environ, **(env or {})}}
        nothing = os.open(os.devnull, os.O_RDWR)
        read, write = os.pipe()
        streams = [
            nothing if each == subprocess.DEVNULL else _number(each) for each in (stdin, stdout, stderr)
        ]
        text = json.dumps(order).encode()
        socket.send_fds(self._socket, [b"%10d" % len(text)], [*streams, write])
        self._socket.sendall(text)
        os.close(write)
        os.close(nothing)
        return Program(read)

    def run(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end; ``folder`` is for what it reads and writes."""
        files = [folder / f".{name}-{time.monotonic_ns()}" for name in ("in", "out", "err")]
        files[0].write_bytes(stdin)
        with files[0].open("rb") as given, files[1].open("wb") as out, files[2].open("wb") as err:
            code = self.start(argv, stdin=given, stdout=out, stderr=err, env=env).wait(timeout)
        _, told, said = (file.read_bytes() for file in files)
        for file in files:
            file.unlink()
        return subprocess.CompletedProcess(list(argv), code, told, said)

    def ranks(self, argv: Sequence[str], folder: Path, processes: int = 2) -> str:
        """Run so many as torchrun does, each with its rank; what the first wrote. They have to end well."""
        running = self.start_ranks(argv, folder, processes)
        codes = [program.wait(240) for program, _ in running]
        found = [log.read_text() for _, log in running]
        assert codes == [0] * processes, "\n".join(text[-3000:] for text in found)
        return found[0]

    def start_ranks(
        self, argv: Sequence[str], folder: Path, processes: int = 2
    ) -> list[tuple[Program, Path]]:
        """So many as torchrun starts, each with its rank, and the file that it writes to.

        The file of torchrun's summary of the errors is ``.error-RANK`` in ``folder``.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        common |= {"LOCAL_WORLD_SIZE": str(processes), "GLOO_SOCKET_IFNAME": "lo"}
        running = []
        for rank in range(processes):
            log = folder / f".rank-{rank}"
            errors = {"TORCHELASTIC_ERROR_FILE": str(folder / f".error-{rank}")}
            with log.open("wb") as out:
                env = {**common, **errors, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                running.append((self.start(argv, stdout=out, stderr=out, env=env), log))
        return running

    def close(self) -> None:
        if self._socket is not None and self._server is not None:
            self._socket.close()
            self._server.wait(60)

    def _begin(self) -> None:
        self._socket, other = socket.socketpair()
        command = [sys.executable, __file__, str(other.fileno())]
        self._server = subprocess.Popen(command, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL)
        other.close()


def _number(stream: int | IO[Any]) -> int:
    return stream if isinstance(stream, int) else stream.fileno()


# -------------------------------------------------------------------------------------- the server


def serve(orders: socket.socket) -> list[str]:
    """Start programs until there are no more orders; returns in each of them, with what it is to run."""
    while True:
        size, streams, _, _ = socket.recv_fds(orders, 10, 4)
        if not size:
            with suppress(ChildProcessError):
                os.wait()
            os._exit(0)
        with suppress(ChildProcessError):  # keepers that have ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        order = json.loads(_read(orders, int(size)))
        if os.fork() == 0:  # the keeper: waits for its program and says how it ended
            orders.close()
            *own, status = streams
            if (pid := os.fork()) == 0:
                os.close(status)
                return _begun(order, own)
            for stream in own:
                os.close(stream)
            os.write(status, b"%d\n" % pid)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(status, b"%d\n" % code)
            os._exit(0)
        for stream in streams:
            os.close(stream)


def _read(orders: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += orders.recv(size - len(found))
    return found


def _begun(order: dict[str, Any], streams: list[int]) -> list[str]:
    """This process as a new interpreter's would be."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding, "backslashreplace", closefd=False)  # noqa: SIM115
    argv: list[str] = order["argv"]
    return argv


if __name__ == "__main__":
    import gc
    import runpy
    from importlib import import_module

    for name in IMPORTED:
        import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # a program that ends would look at all that was imported, and copy it
    given = serve(socket.socket(fileno=int(sys.argv[1])))
    if given[0] == "-m":
        sys.argv = given[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(given[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = given
        sys.path[0] = str(Path(given[0]).parent)
        runpy.run_path(given[0], run_name="__main__")
