"""The one thread that runs the backbone: takes batches from the queue, and hands their answers back.

A batch that fails is halved and run again, down to single rows, so that a bad row fails alone. If the device
is out of memory, later batches are smaller, too. After some CUDA errors nothing works until the process is
started again: then the thread ends.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ptuning.data.tokens import TokenRow, windows_of
from ptuning.errors import out_of_memory
from ptuning.model import PackedTask
from ptuning.serving.metrics import Metrics
from ptuning.serving.rows import Refusal
from ptuning.serving.scheduler import Scheduler
from ptuning.serving.turns import Waiting

_LOG = logging.getLogger(__name__)

Run = Callable[[Sequence[TokenRow], Sequence[PackedTask]], Sequence[Tensor]]
"""One forward pass: the logits ``[C]`` of each row."""

HEARTBEAT = 1.0
"""Seconds after which an idle engine shows that it is alive."""

STOP = 30.0
"""Seconds that a batch may take when the server stops."""

FAILURES = 8
"""Failed batches in a row after which the engine looks whether the device still works."""


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """A tokenised row, or one of its windows, on its way through the engine.

    Attributes:
        row: Its token ids.
        packed: The version of the task that was current when the row was admitted.
        truncated: Whether the text was cut.
        request: Whose row it is; the engine does not look at it.
        place: Which row of the request it is.
        window: Which window of that row it is.
    """

    row: TokenRow
    packed: PackedTask
    truncated: bool = False
    request: Any = None
    place: int = 0
    window: int = 0

    @property
    def length(self) -> int:
        """Tokens, virtual ones included; of a row with several windows, those of the first."""
        return len(self.row) + self.packed.inserted_tokens

    @property
    def windows(self) -> list[Job]:
        """A job for each window. They share batches like rows, so a long text needs no larger batch."""
        if not self.row.more:
            return [self]
        windows = enumerate(windows_of([self.row]))
        return [replace(self, row=window, window=number) for number, window in windows]


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a job.

    Attributes:
        job: The job.
        outcome: Its logits, or why it has none.
        started: When its batch was started, by the scheduler's clock.
    """

    job: Job
    outcome: tuple[float, ...] | Refusal
    started: float


class Engine:
    """Runs the batches of a scheduler in a thread of its own. Other methods may be called from any thread.

    Args:
        scheduler: The queue. Nobody else may use it while the engine runs.
        run: One forward pass. Only the engine's thread calls it.
        deliver: Called in the engine's thread with what has been done. Each admitted job is delivered once,
            unless it is removed before.
        metrics: Where batches are counted.
    """

    def __init__(
        self,
        scheduler: Scheduler[Job],
        run: Run,
        deliver: Callable[[Sequence[Done]], None],
        metrics: Metrics,
    ) -> None:
        self._scheduler, self._run, self._deliver, self._metrics = scheduler, run, deliver, metrics
        self._clock = scheduler.clock
        self._changed = threading.Condition()
        self._running: list[Waiting[Job]] = []
        self._stopping = self._dead = False
        self._failures = 0  # batches without an answer in a row
        self._good: Job | None = None  # the last that was answered
        self._beat = self._clock()
        self._thread = threading.Thread(target=self._live, name="ptuning-engine", daemon=True)

    # ------------------------------------------------------------------------------- from any thread

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = STOP) -> None:
        """End the thread after the current batch; what is in the queue gets 503.

        Args:
            seconds: How long to wait for the current batch. After that the thread is left to itself.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether batches are run."""
        return self._thread.is_alive() and not self._dead

    @property
    def failed(self) -> bool:
        """Whether the thread has ended by itself. It does not start again."""
        return self._dead and not self._stopping

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the thread last showed that it is alive; while a pass runs, how long it has taken."""
        return self._clock() - self._beat

    @property
    def queued(self) -> tuple[int, int]:
        """Rows and tokens in the queue."""
        return self._scheduler.rows, self._scheduler.tokens

    def reserve(self, caller: str, rows: Mapping[str, int]) -> None:
        """Keep places for the rows of a request; see :meth:`Scheduler.reserve`."""
        with self._changed:
            self._scheduler.reserve(caller, rows)

    def release(self, caller: str, rows: Mapping[str, int]) -> None:
        """Give back what :meth:`reserve` kept."""
        with self._changed:
            self._scheduler.release(caller, rows)

    def submit(self, rows: Sequence[Waiting[Job]]) -> None:
        """Admit the rows of a request, all or none.

        Raises:
            Overloaded: the queue has reached its limit.
            Refusal: 503, the engine has ended.
        """
        with self._changed:
            if not self.alive or self._stopping:
                raise gone()
            self._scheduler.admit(rows)
            self._changed.notify()

    def remove(self, rows: Iterable[Waiting[Job]]) -> None:
        """Take rows out of the queue. Rows of the running batch are delivered nevertheless."""
        with self._changed:
            self._scheduler.remove(rows)

    # ----------------------------------------------------------------------------- the engine's thread

    def _live(self) -> None:
        try:
            while (found := self._next()) is not None:
                batch, late = found
                self._deliver([Done(row.payload, too_late(), self._clock()) for row in late])
                if batch:
                    self._deliver(self._answers(batch))
                    self._running = []
        except BaseException:
            _LOG.critical("the engine has ended: no more rows are answered", exc_info=True)
        finally:
            with self._changed:
                self._dead = True
                rest = [*self._running, *self._scheduler.clear()]
            self._deliver([Done(row.payload, gone(), self._clock()) for row in rest])

    def _next(self) -> tuple[list[Waiting[Job]], list[Waiting[Job]]] | None:
        """The next batch and the rows that are too late, as soon as there are any; ``None`` at the end."""
        with self._changed:
            while not self._stopping:
                self._beat = self._clock()
                batch, late = self._scheduler.take()
                if batch or late:
                    self._running = batch
                    return batch, late
                self._changed.wait(HEARTBEAT)
        return None

    def _answers(self, batch: Sequence[Waiting[Job]]) -> list[Done]:
        started = self._clock()
        outcomes = self._outcomes([row.payload for row in batch])
        seconds = self._clock() - started
        tokens = sum(row.length for row in batch)
        with self._changed:
            self._scheduler.ran(tokens, seconds)
            budget = self._scheduler.budget
        self._look_after_device(batch, outcomes)
        longest = max(row.length for row in batch)
        self._metrics.batch(
            rows=len(batch),
            tasks=len({row.task for row in batch}),
            text_tokens=sum(len(row.payload.row) for row in batch),
            prompt_tokens=sum(row.payload.packed.inserted_tokens for row in batch),
            padding_tokens=len(batch) * longest - tokens,
            fill=len(batch) * longest / budget,
            seconds=seconds,
        )
        return [Done(row.payload, outcome, started) for row, outcome in zip(batch, outcomes, strict=True)]

    def _look_after_device(
        self, batch: Sequence[Waiting[Job]], outcomes: Sequence[tuple[float, ...] | Refusal]
    ) -> None:
        """Raise if a row that was answered before fails now: then it is not the rows that are bad."""
        for row, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, tuple):
                self._failures, self._good = 0, row.payload
                return
        self._failures += any(isinstance(each, Refusal) and each.kind == _failed().kind for each in outcomes)
        if self._failures < FAILURES:
            return
        if self._good is None:
            raise RuntimeError(f"none of {self._failures} batches could be run")
        try:
            self._pass([self._good])
        except Exception as error:
            if not out_of_memory(error):
                raise
        self._failures = 0

    def _outcomes(self, jobs: Sequence[Job]) -> list[tuple[float, ...] | Refusal]:
        """The logits of each row, or why it has none; halves the batch if it fails."""
        try:
            return [_checked(logits) for logits in self._pass(jobs)]
        except Exception as error:
            memory = out_of_memory(error)
            if len(jobs) == 1:
                _LOG.exception("a row of the task %r failed", jobs[0].packed.name)
        # Outside the block above, because the error keeps the tensors of the failed pass alive.
        if memory:
            self._free_memory(len(jobs) * max(job.length for job in jobs))
        if len(jobs) == 1:
            return [_no_memory() if memory else _failed()]
        half = len(jobs) // 2
        return [*self._outcomes(jobs[:half]), *self._outcomes(jobs[half:])]

    def _pass(self, jobs: Sequence[Job]) -> list[list[float]]:
        found = self._run([job.row for job in jobs], [job.packed for job in jobs])
        if len(found) != len(jobs):
            raise RuntimeError(f"{len(found)} answers for {len(jobs)} rows")
        return [logits.tolist() for logits in found]

    def _free_memory(self, places: int) -> None:
        _LOG.warning("the device is out of memory with %d tokens: later batches are smaller", places)
        self._metrics.out_of_memory.inc()
        with self._changed:
            self._scheduler.lower_budget(places)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _checked(logits: list[float]) -> tuple[float, ...] | Refusal:
    if all(map(math.isfinite, logits)):
        return tuple(logits)
    return Refusal(
        status=500,
        kind="not_finite",
        message="the logits of this row are not finite; the task may be damaged: train it again",
    )


def _failed() -> Refusal:
    return Refusal(
        status=500,
        kind="inference_failed",
        message="the model failed on this row; the server's log says why",
    )


def _no_memory() -> Refusal:
    return Refusal(
        status=503,
        kind="out_of_memory",
        message="the device has too little memory for this row; shorten it, or try again later",
        retry_after=1.0,
    )


def gone() -> Refusal:
    """The refusal of requests while nothing can be answered."""
    return Refusal(
        status=503,
        kind="unavailable",
        message="the server cannot answer now; try again later",
        retry_after=1.0,
    )


def too_late(seconds: float | None = None) -> Refusal:
    """The refusal of what was not answered in time."""
    within = "in time" if seconds is None else f"within {seconds:g} s"
    return Refusal(
        status=504, kind="timeout", message=f"no answer {within}; send fewer rows, or try again later"
    )
