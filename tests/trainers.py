"""What the tests inside ``transformers.Trainer`` share: prompts, tasks, rows, a Trainer on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from ptuning.model import (
    DeepMLPEncoder,
    DeepPrompt,
    InputPrompt,
    LSTMEncoder,
    MLPEncoder,
    PromptConfig,
    PTuningModel,
    ResidualEncoder,
    state,
)
from ptuning.task import Task
from tiny import PAD, VOCAB, tiny

CONFIGS: dict[str, PromptConfig] = {
    "deep": DeepPrompt(num_virtual_tokens=4),
    # PEFT's fault: an encoder's output was loaded into its input and encoded again.
    "input, encoded": InputPrompt(num_virtual_tokens=4, encoder=MLPEncoder(width=8)),
}

CLASSES = Task(problem_type="single_label_classification", labels=("red", "green", "blue"))
REGRESSION = Task(problem_type="regression", mean=2.0, scale=1.5)
SEVERAL = Task(problem_type="multi_label_classification", labels=("warm", "cold", "any"))

RUNS: dict[str, tuple[PromptConfig, Task]] = {
    **{name: (config, CLASSES) for name, config in CONFIGS.items()},
    "lstm with dropout": (
        InputPrompt(num_virtual_tokens=3, encoder=LSTMEncoder(width=4, num_layers=2, dropout=0.3)),
        CLASSES,
    ),
    "residual with dropout, regression": (
        InputPrompt(num_virtual_tokens=3, placement="end", encoder=ResidualEncoder(width=8, dropout=0.3)),
        REGRESSION,
    ),
    "deep mlp with dropout, several labels": (
        DeepPrompt(num_virtual_tokens=3, first_layer=1, encoder=DeepMLPEncoder(width=8, dropout=0.3)),
        SEVERAL,
    ),
}
"""Every encoder, every kind of task."""

Example = dict[str, Any]


def examples(count: int = 24, task: Task = CLASSES, *, turned: bool = False) -> list[Example]:
    """Random texts of random lengths whose label is told by their second token.

    Args:
        count: How many.
        task: What a label is.
        turned: Each label is another one's, so that what is learned elsewhere is wrong here.
    """
    found = []
    for _ in range(count):
        length, kind = int(torch.randint(4, 12, ())), int(torch.randint(3, ()))
        words = torch.randint(20, VOCAB, (length,)).tolist()
        label: Any = (kind + 1) % 3 if turned else kind
        if task.is_regression:
            label = 2.0 * label
        elif task is SEVERAL:
            label = [float(label == 0), float(label == 1), float(label < 2)]
        found.append({"input_ids": [0, 10 + kind, *words], "labels": label})
    return found


def collate(rows: Sequence[Example]) -> dict[str, Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    missing = [width - len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.tensor(
            [row["input_ids"] + [PAD] * n for row, n in zip(rows, missing, strict=True)]
        ),
        "attention_mask": torch.tensor([[1] * (width - n) + [0] * n for n in missing]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def accuracy(found: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


class Watch(TrainerCallback):
    """Keeps the state dict of every evaluation, as it was in memory."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_evaluate(self, *_: Any, model: PTuningModel, **__: Any) -> None:
        self.seen.append({name: value.clone() for name, value in model.state_dict().items()})


def make(config: PromptConfig, task: Task = CLASSES, **how: Any) -> PTuningModel:
    """An untrained model on the one tiny backbone, from seed 0."""
    backbone = tiny("bert")  # seeds, too
    return PTuningModel.from_backbone(backbone, config, task=task, **how)


def trainer(
    folder: Path,
    config: PromptConfig,
    scores: Sequence[float] = (),
    *,
    task: Task = CLASSES,
    model: PTuningModel | None = None,
    rows: Sequence[Example] | Any = None,
    held: Sequence[Example] | Any = None,
    measure: Callable[[EvalPrediction], dict[str, float]] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    more: dict[str, Any] | None = None,
    **choices: Any,
) -> Trainer:
    """A Trainer of twelve steps.

    Args:
        folder: Where it writes.
        config: The prompt.
        scores: What the evaluations are told to say; then it evaluates and saves at every fourth step.
        task: What the logits mean.
        model: In place of an untrained one.
        rows: To train on, in place of 24 of :func:`examples`.
        held: To evaluate on, in place of 8.
        measure: What computes the metrics, in place of the script.
        callbacks: Besides :class:`Watch`.
        more: Further arguments of the Trainer.
        choices: Further training arguments.
    """
    torch.manual_seed(0)
    coming: Iterator[float] = iter(scores)
    scripted = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 4,
        "save_steps": 4,
        "metric_for_best_model": "score",
        "greater_is_better": True,
    }
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": 0.03,
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **(scripted if scores else {"save_strategy": "no"}),
        **choices,
    }
    given: dict[str, Any] = {
        "args": TrainingArguments(**arguments),
        "train_dataset": examples(task=task) if rows is None else rows,
        "eval_dataset": examples(8, task) if held is None else held,
        "data_collator": collate,
        "compute_metrics": measure or ((lambda _: {"score": next(coming)}) if scores else None),
        "callbacks": [Watch(), *callbacks],
        **(more or {}),
    }
    if "model_init" not in given:
        given["model"] = make(config, task) if model is None else model
    return Trainer(**given)


def watch(made: Trainer) -> Watch:
    return next(c for c in made.callback_handler.callbacks if isinstance(c, Watch))


def steps(made: Trainer, after: int = 0) -> list[dict[str, float]]:
    """What was logged of every step: loss, gradient norm, learning rate."""
    return [entry for entry in made.state.log_history if "grad_norm" in entry and entry["step"] > after]


def losses(made: Trainer) -> list[float]:
    return [entry["loss"] for entry in steps(made)]


def numbers(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what it says of itself."""
    return {name: value for name, value in given.items() if name != state.KEY}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether two state dicts hold the same task to the bit, records left out."""
    one, two = numbers(one), numbers(two)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
