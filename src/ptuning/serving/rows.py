"""What goes into the server's queue, and what comes out of it: rows, answers, refusals."""

from __future__ import annotations

from dataclasses import dataclass, field

from ptuning.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One text, or one pair of texts, for one task."""

    task: str
    text: str
    text_pair: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RowAnswer:
    """The answer to one row.

    Attributes:
        name: The task's name.
        digest: Of the adapter that answered.
        task: What the logits mean.
        logits: C numbers, as :meth:`~ptuning.model.ptuning.PTuningModel.forward` returns them.
        tokens: The row's length, without virtual tokens; with several windows, of all of them.
        truncated: Whether the text was cut to what the task takes.
    """

    name: str
    digest: str
    task: Task
    logits: tuple[float, ...]
    tokens: int
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds that a request spent in each stage."""

    tokenise: float = 0.0
    queue: float = 0.0
    inference: float = 0.0


@dataclass(kw_only=True, eq=False)
class Refusal(Exception):
    """A request, or one of its rows, that gets no answer.

    Attributes:
        status: The HTTP status.
        kind: A short name for programs, such as ``unknown_task``.
        message: What was got, what was expected, what to do.
        retry_after: Seconds after which to try again.
    """

    status: int
    kind: str
    message: str
    retry_after: float | None = field(default=None)

    def __str__(self) -> str:
        return self.message
