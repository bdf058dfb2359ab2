"""A run that went wrong says what was seen and what to try; one that went well says nothing."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ptuning import DeepPrompt, FitConfig, Predictor, PTuningModel, Task, TrainResult, fit
from ptuning.adapters import load
from ptuning.cli import main
from ptuning.cli.tables import as_options
from ptuning.errors import TrainingDiverged
from ptuning.model.targets import loss_of
from ptuning.training.diagnosis import Reference, diagnose, not_finite
from ptuning.training.metrics import Baseline, Selection, effective_rows, measure, standard_error
from ptuning.training.records import Diagnosis, Evaluation

Rows = Callable[..., list[dict[str, Any]]]
Files = Callable[..., Path]
TASK = Task(problem_type="single_label_classification", labels=("negative", "positive"))

REFERENCE = Reference(
    constant=0.69,
    untrained=0.69,
    learning_rate=0.03,
    head_learning_rate=0.01,
    depth="deep",
    first_layer=0,
    virtual_tokens=20,
    weighted=False,
)


def found(
    train: Sequence[float],
    values: Sequence[float | None],
    validation: Sequence[float] | None = None,
    *,
    metric: str = "accuracy",
    floor: float = 0.5,
    rows: int = 300,
    steps: int = 40,
    rates: tuple[float, float] = (0.03, 0.01),
    stopped_early: bool = False,
    also: dict[str, float] | None = None,
    floor_also: dict[str, float] | None = None,
    **reference: Any,
) -> TrainResult:
    """What a run of an epoch an evaluation with these figures would have found.

    Args:
        validation: Its losses; the training ones if left out.
        steps: An epoch.
        also: Further metrics, at every evaluation.
        floor_also: Of the constant answer.
    """
    history = tuple(
        Evaluation(
            epoch=number,
            step=number * steps,
            train_loss=loss,
            metrics={"loss": seen, **({} if value is None else {metric: value}), **(also or {})},
        )
        for number, (loss, value, seen) in enumerate(zip(train, values, validation or train, strict=True), 1)
    )
    best = max(history, key=lambda each: Selection(metric=metric).key(each.metrics))
    result = TrainResult(
        metric=metric,
        best=best,
        history=history,
        metrics={"validation": best.metrics},
        baseline={"validation": {metric: floor, **(floor_also or {})}},
        baseline_rule="always 'positive'",
        trained=1,
        total=2,
        seconds=1.0,
        examples_per_second=1.0,
        stopped_early=stopped_early,
        setting={
            "rows": {"train": 500, "validation": rows},
            "rates": {"prompt": rates[0], "head": rates[1]},
            "reference": asdict(replace(REFERENCE, **reference)),
        },
    )
    return diagnosed(result)


def diagnosed(result: TrainResult) -> TrainResult:
    """As a run ends."""
    return replace(result, diagnosis=diagnose(result))


def told(result: TrainResult, kind: str) -> str:
    """The paragraph of a run that has to have this diagnosis."""
    result = diagnosed(result)
    diagnosis = result.diagnosis
    assert diagnosis is not None, "no diagnosis"
    assert diagnosis.kind == kind, diagnosis.paragraph
    assert result.advice == diagnosis.paragraph
    assert "\n" not in diagnosis.paragraph
    assert "  " not in diagnosis.paragraph
    return diagnosis.paragraph


# ---------------------------------------------------------------------- runs that went well say nothing

#: Of real runs: MiniLM on 500 rows of SST-2, on the demo, on MRPC; training loss, metric, validation loss.
SST2 = (
    (0.67, 0.487, 0.327, 0.278, 0.155, 0.107),
    (0.7, 0.807, 0.793, 0.817, 0.82, 0.827),
    (0.614, 0.416, 0.472, 0.381, 0.435, 0.406),
)
DEMO = (
    (1.756, 1.119, 0.529, 0.297, 0.137, 0.056, 0.031, 0.018, 0.013, 0.01, 0.009, 0.008),
    (0.702, 0.774, 0.81, 0.857, 0.821, 0.845, 0.845, 0.81, 0.845, 0.821, 0.833, 0.821),
    (1.558, 0.777, 0.634, 0.487, 0.475, 0.497, 0.435, 0.474, 0.441, 0.457, 0.453, 0.452),
)
MRPC = (
    (0.643, 0.568, 0.483, 0.42, 0.354, 0.299, 0.245, 0.188, 0.148, 0.125),
    (0.645, 0.652, 0.733, 0.755, 0.797, 0.775, 0.782, 0.784, 0.792, 0.799),
    (0.641, 0.56, 0.477, 0.482, 0.458, 0.556, 0.486, 0.58, 0.724, 0.708),
)
#: Of a tiny model on 32 mislabelled rows: the best of them is luck, and the loss is the better judge.
LUCKY = (
    (0.698, 0.724, 0.668, 0.579, 0.484, 0.379, 0.297, 0.183, 0.125, 0.09, 0.088, 0.088),
    (0.605, 0.82, 0.615, 0.62, 0.72, 0.79, 0.765, 0.735, 0.755, 0.75, 0.755, 0.755),
    (0.62, 0.58, 0.64, 0.64, 0.56, 0.44, 0.46, 0.49, 0.49, 0.53, 0.53, 0.53),
)
HEALTHY = {
    "sst2": found(*SST2, floor=0.567),
    "demo": found(*DEMO, floor=1 / 6, rows=84, constant=math.log(6), untrained=math.log(6)),
    "mrpc-the-loss-rises-the-metric-too": found(*MRPC, floor=0.645, rows=408, constant=0.65),
    "the-best-is-luck": found(*LUCKY, rows=200),
    "best-at-last": found((0.6, 0.5, 0.4, 0.3), (0.6, 0.7, 0.75, 0.8)),
    "one-evaluation": found((0.6,), (0.8,)),
    "one-bad-look-at-the-end": found((0.6, 0.3, 0.2), (0.7, 0.9, 0.7), (0.5, 0.3, 0.8)),
    "few-rows-say-little": found(
        (0.6, 0.4, 0.2, 0.1, 0.08, 0.07), (0.8, 0.9, 0.8, 0.7, 0.8, 0.7), (0.6, 0.4, *[0.5] * 4), rows=10
    ),
    "many-rows-make-little-matter": found(
        (0.6, 0.4, 0.2, 0.1), (0.8, 0.9, 0.885, 0.885), (0.5, 0.4, 0.5, 0.6), rows=10**6
    ),
    "done-in-half-the-run": found(
        (0.6, 0.4, 0.2, 0.1, 0.06, 0.03, 0.02, 0.01, 0.01, 0.01), (0.7, 0.8, *[0.9] * 8)
    ),
    "a-late-gain": found((0.06, *[0.01] * 11), (*[0.8] * 11, 0.9), [0.3] * 12),
    "stopped-by-patience": found((0.05, *[0.01] * 11), [0.9] * 12, stopped_early=True),
    "too-short-to-be-early": found((0.06, 0.05, 0.03, 0.02, 0.01), [0.9] * 5),
    "slow-but-falling": found([0.66 - 0.02 * epoch for epoch in range(12)], [0.7] * 12),
    "pearson": found(
        (0.9, 0.7, 0.5, 0.45, 0.4), (0.5, 0.7, 0.8, 0.81, 0.8), metric="pearson", floor=0.0, constant=1.0
    ),
    "pearson-undefined-at-first": found(
        (1.0, 0.7, 0.5, 0.4), (None, 0.7, 0.8, 0.8), metric="pearson", floor=0.0, constant=1.0
    ),
    "mse": found((1.0, 0.6, 0.4), (2.0, 1.2, 0.9), metric="mse", floor=2.1, constant=1.0, untrained=1.0),
    "no-setting": replace(found(*SST2), setting={}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_a_good_run_has_no_diagnosis(name: str) -> None:
    assert HEALTHY[name].diagnosis is None, HEALTHY[name].advice
    assert HEALTHY[name].advice is None


# -------------------------------------------------------------------------------------- not learned


def test_a_loss_that_did_not_move_asks_for_the_recipes_rate() -> None:
    paragraph = told(found([0.693] * 4, (0.49, 0.5, 0.49, 0.49), rates=(1e-6, 1e-6)), "not learned")
    assert paragraph.startswith(
        "NOT LEARNED: on the validation rows the best accuracy is 0.500, and always 'positive' scores 0.500. "
        "The training loss did not fall: it was 0.693 at the first evaluation and 0.693 at the end (a "
        "constant answer: 0.69): the learning rates are too low."
    )
    assert (
        "Try, in this order: fit.learning_rate=0.03 (it was 1e-06) with fit.head_learning_rate=0.01"
        in paragraph
    )
    assert "ptuning check-data" in paragraph


def test_a_loss_that_does_not_move_at_the_usual_rate_has_other_causes_too() -> None:
    paragraph = told(found([0.69] * 4, [0.49] * 4), "not learned")
    assert "or the texts do not determine the labels" in paragraph
    assert "fit.learning_rate=0.09 (it was 0.03)" in paragraph
    assert "fit.learning_rate=0.01 (it was 0.03)" in paragraph
    assert "fit.num_train_epochs=12 (there were 4)" in paragraph


@pytest.mark.parametrize(
    ("train", "rate"),
    [((1.234, 0.766, 0.79, 0.756, 0.696, 0.752), 3.0), ((0.708, 0.695, 0.71, 0.699, 0.697, 0.705), 0.5)],
    ids=["above", "at-the-constant"],
)  # of real runs
def test_too_high_a_rate_is_told_from_too_low_a_one(train: Sequence[float], rate: float) -> None:
    paragraph = told(found(train, [0.43] * 6, rates=(rate, rate)), "not learned")
    assert "the learning rates are too high" in paragraph
    assert (
        f"fit.learning_rate=0.03 (it was {rate:g}); fit.head_learning_rate=0.01 (it was {rate:g})"
        in paragraph
    )


def test_rows_learned_by_heart_ask_for_more_of_them() -> None:
    paragraph = told(found((0.6, 0.4, 0.2, 0.05, 0.03, 0.02), [0.5] * 6), "not learned")
    assert "the model memorised the training rows (500)" in paragraph
    assert "Try, in this order: more training rows; check the labels with: ptuning check-data" in paragraph
    assert "prompt.num_virtual_tokens=10 (there were 20)" in paragraph


def test_hardly_any_steps_ask_for_epochs() -> None:
    paragraph = told(found((0.68, 0.66), (0.5, 0.5), steps=3), "not learned")
    assert "There were only 6 optimizer steps" in paragraph
    assert "Try, in this order: fit.num_train_epochs=100 (there were 2)" in paragraph


def test_the_same_answer_for_every_row_asks_for_class_weights() -> None:
    same = {"f1": 0.9, "matthews": 0.0}
    sure = {
        "loss": 0.42,
        "auc": 0.5,
    }  # of a constant answer, which the loss and AUC of rows alike need not equal
    options = {"floor": 0.85, "also": {**same, "auc": 0.6}, "floor_also": same | sure, "constant": 0.42}
    train = (0.6, 0.45, 0.43, 0.42)
    paragraph = told(found(train, [0.85] * 4, **options), "not learned")
    assert "Every row gets the same answer" in paragraph
    assert "fit.class_weights=balanced with fit.select_by=matthews" in paragraph
    for otherwise in ({"weighted": True}, {"floor": 0.5}, {"also": {"f1": 0.91, "matthews": 0.1}}):
        other = {**options, **otherwise}
        assert "same answer" not in told(found(train, [other["floor"]] * 4, **other), "not learned")
    labels = {"f1_micro": 0.0, "f1_macro": 0.0, "exact_match": 0.7}
    several = {"also": labels, "floor_also": labels, "metric": "f1_micro", "floor": 0.0, "constant": 0.42}
    paragraph = told(found(train, [0.0] * 4, **several), "not learned")
    assert "fit.class_weights=balanced with fit.select_by=f1_macro" in paragraph


def test_what_selects_by_the_loss_is_held_against_that_of_a_constant_answer() -> None:
    paragraph = told(found([0.69] * 4, [0.7] * 4, [0.7] * 4, metric="loss", floor=0.69), "not learned")
    assert "on the validation rows the best loss is 0.700, and a constant answer scores 0.690" in paragraph


def test_better_by_chance_alone_is_not_learned() -> None:
    """Of a real run: a rate of 1e-4 for six epochs; one of 300 rows is better than always the same."""
    train = (0.693, 0.691, 0.691, 0.69, 0.69, 0.69)
    values = (0.557, 0.567, 0.57, 0.567, 0.567, 0.567)
    result = found(train, values, floor=0.567, rates=(1e-4, 1e-4), constant=0.684)
    assert result.beats_baseline
    assert not result.learned
    paragraph = told(result, "not learned")
    assert "best accuracy is 0.570" in paragraph
    assert "scores 0.567 (with 300 rows, the difference may be chance)" in paragraph
    assert "fit.learning_rate=0.03 (it was 0.0001)" in paragraph
    sure = found(train, values, floor=0.567, rates=(1e-4, 1e-4), constant=0.684, rows=10**6)
    assert sure.diagnosis is None
    assert sure.learned


def test_an_input_prompt_is_to_be_made_deep_first() -> None:
    paragraph = told(found([0.69] * 4, [0.5] * 4, depth="input"), "not learned")
    assert "Try, in this order: prompt.depth=deep; " in paragraph
    assert "prompt.depth" not in told(found([0.69] * 4, [0.5] * 4), "not learned")


def test_an_undefined_metric_and_a_result_of_an_older_version_have_a_paragraph_too() -> None:
    paragraph = told(
        found((1.0, 1.0), (None, None), metric="pearson", floor=0.0, constant=1.0), "not learned"
    )
    assert paragraph.startswith(
        "NOT LEARNED: on the validation rows the best pearson is undefined, and always"
    )
    paragraph = told(replace(found((0.7,), (0.4,)), setting={}), "not learned")
    assert paragraph.startswith("NOT LEARNED: on the validation rows the best accuracy is 0.400")
    assert "fit.learning_rate" in paragraph


# ----------------------------------------------------------------------------------------- diverged


def test_a_loss_that_rises_to_stay_has_diverged_even_if_a_good_checkpoint_was_kept() -> None:
    result = found((0.6, 0.3, 0.2, 0.9, 1.4, 1.2), (0.7, 0.8, 0.85, 0.6, 0.5, 0.5), rates=(0.3, 0.01))
    assert result.beats_baseline
    paragraph = told(result, "diverged")
    assert paragraph.startswith("DIVERGED: the training loss rose from 0.45 to 1.3 and stayed there")
    assert "The checkpoint of epoch 3 was kept" in paragraph
    assert "fit.learning_rate=0.03 (it was 0.3); fit.head_learning_rate=0.003 (it was 0.01)" in paragraph


def test_a_loss_that_ends_above_an_untrained_models_has_diverged() -> None:
    paragraph = told(found((5.0, 3.0, 2.0, 1.5, 1.2, 1.1), [0.6] * 6), "diverged")
    assert "the training loss ended at 1.15 (a constant answer: 0.69)" in paragraph
    assert found((5.0, 3.0, 1.0, 0.6, 0.4, 0.3), (0.5, 0.5, 0.6, 0.7, 0.7, 0.8)).diagnosis is None, (
        "came back"
    )


def test_what_is_not_finite_names_the_rates_to_try() -> None:
    error = not_finite("seen", got="loss nan", kept="kept", rates=(0.03, 0.01))
    assert str(error) == (
        "seen: got loss nan, expected finite numbers; kept; lower fit.learning_rate to 0.003 (it was 0.03) "
        "or fit.head_learning_rate to 0.001 (it was 0.01), or set precision=fp32"
    )
    assert str(not_finite("seen")).startswith("seen, expected finite numbers; lower fit.learning_rate or ")


# -------------------------------------------------------------------------------------- overfitting

FALLS = (
    (0.6, 0.4, 0.3, 0.2, 0.1, 0.05),
    (0.7, 0.85, 0.8, 0.76, 0.75, 0.75),
    (0.6, 0.4, 0.5, 0.6, 0.6, 0.6),
)


def test_validation_that_falls_while_training_goes_on_is_overfitting() -> None:
    paragraph = told(found(*FALLS), "overfitting")
    assert paragraph.startswith(
        "NOTE: overfitting: on the validation rows accuracy fell from 0.850 in epoch 2 to 0.750 by "
        "epoch 6 (the standard error of 300 rows is 0.021), while the training loss fell from 0.4 to 0.05 "
        "(the validation loss went from 0.4 to 0.6). The checkpoint of epoch 2 was kept."
    )
    for option in (
        "fit.patience=3 or fit.num_train_epochs=3 fit.learning_rate=0.03 fit.head_learning_rate=0.01",
        "prompt.num_virtual_tokens=10 (there were 20)",
        "fit.learning_rate=0.01 (it was 0.03)",
        "fit.weight_decay=0.01",
        "more training rows",
    ):
        assert option in paragraph
    assert "fit.patience" not in told(found(*FALLS, stopped_early=True), "overfitting")


def test_overfitting_needs_more_than_noise_a_falling_training_loss_and_a_rising_validation_loss() -> None:
    train, values, validation = FALLS
    assert found(train, values, validation, rows=30).diagnosis is None
    assert found([0.4] * 6, values, validation).diagnosis is None
    assert found(train, values, (0.6, 0.4, 0.4, 0.39, 0.38, 0.38)).diagnosis is None


def test_a_loss_worse_than_a_constant_answers_makes_a_smaller_fall_count() -> None:
    """Of a real run on 300 rows with six of ten labels drawn anew."""
    train = (0.701, 0.684, 0.613, 0.503, 0.347, 0.188, 0.101, 0.041, 0.016, 0.007, 0.004, 0.003)
    values = (0.567, 0.6, 0.723, 0.707, 0.7, 0.69, 0.723, 0.667, 0.69, 0.693, 0.697, 0.693)
    validation = [0.689, 0.663, 0.58, 0.558, 0.622, 0.676, 0.706, 0.904, 0.923, 0.945, 1.001, 1.037]
    told(found(train, values, validation, floor=0.567), "overfitting")
    assert found(train, values, [min(each, 0.68) for each in validation], floor=0.567).diagnosis is None


def test_where_less_is_better_it_rises() -> None:
    train, values, validation = (
        (1.0, 0.5, 0.3, 0.2, 0.1),
        (2.0, 1.0, 1.6, 1.7, 1.8),
        (1.0, 0.5, 0.8, 0.85, 0.9),
    )
    result = found(train, values, validation, metric="mse", floor=2.1, constant=1.0)
    paragraph = told(result, "overfitting")
    assert "mse rose from 1.000 in epoch 2 to 1.750" in paragraph


# ---------------------------------------------------------------------------------------- saturated


def test_rows_that_were_learned_long_ago_need_fewer_epochs() -> None:
    paragraph = told(found((0.5, 0.2, 0.05, *[0.01] * 9), (0.8, 0.9, *[0.9] * 10), [0.3] * 12), "saturated")
    assert paragraph.startswith(
        "NOTE: saturated: in epoch 4 of 12 the training loss was down to 0.01, and acc"
    )
    assert "(best 0.900). The checkpoint of epoch 2 was kept. " in paragraph
    shorter = "fit.patience=3 or fit.num_train_epochs=6 fit.learning_rate=0.03 fit.head_learning_rate=0.01"
    assert f"For the same in less time: {shorter}; a better result needs" in paragraph


def test_a_loss_that_stands_early_and_high_asks_for_a_prompt_that_reaches_further() -> None:
    train, values = (0.66, 0.6, 0.55, *[0.54] * 9), (0.6, 0.65, *[0.7] * 10)
    paragraph = told(found(train, values, first_layer=3), "saturated")
    assert "from epoch 4 of 12 on the training loss stayed at 0.54 (a constant answer: 0.69)" in paragraph
    order = (
        "fit.learning_rate=0.09 (it was 0.03)",
        "prompt.first_layer=0",
        "prompt.num_virtual_tokens=40 (there were 20)",
        "ptuning check-data",
    )
    places = [paragraph.index(option) for option in order]
    assert places == sorted(places)
    assert "first_layer" not in told(found(train, values), "saturated")
    assert found(train, (*values[:-1], 0.8)).diagnosis is None, "the metric still rose"
    assert found((*train[:8], 0.5, 0.48, 0.46, 0.44), values).diagnosis is None, "the loss still fell"


# -------------------------------------------------------------------------------------- parts of it


def test_units_are_the_first_to_go() -> None:
    paragraph = told(found(*FALLS, virtual_units=20), "overfitting")
    assert "prompt.num_virtual_units=0 (there were 20)" in paragraph
    assert "num_virtual_tokens" not in paragraph


def test_the_most_serious_comes_first_and_only_two_kinds_are_failures() -> None:
    train, values, validation = FALLS
    assert told(found(train, values, validation, floor=0.86), "not learned")
    rises = (*train[:2], 0.9, 1.5, 1.5, 1.5)
    assert told(found(rises, values, validation), "diverged")
    kinds = ("not learned", "diverged", "overfitting", "saturated")
    assert [Diagnosis(kind=kind, paragraph="").serious for kind in kinds] == [True, True, False, False]


def test_results_keep_their_diagnosis() -> None:
    result = found(*FALLS)
    values = json.loads(json.dumps(result.to_dict()))
    assert values["diagnosis"] == {"kind": "overfitting", "paragraph": result.advice}
    again = TrainResult.from_dict(values)
    assert again.diagnosis == result.diagnosis
    assert again.to_dict() == result.to_dict()
    assert found(*SST2).to_dict()["diagnosis"] is None


@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 0.5)])
def test_the_constant_answers_loss_is_the_least_that_a_constant_answer_has(
    weights: tuple[float, ...] | None,
) -> None:
    draw = np.random.default_rng(0)
    weigh = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    one = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
    many = Task(problem_type="multi_label_classification", labels=("a", "b", "c"))
    classes = draw.choice(3, size=60, p=(0.6, 0.3, 0.1)).astype(float)
    sets = (draw.random((60, 3)) < (0.5, 0.2, 0.1)).astype(float)

    def single(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.expand(60, 3), torch.tensor(classes).long(), weight=weigh)

    def multiple(logits: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logits.expand(60, 3), torch.tensor(sets), pos_weight=weigh)

    for loss, targets, task in ((single, classes, one), (multiple, sets, many)):
        logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        untrained = loss(logits.detach()).item()
        search = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

        def closure(loss: Any = loss, logits: Any = logits, search: Any = search) -> Any:
            search.zero_grad()
            value = loss(logits)
            value.backward()
            return value

        search.step(closure)
        least = loss(logits.detach()).item()
        assert task.kind.reference_losses(targets, task, weights) == pytest.approx(
            (least, untrained), rel=1e-5
        )


@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 0.5)])
def test_the_baselines_loss_is_that_of_its_answer_over_other_rows(weights: tuple[float, ...] | None) -> None:
    """By the training rows' shares, as a model's loss is taken; where a label is new it is finite."""
    draw = np.random.default_rng(0)
    weigh = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    shares = {"single_label_classification": (0.6, 0.4, 0.0), "multi_label_classification": (0.5, 0.2, 0.0)}
    for kind, drawn in shares.items():
        task = Task(problem_type=kind, labels=("a", "b", "c"))
        if task.problem_type == "multi_label_classification":
            train, held = ((draw.random((60, 3)) < part).astype(float) for part in (drawn, (0.3, 0.3, 0.3)))
            share = torch.tensor(np.clip(train.mean(0), 0.5 / 60, None))
            logits = (share / (1 - share)).log()
            logits = logits if weigh is None else logits + weigh.log()
        else:
            train, held = (draw.choice(3, size=60, p=part).astype(float) for part in (drawn, (0.3, 0.3, 0.4)))
            share = torch.tensor(np.maximum(np.bincount(train.astype(int), minlength=3), 0.5))
            logits = (share if weigh is None else share * weigh).log()
        targets = torch.tensor(held) if held.ndim == 2 else torch.tensor(held).long()
        baseline = Baseline.of(train, task)
        assert Baseline.read(json.loads(json.dumps(asdict(baseline)))) == baseline
        found = baseline.measure(held, task, weights)
        assert found["loss"] == pytest.approx(loss_of(logits.expand(60, 3), targets, task, weigh).item())
        assert found["auc"] == 0.5
        older = {"rule": baseline.rule, "logits": baseline.logits}
        del found["loss"]
        assert Baseline.read(older).measure(held, task) == found


def test_a_regressions_constant_answer_is_the_mean() -> None:
    targets = np.array([1.0, 2.0, 6.0])
    standard = Task(problem_type="regression", mean=3.0, scale=2.0)
    assert standard.kind.reference_losses(targets, standard, None) == pytest.approx(
        (targets.var() / 4, targets.var() / 4)
    )
    plain = Task(problem_type="regression")
    assert plain.kind.reference_losses(targets, plain, None) == pytest.approx(
        (targets.var(), np.square(targets).mean())
    )
    assert Baseline.of(targets, standard).measure(np.array([3.0, 7.0]), standard)["loss"] == pytest.approx(
        2.0
    )


def test_noise_is_the_binomial_one_and_never_nothing() -> None:
    assert standard_error("accuracy", 0.5, 400) == pytest.approx(0.025, rel=1e-2)
    assert standard_error("accuracy", 0.9, 400) == pytest.approx(0.015, rel=2e-2)
    for metric in ("accuracy", "f1", "auc", "pearson", "matthews", "exact_match"):
        assert standard_error(metric, 1.0, 20) > 0
        assert standard_error(metric, 0.7, 20) > standard_error(metric, 0.7, 200)
    draw = np.random.default_rng(0)
    errors = draw.standard_normal((2000, 100)) ** 2
    assert standard_error("mse", 1.0, 100) == pytest.approx(errors.mean(1).std(), rel=0.1)
    pairs = draw.multivariate_normal((0, 0), ((1, 0.6), (0.6, 1)), size=(2000, 100))
    correlations = [np.corrcoef(each.T)[0, 1] for each in pairs]
    assert standard_error("pearson", 0.6, 100) == pytest.approx(np.std(correlations), rel=0.1)


@pytest.mark.parametrize("share", [0.5, 0.05, 0.02])
def test_noise_of_a_rare_class_is_that_of_its_few_rows(share: float) -> None:
    """Simulated: 1,000 rows of which a logit tells the class about as well as models do."""
    draw, task = np.random.default_rng(0), Task(problem_type="single_label_classification", labels=(0, 1))
    metrics = ("f1", "matthews", "auc")
    values, rows = [], []
    for _ in range(300):
        targets = (draw.random(1000) < share).astype(float)
        logit = 3.3 * targets + draw.standard_normal(1000) - 1.6 + math.log(share / (1 - share)) / 3.3
        found = measure(np.stack([np.zeros(1000), logit], 1), targets, task)
        values.append([found[metric] for metric in metrics])
        rows.append([effective_rows(metric, targets, task) for metric in metrics])
    for metric, seen, effective in zip(metrics, np.array(values).T, np.array(rows).T, strict=True):
        said = standard_error(metric, float(seen.mean()), float(effective.mean()))
        assert 0.6 * seen.std() < said < 3.5 * seen.std(), metric


def test_how_many_rows_a_metric_hangs_on() -> None:
    def found(metric: str, targets: Any, labels: int = 2, kind: str = "single_label_classification") -> float:
        task: Any = Task(problem_type=kind, labels=tuple(range(labels)))
        return effective_rows(metric, np.array(targets, dtype=float), task)

    unequal = [0] * 96 + [1] * 4
    assert found("accuracy", unequal) == found("loss", unequal) == 100
    assert found("f1", unequal) == found("matthews", unequal) == found("auc", unequal) == 8
    assert found("f1", [1] * 96 + [0] * 4) == 100
    assert found("matthews", [1] * 96 + [0] * 4) == 8
    assert found("f1", [0, 1] * 50) == found("matthews", [0, 1] * 50) == 100
    assert found("f1", list(range(4)) * 25, 4) == 100
    assert found("f1", [0] * 90 + [1] * 9 + [2], 3) == pytest.approx(9 / (1 / 100 + 1 / 18 + 1 / 2))
    several = [[1, 0]] * 10 + [[0, 0]] * 89 + [[0, 1]]
    assert found("f1_micro", several, kind="multi_label_classification") == 22
    assert found("f1_macro", several, kind="multi_label_classification") == pytest.approx(
        4 / (1 / 20 + 1 / 2)
    )
    assert found("exact_match", several, kind="multi_label_classification") == 100
    assert found("auc", [[0, 0]] * 9, kind="multi_label_classification") == 9


# ------------------------------------------------------------------------- runs that were made to fail


@pytest.fixture
def trained(tiny_folder: Path) -> Callable[..., TrainResult]:
    """A run of a tiny model on these rows, at rates that suit it unless others are given."""

    def run(
        train: list[dict[str, Any]],
        validation: list[dict[str, Any]],
        output: Path | None = None,
        **options: Any,
    ) -> TrainResult:
        torch.manual_seed(0)
        model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=TASK)
        usual = {"batch_size": 8, "learning_rate": 3e-2, "head_learning_rate": 3e-2}
        data = {"train": train, "validation": validation}
        return fit(model, data, FitConfig(**{**usual, **options}), report=False, output=output)

    return run


def redrawn(rows: list[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """The rows with labels drawn anew, ``share`` of them positive."""
    draw = random.Random(seed)
    return [{**row, "label": "positive" if draw.random() < share else "negative"} for row in rows]


def flipped(rows: list[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """The rows with about ``share`` of the labels turned round."""
    draw = random.Random(seed)
    other = {"positive": "negative", "negative": "positive"}
    return [{**row, "label": other[row["label"]] if draw.random() < share else row["label"]} for row in rows]


def test_a_run_that_learns(trained: Callable[..., TrainResult], rows: Rows) -> None:
    result = trained(rows(96), rows(100, seed=1), epochs=6)
    assert result.metrics["validation"]["accuracy"] > 0.9
    assert result.diagnosis is None
    reference = Reference(**result.setting["reference"])
    assert reference.constant == pytest.approx(math.log(2))
    assert reference.untrained == pytest.approx(math.log(2))
    assert (reference.depth, reference.first_layer, reference.virtual_tokens) == ("deep", 0, 4)
    assert not reference.weighted
    assert 1e-3 < reference.learning_rate < 1
    weighed = trained(rows(16), rows(16, seed=1), epochs=1, class_weights=(1.0, 3.0))
    assert weighed.setting["reference"]["weighted"]
    assert weighed.setting["reference"]["constant"] == pytest.approx(
        -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    )


def test_a_rate_of_nothing(trained: Callable[..., TrainResult], rows: Rows) -> None:
    data = redrawn(rows(96), 0.5, 4), redrawn(rows(100, seed=1), 0.5, 5)
    result = trained(*data, epochs=5, learning_rate=1e-9, head_learning_rate=1e-9)
    paragraph = told(result, "not learned")
    assert "The training loss did not fall" in paragraph
    assert "the learning rates are too low" in paragraph
    usual = result.setting["reference"]["learning_rate"]
    assert f"fit.learning_rate={usual:g} (it was 1e-09)" in paragraph


@pytest.mark.parametrize("metric", ["loss", "auc"])
def test_a_rate_of_nothing_by_how_sure_the_answers_are(
    trained: Callable[..., TrainResult], rows: Rows, metric: str, tmp_path: Path
) -> None:
    turned = flipped(redrawn(rows(100, seed=1), 0.5, 5), 1.0, 0)  # so that chance does not help the AUC
    data = redrawn(rows(96), 0.5, 4), turned
    options = {"epochs": 5, "learning_rate": 1e-9, "head_learning_rate": 1e-9, "select_by": metric}
    result = trained(*data, **options, output=tmp_path / "out")
    told(result, "not learned")
    assert "It did not learn" in (tmp_path / "out" / "README.md").read_text()
    assert not load(tmp_path / "out").extra["learned"]
    good = trained(rows(96), rows(100, seed=1), epochs=6, select_by=metric)
    assert good.beats_baseline
    assert good.diagnosis is None


def test_a_huge_rate(trained: Callable[..., TrainResult], rows: Rows) -> None:
    result = trained(rows(64), rows(100, seed=1), epochs=8, learning_rate=10, head_learning_rate=10)
    paragraph = told(result, "not learned")
    assert "The training loss rose to" in paragraph
    assert "the learning rates are too high" in paragraph
    assert f"fit.learning_rate={result.setting['reference']['learning_rate']:g} (it was 10)" in paragraph


def test_a_rate_that_grows_until_what_was_learned_is_lost(
    trained: Callable[..., TrainResult], rows: Rows
) -> None:
    result = trained(
        rows(64), rows(100, seed=1), epochs=10, learning_rate=3, head_learning_rate=3, warmup=0.95
    )
    assert result.beats_baseline
    paragraph = told(result, "diverged")
    assert "the training loss rose from" in paragraph
    assert "was kept" in paragraph


def test_numbers_that_are_none(trained: Callable[..., TrainResult], rows: Rows) -> None:
    far = {"learning_rate": 1e30, "head_learning_rate": 1e30, "warmup": 0.0, "epochs": 2}
    remedy = r"lower fit.learning_rate to 1e\+29 \(it was 1e\+30\) or fit.head_learning_rate to 1e\+29"
    with pytest.raises(TrainingDiverged, match=rf"^training diverged at step \d of \d+: got loss .*{remedy}"):
        trained(rows(64), rows(20, seed=1), **far)
    with pytest.raises(TrainingDiverged, match=rf"^the logits of \d+ of 20 rows are not finite.*{remedy}"):
        trained(rows(64), rows(20, seed=1), **far, evaluate_every=1)


def test_random_labels_learned_by_heart(trained: Callable[..., TrainResult], rows: Rows) -> None:
    train = redrawn(rows(16), 0.5, 6)
    usual = max(("negative", "positive"), key=[row["label"] for row in train].count)
    # Hardly anything beats always that; without the one row, accuracy would have nothing to tell by.
    validation = [{**row, "label": usual} for row in rows(60, seed=1)]
    validation[0]["label"] = "negative" if usual == "positive" else "positive"
    result = trained(train, validation, epochs=40)
    assert "memorised the training rows" in told(result, "not learned")


def test_hardly_any_rows_once(trained: Callable[..., TrainResult], rows: Rows) -> None:
    paragraph = told(trained(rows(16), redrawn(rows(60, seed=1), 0.5, 3), epochs=1), "not learned")
    assert "There were only 2 optimizer steps" in paragraph
    assert "fit.num_train_epochs=150 (there were 1)" in paragraph


def test_one_label_nearly_always(trained: Callable[..., TrainResult], rows: Rows) -> None:
    data = redrawn(rows(64), 0.85, 1), redrawn(rows(80, seed=1), 0.85, 2)
    paragraph = told(trained(*data, epochs=2), "not learned")
    assert "fit.class_weights=balanced with fit.select_by=matthews" in paragraph


@pytest.mark.usefixtures("any_features")
def test_a_few_mislabelled_rows_for_long(trained: Callable[..., TrainResult], rows: Rows) -> None:
    result = trained(flipped(rows(16), 0.5, 0), rows(100, seed=1), epochs=20)
    paragraph = told(result, "overfitting")
    assert f"The checkpoint of epoch {result.best.epoch:g} was kept" in paragraph


def test_an_easy_task_for_far_too_long(trained: Callable[..., TrainResult], rows: Rows) -> None:
    result = trained(rows(160), rows(60, seed=1), epochs=20)
    paragraph = told(result, "saturated")
    assert "the training loss was down to" in paragraph


def test_a_model_that_is_right_from_the_start_and_never_moves(
    trained: Callable[..., TrainResult], rows: Rows, tiny_folder: Path
) -> None:
    """Labels as the untrained model gives them: all right, by a loss as high as it was."""
    torch.manual_seed(0)  # as in the run
    model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=TASK)
    texts = [row["text"] for row in rows(400)]
    answers = [prediction.label for prediction in Predictor(model=model)(texts)]
    data = [{"text": text, "label": label} for text, label in zip(texts, answers, strict=True)]
    each = [[row for row in data if row["label"] == label] for label in TASK.labels]
    size = min(40, *map(len, each))
    assert size >= 10
    data = [*each[0][:size], *each[1][:size]]
    result = trained(data, data, epochs=8, learning_rate=1e-9, head_learning_rate=1e-9)
    assert result.metrics["validation"]["accuracy"] == 1
    paragraph = told(result, "saturated")
    assert "the training loss stayed at" in paragraph
    assert "(it was 1e-09)" in paragraph


# ----------------------------------------------------------------------------------- at the command line


@pytest.fixture
def ended(
    tiny_folder: Path, tmp_path: Path, jsonl: Files, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., str]:
    """What ``ptuning train`` prints on these rows; it has to end well."""
    monkeypatch.chdir(tmp_path)

    def run(train: list[dict[str, Any]], validation: list[dict[str, Any]], **options: Any) -> str:
        values: dict[str, Any] = {
            "backbone": tiny_folder,
            "precision": "fp32",
            "device": "cpu",
            "output": "out",
            "report": "false",
        }
        values |= {"data.validation": jsonl("validation.jsonl", validation), "prompt.num_virtual_tokens": 4}
        values |= {"fit.batch_size": 8, "fit.learning_rate": 3e-2, "fit.head_learning_rate": 3e-2}
        values |= {f"fit.{name}": value for name, value in options.items()}
        argv = [part for name, value in values.items() for part in (f"--{name}", str(value))]
        assert main(["train", str(jsonl("train.jsonl", train)), *argv]) == 0
        printed: str = capsys.readouterr().err
        return printed

    return run


def test_a_failure_is_said_once_at_the_end_in_one_line(ended: Callable[..., str], rows: Rows) -> None:
    err = ended(rows(64), rows(100, seed=1), epochs=4, learning_rate=10, head_learning_rate=10)
    kept = json.loads(Path("out.run/result.json").read_text())["diagnosis"]
    assert kept["kind"] == "not learned"
    assert err.count("NOT LEARNED") == 1
    assert err.splitlines()[-1] == as_options(kept["paragraph"])


def test_a_note_is_said_once_at_the_end_in_one_line(ended: Callable[..., str], rows: Rows) -> None:
    err = ended(flipped(rows(16), 0.5, 0), rows(100, seed=1), epochs=20)
    kept = json.loads(Path("out.run/result.json").read_text())["diagnosis"]
    assert kept["kind"] in ("overfitting", "saturated")
    assert err.count("NOTE: ") == 1
    assert err.splitlines()[-1] == as_options(kept["paragraph"])


def test_a_good_run_ends_without_one(ended: Callable[..., str], rows: Rows) -> None:
    err = ended(rows(96), rows(100, seed=1), epochs=6)
    assert "NOT" not in err
    assert "DIVERGED" not in err
    assert json.loads(Path("out.run/result.json").read_text())["diagnosis"] is None


def test_failures_are_loud_and_notes_are_not() -> None:
    from rich.console import Console

    from ptuning.cli.tables import print_diagnosis

    styles = []
    for result in (found([0.69] * 3, [0.4] * 3), found(*FALLS), found(*SST2)):
        console = Console(
            record=True, width=60, force_terminal=True, file=io.StringIO(), color_system="standard"
        )
        print_diagnosis(diagnosed(replace(result, baseline_rule="always '[bold]'")), console)
        styles.append(console.export_text(styles=True))
    assert styles[0].startswith("\n\x1b[1;31mNOT LEARNED")
    assert "always '[bold]'" in styles[0], "a label is no markup"
    assert styles[1].startswith("\n\x1b[33mNOTE: ")
    assert styles[2] == ""


def test_several_runs_are_marked_in_their_table() -> None:
    from ptuning.cli.tables import several_table
    from ptuning.training.records import OneRun, SeveralResult

    good, bad = (
        OneRun(name=name, values={"learning_rate": 0.03}, result=result)
        for name, result in (("good", found(*SST2)), ("bad", found(*FALLS)))
    )

    def columns(*runs: OneRun) -> dict[str, list[Any]]:
        table = several_table(SeveralResult(metric="accuracy", runs=runs, best=good, adapter=Path("nowhere")))
        return {str(column.header): list(column.cells) for column in table.columns}

    assert columns(good, bad)["diagnosis"] == ["", "overfitting"]
    assert "diagnosis" not in columns(good)
    assert [run.to_dict()["diagnosis"] for run in (good, bad)] == [None, "overfitting"]
