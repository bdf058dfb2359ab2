"""Searches and sets of runs on a Ray cluster: the same trials, results and files as on one machine."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ptuning
from ptuning import SearchResult, SeveralResult, TrainConfig, adapters
from ptuning.errors import BackboneNotFound, ConfigError, OutputError, TrainingDiverged
from ptuning.training import trials
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.console import ConsoleCallback
from ptuning.training.interrupt import Interrupted
from ptuning.training.trials import Space
from ray_cluster import ray_cluster  # noqa: F401

ray = pytest.importorskip("ray")
tuning = pytest.importorskip("ptuning.ray.tuning")

Rows = Callable[..., list[dict[str, Any]]]
Made = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptuning.training.search.plot", lambda *args: b"")


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path, rows: Rows, jsonl: Callable[..., Path]) -> Made:
    """A configuration of a small search or run; dotted options change it."""
    data = {"train": str(jsonl("train.jsonl", rows(64))), "test": str(jsonl("test.jsonl", rows(24, seed=1)))}

    def make(output: str = "out", **options: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "data": {**data, "validation_fraction": 0.375},
            "backbone": str(tiny_folder),
            "output": str(tmp_path / output),
            "report": False,
            "precision": "fp32",
            "device": "cpu",
            "prompt": {"num_virtual_tokens": 4},
            "fit": {"epochs": 2, "batch_size": 8},
        }
        for key, value in options.items():
            section, _, name = key.partition("__")
            values[section] = {**values.get(section, {}), name: value} if name else value
        return TrainConfig.checked(values)

    return make


def tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    adapter = adapters.load(folder)
    return {"prompt": adapter.prompt_tensor, **adapter.head}


def same(one: str | Path, other: str | Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def told(found: SearchResult) -> list[tuple[Any, ...]]:
    """Everything of the trials but the time."""
    return [(each.number, each.values, each.state, each.history) for each in found.trials]


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


SEARCH: dict[str, Any] = {"recipe": "search", "search": {"trials": 5, "epochs": 2}, "fit__select_by": "loss"}


@pytest.mark.usefixtures("ray_cluster")
def test_one_trial_at_a_time_is_the_search_of_one_machine(config: Made) -> None:
    local = ptuning.train_search(config("local", **SEARCH))
    found = tuning.train_search(config("ray", **SEARCH))
    assert told(found) == told(local)
    assert found.winner == local.winner
    assert found.result.history == local.result.history
    assert found.result.metrics == local.result.metrics
    assert same(config("ray").output, config("local").output)
    assert files(config("ray").run_folder) == files(config("local").run_folder)
