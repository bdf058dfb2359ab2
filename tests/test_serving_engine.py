"""The engine's thread: a bad row fails alone, memory runs out, the thread dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ptuning.data.tokens import TokenRow
from ptuning.serving.engine import FAILURES, Done, Engine, Job
from ptuning.serving.metrics import Metrics
from ptuning.serving.rows import Refusal
from ptuning.serving.scheduler import Overloaded, Scheduler
from ptuning.serving.settings import Settings
from ptuning.serving.turns import Waiting

Run = Callable[[Sequence[TokenRow], Sequence[Any]], list[Tensor]]
PACKED: Any = SimpleNamespace(name="a", key="deep", inserted_tokens=0)


def first_token(rows: Sequence[TokenRow], tasks: Sequence[Any]) -> list[Tensor]:
    """A fake pass: the answer to a row is its first token."""
    return [torch.tensor([float(row.input_ids[0])]) for row in rows]


def waiting(token: int, length: int = 4, deadline: float = float("inf")) -> Waiting[Job]:
    row = TokenRow(input_ids=[token] * length, token_type_ids=None, segment_ids=None)
    return Waiting(
        payload=Job(row=row, packed=PACKED, place=token),
        key="deep",
        caller="",
        task="a",
        length=length,
        deadline=deadline,
    )


class Bench:
    """An engine, and what it has delivered."""

    def __init__(self, run: Run, **limits: Any) -> None:
        self.done: list[Done] = []
        self.changed = threading.Condition()
        self.metrics = Metrics()
        self.scheduler: Scheduler[Job] = Scheduler(Settings(**limits))
        self.engine = Engine(self.scheduler, run, self.deliver, self.metrics)

    def deliver(self, done: Sequence[Done]) -> None:
        with self.changed:
            self.done += done
            self.changed.notify_all()

    def outcomes(self, count: int) -> dict[int, Any]:
        """What each row got, when there are so many; each row is delivered once."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.done) >= count, 30)
        places = [each.job.place for each in self.done]
        assert sorted(places) == sorted(set(places))
        return {each.job.place: each.outcome for each in self.done}

    def value(self, name: str) -> float:
        found = self.metrics.registry.get_sample_value(name)
        assert found is not None
        return found


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(run: Run, **limits: Any) -> Bench:
        made.append(Bench(run, **limits))
        return made[-1]

    yield make
    for each in made:
        each.engine.stop()
        assert not each.engine.alive


def kinds(outcomes: dict[int, Any]) -> dict[int, Any]:
    return {place: each.kind if isinstance(each, Refusal) else each for place, each in outcomes.items()}


def test_each_row_gets_its_own_answer(bench: Callable[..., Bench]) -> None:
    made = bench(first_token, batch_rows=8, queue_batches=1000)
    made.engine.start()
    for start in range(0, 200, 20):
        made.engine.submit([waiting(start + i, 1 + i % 7) for i in range(20)])
    assert made.outcomes(200) == {i: (float(i),) for i in range(200)}
    assert made.value("ptuning_batch_rows_sum") == 200
    assert made.value("ptuning_batch_rows_count") >= 25


def test_a_bad_row_fails_alone(bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    def run(rows: Sequence[TokenRow], tasks: Sequence[Any]) -> list[Tensor]:
        if any(row.input_ids[0] == 5 for row in rows):
            raise ValueError("secret: the fifth")
        return first_token(rows, tasks)

    made = bench(run)
    with caplog.at_level(logging.ERROR):
        made.engine.start()
        made.engine.submit([waiting(i) for i in range(16)])
        found = made.outcomes(16)
    assert kinds(found) == {i: "inference_failed" if i == 5 else (float(i),) for i in range(16)}
    assert found[5].status == 500
    assert "secret" not in found[5].message, "the client sees no details"
    assert "secret: the fifth" in caplog.text, "the log does"


def test_what_is_not_finite_is_one_rows_refusal(bench: Callable[..., Bench]) -> None:
    def run(rows: Sequence[TokenRow], tasks: Sequence[Any]) -> list[Tensor]:
        found = first_token(rows, tasks)
        return [value if row.input_ids[0] % 3 else value / 0 for value, row in zip(found, rows, strict=True)]

    made = bench(run)
    made.engine.start()
    made.engine.submit([waiting(i) for i in range(6)])
    assert kinds(made.outcomes(6)) == {i: (float(i),) if i % 3 else "not_finite" for i in range(6)}


def test_out_of_memory_halves_the_batch_and_later_ones(bench: Callable[..., Bench]) -> None:
    sizes = []

    def run(rows: Sequence[TokenRow], tasks: Sequence[Any]) -> list[Tensor]:
        sizes.append(len(rows))
        if len(rows) > 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return first_token(rows, tasks)

    made = bench(run, batch_tokens=160, queue_batches=1000)
    made.engine.start()
    made.engine.submit([waiting(i) for i in range(200)])
    assert made.outcomes(200) == {i: (float(i),) for i in range(200)}
    assert made.scheduler.budget <= 5 * 4
    refused = [size for size in sizes if size > 5]
    assert made.value("ptuning_out_of_memory_total") == len(refused)
    assert len(refused) < 10, "it does not try too large batches again and again"


def test_a_row_that_never_fits_is_refused(bench: Callable[..., Bench]) -> None:
    def run(rows: Sequence[TokenRow], tasks: Sequence[Any]) -> list[Tensor]:
        if any(len(row) > 50 for row in rows):
            raise MemoryError
        return first_token(rows, tasks)

    made = bench(run)
    made.engine.start()
    made.engine.submit([waiting(1), waiting(2, length=60), waiting(3)])
    assert kinds(made.outcomes(3)) == {1: (1.0,), 2: "out_of_memory", 3: (3.0,)}
    assert made.engine.alive


class Gate:
    """A fake pass that waits until the test opens it."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, rows: Sequence[TokenRow], tasks: Sequence[Any]) -> list[Tensor]:
        self.entered.set()
        assert self.open.wait(30)
        return first_token(rows, tasks)


def test_rows_that_are_removed_are_not_run(bench: Callable[..., Bench]) -> None:
    gate = Gate()
    made = bench(gate)
    made.engine.start()
    made.engine.submit([waiting(0)])
    assert gate.entered.wait(30)
    made.engine.submit(rows := [waiting(1), waiting(2), waiting(3)])
    made.engine.remove(rows[:2])
    assert made.engine.queued == (1, 4)
    gate.open.set()
    assert made.outcomes(2) == {0: (0.0,), 3: (3.0,)}


def test_rows_past_their_deadline_are_not_run(bench: Callable[..., Bench]) -> None:
    gate = Gate()
    made = bench(gate)
    made.engine.start()
    made.engine.submit([waiting(0)])
    assert gate.entered.wait(30)
    made.engine.submit([waiting(1, deadline=time.monotonic()), waiting(2)])
    gate.open.set()
    assert kinds(made.outcomes(3)) == {0: (0.0,), 1: "timeout", 2: (2.0,)}


def test_if_the_thread_dies_every_row_is_refused(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    def run(rows: Sequence[TokenRow], tasks: Sequence[Any]) -> list[Tensor]:
        gate(rows, tasks)
        raise SystemExit  # as a fault in native code would end it, without an Exception

    made = bench(run)
    made.engine.start()
    made.engine.submit([waiting(0), waiting(1)])
    assert gate.entered.wait(30)
    made.engine.submit([waiting(2)])
    gate.open.set()
    found = made.outcomes(3)
    assert kinds(found) == dict.fromkeys(range(3), "unavailable")
    assert {each.status for each in found.values()} == {503}
    assert not made.engine.alive
    assert "the engine has ended" in caplog.text
    with pytest.raises(Refusal) as refused:
        made.engine.submit([waiting(3)])
    assert refused.value.status == 503


@pytest.mark.parametrize("worked", [True, False])
def test_if_nothing_works_any_more_the_thread_ends(
    worked: bool, bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    """As after a CUDA error that stays: each batch fails, and only a new process helps."""
    broken = not worked

    def run(rows: Sequence[TokenRow], tasks: Sequence[Any]) -> list[Tensor]:
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return first_token(rows, tasks)

    made = bench(run)
    made.engine.start()
    if worked:
        made.engine.submit([waiting(0)])
        made.outcomes(1)
    broken = True
    for number in range(1, FAILURES + 1):
        assert not made.engine.failed
        made.engine.submit([waiting(number)])
        made.outcomes(number + worked)
    made.engine._thread.join(30)
    assert made.engine.failed
    assert "the engine has ended" in caplog.text
    last = made.outcomes(FAILURES + worked)
    assert [last[number].kind for number in range(1, FAILURES + 1)] == [
        *["inference_failed"] * (FAILURES - 1),
        "unavailable",
    ]


@pytest.mark.parametrize("memory", [True, False])
def test_rows_that_fail_again_and_again_do_not_end_the_thread(
    memory: bool, bench: Callable[..., Bench]
) -> None:
    """Otherwise whoever finds a text on which the model fails could stop the server."""

    def run(rows: Sequence[TokenRow], tasks: Sequence[Any]) -> list[Tensor]:
        if rows[0].input_ids[0]:
            raise MemoryError if memory else ValueError
        return first_token(rows, tasks)

    made = bench(run)
    made.engine.start()
    for number in range(3 * FAILURES):
        made.engine.submit([waiting(number)])
        made.outcomes(number + 1)
    assert made.engine.alive
    made.engine.stop()
    assert not made.engine.failed, "it was stopped"


def test_a_pass_that_hangs_shows_in_the_heartbeat(bench: Callable[..., Bench]) -> None:
    gate = Gate()
    made = bench(gate)
    made.engine.start()
    made.engine.submit([waiting(0)])
    assert gate.entered.wait(30)
    before = made.engine.heartbeat_age
    time.sleep(0.02)
    assert made.engine.heartbeat_age > before
    gate.open.set()
    made.outcomes(1)


def test_stopping_refuses_what_is_left(bench: Callable[..., Bench]) -> None:
    gate = Gate()
    made = bench(gate)
    made.engine.start()
    made.engine.submit([waiting(0)])
    assert gate.entered.wait(30)
    made.engine.submit([waiting(1)])
    stopping = threading.Thread(target=made.engine.stop)
    stopping.start()
    gate.open.set()
    stopping.join(30)
    assert kinds(made.outcomes(2)) == {0: (0.0,), 1: "unavailable"}


def test_over_the_limit_nothing_is_admitted(bench: Callable[..., Bench]) -> None:
    gate = Gate()
    made = bench(gate, batch_tokens=8, queue_batches=1, queue_seconds=0.001)
    made.engine.start()
    made.engine.submit([waiting(0)])
    assert gate.entered.wait(30)
    made.engine.submit([waiting(i) for i in range(1, 4)])
    with pytest.raises(Overloaded):
        made.engine.submit([waiting(9)])
    with pytest.raises(Overloaded):
        made.engine.reserve("", {"a": 1})
    gate.open.set()
    assert made.outcomes(4) == {i: (float(i),) for i in range(4)}


def test_a_pass_with_too_few_answers_gives_nobody_anothers(bench: Callable[..., Bench]) -> None:
    made = bench(lambda rows, tasks: first_token(rows, tasks)[: 1 if len(rows) == 1 else -1])
    made.engine.start()
    made.engine.submit([waiting(i) for i in range(4)])
    assert made.outcomes(4) == {i: (float(i),) for i in range(4)}
