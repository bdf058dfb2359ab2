"""Progress bars: on a terminal, and nothing elsewhere; tests/test_notebooks.py has those of a notebook."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ptuning import DeepPrompt, Predictor, PTuningModel, progress


@pytest.fixture
def model(tiny_folder: Path) -> PTuningModel:
    return PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), num_labels=2).eval()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_predictor_counts_rows_on_a_terminal(
    model: PTuningModel,
    rows: Callable[..., list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
) -> None:
    written = io.StringIO()
    if terminal:
        console = Console(file=written, force_terminal=True, width=100)
        monkeypatch.setattr(progress, "new_console", lambda: console)
    texts = [row["text"] for row in rows(12)]
    assert Predictor(model, progress=True)(texts) == Predictor(model)(texts)
    assert ("predicting" in written.getvalue() and "12/12" in written.getvalue()) == terminal
    assert capsys.readouterr().out == ""


def test_a_stream_of_unknown_length_is_counted_too(model: PTuningModel) -> None:
    assert [*progress.counted(iter("abc"), "letters")] == ["a", "b", "c"]
    found = Predictor(model, progress=True).stream(iter(()))
    assert [*found] == []


class Shown:
    """What IPython's ``display`` returns."""

    def __init__(self) -> None:
        self.updates: list[Any] = []

    def update(self, what: Any, **options: Any) -> None:
        self.updates.append(what)


def test_a_bar_in_a_notebook_is_replaced_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    shown: list[Shown] = []

    def fake(what: Any, display_id: bool) -> Shown:
        assert display_id
        shown.append(Shown())
        return shown[-1]

    monkeypatch.setattr(display, "display", fake)
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "SECONDS", 1000.0)
    assert len([*progress.counted(range(5000), "rows")]) == 5000
    (bar,) = shown
    assert len(bar.updates) <= 3  # not one per row
    assert bar.updates[-1] == {"text/plain": "", "text/html": ""}
