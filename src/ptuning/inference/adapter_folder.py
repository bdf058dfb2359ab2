"""Many adapters as tasks of one table, each loaded when a row first names it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ptuning import adapters
from ptuning.errors import AdapterError, AdapterMismatch, ConfigError
from ptuning.model.backbone import Backbone
from ptuning.model.ptuning import PTuningModel
from ptuning.model.table import TaskTable
from ptuning.paths import local_path


class AdapterFolder:
    """The adapters in the sub-folders of a folder. A sub-folder's name is its task's; hidden ones are none.
    Or adapters by name, wherever they are.

    The first adapter that is loaded decides the backbone, unless it is given; all others must be on it.

    Args:
        folder: The folder; or the folder of each adapter, by the name of its task.
        backbone: Hub id or folder of the backbone; by default the one that the first adapter names.
        dtype: Of the frozen weights.
        device: Where to compute.
        memory_limit: As :class:`~ptuning.model.table.TaskTable`'s.
        adjust: Called with the backbone when it is loaded.
        allow_pickle: As :meth:`PTuningModel.from_pretrained`'s.

    Attributes:
        path: The folder; ``None`` if the adapters were given by name.
        names: The tasks, in alphabetical order.

    Raises:
        AdapterError: there is no such folder, or no adapter in it.
    """

    def __init__(
        self,
        folder: str | Path | Mapping[str, str | Path],
        *,
        backbone: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        memory_limit: int | None = None,
        adjust: Callable[[Backbone], None] = lambda backbone: None,
        allow_pickle: bool = False,
    ) -> None:
        self.path = None if isinstance(folder, Mapping) else _folder(folder)
        self._folders = folders_of(folder)
        self.names = tuple(sorted(self._folders))
        self._backbone, self._dtype, self._device = backbone, dtype, device
        self._memory_limit, self._allow_pickle, self._adjust = memory_limit, allow_pickle, adjust
        self._opened: tuple[TaskTable, PreTrainedTokenizerBase] | None = None
        self._first = ""

    @property
    def opened(self) -> tuple[TaskTable, PreTrainedTokenizerBase]:
        """The tasks that were loaded so far, and their tokenizer.

        Raises:
            ConfigError: none was loaded yet.
        """
        if self._opened is None:
            raise ConfigError("no adapter was loaded yet")
        return self._opened

    def folder_of(self, name: str) -> Path:
        """The folder of an adapter.

        Raises:
            KeyError: there is no adapter of that name.
        """
        return self._folders[name]

    def load(self, name: str) -> None:
        """Load a task, unless it is loaded already.

        Raises:
            KeyError: there is no adapter of that name.
            AdapterMismatch: it is on another backbone; names it.
            AdapterError: it was altered or cut short; names it.
        """
        if self._opened is not None and name in self._opened[0]:
            return
        folder = self.folder_of(name)
        try:
            if self._opened is None:
                self._open(name, folder)
            else:
                self._add(name, folder, *self._opened)
        except AdapterMismatch as error:
            others = f"; the first adapter that was loaded is {self._first!r}" if self._first else ""
            raise AdapterMismatch(
                f"the adapter {name!r} in {folder.parent}: {error.problem}",
                got=error.got,
                expected=error.expected,
                remedy=f"all adapters of one call must be on one backbone{others}",
            ) from error

    def _open(self, name: str, folder: Path) -> None:
        """Load the first task, and the backbone."""
        model = PTuningModel.from_pretrained(
            folder, backbone=self._backbone, dtype=self._dtype, allow_pickle=self._allow_pickle
        )
        model = model.to(self._device or "cpu")
        tokenizer = model.tokenizer
        assert tokenizer is not None  # the backbone was given by name
        self._adjust(model.backbone)
        table = TaskTable(model.backbone, tokenizer, memory_limit=self._memory_limit)
        table.put(name, model)
        self._opened, self._first = (table, tokenizer), name

    def _add(self, name: str, folder: Path, table: TaskTable, tokenizer: PreTrainedTokenizerBase) -> None:
        if (folder / adapters.RECORD).is_file():
            table.put(name, adapters.load(folder))
            return
        model = PTuningModel.from_pretrained(
            folder, backbone=table.backbone, tokenizer=tokenizer, allow_pickle=self._allow_pickle
        )
        table.put(name, model.to(table.backbone.device))


def folders_of(folder: str | Path | Mapping[str, str | Path]) -> dict[str, Path]:
    """The folder of each adapter by name, for what :class:`AdapterFolder` takes.

    Raises:
        AdapterError: there is no such folder, or no adapter in it.
    """
    if not isinstance(folder, Mapping):
        path = _folder(folder)
        return {name: path / name for name in _adapters_in(path)}
    if not folder:
        raise AdapterError("there are no adapters", expected="the folder of each by name")
    return {name: _folder(path) for name, path in folder.items()}


def _folder(path: str | Path) -> Path:
    return local_path(path, "the folder of adapters", error=AdapterError)


def _adapters_in(folder: Path) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(each.name for each in entries if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        raise AdapterError(
            f"{folder} cannot be read: {error.strerror or error}", expected="a folder of adapters"
        ) from error
    if "adapter_config.json" in os.listdir(folder):
        raise AdapterError(
            f"{folder} is itself an adapter",
            expected="the folder that it is in",
            remedy="to use it alone, leave out --adapters",
        )
    if not found:
        raise AdapterError(f"{folder} has no adapters", expected="a sub-folder for each task")
    return tuple(found)
