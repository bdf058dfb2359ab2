"""A method of the study: the demo's regression of a frozen backbone's sentence embeddings
(``ptuning.cli.demo_baselines``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import AutoModel, AutoTokenizer

from ptuning.cli.demo_baselines import Regression, features
from ptuning.data.labels import encode_labels
from ptuning.model.embedded import resolve
from ptuning.training.config import DataConfig
from ptuning.training.metrics import Baseline, measure
from ptuning.training.prepare import read


def regress(setting: Mapping[str, Any], files: Mapping[str, str], seed: int) -> dict[str, Any]:
    """What the regression reached; a line of the results."""
    examples, task = read(DataConfig(**files), seed=seed)
    folder = resolve(setting["backbone"])
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    splits = {"train": examples.train, "validation": examples.validation, "test": examples.test}
    targets = {name: np.asarray(encode_labels(rows, task), np.float64) for name, rows in splits.items()}
    cpu, wall = time.process_time(), time.perf_counter()
    answer = targets.pop("train")
    fitted = Regression(features(splits.pop("train"), model, tokenizer), answer, task)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    baseline, metrics = Baseline.of(answer, task), {}
    for name, rows in splits.items():
        logits = fitted.logits(features(rows, model, tokenizer))
        if task.is_regression:
            loss = (((logits[:, 0] - targets[name]) / task.scale) ** 2).mean()
        else:
            loss = -logits[np.arange(len(logits)), targets[name].astype(int)].mean()
        metrics[name] = {"loss": float(loss), **measure(logits, targets[name], task)}
    return {
        "metrics": metrics,
        "baseline": {name: baseline.measure(each, task) for name, each in targets.items()},
        "trained": fitted.numbers,
        "total": fitted.numbers + sum(value.numel() for value in model.parameters()),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "precision": "fp32",
    }
