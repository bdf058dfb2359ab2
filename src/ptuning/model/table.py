"""The tasks of one backbone, in memory: added, replaced and removed while passes run.

A :class:`~ptuning.model.packed.PackedTask` never changes, and a pass has its own references to those that it
uses. So a task that is replaced or removed meanwhile stays, whole and in its old version, until the passes
that began with it are over.
"""

from __future__ import annotations

import logging
import shutil
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ptuning import adapters
from ptuning.errors import AdapterMismatch, ConfigError
from ptuning.model.backbone import Backbone
from ptuning.model.loading import check_backbone
from ptuning.model.packed import PackedTask, pack, pack_adapter
from ptuning.model.ptuning import PTuningModel

_LOG = logging.getLogger(__name__)


class TaskTable:
    """Tasks by name, on one backbone. Any number of threads may use it.

    Args:
        backbone: Their backbone.
        tokenizer: The backbone's, for adapters with a prompt in front of the first text.
        memory_limit: Bytes of tensors on the backbone's device. Beyond it, the tasks that were used least
            recently are moved to host memory, or to temporary files if the device is the CPU, until they are
            used again. The task that is used stays, and so do tensors that a pass has. ``None`` for no
            limit.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        memory_limit: int | None = None,
    ) -> None:
        if memory_limit is not None and memory_limit < 1:
            raise ConfigError("memory_limit", got=memory_limit, expected="at least 1 byte, or None")
        self.backbone = backbone.view()
        self.tokenizer = tokenizer
        self.memory_limit = memory_limit
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # least recently used first
        self._nbytes = 0
        self._lock = threading.Lock()
        self._store: _Store | None = None

    def packed(self, name: str, task: PTuningModel | adapters.Adapter, digest: str = "") -> PackedTask:
        """A task as :meth:`put` adds it, without adding it. It does not follow later changes of ``task``.

        Args:
            task: A model, or what :func:`ptuning.adapters.load` returned.
            digest: Of the adapter, to tell versions apart.

        Raises:
            AdapterMismatch: the task is for another backbone.
        """
        if isinstance(task, adapters.Adapter):
            check_backbone(self.backbone, task)
            return pack_adapter(task, self.backbone, name, digest, tokenizer=self.tokenizer)
        self._check_weights(name, task)
        return pack(task, name, digest)

    def put(
        self, name: str, task: PTuningModel | adapters.Adapter | PackedTask, digest: str = ""
    ) -> PackedTask:
        """Add a task, or replace the one of that name. It does not follow later changes of ``task``.

        Args:
            task: A model, what :func:`ptuning.adapters.load` returned, or what :meth:`packed` made of them.
            digest: Of the adapter, to tell versions apart; a packed task has its own.

        Raises:
            AdapterMismatch: the task is for another backbone.
        """
        packed = task if isinstance(task, PackedTask) else self.packed(name, task, digest)
        with self._lock:
            self._drop(name)
            self._slots[name] = _Slot(packed, packed.nbytes)
            self._nbytes += packed.nbytes
            self._make_room(name)
        return packed

    def _check_weights(self, name: str, model: PTuningModel) -> None:
        if not model.backbone.same_weights(self.backbone):
            raise AdapterMismatch(
                f"the task {name!r} stands on another backbone than the table",
                got=model.backbone.name,
                expected=f"{self.backbone.name}, the same module",
                remedy="load the adapter with backbone=table.backbone",
            )

    def remove(self, name: str) -> None:
        """Remove a task.

        Raises:
            KeyError: there is none of that name.
        """
        with self._lock:
            if name not in self._slots:
                raise KeyError(name)
            self._drop(name)

    def __getitem__(self, name: str) -> PackedTask:
        with self._lock:
            slot = self._slots[name]
            self._slots.move_to_end(name)
            if not slot.resident:
                slot.bring_back(self.backbone.device)
                self._nbytes += slot.nbytes
                self._make_room(name)
            return slot.task

    def __contains__(self, name: object) -> bool:
        return name in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """In alphabetical order."""
        with self._lock:
            return tuple(sorted(self._slots))

    @property
    def nbytes(self) -> int:
        """Of the tensors on the device."""
        return self._nbytes

    def _drop(self, name: str) -> None:
        if (slot := self._slots.pop(name, None)) is None:
            return
        if slot.resident:
            self._nbytes -= slot.nbytes
        if slot.stored is not None:
            slot.stored.discard()

    def _make_room(self, name: str) -> None:
        """Move tasks out, least recently used first, until the limit is kept; not the one of that name."""
        if self.memory_limit is None:
            return
        for other, slot in list(self._slots.items()):
            if self._nbytes <= self.memory_limit:
                return
            if other == name or not slot.resident or slot.task.alone is not None:
                continue
            try:
                if slot.stored is None:
                    self._store = self._store or _store_for(self.backbone.device)
                    slot.stored = self._store.keep(dict(slot.task.tensors()))
            except (OSError, SafetensorError) as error:  # a full disk: better too much memory than no answer
                _LOG.warning("the task %s stays in memory, beyond the limit: %s", other, error)
                return
            slot.send_away()
            self._nbytes -= slot.nbytes


@dataclass
class _Slot:
    """A task's place in the table.

    Attributes:
        task: With its tensors if it is resident.
        nbytes: Of its tensors.
        resident: Whether they are on the device.
        stored: Where they are kept otherwise.
        last: What :attr:`task` was when it was resident last, if a row that waits or a pass still has it.
    """

    task: PackedTask
    nbytes: int
    resident: bool = True
    stored: _Stored | None = None
    last: weakref.ref[PackedTask] | None = None

    def send_away(self) -> None:
        """Let go of the tensors, which are stored."""
        self.last = weakref.ref(self.task)
        self.task, self.resident = self.task.with_tensors({}), False

    def bring_back(self, device: torch.device) -> None:
        """Have the tensors again; there is one copy of them, however many rows wait with it."""
        found = None if self.last is None else self.last()
        if found is None:
            assert self.stored is not None  # it was sent away
            found = self.task.with_tensors(self.stored.load(device))
        self.task, self.resident = found, True


class _Stored(Protocol):
    """The tensors of one task, outside the device."""

    def load(self, device: torch.device) -> Mapping[str, Tensor]: ...

    def discard(self) -> None: ...


class _Store(Protocol):
    """Where tasks are moved to."""

    def keep(self, tensors: Mapping[str, Tensor]) -> _Stored:
        """Keep a copy.

        Raises:
            OSError: there is no room for it.
            SafetensorError: the same, from safetensors.
        """


def _store_for(device: torch.device) -> _Store:
    return _Files() if device.type == "cpu" else _HostMemory()


class _Files:
    """Temporary files, deleted with the table."""

    def __init__(self) -> None:
        self._folder = Path(mkdtemp(prefix="ptuning-table-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._count = 0

    def keep(self, tensors: Mapping[str, Tensor]) -> _Stored:
        self._count += 1
        file = self._folder / f"{self._count}.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, file)
        return _File(file)


@dataclass(frozen=True)
class _File:
    path: Path

    def load(self, device: torch.device) -> Mapping[str, Tensor]:
        return load_file(self.path, device=str(device))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


class _HostMemory:
    """Pinned host memory, from which a copy to the device takes microseconds."""

    def keep(self, tensors: Mapping[str, Tensor]) -> _Stored:
        pinned = torch.cuda.is_available()
        host = {name: value.cpu() for name, value in tensors.items()}
        return _Host({name: value.pin_memory() if pinned else value for name, value in host.items()})


@dataclass(frozen=True)
class _Host:
    tensors: Mapping[str, Tensor]

    def load(self, device: torch.device) -> Mapping[str, Tensor]:
        return {name: value.to(device, non_blocking=True) for name, value in self.tensors.items()}

    def discard(self) -> None:
        """The memory is freed with the object."""
