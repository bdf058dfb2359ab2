"""The server as a deployment of Ray Serve: replicas that hold the tasks they are asked for.

``ptuning serve … --ray ADDRESS`` deploys it and ends it. For ``serve run`` and ``serve deploy`` there is
:func:`app`, with the same options by the same names.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ptuning.errors import ConfigError, OutputError
from ptuning.paths import local_path
from ptuning.ray.cluster import Versions, connected, errors_of_workers, require_ray
from ptuning.validation import Float, Int, checked

if TYPE_CHECKING:
    from ray.serve import Application

    from ptuning.serving.launching import ServerOptions

NAME = "ptuning"
"""Of the application."""
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_MARGIN = 10.0
"""Seconds that a replica may take to stop after its requests were answered."""
_NAMESPACE = "serve"
"""Of Serve's own actors."""
_ERROR = re.compile(r"^(?:\w+\.)*ptuning\.errors\.\w+: (.*)$", re.MULTILINE)
"""The line of a traceback with an error of ours."""


@checked
@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """How the server is spread over a cluster.

    Args:
        replicas: A number, or MIN-MAX: then there are as many as requests need.
        ray_cpus: CPU cores per replica.
        ray_gpus: GPUs per replica.
        tasks_per_replica: How many tasks a replica holds. If it is asked for more, it lets go of those that
            were named least recently.
        target_requests: With MIN-MAX, how many requests that wait or run there are per replica.
    """

    replicas: Int | str = 1
    ray_cpus: Annotated[Float, Field(ge=0)] = 1.0
    ray_gpus: Annotated[Float, Field(ge=0)] = 0.0
    tasks_per_replica: Annotated[Int, Field(ge=1)] = 1000
    target_requests: Annotated[Int, Field(ge=1)] = 64

    def __post_init__(self) -> None:
        least, most = self.bounds
        if not 1 <= least <= most:
            raise self._wrong()

    @property
    def bounds(self) -> tuple[int, int]:
        """The minimum and the maximum of replicas."""
        found = _RANGE.fullmatch(str(self.replicas))
        if found is None:
            raise self._wrong()
        return int(found[1]), int(found[2] or found[1])

    def _wrong(self) -> ConfigError:
        expected = "a number above 0, or MIN-MAX, such as 1-8"
        return ConfigError("replicas", got=self.replicas, expected=expected)


def application(options: ServerOptions, scale: ScaleOptions) -> Application:
    """What ``ray.serve.run`` takes.

    Args:
        options: Of the server. Folders and files have to be the same on all nodes.
        scale: How many replicas there are, and what each gets.

    Raises:
        ConfigError: Ray is not installed, or an option has no meaning on a cluster.
    """
    require_ray()
    if options.drain_delay:
        raise ConfigError(
            "drain_delay",
            got=options.drain_delay,
            expected="0 on a cluster, where Ray Serve stops sending requests to a replica before it stops",
            remedy="leave it out",
        )
    from ray import serve

    from ptuning.ray.replica import Replica

    least, most = scale.bounds
    size: dict[str, Any] = {"num_replicas": least}
    if least < most:
        size = {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": scale.target_requests,
            }
        }
    deployment: Any = serve.deployment(  # its types know the decorator alone
        serve.ingress()(Replica),
        name="server",
        ray_actor_options={"num_cpus": scale.ray_cpus, "num_gpus": scale.ray_gpus},
        max_ongoing_requests=options.settings().queue_rows,  # so that our own queue says what is too much
        max_queued_requests=options.max_connections,  # while there is no replica
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=options.drain_seconds + _MARGIN,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        **size,
    )
    bound: Application = deployment.bind(
        options, scale.tasks_per_replica, Versions.here(), secrets.token_bytes(32)
    )
    return bound


def app(args: Mapping[str, Any]) -> Application:
    """Build the application from a mapping, for ``serve run ptuning.ray.serving:app folder=…`` and for the
    ``args`` of a configuration file.

    Args:
        args: Options of :class:`~ptuning.serving.launching.ServerOptions` and :class:`ScaleOptions`.

    Raises:
        ConfigError: an unknown or invalid option, or neither ``keys`` nor ``no_auth``.
    """
    from ptuning.serving.launching import ServerOptions

    names = {field.name for field in fields(ScaleOptions)}
    options = ServerOptions(**{name: value for name, value in args.items() if name not in names})
    if options.keys is None and not options.no_auth:
        raise ConfigError(
            "keys",
            got="none",
            expected="a file of API keys, because other machines may reach the address, which is Ray Serve's",
            remedy="make one with: ptuning serve --keys FILE --make_key NAME; or allow everybody with "
            "no_auth=true",
        )
    return application(
        options, ScaleOptions(**{name: value for name, value in args.items() if name in names})
    )


def serve_on_ray(
    options: ServerOptions,
    scale: ScaleOptions,
    address: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    started: Callable[[str], None] = lambda url: None,
    waiting: Callable[[], None] = lambda: None,
) -> None:
    """Deploy the server, wait for SIGINT or SIGTERM, and end it.

    Args:
        address: Of the cluster; see :func:`~ptuning.ray.cluster.connected`.
        host: The address that the proxy of each node binds to.
        port: Its port.
        started: Called with the URL when requests are answered.
        waiting: Called, in a thread, if no replica has started after half a minute.

    Raises:
        ConfigError: there is no cluster, the address is taken, another command serves already, other machines
            could ask without a key, or a replica cannot be started.
        OutputError: the cluster lost the work, or the deployment was ended elsewhere.
    """
    from ptuning.serving.launching import check_host

    check_port(port)
    check_host(options, host)
    with connected(address), _quiet(), errors_of_workers(), _interrupted():
        made = application(on_all_nodes(options), scale)
        _check_room(scale)
        ours = _start(host, port)
        if not ours:
            _check_alone()
        try:
            _deploy(made, waiting)
            started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            _wait()
        except KeyboardInterrupt:
            pass  # the signal to stop
        finally:
            _end(ours, options.drain_seconds)


def check_port(port: int) -> None:
    """Refuse a port that the nodes of a cluster cannot share.

    Raises:
        ConfigError: it is not one from 1 to 65535.
    """
    if not 1 <= port <= 65535:
        raise ConfigError("--port", got=port, expected="from 1 to 65535, the same on all nodes")


def on_all_nodes(options: ServerOptions) -> ServerOptions:
    """The options with absolute paths, because a replica runs in a folder of its own.

    Raises:
        ConfigError: a name that a task may not have.
    """
    from ptuning.serving.launching import task_names

    def absolute(given: str | None) -> str | None:
        return os.path.abspath(given) if given is not None and os.path.exists(given) else given

    named = [f"{name}={absolute(source)}" for name, source in task_names(options.adapters).items()]
    folder, keys = (
        None if given is None else os.path.abspath(local_path(given, option))
        for given, option in ((options.folder, "--folder"), (options.keys, "--keys"))
    )
    return replace(
        options, adapters=tuple(named), folder=folder, keys=keys, backbone=absolute(options.backbone)
    )


def _check_room(scale: ScaleOptions) -> None:
    """Refuse what would be waited for without end.

    Raises:
        ConfigError: the nodes of the cluster have no room for the minimum of replicas.
    """
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()
    wanted = [(name, size) for name, size in (("CPU", scale.ray_cpus), ("GPU", scale.ray_gpus)) if size]
    least, _ = scale.bounds
    room = sum(
        min((int(node["Resources"].get(name, 0) // size) for name, size in wanted), default=least)
        for node in nodes
        if node["Alive"]
    )
    if room < least:
        raise ConfigError(
            "--replicas",
            got=f"{least}, with {scale.ray_cpus:g} cores and {scale.ray_gpus:g} GPUs each",
            expected=f"at most {room}, as many as the nodes of the cluster have room for",
            remedy="lower --replicas, --ray_cpus or --ray_gpus, or add nodes",
        )


def _start(host: str, port: int) -> bool:
    """Start Serve on the cluster, unless it runs.

    Returns:
        Whether it did not run before.

    Raises:
        ConfigError: it runs with another address, or the address is taken.
    """
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False) if _runs() else None
    if client is not None:
        have = client.http_config
        if (have.host, have.port) != (host, port):
            raise ConfigError(
                "--host and --port",
                got=f"{host}:{port}",
                expected=f"{have.host}:{have.port}, where Ray Serve answers on this cluster already",
                remedy="use that address, or end it with: serve shutdown",
            )
        return False
    try:
        serve.start(http_options={"host": host, "port": port})
    except (ray.exceptions.RayError, RuntimeError) as error:
        _shut_down()
        if "bind" not in str(error):
            raise
        raise ConfigError(
            f"{host}:{port} cannot be used on every node",
            got=_last_line(str(error)),
            remedy="stop what listens there, or choose another --port",
        ) from error
    return True


def _check_alone() -> None:
    """Refuse to replace a deployment that the process serves which made it.

    Raises:
        ConfigError: that process runs. If it was killed, its deployment can be taken over.
    """
    import ray
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    deployed = ray.get(client._controller.list_deployments_internal.remote())
    jobs = {info.deployer_job_id for each, (info, _) in deployed.items() if each.app_name == NAME}
    jobs.discard(ray.get_runtime_context().get_job_id())
    for job in ray._private.state.jobs():
        if job["JobID"] in jobs and not job["IsDead"]:
            raise ConfigError(
                f"the cluster has the deployment {NAME!r} already",
                got=f"one of the process {job['DriverPid']} on {job['DriverIPAddress']}, which runs",
                expected="none",
                remedy="stop that process first",
            )


def _deploy(made: Application, waiting: Callable[[], None], seconds: float = 30.0) -> None:
    """Deploy the application, and wait until it answers.

    Args:
        waiting: Called if that takes longer than ``seconds``.

    Raises:
        ConfigError, OutputError: it cannot be deployed.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    timer = threading.Timer(seconds, waiting)
    timer.daemon = True
    timer.start()
    try:
        serve.run(made, name=NAME, route_prefix="/")
    except RayServeException as error:  # such as another application at the same path
        raise ConfigError(
            f"the server cannot be deployed: {getattr(error, 'cause', error)}",
            remedy="end what is in its way; serve status lists it, serve shutdown ends everything",
        ) from error
    except RuntimeError as error:
        raise explained("\n".join((str(error), *_messages()))) from error
    finally:
        timer.cancel()


def _wait(seconds: float = 5.0) -> None:
    """Wait for a signal.

    Args:
        seconds: Between two looks at the deployment.

    Raises:
        OutputError: the deployment was ended elsewhere.
    """
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    with suppress(RayServeException, ray.exceptions.RayActorError):  # Serve itself has ended
        while NAME in serve.status().applications:
            time.sleep(seconds)
    raise OutputError("the deployment was ended elsewhere", remedy="start it again")


def _end(ours: bool, drain_seconds: float) -> None:
    """End the deployment, and Serve itself if it was started for it.

    Raises:
        OutputError: it takes too long, or is interrupted.
    """
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    ends = time.monotonic() + drain_seconds + 2 * _MARGIN
    remaining = OutputError(
        "the deployment has not ended yet", remedy="see serve status; serve shutdown ends what is left"
    )
    try:
        with suppress(RayServeException, ray.exceptions.RayActorError):  # Serve was ended elsewhere
            while not _deleted():
                if time.monotonic() > ends:
                    raise remaining
            if ours and not serve.status().applications:
                _shut_down()
    except KeyboardInterrupt:
        raise remaining from None


def _deleted() -> bool:
    """Delete the deployment, and wait for as long as Serve does: a minute."""
    from ray import serve

    try:
        serve.delete(NAME)
    except TimeoutError:
        return False
    return True


def _shut_down() -> None:
    """End Serve on the cluster, and wait until it can be started again."""
    from ray import serve

    serve.shutdown()
    ends = time.monotonic() + _MARGIN
    while time.monotonic() < ends and _runs():
        time.sleep(0.05)


def _runs() -> bool:
    """Whether Serve has an actor on the cluster."""
    import ray

    return any(each["namespace"] == _NAMESPACE for each in ray.util.list_named_actors(all_namespaces=True))


@contextmanager
def _interrupted() -> Iterator[None]:
    """SIGTERM is handled as SIGINT is."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Serve's progress on standard error."""
    import ray.serve  # sets the level

    logger = logging.getLogger(ray.serve.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _messages() -> list[str]:
    """What Serve says about the deployment."""
    from ray import serve

    found = serve.status().applications.get(NAME)
    return [] if found is None else [each.message for each in found.deployments.values()]


def explained(text: str) -> ConfigError | OutputError:
    """The reason for which no replica could be started, in one line.

    Args:
        text: What Serve says, with the replica's traceback.
    """
    if found := _ERROR.findall(text):
        return ConfigError(found[-1])
    return OutputError(f"the server could not be deployed: {_last_line(text)}", remedy="see Ray's logs")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason"
