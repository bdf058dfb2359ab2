"""Small tasks to serve: one tiny backbone, adapters of it in folders, a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ptuning import DeepPrompt, Predictor, PTuningModel, Task, TaskTable
from ptuning.model import Backbone
from ptuning.model.loading import load_backbone
from ptuning.serving.tasks import TaskRegistry

LABELS = Task(problem_type="single_label_classification", labels=("x", "y", "z"))
PAIRS = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
NUMBERS = Task(problem_type="regression", mean=2.0, scale=3.0)


def opened(folder: Path) -> tuple[Backbone, PreTrainedTokenizerBase]:
    """The backbone in a folder, and its tokenizer."""
    backbone, tokenizer = load_backbone(str(folder), None, None, None, None, None)
    assert tokenizer is not None
    return backbone, tokenizer


def registry(folder: Path, **options: Any) -> TaskRegistry:
    """No tasks, on the backbone in a folder."""
    backbone, tokenizer = opened(folder)
    return TaskRegistry(TaskTable(backbone), tokenizer, **options)


def adapter(backbone: Path, folder: Path, seed: int = 0, task: Task = LABELS, **prompt: Any) -> Path:
    """Write an adapter of random values; each seed answers differently."""
    torch.manual_seed(seed)
    config = DeepPrompt(**{"num_virtual_tokens": 2, **prompt})
    model = PTuningModel.from_backbone(str(backbone), config, task=task)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    return folder


def offline(folder: Path, texts: list[Any]) -> list[Any]:
    """What the adapter in a folder predicts, without the server."""
    return Predictor(PTuningModel.from_pretrained(folder))(texts)


def logits_of(folder: Path, text: str) -> list[float]:
    """The logits of one text, from the adapter in a folder alone."""
    model = PTuningModel.from_pretrained(folder)
    assert model.tokenizer is not None
    with torch.inference_mode():
        found = model(**model.tokenizer(text, return_tensors="pt")).logits
    return [float(value) for value in found[0]]
