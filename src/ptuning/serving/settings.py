"""All limits of the server and their defaults, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ptuning.errors import ConfigError
from ptuning.validation import Float, Int, checked

_Count = Annotated[Int, Field(ge=1)]
_Seconds = Annotated[Float, Field(gt=0)]
_Share = Annotated[Float, Field(ge=0, le=1)]


@checked
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The limits of the server.

    Args:
        batch_tokens: Maximum tokens per batch: its rows times the length of the longest, virtual tokens
            included. A row that is longer is refused.
        batch_rows: Maximum rows per batch.
        max_padding: Maximum share of padding in a batch that is not small. A row joins a batch only if it is
            about as long as the others.
        queue_seconds: Maximum time that a new request would wait for the rows that go before it in fair
            turns, as measured; above it, it is refused with 429.
        queue_batches: A request is not refused for its waiting time while at most as many tokens as in so
            many full batches go before it.
        queue_rows: Maximum rows in the server, waiting or being tokenised. A caller or task with many of them
            has at most as many as it leaves free.
        max_rows: Maximum rows per request.
        max_text_characters: Maximum characters per text.
        max_windows: Maximum windows of a text that is too long. A row with more is refused.
        max_body_bytes: Maximum bytes of the body of a request.
        timeout: Seconds after which a request is answered with 504.
        tokenise_threads: Threads that turn texts into token ids. Each has its own copy of the tokenizer.
        load_threads: Threads that load adapters.
        warm_up: Whether one full batch is run before the server is ready. It shows that the device has enough
            memory, and how fast it is.
        stall_seconds: The server is not ready if a pass takes longer than this.
        drain_seconds: Seconds in which admitted requests are finished when the server stops.
        poll_seconds: Seconds between two scans of a watched folder.
        grace_seconds: Seconds for which the folder of a task may be missing before the task is removed,
            because it can be missing for a moment while it is replaced.
        release_seconds: Seconds between two returns of freed memory to the operating system.
        metrics_tasks: Maximum tasks with metrics of their own; the others are counted together, as ``other``.
    """

    batch_tokens: _Count = 4096
    batch_rows: _Count = 64
    max_padding: _Share = 0.25
    queue_seconds: _Seconds = 2.0
    queue_batches: _Count = 4
    queue_rows: _Count = 16_384
    max_rows: _Count = 1024
    max_text_characters: _Count = 200_000
    max_windows: _Count = 64
    max_body_bytes: _Count = 2 << 20
    timeout: _Seconds = 30.0
    tokenise_threads: _Count = 2
    load_threads: _Count = 2
    warm_up: bool = True
    stall_seconds: _Seconds = 60.0
    drain_seconds: _Seconds = 25.0
    poll_seconds: _Seconds = 2.0
    grace_seconds: _Seconds = 10.0
    release_seconds: _Seconds = 30.0
    metrics_tasks: _Count = 200

    def __post_init__(self) -> None:
        if self.max_rows > self.queue_rows:
            raise ConfigError(
                "max_rows",
                got=self.max_rows,
                expected=f"at most queue_rows, {self.queue_rows}, because a request is admitted entirely",
            )
