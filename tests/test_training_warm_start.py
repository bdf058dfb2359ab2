"""Runs that start from a trained adapter: what they begin with, what they refuse, what they record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import sentiment
from ptuning import PTuningModel, TrainConfig, TrainResult, adapters, train
from ptuning.training.callbacks import Callback

Rows = list[dict[str, Any]]


class First(Callback):
    """Keeps the logits for some texts before the first step, and all messages."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.messages = texts, list[str]()
        self.logits: torch.Tensor | None = None

    def on_evaluate(self, state: Any) -> None:
        if state.step == 0:
            self.logits = logits_of(state.model, self.texts)

    def on_message(self, message: str) -> None:
        self.messages.append(message)


def logits_of(model: PTuningModel, texts: tuple[str, ...]) -> torch.Tensor:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = model.twin().eval()(**batch).logits
    return logits


Run = Callable[..., tuple[TrainResult, First, Path]]


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for two labels, trained for a few steps."""
    folder = tmp_path_factory.mktemp("base")
    file = folder / "first.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in sentiment(40)), encoding="utf-8")
    config = {
        "data": {"train": str(file)},
        "backbone": str(tiny_folder),
        "output": str(folder / "base"),
        "prompt": {"num_virtual_tokens": 3, "first_layer": 1, "pooling": "layers"},
        "fit": {"num_train_epochs": 2},
    }
    train(TrainConfig.checked(config))
    return folder / "base"


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Run:
    """Train on rows from :func:`base`, one epoch unless said otherwise."""

    def made(rows: Rows, texts: tuple[str, ...] = ("the good film", "a bad bill"), **options: Any) -> Any:
        file = tmp_path / "more.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        first = First(*texts)
        values = {
            "data": {"train": str(file), **options.pop("data", {})},
            "output": str(tmp_path / "next"),
            "init_from": str(base),
            "fit": {"num_train_epochs": 1},
            **options,
        }
        result = train(TrainConfig.checked(values), callbacks=[first])
        return result, first, tmp_path / "next"

    return made


def test_the_same_labels_start_as_the_adapter_on_its_backbone(run: Run, base: Path) -> None:
    result, first, folder = run(sentiment(24, seed=1))
    before = PTuningModel.from_pretrained(base)
    torch.testing.assert_close(first.logits, logits_of(before, first.texts), rtol=0, atol=1e-6)
    assert result.history[0].step == 0
    adapter = adapters.load(folder)
    assert adapter.prompt == adapters.load(base).prompt
    assert adapter.task.labels == ("negative", "positive")
    recorded = adapter.extra["init_from"]
    assert recorded["name"] == "base"
    assert recorded["sha256"] == adapters.details(base)["sha256_self"]
    assert recorded["head"] == "kept"
