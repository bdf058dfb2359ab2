"""The adapter folder: exact round trips, no byte altered unnoticed, nothing of the user's deleted."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ptuning.adapters import Adapter, check_destination, details, folder, is_adapter, load, save, verify
from ptuning.errors import AdapterError, OutputError
from ptuning.task import Task
from test_adapters_record import an_adapter

OWN = ["README.md", "adapter_config.json", "adapter_model.safetensors", "ptuning.json"]


def resume(folder: Path) -> None:
    (folder / "resume").mkdir()
    save_file({"step": torch.tensor([3])}, folder / "resume" / "optimizer.safetensors")
    (folder / "resume" / "state.json").write_text("{}")


def same(one: Adapter, other: Adapter) -> bool:
    """Equal to the bit: also where numbers are -0.0."""
    bits = [(a.prompt_tensor, *(a.head[name] for name in sorted(a.head))) for a in (one, other)]
    return (
        one.head.keys() == other.head.keys()
        and all(
            x.dtype == y.dtype and x.shape == y.shape and x.numpy().tobytes() == y.numpy().tobytes()
            for x, y in zip(*bits, strict=True)
        )
        and (one.prompt, one.task, one.backbone, one.anchors)
        == (other.prompt, other.task, other.backbone, other.anchors)
    )


# --------------------------------------------------------------------------------------- round trip

_FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=30)
@given(
    numbers=st.lists(_FINITE, min_size=64, max_size=64),
    prompt=st.sampled_from(
        [
            {},
            {"placement": "front"},
            {"depth": "deep"},
            {"depth": "deep", "first_layer": 2},
            {"depth": "deep", "template": "{text} so"},
        ]
    ),
    labels=st.lists(st.text(), min_size=2, max_size=5, unique=True) | st.just([1, 2.0, True, "x"]),
    anchors=st.lists(st.lists(st.integers(0, 50_000), max_size=3), max_size=2),
)
def test_round_trips_are_exact(
    numbers: list[float], prompt: dict[str, Any], labels: list[Any], anchors: list[list[int]]
) -> None:
    if prompt.get("depth") == "deep":  # a piece of the template has its words, and nothing else has any
        anchors = [[*ids, 7] for ids in [*anchors, []][:1]] if "template" in prompt else []
    shape = an_adapter(prompt).prompt_tensor.shape
    tensor = torch.tensor(numbers * 3)[: math.prod(shape)].reshape(shape)
    adapter = an_adapter(
        prompt,
        facts={"vocab_size": 50_001},
        prompt_tensor=tensor,
        task=Task(problem_type="multi_label_classification", labels=tuple(labels), pair=True, max_length=7),
        head={
            "bert.pooler.dense.weight": tensor.clone(),
            "bert.pooler.dense.bias": torch.tensor([0.1, -0.0]),
        },
        anchors=tuple(map(tuple, anchors)),
    )
    with TemporaryDirectory() as place:
        folder = save(adapter, Path(place) / "adapter")
        verify(folder)
        assert same(load(folder), adapter)
        assert [type(label) for label in load(folder).task.labels] == [type(label) for label in labels]


@pytest.mark.parametrize("mean", [0.1, 1e-300, 12345678.9])
def test_a_scale_comes_back_exactly(mean: float, tmp_path: Path) -> None:
    task = Task(problem_type="regression", mean=mean, scale=1 / 3)
    assert load(save(an_adapter(task=task), tmp_path / "adapter")).task == task


def test_the_files(tmp_path: Path) -> None:
    folder = save(
        an_adapter(metrics={"test": {"accuracy": 0.5}}, extra={"seed": 3}), tmp_path / "new" / "adapter"
    )
    assert sorted(os.listdir(folder)) == OWN
    content = details(folder)
    assert content["format_version"] == 1
    assert set(content["versions"]) == {"ptuning", "torch", "transformers", "safetensors", "python"}
    assert content["created"].endswith("+00:00")
    assert (content["metrics"], content["extra"]) == ({"test": {"accuracy": 0.5}}, {"seed": 3})
    assert content["files"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in OWN
        if name != "ptuning.json"
    }
    assert (load(folder).metrics, load(folder).extra) == ({"test": {"accuracy": 0.5}}, {"seed": 3})


def test_extra_files_are_listed_and_verified(tmp_path: Path) -> None:
    folder = save(an_adapter(), tmp_path / "adapter", extra_files=resume)
    assert {"resume/optimizer.safetensors", "resume/state.json"} <= set(verify(folder))
    (folder / "resume" / "state.json").write_text("{ }")
    load(folder)  # what serves predictions is whole
    with pytest.raises(AdapterError, match=r"resume/state.json in .* was altered or cut short"):
        verify(folder)
    (folder / "resume" / "state.json").unlink()
    with pytest.raises(AdapterError, match=r"has no resume/state.json, which ptuning.json lists"):
        verify(folder)


def test_extra_files_may_not_take_our_names(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"extra_files: got a file ptuning.json, expected other names"):
        save(an_adapter(), tmp_path / "adapter", extra_files=lambda folder: (folder / "ptuning.json").touch())
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_and_torch_become_json(tmp_path: Path) -> None:
    metrics = {
        "test": {"n": np.int64(3), "f1": np.float32(0.5), "loss": torch.tensor(2.0), "undefined": math.nan}
    }
    back = load(save(an_adapter(metrics=metrics), tmp_path / "adapter"))
    assert back.metrics == {"test": {"n": 3, "f1": 0.5, "loss": 2.0, "undefined": None}}


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"extra": {"x": [{1}]}}, r"extra.x\[0\]: got a set, expected JSON data"),
        ({"facts": {"fingerprint": math.inf}}, r"backbone.fingerprint: got inf, expected a finite number"),
        (
            {"prompt_tensor": torch.full((4, 16), math.nan)},
            r"the prompt: got 64 of 64 values that are NaN or infinite",
        ),
        ({"head": {"score.weight": torch.tensor([[1.0], [math.inf]])}}, r"score.weight: got 1 of 2 values"),
    ],
)
def test_what_is_not_saved(given_: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=message):
        save(an_adapter(**given_), tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(an_adapter(), tmp_path_factory.mktemp("damage") / "adapter", extra_files=resume)


FILES = [*OWN, "resume/state.json", "resume/optimizer.safetensors"]


@settings(deadline=None, max_examples=120)
@given(name=st.sampled_from(FILES), data=st.data())
def test_any_flipped_byte_is_detected(saved: Path, name: str, data: st.DataObject) -> None:
    file = saved / name
    whole = file.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    assert_detected(file, whole, whole[:place] + bytes([other]) + whole[place + 1 :], saved)


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(FILES), data=st.data())
def test_any_truncation_is_detected(saved: Path, name: str, data: st.DataObject) -> None:
    whole = (saved / name).read_bytes()
    assert_detected(saved / name, whole, whole[: data.draw(st.integers(0, len(whole) - 1))], saved)


def assert_detected(file: Path, whole: bytes, damaged: bytes, folder: Path) -> None:
    try:
        file.write_bytes(damaged)
        with pytest.raises(AdapterError) as caught:
            verify(folder)
        assert file.name in str(caught.value) or "format" in str(caught.value)
        assert "\n" not in str(caught.value)
        if file.name in ("adapter_config.json", "adapter_model.safetensors", "ptuning.json"):
            with pytest.raises(AdapterError):
                load(folder)
    finally:
        file.write_bytes(whole)


def test_every_byte_of_the_record_is_sealed(saved: Path) -> None:
    """White space included: no two files mean the same record."""
    file = saved / "ptuning.json"
    whole = file.read_bytes()
    try:
        for damaged in (
            whole + b" ",
            b" " + whole,
            whole.replace(b"  ", b" \t", 1),
            whole.replace(b"\n", b"\r\n"),
        ):
            file.write_bytes(damaged)
            with pytest.raises(
                AdapterError, match=r"ptuning.json in .* was altered or cut short: its sha256"
            ):
                load(saved)
    finally:
        file.write_bytes(whole)


def test_an_edited_model_card_does_no_harm(tmp_path: Path) -> None:
    folder = save(an_adapter(), tmp_path / "adapter")
    with (folder / "README.md").open("a") as card:
        card.write("\nTrained on our own tickets.\n")
    load(folder)
    with pytest.raises(AdapterError, match=r"README.md in .* was altered"):
        verify(folder)


def test_a_record_of_another_hand(tmp_path: Path) -> None:
    """Digests that fit do not make a record trusted: names stay inside the folder."""
    folder = save(an_adapter(), tmp_path / "adapter")
    for listed, message in (
        ({"../secret": "1" * 64}, "outside the folder; do not trust"),
        ({}, "does not list"),
    ):
        reseal(folder, files=listed)
        with pytest.raises(AdapterError, match=message):
            verify(folder)


def reseal(folder: Path, **changes: Any) -> None:
    values = {**json.loads((folder / "ptuning.json").read_text()), **changes, "sha256_self": "0" * 64}
    blank = json.dumps(values)
    digest = hashlib.sha256(blank.encode()).hexdigest()
    (folder / "ptuning.json").write_text(blank.replace("0" * 64, digest))


# --------------------------------------------------------------------------------------- messages


def put(name: str, text: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_text(text)

    return prepare


def newer(folder: Path) -> None:
    save(an_adapter(), folder)
    reseal(folder, format_version=2)


def without_weights(folder: Path) -> None:
    save(an_adapter(), folder)
    (folder / "adapter_model.safetensors").unlink()


def of_another_task(folder: Path) -> None:
    save(an_adapter(), folder)
    reseal(folder, task={"problem_type": "ranking", "colour": 1})


EXPECTED = "a folder with adapter_config.json, adapter_model.safetensors and ptuning.json, as ptuning"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, f"no adapter at .*adapter: there is no such folder, expected {EXPECTED}"),
        (lambda folder: folder.touch(), f"no adapter at .*: it is a file, expected {EXPECTED}"),
        (lambda folder: folder.mkdir(), f"no adapter at .*: it has no ptuning.json, expected {EXPECTED}"),
        (put("adapter_config.json", "[1]"), "it has no ptuning.json"),
        (
            put("adapter_config.json", '{"peft_type": "LORA"}'),
            r"is a PEFT adapter of type 'LORA', expected one of P_TUNING, PROMPT_TUNING, PREFIX_TUNING",
        ),
        (
            put("ptuning.json", "{"),
            r"ptuning.json in .* was altered or cut short: it is not valid JSON .*; copy or download",
        ),
        (put("ptuning.json", "[]"), "ptuning.json: got a JSON list, expected a JSON object"),
        (put("ptuning.json", "{}"), "ptuning.json has no valid format_version"),
        (
            newer,
            "has format 2, and this version of ptuning reads formats up to 1; update it with: pip",
        ),
        (without_weights, "has no adapter_model.safetensors, which ptuning.json lists; copy or download"),
        (
            of_another_task,
            r"ptuning.json in .* is not what ptuning writes, .*: task.problem_type: got 'ranking', expected",
        ),
    ],
)
def test_what_is_no_adapter(prepare: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    prepare(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=message) as caught:
        load(tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(an_adapter(), tmp_path / "adapter")

    def refuse(path: Path, most: int | None = None) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("ptuning.adapters.folder.read_regular", refuse)
    with pytest.raises(
        AdapterError, match=r"ptuning.json cannot be read: Permission denied; check it and its permissions"
    ):
        load(folder)


def test_a_save_that_was_cut_off_between_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(an_adapter(), tmp_path / "adapter")
    aside = folder.rename(tmp_path / ".adapter.old-0123abcd")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refused)
        with pytest.raises(
            AdapterError, match=r"left the previous one at .*\.adapter\.old-0123abcd: rename it back"
        ):
            load(folder)
    assert same(load(folder), an_adapter())
    assert not aside.exists()
    folder.rename(aside)
    (aside / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(AdapterError, match="rename it back"):
        load(folder)
    assert aside.exists()


def refused(*_: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_is_adapter(tmp_path: Path) -> None:
    assert is_adapter(save(an_adapter(), tmp_path / "adapter"))
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------- destination


def test_an_adapter_is_replaced(tmp_path: Path) -> None:
    save(an_adapter(), tmp_path / "adapter", extra_files=resume)
    other = an_adapter({"depth": "deep"})
    assert same(load(save(other, tmp_path / "adapter")), other)
    assert sorted(os.listdir(tmp_path / "adapter")) == OWN
    assert os.listdir(tmp_path) == ["adapter"]


def test_an_empty_folder_and_a_link_are_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert save(an_adapter(), tmp_path / "link") == tmp_path / "empty"
    assert (tmp_path / "link").is_symlink()
    assert is_adapter(tmp_path / "link")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            put("thesis.tex", "x"),
            "is not empty and is not an adapter of ptuning; choose another folder, or empty it",
        ),
        (put("ptuning.json", "{}"), r"is not an adapter of ptuning \(.* has no valid format_version"),
        (put("ptuning.json", '{"format_version": 2}'), r"\(.* has format 2, .* pip install --upgrade"),
        (put("adapter_config.json", '{"peft_type": "LORA"}'), "is not an adapter of ptuning"),
        (lambda folder: (folder / "kept").mkdir(parents=True), "is not empty"),
        (lambda folder: folder.write_text("x"), "got the file .*, expected a folder"),
        (
            lambda folder: (save(an_adapter(), folder) / "notes.txt").write_text("x"),
            "contains notes.txt, which is not part of the adapter there and would be lost; move it elsewhere",
        ),
        (
            lambda folder: (save(an_adapter(), folder) / "README.md").write_text("# Mine"),
            "README.md in .* was edited by hand and would be lost; move it elsewhere",
        ),
    ],
)
def test_nothing_of_the_users_is_deleted(
    prepare: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    prepare(tmp_path / "adapter")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(AdapterError, match=message):
        check_destination(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=message):
        save(an_adapter(), tmp_path / "adapter")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("where", [".", "..", "link"])
def test_the_folder_that_one_stands_in_is_not_replaced(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "adapter" / "inside"
    inside.mkdir(parents=True)
    (inside / "link").symlink_to(inside)
    monkeypatch.chdir(inside)
    with pytest.raises(AdapterError, match="which is the working directory or a parent of it"):
        save(an_adapter(), where)
    assert os.listdir() == ["link"]
    assert is_adapter(save(an_adapter(), "below"))


def test_an_adapter_that_is_replaced_meanwhile_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between one of its files and the next, which is what happens to the checkpoint of a run under way."""
    first, second = an_adapter(), an_adapter({"depth": "deep"})
    path = save(first, tmp_path / "adapter")
    read = folder.read_file

    def slow(file: Path, most: int | None = None) -> bytes:
        data = read(file, most)
        monkeypatch.setattr(folder, "read_file", read)
        save(second, path)
        return data

    monkeypatch.setattr(folder, "read_file", slow)
    assert same(load(path), second)
    assert folder.read_file is read


def test_leftovers_of_a_crash_are_ignored(tmp_path: Path) -> None:
    for name in (".adapter.tmp-0123abcd", ".adapter.old-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ptuning.json").write_text("half")
    load(save(an_adapter(), tmp_path / "adapter"))


def test_a_failed_save_leaves_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every file, not only at the first: the disk fills up sooner or later."""
    old, new = an_adapter(), an_adapter({"placement": "front"})
    folder = save(old, tmp_path / "adapter")
    real = os.fsync
    for step in range(1, 20):
        count = 0

        def fill_up(handle: int, step: int = step) -> None:
            nonlocal count
            count += 1
            if count == step:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", fill_up)
        try:
            save(new, folder)
        except OutputError:
            assert same(load(folder), old)
            assert os.listdir(tmp_path) == ["adapter"]
        else:
            break
    assert step > 8
    assert same(load(folder), new)
    verify(folder)
