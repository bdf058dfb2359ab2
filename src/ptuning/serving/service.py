"""The server without HTTP: rows in, answers and refusals out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ptuning.serving.engine import Done, Engine, Job, Run, gone, too_late
from ptuning.serving.memory import release_free_memory
from ptuning.serving.metrics import Metrics
from ptuning.serving.rows import Refusal, Row, RowAnswer, Timing
from ptuning.serving.scheduler import Overloaded, Scheduler
from ptuning.serving.settings import Settings
from ptuning.serving.tasks import Lookup, TaskRegistry
from ptuning.serving.tokenising import Tokenising
from ptuning.serving.turns import Waiting
from ptuning.serving.watching import FolderWatch

_LOG = logging.getLogger(__name__)


def _everything(name: str) -> bool:
    return True


@dataclass(eq=False, kw_only=True)
class _Request:
    """The rows of a request in the engine, each in one or more windows.

    Attributes:
        outcomes: The end of each window that was admitted, by its row's place and its number.
        missing: Windows without one.
        finished: Set when there is none.
        started: When its first batch was started.
    """

    missing: int
    finished: asyncio.Future[None]
    outcomes: dict[tuple[int, int], Done] = field(default_factory=dict)
    started: float | None = None


class Service:
    """Answers rows for the tasks of a registry. One per process; its methods belong to one event loop.

    Args:
        tasks: The tasks.
        run: One forward pass: rows and their tasks to the logits of each row. By default
            :func:`ptuning.inference.mixed.mixed_logits` on the table's backbone.
        settings: The limits.
        metrics: Where everything is counted; those of the registry if ``None``.
        watch: The folder that the tasks are in, if it is to be watched.

    Attributes:
        tasks: As given.
        settings: As given.
        metrics: As given.
    """

    def __init__(
        self,
        tasks: TaskRegistry,
        *,
        run: Run | None = None,
        settings: Settings | None = None,
        metrics: Metrics | None = None,
        watch: FolderWatch | None = None,
    ) -> None:
        self.tasks, self.settings = tasks, settings or Settings()
        self.metrics = metrics or tasks.metrics
        self._watch = watch
        self._background: list[asyncio.Task[None]] = []
        scheduler: Scheduler[Job] = Scheduler(self.settings)
        self._clock = scheduler.clock
        self._engine = Engine(scheduler, run or _run_on(tasks), self._deliver, self.metrics)
        self._tokenising = Tokenising(tasks.tokenizer, tasks.table.backbone, self.settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = self._draining = False
        self._open: set[_Request] = set()
        self.metrics.watch(self)

    # ------------------------------------------------------------------------------------------- state

    @property
    def ready(self) -> bool:
        """Whether requests are accepted and answered."""
        return self._started and not self._draining and self.engine_up

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop."""
        return self._draining

    @property
    def engine_up(self) -> bool:
        """Whether batches are run, and the current one has not taken too long."""
        return self._engine.alive and self._engine.heartbeat_age < self.settings.stall_seconds

    @property
    def failed(self) -> bool:
        """Whether nothing can be answered until the process is started again."""
        return self._engine.failed

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the engine's thread last showed that it is alive."""
        return self._engine.heartbeat_age

    @property
    def queued(self) -> tuple[int, int]:
        """Rows and tokens in the queue."""
        return self._engine.queued

    @property
    def table_bytes(self) -> int:
        """Bytes of the tasks on the device."""
        return self.tasks.table.nbytes

    @property
    def task_states(self) -> Counter[str]:
        """Tasks by state."""
        return self.tasks.states

    # -------------------------------------------------------------------------------------------- life

    async def start(self) -> None:
        """Load the tasks of the watched folder, and start the threads."""
        self._loop = asyncio.get_running_loop()
        self._engine.start()
        if self._watch is not None:
            await self._watch.rescan()
            self._background.append(asyncio.create_task(self._watch.run()))
        self._background.append(asyncio.create_task(self._release_memory()))
        if self.settings.warm_up:
            await self._warm_up()
        self._started = True

    async def _release_memory(self) -> None:
        """Return freed memory every now and then, so that the process does not grow without end."""
        possible = True
        while possible:
            await asyncio.sleep(self.settings.release_seconds)
            possible = await asyncio.to_thread(release_free_memory)

    async def _warm_up(self) -> None:
        """Run a full batch of the first task: what fails on this device fails now, and its rate is known."""
        served = self.tasks.all()
        if not served:
            return
        words = "a " * (self.settings.batch_tokens // self.settings.batch_rows)
        row = Row(task=served[0].name, text=words, text_pair=words if served[0].task.pair else None)
        jobs = await self._tokenising([row] * self.settings.batch_rows, Lookup(self.tasks), truncate=True)
        good = [job for job in jobs if isinstance(job, Job)]
        windows = sum(len(job.row.windows) for job in good)
        request = _Request(missing=windows, finished=asyncio.get_running_loop().create_future())
        if good:
            await self._run(request, good, caller="", deadline=float("inf"))

    async def drain(self) -> None:
        """Accept no more requests. Those that are still open get 503."""
        self._draining = True
        for request in self._open:
            if not request.finished.done():
                request.finished.set_exception(gone())
        await asyncio.sleep(0)  # they are answered

    async def close(self) -> None:
        """Stop all threads. What is still open gets 503."""
        await self.drain()
        while self._background:
            task = self._background.pop()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for stop in (self._engine.stop, self._tokenising.close, self.tasks.close):
            await asyncio.to_thread(stop)

    # ---------------------------------------------------------------------------------------- requests

    async def answer(
        self,
        rows: Sequence[Row],
        *,
        truncate: bool = True,
        timeout: float | None = None,
        caller: str = "",
        visible: Callable[[str], bool] = _everything,
    ) -> tuple[list[RowAnswer | Refusal], Timing]:
        """The answers to rows of any tasks, in their order. They share batches with other requests.

        If the awaiting task is cancelled, its rows leave the queue.

        Args:
            truncate: Whether a text that is too long is cut; otherwise its row is refused.
            timeout: Seconds; the setting's if ``None``, and at most that.
            caller: Whose rows these are, such as the name of an API key. Callers get equal shares.
            visible: Whether the caller may use a task; others are unknown to it.

        Returns:
            One answer per row, or the refusal of that row: a task that is unknown or cannot be read, empty or
            too long, a pair for a task of single texts and the other way round, logits that are not finite.
            All rows of one task are answered by the same version. And how long it took.

        Raises:
            Refusal: for the entire request: 413 too many rows, 429 overloaded, 503 not ready or draining,
                504 timeout.
        """
        try:
            self._check(len(rows))
            seconds = min(timeout or self.settings.timeout, self.settings.timeout)
            try:
                async with asyncio.timeout(seconds):
                    return await self._answered(rows, truncate, caller, visible, self._clock() + seconds)
            except TimeoutError:
                raise too_late(seconds) from None
        except Refusal as refusal:
            self.metrics.rejected(refusal.kind)
            raise

    def _check(self, rows: int) -> None:
        """Refuse a request before any work is done for it."""
        if not self.ready:
            raise gone()
        if rows > self.settings.max_rows:
            raise Refusal(
                status=413,
                kind="too_many_rows",
                message=f"the request has {rows:,} rows, and the server takes at most "
                f"{self.settings.max_rows:,}; send several requests",
            )

    async def _answered(
        self,
        rows: Sequence[Row],
        truncate: bool,
        caller: str,
        visible: Callable[[str], bool],
        deadline: float,
    ) -> tuple[list[RowAnswer | Refusal], Timing]:
        begun = self._clock()
        counts = Counter(row.task for row in rows)
        try:
            self._engine.reserve(caller, counts)
        except Overloaded as error:
            raise _overloaded(error) from None
        try:
            jobs = await self._tokenising(
                rows, Lookup(self.tasks, visible), truncate=truncate, most=self.settings.queue_rows
            )
            self._check_windows(caller, jobs)
        finally:
            self._engine.release(caller, counts)
        admitted = self._clock()
        request = _Request(
            missing=sum(len(job.row.windows) for job in jobs if isinstance(job, Job)),
            finished=asyncio.get_running_loop().create_future(),
        )
        if request.missing:
            await self._run(request, [job for job in jobs if isinstance(job, Job)], caller, deadline)
        ended = self._clock()
        started = request.started or ended
        timing = Timing(tokenise=admitted - begun, queue=started - admitted, inference=ended - started)
        self.metrics.stages(tokenise=timing.tokenise, queue=timing.queue, inference=timing.inference)
        answers = [job if isinstance(job, Refusal) else _answer(job, request.outcomes) for job in jobs]
        self._count(rows, jobs, answers)
        return answers, timing

    def _check_windows(self, caller: str, jobs: Sequence[Job | Refusal]) -> None:
        """Refuse a request for whose further windows the queue has no places now."""
        more: Counter[str] = Counter()
        for job in jobs:
            if isinstance(job, Job) and job.row.more:
                more[job.packed.name] += len(job.row.more)
        if not more:
            return
        try:
            self._engine.reserve(caller, more)
        except Overloaded as error:
            raise _overloaded(error) from None
        self._engine.release(caller, more)  # they enter the queue without waiting for anything else

    async def _run(self, request: _Request, jobs: Sequence[Job], caller: str, deadline: float) -> None:
        """Put the jobs into the queue and wait until all are done."""
        waiting = []
        for job in [window for row in jobs for window in row.windows]:
            job.request = request
            waiting.append(
                Waiting(
                    payload=job,
                    key=job.packed.key,
                    caller=caller,
                    task=job.packed.name,
                    length=job.length,
                    deadline=deadline,
                )
            )
        if self._draining:
            raise gone()
        try:
            self._engine.submit(waiting)
        except Overloaded as error:
            raise _overloaded(error) from None
        self._open.add(request)
        try:
            await request.finished
        finally:
            self._open.discard(request)
            if not request.finished.cancelled() and request.finished.done():
                request.finished.exception()  # or asyncio reports it if a timeout came first
            if request.missing:
                self._engine.remove(waiting)

    def _deliver(self, done: Sequence[Done]) -> None:
        """Called by the engine's thread."""
        if done and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
                self._loop.call_soon_threadsafe(self._settle, done)

    def _settle(self, done: Sequence[Done]) -> None:
        for each in done:
            request: _Request = each.job.request
            place = each.job.place, each.job.window
            assert place not in request.outcomes, "a row is answered once"
            request.outcomes[place] = each
            request.missing -= 1
            if isinstance(each.outcome, Refusal) and each.outcome.kind in (gone().kind, too_late().kind):
                if not request.finished.done():
                    request.finished.set_exception(each.outcome)  # the entire request's
                continue
            request.started = each.started if request.started is None else min(request.started, each.started)
            if not request.missing and not request.finished.done():
                request.finished.set_result(None)

    def _count(
        self, rows: Sequence[Row], jobs: Sequence[Job | Refusal], answers: Sequence[RowAnswer | Refusal]
    ) -> None:
        counts: Counter[tuple[str, bool, str]] = Counter()
        for row, job, answer in zip(rows, jobs, answers, strict=True):
            refused = answer.kind if isinstance(answer, Refusal) else ""
            known = isinstance(job, Job) or row.task in self.tasks
            truncated = isinstance(answer, RowAnswer) and answer.truncated
            counts[row.task if known else "", truncated, refused] += 1
        for (task, truncated, refused), count in counts.items():
            self.metrics.rows(task, count, truncated=truncated, refused=refused)


def _answer(job: Job, outcomes: Mapping[tuple[int, int], Done]) -> RowAnswer | Refusal:
    """The answer to a row: the mean of its windows' logits, or the first refusal among them."""
    windows = job.row.windows
    found: list[tuple[float, ...]] = []
    for number in range(len(windows)):
        outcome = outcomes[job.place, number].outcome
        if isinstance(outcome, Refusal):
            return outcome
        found.append(outcome)
    packed = job.packed
    return RowAnswer(
        name=packed.name,
        digest=packed.digest,
        task=packed.task,
        logits=found[0] if len(found) == 1 else tuple(torch.tensor(found).mean(0).tolist()),
        tokens=sum(map(len, windows)),
        truncated=job.truncated,
    )


def _overloaded(error: Overloaded) -> Refusal:
    return Refusal(
        status=429,
        kind="overloaded",
        message=f"the server is overloaded; try again in {error.retry_after:.0f} s",
        retry_after=error.retry_after,
    )


def _run_on(tasks: TaskRegistry) -> Run:
    from ptuning.inference.mixed import mixed_logits

    backbone, pad_id = tasks.table.backbone, int(tasks.tokenizer.pad_token_id or 0)
    return lambda rows, packed: mixed_logits(backbone, rows, packed, pad_id=pad_id)
