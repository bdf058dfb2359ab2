"""Tiny random adapters of every kind of task, and what they answer offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ptuning import DeepPrompt, Predictor, PTuningModel, Task

KINDS: Mapping[str, Task] = {
    "sentiment": Task(problem_type="single_label_classification", labels=("negative", "positive")),
    "topics": Task(problem_type="multi_label_classification", labels=("sport", "war", "art")),
    "similar": Task(problem_type="regression", pair=True, mean=2.0, scale=1.5),
    "same": Task(problem_type="single_label_classification", labels=(0, 1), pair=True),
}
TEXTS = ("a good film", "the parcel was late", "very bad food", "one two three")


def adapter(backbone: Path, folder: Path, task: Task, *, seed: int = 0, tokens: int = 4) -> Path:
    """Write a random adapter."""
    torch.manual_seed(seed)
    prompt = DeepPrompt(num_virtual_tokens=tokens)
    model = PTuningModel.from_backbone(str(backbone), prompt, task=task, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    model.save_pretrained(folder)
    return folder


def adapters(backbone: Path, folder: Path) -> Path:
    """A folder with one adapter of each kind."""
    for seed, (name, task) in enumerate(KINDS.items()):
        adapter(backbone, folder / name, task, seed=seed, tokens=3 + seed)
    return folder


def offline(folder: Path, texts: Any) -> list[dict[str, Any]]:
    """What ``Predictor`` says: labels, and probabilities that are not rounded."""
    model = PTuningModel.from_pretrained(str(folder), dtype=torch.float32)
    return [
        {"label": each.label, "probabilities": {str(name): value for name, value in each.probabilities}}
        for each in Predictor(model)(texts)
    ]
