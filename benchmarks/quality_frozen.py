"""What a regression makes of the frozen backbone's sentence embeddings, in seconds: the least that a prompt
has to be better than.

A text's embedding is the mean of its tokens, of length 1, as sentence-transformers has it. Of a pair u, v the
regression reads u, v, |u − v| and u · v, as Sentence-BERT's classifier does (arXiv:1908.10084). Its strength
is chosen by cross-validation on the training rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from ptuning.data.examples import Example
from ptuning.data.labels import encode_labels
from ptuning.model.embedded import resolve
from ptuning.training.config import DataConfig
from ptuning.training.metrics import Baseline, measure
from ptuning.training.prepare import read

BATCH, MOST_TOKENS, FOLDS = 64, 256, 4
STRENGTHS = np.logspace(-4, 2, 13)
"""Of the ridge."""
LOOSENESS = np.logspace(-2, 4, 13)
"""scikit-learn's C."""

Array = NDArray[np.float64]


def regress(setting: Mapping[str, Any], files: Mapping[str, str], seed: int) -> dict[str, Any]:
    """What the regression reached; a line of the results."""
    examples, task = read(DataConfig(**files), seed=seed)
    folder = resolve(setting["backbone"])
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    splits = {"train": examples.train, "validation": examples.validation, "test": examples.test}
    targets = {name: np.asarray(encode_labels(rows, task), np.float64) for name, rows in splits.items()}
    cpu, wall = time.process_time(), time.perf_counter()
    train = features(splits.pop("train"), model, tokenizer)
    answer = targets.pop("train")
    fitted: Any
    if task.is_regression:
        fitted = RidgeCV(alphas=STRENGTHS).fit(train, answer)
    else:
        fewest = int(np.bincount(answer.astype(int)).min())
        folds = max(2, min(FOLDS, fewest))
        fitted = LogisticRegressionCV(
            Cs=LOOSENESS, cv=folds, scoring="neg_log_loss", l1_ratios=(0,), use_legacy_attributes=False,
            max_iter=3000,
        ).fit(train, answer.astype(int))  # fmt: skip
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    baseline, metrics = Baseline.of(answer, task), {}
    for name, rows in splits.items():
        read_ = features(rows, model, tokenizer)
        if task.is_regression:
            logits = fitted.predict(read_)[:, None]
            loss = (((logits[:, 0] - targets[name]) / task.scale) ** 2).mean()
        else:
            logits = fitted.predict_log_proba(read_)
            loss = -logits[np.arange(len(logits)), targets[name].astype(int)].mean()
        metrics[name] = {"loss": float(loss), **measure(logits, targets[name], task)}
    numbers = fitted.coef_.size + np.size(fitted.intercept_)
    return {
        "metrics": metrics,
        "baseline": {name: baseline.measure(each, task) for name, each in targets.items()},
        "trained": numbers,
        "total": numbers + sum(value.numel() for value in model.parameters()),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "precision": "fp32",
    }


def features(rows: Sequence[Example], model: Any, tokenizer: Any) -> Array:
    """``[N, H]``, of pairs ``[N, 4·H]``."""
    first = embeddings([row.text for row in rows], model, tokenizer)
    second = [row.text_b for row in rows if row.text_b is not None]
    if not second:
        return first
    other = embeddings(second, model, tokenizer)
    return np.concatenate((first, other, np.abs(first - other), first * other), axis=1)


@torch.inference_mode()
def embeddings(texts: Sequence[str], model: Any, tokenizer: Any) -> Array:
    """``[N, H]``, each of length 1."""
    order = np.argsort([len(text) for text in texts])
    found = np.empty((len(texts), model.config.hidden_size))
    for begin in range(0, len(texts), BATCH):
        places = order[begin : begin + BATCH]
        given = tokenizer(
            [texts[i] for i in places],
            padding=True,
            truncation=True,
            max_length=min(MOST_TOKENS, model.config.max_position_embeddings),
            return_tensors="pt",
        )
        real = given["attention_mask"][..., None]
        states = model(**given).last_hidden_state.float()
        found[places] = F.normalize((states * real).sum(1) / real.sum(1), dim=-1).numpy()
    return found
