"""What a regression makes of a frozen backbone's sentence embeddings, in seconds: the least that a prompt has
to be better than.

A text's embedding is the mean of its tokens, of length 1, as sentence-transformers has it. Of a pair u, v the
regression reads u, v, |u − v| and u · v, as Sentence-BERT's classifier does (arXiv:1908.10084).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptuning.data.examples import Example
from ptuning.task import Task

BATCH, MOST_TOKENS, FOLDS = 64, 256, 4
STRENGTHS = np.logspace(-4, 2, 13)
"""Of the ridge."""
LOOSENESS = np.logspace(-2, 4, 13)
"""scikit-learn's C."""

Array = NDArray[np.float64]


class Regression:
    """A ridge regression of scores, or a logistic one of classes; its strength is chosen by cross-validation.

    Args:
        features: ``[N, F]`` of the training rows.
        targets: ``[N]``, scores or classes.
    """

    def __init__(self, features: Array, targets: Array, task: Task) -> None:
        self._task = task
        self._fitted: Any
        if task.is_regression:
            self._fitted = RidgeCV(alphas=STRENGTHS).fit(features, targets)
            return
        classes = targets.astype(int)
        folds = max(2, min(FOLDS, int(np.bincount(classes).min())))
        self._fitted = LogisticRegressionCV(
            Cs=LOOSENESS, cv=folds, scoring="neg_log_loss", l1_ratios=(0,), use_legacy_attributes=False,
            max_iter=3000,
        ).fit(features, classes)  # fmt: skip

    @property
    def numbers(self) -> int:
        """How many were fitted."""
        return int(self._fitted.coef_.size + np.size(self._fitted.intercept_))

    def logits(self, features: Array) -> Array:
        """``[N, C]``: a score, or the logarithm of each class's probability."""
        if self._task.is_regression:
            return np.asarray(self._fitted.predict(features))[:, None]
        return np.asarray(self._fitted.predict_log_proba(features))


def features(rows: Sequence[Example], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Array:
    """``[N, H]``, of pairs ``[N, 4·H]``."""
    first = embeddings([row.text for row in rows], model, tokenizer)
    second = [row.text_b for row in rows if row.text_b is not None]
    if not second:
        return first
    other = embeddings(second, model, tokenizer)
    return np.concatenate((first, other, np.abs(first - other), first * other), axis=1)


@torch.inference_mode()
def embeddings(texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Array:
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
        ).to(model.device)
        real = given["attention_mask"][..., None]
        states = model(**given).last_hidden_state.float()
        found[places] = F.normalize((states * real).sum(1) / real.sum(1), dim=-1).cpu().numpy()
    return found
