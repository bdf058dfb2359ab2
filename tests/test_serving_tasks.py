"""Tasks come, are replaced and go while the server runs; what is damaged or foreign is refused by name."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

import ptuning.serving.tasks as tasks_module
from ptuning import adapters
from ptuning.adapters.atomic import remove_folder, replace_folder
from ptuning.errors import AdapterError, AdapterMismatch, ConfigError
from ptuning.serving.rows import Refusal
from ptuning.serving.tasks import NAME, TaskRegistry
from ptuning.serving.uploads import Uploads
from ptuning.serving.watching import Changes, FolderWatch
from served import LABELS, adapter, registry
from tiny import tiny


@pytest.fixture
def tasks(tiny_folder: Path) -> TaskRegistry:
    return registry(tiny_folder)


@pytest.fixture(scope="module")
def two_versions(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters that answer differently; copy them, do not change them."""
    folder = tmp_path_factory.mktemp("versions")
    return adapter(tiny_folder, folder / "one", 1), adapter(tiny_folder, folder / "two", 2)


@pytest.fixture(scope="module")
def foreign(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for a backbone of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("foreign")
    shutil.copytree(tiny_folder, folder / "other-bert")
    config = json.loads((tiny_folder / "config.json").read_text("utf-8"))
    tiny("bert", num_labels=2, vocab_size=config["vocab_size"], pad_token_id=0, seed=9).save_pretrained(
        folder / "other-bert"
    )
    return adapter(folder / "other-bert", folder / "adapter")


def copied(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


class Watched:
    """A folder of adapters, a registry that follows it, and a clock."""

    def __init__(self, folder: Path, tasks: TaskRegistry) -> None:
        self.folder, self.tasks, self.now = folder, tasks, 0.0
        self.watch = FolderWatch(folder=folder, tasks=tasks, grace_seconds=10, clock=lambda: self.now)

    def scan(self) -> Changes:
        return self.watch.scan()

    def put(self, name: str, source: Path) -> None:
        """As another process would: in one step."""
        replace_folder(self.folder / name, lambda new: copied(source, new))


@pytest.fixture
def watched(tmp_path: Path, tasks: TaskRegistry) -> Watched:
    (tmp_path / "tasks").mkdir()
    return Watched(tmp_path / "tasks", tasks)


def digest(folder: Path) -> str:
    return str(adapters.details(folder)["sha256_self"][:12])


# --------------------------------------------------------------------------------------- the registry


def test_a_task_says_what_it_is(tasks: TaskRegistry, two_versions: tuple[Path, Path]) -> None:
    one, _ = two_versions
    served = asyncio.run(tasks.put("spam", one))
    assert served is tasks.get("spam")
    assert served.name == "spam"
    assert served.digest == digest(one)
    assert served.task == LABELS
    assert served.max_tokens == 62  # 64 positions, two of them for the prompt
    assert served.source == str(one)
    assert "P-tuning" in served.card or "ptuning" in served.card
    assert served.details["backbone"]["model_type"] == "bert"
    assert tasks.packed("spam").digest == served.digest
    assert [each.name for each in tasks.all()] == ["spam"]
    assert "spam" in tasks
    assert len(tasks) == 1


def test_a_task_is_replaced_at_once(tasks: TaskRegistry, two_versions: tuple[Path, Path]) -> None:
    one, two = two_versions
    tasks.load("spam", one)
    before = tasks.packed("spam")
    tasks.load("spam", two, source="somebody/spam")
    assert tasks.get("spam").digest == digest(two) == tasks.packed("spam").digest
    assert tasks.get("spam").source == "somebody/spam"
    assert before.digest == digest(one), "who has the old version keeps it"
    assert before.prompts is not None
    assert torch.isfinite(before.prompts).all()


def test_a_removed_task_is_unknown(tasks: TaskRegistry, two_versions: tuple[Path, Path]) -> None:
    tasks.load("spam", two_versions[0])
    tasks.remove("spam")
    for find in (tasks.get, tasks.packed):
        with pytest.raises(Refusal) as refused:
            find("spam")
        assert (refused.value.status, refused.value.kind) == (404, "unknown_task")
    with pytest.raises(Refusal):
        tasks.remove("spam")
    assert tasks.table.names == ()


def test_near_names_are_suggested_among_those_that_one_may_see(
    tasks: TaskRegistry, two_versions: tuple[Path, Path]
) -> None:
    for name in ("spam-en", "spam-de", "tickets"):
        tasks.load(name, two_versions[0])
    with pytest.raises(Refusal, match="did you mean spam-") as refused:
        tasks.get("spam-em")
    assert "tickets" not in str(refused.value)
    with pytest.raises(Refusal) as refused:
        tasks.get("spam-em", lambda name: name == "spam-de")
    assert "spam-en" not in str(refused.value)
    with pytest.raises(Refusal) as refused:
        tasks.get("spam-de", lambda name: False)
    assert str(refused.value) == "no task 'spam-de'", "as if there was none"


def test_an_unknown_name_costs_little_however_many_tasks_there_are(
    tasks: TaskRegistry, two_versions: tuple[Path, Path]
) -> None:
    """It is looked up on the event loop, for whoever sends any name."""
    tasks.load("spam", two_versions[0])
    looked: list[str] = []
    for name in ("spam-spam-spam", "a" * 128, "b" * 100_000):
        with pytest.raises(Refusal):
            tasks.get(name, lambda each: bool(looked.append(each)))
    assert looked == [], "whether a task is visible is asked for known names only"
    tasks._served |= {f"task-{number}": tasks.get("spam") for number in range(2000)}
    with pytest.raises(Refusal, match="did you mean task-1999"):
        tasks.get("tsak-1999", lambda each: not looked.append(each))
    assert looked == ["task-1999"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../x", "a\\b", "a b", "ä", "x" * 129, "a\n", "a\0", "١"]
)
def test_a_name_is_never_a_path(name: str, tasks: TaskRegistry, two_versions: tuple[Path, Path]) -> None:
    assert not NAME.fullmatch(name)
    with pytest.raises(ConfigError, match="the name of the task"):
        tasks.load(name, two_versions[0])
    with pytest.raises(Refusal) as refused:
        tasks.get(name)
    assert refused.value.status == 404
    assert tasks.failures == {}


def test_an_adapter_of_another_backbone_is_refused_by_name(
    tasks: TaskRegistry, two_versions: tuple[Path, Path], foreign: Path
) -> None:
    tasks.load("spam", two_versions[0])
    with pytest.raises(AdapterMismatch, match="other-bert"):
        tasks.load("spam", foreign)
    assert "other-bert" in tasks.failures["spam"]
    assert tasks.get("spam").digest == digest(two_versions[0]), "the old version goes on"
    tasks.load("spam", two_versions[1])
    assert tasks.failures == {}


def test_the_refusal_of_an_upload_is_counted_and_not_kept(
    tasks: TaskRegistry, foreign: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sender gets it, and nothing that is there has failed."""
    with pytest.raises(AdapterMismatch):
        asyncio.run(tasks.put("new", foreign))
    assert tasks.failures == {}
    assert "the adapter for the task new was refused" in caplog.text
    value = tasks.metrics.registry.get_sample_value
    assert value("ptuning_task_loads_total", {"result": "refused"}) == 1


@pytest.mark.parametrize("file", adapters.OWN_FILES)
def test_a_damaged_adapter_is_refused(
    file: str, tasks: TaskRegistry, two_versions: tuple[Path, Path], tmp_path: Path
) -> None:
    """Whichever file it is: the model card is shown, so it is checked too."""
    bad = tmp_path / "bad"
    shutil.copytree(two_versions[0], bad)
    data = bytearray((bad / file).read_bytes())
    data[-3] ^= 1
    (bad / file).write_bytes(data)
    with pytest.raises(AdapterError):
        tasks.load("spam", bad)
    assert file in tasks.failures["spam"]
    assert tasks.states == {"ready": 0, "failed": 1}


@pytest.mark.parametrize("step", ["checked", "adapters.load"])
def test_what_is_read_is_one_version(
    step: str,
    tasks: TaskRegistry,
    two_versions: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The folder is replaced after its record was read: before its files are, or before its tensors are."""
    place = tmp_path / "place"
    shutil.copytree(two_versions[0], place)
    read: Any = attrgetter(step)(tasks_module)
    calls = []

    def slow(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            replace_folder(place, lambda new: copied(two_versions[1], new))
        return read(*given)

    monkeypatch.setattr(f"ptuning.serving.tasks.{step}", slow)
    served = tasks.load("spam", place)
    assert served.digest == digest(two_versions[1])
    assert len(calls) > 1
    expected = adapters.load(two_versions[1]).prompt_tensor
    found = tasks.packed("spam").prompts
    assert found is not None
    assert torch.equal(found, expected)


def test_many_threads_may_load(tasks: TaskRegistry, two_versions: tuple[Path, Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: tasks.load(f"t{i % 5}", two_versions[i % 2]), range(20)))
    assert len(tasks) == 5 == len(tasks.table)
    for served in tasks.all():
        assert tasks.packed(served.name).digest == served.digest


# ----------------------------------------------------------------------------------- a watched folder


def test_the_first_scan_loads_everything(watched: Watched, two_versions: tuple[Path, Path]) -> None:
    for i in range(5):
        shutil.copytree(two_versions[i % 2], watched.folder / f"t{i}")
    (watched.folder / "notes.txt").write_text("not a task")
    (watched.folder / "empty").mkdir()
    assert watched.scan() == Changes(loaded=("t0", "t1", "t2", "t3", "t4"))
    assert watched.scan() == Changes()
    assert len(watched.tasks) == 5
    assert watched.tasks.failures == {}


def test_a_replaced_folder_is_a_new_version(watched: Watched, two_versions: tuple[Path, Path]) -> None:
    watched.put("spam", two_versions[0])
    watched.scan()
    watched.put("spam", two_versions[1])
    assert watched.scan() == Changes(loaded=("spam",))
    assert watched.tasks.get("spam").digest == digest(two_versions[1])


def test_a_damaged_folder_is_refused_and_the_old_version_goes_on(
    watched: Watched, two_versions: tuple[Path, Path], tmp_path: Path
) -> None:
    watched.put("spam", two_versions[0])
    watched.scan()
    shutil.copytree(two_versions[1], tmp_path / "bad")
    (tmp_path / "bad" / "adapter_model.safetensors").write_bytes(b"half")
    watched.put("spam", tmp_path / "bad")
    assert watched.scan() == Changes(refused=("spam",))
    assert watched.tasks.get("spam").digest == digest(two_versions[0])
    assert "adapter_model.safetensors" in watched.tasks.failures["spam"]
    assert watched.scan() == Changes(), "it is not read again while nothing changes"
    watched.put("spam", two_versions[1])
    assert watched.scan() == Changes(loaded=("spam",))
    assert watched.tasks.failures == {}


@pytest.mark.parametrize("last", adapters.OWN_FILES)
def test_a_folder_that_is_copied_slowly(last: str, watched: Watched, two_versions: tuple[Path, Path]) -> None:
    """Whatever file comes last, also if it is not the record: it is a task once it is complete."""
    place = watched.folder / "spam"
    place.mkdir()
    order = [*(name for name in adapters.OWN_FILES if name != last), last]
    for file in order[:-1]:
        shutil.copyfile(two_versions[0] / file, place / file)
        assert watched.scan().loaded == ()
        assert "spam" not in watched.tasks
    shutil.copyfile(two_versions[0] / last, place / last)
    assert watched.scan() == Changes(loaded=("spam",))
    assert watched.tasks.failures == {}


def test_a_file_that_grows_is_read_when_it_is_complete(
    watched: Watched, two_versions: tuple[Path, Path]
) -> None:
    place = watched.folder / "spam"
    shutil.copytree(two_versions[0], place)
    data = (place / "adapter_model.safetensors").read_bytes()
    (place / "adapter_model.safetensors").write_bytes(data[:100])
    assert watched.scan() == Changes(refused=("spam",))
    (place / "adapter_model.safetensors").write_bytes(data)
    assert watched.scan() == Changes(loaded=("spam",))


def test_a_deleted_folder_is_a_task_for_some_seconds_more(
    watched: Watched, two_versions: tuple[Path, Path]
) -> None:
    watched.put("spam", two_versions[0])
    watched.scan()
    remove_folder(watched.folder / "spam")
    assert watched.scan() == Changes()
    watched.now = 9
    assert watched.scan() == Changes()
    assert "spam" in watched.tasks
    watched.now = 11
    assert watched.scan() == Changes(removed=("spam",))
    assert "spam" not in watched.tasks
    watched.put("spam", two_versions[0])
    assert watched.scan() == Changes(loaded=("spam",))


def test_a_folder_that_is_away_for_a_moment_is_not_missed(
    watched: Watched, two_versions: tuple[Path, Path]
) -> None:
    watched.put("spam", two_versions[0])
    watched.scan()
    os.rename(watched.folder / "spam", watched.folder / "elsewhere.d")
    shutil.rmtree(watched.folder / "elsewhere.d", ignore_errors=True)
    watched.scan()
    watched.now = 5
    watched.put("spam", two_versions[0])
    watched.scan()
    watched.now = 14
    remove_folder(watched.folder / "spam")
    watched.scan()
    watched.now = 20
    assert watched.scan() == Changes(), "the seconds are counted from the last time that it was missing"
    assert "spam" in watched.tasks


def test_a_folder_that_is_moved_aside_is_waited_for(
    watched: Watched, two_versions: tuple[Path, Path]
) -> None:
    """Where names cannot be exchanged, the old folder is next to the new one for a moment."""
    watched.put("spam", two_versions[0])
    watched.scan()
    aside = watched.folder / ".spam.old-01234567-89abcdef"
    os.rename(watched.folder / "spam", aside)
    watched.scan()
    watched.now = 100
    assert watched.scan() == Changes()
    assert [each.name for each in watched.tasks.all()] == ["spam"]
    os.rename(aside, watched.folder / "spam")
    assert watched.scan() == Changes()
    assert "spam" in watched.tasks


@pytest.mark.parametrize("name", [".spam.tmp-01234567-89abcdef", ".spam.new-01234567-89abcdef", ".hidden"])
def test_hidden_folders_are_not_tasks(name: str, watched: Watched, two_versions: tuple[Path, Path]) -> None:
    shutil.copytree(two_versions[0], watched.folder / name)
    assert watched.scan() == Changes()
    assert watched.tasks.failures == {}


@pytest.mark.parametrize(("name", "shown"), [("my task", "my task"), ("ä", "ä"), ("a\nb", "a\\nb")])
def test_an_adapter_whose_folder_has_another_name_is_reported(
    name: str,
    shown: str,
    watched: Watched,
    two_versions: tuple[Path, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(two_versions[0], watched.folder / name)
    (watched.folder / "just notes").mkdir()
    for _ in range(2):
        assert watched.scan() == Changes()
    assert list(watched.tasks.failures) == [shown]
    assert "rename it" in watched.tasks.failures[shown]
    assert caplog.text.count("rename it") == 1
    os.rename(watched.folder / name, watched.folder / "good")
    assert watched.scan() == Changes(loaded=("good",))
    assert watched.tasks.failures == {}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory"), OSError(5, "EIO")])
def test_an_error_that_may_pass_is_tried_again(
    error: Exception,
    watched: Watched,
    two_versions: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No file changes meanwhile; the log has it once."""
    watched.put("spam", two_versions[0])

    def failing(*given: Any) -> Any:
        if isinstance(error, OSError):
            raise AdapterError("it cannot be read") from error
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tasks_module.adapters, "load", failing)
        for _ in range(3):
            assert watched.scan() == Changes(refused=("spam",))
    assert list(watched.tasks.failures) == ["spam"]
    assert watched.tasks.failures["spam"]
    assert caplog.text.count("was refused") == 1
    assert watched.scan() == Changes(loaded=("spam",))
    assert watched.tasks.failures == {}
    assert watched.scan() == Changes()


def test_a_foreign_adapter_is_refused_and_the_rest_loaded(
    watched: Watched, two_versions: tuple[Path, Path], foreign: Path
) -> None:
    watched.put("good", two_versions[0])
    watched.put("alien", foreign)
    assert watched.scan() == Changes(loaded=("good",), refused=("alien",))
    assert list(watched.tasks.failures) == ["alien"]
    remove_folder(watched.folder / "alien")
    watched.scan()
    watched.now = 11
    assert watched.scan() == Changes(removed=("alien",))
    assert watched.tasks.failures == {}


def test_a_task_from_elsewhere_stays(watched: Watched, two_versions: tuple[Path, Path]) -> None:
    """The folder of a name goes, and another adapter has been put in its place by hand."""
    watched.put("spam", two_versions[0])
    watched.scan()
    watched.tasks.load("spam", two_versions[1])
    watched.tasks.load("other", two_versions[1])
    remove_folder(watched.folder / "spam")
    watched.scan()
    watched.now = 11
    assert watched.scan() == Changes()
    assert {each.name for each in watched.tasks.all()} == {"spam", "other"}


@pytest.mark.parametrize("replaced", [False, True])
def test_what_was_sent_and_then_deleted_elsewhere_before_a_scan_is_removed(
    replaced: bool, watched: Watched, two_versions: tuple[Path, Path], tmp_path: Path
) -> None:
    """As if one replica gets the upload, and another one the deletion."""
    if replaced:
        watched.put("spam", two_versions[0])
    watched.scan()
    staged = shutil.copytree(two_versions[1], tmp_path / "staged")
    asyncio.run(watched.tasks.put("spam", staged, home=watched.folder / "spam"))
    watched.put("spam", staged)
    remove_folder(watched.folder / "spam")
    assert watched.scan() == Changes()
    watched.now = 11
    assert watched.scan() == Changes(removed=("spam",))
    assert "spam" not in watched.tasks


def test_a_task_that_another_server_has_deleted_can_be_deleted(
    watched: Watched, two_versions: tuple[Path, Path]
) -> None:
    """With servers that share a folder, before this one has noticed."""
    uploads = Uploads(watched.tasks, watched.folder, 1 << 20, shared=True)
    watched.put("spam", two_versions[0])
    watched.scan()
    watched.tasks.load("other", two_versions[1])
    remove_folder(watched.folder / "spam")
    asyncio.run(uploads.delete("spam"))
    for name, status in (("spam", 404), ("other", 403)):
        with pytest.raises(Refusal) as refused:
            asyncio.run(uploads.delete(name))
        assert refused.value.status == status


def test_a_version_that_is_served_is_not_loaded_again(
    watched: Watched, two_versions: tuple[Path, Path]
) -> None:
    """As after an upload, which writes to the folder and loads at once."""
    watched.put("spam", two_versions[0])
    before = watched.tasks.load("spam", watched.folder / "spam")
    watched.scan()
    assert watched.tasks.get("spam") is before


def test_a_folder_that_cannot_be_read_keeps_its_tasks(
    watched: Watched, two_versions: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    watched.put("spam", two_versions[0])
    watched.scan()
    os.rename(watched.folder, watched.folder.with_name("away"))
    for now in (0, 100, 200):
        watched.now = now
        assert watched.scan() == Changes()
    assert "spam" in watched.tasks
    assert caplog.text.count("cannot be read") == 1
    os.rename(watched.folder.with_name("away"), watched.folder)
    assert watched.scan() == Changes()


def test_a_link_to_a_folder_is_a_task(watched: Watched, two_versions: tuple[Path, Path]) -> None:
    """As orchestrators mount configuration: the link is pointed at the next version."""
    (watched.folder / "spam").symlink_to(two_versions[0])
    assert watched.scan() == Changes(loaded=("spam",))
    (watched.folder / "spam").unlink()
    (watched.folder / "spam").symlink_to(two_versions[1])
    assert watched.scan() == Changes(loaded=("spam",))
    assert watched.tasks.get("spam").digest == digest(two_versions[1])


def test_an_adapter_that_the_tokenizer_cannot_serve_leaves_the_old_version(
    tasks: TaskRegistry, two_versions: tuple[Path, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    """Windows need a fast tokenizer. The tensors and the record stay those of one version."""

    class Slow:
        is_fast = False
        model_max_length = 64

    windows = adapter(tiny_folder, tmp_path / "windows", 3, replace(LABELS, max_length=8, max_windows=4))
    tasks.tokenizer = Slow()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="slow tokenizer"):
        tasks.load("new", windows)
    assert "new" not in tasks.table
    old = tasks.load("one", two_versions[0])
    with pytest.raises(ConfigError, match="slow tokenizer"):
        tasks.load("one", windows)
    assert tasks.get("one") is old
    assert tasks.packed("one").digest == old.digest
