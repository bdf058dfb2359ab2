"""What ptuning is compared with, on plain transformers and PEFT, through one loop.

The loop is what ptuning's own does where it matters: AdamW, the same batches of rows of similar length, the
same warm-up, decay and clipping, regression on standardised targets, the best evaluation kept. A peer's
weights are fp32 and its products bf16, by autocast, where the machine computes that fast. It is on the GPU
where there is one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    get_scheduler,
    set_seed,
)

from ptuning.data.labels import encode_labels
from ptuning.data.tokens import Tokenise, collate, shuffled_batches, sorted_batches
from ptuning.errors import TrainingDiverged
from ptuning.inference.evaluate import BATCH_TOKENS
from ptuning.model.architectures import ARCHITECTURES
from ptuning.task import Task
from ptuning.training.config import DataConfig
from ptuning.training.job import precision
from ptuning.training.metrics import Baseline, Metrics, Selection, measure
from ptuning.training.prepare import Split, read
from quality.data import loadable
from quality.plan import schedule

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

ATTENTION = "sdpa" if DEVICE.type == "cuda" else "eager"
"""The faster one: in bf16 on CPUs, torch's kernel is slow."""


def train_peer(setting: Mapping[str, Any], files: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Train the peer that ``setting`` describes, and say what it reached."""
    examples, task = read(DataConfig(**files), seed=seed)
    set_seed(seed)  # the head's and the prompt's first values
    model = make(setting, task).to(DEVICE)
    tokenise = _tokenise(setting, model)
    train, held, test = (
        _split(tokenise, rows, task) for rows in (examples.train, examples.validation, examples.test)
    )
    kind = _Head if setting["peer"] == "head" else _Peer
    peer = kind(model=model, task=task, pad=int(tokenise.tokenizer.pad_token_id or 0))
    cpu, wall = time.process_time(), time.perf_counter()
    history = peer.fit(setting, train, held, seed)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    baseline = Baseline.of(train.targets, task)
    splits = {"validation": held, "test": test}
    best = max(history, key=lambda each: each["key"])
    return {
        "metrics": {name: peer.evaluate(split) for name, split in splits.items()},
        "baseline": {name: baseline.measure(split.targets, task) for name, split in splits.items()},
        "trained": sum(value.numel() for value in peer.trained.values()),
        "total": sum(value.numel() for value in model.parameters()),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "best_epoch": best["epoch"],
        "epochs": schedule(setting, len(train.rows)).epochs,
        "steps": schedule(setting, len(train.rows)).steps,
        "history": [{name: each[name] for name in ("epoch", "value")} for each in history],
        "precision": "fp32" if peer.autocast is None else "fp32 weights, bf16 autocast",
    }


def make(setting: Mapping[str, Any], task: Task) -> Any:
    """The peer's model, with the numbers that it trains, and no others, requiring a gradient."""
    model = AutoModelForSequenceClassification.from_pretrained(
        loadable(setting["backbone"]),
        num_labels=task.num_labels,
        dtype=torch.float32,
        attn_implementation=ATTENTION,
    )
    if model.config.pad_token_id is None:  # a decoder's head looks for the last token that is not padding
        model.config.pad_token_id = _tokenizer(setting).pad_token_id
    match setting["peer"]:
        case "full":
            return model
        case "head":
            model.base_model.requires_grad_(False)
            return model
        case "p-tuning":
            return get_peft_model(
                model,
                PromptEncoderConfig(
                    task_type="SEQ_CLS",
                    num_virtual_tokens=setting["num_virtual_tokens"],
                    encoder_hidden_size=setting["encoder_hidden_size"],
                ),
            )
        case "prefix":
            return get_peft_model(
                model,
                PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=setting["num_virtual_tokens"]),
            )
        case "lora":
            return get_peft_model(
                model,
                LoraConfig(
                    task_type="SEQ_CLS",  # so the head is among the modules_to_save
                    r=setting["r"],
                    lora_alpha=setting["lora_alpha"],
                    lora_dropout=setting["lora_dropout"],
                    target_modules=setting.get("target_modules", ["query", "value"]),
                ),
            )
        case peer:
            raise ValueError(f"no such peer: {peer}")


def _tokenizer(setting: Mapping[str, Any]) -> Any:
    return AutoTokenizer.from_pretrained(loadable(setting["backbone"]))


def _tokenise(setting: Mapping[str, Any], model: Any) -> Tokenise:
    config = model.config
    return Tokenise(
        tokenizer=_tokenizer(setting),
        limit=config.max_position_embeddings - setting.get("num_virtual_tokens", 0),
        segments=ARCHITECTURES[config.model_type].segments and config.type_vocab_size > 1,
    )


def _split(tokenise: Tokenise, examples: Any, task: Task) -> Split:
    labels = encode_labels(examples, task)
    return Split(rows=tokenise(examples, labels), targets=np.asarray(labels, dtype=np.float64))


class _Peer:
    """A model in training, and what is measured of it."""

    def __init__(self, *, model: PreTrainedModel, task: Task, pad: int) -> None:
        self.model, self.task, self.pad = model, task, pad
        # By name, and not through PEFT's own saving: what it saves of a prompt is not what it trains.
        self.trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        fast = precision("auto", DEVICE)
        self.autocast = fast if fast == torch.bfloat16 else None

    def fit(self, setting: Mapping[str, Any], train: Split, held: Split, seed: int) -> list[dict[str, Any]]:
        """Train; the model ends with the best evaluation's numbers. Returns the evaluations."""
        size, (epochs, steps, every) = setting["batch_size"], schedule(setting, len(train.rows))
        parameters = list(self.trained.values())
        optimizer = torch.optim.AdamW(parameters, lr=setting["rate"], weight_decay=setting["weight_decay"])
        falling = get_scheduler(
            setting["schedule"],
            optimizer,
            num_warmup_steps=math.ceil(setting["warmup"] * steps),
            num_training_steps=steps,
        )
        select = Selection.for_task("auto", self.task)
        history: list[dict[str, Any]] = []
        best: dict[str, Tensor] = {}
        step = 0
        self.model.train(setting["dropout"])
        for epoch in range(epochs):
            for batch in shuffled_batches(train.lengths, size, seed=seed, epoch=epoch):
                labels = torch.as_tensor([train.rows[row].label for row in batch], device=DEVICE)
                loss = self.loss(self.logits(train, batch), labels)
                if not math.isfinite(loss.item()):
                    raise TrainingDiverged(f"loss {loss.item()} at step {step + 1} of {steps}")
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, setting["clip"])
                optimizer.step()
                optimizer.zero_grad()
                falling.step()
                step += 1
                if step % every and step < steps:
                    continue
                found = self.evaluate(held)
                self.model.train(setting["dropout"])
                key = select.key(found)
                if not history or key > max(each["key"] for each in history):
                    best = {name: value.detach().clone() for name, value in self.trained.items()}
                history.append(
                    {"epoch": step * epochs / steps, "value": found.get(select.metric), "key": key}
                )
        with torch.no_grad():
            for name, value in best.items():
                self.trained[name].copy_(value)
        return history

    def logits(self, split: Split, batch: Sequence[int]) -> Tensor:
        """``[B, C]`` of these rows, in fp32; a regression's of standardised targets."""
        with self._autocast():
            found: Tensor = self.model(**self.inputs(split, batch)).logits
        return found.float()

    def inputs(self, split: Split, batch: Sequence[int]) -> dict[str, Tensor]:
        """What the model is given of these rows."""
        inputs = collate([split.rows[row] for row in batch], self.pad)
        inputs.pop("labels")
        return {name: value.to(DEVICE) for name, value in inputs.items()}

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As ptuning has it."""
        if self.task.is_regression:
            return nn.functional.mse_loss(logits.view(-1), (labels - self.task.mean) / self.task.scale)
        return nn.functional.cross_entropy(logits, labels)

    def evaluate(self, split: Split) -> Metrics:
        """The split's metrics, ``loss`` included."""
        self.model.eval()
        logits = torch.empty(len(split.rows), self.task.num_labels)
        with torch.inference_mode():
            for batch in sorted_batches(split.lengths, None, BATCH_TOKENS):
                logits[batch] = self.logits(split, batch).cpu()
        if not logits.isfinite().all():
            raise TrainingDiverged("the logits are not finite")
        targets = torch.from_numpy(split.targets)
        loss = float(self.loss(logits, targets.float() if self.task.is_regression else targets.long()))
        if self.task.is_regression:
            logits = logits * self.task.scale + self.task.mean
        return {"loss": loss, **measure(logits.double().numpy(), split.targets, self.task)}

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(DEVICE.type, dtype=self.autocast)


class _Head(_Peer):
    """The head alone: what it reads stays the same, and is computed once a row."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.read: dict[int, Tensor] = {}

    def logits(self, split: Split, batch: Sequence[int]) -> Tensor:
        if id(split) not in self.read:
            self.read[id(split)] = self._pooled(split)
        with self._autocast():
            classifier: Any = self.model.classifier
            found: Tensor = classifier(self.read[id(split)][list(batch)])
        return found.float()

    @torch.no_grad()
    def _pooled(self, split: Split) -> Tensor:
        """``[N, H]``: every row's pooled token."""
        read = torch.empty(len(split.rows), self.model.config.hidden_size, device=DEVICE)
        for batch in sorted_batches(split.lengths, None, BATCH_TOKENS):
            with self._autocast():
                read[batch] = self.model.base_model(**self.inputs(split, batch)).pooler_output.float()
        return read
