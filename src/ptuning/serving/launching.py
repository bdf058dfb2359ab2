"""The options of a server as one value, and the service, keys and application that they ask for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator

from ptuning.errors import AdapterError, ConfigError
from ptuning.paths import local_path
from ptuning.serving.hosts import is_loopback
from ptuning.serving.keys import Keys
from ptuning.serving.limits import HttpSettings
from ptuning.serving.settings import Settings
from ptuning.validation import Float, Int, checked

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ptuning.serving.held import Holding
    from ptuning.serving.service import Service

GIB = 1 << 30


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


@checked
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """The options of ``ptuning serve``, with the same names and defaults.

    ``memory_limit`` and ``packed_memory`` are GiB. ``admin_key`` is the key itself.
    """

    adapters: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    folder: str | None = None
    backbone: str | None = None
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Int | None = None
    memory_limit: Float | None = None
    packed_memory: Float | None = None
    allow_pickle: bool = False
    root_path: str = ""
    max_connections: Int = 1024
    keys: str | None = None
    admin_key: str | None = field(default=None, repr=False)
    no_auth: bool = False
    batch_tokens: Int = 4096
    batch_rows: Int = 64
    max_rows: Int = 1024
    max_windows: Int = 64
    max_body_bytes: Int = 2 << 20
    max_upload_bytes: Int = 256 << 20
    max_queue_seconds: Float = 2.0
    timeout: Float = 30.0
    drain_seconds: Float = 25.0
    drain_delay: Float = 0.0
    too_long: Literal["truncate", "error"] = "truncate"
    no_request_log: bool = False
    log_texts: bool = False

    def __post_init__(self) -> None:
        if not self.adapters and self.folder is None:
            raise ConfigError(
                "adapters", got="none", expected="at least one", remedy="name them, or a folder with --folder"
            )
        self.settings()
        self.http()

    def settings(self) -> Settings:
        """The limits of the service."""
        return Settings(
            batch_tokens=self.batch_tokens,
            batch_rows=self.batch_rows,
            max_rows=self.max_rows,
            max_windows=self.max_windows,
            max_body_bytes=self.max_body_bytes,
            queue_seconds=self.max_queue_seconds,
            timeout=self.timeout,
            drain_seconds=self.drain_seconds,
        )

    def http(self) -> HttpSettings:
        """The limits of HTTP."""
        return HttpSettings(
            truncate=self.too_long == "truncate",
            max_upload_bytes=self.max_upload_bytes,
            max_connections=self.max_connections,
            drain_delay=self.drain_delay,
            log_texts=self.log_texts,
        )


def keys_of(options: ServerOptions) -> Keys:
    """The keys that the server accepts.

    Raises:
        ConfigError: the file cannot be read, or the admin key is too short.
    """
    file = None if options.keys is None else local_path(options.keys, "--keys")
    return Keys(file=file, admin_key=options.admin_key)


def check_host(options: ServerOptions, host: str) -> None:
    """Refuse an address that other machines can reach if requests need no key.

    Raises:
        ConfigError: it is one, and ``no_auth`` is not set.
    """
    if options.keys is None and not options.no_auth and not is_loopback(host):
        raise ConfigError(
            f"--host {host}",
            got="no --keys",
            expected="API keys, because other machines can reach this address",
            remedy="make one with --keys FILE --make_key NAME, or allow everybody with --no_auth",
        )


def folder_of(options: ServerOptions) -> Path | None:
    """The folder of adapters that is watched, if there is one.

    Raises:
        ConfigError: it cannot be read.
    """
    if options.folder is None:
        return None
    folder = local_path(options.folder, "--folder").absolute()
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise ConfigError(
            "--folder", got=f"{options.folder}: {error.strerror}", expected="a folder of adapters"
        ) from error
    return folder


def open_all(
    options: ServerOptions, folder: Path | None, holding: Holding | None = None
) -> tuple[Service, Mapping[str, str]]:
    """The service with the adapters that are named, not started yet, and what it runs, in words.

    Args:
        folder: From :func:`folder_of`.
        holding: Keeps the tensors of some tasks only; see :class:`~ptuning.serving.held.HeldTasks`.

    Raises:
        ConfigError: an option that is not possible here.
        AdapterError: an adapter that is named cannot be served.
        BackboneNotFound: there is no backbone.
    """
    import torch
    from accelerate import Accelerator

    from ptuning.serving.opening import open_backbone, open_service
    from ptuning.training.job import precision

    if options.threads is not None:
        if not 1 <= options.threads <= 1024:
            raise ConfigError("--threads", got=options.threads, expected="from 1 to 1024")
        torch.set_num_threads(options.threads)
    device = Accelerator(cpu=options.device == "cpu").device
    dtype = precision(options.precision, device)
    named = _located(options.adapters, options.allow_pickle)
    found = [place for place, _ in named.values()] + ([] if folder is None else _inside(folder))
    backbone, tokenizer = open_backbone(
        options.backbone, found, device=device, dtype=dtype, allow_pickle=options.allow_pickle
    )
    if options.packed_memory is not None:
        backbone.engine = replace(backbone.engine, packed_memory=options.packed_memory)
    service = open_service(
        backbone,
        tokenizer,
        folder=folder,
        settings=options.settings(),
        memory_limit=None if options.memory_limit is None else int(options.memory_limit * GIB),
        holding=holding,
    )
    for name, (place, source) in named.items():
        try:
            service.tasks.load(name, place, source)
        except AdapterError as error:
            problem = f"the adapter {source}: {error.problem}"
            raise type(error)(problem, got=error.got, expected=error.expected, remedy=error.remedy) from error
    about = {
        "backbone": options.backbone or backbone.name,
        "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
        "device": str(device),
    }
    return service, about


def open_app(
    options: ServerOptions, *, holding: Holding | None = None, session_secret: bytes | None = None
) -> tuple[Service, FastAPI]:
    """The service and its application.

    Args:
        holding: As :func:`open_all`'s, for one of several replicas.
        session_secret: Shared by all replicas; see :func:`~ptuning.serving.app.make_app`.

    Raises:
        ConfigError, AdapterError, BackboneNotFound: as :func:`keys_of`, :func:`folder_of`, :func:`open_all`.
    """
    from ptuning.serving.app import make_app
    from ptuning.serving.protocols.exchange import About
    from ptuning.serving.tracing import tracing_from_environment

    keys, folder, tracing = keys_of(options), folder_of(options), tracing_from_environment()
    service, about = open_all(options, folder, holding)
    app = make_app(
        service,
        keys,
        options.http(),
        about=About(**about),
        folder=folder,
        tracing=tracing,
        root_path=options.root_path.rstrip("/"),
        loopback_only=not keys.required and not options.no_auth,
        session_secret=session_secret,
        several=holding is not None,
    )
    return service, app


def task_names(given: Sequence[str]) -> dict[str, str]:
    """Where adapters are, by the name of their task: its last name, or ``NAME`` of ``NAME=ADAPTER``.

    Raises:
        ConfigError: a name that a task may not have, or one that two adapters have.
    """
    from ptuning.serving.tasks import check_name

    found: dict[str, str] = {}
    for each in given:
        name, equals, source = each.partition("=")
        if not equals:
            name, source = os.path.basename(os.path.abspath(each)), each
        check_name(name)
        if name in found:
            raise ConfigError(
                f"the task {name!r}",
                got=f"{found[name]} and {source}",
                expected="one adapter for each name",
                remedy="name one of them: NAME=ADAPTER",
            )
        found[name] = source
    return found


def _located(given: Sequence[str], allow_pickle: bool) -> dict[str, tuple[Path, str]]:
    """The adapters that are named by the name of their task: the folder, and how it was given."""
    from ptuning import adapters

    found: dict[str, tuple[Path, str]] = {}
    for name, source in task_names(given).items():
        place = adapters.locate(source, allow_pickle=allow_pickle)
        adapters.details(place)
        found[name] = (place, source)
    return found


def _inside(folder: Path) -> list[Path]:
    from ptuning import adapters

    return [each for each in sorted(folder.iterdir()) if adapters.is_adapter(each)]
