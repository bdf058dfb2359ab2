"""Tasks with the tensors of some of them only: of those that rows have named most recently.

All tasks are listed. An adapter's record is read when the folder is scanned; its tensors are read when a row
first names the task, and again after they were let go. What is let go is decided elsewhere (:data:`Hold`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

from transformers import PreTrainedTokenizerBase

from ptuning import adapters
from ptuning.adapters.folder import CARD, checked
from ptuning.adapters.seal import SELF
from ptuning.data.tokens import Tokenise
from ptuning.model import DeepPrompt, PackedTask, TaskTable
from ptuning.model.config import prompt_from_dict
from ptuning.model.limits import TextLimits, text_limits
from ptuning.model.settling import settle_prompt
from ptuning.serving.metrics import Metrics
from ptuning.serving.tasks import DIGITS, ServedTask, TaskRegistry, _everyone, _nobody, check_name
from ptuning.task import Task

Hold = Callable[[str], "Future[Any]"]
"""Notes, from any thread, that a row has named a task whose tensors are in memory. When the result is there,
tasks beyond the limit have been let go."""
Holding = Callable[[Callable[[str], None]], Hold]
"""Makes a :data:`Hold` from what lets go of a task, by name, which any thread may call."""

_FACTS = (
    *("model_type", "num_layers", "hidden_size", "embedding_size", "key_value_size", "vocab_size"),
    "fingerprint",
)


class HeldTasks(TaskRegistry):
    """As :class:`TaskRegistry`, with the tensors of the tasks that are held.

    Args:
        holding: Makes what decides which tasks are held.
    """

    def __init__(
        self,
        table: TaskTable,
        tokenizer: PreTrainedTokenizerBase,
        *,
        holding: Holding,
        metrics: Metrics | None = None,
        threads: int = 2,
    ) -> None:
        super().__init__(table, tokenizer, metrics=metrics, threads=threads)
        self._hold = holding(self.let_go)
        self._reading = RLock()

    def packed(
        self, name: str, visible: Callable[[str], bool] = _everyone, *, hint: bool = True
    ) -> PackedTask:
        if name not in self._served or not visible(name):
            raise self._unknown(name, visible if hint else _nobody)
        try:
            found = self.table[name]
        except KeyError:
            found = self._found(name, visible if hint else _nobody)
            self._hold(name).result()  # no faster than others are let go
        else:
            self._hold(name)
        return found

    def remove(self, name: str) -> None:
        with self._reading:  # what is read meanwhile would serve it again
            super().remove(name)

    def let_go(self, name: str) -> None:
        """Free a task's tensors. Rows that were admitted before are answered."""
        with self._reading, self._lock, suppress(KeyError):
            self.table.remove(name)

    def _found(self, name: str, visible: Callable[[str], bool]) -> PackedTask:
        """A task's tensors, read from its folder, unless another thread has done so meanwhile.

        Raises:
            Refusal: 404, it was removed.
            AdapterError: it cannot be read. It is tried again for the next row.
        """
        with self._reading:
            served = self._served.get(name)
            if served is None:
                raise self._unknown(name, visible)
            if name not in self.table:
                with self._reported(name):
                    super()._loaded(name, served.folder, served.source, served.folder)
            return self.table[name]

    def _loaded(self, name: str, folder: Path, source: str, home: Path) -> ServedTask:
        with self._reading:
            if name in self.table:  # it is held: the next row gets the new version
                served = super()._loaded(name, folder, source, home)
            else:
                if name in self._served:  # a damaged replacement is refused by all replicas
                    adapters.verify(folder)
                record = adapters.details(folder)
                if self._facts.items() <= record["backbone"].items():
                    served = self._noted(name, folder, source, record)
                else:  # only its tensors show whether it is for this backbone
                    served = super()._loaded(name, folder, source, home)
                    self.let_go(name)
        return served

    def _put(self, name: str, folder: Path, source: str, home: Path) -> ServedTask:
        check_name(name)
        with self._reading:
            try:
                served = super()._loaded(name, folder, source, home)
            except Exception as error:
                self.refused(name, error)
                raise
        self._hold(name).result()
        return served

    def _forget(self, name: str) -> None:
        with suppress(KeyError):
            self.table.remove(name)

    def _noted(self, name: str, folder: Path, source: str, record: dict[str, Any]) -> ServedTask:
        """A task by its record alone.

        Raises:
            AdapterError: the model card was altered.
            ConfigError: a slow tokenizer where a fast one is needed.
        """
        files = record["files"]
        card = checked(folder, CARD, files).decode("utf-8", "replace") if CARD in files else ""
        task = Task.from_dict(record["task"])
        limits = _Limits(task, self._limits(task, record))
        served = ServedTask(
            name=name,
            digest=record[SELF][:DIGITS],
            task=task,
            max_tokens=Tokenise.for_task(limits, self.tokenizer, self.table.backbone).limit,
            loaded_at=time.time(),
            source=source,
            folder=folder.absolute(),
            card=card,
            metrics=record["metrics"],
            details=record,
        )
        with self._lock:
            self._served[name] = served
            self.failures.pop(name, None)
        return served

    def _limits(self, task: Task, record: dict[str, Any]) -> TextLimits:
        backbone, config = self.table.backbone, prompt_from_dict(record["prompt"])
        if isinstance(config, DeepPrompt):
            config = settle_prompt(config, backbone, is_pair_similarity=task.is_pair_similarity)
        return text_limits(backbone, config, task, record["anchors"])

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """The backbone's, as adapters for it record them."""
        facts = asdict(self.table.backbone.facts())
        return {name: facts[name] for name in _FACTS}


@dataclass(frozen=True)
class _Limits:
    """What a task asks of its texts, without its tensors."""

    task: Task
    limits: TextLimits

    @property
    def max_text_tokens(self) -> int | None:
        return self.limits.max_text_tokens

    @property
    def inserted_tokens(self) -> int:
        return self.limits.inserted_tokens

    @property
    def needs_segments(self) -> bool:
        return self.limits.needs_segments

    @property
    def wanted_texts(self) -> tuple[int, ...]:
        return self.limits.wanted_texts
