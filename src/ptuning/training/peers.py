"""What a prompt is compared with: a regression of frozen embeddings, the head alone, and full fine-tuning.

All take the configuration's data, backbone and seed; what is trained in plain PyTorch takes its batch size,
and is selected on the same validation rows by the same metric. They are peers for a table, not products:
nothing is saved.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from transformers import get_scheduler

from ptuning.data.labels import encode_labels
from ptuning.data.tokens import collate, shuffled_batches
from ptuning.inference.evaluate import pad_id
from ptuning.model.config import DeepPrompt
from ptuning.model.loading import hold
from ptuning.model.ptuning import PTuningModel
from ptuning.training.config import TrainConfig
from ptuning.training.evaluation import evaluate
from ptuning.training.frozen import Regression, features
from ptuning.training.metrics import Metrics, Selection, measure
from ptuning.training.prepare import Split, read, tokenised


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
    backbone, tokenizer = hold(
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
    return [value for value in model.parameters() if value.requires_grad]


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
