"""``ptuning serve``: answers HTTP requests for many adapters on one backbone."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_device, add_packed_memory, add_pickle, add_ray, bytes_of
from ptuning.errors import ConfigError
from ptuning.paths import local_path

if TYPE_CHECKING:
    from ptuning.serving.launching import ServerOptions

ADMIN_KEY = "PTUNING_ADMIN_KEY"
"""The environment variable with the admin key."""


def parser() -> Parser:
    made = Parser(
        prog="ptuning serve",
        usage="ADAPTER… | --folder DIR [options]",
        description="Answer HTTP requests for many adapters on one backbone. Rows of different tasks share "
        "batches. It speaks the protocols of Hugging Face, text-embeddings-inference, infinity, vLLM and the "
        "Open Inference Protocol; see docs/serving.md.",
        epilog="examples: ptuning serve support spam; ptuning serve --folder adapters --keys keys.toml; "
        "ptuning serve --keys keys.toml --make_key search-team",
    )
    made.add_argument(
        "adapters",
        metavar="ADAPTER",
        nargs="*",
        help="adapter folder or Hub id; the task has its last name, or NAME in NAME=ADAPTER",
    )
    made.add_argument(
        "--folder",
        metavar="DIR",
        help="folder whose sub-folders are adapters; adapters that are added, replaced or removed there are "
        "noticed",
    )
    model = made.add_argument_group("model options")
    model.add_argument("--backbone", help="Hub id or folder (default: as recorded in the adapters)")
    add_device(model)
    model.add_argument("--threads", type=int, help="CPU threads of the backbone (default: all cores)")
    model.add_argument(
        "--memory_limit",
        type=float,
        metavar="GIB",
        help="maximum GiB of tasks on the device; beyond it, those that were used least recently are moved "
        "to temporary files (default: no limit)",
    )
    add_packed_memory(made)
    add_pickle(made)

    network = made.add_argument_group("network options")
    network.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1)")
    network.add_argument("--port", type=int, default=8000, help="port; 0 for a free one (default: 8000)")
    network.add_argument(
        "--root_path", default="", metavar="PATH", help="path under which a proxy shows the server"
    )
    network.add_argument(
        "--max_connections", type=int, default=1024, help="maximum open connections (default: 1024)"
    )

    keys = made.add_argument_group("key options")
    keys.add_argument("--keys", metavar="FILE", help="TOML file of API keys; every request then needs one")
    keys.add_argument(
        "--admin_key_file",
        metavar="FILE",
        help=f"file with the key for adding and deleting tasks (default: the variable {ADMIN_KEY})",
    )
    keys.add_argument(
        "--no_auth",
        action="store_true",
        help="allow other addresses and host names than those of the loopback without --keys",
    )
    keys.add_argument(
        "--make_key", metavar="NAME", help="add a key to the file of --keys, print it once, and exit"
    )
    keys.add_argument(
        "--key_tasks", metavar="NAMES", help="tasks of the new key, such as 'spam,support-*' (default: all)"
    )
    keys.add_argument("--key_admin", action="store_true", help="the new key may add and delete tasks")

    limits = made.add_argument_group("limit options")
    for name, kind, default, text in _LIMITS:
        limits.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: {default:,})")
    limits.add_argument(
        "--too_long",
        choices=["truncate", "error"],
        default="truncate",
        help="whether a text is cut or refused that is longer than its task reads, in one window or several, "
        "unless the request says it (default: truncate)",
    )

    cluster = made.add_argument_group("cluster options")
    add_ray(cluster)
    cluster.add_argument(
        "--replicas",
        metavar="NUMBER",
        help="servers on the cluster; MIN-MAX for as many as requests need (default: 1)",
    )
    for name, kind, text in _SCALE:
        cluster.add_argument(f"--{name}", type=kind, help=text)

    logs = made.add_argument_group("log options")
    logs.add_argument("--no_request_log", action="store_true", help="do not log every request")
    logs.add_argument("--log_texts", action="store_true", help="log the texts of requests, too")
    return made


_SCALE: tuple[tuple[str, type, str], ...] = (
    ("ray_cpus", float, "CPU cores per replica (default: 1)"),
    ("ray_gpus", float, "GPUs per replica (default: 0)"),
    (
        "tasks_per_replica",
        int,
        "tasks that a replica holds; beyond it, it lets go of those that were named least recently (default: "
        "1000)",
    ),
    ("target_requests", int, "with --replicas MIN-MAX, requests per replica (default: 64)"),
)
"""Name, type and meaning of the options for a cluster."""

_LIMITS: tuple[tuple[str, type, Any, str], ...] = (
    ("batch_tokens", int, 4096, "maximum tokens per batch, padding and virtual tokens included"),
    ("batch_rows", int, 64, "maximum rows per batch"),
    ("max_rows", int, 1024, "maximum rows per request"),
    ("max_windows", int, 64, "maximum windows of a text that is too long"),
    ("max_body_bytes", int, 2 << 20, "maximum bytes of a request's body"),
    ("max_upload_bytes", int, 256 << 20, "maximum bytes of an uploaded adapter"),
    ("max_queue_seconds", float, 2.0, "a request that would wait longer is refused with 429"),
    ("timeout", float, 30.0, "seconds after which a request is answered with 504"),
    ("drain_seconds", float, 25.0, "seconds in which requests are finished when the server stops"),
    ("drain_delay", float, 0.0, "seconds between the signal to stop and refusing new requests"),
)
"""Name, type, default and meaning of the limits."""


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    if given.make_key is not None:
        _make_key(given)
        return
    for name in ("key_tasks", "key_admin"):
        if getattr(given, name):
            raise ConfigError(f"--{name} is for a new key", remedy="add --make_key NAME")
    if given.ray is None and (unused := _scale(given)):
        raise ConfigError(f"--{next(iter(unused))} is for a cluster", remedy="add --ray ADDRESS")
    if not given.adapters and given.folder is None:
        raise ConfigError(
            "adapters", got="none", expected="at least one", remedy="name them, or a folder with --folder"
        )
    _import_server()
    options = _options(given)
    if given.ray is None:
        _serve(options, given)
    else:
        _serve_on_ray(options, given)


def _serve(options: ServerOptions, given: Any) -> None:
    from ptuning.serving.launching import open_app
    from ptuning.serving.logs import log_to_stderr
    from ptuning.serving.server import Server, listen

    listening = listen(given.host, given.port)
    with listening:
        logging.getLogger("ptuning").addHandler(logging.NullHandler())  # an error is one line, not two
        service, app = open_app(options)
        log_to_stderr(requests=not given.no_request_log)
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def started() -> None:
            gc.collect()
            gc.freeze()  # what was imported and loaded stays: no collection has to look at it again
            count = len(service.tasks)
            what = f"{count:,} task{'s' * (count != 1)}"
            print(f"ptuning: serving {what} at {url}", file=sys.stderr, flush=True)

        Server(app, options.http(), started).run(sockets=[listening])


def _serve_on_ray(options: ServerOptions, given: Any) -> None:
    from ptuning.ray.serving import ScaleOptions, serve_on_ray

    scale = ScaleOptions(**_scale(given))

    def started(url: str) -> None:
        print(f"ptuning: serving on Ray at {url}", file=sys.stderr, flush=True)

    def waiting() -> None:
        why = "ray status shows whether the cluster has room for them"
        print(f"ptuning: waiting for the replicas to start; {why}", file=sys.stderr, flush=True)

    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):  # Ray's notes on its own actors
        serve_on_ray(
            options, scale, given.ray, host=given.host, port=given.port, started=started, waiting=waiting
        )


def _scale(given: Any) -> dict[str, Any]:
    """The options for a cluster that are given."""
    names = ("replicas", *(name for name, _, _ in _SCALE))
    return {name: value for name in names if (value := getattr(given, name)) is not None}


def _import_server() -> None:
    try:
        import fastapi
        import prometheus_client
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            f"ptuning serve needs the package {error.name}",
            remedy="install the server's packages with: pip install 'ptuning[serve]'",
        ) from error
    del fastapi, prometheus_client, uvicorn


# -------------------------------------------------------------------------------------------- keys


def _make_key(given: Any) -> None:
    from ptuning.serving.keys import make_key

    if given.keys is None:
        raise ConfigError("--make_key", got="no file", expected="--keys FILE as well")
    names = ["*"] if given.key_tasks is None else [name.strip() for name in given.key_tasks.split(",")]
    tasks = tuple(name for name in names if name)
    print(make_key(local_path(given.keys, "--keys"), given.make_key, tasks=tasks, admin=given.key_admin))


def _options(given: Any) -> ServerOptions:
    """The options of the server.

    Raises:
        ConfigError: an invalid one, or keys that cannot be read.
    """
    from ptuning.serving.launching import ServerOptions, check_host, keys_of

    for name, least in (("memory_limit", 1), ("packed_memory", 0)):
        bytes_of(given, name, least=least)
    names = {field.name for field in fields(ServerOptions)} - {"admin_key"}
    options = ServerOptions(
        **{name: value for name, value in vars(given).items() if name in names}, admin_key=_admin_key(given)
    )
    keys_of(options)
    check_host(options, given.host)
    return options


def _admin_key(given: Any) -> str | None:
    if given.admin_key_file is None:
        return os.environ.get(ADMIN_KEY) or None
    try:
        text = local_path(given.admin_key_file, "--admin_key_file").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError("--admin_key_file", got=f"{given.admin_key_file}: {why}") from error
    return text.strip()
