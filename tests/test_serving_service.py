"""Rows in, answers out: each row once, with its own task's answer, whatever happens around it."""

from __future__ import annotations

import asyncio
import ctypes
import resource
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from ptuning import Task, TaskTable
from ptuning.adapters.atomic import replace_folder
from ptuning.data import Example
from ptuning.data.tokens import Tokenise, TokenRow
from ptuning.errors import AdapterError, ConfigError
from ptuning.inference.mixed import mixed_logits
from ptuning.serving.engine import Job
from ptuning.serving.memory import release_free_memory
from ptuning.serving.metrics import Metrics
from ptuning.serving.opening import open_backbone, open_service
from ptuning.serving.rows import Refusal, Row, RowAnswer
from ptuning.serving.service import Service
from ptuning.serving.settings import Settings
from ptuning.serving.tasks import TaskRegistry
from ptuning.serving.tokenising import Tokenising
from served import LABELS, NUMBERS, PAIRS, adapter, logits_of, opened

T = TypeVar("T")
TEXTS = (
    "the parcel is late",
    "good food and a very kind shop",
    "crash",
    "the bill is wrong and the app is slow",
)


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of unlike tasks by name."""
    place = tmp_path_factory.mktemp("adapters")
    return {
        "labels": adapter(tiny_folder, place / "labels", 1),
        "other": adapter(tiny_folder, place / "other", 2, num_virtual_tokens=5),
        "numbers": adapter(tiny_folder, place / "numbers", 3, NUMBERS, num_virtual_units=3),
        "pairs": adapter(tiny_folder, place / "pairs", 4, PAIRS),
        "short": adapter(
            tiny_folder,
            place / "short",
            5,
            Task(problem_type=LABELS.problem_type, labels=LABELS.labels, max_length=8),
        ),
    }


@pytest.fixture
def tasks(tiny_folder: Path, folders: dict[str, Path]) -> TaskRegistry:
    backbone, tokenizer = opened(tiny_folder)
    found = TaskRegistry(TaskTable(backbone), tokenizer)
    for name, folder in folders.items():
        found.load(name, folder)
    return found


@asynccontextmanager
async def running(tasks: TaskRegistry, run: Any = None, **limits: Any) -> AsyncIterator[Service]:
    service = Service(tasks, run=run, settings=Settings(**{"warm_up": False, **limits}))
    await service.start()
    try:
        yield service
    finally:
        if isinstance(run, Gate):
            run.open.set()
        await service.close()


class Gate:
    """The passes of a service, each of which waits until the gate is open."""

    def __init__(self, tasks: TaskRegistry, *, open: bool = False) -> None:
        self.backbone = tasks.table.backbone
        self.entered, self.open = threading.Event(), threading.Event()
        self.threads: set[str] = set()
        self.ran = 0
        if open:
            self.open.set()

    def __call__(self, rows: Sequence[TokenRow], packed: Sequence[Any]) -> list[Tensor]:
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.open.wait(30)
        self.ran += len(rows)
        return mixed_logits(self.backbone, rows, packed)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def kind_of(awaitable: Awaitable[Any]) -> str:
    """The kind of the refusal that it ends with."""
    try:
        await awaitable
    except Refusal as refusal:
        return refusal.kind
    return "answered"


def close(answer: RowAnswer | Refusal, expected: Sequence[float]) -> bool:
    assert isinstance(answer, RowAnswer), answer
    return len(answer.logits) == len(expected) and all(
        abs(one - other) < 1e-4 for one, other in zip(answer.logits, expected, strict=True)
    )


# ------------------------------------------------------------------------------------------- answers


def test_rows_of_unlike_tasks_get_what_their_tasks_say(tasks: TaskRegistry, folders: dict[str, Path]) -> None:
    names = ["labels", "numbers", "other"]
    rows = [Row(task=name, text=text) for text in TEXTS for name in names]

    async def main() -> None:
        async with running(tasks) as service:
            answers, timing = await service.answer(rows)
        for row, answer in zip(rows, answers, strict=True):
            assert close(answer, logits_of(folders[row.task], row.text))
            assert isinstance(answer, RowAnswer)
            assert answer.name == row.task
            assert answer.digest == tasks.get(row.task).digest
            assert answer.task == tasks.get(row.task).task
            assert answer.tokens == len(row.text.split()) + 2
            assert not answer.truncated
        assert min(timing.tokenise, timing.queue, timing.inference) >= 0
        assert timing.inference > 0

    asyncio.run(main())


def test_a_bad_row_is_refused_alone(tasks: TaskRegistry) -> None:
    rows = {
        Row(task="labels", text="the parcel is late"): "answered",
        Row(task="nothing", text="the parcel is late"): "unknown_task",
        Row(task="labels", text=""): "empty_text",
        Row(task="labels", text=" \n\t"): "empty_text",
        Row(task="labels", text="one\ud800"): "invalid_text",
        Row(task="labels", text="one\0two"): "answered",
        Row(task="labels", text="one", text_pair="two"): "pair_mismatch",
        Row(task="pairs", text="one"): "pair_mismatch",
        Row(task="pairs", text="one", text_pair=""): "empty_text",
        Row(task="pairs", text="one", text_pair="two"): "answered",
        Row(task="labels", text="a" * 2001): "text_too_long",
        Row(task="labels", text="crash " * 300): "answered",
    }
    statuses = {"unknown_task": 404, "text_too_long": 413}

    async def main() -> None:
        async with running(tasks, max_text_characters=2000) as service:
            answers, _ = await service.answer([*rows])
        kinds = [each.kind if isinstance(each, Refusal) else "answered" for each in answers]
        assert kinds == [*rows.values()]
        for each in answers:
            if isinstance(each, Refusal):
                assert each.status == statuses.get(each.kind, 422)
                assert each.message

    asyncio.run(main())


@pytest.mark.parametrize("words", [5, 6, 7, 300])
def test_what_is_cut_is_said_or_refused(words: int, tasks: TaskRegistry) -> None:
    """The task takes 8 tokens: six words and two special tokens."""
    row = Row(task="short", text="crash " * words)

    async def main() -> None:
        async with running(tasks) as service:
            (cut,), _ = await service.answer([row])
            (refused,), _ = await service.answer([row], truncate=False)
        assert isinstance(cut, RowAnswer)
        assert cut.truncated == (words > 6)
        assert cut.tokens == min(words + 2, 8)
        if words <= 6:
            assert isinstance(refused, RowAnswer)
        else:
            assert isinstance(refused, Refusal)
            assert (refused.status, refused.kind) == (422, "too_many_tokens")
            assert f"{words + 2} tokens" in refused.message
            assert "at most 8" in refused.message

    asyncio.run(main())


def test_a_row_that_fits_no_batch_is_refused_at_the_door(tasks: TaskRegistry) -> None:
    async def main() -> None:
        async with running(tasks, batch_tokens=32) as service:
            rows = [Row(task="labels", text="crash " * words) for words in (3, 30, 31)]
            answers, _ = await service.answer(rows)
        assert isinstance(answers[0], RowAnswer)
        assert isinstance(answers[1], RowAnswer)
        assert isinstance(answers[2], Refusal)
        assert (answers[2].status, answers[2].kind) == (413, "too_many_tokens")

    asyncio.run(main())


def test_a_task_that_one_may_not_use_is_unknown(tasks: TaskRegistry) -> None:
    async def main() -> None:
        async with running(tasks) as service:
            answers, _ = await service.answer(
                [Row(task="labels", text="one"), Row(task="other", text="one")],
                visible=lambda name: name == "other",
            )
        assert isinstance(answers[0], Refusal)
        assert answers[0].message == "no task 'labels'"
        assert isinstance(answers[1], RowAnswer)

    asyncio.run(main())


def test_no_rows_are_no_answers(tasks: TaskRegistry) -> None:
    async def main() -> None:
        async with running(tasks) as service:
            assert (await service.answer([]))[0] == []

    asyncio.run(main())


def test_one_thread_runs_the_model_and_the_loop_goes_on(tasks: TaskRegistry) -> None:
    gate = Gate(tasks)

    async def main() -> None:
        async with running(tasks, gate) as service:
            asking = asyncio.create_task(service.answer([Row(task="labels", text="one")]))
            await until(gate.entered.is_set)
            assert service.ready, "the loop answers while a pass runs"
            gate.open.set()
            await asking
        assert gate.threads == {"ptuning-engine"}

    asyncio.run(main())


# -------------------------------------------------------------------------------- many, and overload


def test_ten_thousand_rows_each_get_their_own_answer(tasks: TaskRegistry) -> None:
    """A fake pass answers with the row's length and its task's number of classes."""

    def run(rows: Sequence[TokenRow], packed: Sequence[Any]) -> list[Tensor]:
        return [
            torch.tensor([float(len(row)), float(each.task.num_labels)])
            for row, each in zip(rows, packed, strict=True)
        ]

    names = {"labels": 3.0, "numbers": 1.0, "other": 3.0}

    async def ask(service: Service, number: int) -> None:
        rows = [
            Row(task=[*names][(number + i) % 3], text="crash " * (1 + (number * i) % 40)) for i in range(500)
        ]
        answers, _ = await service.answer(rows, caller=f"caller {number % 4}")
        for row, answer in zip(rows, answers, strict=True):
            assert isinstance(answer, RowAnswer)
            assert answer.logits == (len(row.text.split()) + 2, names[row.task])

    async def main() -> None:
        async with running(tasks, run, queue_batches=10**6, queue_rows=10**6) as service:
            await asyncio.gather(*(ask(service, number) for number in range(20)))
            assert service.queued == (0, 0)

    asyncio.run(main())


def test_too_many_rows_in_one_request_are_refused(tasks: TaskRegistry) -> None:
    async def main() -> None:
        async with running(tasks, max_rows=3) as service:
            with pytest.raises(Refusal, match="4 rows, and the server takes at most 3") as refused:
                await service.answer([Row(task="labels", text="one")] * 4)
            assert (refused.value.status, refused.value.kind) == (413, "too_many_rows")
            assert len((await service.answer([Row(task="labels", text="one")] * 3))[0]) == 3

    asyncio.run(main())


def test_over_the_limit_requests_are_refused_and_the_rest_answered(tasks: TaskRegistry) -> None:
    gate = Gate(tasks)
    row = Row(task="labels", text="one")

    async def main() -> None:
        async with running(tasks, gate, batch_tokens=64, queue_batches=1) as service:
            first = asyncio.create_task(service.answer([row]))
            await until(gate.entered.is_set)
            queued = asyncio.create_task(service.answer([row] * 30))
            await until(lambda: service.queued[0] == 30)
            for size in (1, 20):
                with pytest.raises(Refusal) as refused:
                    await service.answer([row] * size)
                assert (refused.value.status, refused.value.kind) == (429, "overloaded")
                assert refused.value.retry_after is not None
                assert refused.value.retry_after >= 1
            assert service.queued[0] == 30
            gate.open.set()
            assert len((await first)[0]) == 1
            assert len((await queued)[0]) == 30
            assert len((await service.answer([row]))[0]) == 1, "and it is over"
            sample = service.metrics.registry.get_sample_value
            assert sample("ptuning_rejected_total", {"reason": "overloaded"}) == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("caller", "task"), [("modest", "labels"), ("flood", "other")], ids=["another caller", "another task"]
)
def test_a_flood_is_refused_and_others_are_not(caller: str, task: str, tasks: TaskRegistry) -> None:
    gate = Gate(tasks)
    row = Row(task="labels", text="one")

    async def main() -> None:
        async with running(tasks, gate, batch_tokens=64, queue_batches=1) as service:
            asked = [asyncio.create_task(service.answer([row], caller="flood"))]
            await until(gate.entered.is_set)
            asked.append(asyncio.create_task(service.answer([row] * 100, caller="flood")))
            await until(lambda: service.queued[0] == 100)
            assert await kind_of(service.answer([row], caller="flood")) == "overloaded"
            asked.append(asyncio.create_task(service.answer([Row(task=task, text="one")], caller=caller)))
            await until(lambda: service.queued[0] == 101)
            gate.open.set()
            assert [len((await each)[0]) for each in asked] == [1, 100, 1]

    asyncio.run(main())


def test_rows_that_are_being_tokenised_count(tasks: TaskRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests beyond the limit are refused before they cost anything."""
    calls, packed = [], tasks.packed
    monkeypatch.setattr(tasks, "packed", lambda *given, **more: calls.append(given) or packed(*given))

    async def main() -> None:
        async with running(tasks, queue_rows=20, max_rows=20) as service:
            row = Row(task="labels", text="one")
            kinds = await asyncio.gather(*(kind_of(service.answer([row] * 15)) for _ in range(4)))
            assert sorted(kinds) == ["answered", "overloaded", "overloaded", "overloaded"]
            assert len(calls) == 1
            assert await kind_of(service.answer([row] * 15)) == "answered"

    asyncio.run(main())


def test_a_request_is_answered_by_one_version(
    tasks: TaskRegistry, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are tokenised in pieces, and the task is replaced after the first."""
    old, packed = tasks.get("labels").digest, tasks.packed

    def replaced_after(*given: Any, **more: Any) -> Any:
        found = packed(*given)
        tasks.load("labels", folders["other"])
        return found

    monkeypatch.setattr(tasks, "packed", replaced_after)

    async def main() -> None:
        async with running(tasks) as service:
            answers, _ = await service.answer([Row(task="labels", text="one")] * 300)
            assert {each.digest for each in answers if isinstance(each, RowAnswer)} == {old}
            assert len(answers) == 300

    asyncio.run(main())
    assert tasks.get("labels").digest != old


def test_one_unknown_name_of_a_request_gets_a_hint(tasks: TaskRegistry) -> None:
    """A hint costs half a millisecond, and a request may have a thousand unknown names."""
    names = [f"label{i}" for i in range(10)]

    async def main() -> None:
        async with running(tasks) as service:
            answers, _ = await service.answer([Row(task=name, text="one") for name in names])
        messages = [each.message for each in answers if isinstance(each, Refusal)]
        assert len(messages) == 10
        assert sum("did you mean labels?" in message for message in messages) == 1

    asyncio.run(main())


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("damaged"), MemoryError()])
def test_a_task_that_cannot_be_read_is_refused_alone(
    error: Exception, tasks: TaskRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was moved out of memory, and its file is gone."""
    packed = tasks.packed

    def failing(name: str, *given: Any, **more: Any) -> Any:
        if name == "other":
            raise error
        return packed(name, *given)

    monkeypatch.setattr(tasks, "packed", failing)

    async def main() -> None:
        async with running(tasks) as service:
            names = ["labels", "other", "numbers", "other"]
            answers, _ = await service.answer([Row(task=name, text="one") for name in names])
        kinds = [each.kind if isinstance(each, Refusal) else each.name for each in answers]
        assert kinds == ["labels", "task_unavailable", "numbers", "task_unavailable"]
        assert isinstance(answers[1], Refusal)
        assert answers[1].status == 503
        assert answers[1].retry_after is not None
        assert "no space" not in answers[1].message

    asyncio.run(main())
    assert caplog.text.count("the task other cannot be read") == 1
    assert type(error).__name__ in caplog.text


# ------------------------------------------------------------------------- timeouts, cancels, shutdown


def test_a_late_answer_is_a_timeout_and_its_rows_leave(tasks: TaskRegistry) -> None:
    gate = Gate(tasks)
    row = Row(task="labels", text="one")

    async def main() -> None:
        async with running(tasks, gate, timeout=20) as service:
            first = asyncio.create_task(service.answer([row]))
            await until(gate.entered.is_set)
            with pytest.raises(Refusal, match=r"no answer within 0\.05 s") as refused:
                await service.answer([row] * 5, timeout=0.05)
            assert (refused.value.status, refused.value.kind) == (504, "timeout")
            assert service.queued == (0, 0)
            gate.open.set()
            await first
        assert gate.ran == 1

    asyncio.run(main())


def test_a_request_cannot_ask_for_more_time_than_the_setting(tasks: TaskRegistry) -> None:
    gate = Gate(tasks)

    async def main() -> None:
        async with running(tasks, gate, timeout=0.05) as service:
            assert await kind_of(service.answer([Row(task="labels", text="one")], timeout=1e6)) == "timeout"
            gate.open.set()

    asyncio.run(main())


def test_a_cancelled_requests_rows_leave_the_queue(tasks: TaskRegistry) -> None:
    gate = Gate(tasks)
    row = Row(task="labels", text="one")

    async def main() -> None:
        async with running(tasks, gate) as service:
            first = asyncio.create_task(service.answer([row]))
            await until(gate.entered.is_set)
            gone = asyncio.create_task(service.answer([row] * 5))
            stays = asyncio.create_task(service.answer([row] * 2))
            await until(lambda: service.queued[0] == 7)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert service.queued[0] == 2
            first.cancel()  # its row is in the running batch
            gate.open.set()
            assert len((await stays)[0]) == 2
        assert gate.ran == 3

    asyncio.run(main())


def test_draining_ends_every_request(tasks: TaskRegistry) -> None:
    gate = Gate(tasks)
    row = Row(task="labels", text="one")

    async def main() -> None:
        async with running(tasks, gate) as service:
            asked = [asyncio.create_task(service.answer([row] * size)) for size in (1, 10, 3)]
            await until(gate.entered.is_set)
            await service.drain()
            assert service.draining
            assert not service.ready
            with pytest.raises(Refusal) as refused:
                await service.answer([row])
            assert (refused.value.status, refused.value.kind) == (503, "unavailable")
            assert refused.value.retry_after is not None
            assert [await kind_of(each) for each in asked] == ["unavailable"] * 3
            gate.open.set()

    asyncio.run(main())


def test_after_draining_nothing_is_admitted(tasks: TaskRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a request that was being tokenised."""
    entered, released, packed = threading.Event(), threading.Event(), tasks.packed

    def slow(*given: Any, **more: Any) -> Any:
        entered.set()
        assert released.wait(30)
        return packed(*given)

    monkeypatch.setattr(tasks, "packed", slow)

    async def main() -> None:
        gate = Gate(tasks, open=True)
        async with running(tasks, gate) as service:
            asked = asyncio.create_task(service.answer([Row(task="labels", text="one")]))
            await until(entered.is_set)
            await service.drain()
            released.set()
            assert await kind_of(asked) == "unavailable"
        assert gate.ran == 0

    asyncio.run(main())


def test_if_the_engine_dies_nobody_waits(tasks: TaskRegistry, caplog: pytest.LogCaptureFixture) -> None:
    entered = threading.Event()

    def run(rows: Sequence[TokenRow], packed: Sequence[Any]) -> list[Tensor]:
        entered.set()
        raise SystemExit

    async def main() -> None:
        async with running(tasks, run) as service:
            assert service.ready
            assert await kind_of(service.answer([Row(task="labels", text="one")] * 3)) == "unavailable"
            await until(lambda: not service.engine_up)
            assert not service.ready
            assert service.failed
            assert await kind_of(service.answer([Row(task="labels", text="one")])) == "unavailable"

    asyncio.run(main())


def test_nothing_is_left_after_closing(tasks: TaskRegistry) -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        async with running(tasks) as service:
            await service.answer([Row(task="labels", text="one")])

    asyncio.run(main())
    assert [each.name for each in set(threading.enumerate()) - before] == []


def test_a_service_that_has_not_started_refuses(tasks: TaskRegistry) -> None:
    async def main() -> None:
        service = Service(tasks)
        assert not service.ready
        assert await kind_of(service.answer([Row(task="labels", text="one")])) == "unavailable"
        await service.close()

    asyncio.run(main())


# -------------------------------------------------------------------------------- tasks come and go


def test_each_answer_is_one_versions_and_names_it(
    tiny_folder: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    """Tasks are replaced a hundred times while twenty clients ask."""
    watched = tmp_path / "tasks"
    backbone, tokenizer = opened(tiny_folder)
    versions = [adapter(tiny_folder, tmp_path / f"v{seed}", seed) for seed in range(4)]
    names = ["a", "b", "c"]
    for name in names:
        shutil.copytree(versions[0], watched / name)
    text = "the parcel is late"
    expected: dict[str, list[float]] = {}
    service = open_service(
        backbone,
        tokenizer,
        folder=watched,
        settings=Settings(poll_seconds=0.01, warm_up=False),
    )

    async def main() -> None:
        await service.start()
        for version in versions:
            served = await service.tasks.put("probe", version)
            expected[served.digest] = logits_of(version, text)
        stop = asyncio.Event()
        seen: list[RowAnswer] = []

        async def ask() -> None:
            while not stop.is_set():
                answers, _ = await service.answer([Row(task=name, text=text) for name in names])
                for answer in answers:
                    assert isinstance(answer, RowAnswer), answer
                    seen.append(answer)

        clients = [asyncio.create_task(ask()) for _ in range(20)]
        for step in range(100):
            name, version = names[step % 3], versions[step % 4]
            if step % 2:
                await service.tasks.put(name, version)
            else:
                await asyncio.to_thread(
                    replace_folder,
                    watched / name,
                    lambda new, version=version: shutil.copytree(version, new, dirs_exist_ok=True),  # type: ignore[misc]
                )
        stop.set()
        await asyncio.gather(*clients)
        await service.close()
        assert len({answer.digest for answer in seen}) == 4
        for answer in seen:
            assert close(answer, expected[answer.digest])

    asyncio.run(main())


def test_a_task_that_is_deleted_in_flight_is_answered(tasks: TaskRegistry, folders: dict[str, Path]) -> None:
    gate = Gate(tasks)
    text = "the parcel is late"

    async def main() -> None:
        async with running(tasks, gate) as service:
            asked = asyncio.create_task(service.answer([Row(task="labels", text=text)] * 2))
            await until(gate.entered.is_set)
            service.tasks.remove("labels")
            (refused,), _ = await service.answer([Row(task="labels", text=text)])
            assert isinstance(refused, Refusal)
            gate.open.set()
            for answer in (await asked)[0]:
                assert close(answer, logits_of(folders["labels"], text))

    asyncio.run(main())


def test_tasks_beyond_the_memory_limit_answer_too(tiny_folder: Path, folders: dict[str, Path]) -> None:
    backbone, tokenizer = opened(tiny_folder)
    table = TaskTable(backbone, tokenizer, memory_limit=1)
    tasks = TaskRegistry(table, tokenizer)
    names, text = ["labels", "other", "numbers"], "the parcel is late"
    for name in names:
        tasks.load(name, folders[name])

    async def main() -> None:
        async with running(tasks) as service:
            for _ in range(3):
                answers, _timing = await service.answer([Row(task=name, text=text) for name in names])
                for name, answer in zip(names, answers, strict=True):
                    assert close(answer, logits_of(folders[name], text))

    asyncio.run(main())


def test_it_is_ready_when_the_folder_is_loaded(tiny_folder: Path, folders: dict[str, Path]) -> None:
    backbone, tokenizer = open_backbone(None, [Path("missing"), *folders.values()])
    assert backbone.name == str(tiny_folder)
    service = open_service(backbone, tokenizer, folder=folders["labels"].parent)
    assert not service.ready

    async def main() -> None:
        await service.start()
        assert service.ready
        assert {each.name for each in service.tasks.all()} == set(folders)
        assert service.table_bytes > 0
        assert service.metrics.registry.get_sample_value("ptuning_batch_rows_sum") == 64, "the warm-up"
        await service.close()

    asyncio.run(main())


def test_without_a_backbone_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of 1 adapters names it"):
        open_backbone(None, [tmp_path])


def test_a_bad_adapter_takes_nothing_down(
    tasks: TaskRegistry, folders: dict[str, Path], tmp_path: Path
) -> None:
    async def main() -> None:
        async with running(tasks) as service:
            with pytest.raises(AdapterError):
                await service.tasks.put("labels", tmp_path)
            assert (await service.answer([Row(task="labels", text="one")]))[0][0].__class__ is RowAnswer

    asyncio.run(main())


# ----------------------------------------------------------------------------------- tokens, metrics


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(
        st.text(min_size=1, max_size=60).filter(lambda text: bool(text.strip())), min_size=1, max_size=12
    ),
    pair=st.booleans(),
)
def test_tokens_are_those_of_prediction(tokenising: Any, texts: list[str], pair: bool) -> None:
    """Several threads at the same time, with tasks of different limits."""
    tasks, threads = tokenising
    names = ["pairs"] if pair else ["labels", "short", "numbers"]
    rows = [Row(task=name, text=text, text_pair=text if pair else None) for text in texts for name in names]
    jobs = asyncio.run(threads(rows, tasks.packed, truncate=True))
    for row, job in zip(rows, jobs, strict=True):
        packed = tasks.packed(row.task)
        tokenise = Tokenise.for_task(packed, tasks.tokenizer, tasks.table.backbone)
        example = Example(row=1, text=row.text, text_b=row.text_pair)
        assert isinstance(job, Job)
        assert job.row == tokenise([example])[0]
        assert job.truncated == (tokenise.lengths([example])[0] > len(job.row))


@pytest.fixture(scope="module")
def tokenising(tiny_folder: Path, folders: dict[str, Path]) -> Any:
    backbone, tokenizer = opened(tiny_folder)
    tasks = TaskRegistry(TaskTable(backbone), tokenizer)
    for name, folder in folders.items():
        tasks.load(name, folder)
    threads = Tokenising(tokenizer, backbone, Settings(tokenise_threads=3))
    yield tasks, threads
    threads.close()
    tasks.close()


def test_each_thread_has_its_own_tokenizer(tokenising: Any) -> None:
    """It has state, the length that a text is cut to, and is called without a lock."""
    tasks, threads = tokenising
    together = threading.Barrier(3)

    def own(_: int) -> int:
        together.wait(30)
        return id(threads._own.tokenizer)

    found = {*threads._pool.map(own, range(3)), id(tasks.tokenizer)}
    assert len(found) == 4


def test_metrics_are_as_things_are(tasks: TaskRegistry) -> None:
    gate = Gate(tasks)
    tasks.failures["broken"] = "because"

    async def main() -> None:
        async with running(tasks, gate) as service:
            value = service.metrics.registry.get_sample_value
            rows = [Row(task="labels", text="one two")] * 4
            asked = [asyncio.create_task(service.answer(rows))]
            await until(gate.entered.is_set)
            asked.append(asyncio.create_task(service.answer(rows)))
            await until(lambda: service.queued[0] == 4)
            assert value("ptuning_queue_rows") == 4
            assert value("ptuning_queue_tokens") == 16
            assert value("ptuning_ready") == 1
            assert value("ptuning_engine_up") == 1
            assert value("ptuning_tasks", {"state": "ready"}) == 5
            assert value("ptuning_tasks", {"state": "failed"}) == 1
            assert value("ptuning_table_bytes") == service.table_bytes
            gate.open.set()
            await asyncio.gather(*asked)
            await service.answer([Row(task="short", text="crash " * 30), Row(task="nothing", text="one")])
            assert value("ptuning_queue_rows") == 0
            assert value("ptuning_rows_total", {"task": "labels", "outcome": "answered"}) == 8
            assert value("ptuning_rows_total", {"task": "other", "outcome": "unknown_task"}) == 1
            assert value("ptuning_truncated_rows_total", {"task": "short"}) == 1
            assert value("ptuning_tokens_total", {"kind": "text"}) == 8 * 4 + 8
            assert value("ptuning_batch_rows_count") == 3
            assert value("ptuning_stage_seconds_count", {"stage": "inference"}) == 3
        body, kind = service.metrics.render()
        assert b"ptuning_build_info" in body
        assert kind.startswith("text/plain")

    asyncio.run(main())


def test_labels_have_a_bound() -> None:
    metrics = Metrics(max_tasks=3)
    for number in range(1000):
        metrics.rows(f"t{number}", 1)
        metrics.request(task=f"t{number}", route="/tasks/{task}", code=200, seconds=0.1)
    rows = [sample for family in metrics.registry.collect() for sample in family.samples]
    assert {sample.labels["task"] for sample in rows if "task" in sample.labels} == {
        "t0",
        "t1",
        "t2",
        "other",
    }
    assert (
        metrics.registry.get_sample_value("ptuning_rows_total", {"task": "other", "outcome": "answered"})
        == 997
    )


def test_freed_memory_is_returned_now_and_then(tasks: TaskRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def release() -> bool:
        nonlocal calls
        calls += 1
        return calls < 3  # and no more once it says that it cannot

    monkeypatch.setattr("ptuning.serving.service.release_free_memory", release)

    async def main() -> None:
        service = Service(tasks, settings=Settings(release_seconds=0.001, warm_up=False))
        await service.start()
        await until(lambda: calls == 3)
        await asyncio.sleep(0.02)
        await service.close()

    asyncio.run(main())
    assert calls == 3


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone keeps freed memory")
def test_a_hole_between_blocks_in_use_is_returned() -> None:
    """glibc returns what is free at the end of its heap, but no hole before a block that is in use."""
    blocks = [np.ones(60_000, dtype=np.uint8) for _ in range(2000)]
    last = np.ones(60_000, dtype=np.uint8)
    full = resident()
    del blocks
    assert release_free_memory()
    assert resident() < full - 90e6
    assert last.all()


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
