"""Puts a service together: backbone, table, tasks, watched folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ptuning import adapters
from ptuning.errors import AdapterError, ConfigError
from ptuning.model import Backbone, TaskTable
from ptuning.model.loading import load_backbone, load_tokenizer
from ptuning.serving.held import HeldTasks, Holding
from ptuning.serving.metrics import Metrics
from ptuning.serving.service import Service
from ptuning.serving.settings import Settings
from ptuning.serving.tasks import TaskRegistry
from ptuning.serving.watching import FolderWatch


def open_backbone(
    name: str | None,
    folders: Sequence[Path] = (),
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = False,
) -> tuple[Backbone, PreTrainedTokenizerBase]:
    """The backbone that tasks are served on, and its tokenizer.

    Args:
        name: A Hub id, a folder, or ``demo``; ``None`` for the one that the first readable adapter names.
        folders: Adapters.
        device: Where it runs; where it was loaded if ``None``.
        dtype: Of its weights; as in its files if ``None``.
        token: The Hub's access token.
        allow_pickle: Read ``pytorch_model.bin`` if there are no safetensors, also of a backbone that an
            adapter names.

    Raises:
        ConfigError: no name, and no adapter that names one.
        BackboneNotFound: it cannot be loaded.
    """
    revision = None
    pickled = allow_pickle or name is not None
    if name is None:
        name, revision = _recorded(folders)
    backbone, tokenizer = load_backbone(name, None, None, None, revision, dtype, token, pickled)
    if device is not None:
        backbone.to(device)
    return backbone, tokenizer or load_tokenizer(name, revision, token)


def _recorded(folders: Sequence[Path]) -> tuple[str, str | None]:
    """Name and revision of the backbone of the first adapter that has one."""
    for folder in folders:
        try:
            facts = adapters.details(folder)["backbone"]
        except AdapterError:
            continue  # it will be refused, by name, when it is loaded
        if facts["name"]:
            return facts["name"], facts["revision"]
    raise ConfigError(
        "the backbone",
        got="no name",
        expected=f"a Hub id or a folder, because none of {len(folders)} adapters names it",
        remedy="name it with --backbone (in Python: backbone=…)",
    )


def open_service(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path | None = None,
    settings: Settings | None = None,
    memory_limit: int | None = None,
    holding: Holding | None = None,
) -> Service:
    """A service that has not been started, with no tasks yet.

    Args:
        folder: A folder of adapters to watch.
        memory_limit: Bytes of tasks on the device; see :class:`~ptuning.model.TaskTable`.
        holding: Keeps the tensors of some tasks only; see :class:`~ptuning.serving.held.HeldTasks`.
    """
    settings = settings or Settings()
    table = TaskTable(backbone, tokenizer, memory_limit=memory_limit)
    metrics, threads = Metrics(settings.metrics_tasks), settings.load_threads
    if holding is None:
        tasks = TaskRegistry(table, tokenizer, metrics=metrics, threads=threads)
    else:
        tasks = HeldTasks(table, tokenizer, holding=holding, metrics=metrics, threads=threads)
    watch = None
    if folder is not None:
        watch = FolderWatch(
            folder=folder,
            tasks=tasks,
            poll_seconds=settings.poll_seconds,
            grace_seconds=settings.grace_seconds,
            threads=settings.load_threads,
        )
    return Service(tasks, settings=settings, watch=watch)
