"""The queue: every row once, within the budget, in fair shares, refused only over the limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ptuning.serving.scheduler import PATIENCE, Overloaded, Scheduler
from ptuning.serving.settings import Settings
from ptuning.serving.shares import Shares
from ptuning.serving.turns import Line, Turns, Waiting


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row(
    length: int = 10,
    task: str = "a",
    caller: str = "",
    key: Hashable = "deep",
    deadline: float = float("inf"),
) -> Waiting[Any]:
    return Waiting(payload=None, key=key, caller=caller, task=task, length=length, deadline=deadline)


def queue(clock: Clock | None = None, **limits: Any) -> Scheduler[Any]:
    return Scheduler(Settings(**{"queue_batches": 10**6, "queue_rows": 10**6, **limits}), clock or Clock())


def batches(scheduler: Scheduler[Any]) -> list[list[Waiting[Any]]]:
    """All batches until the queue is empty."""
    found = []
    while batch := scheduler.take()[0]:
        found.append(batch)
    return found


class Machine(RuleBasedStateMachine):
    """Anything may happen in any order. The model is a list of the rows that should be in the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.waiting: list[Waiting[Any]] = []
        self.left: Counter[int] = Counter()
        self.admitted = 0
        self.passed: Counter[int] = Counter()
        self.since: dict[tuple[str, str], int] = {}

    @initialize(tokens=st.sampled_from([64, 256]), rows=st.integers(1, 6))
    def make(self, tokens: int, rows: int) -> None:
        self.settings = Settings(
            batch_tokens=tokens, batch_rows=rows, queue_rows=1024, queue_batches=2, queue_seconds=1.0
        )
        self.queue: Scheduler[Any] = Scheduler(self.settings, self.clock)

    @rule(
        caller=st.sampled_from(["x", "y"]),
        task=st.sampled_from("abc"),
        key=st.sampled_from(["deep", "input"]),
        lengths=st.lists(st.integers(1, 64), min_size=1, max_size=12),
        seconds=st.sampled_from([1.0, 5.0, 1e6]),
    )
    def arrive(self, caller: str, task: str, key: str, lengths: list[int], seconds: float) -> None:
        """A request is admitted entirely or not at all, and refused only over the limit."""
        rows = [row(length, task, caller, key, self.clock.now + seconds) for length in lengths]
        tokens = sum(each.length for each in self.waiting)
        own = sum(each.length for each in self.waiting if (each.caller, each.task) == (caller, task))
        try:
            self.queue.admit(rows)
        except Overloaded as error:
            refused = error
        else:
            assert own <= self.queue.limit
            self.waiting += rows
            self.admitted += len(rows)
            return
        assert tokens > self.queue.limit
        assert refused.retry_after >= 1
        assert refused.retry_after == int(refused.retry_after)

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def cancel(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(self.waiting), unique_by=id))
        assert self.queue.remove(gone) == gone
        assert self.queue.remove(gone) == []
        self.leave(gone)

    @rule(seconds=st.sampled_from([0.1, 2.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def timer(self) -> None:
        late = [each for each in self.waiting if each.deadline <= self.clock.now]
        assert set(self.queue.expire()) == set(late)
        self.leave(late)

    @rule(seconds=st.sampled_from([0.01, 1.0]), memory=st.booleans())
    def device_free(self, seconds: float, memory: bool) -> None:
        late = {each for each in self.waiting if each.deadline <= self.clock.now}
        batch, expired = self.queue.take()
        assert set(expired) == late
        self.leave(expired)
        assert bool(batch) == bool(self.waiting), "a free device takes what is there"
        if not batch:
            return
        before = self.waiting
        self.leave(batch)
        assert len({each.key for each in batch}) == 1
        assert len(batch) <= self.settings.batch_rows
        places = len(batch) * max(each.length for each in batch)
        assert places <= self.queue.budget or len(batch) == 1
        self.check_passed(before, batch)
        self.clock.now += seconds
        self.queue.ran(sum(each.length for each in batch), seconds)
        if memory:
            self.queue.lower_budget(places)

    def check_passed(self, before: Sequence[Waiting[Any]], batch: Sequence[Waiting[Any]]) -> None:
        """No row is passed over more often than allowed, by rows of its task that were not."""
        fresh = [each for each in batch if self.passed[each.number] < PATIENCE]
        for old in before:
            same = [
                each
                for each in fresh
                if (each.caller, each.task, each.key) == (old.caller, old.task, old.key)
                and each.number > old.number
            ]
            if old not in batch and same:
                self.passed[old.number] += 1
                assert self.passed[old.number] <= PATIENCE

    def leave(self, rows: Sequence[Waiting[Any]]) -> None:
        """Each row leaves once: with a batch, too late, or cancelled."""
        for each in rows:
            self.left[each.number] += 1
            assert self.left[each.number] == 1
        gone = {id(each) for each in rows}
        self.waiting = [each for each in self.waiting if id(each) not in gone]

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.rows == len(self.waiting)
            assert self.queue.tokens == sum(each.length for each in self.waiting)
            assert len(self.left) + len(self.waiting) == self.admitted

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            left = [each for batch in batches(self.queue) for each in batch]
            late = [each for each in self.waiting if each.deadline <= self.clock.now]
            assert {*left, *late} == set(self.waiting)
            self.leave([*left, *late])
            assert set(self.left.values()) <= {1}
            assert len(self.left) == self.admitted


TestScheduler = Machine.TestCase
TestScheduler.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_one_row_does_not_wait_behind_ten_thousand() -> None:
    scheduler = queue()
    scheduler.admit([row(task="flood", length=10 + i % 50) for i in range(10_000)])
    for _ in range(3):
        scheduler.take()
    scheduler.admit([one := row(task="one", length=200)])
    assert one in scheduler.take()[0]


def test_each_waiting_task_gets_the_same_share() -> None:
    """Whatever their lengths and numbers: at any time they differ by the tokens of a batch or two."""
    scheduler = queue(batch_rows=8)
    scheduler.admit([row(task="flood", length=10) for _ in range(2_000)])
    scheduler.admit([row(task="long", length=60) for _ in range(200)])
    scheduler.admit([row(task="short", length=5) for _ in range(2_000)])
    served: Counter[str] = Counter()
    for _ in range(150):
        for each in scheduler.take()[0]:
            served[each.task] += each.length
        assert max(served.values()) - min(served[task] for task in ("flood", "long", "short")) <= 2 * 8 * 60


def test_tasks_share_each_batch() -> None:
    scheduler = queue(batch_rows=60)
    for task in "abc":
        scheduler.admit([row(task=task) for _ in range(1_000)])
    for _ in range(10):
        assert Counter(each.task for each in scheduler.take()[0]) == {"a": 20, "b": 20, "c": 20}


@pytest.mark.parametrize("rows", [1, 8])
def test_callers_share_before_tasks(rows: int) -> None:
    """Ten tasks of one caller have no more than the one task of another."""
    scheduler = queue(batch_rows=rows)
    scheduler.admit([row(task=f"t{i % 10}", caller="many") for i in range(1_000)])
    scheduler.admit([row(task="t0", caller="one") for _ in range(1_000)])
    served: Counter[str] = Counter()
    for _ in range(50):
        for each in scheduler.take()[0]:
            served[each.caller] += each.length
    assert 0.8 < served["one"] / served["many"] < 1.25


def test_a_task_that_was_away_gets_no_credit() -> None:
    scheduler = queue(batch_rows=1)
    scheduler.admit([row(task="steady") for _ in range(300)])
    for _ in range(100):
        scheduler.take()
    scheduler.admit([row(task="late") for _ in range(100)])
    served = Counter(scheduler.take()[0][0].task for _ in range(40))
    assert served["steady"] >= 19


def test_a_task_that_sends_again_at_once_pays_for_its_last_batch() -> None:
    """Its line in the queue is empty between its requests, and it is not served first each time."""
    scheduler = queue(batch_rows=4)
    scheduler.admit([row(task="steady", length=100) for _ in range(100)])
    served: Counter[str] = Counter()
    sent = 0
    for _ in range(100):
        if served["bursts"] == sent:
            scheduler.admit([row(task="bursts", length=10) for _ in range(4)])
            sent += 40
        for each in scheduler.take()[0]:
            served[each.task] += each.length
    assert 0.45 < served["steady"] / sum(served.values()) < 0.55


def test_rows_of_one_batch_are_about_as_long() -> None:
    scheduler = queue()
    scheduler.admit([row(length=16 if i % 2 else 200) for i in range(400)])
    found = batches(scheduler)
    places = sum(len(batch) * max(each.length for each in batch) for batch in found)
    assert places < 1.1 * 200 * (16 + 200)
    assert sum(map(len, found)) == 400


def test_a_mixture_of_lengths_is_little_padding() -> None:
    scheduler = queue()
    lengths = [8 + (i * i * 31) % 120 for i in range(4_000)]
    scheduler.admit([row(length=length) for length in lengths])
    found = batches(scheduler)
    places = sum(len(batch) * max(each.length for each in batch) for batch in found)
    assert places < 1.25 * sum(lengths)
    assert len(found) < 2 * 4_000 / 64


def test_a_few_rows_of_any_length_share_a_batch() -> None:
    scheduler = queue()
    scheduler.admit([row(length=length) for length in (5, 60, 9, 100)])
    assert len(scheduler.take()[0]) == 4


def test_a_row_that_was_passed_over_twice_goes_before_the_rest_of_its_task() -> None:
    """The row of 60 fits no batch with that of 30, and rows of 5 would."""
    scheduler = queue(batch_tokens=64, batch_rows=12)
    scheduler.admit([row(length) for length in (20, 5, 30, 60, 20, 20, *[5] * 30)])
    found = [[each.length for each in batch] for batch in batches(scheduler)]
    assert found[:4] == [[20] * 3, [5] * 12, [30], [60]]
    assert [length for batch in found[4:] for length in batch] == [5] * 19


def test_a_member_has_one_turn_whatever_happened_to_its_rows() -> None:
    """Its first row changes, and changes back, as a caller's when another of its tasks comes and goes."""

    class Member(Line[Any]):
        first = 5

    turns: Turns[str, Member] = Turns()
    turns.enter("a", member := Member("deep"))
    member.rows[5] = row()
    for member.first in (5, 9, 5):
        turns.refresh("a")
    assert len(list(turns.order())) == 1
    assert len(list(turns.order())) == 1


def test_keys_take_turns() -> None:
    scheduler = queue(batch_rows=4)
    scheduler.admit([row(task=key, key=key) for key in "abc" for _ in range(8)])
    assert [batch[0].key for batch in batches(scheduler)] == ["a", "b", "c"] * 2


def test_the_limit_is_the_measured_rate_times_the_seconds() -> None:
    scheduler = queue(queue_batches=1, batch_tokens=100, queue_seconds=2.0)
    assert scheduler.limit == 100
    scheduler.ran(100, 0.1)
    assert scheduler.rate == 1000
    assert scheduler.limit == 2000
    scheduler.admit([row(100) for _ in range(21)])
    with pytest.raises(Overloaded) as refused:
        scheduler.admit([row(1)])
    assert refused.value.retry_after == 3  # 2,100 tokens at 1,000 per second


def test_a_small_batch_does_not_lower_the_rate() -> None:
    scheduler = queue(batch_tokens=100)
    scheduler.ran(100, 0.1)
    scheduler.ran(1, 0.1)
    assert scheduler.rate == 1000
    scheduler.ran(100, 0.2)
    assert 500 < scheduler.rate < 1000


def test_short_rows_lower_the_rate_while_others_wait() -> None:
    """Such batches are full by their rows, not by their tokens; the limit is in seconds for them, too."""
    clock = Clock()
    scheduler = queue(clock, queue_batches=1, batch_tokens=4096, batch_rows=64, queue_seconds=2.0)
    scheduler.ran(4096, 0.2)
    assert scheduler.limit == pytest.approx(2 * 20_480)
    scheduler.admit([row(8, task=f"t{i % 4}", key=i % 4) for i in range(4_000)])
    for _ in range(40):
        batch, _ = scheduler.take()
        scheduler.ran(sum(each.length for each in batch), 0.1)
    assert scheduler.rate == pytest.approx(64 * 8 / 0.1, rel=0.05)
    assert scheduler.limit == pytest.approx(2 * 5_120, rel=0.05)


def test_a_large_request_is_admitted_like_a_small_one() -> None:
    """One rule: what is in the queue already decides, not how much is added."""
    scheduler = queue(queue_batches=1, batch_tokens=100)
    scheduler.admit([row(100) for _ in range(50)])
    for more in ([row(1)], [row(100)] * 50):
        with pytest.raises(Overloaded):
            scheduler.admit(more)
    assert scheduler.rows == 50


def test_rows_have_a_bound_too() -> None:
    """Those that are being prepared count; a caller has at most as many as it leaves free."""
    scheduler = queue(queue_rows=10, max_rows=10)
    scheduler.reserve("x", {"a": 10})
    with pytest.raises(Overloaded):
        scheduler.reserve("y", {"a": 1})
    scheduler.release("x", {"a": 10})
    scheduler.reserve("x", {"a": 4})
    scheduler.admit([row(caller="x") for _ in range(4)])
    scheduler.release("x", {"a": 4})
    for caller, task in (("x", "a"), ("x", "b"), ("y", "a")):
        with pytest.raises(Overloaded):
            scheduler.reserve(caller, {task: 4})
    scheduler.reserve("x", {"a": 1})
    scheduler.reserve("y", {"a": 1})


@given(
    amounts=st.dictionaries(
        st.sampled_from("xyz"), st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1)
    ),
    new=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1),
)
def test_what_goes_before_a_request_is_what_fair_turns_serve(
    amounts: dict[str, dict[str, int]], new: dict[str, int]
) -> None:
    """Each caller and each of its tasks is served one at a time, in turn, until the request is done."""
    shares = Shares()
    for caller, tasks in amounts.items():
        for task, amount in tasks.items():
            shares.add(caller, task, amount)
    own = dict(amounts.get("x", {}))
    left = Counter(own) + Counter(new)
    served = 0  # of the caller, until all tasks of the request are done
    while any(left[task] for task in new):
        for task in [*left]:
            if left[task]:
                left[task] -= 1
                served += 1
    others = sum(min(sum(tasks.values()), served) for name, tasks in amounts.items() if name != "x")
    assert shares.before("x", new) == served - sum(new.values()) + others
    for caller, tasks in amounts.items():
        for task, amount in tasks.items():
            shares.add(caller, task, -amount)
    assert shares.before("x", new) == shares.total == 0
    assert not shares._callers
    assert not shares._tasks


RATE = 20_000
"""Tokens per second of the simulated device."""


@dataclass
class Sender:
    """Sends requests of ``rows`` rows: ``per_second`` of them, or another as soon as one is admitted."""

    caller: str
    task: str
    rows: int
    length: int = 50
    per_second: float | None = None
    admitted: int = 0
    refused: int = 0
    retry_after: list[float] = field(default_factory=list)

    def send(self, scheduler: Scheduler[Any], now: float) -> bool:
        try:
            scheduler.reserve(self.caller, {self.task: self.rows})
        except Overloaded as error:
            self.refused += 1
            self.retry_after.append(error.retry_after)
            return False
        try:
            deadline = now + scheduler.settings.timeout
            scheduler.admit(
                [row(self.length, self.task, self.caller, deadline=deadline) for _ in range(self.rows)]
            )
        except Overloaded as error:
            self.refused += 1
            self.retry_after.append(error.retry_after)
            return False
        finally:
            scheduler.release(self.caller, {self.task: self.rows})
        self.admitted += 1
        return True


def simulate(senders: Sequence[Sender], seconds: float = 10.0) -> tuple[float, int]:
    """Run the queue on a device of a fixed speed.

    Returns:
        The longest that a row of the senders that are limited waited, and the most rows in the queue.
    """
    clock = Clock()
    scheduler: Scheduler[Any] = Scheduler(Settings(), clock)
    scheduler.ran(1000, 1000 / RATE)
    begun, longest, most = clock.now, 0.0, 0
    due = {id(each): begun + 0.1 for each in senders if each.per_second}
    modest = {each.caller + each.task for each in senders if each.per_second}
    while clock.now < begun + seconds:
        for each in senders:
            if each.per_second is None:
                while each.send(scheduler, clock.now):
                    pass
            elif clock.now >= due[id(each)]:
                due[id(each)] += 1 / each.per_second
                each.send(scheduler, clock.now)
        most = max(most, scheduler.rows)
        batch, late = scheduler.take()
        assert not [each for each in late if each.caller + each.task in modest]
        tokens = sum(each.length for each in batch)
        took = max(tokens / RATE, 0.005)
        clock.now += took
        scheduler.ran(tokens, took)
        for each in batch:
            if each.caller + each.task in modest:
                sent = each.deadline - scheduler.settings.timeout
                longest = max(longest, clock.now - sent)
    return longest, most


@pytest.mark.parametrize(
    "flood",
    [
        [Sender("flood", "f", 32)],
        [Sender("flood", "f", 1)],
        [Sender("flood", "f", 1024, length=450)],
        [Sender("flood", "f", 1024, length=1)],
        [Sender("flood", f"f{i}", 64) for i in range(50)],
        [Sender(f"flood {i}", "f", 64) for i in range(50)],
    ],
    ids=["rows", "single rows", "large requests", "short rows", "fifty tasks", "fifty callers"],
)
def test_a_flood_does_not_get_others_refused(flood: list[Sender]) -> None:
    """Whoever retries at once gets 429, and a caller with a few rows per second hardly ever."""
    flood = [replace(each, retry_after=[]) for each in flood]
    modest = Sender("modest", "m", 1, per_second=4)
    longest, most = simulate([*flood, modest])
    assert modest.refused == 0
    assert modest.admitted >= 35
    assert longest < 1
    assert most <= Settings().queue_rows
    for each in flood:
        assert each.refused >= 5
        assert all(1 <= wait <= 60 for wait in each.retry_after)


def test_without_keys_a_flood_of_one_task_does_not_get_others_refused() -> None:
    """All callers are one, so only the tasks are told apart."""
    flood, modest = Sender("", "f", 32), Sender("", "m", 1, per_second=4)
    longest, _ = simulate([flood, modest])
    assert modest.refused == 0
    assert flood.refused >= 10
    assert longest < 1


def test_the_queue_is_bounded_however_many_send() -> None:
    senders = [Sender(f"flood {i}", "f", 8) for i in range(200)]
    _, most = simulate(senders, 5)
    assert most * 50 <= 10 * 2 * RATE, "at most the limit times ln(200) + 1, and a request"


def test_the_budget_comes_back_after_a_while() -> None:
    scheduler = queue(batch_tokens=100)
    scheduler.lower_budget(60)
    assert scheduler.budget == 30
    for _ in range(1000):
        scheduler.ran(30, 0.1)
    assert scheduler.budget == 100


def test_cancelled_rows_do_not_pile_up() -> None:
    scheduler = queue()
    for _ in range(50):
        scheduler.admit(rows := [row(deadline=1e9) for _ in range(200)])
        scheduler.remove(rows)
        scheduler.take()
    assert len(scheduler._deadlines) < 3_000
    assert scheduler._callers.members == {}
    assert len(scheduler._callers._heap) < 100
