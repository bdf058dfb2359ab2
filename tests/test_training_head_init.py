"""Heads that are fitted before the first step, by ridge or logistic regression, and runs that begin so."""

from __future__ import annotations

import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold

from conftest import WORDS
from ptuning import DeepPrompt, FitConfig, PTuningModel, Task, TrainResult, adapters, fit
from ptuning.adapters.peft_format import why_not_peft
from ptuning.data.tokens import TokenRow, segments_of
from ptuning.errors import TrainingDiverged
from ptuning.training import head_fits, head_init
from ptuning.training.callbacks import Callback
from ptuning.training.head_fits import logistic, ridge
from ptuning.training.head_init import FIRST_LOGITS, fit_head, soften_head, starts_fitted
from ptuning.training.interrupt import Interrupted
from ptuning.training.prepare import Split
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


def alike(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The same, and whether it is most of them."""
    return [{**row, "label": int(row["label"] > 2.8)} for row in scored(count, seed)]


TASK = Task(problem_type="regression", pair=True, mean=2.75, scale=1.2)
CLASSES = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)


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
    for strength in head_fits.STRENGTHS * trace:
        gram = np.linalg.inv(centred.T @ centred + strength * np.eye(8))
        hat = centred @ gram @ centred.T
        errors.append(((wanted - hat @ wanted) ** 2).sum() / (60 - 1 - np.trace(hat)) ** 2)
        solutions.append(gram @ centred.T @ wanted)
    best = solutions[int(np.argmin(errors))]
    np.testing.assert_allclose(weight[0], best, rtol=1e-8)
    assert bias[0] == pytest.approx(y.mean() - x.mean(0) @ best)


def test_ridge_believes_a_signal_and_not_noise() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(200, 30))
    true = draw.normal(size=30)
    clear, _ = ridge(x, x @ true + draw.normal(size=200) * 0.01)
    noise, level = ridge(x, draw.normal(size=200) + 5)
    np.testing.assert_allclose(clear[0], true, atol=0.01)
    assert np.abs(noise).max() < 0.1
    assert level[0] == pytest.approx(5, abs=0.3)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_ridge_of_fewer_rows_than_features_is_finite(rows: int) -> None:
    x = np.random.default_rng(2).normal(size=(rows, 16))
    weight, bias = ridge(x, np.arange(float(rows)))
    assert np.isfinite(weight).all()
    assert np.isfinite(bias)


def test_a_layer_without_a_bias_is_fitted_through_the_origin() -> None:
    """As those of decoders: the level is in the weights, if a feature is nearly the same in every row."""
    draw = np.random.default_rng(7)
    x = draw.normal(size=(300, 5))
    x[:, 0] = 4 + x[:, 0] / 100
    score = x[:, 1] * 2 + 1
    weight, bias = ridge(x, score, free_bias=False)
    assert bias.tolist() == [0]
    np.testing.assert_allclose(weight[0], [0.25, 2, 0, 0, 0], atol=0.01)
    weight, bias = logistic(x, (score > 0).astype(int), 2, free_bias=False)
    assert bias.tolist() == [0, 0]
    assert ((x @ weight.T).argmax(1) == (score > 0)).mean() > 0.98
    weight, bias = logistic(x[:1], np.array([1]), 2, free_bias=False)  # nothing to fit
    assert not weight.any()
    assert not bias.any()


# ---------------------------------------------------------------------------------------- logistic


@pytest.mark.parametrize("count", [2, 3])
def test_logistic_is_the_least_penalised_loss_at_the_strength_that_predicts_best(count: int) -> None:
    """Each strength by plain gradient descent to the bottom, judged on folds that are drawn here."""
    draw = np.random.default_rng(3)
    true = draw.normal(size=(count, 6)) * 1.5
    x = draw.normal(size=(90, 6)) * 0.01 + 2
    noisy = (x - 2) / 0.01 @ true.T + draw.gumbel(size=(90, count))
    y = noisy.argmax(1)
    weight, bias = logistic(x, y, count)
    z = torch.from_numpy((x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean()))
    fits = [descend(z, y, count, strength) for strength in head_fits.INVERSE_STRENGTHS]
    mine = torch.from_numpy(x @ weight.T + bias).softmax(1)
    off = [float((mine - torch.softmax(z @ w.T + b, 1)).abs().max()) for w, b in fits]
    assert min(off) < 2e-3  # it is one of them
    losses = []
    folds = StratifiedKFold(4)
    for strength in head_fits.INVERSE_STRENGTHS:
        held = []
        for rest, out in folds.split(z, y):
            w, b = descend(z[rest], y[rest], count, strength)
            held.append(float(torch.nn.functional.cross_entropy(z[out] @ w.T + b, torch.from_numpy(y[out]))))
        losses.append(np.mean(held))
    assert int(np.argmin(off)) == int(np.argmin(losses))


def descend(z: torch.Tensor, y: Any, count: int, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes have one row of weights, as in logistic regression's two forms."""
    rows = 1 if count == 2 else count
    w, b = (torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((rows, 6), (rows,)))
    search = torch.optim.LBFGS([w, b], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def whole() -> tuple[torch.Tensor, torch.Tensor]:
        return (torch.cat((-w, w)) / 2, torch.cat((-b, b)) / 2) if count == 2 else (w, b)

    def loss() -> torch.Tensor:
        search.zero_grad()
        weight, bias = whole()
        fit = torch.nn.functional.cross_entropy(z @ weight.T + bias, torch.from_numpy(y), reduction="sum")
        total = strength * fit + (w**2).sum() / 2
        total.backward()
        return total

    search.step(loss)
    weight, bias = whole()
    return weight.detach(), bias.detach()


def test_a_class_of_twice_the_weight_counts_as_if_its_rows_stood_there_twice() -> None:
    draw = np.random.default_rng(5)
    x = draw.normal(size=(80, 3))
    x -= x.mean(0)
    y = (x[:, 0] + draw.normal(size=80) > 0.8).astype(int)
    weight, bias = logistic(x, y, 2, [1.0, 2.0])
    plain, level = logistic(x, y, 2)
    more = [
        torch.softmax(torch.from_numpy(x @ w.T + b), 1)[:, 1].mean()
        for w, b in ((weight, bias), (plain, level))
    ]
    assert more[0] > more[1] + 0.05
    twice = np.concatenate((np.arange(80), np.flatnonzero(y)))
    shares = torch.softmax(torch.from_numpy(x[twice] @ weight.T + bias), 1)[:, 1]
    assert float(shares.mean()) == pytest.approx(y[twice].mean(), abs=1e-3)  # as of maximum likelihood


def test_logistic_of_classes_without_rows_or_with_one_row_is_finite() -> None:
    x = np.random.default_rng(4).normal(size=(7, 5))
    x[:3] += 9
    weight, bias = logistic(x, np.array([0, 0, 0, 2, 2, 2, 2]), 4)
    assert not weight[[1, 3]].any()
    assert not bias[[1, 3]].any()
    assert (x @ weight.T + bias).argmax(1).tolist() == [0, 0, 0, 2, 2, 2, 2]
    for classes, wanted in (([0, 0, 0, 0, 0, 0, 1], -np.log(6)), ([1] * 7, np.log(14))):
        weight, bias = logistic(x, np.array(classes), 2)
        assert not weight.any()
        assert np.diff(bias) == pytest.approx(wanted)
    weight, bias = logistic(x * 0, np.array([0, 0, 0, 0, 0, 1, 1]), 2)  # every row the same
    assert not weight.any()
    assert np.exp(bias[1] - bias[0]) == pytest.approx(2 / 5)


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
    expected = (torch.cat(features).double().numpy() @ weight[0] + bias) * TASK.scale + TASK.mean
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
    return model(*_inputs(row)).logits[0, 0]


def _inputs(row: Any) -> tuple[torch.Tensor, None, torch.Tensor]:
    return torch.tensor([row.input_ids]), None, torch.tensor([row.token_type_ids])


def test_similarities_with_a_head_to_train_begin_fitted(make: Callable[..., PTuningModel]) -> None:
    several = Task(problem_type="multi_label_classification", labels=("new", "good"), pair=True)
    assert starts_fitted(make())
    assert starts_fitted(make(task=CLASSES))
    assert not starts_fitted(make(pooling="mean"))
    assert not starts_fitted(make(train_head=False))
    assert not starts_fitted(make(task=several))


def test_classes_are_fitted_by_logistic_regression(make: Callable[..., PTuningModel]) -> None:
    model, rows = make(task=CLASSES), alike(50)
    tokens, targets = _tokens(model, rows)
    loss = fit_head(model, Split(rows=tokens, targets=targets))
    features = []
    output = model.backbone.model.get_submodule("classifier")
    hook = output.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float()))
    with torch.no_grad():
        logits = torch.stack([model(*_inputs(row)).logits[0] for row in tokens])
    hook.remove()
    seen = torch.cat(features).double().numpy()
    weight, bias = logistic(seen, targets.astype(int), 2)
    np.testing.assert_allclose(logits.numpy(), seen @ weight.T + bias, atol=1e-3)
    assert float((logits.argmax(1).numpy() == targets).mean()) > 0.8
    assert loss == pytest.approx(float(model.loss(logits, torch.from_numpy(targets).long())), abs=1e-3)


def test_a_head_is_fitted_to_no_more_rows_than_it_needs(
    make: Callable[..., PTuningModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To some of them, always the same, whichever way the global generators stand."""
    model, rows = make(), scored(60)
    tokens, targets = _tokens(model, rows)
    monkeypatch.setattr(head_init, "MAX_ROWS", 20)
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        fit_head(model, Split(rows=tokens, targets=targets))
        found.append(model.head.named()["classifier.weight"].clone())
    assert torch.equal(*found)
    monkeypatch.setattr(head_init, "MAX_ROWS", 60)
    fit_head(model, Split(rows=tokens, targets=targets))
    assert not torch.equal(found[0], model.head.named()["classifier.weight"])


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
    assert "pooling is 'similarity'" in str(why_not_peft(adapters.load(tmp_path / "scores")))
    make(pooling="native").save_pretrained(tmp_path / "native")
    assert "export-peft" in str(why_not_peft(adapters.load(tmp_path / "native")))


# ------------------------------------------------------------------------------------------ the run


def run(model: PTuningModel, output: Path | None = None, **options: Any) -> TrainResult:
    options = {"epochs": 2, "prompt_rate": 1e-3, "head_rate": 1e-3, **options}
    data = {"train": scored(64), "validation": scored(48, seed=1)}
    return fit(model, data, FitConfig(**options), report=False, output=output)


def test_a_run_of_similarities_begins_where_the_features_leave_off(
    make: Callable[..., PTuningModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = run(make())
    monkeypatch.setattr("ptuning.training.trainer.starts_fitted", lambda *_: False)
    random_head = run(make())
    begun, *after = fitted.history
    assert (begun.step, begun.epoch) == (0, 0)
    assert [each.step for each in after] == [each.step for each in random_head.history]
    for name, better in (("mse", lambda a, b: a < b), ("pearson", lambda a, b: a > b)):
        assert better(begun.metrics[name], random_head.history[0].metrics[name])
        assert better(after[0].metrics[name], random_head.history[0].metrics[name])


def test_a_run_that_only_spoils_the_fitted_head_keeps_it(
    make: Callable[..., PTuningModel], tmp_path: Path
) -> None:
    result = run(make(), tmp_path / "spoilt", prompt_rate=3.0, head_rate=3.0, select_by="mse")
    assert result.best.step == 0
    assert result.metrics["validation"] == pytest.approx(result.history[0].metrics, rel=1e-4)


class StopWhileFitting(Callback):
    """Presses Ctrl-C when so many of the rows have been seen."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_progress(self, what: str, done: int, total: int) -> None:
        assert what == "head"
        self.seen.append((done, total))
        if done == total:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_while_the_head_is_fitted_is_heeded_at_once_and_gone_on_from(
    make: Callable[..., PTuningModel], tmp_path: Path
) -> None:
    straight = run(make())
    stopper, data = StopWhileFitting(), {"train": scored(64), "validation": scored(48, seed=1)}
    config = FitConfig(epochs=2, prompt_rate=1e-3, head_rate=1e-3)
    with pytest.raises(Interrupted, match="interrupted at step 0 of 8 and saved"):
        fit(make(), data, config, report=False, output=tmp_path / "broken", callbacks=[stopper])
    assert stopper.seen[-1] == (64, 64)
    resumed = fit(make(), data, config, report=False, output=tmp_path / "broken", resume=True)
    assert resumed.history == straight.history


def test_a_resumed_run_does_not_fit_its_head_again(make: Callable[..., PTuningModel], tmp_path: Path) -> None:
    straight = run(make(), tmp_path / "straight")
    data = {"train": scored(64), "validation": scored(48, seed=1)}
    config = FitConfig(epochs=2, prompt_rate=1e-3, head_rate=1e-3)
    with pytest.raises(Interrupted):
        fit(make(), data, config, report=False, output=tmp_path / "broken", callbacks=[StopAfter(3)])
    resumed = fit(make(), data, config, report=False, output=tmp_path / "broken", resume=True)
    assert resumed.history == straight.history
    assert resumed.metrics == straight.metrics


# ------------------------------------------------------------------------------- large first logits


def enlarged(model: PTuningModel, factor: float) -> dict[str, torch.Tensor]:
    """``model``'s head with its last layer times ``factor``, and what it is now."""
    values = {name: value.detach().clone() for name, value in model.head.named().items()}
    values = {
        name: value * factor if name.startswith("classifier") else value for name, value in values.items()
    }
    model.head.copy_(values)
    return values


def logits_on(model: PTuningModel, rows: list[Any]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.stack([model(*_inputs(row)).logits[0] for row in rows])


@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_an_untrained_head_with_large_logits_begins_smaller(
    make: Callable[..., PTuningModel], pooling: str
) -> None:
    """The same answers, only less sure of them: the last layer is scaled, and nothing else."""
    model = make(CLASSES, pooling=pooling)
    tokens, targets = _tokens(model, alike(30))
    values = enlarged(model, 400)
    before = logits_on(model, tokens)
    soften_head(model, Split(rows=tokens, targets=targets), lambda split, logits: (2.0, 0.7))
    after = logits_on(model, tokens)
    assert before.square().mean().sqrt() > 2 * FIRST_LOGITS
    assert float(after.square().mean().sqrt()) == pytest.approx(FIRST_LOGITS, rel=1e-3)
    torch.testing.assert_close(after / after.norm(), before / before.norm())
    changed = {name for name, value in model.head.named().items() if not torch.equal(value, values[name])}
    assert changed == {"classifier.weight"} | (
        {"classifier.bias"} if values["classifier.bias"].any() else set()
    )


@pytest.mark.parametrize(
    ("factor", "loss", "choices"),
    [
        (1, 2.0, {}),  # MiniLM's size
        (400, 0.6, {}),  # better than the constant answer: it has been trained
        (400, 2.0, {"train_head": False}),
        (math.nan, 2.0, {}),
    ],
)
def test_other_heads_begin_as_they_are(
    factor: float, loss: float, choices: Any, make: Callable[..., PTuningModel]
) -> None:
    model = make(CLASSES, pooling="native", **choices)
    tokens, targets = _tokens(model, alike(10))
    values = enlarged(model, factor)
    soften_head(model, Split(rows=tokens, targets=targets), lambda split, logits: (loss, 0.7))
    for name, value in model.head.named().items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=0, equal_nan=True)


def test_a_run_makes_large_first_logits_small_and_keeps_a_trained_head(
    make: Callable[..., PTuningModel],
) -> None:
    """Learning rates of nearly nothing, so that the head of the first step is the head before it."""
    still = FitConfig(num_train_epochs=1, learning_rate=1e-30, head_learning_rate=1e-30)
    data = {"train": alike(40), "validation": alike(20, seed=1)}
    model = make(CLASSES, pooling="native")
    enlarged(model, 400)
    fit(model, data, still)
    rows, _ = _tokens(model, data["train"])
    assert float(logits_on(model, rows).square().mean().sqrt()) == pytest.approx(FIRST_LOGITS, rel=0.01)
    enlarged(model, 400)
    right = torch.tensor([row["label"] for row in data["train"]])
    answers = logits_on(model, rows).argmax(1) == right
    known = [row for row, is_right in zip(data["train"], answers.tolist(), strict=True) if is_right]
    assert 0 < len(known) < 40
    fit(model, {**data, "train": known}, still)  # large logits again, and all of them right
    assert float(logits_on(model, rows).square().mean().sqrt()) > 2 * FIRST_LOGITS
