"""``ptuning cache``: what is kept, and emptying it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptuning.cache import Cache
from ptuning.cli import main
from ptuning.cli.cache import amount


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PTUNING_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def fill() -> None:
    for number, size in enumerate((1000, 2072)):
        with Cache("tokens", 10_000).adding(f"{number:064x}", size) as part:
            assert part is not None
            part.write_bytes(b"x" * size)
    with Cache("stems", 10_000).adding("f" * 64, 5) as part:
        assert part is not None
        part.write_bytes(b"y" * 5)


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert main(["cache", *argv]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return [" ".join(line.split()) for line in found.out.splitlines()]


def test_an_empty_cache(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = ["tokens 0 entries 0 B", "stems 0 entries 0 B"]
    assert said(capsys) == [f"0 B in {home}", *expected]
    assert said(capsys, "--clear") == [f"freed 0 B in {home}", *expected]
    assert not home.exists()  # looking makes nothing


def test_what_is_kept_is_shown_and_deleted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill()
    expected = ["tokens 2 entries 3.0 KiB", "stems 1 entry 5 B"]
    assert said(capsys) == [f"3.0 KiB in {home}", *expected]
    assert said(capsys) == [f"3.0 KiB in {home}", *expected]  # showing deletes nothing
    assert said(capsys, "--clear") == [f"freed 3.0 KiB in {home}", *expected]
    assert said(capsys)[0] == f"0 B in {home}"
    assert [file for file in home.rglob("*") if file.is_file()] == []


def test_off_is_said(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fill()
    monkeypatch.setenv("PTUNING_CACHE", "off")
    for argv in ([], ["--clear"]):
        assert said(capsys, *argv)[0].startswith("the cache is off: PTUNING_CACHE is off")
    monkeypatch.setenv("PTUNING_CACHE", str(home))
    assert said(capsys)[0] == f"3.0 KiB in {home}"


def test_a_wrong_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--claer"]) == 2
    assert "did you mean --clear?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (3 * 1024**2 // 2, "1.5 MiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_amounts(size: int, text: str) -> None:
    assert amount(size) == text


def test_a_folder_whose_name_no_text_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PTUNING_CACHE", f"{tmp_path}/a\udcff\x1b[31m")
    assert said(capsys)[0] == rf"0 B in {tmp_path}/a\udcff\x1b[31m"
