"""The baselines of ``ptuning demo``: a regression of frozen embeddings, the head alone, full fine-tuning.

All three take the data, backbone and seed of the demo's configuration and are evaluated on the same rows. The
last two are trained in plain PyTorch with its batch size; the best epoch is selected on the same validation
rows by the same metric. Nothing is saved.

A text's embedding is the mean of its tokens, scaled to length 1, as in sentence-transformers. For a pair u, v
the regression reads u, v, |u − v| and u · v, like Sentence-BERT's classifier (arXiv:1908.10084).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from ptuning.data.examples import Example
from ptuning.data.labels import encode_labels
from ptuning.data.tokens import collate, shuffled_batches
from ptuning.inference.evaluate import pad_id
from ptuning.model.config import DeepPrompt
from ptuning.model.loading import load_backbone
from ptuning.model.ptuning import PTuningModel
from ptuning.task import Task
from ptuning.training.config import TrainConfig
from ptuning.training.evaluation import evaluate
from ptuning.training.metrics import Metrics, Selection, measure
from ptuning.training.prepare import Split, read, tokenised

BATCH, MOST_TOKENS, FOLDS = 64, 256, 4
STRENGTHS = np.logspace(-4, 2, 13)
"""Of the ridge."""
LOOSENESS = np.logspace(-2, 4, 13)
"""scikit-learn's C."""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What a method reached on the test rows, or on the validation rows where there are none."""

    name: str
    trained: int
    metrics: Metrics
    seconds: float


def frozen_embeddings(config: TrainConfig) -> Peer:
    """A regression of the frozen backbone's sentence embeddings, for classes or a score."""
    began = time.perf_counter()
    examples, task = read(config.data, seed=config.fit.seed)
    backbone, tokenizer = load_backbone(
        config.backbone, task.num_labels, task.problem_type, None, config.revision, None
    )
    assert tokenizer is not None
    body = backbone.model.base_model.eval()
    body.to(Accelerator(cpu=config.device == "cpu").device)
    judged = examples.test or examples.validation
    answers, targets = (np.asarray(encode_labels(rows, task), float) for rows in (examples.train, judged))
    fitted = Regression(features(examples.train, body, tokenizer), answers, task)
    metrics = measure(fitted.logits(features(judged, body, tokenizer)), targets, task)
    seconds = time.perf_counter() - began
    return Peer(name="regression of embeddings", trained=fitted.numbers, metrics=metrics, seconds=seconds)


def head_only(config: TrainConfig, *, rate: float = 5e-2, epochs: int = 5) -> Peer:
    """The backbone frozen, its head trained."""
    return _train("head only", config, rate, epochs, whole=False)


def fine_tune(config: TrainConfig, *, rate: float = 1e-4, epochs: int = 5) -> Peer:
    """Every weight trained, the backbone's own dropout on, as the notebook style does."""
    return _train("full fine-tuning", config, rate, epochs, whole=True)


def _train(name: str, config: TrainConfig, rate: float, epochs: int, *, whole: bool) -> Peer:
    began = time.perf_counter()
    examples, task = read(config.data, seed=config.fit.seed)
    set_seed(config.fit.seed)
    # A prompt of one token that is never used: with it off, the model is its plain backbone.
    model = PTuningModel.from_backbone(config.backbone, DeepPrompt(num_virtual_tokens=1), task=task)
    model.to(Accelerator(cpu=config.device == "cpu").device)
    model.prompt_encoder.requires_grad_(False)
    model.head.requires_grad_(False)
    model.backbone.model.requires_grad_(whole)
    for parameter in model.backbone.head_parameters().values():
        parameter.requires_grad_(True)
    model.backbone.dropout = whole
    train, held = tokenised(model, examples.train), tokenised(model, examples.validation)
    with model.disabled():
        _loop(model, train, held, config, rate, epochs)
        metrics = evaluate(model, tokenised(model, examples.test) if examples.test else held)
    trained = sum(value.numel() for value in _trained(model))
    return Peer(name=name, trained=trained, metrics=metrics, seconds=time.perf_counter() - began)


def _trained(model: PTuningModel) -> list[nn.Parameter]:
    """What is trained: here it is the backbone's, and not the task's."""
    return [value for value in model.backbone.parameters() if value.requires_grad]


def _loop(
    model: PTuningModel, train: Split, held: Split, config: TrainConfig, rate: float, epochs: int
) -> None:
    """AdamW, 6 % warm-up, linear decay; ends with the best epoch's weights."""
    parameters = _trained(model)
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    size, pad = config.fit.batch_size, pad_id(model)
    steps = epochs * -(-len(train.rows) // size)
    schedule = get_scheduler(
        "linear", optimizer, num_warmup_steps=int(0.06 * steps), num_training_steps=steps
    )
    select = Selection.for_task(config.fit.select_by, model.task)
    best: tuple[tuple[float, float], list[torch.Tensor]] | None = None
    for epoch in range(epochs):
        model.train()
        for batch in shuffled_batches(train.lengths, size, seed=config.fit.seed, epoch=epoch):
            inputs = collate([train.rows[i] for i in batch], pad)
            model(**{name: value.to(model.device) for name, value in inputs.items()}).loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        key = select.key(evaluate(model, held))
        if best is None or key > best[0]:
            best = (key, [value.detach().clone() for value in parameters])
    assert best is not None
    with torch.no_grad():
        for value, kept in zip(parameters, best[1], strict=True):
            value.copy_(kept)


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
