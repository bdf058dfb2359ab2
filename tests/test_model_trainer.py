"""Inside ``transformers.Trainer``: it learns, the best is the best, a resumed run is the straight one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, DataCollatorWithPadding, EarlyStoppingCallback, Trainer

from ptuning.errors import DataError, TrainingDiverged
from ptuning.model import Backbone, DeepPrompt, PromptConfig, PTuningModel
from ptuning.task import Task
from tiny import tiny
from trainers import (
    CLASSES,
    CONFIGS,
    REGRESSION,
    RUNS,
    SEVERAL,
    Example,
    accuracy,
    collate,
    examples,
    losses,
    make,
    numbers,
    same,
    steps,
    trainer,
    watch,
)

configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_task = pytest.mark.parametrize(
    ("config", "task"),
    [
        pytest.param(CONFIGS["deep"], CLASSES, id="deep, classes"),
        pytest.param(CONFIGS["input, encoded"], CLASSES, id="input, classes"),
        pytest.param(CONFIGS["deep"], SEVERAL, id="deep, several labels"),
        pytest.param(CONFIGS["input, encoded"], REGRESSION, id="input, regression"),
    ],
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@configs
def test_the_loss_falls(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(tmp_path, config, max_steps=30, learning_rate=0.02)
    made.train()
    found = losses(made)
    assert len(found) == 30
    assert sum(found[-5:]) < 0.7 * sum(found[:5])


@configs
def test_the_optimizer_sees_the_tasks_parameters_alone(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(tmp_path, config)
    optimizer = made.create_optimizer()
    seen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert seen == {id(p) for p in made.model.task_parameters().values()}


# ---------------------------------------------------------------------------- the best, and the last


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
def test_the_best_is_the_best_by_what_was_measured(config: PromptConfig, tmp_path: Path) -> None:
    held = examples(24, turned=True)  # what is learned is wrong there, so the last is not the best
    made = trainer(
        tmp_path,
        config,
        held=held,
        measure=accuracy,
        max_steps=8,
        learning_rate=0.1,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="accuracy",
        load_best_model_at_end=True,
    )
    made.train()
    measured = [entry["eval_accuracy"] for entry in made.state.log_history if "eval_accuracy" in entry]
    best = measured.index(max(measured))
    assert measured[best] > measured[-1]
    assert same(dict(made.model.state_dict()), watch(made).seen[best])
    assert made.evaluate()["eval_accuracy"] == measured[best] == made.state.best_metric


@configs
def test_early_stopping_stops_and_ends_with_the_best(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(
        tmp_path,
        config,
        scores=[0.5, 0.9, 0.3, 0.4, 0.95],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        max_steps=20,
        load_best_model_at_end=True,
    )
    made.train()
    assert made.state.global_step == 16
    assert len(watch(made).seen) == 4
    assert same(dict(made.model.state_dict()), watch(made).seen[1])
    assert not same(dict(made.model.state_dict()), watch(made).seen[3])


# ------------------------------------------------------------------------------------- going on

UPDATES = 5
"""Three to an epoch, the last of each from a lone batch of two rows: resumed in the middle of epochs, too."""


def stepwise(folder: Path, run: str, **choices: Any) -> Trainer:
    config, task = RUNS[run]
    torch.manual_seed(1)
    return trainer(
        folder,
        config,
        task=task,
        rows=examples(22, task),
        max_steps=UPDATES,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        warmup_steps=2,
        lr_scheduler_type="cosine",
        **choices,
    )


@pytest.fixture(scope="module", params=list(RUNS))
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Trainer]:
    """A run that saved every step."""
    folder = tmp_path_factory.mktemp("straight")
    made = stepwise(folder, request.param, save_strategy="steps", save_steps=1)
    made.train()
    assert len(steps(made)) == UPDATES
    return request.param, made


@pytest.mark.parametrize("step", range(1, UPDATES))
def test_resumed_at_any_step_it_is_the_straight_run_to_the_bit(
    straight: tuple[str, Trainer], step: int, tmp_path: Path
) -> None:
    run, whole = straight
    resumed = stepwise(tmp_path, run)
    before = {name: value.clone() for name, value in resumed.model.state_dict().items()}
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
    assert steps(resumed, after=step) == steps(whole, after=step)
    assert len(steps(resumed, after=step)) == UPDATES - step
    assert same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert not same(before, dict(whole.model.state_dict()))


@pytest.mark.parametrize("run", [run for run in RUNS if "dropout" in run])
def test_the_runs_with_dropout_draw_random_numbers(run: str) -> None:
    # Or else going on with the generators as they were would be no promise.
    encoder = make(*RUNS[run]).train().prompt_encoder
    with torch.no_grad():
        assert not all(torch.equal(encoder(), encoder()) for _ in range(5)) or "residual" in run
        for value in encoder.parameters():
            value.copy_(torch.randn_like(value))  # the residual one starts with a way back up of noughts
        assert not torch.equal(encoder(), encoder())


@configs
def test_a_run_that_evaluates_is_resumed_to_the_bit(config: PromptConfig, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "straight", config, scores=[0.1, 0.2, 0.3])
    whole.train()
    resumed = trainer(tmp_path / "resumed", config, scores=[0.3])
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-8"))
    assert same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert steps(resumed) == steps(whole)


@configs
def test_checkpoints_hold_the_task_alone(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(tmp_path, config, scores=[0.1, 0.2, 0.3])
    made.train()
    file = tmp_path / "checkpoint-12" / "model.safetensors"
    saved = load_file(file)
    assert same(saved, watch(made).seen[-1])
    assert numbers(saved).keys() == made.model.task_parameters().keys()
    assert not any("backbone" in name for name in saved)
    # Its numbers, and no more than two kilobytes of names and of what it says of itself.
    assert file.stat().st_size < sum(value.nbytes for value in numbers(saved).values()) + 2_000


# --------------------------------------------------------------------------------------- predict


@every_task
def test_predictions_are_the_models_own_in_order(config: PromptConfig, task: Task, tmp_path: Path) -> None:
    def mean_of_first(found: Any) -> dict[str, float]:
        return {"first": float(found.predictions[:, 0].mean())}

    made = trainer(
        tmp_path, config, task=task, max_steps=2, per_device_eval_batch_size=4, measure=mean_of_first
    )
    made.train()
    rows = examples(11, task)  # the last batch holds three
    found = made.predict(rows)
    assert not made.model.training
    with torch.no_grad():
        batches = [made.model(**collate(rows[i : i + 4])) for i in range(0, 11, 4)]
        alone = torch.cat([made.model(**collate([row])).logits for row in rows])
    logits = torch.cat([batch.logits for batch in batches])
    assert torch.equal(torch.from_numpy(found.predictions), logits)
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
    assert found.label_ids.tolist() == [row["labels"] for row in rows]
    assert found.metrics["test_first"] == pytest.approx(float(logits[:, 0].mean()), abs=1e-6)
    mean = sum(float(batch.loss) * n for batch, n in zip(batches, (4, 4, 3), strict=True)) / 11
    assert found.metrics["test_loss"] == pytest.approx(mean, abs=1e-6)


# -------------------------------------------------------------------------------- many models


@configs
def test_model_init_twice_from_one_seed_trains_the_same(config: PromptConfig, tmp_path: Path) -> None:
    def init() -> PTuningModel:
        return PTuningModel.from_backbone(backbone, config, task=CLASSES)

    backbone = Backbone(tiny("bert"))
    runs = []
    for seed in (5, 5, 6):
        made = trainer(tmp_path, config, more={"model_init": init}, max_steps=3, seed=seed, data_seed=5)
        made.train()
        runs.append(made)
    one, two, other = runs
    assert one.model is not two.model
    assert steps(one) == steps(two)
    assert same(dict(one.model.state_dict()), dict(two.model.state_dict()))
    assert not same(dict(one.model.state_dict()), dict(other.model.state_dict()))


def test_a_search_tries_models_that_share_a_backbone_and_nothing_else(tmp_path: Path) -> None:
    import optuna

    class Far(optuna.samplers.BaseSampler):
        """Three trials that are told apart: one cannot learn."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, *_: Any) -> Any:
            return {"learning_rate": (1e-9, 3e-2, 1e-3), "num_virtual_tokens": (2, 5, 3)}[param_name][
                trial.number
            ]

    backbone = Backbone(tiny("bert"))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    tried: list[PTuningModel] = []

    def init(trial: Any) -> PTuningModel:
        tokens = 2 if trial is None else trial.suggest_int("num_virtual_tokens", 2, 5)
        model = PTuningModel.from_backbone(backbone, DeepPrompt(num_virtual_tokens=tokens), task=CLASSES)
        if trial is not None:
            tried.append(model)
        return model

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = examples(24)
    made = trainer(tmp_path, DeepPrompt(), more={"model_init": init}, rows=rows, held=rows, max_steps=8)
    best = made.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-9, 1e-1, log=True)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=3,
        direction="minimize",
        backend="optuna",
        sampler=Far(),
    )
    assert [model.prompt_config.num_virtual_tokens for model in tried] == [2, 5, 3]
    ends = []
    for model in tried:
        with torch.no_grad():
            ends.append(float(model.eval()(**collate(rows)).loss))
    assert best.run_id == str(ends.index(min(ends))) == "1"
    assert best.objective == pytest.approx(min(ends), abs=1e-5)
    assert best.hyperparameters == {"learning_rate": 3e-2, "num_virtual_tokens": 5}
    owned = [{value.data_ptr() for value in model.task_parameters().values()} for model in tried]
    assert all(one.isdisjoint(two) for one, two in combinations(owned, 2))
    assert all(model.backbone.weights is backbone.weights for model in tried)
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


# ------------------------------------------------------------------------------ accumulation


def close(one: PTuningModel, two: PTuningModel) -> None:
    torch.testing.assert_close(numbers(one.state_dict()), numbers(two.state_dict()), rtol=0, atol=1e-6)


def run(
    folder: Path, config: PromptConfig, task: Task, rows: int, size: int, parts: int, **how: Any
) -> Trainer:
    torch.manual_seed(2)
    made = trainer(
        folder,
        config,
        task=task,
        rows=examples(rows, task),
        # Adam's first step has the size of its rate whatever the gradient; plain descent shows a wrong scale.
        optim="sgd",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=parts,
        max_steps=4,
        **how,
    )
    made.train()
    return made


@every_task
def test_two_batches_of_four_are_one_of_eight(config: PromptConfig, task: Task, tmp_path: Path) -> None:
    # 20 rows: an epoch is 8, 8 and 4, so the last step has one batch of four where the others have two.
    whole, parts = (run(tmp_path, config, task, 20, *cut) for cut in ((8, 1), (4, 2)))
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-6)
    close(parts.model, whole.model)
    assert not same(dict(whole.model.state_dict()), dict(make(config, task).state_dict()))


@configs
def test_uneven_batches_are_one_with_a_loss_that_counts_rows(config: PromptConfig, tmp_path: Path) -> None:
    """By itself the Trainer takes the mean of the batches' means, as with every model that counts no rows."""

    def row_mean(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    # 22 rows: an epoch ends with 6, or with 4 and 2.
    counted = {"more": {"compute_loss_func": row_mean}}
    whole, plain = (run(tmp_path, config, CLASSES, 22, *cut) for cut in ((8, 1), (4, 2)))
    parts = run(tmp_path, config, CLASSES, 22, 4, 2, **counted)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-6)
    close(parts.model, whole.model)
    assert losses(plain)[:2] == pytest.approx(losses(whole)[:2], abs=1e-6)
    assert abs(losses(plain)[2] - losses(whole)[2]) > 1e-3


# ------------------------------------------------------------------------------------- bf16


@pytest.fixture
def _own_precision() -> Iterator[None]:
    """Accelerate keeps a process's precision for good: later tests must not inherit this one's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.usefixtures("_own_precision")
@pytest.mark.parametrize("run", [*CONFIGS, "lstm with dropout"])
def test_bf16_learns_in_fp32_and_round_trips(run: str, tmp_path: Path) -> None:
    config, task = RUNS[run]
    arguments: dict[str, Any] = {"task": task, "bf16": True, "max_steps": 16, "learning_rate": 0.02}
    made = trainer(tmp_path, config, **arguments, save_strategy="steps", save_steps=8)
    made.train()
    assert made.accelerator.mixed_precision == "bf16"
    found = losses(made)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    assert all(value.dtype == torch.float32 for value in made.model.parameters())
    saved = load_file(tmp_path / "checkpoint-16" / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in numbers(saved).values())
    assert same(saved, dict(made.model.state_dict()))
    resumed = trainer(tmp_path / "resumed", config, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert steps(resumed) == steps(made)
    assert same(dict(resumed.model.state_dict()), dict(made.model.state_dict()))
    again = PTuningModel.from_pretrained(tmp_path / "checkpoint-16", backbone=tiny("bert"))
    assert same(dict(again.state_dict()), dict(made.model.state_dict()))


@configs
def test_a_backbone_stored_in_bf16_trains_the_task_in_fp32(config: PromptConfig, tmp_path: Path) -> None:
    model = make(config, dtype=torch.bfloat16)
    made = trainer(tmp_path, config, model=model, max_steps=20, learning_rate=0.02, save_strategy="epoch")
    made.train()
    assert model.backbone.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in model.task_parameters().values())
    found = losses(made)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    again = PTuningModel.from_pretrained(
        tmp_path / "checkpoint-20", backbone=tiny("bert"), dtype=torch.bfloat16
    )
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    batch = collate(examples(5))
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch).logits, model.eval()(**batch).logits)


# ------------------------------------------------------------------------------------ columns


@pytest.mark.parametrize(
    ("config", "label"), list(zip(CONFIGS.values(), ("label", "labels"), strict=True)), ids=CONFIGS
)
def test_a_dataset_goes_in_as_it_is(
    config: PromptConfig, label: str, tiny_folder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    texts = ["good film", "a bad bill and a crash", "the parcel is late", "very good food"] * 4
    marks = [1, 0, 0, 1] * 4
    bare = {**tokenizer(texts), label: marks}
    odd = {"text": texts, "idx": list(range(16)), "source": ["shop"] * 16}
    runs = []
    for columns in (bare, {**odd, **bare}):
        torch.manual_seed(0)
        made = trainer(
            tmp_path,
            config,
            model=PTuningModel.from_backbone(str(tiny_folder), config, num_labels=2),
            rows=Dataset.from_dict(columns),
            held=Dataset.from_dict(columns),
            measure=accuracy,
            more={"data_collator": DataCollatorWithPadding(tokenizer)},
            max_steps=3,
        )
        made.train()
        runs.append(made)
    assert runs[1].label_names == ["labels"]
    assert steps(runs[1]) == steps(runs[0])
    # The labels are found: an evaluation has a loss and a metric.
    assert {"eval_loss", "eval_accuracy"} <= runs[1].evaluate().keys()


# --------------------------------------------------------------------------------------- NaN


def poisoned(task: Task) -> list[Example]:
    rows = examples(24, task)
    rows[-1]["labels"] = math.nan
    return rows


@configs
def test_a_target_that_is_no_number_stops_the_trainer(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(
        tmp_path, config, task=REGRESSION, rows=poisoned(REGRESSION), save_strategy="steps", save_steps=1
    )
    with pytest.raises(DataError, match="labels: got nan in row"):
        made.train()
    assert made.state.global_step < 3  # within the first epoch
    assert all(bool(value.isfinite().all()) for value in made.model.task_parameters().values())


@configs
def test_a_parameter_that_is_no_number_stops_the_trainer(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(tmp_path, config)
    with torch.no_grad():
        next(iter(made.model.prompt_encoder.parameters())).fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="go back to the last good checkpoint"):
        made.train()


@configs
def test_an_evaluation_of_nan_goes_on(config: PromptConfig, tmp_path: Path) -> None:
    made = trainer(
        tmp_path, config, task=REGRESSION, held=poisoned(REGRESSION), eval_strategy="steps", eval_steps=4
    )
    made.train()
    assert len(watch(made).seen) == 3
    assert made.state.global_step == 12
    # The Trainer leaves such a batch out of the mean; the model says what it is.
    with torch.no_grad():
        assert math.isnan(float(made.model.eval()(**collate(poisoned(REGRESSION))).loss))
