"""The tasks that the server answers for: they are added, replaced and removed while it runs."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ptuning import adapters
from ptuning.adapters.folder import CARD, checked
from ptuning.adapters.seal import SELF
from ptuning.data.tokens import Tokenise
from ptuning.errors import AdapterError, ConfigError
from ptuning.model import PackedTask, TaskTable
from ptuning.serving.metrics import Metrics
from ptuning.serving.rows import Refusal
from ptuning.task import Task
from ptuning.typos import one_typo_away
from ptuning.visible import visible as shown

_LOG = logging.getLogger(__name__)

NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}", re.ASCII)
"""What a task may be called."""
NAMES = "at most 128 letters, digits, dots, dashes and underscores, the first not a dot"
"""The same in words."""
DIGITS = 12
"""Of a digest, as answers name it."""
_ATTEMPTS = 5
"""How often an adapter is read again because it was replaced meanwhile."""


def _everyone(name: str) -> bool:
    return True


def _nobody(name: str) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class ServedTask:
    """One version of a task.

    Attributes:
        name: The name under which it is served.
        digest: The first 12 hexadecimal digits of the adapter's seal; it identifies the version.
        task: Kind, labels, scale.
        max_tokens: Maximum tokens of a text next to the prompt; ``None`` for no limit.
        loaded_at: Seconds since the epoch.
        source: The folder or the Hub id that it was loaded from.
        folder: Where its files are.
        card: The model card, in Markdown.
        metrics: Metrics by split, and those of the baseline.
        details: The adapter's record.
    """

    name: str
    digest: str
    task: Task
    max_tokens: int | None
    loaded_at: float
    source: str
    folder: Path
    card: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class TaskRegistry:
    """The tasks by name. Names are looked up in a dictionary and never used as a path.

    Args:
        table: Where the tasks' tensors are.
        tokenizer: The backbone's.
        metrics: Where loads are counted.
        threads: Threads that load adapters.

    Attributes:
        failures: Why the adapter of a name in a folder was refused; an older version may still be served.
    """

    def __init__(
        self,
        table: TaskTable,
        tokenizer: PreTrainedTokenizerBase,
        *,
        metrics: Metrics | None = None,
        threads: int = 2,
    ) -> None:
        self.table, self.tokenizer = table, tokenizer
        self.metrics = metrics or Metrics()
        self.failures: dict[str, str] = {}
        self._served: dict[str, ServedTask] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "ptuning-load")

    # ----------------------------------------------------------------------------------------- reading

    def get(self, name: str, visible: Callable[[str], bool] = _everyone) -> ServedTask:
        """The current version of a task.

        Args:
            visible: Whether the caller may use a task; others are unknown to it, and not suggested.

        Raises:
            Refusal: 404 ``unknown_task``.
        """
        served = self._served.get(name)
        if served is None or not visible(name):
            raise self._unknown(name, visible)
        return served

    def packed(
        self, name: str, visible: Callable[[str], bool] = _everyone, *, hint: bool = True
    ) -> PackedTask:
        """The current version's tensors, ready for a pass; may have to read them from disk.

        Args:
            hint: Whether the refusal of an unknown name may suggest another one.

        Raises:
            Refusal: 404 ``unknown_task``.
        """
        if name in self._served and visible(name):
            try:
                return self.table[name]
            except KeyError:
                pass  # removed since
        raise self._unknown(name, visible if hint else _nobody)

    def all(self) -> list[ServedTask]:
        """All tasks, by name."""
        served = dict(self._served)
        return [served[name] for name in sorted(served)]

    def __contains__(self, name: object) -> bool:
        return name in self._served

    def __len__(self) -> int:
        return len(self._served)

    @property
    def states(self) -> Counter[str]:
        """How many tasks are served, and how many adapters were refused."""
        return Counter(ready=len(self._served), failed=len(self.failures))

    def _unknown(self, name: str, visible: Callable[[str], bool]) -> Refusal:
        near = one_typo_away(name, lambda each: each in self._served and visible(each))
        hint = f"; did you mean {near}?" if near else ""
        return Refusal(status=404, kind="unknown_task", message=f"no task {shown(name[:128])!r}{hint}")

    # ---------------------------------------------------------------------------------------- changing

    async def put(
        self, name: str, folder: Path, source: str | None = None, home: Path | None = None
    ) -> ServedTask:
        """Load an adapter and serve it as ``name``, in place of the previous version if there is one.

        A refusal is for whoever sent the adapter; it is not kept in :attr:`failures`.

        Args:
            source: Where it is from, if not from ``folder``, such as a Hub id.
            home: Where the caller moves the folder to, if it does.

        Raises:
            ConfigError: a name that is not allowed.
            AdapterError: a damaged adapter, or one for another backbone. The previous version stays.
        """
        source, home = source or str(folder), home or folder
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, self._put, name, folder, source, home
        )

    def _put(self, name: str, folder: Path, source: str, home: Path) -> ServedTask:
        check_name(name)
        try:
            return self._loaded(name, folder, source, home)
        except Exception as error:
            self.refused(name, error)
            raise

    def load(self, name: str, folder: Path, source: str | None = None) -> ServedTask:
        """As :meth:`put`, in the calling thread; a refusal is kept until the adapter is loaded or removed.

        Several threads may load at the same time.
        """
        check_name(name)
        with self._reported(name):
            return self._loaded(name, folder, source or str(folder), folder)

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Keep the error that a task is refused with."""
        try:
            yield
        except Exception as error:
            if self.failures.get(name) != (why := _why(error)):  # the same error again is not another one
                self.refused(name, error)
            self.failures[name] = why
            raise

    def refused(self, name: str, error: Exception) -> None:
        """Count and log that an adapter was refused."""
        self.metrics.loaded("refused")
        _LOG.warning("the adapter for the task %s was refused: %s", name, _why(error))

    def _loaded(self, name: str, folder: Path, source: str, home: Path) -> ServedTask:
        record, adapter, card = _read(folder)
        digest = record[SELF][:DIGITS]
        with self._lock:  # the table and the dictionary change together
            packed = self.table.packed(name, adapter, digest)
            limit = Tokenise.for_task(packed, self.tokenizer, self.table.backbone).limit  # may refuse it
            self.table.put(name, packed)
            served = self._served[name] = ServedTask(
                name=name,
                digest=digest,
                task=packed.task,
                max_tokens=limit,
                loaded_at=time.time(),
                source=source,
                folder=home.absolute(),
                card=card,
                metrics=record["metrics"],
                details=record,
            )
            self.failures.pop(name, None)
        self.metrics.loaded("loaded")
        _LOG.info("the task %s is served in version %s", name, served.digest)
        return served

    def remove(self, name: str) -> None:
        """Remove a task. Rows that were admitted before are answered. It may wait for one that is loaded.

        Raises:
            Refusal: 404 ``unknown_task``.
        """
        with self._lock:
            failed = self.failures.pop(name, None)
            if self._served.pop(name, None) is not None:
                self._forget(name)
            elif failed is None:
                raise self._unknown(name, _everyone)
        self.metrics.loaded("removed")
        _LOG.info("the task %s was removed", name)

    def _forget(self, name: str) -> None:
        """Let go of a task's tensors."""
        self.table.remove(name)

    def close(self) -> None:
        """End the threads that load."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Lookup:
    """The tasks as one request sees them: each is looked up once, so one version answers all its rows.

    Any thread may call it.

    Args:
        tasks: The tasks.
        visible: As :meth:`TaskRegistry.packed`'s.
    """

    def __init__(self, tasks: TaskRegistry, visible: Callable[[str], bool] = _everyone) -> None:
        self._tasks, self._visible = tasks, visible
        self._found: dict[str, PackedTask | Refusal] = {}
        self._hint = True
        self._lock = threading.Lock()

    def __call__(self, name: str) -> PackedTask | Refusal:
        """The version of a task, or the refusal of its rows: ``unknown_task`` or ``task_unavailable``."""
        with self._lock:
            if name not in self._found:
                self._found[name] = self._find(name)
            return self._found[name]

    def _find(self, name: str) -> PackedTask | Refusal:
        try:
            return self._tasks.packed(name, self._visible, hint=self._hint)
        except Refusal as refusal:
            self._hint = False  # one per request is enough, and a thousand take a second
            return refusal
        except Exception:
            _LOG.exception("the task %s cannot be read back into memory", name)
            message = f"the task {name} cannot be read; try again later, the server's log says why"
            return Refusal(status=503, kind="task_unavailable", message=message, retry_after=1.0)


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def check_name(name: str) -> None:
    """Refuse a name that a task may not have.

    Raises:
        ConfigError: it has other characters, is too long, or starts with a dot.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            "the name of the task",
            got=repr(name[:200]),
            expected=NAMES,
            remedy="choose another name",
        )


def _read(folder: Path) -> tuple[dict[str, Any], adapters.Adapter, str]:
    """Record, adapter and model card of one version of a folder, all files checked against their digests.

    Raises:
        AdapterError: it is damaged, or is replaced all the time.
    """
    for _ in range(_ATTEMPTS):
        record = adapters.details(folder)
        try:
            files = {name: checked(folder, name, record["files"]) for name in record["files"]}
            adapter = adapters.load(folder)
        except AdapterError:
            if adapters.is_adapter(folder) and adapters.details(folder)[SELF] != record[SELF]:
                continue  # it was replaced meanwhile
            raise
        if adapters.details(folder)[SELF] == record[SELF]:
            return record, adapter, files.get(CARD, b"").decode("utf-8", "replace")
    raise AdapterError(f"{folder} was replaced {_ATTEMPTS} times while it was read", remedy="try again")
