"""A head that is fitted before the first step: ridge regression, and the runs that begin with it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import WORDS
from ptuning import DeepPrompt, FitConfig, PTuningModel, Task, TrainResult, adapters, fit
from ptuning.adapters.peft_format import why_not_peft
from ptuning.data.tokens import TokenRow, segments_of
from ptuning.errors import TrainingDiverged
from ptuning.training import start
from ptuning.training.console import Silent
from ptuning.training.interrupt import Interrupted
from ptuning.training.prepare import Split
from ptuning.training.start import begins_fitted, fit_head, ridge
from test_training import StopAfter

P = 4


def scored(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of texts, and how many words of five they share."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        first = draw.sample(WORDS, 5)
        shared = draw.randrange(6)
        others = [word for word in WORDS if word not in first]
        second = first[:shared] + draw.sample(others, 5 - shared)
        draw.shuffle(second)
        found.append({"text_a": " ".join(first), "text_b": " ".join(second), "label": shared * 0.7 + 1})
    return found


TASK = Task(problem_type="regression", pair=True, mean=2.75, scale=1.2)


@pytest.fixture
def make(tiny_folder: Path) -> Callable[..., PTuningModel]:
    def model(task: Task = TASK, **choices: Any) -> PTuningModel:
        torch.manual_seed(0)
        config = DeepPrompt(num_virtual_tokens=P, **{"pooling": "similarity", **choices})
        return PTuningModel.from_backbone(str(tiny_folder), config, task=task)

    return model


# ------------------------------------------------------------------------------------------- ridge


def test_ridge_solves_the_normal_equations_at_the_strength_that_leaves_one_out_best() -> None:
    """Each strength by brute force, in centred numbers; the generalised form stands for leaving one out."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 8)) * np.logspace(0, -2, 8) + 3
    y = x @ draw.normal(size=8) + draw.normal(size=60) * 0.3 + 7
    weight, bias = ridge(x, y)
    centred, wanted = x - x.mean(0), y - y.mean()
    trace = (centred**2).sum() / 8
    errors, solutions = [], []
    for strength in start.STRENGTHS * trace:
        gram = np.linalg.inv(centred.T @ centred + strength * np.eye(8))
        hat = centred @ gram @ centred.T
        errors.append(((wanted - hat @ wanted) ** 2).sum() / (60 - 1 - np.trace(hat)) ** 2)
        solutions.append(gram @ centred.T @ wanted)
    best = solutions[int(np.argmin(errors))]
    np.testing.assert_allclose(weight, best, rtol=1e-8)
    assert bias == pytest.approx(y.mean() - x.mean(0) @ best)


def test_ridge_believes_a_signal_and_not_noise() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(200, 30))
    true = draw.normal(size=30)
    clear, _ = ridge(x, x @ true + draw.normal(size=200) * 0.01)
    noise, level = ridge(x, draw.normal(size=200) + 5)
    np.testing.assert_allclose(clear, true, atol=0.01)
    assert np.abs(noise).max() < 0.1
    assert level == pytest.approx(5, abs=0.3)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_ridge_of_fewer_rows_than_features_is_finite(rows: int) -> None:
    x = np.random.default_rng(2).normal(size=(rows, 16))
    weight, bias = ridge(x, np.arange(float(rows)))
    assert np.isfinite(weight).all()
    assert np.isfinite(bias)


# ----------------------------------------------------------------------------------------- the head


def test_the_fitted_head_gives_what_ridge_predicts(make: Callable[..., PTuningModel]) -> None:
    """By the model's own way, against the features seen from outside, row for row, in the target's unit."""
    model, rows = make(), scored(50)
    tokens, targets = _tokens(model, rows)
    before = {name: value.clone() for name, value in model.head.named().items()}
    prompt = model.prompt_encoder.weight.detach().clone()
    fit_head(model, Split(rows=tokens, targets=targets))
    features = []
    output = model.backbone.model.get_submodule("classifier")
    hook = output.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float()))
    logits = []
    with torch.no_grad():
        for row in tokens:  # alone: no order, no padding
            logits.append(_alone(model, row))
    hook.remove()
    weight, bias = ridge(torch.cat(features).double().numpy(), (targets - TASK.mean) / TASK.scale)
    expected = (torch.cat(features).double().numpy() @ weight + bias) * TASK.scale + TASK.mean
    np.testing.assert_allclose(torch.stack(logits).numpy(), expected, atol=1e-4)
    after = model.head.named()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert torch.equal(model.prompt_encoder.weight, prompt)


def _tokens(model: PTuningModel, rows: list[dict[str, Any]]) -> tuple[Any, np.ndarray[Any, Any]]:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    found = []
    for row in rows:
        encoded = tokenizer(row["text_a"], row["text_b"])
        found.append(
            TokenRow(
                input_ids=encoded["input_ids"],
                token_type_ids=encoded["token_type_ids"],
                segment_ids=segments_of(encoded.sequence_ids(0)),
                label=row["label"],
            )
        )
    return found, np.array([row["label"] for row in rows])


def _alone(model: PTuningModel, row: Any) -> torch.Tensor:
    ids, types = (torch.tensor([each]) for each in (row.input_ids, row.token_type_ids))
    return model(ids, token_type_ids=types).logits[0, 0]


def test_only_a_regression_of_similarities_with_a_head_to_train_begins_fitted(
    make: Callable[..., PTuningModel],
) -> None:
    classes = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
    assert begins_fitted(make())
    assert not begins_fitted(make(pooling="mean"))
    assert not begins_fitted(make(train_head=False))
    assert not begins_fitted(make(task=classes))


def test_features_that_are_not_finite_leave_the_head_and_the_loop_says_so(
    make: Callable[..., PTuningModel],
) -> None:
    model = make()
    with torch.no_grad():
        model.prompt_encoder.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingDiverged, match="at step 1 of"):
        run(model)


def test_peft_is_refused_for_the_pooling_before_the_scaling(
    make: Callable[..., PTuningModel], tmp_path: Path
) -> None:
    """The scaling could be mended by export-peft, so it is no reason where something else is one."""
    make().save_pretrained(tmp_path / "scores")
    assert "pooling 'similarity'" in str(why_not_peft(adapters.load(tmp_path / "scores")))
    make(pooling="native").save_pretrained(tmp_path / "native")
    assert "export-peft" in str(why_not_peft(adapters.load(tmp_path / "native")))


# ------------------------------------------------------------------------------------------ the run


def run(model: PTuningModel, output: Path | None = None, **options: Any) -> TrainResult:
    options = {"epochs": 2, "prompt_rate": 1e-3, "head_rate": 1e-3, **options}
    data = {"train": scored(64), "validation": scored(48, seed=1)}
    return fit(model, data, FitConfig(**options), output=output, reporter=Silent())


def test_a_run_of_similarities_begins_where_the_features_leave_off(
    make: Callable[..., PTuningModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = run(make())
    monkeypatch.setattr("ptuning.training.loop.begins_fitted", lambda model: False)
    random_head = run(make())
    assert fitted.history[0].metrics["mse"] < random_head.history[0].metrics["mse"]
    assert fitted.history[0].metrics["pearson"] > random_head.history[0].metrics["pearson"]


def test_a_resumed_run_does_not_fit_its_head_again(make: Callable[..., PTuningModel], tmp_path: Path) -> None:
    straight = run(make(), tmp_path / "straight")
    data = {"train": scored(64), "validation": scored(48, seed=1)}
    config = FitConfig(epochs=2, prompt_rate=1e-3, head_rate=1e-3)
    with pytest.raises(Interrupted):
        fit(make(), data, config, output=tmp_path / "broken", reporter=StopAfter(3))
    resumed = fit(make(), data, config, output=tmp_path / "broken", resume=True, reporter=Silent())
    assert resumed.history == straight.history
    assert resumed.metrics == straight.metrics
