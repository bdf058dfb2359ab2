"""Tasks whose tensors are read when a row names them: what is listed, read, let go, replaced and refused."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from transformers import AutoTokenizer

from ptuning.errors import AdapterError
from ptuning.model import TaskTable
from ptuning.serving import tasks as tasks_module
from ptuning.serving.held import HeldTasks, Hold
from ptuning.serving.rows import Refusal
from ptuning.serving.tasks import Lookup
from ptuning.serving.watching import FolderWatch
from served import LABELS, NUMBERS, PAIRS, adapter, opened, registry
from tiny import tiny

TASKS = {"labels": LABELS, "numbers": NUMBERS, "pairs": PAIRS}


class Recent:
    """The tasks that were named most recently, as many as the limit says."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.names: OrderedDict[str, None] = OrderedDict()

    def __call__(self, let_go: Callable[[str], None]) -> Hold:
        def hold(name: str) -> Future[Any]:
            self.names[name] = None
            self.names.move_to_end(name)
            while len(self.names) > self.limit:
                let_go(self.names.popitem(last=False)[0])
            done: Future[Any] = Future()
            done.set_result(None)
            return done

        return hold


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    for seed, (name, task) in enumerate(TASKS.items()):
        adapter(tiny_folder, tmp_path / "adapters" / name, seed, task)
    return tmp_path / "adapters"


@pytest.fixture
def tasks(tiny_folder: Path, folder: Path) -> HeldTasks:
    backbone, tokenizer = opened(tiny_folder)
    return HeldTasks(TaskTable(backbone, tokenizer), tokenizer, holding=Recent(2))


@pytest.fixture
def watch(tasks: HeldTasks, folder: Path) -> FolderWatch:
    made = FolderWatch(folder=folder, tasks=tasks, grace_seconds=0)
    made.scan()
    return made


def loads(tasks: HeldTasks) -> float:
    return tasks.metrics._loads.labels("loaded")._value.get()


def test_all_tasks_are_listed_and_none_is_read(
    tasks: HeldTasks, watch: FolderWatch, tiny_folder: Path, folder: Path
) -> None:
    assert [task.name for task in tasks.all()] == sorted(TASKS)
    assert len(tasks.table) == 0
    assert loads(tasks) == 0
    plain = registry(tiny_folder)
    for name in TASKS:  # what is said of a task is the same as if it had been read
        want, have = plain.load(name, folder / name), tasks.get(name)
        for fact in ("digest", "task", "max_tokens", "source", "card", "metrics", "details"):
            assert getattr(have, fact) == getattr(want, fact), fact


def test_a_held_task_is_not_read_again_and_the_least_recent_is_let_go(
    tasks: HeldTasks, watch: FolderWatch
) -> None:
    for name in ("labels", "numbers", "labels", "numbers"):
        assert tasks.packed(name).digest == tasks.get(name).digest
    assert loads(tasks) == 2
    tasks.packed("pairs")
    assert tasks.table.names == ("numbers", "pairs")
    kept = tasks.packed("labels")
    assert loads(tasks) == 4
    assert tasks.table.names == ("labels", "pairs")
    assert kept.prompts is not None
    tasks.let_go("labels")
    tasks.let_go("labels")
    assert kept.prompts.numel()  # a pass that has it goes on
    assert len(tasks.all()) == 3


def test_a_replaced_adapter_is_served_in_its_new_version(
    tasks: HeldTasks, watch: FolderWatch, tiny_folder: Path, folder: Path
) -> None:
    before = tasks.packed("labels").digest
    for seed, name in enumerate(("labels", "numbers"), start=10):  # one that is held, one that is not
        adapter(tiny_folder, folder / name, seed, TASKS[name])
    assert set(watch.scan().loaded) == {"labels", "numbers"}
    assert tasks.table.names == ("labels",)
    assert tasks.packed("labels").digest == tasks.get("labels").digest != before
    assert tasks.packed("numbers").digest == tasks.get("numbers").digest


def test_a_removed_adapter_is_unknown(tasks: HeldTasks, watch: FolderWatch, folder: Path) -> None:
    tasks.packed("labels")
    for name in ("labels", "numbers"):
        shutil.rmtree(folder / name)
    watch.scan()
    for name in ("labels", "numbers"):
        with pytest.raises(Refusal, match="no task"):
            tasks.packed(name)
    assert len(tasks.table) == 0
    with pytest.raises(Refusal, match="did you mean pairs"):
        tasks.packed("pair")


def test_a_version_that_was_read_before_it_was_scanned_is_removed_with_its_folder(
    tasks: HeldTasks, watch: FolderWatch, tiny_folder: Path, folder: Path
) -> None:
    before = tasks.get("labels").digest
    adapter(tiny_folder, folder / "labels", 10)
    assert tasks.packed("labels").digest != before
    shutil.rmtree(folder / "labels")
    assert watch.scan().removed == ("labels",)


def test_what_is_removed_while_it_is_read_stays_removed(
    tasks: HeldTasks, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tasks_module._read
    removing = Thread(target=tasks.remove, args=("labels",))

    def removed_meanwhile(place: Path) -> Any:
        removing.start()
        removing.join(0.2)  # it waits for this
        return read(place)

    monkeypatch.setattr(tasks_module, "_read", removed_meanwhile)
    tasks.packed("labels")
    removing.join()
    assert "labels" not in tasks
    assert len(tasks.table) == 0


def test_a_damaged_adapter_is_refused_until_it_is_whole(
    tasks: HeldTasks, watch: FolderWatch, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks.packed("pairs")
    tasks.packed("numbers")
    file = folder / "labels" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    found = Lookup(tasks)("labels")
    assert isinstance(found, Refusal)
    assert (found.status, found.kind) == (503, "task_unavailable")
    assert "labels" in tasks.failures
    assert tasks.table.names == ("numbers", "pairs")  # nobody was let go for it
    file.write_bytes(whole)
    assert not isinstance(Lookup(tasks)("labels"), Refusal)
    assert tasks.failures == {}


@pytest.mark.parametrize("held", [False, True])
def test_a_damaged_replacement_is_refused_by_every_replica(
    held: bool, tasks: HeldTasks, watch: FolderWatch, tiny_folder: Path, folder: Path
) -> None:
    before = tasks.get("labels").digest
    if held:
        tasks.packed("labels")
    adapter(tiny_folder, folder / "labels", 10)
    (folder / "labels" / "adapter_model.safetensors").write_bytes(b"half")
    assert watch.scan().refused == ("labels",)
    assert tasks.get("labels").digest == before
    assert "labels" in tasks.failures


def test_an_adapter_for_another_backbone_is_refused_at_once(
    tasks: HeldTasks, watch: FolderWatch, tiny_folder: Path, folder: Path, tmp_path: Path
) -> None:
    tiny("bert", num_labels=2, seed=7).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "other")
    adapter(tmp_path / "other", folder / "foreign")
    assert watch.scan().refused == ("foreign",)
    assert "foreign" not in tasks
    assert "foreign" in tasks.failures


def test_what_is_sent_is_read_at_once_and_found_in_the_folder_later(
    tasks: HeldTasks, watch: FolderWatch, tiny_folder: Path, folder: Path, tmp_path: Path
) -> None:
    staged = adapter(tiny_folder, tmp_path / "staged", 20)
    served = asyncio.run(tasks.put("sent", staged, home=folder / "sent"))
    assert tasks.packed("sent").digest == served.digest
    staged.rename(folder / "sent")
    tasks.let_go("sent")
    assert tasks.packed("sent").digest == served.digest
    (folder / "sent" / "adapter_config.json").unlink()
    with pytest.raises(AdapterError):
        asyncio.run(tasks.put("sent", folder / "sent"))
    assert tasks.packed("sent").digest == served.digest
