"""The tasks that the server answers for: they are added, replaced and removed while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptuning.task import Task


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
    card: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class TaskRegistry:
    """The tasks by name. Names are looked up in a dictionary and never used as a path."""

    failures: Mapping[str, str]
    """Why the newest adapter of a name was refused; an older version may still be served."""

    def get(self, name: str, visible: Callable[[str], bool] = lambda name: True) -> ServedTask:
        """The current version of a task.

        Args:
            visible: Whether the caller may use a task; others are unknown to it, and not suggested.

        Raises:
            Refusal: 404 ``unknown_task``.
        """
        raise NotImplementedError

    def all(self) -> list[ServedTask]:
        """All tasks, by name."""
        raise NotImplementedError

    async def put(self, name: str, folder: Path, source: str | None = None) -> ServedTask:
        """Load an adapter and serve it as ``name``, in place of the previous version if there is one.

        Raises:
            ConfigError: a name that is not allowed.
            AdapterError: a damaged adapter, or one for another backbone. The previous version stays.
        """
        raise NotImplementedError

    async def delete(self, name: str) -> None:
        """Remove a task. Rows that were admitted before are answered.

        Raises:
            Refusal: 404 ``unknown_task``.
        """
        raise NotImplementedError
