"""Inside ``transformers.Trainer``: it learns, the best checkpoint is the best, files hold the task alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from ptuning.model import DeepPrompt, InputPrompt, MLPEncoder, PromptConfig, PTuningModel
from tiny import PAD, VOCAB, tiny

CONFIGS: dict[str, PromptConfig] = {
    "deep": DeepPrompt(num_virtual_tokens=4),
    # PEFT's fault: an encoder's output was loaded into its input and encoded again.
    "input, encoded": InputPrompt(num_virtual_tokens=4, encoder=MLPEncoder(width=8)),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
Example = dict[str, Any]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def examples(count: int = 24) -> list[Example]:
    """Random texts of random lengths whose class is told by their second token."""
    found = []
    for _ in range(count):
        length, label = int(torch.randint(4, 12, ())), int(torch.randint(3, ()))
        words = torch.randint(20, VOCAB, (length,)).tolist()
        found.append({"input_ids": [0, 10 + label, *words], "labels": label})
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


class Watch(TrainerCallback):
    """Keeps the task's parameters of every evaluation, as they were in memory."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_evaluate(self, *_: Any, model: PTuningModel, **__: Any) -> None:
        self.seen.append({name: value.detach().clone() for name, value in model.task_parameters().items()})


def trainer(folder: Path, config: PromptConfig, scores: Sequence[float] = (), **choices: Any) -> Trainer:
    """Evaluates and saves at every fourth step; ``scores`` are what the evaluations are told to say."""
    torch.manual_seed(0)
    coming = iter(scores)
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
    return Trainer(
        model=PTuningModel.from_backbone(tiny("bert"), config, num_labels=3),
        args=TrainingArguments(**arguments),
        train_dataset=examples(),
        eval_dataset=examples(8),
        data_collator=collate,
        compute_metrics=lambda _: {"score": next(coming)},
        callbacks=[Watch()],
    )


def watch(made: Trainer) -> Watch:
    return next(c for c in made.callback_handler.callbacks if isinstance(c, Watch))


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@configs
def test_the_loss_falls(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(tmp_path, config, max_steps=30, learning_rate=0.02)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@configs
def test_the_optimizer_sees_the_tasks_parameters_alone(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(tmp_path, config)
    optimizer = made.create_optimizer()
    seen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert seen == {id(p) for p in made.model.task_parameters().values()}


@configs
def test_the_best_model_at_the_end_is_the_best_to_the_bit(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(tmp_path, config, scores=[0.1, 0.9, 0.2], load_best_model_at_end=True)
    made.train()
    first, best, last = watch(made).seen
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-8")
    assert same(dict(made.model.state_dict()), best)
    assert not same(best, first)
    assert not same(best, last)


@configs
def test_resuming_equals_the_straight_run_to_the_bit(config: PromptConfig, tmp_path: Path) -> None:
    straight = trainer(tmp_path / "straight", config, scores=[0.1, 0.2, 0.3])
    straight.train()
    resumed = trainer(tmp_path / "resumed", config, scores=[0.3])
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-8"))
    assert same(dict(resumed.model.state_dict()), dict(straight.model.state_dict()))


@configs
def test_checkpoints_hold_the_task_alone(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(tmp_path, config, scores=[0.1, 0.2, 0.3])
    made.train()
    saved = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert same(saved, watch(made).seen[-1])
    assert not any("backbone" in name for name in saved)
    assert (tmp_path / "checkpoint-12" / "model.safetensors").stat().st_size < 20_000
