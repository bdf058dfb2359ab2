"""The server without HTTP: rows in, answers and refusals out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ptuning.serving.rows import Refusal, Row, RowAnswer, Timing
from ptuning.serving.settings import Settings
from ptuning.serving.tasks import TaskRegistry


class Service:
    """Answers rows for the tasks of a registry. One per process; its methods belong to one event loop.

    Attributes:
        tasks: The tasks.
        settings: The limits.
    """

    def __init__(self, tasks: TaskRegistry, *, settings: Settings | None = None) -> None:
        self.tasks, self.settings = tasks, settings or Settings()

    @property
    def ready(self) -> bool:
        """Whether requests are accepted and answered."""
        raise NotImplementedError

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop."""
        raise NotImplementedError

    async def start(self) -> None:
        """Load the tasks and start the threads."""
        raise NotImplementedError

    async def drain(self, seconds: float) -> None:
        """Accept no more requests, and finish those that were accepted; after ``seconds`` the rest get 503."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop all threads."""
        raise NotImplementedError

    async def answer(
        self,
        rows: Sequence[Row],
        *,
        truncate: bool = True,
        timeout: float | None = None,
        caller: str = "",
        visible: Callable[[str], bool] = lambda name: True,
    ) -> tuple[list[RowAnswer | Refusal], Timing]:
        """The answers to rows of any tasks, in their order. They share batches with other requests.

        Args:
            truncate: Whether a text that is too long is cut; otherwise its row is refused.
            timeout: Seconds; the setting's if ``None``.
            caller: Whose rows these are, such as the name of an API key. Callers get equal shares.
            visible: Whether the caller may use a task; others are unknown to it.

        Returns:
            One answer per row, or the refusal of that row: unknown task, empty or too long, a pair for a
            task of single texts and the other way round, logits that are not finite. And how long it took.

        Raises:
            Refusal: for the entire request: 413 too many rows, 429 overloaded, 503 not ready or draining,
                504 timeout.
        """
        raise NotImplementedError
