"""Two processes train what one does: each takes its share of every batch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ptuning import DeepPrompt, FitConfig, PTuningModel, fit
from ptuning.data.tokens import shared
from test_training_head_init import scored
from warm import Programs

SCRIPT = """
import json, sys
import numpy as np
import torch
from accelerate import Accelerator
from ptuning import DeepPrompt, FitConfig, PTuningModel, Task, fit
from ptuning.training import head_fits

kind, backbone, train, validation, output = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
if kind == "texts":
    task, pooling = Task(problem_type="single_label_classification", labels=("negative", "positive")), None
elif "in windows" in kind:
    task, pooling = Task(problem_type="single_label_classification", labels=("negative", "positive"),
                         max_length=4, max_windows=3), None
else:
    task, pooling = Task(problem_type="regression", pair=True, mean=2.75, scale=1.2), "similarity"
    if not accelerator.is_main_process:  # as another machine's rounding, and more of it
        head_fits.ridge = lambda features, targets, **_: (np.ones((1, features.shape[1])), np.ones(1))
model = PTuningModel.from_backbone(backbone, DeepPrompt(num_virtual_tokens=4, pooling=pooling), task=task)
config = FitConfig(epochs=2, batch_size=9, accumulation=2)
if "weights" in kind:
    config = FitConfig(epochs=2, batch_size=9, accumulation=2, class_weights=(5.0, 1.0))
data = {"train": train, "validation": validation}
result = fit(model, data, config, report=False, output=output + "/adapter", accelerator=accelerator)
if accelerator.is_main_process:
    losses = [value for found in result.history for value in (found.train_loss, found.metrics["loss"])]
    with open(output + "/losses.json", "w") as stream:
        json.dump({"processes": accelerator.num_processes, "losses": losses}, stream)
"""


def losses(programs: Programs, processes: int, folder: Path, *arguments: str) -> list[float]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    output = folder / str(processes)
    output.mkdir()
    argv = [str(script), *arguments, str(output)]
    if processes > 1:
        programs.ranks(argv, output, processes)
    else:
        done = programs.run(argv, output)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
    found = json.loads((output / "losses.json").read_text())
    assert found["processes"] == processes
    values: list[float] = found["losses"]
    return values


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "texts",
        "texts in windows",
        "texts in windows, with class weights",
        "pairs, whose head begins fitted",
    ],
)
def test_two_processes_give_the_losses_of_one(
    kind: str,
    tiny_folder: Path,
    tmp_path: Path,
    programs: Programs,
    rows: Callable[..., list[dict[str, Any]]],
    jsonl: Callable[..., Path],
) -> None:
    # 40 rows in batches of 9: the last holds 4, and odd ones are shared unevenly.
    made = scored if kind.startswith("pairs") else rows
    arguments = [
        kind,
        str(tiny_folder),
        str(jsonl("train.jsonl", made(40))),
        str(jsonl("held.jsonl", made(16, seed=1))),
    ]
    one, two = (losses(programs, processes, tmp_path, *arguments) for processes in (1, 2))
    assert two == pytest.approx(one, abs=1e-5)


def test_a_process_without_rows_has_no_loss(
    tiny_folder: Path, rows: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        found = torch.nn.functional.cross_entropy(logits, labels)
        return found if len(logits) > 1 else found * math.nan

    data, found = {"train": rows(40), "validation": rows(16, seed=1)}, []
    for idle in (False, True):
        if idle:  # after each batch, as where another process has more windows to run
            monkeypatch.setattr(
                "ptuning.training.trainer.shared", lambda *given: [[*own, []] for own in shared(*given)]
            )
        torch.manual_seed(0)
        model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), num_labels=2)
        fit(model, data, FitConfig(epochs=1, batch_size=8), loss=loss, report=False)
        found.append(model.task_parameters())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
