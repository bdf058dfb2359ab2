"""Bulk scoring keeps few of oneDNN's kernels: with those of all shapes a worker's memory grows for hours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from conftest import WORDS
from ptuning import DeepPrompt, PTuningModel, Task
from ptuning.inference.kernel_caches import CACHES, CAPACITY, bound_kernel_caches
from ptuning.model.loading import load_backbone
from warm import Programs

SHAPES = 2 * CAPACITY
WORKER = """
import sys
import pyarrow as pa
from ptuning.ray.scorer import Scorer
from ptuning.ray.scoring import planned
actor = Scorer(planned(sys.argv[1], ["text"], device="cpu", precision="fp32"))
for text in open(sys.argv[2]).read().splitlines():
    assert actor(pa.table({"text": [text]}))["error"].null_count
"""


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone, tokenizer = load_backbone(str(tiny_folder), 2, None, None, None, None)
    task = Task(problem_type="single_label_classification", labels=("good", "bad"))
    model = PTuningModel.from_backbone(backbone, DeepPrompt(num_virtual_tokens=3), task=task)
    model.tokenizer = tokenizer
    folder = tmp_path_factory.mktemp("kernels") / "adapter"
    model.save_pretrained(folder)
    return folder


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = CACHES
    monkeypatch.setenv(first, "512")
    monkeypatch.setenv(second, "0")
    monkeypatch.delenv(second)
    bound_kernel_caches()
    assert (os.environ[first], os.environ[second]) == ("512", str(CAPACITY))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("by", ["worker", "command"])
def test_kernels_of_past_shapes_are_dropped(
    by: str, adapter: Path, tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of many lengths, twice: each length's kernels are made twice, and once if all are kept."""
    if by == "worker":
        pytest.importorskip("ray")
    lengths = [*range(1, SHAPES + 1)] * 2
    rows, script = tmp_path / "rows.txt", tmp_path / "worker.py"
    rows.write_text("".join(" ".join([WORDS[0]] * length) + "\n" for length in lengths), encoding="utf-8")
    script.write_text(WORKER, encoding="utf-8")
    made = []
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    for kept in ({}, dict.fromkeys(CACHES, "1024")):
        argv = (
            [str(script), str(adapter), str(rows)]
            if by == "worker"
            else [
                *("-m", "ptuning", "predict", str(adapter), str(rows), "--device", "cpu", "--window", "1"),
                *("--precision", "fp32", "--output", str(tmp_path / "out.jsonl")),
            ]
        )
        done = programs.run(argv, tmp_path, env={"ONEDNN_VERBOSE": "profile_create", **kept})
        assert done.returncode == 0, done.stderr.decode()
        made.append(done.stdout.count(b"create:cache_miss"))
    bounded, unbounded = made
    assert unbounded >= SHAPES
    assert bounded >= unbounded + SHAPES
