"""A connection to a Ray cluster, with errors that a user can act on.

``ray.init`` waits without end for an address where nothing answers, and cannot be interrupted; so the
address is tried first. A user's mistake that a worker finds is raised here as the error that it would be on
one machine (:func:`errors_of_workers`).
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

from ptuning.errors import ConfigError, OutputError, PTuningError

SECONDS = 10.0
"""How long a cluster may take to answer."""
_STATISTICS = "RAY_USAGE_STATS_ENABLED"
_PACKAGES = ("ptuning", "torch", "transformers", "ray")


@dataclass(frozen=True)
class Versions:
    """The versions that driver and workers have to share.

    Attributes:
        packages: By name.
        python: Major and minor version.
    """

    packages: tuple[tuple[str, str], ...]
    python: str

    @classmethod
    def here(cls) -> Versions:
        """Those of this process."""
        python = ".".join(platform.python_version_tuple()[:2])
        return cls(tuple((name, version(name)) for name in _PACKAGES), python)

    def check(self) -> None:
        """Compare with this process, a worker's.

        Raises:
            ConfigError: it has another version of a package.
        """
        here = Versions.here()
        mine = [("Python", here.python), *here.packages]
        theirs = [("Python", self.python), *self.packages]
        for (name, got), (_, expected) in zip(mine, theirs, strict=True):
            if got != expected:
                raise ConfigError(
                    f"{name} on the node {platform.node()}",
                    got=got,
                    expected=f"{expected}, as in the process that started the work",
                    remedy="install the same versions on all nodes",
                )


def require_ray() -> None:
    """Check that the packages of the ``ray`` extra are installed.

    Raises:
        ConfigError: Ray is missing.
    """
    if find_spec("ray") is None:
        raise ConfigError("Ray is not installed", remedy="install it with: pip install 'ptuning[ray]'")


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Use a cluster; a connection that this process already has is used and left open.

    Args:
        address: ``auto`` for the cluster of the environment variable ``RAY_ADDRESS``, or else the one that
            runs on this machine; ``local`` to start one on this machine that ends with the block; or
            ``HOST:PORT`` of a cluster's head.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, or it has another version of
            Ray or Python.
    """
    require_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    where = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    if where not in ("auto", "local"):
        _check_answers(where)
    with warnings.catch_warnings(), _unchanged():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            ray.init(
                address=where,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if where == "local" else None,
            )
        except ConnectionError as error:
            if where != "auto":
                raise ConfigError(
                    f"--ray {address}",
                    got=f"a server at {where} that is not the head of a cluster",
                    expected="the port of a head, 6379 unless it was chosen (ray status prints it)",
                ) from error
            raise ConfigError(
                f"--ray {address}",
                got="no cluster that runs on this machine",
                expected="one that was started with ray start, or its address",
                remedy="give HOST:PORT of its head, set RAY_ADDRESS, or use --ray local",
            ) from error
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise ConfigError(f"the cluster at {where} cannot be used: {why}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _unchanged() -> Iterator[None]:
    """Put back what ``ray.init`` changes in this process: the handler of SIGTERM, and the environment."""
    handler, statistics = signal.getsignal(signal.SIGTERM), os.environ.get(_STATISTICS)
    os.environ.setdefault(_STATISTICS, "0")  # a library does not decide to send statistics
    try:
        yield
    finally:
        if statistics is None:
            os.environ.pop(_STATISTICS, None)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _check_answers(address: str) -> None:
    """Refuse an address where no cluster's head answers.

    Raises:
        ConfigError: it is not ``HOST:PORT``, or nothing answers there.
    """
    host, colon, port = address.rpartition(":")
    if "://" in address or not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(
            "--ray",
            got=address,
            expected="auto, local, or HOST:PORT of a cluster's head (the port is 6379 unless it was chosen)",
            remedy="from outside of the cluster, submit the command as a job: ray job submit -- ptuning …"
            if "://" in address
            else None,
        )
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=SECONDS)
        except grpc.FutureTimeoutError:
            raise ConfigError(
                f"--ray {address}",
                got=f"no answer within {SECONDS:g} seconds",
                expected="the head of a Ray cluster",
                remedy="check host and port (ray status prints them on the head), and that the cluster runs",
            ) from None


@contextmanager
def errors_of_workers() -> Iterator[None]:
    """Raise what a worker raised on purpose as itself, and the end of a worker as one sentence.

    Raises:
        PTuningError: what the worker raised.
        OutputError: the cluster lost the work: nodes ended too often, or ran out of memory or disk.
    """
    import ray.exceptions

    try:
        yield
    except ray.exceptions.RayError as error:
        found = cause(error)
        if found is not None:  # made again of its parts, because Ray Data adds to the message
            raise type(found)(
                found.problem, got=found.got, expected=found.expected, remedy=found.remedy
            ) from error
        if isinstance(error, ray.exceptions.RayTaskError):
            raise  # a bug, with the worker's traceback
        raise OutputError(
            f"the cluster lost the work: {_first_line(error)}", remedy="run it again, or see Ray's logs"
        ) from error


def cause(error: BaseException) -> PTuningError | None:
    """The error of ours that an error of Ray's was caused by, if any."""
    from ray.exceptions import RayError

    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        # Ray raises a class of its own that inherits from ours too; what the worker raised is its cause.
        if isinstance(found, PTuningError) and not isinstance(found, RayError):
            return found
        seen.add(id(found))
        inner = getattr(found, "cause", None)
        found = inner if isinstance(inner, BaseException) else found.__cause__ or found.__context__
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
