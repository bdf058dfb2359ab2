"""The example of Ray Train: what ``fit`` trains in one process, also after a worker was lost."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ptuning import Callback, DeepPrompt, FitConfig, PTuningModel, RunState, fit
from ray_cluster import ray_cluster  # noqa: F401

ray = pytest.importorskip("ray")
EXAMPLE = Path(__file__).parent.parent / "examples" / "ray_train.py"
FIT = {"num_train_epochs": 3, "batch_size": 9, "learning_rate": 0.05}


class KillOnce(Callback):
    """Ends a worker in the second epoch, the first time."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def on_step_end(self, state: RunState) -> None:
        if state.step == 7 and not state.is_main_process and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_train_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    ray.cloudpickle.register_pickle_by_value(module)  # the workers cannot import it
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_workers_train_what_one_process_does_although_one_is_lost(
    ray_cluster: Any,  # noqa: F811
    example: ModuleType,
    tiny_folder: Path,
    tmp_path: Path,
    rows: Callable[..., list[dict[str, Any]]],
    jsonl: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = {"train": str(jsonl("train.jsonl", rows(41))), "validation": str(jsonl("held.jsonl", rows(17, 1)))}
    mark = tmp_path / "killed"
    options = {
        **{"rows": data, "num_labels": 2, "backbone": str(tiny_folder)},
        **{"fit": FIT, "callbacks": [KillOnce(mark)]},
    }
    adapter = example.train(options, folder=str(tmp_path / "runs"))
    assert mark.exists()
    # A worker that is lost after the last report, and its successor.
    monkeypatch.setattr(
        ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(str(adapter))
    )
    example.work({})
    torch.manual_seed(0)
    alone = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=8), num_labels=2)
    fit(alone, data, FitConfig(**FIT), report=False)
    found = PTuningModel.from_pretrained(adapter, backbone=str(tiny_folder))
    torch.testing.assert_close(found.task_parameters(), alone.task_parameters(), rtol=0, atol=1e-4)
    assert found.task.labels == ("negative", "positive")
