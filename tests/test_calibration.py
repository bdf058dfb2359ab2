"""Calibration: figures and fits compared with slow ones and scikit-learn's, and what a task makes of them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from ptuning import Task, calibration
from ptuning.calibration import (
    confidences,
    expected_calibration_error,
    f1_threshold,
    fit_temperature,
    log_loss,
    reliability_bins,
)
from ptuning.errors import ConfigError
from ptuning.inference.abstaining import answered, certainties, check_abstain_below
from ptuning.report.data import Rows
from ptuning.report.figures.outcomes import outcomes

Floats = Any
SINGLE = Task(problem_type="single_label_classification", labels=("a", "ж", "<b>"))
MANY = Task(problem_type="multi_label_classification", labels=("a", "b", "c", "d"))
NUMBER = Task(problem_type="regression", mean=3.0, scale=2.0)


def classes(rows: int, *, temperature: float = 2.5, width: int = 3, seed: int = 0) -> tuple[Floats, Floats]:
    """Logits that are too sure by a factor, and classes drawn from the right probabilities."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(rows, width))
    chances = np.exp(logits / temperature)
    chances /= chances.sum(axis=1, keepdims=True)
    return logits, np.array([float(rng.choice(width, p=each)) for each in chances])


def switches(
    rows: int, *, temperature: float = 2.0, shift: float = 1.0, seed: int = 0
) -> tuple[Floats, Floats]:
    """The same for four labels per row, which are also more frequent than their logits say."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(rows, 4)) - [0, 0, 2, 20]
    return logits, (rng.random((rows, 4)) < 1 / (1 + np.exp(-logits / temperature - shift))).astype(float)


# ------------------------------------------------------------------------------------------- the figures


def slow_error(probabilities: Floats, targets: Floats, bins: int) -> float:
    """As in the paper, one prediction at a time."""
    pairs: list[tuple[float, bool]] = []
    for row, target in zip(probabilities.tolist(), targets.tolist(), strict=True):
        if isinstance(target, list):
            pairs += [(chance, has == 1) for chance, has in zip(row, target, strict=True)]
        elif target >= 0:
            pairs.append((max(row), row.index(max(row)) == target))
    total = 0.0
    for number in range(bins):
        low, high = np.linspace(0, 1, bins + 1)[number : number + 2]
        inside = [(c, hit) for c, hit in pairs if low < c <= high or (number == 0 and c == 0)]
        if inside:
            total += abs(sum(hit for _, hit in inside) - math.fsum(c for c, _ in inside)) / len(pairs)
    return total


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60), bins=st.integers(1, 20), several=st.booleans())
def test_the_calibration_error_is_the_paper_s(seed: int, rows: int, bins: int, several: bool) -> None:
    logits, targets = (switches if several else classes)(rows, seed=seed)
    task = MANY if several else SINGLE
    chances = np.round(task.kind.probabilities(logits, task), 1)  # many are at the bounds of bins, 0 and 1
    found = expected_calibration_error(chances, targets, bins)
    assert found == pytest.approx(slow_error(chances, targets, bins), abs=1e-12)
    assert 0 <= found <= 1
    assert sum(each.count for each in reliability_bins(chances, targets, bins)) == targets.size


def test_bins_say_how_often_predictions_of_a_confidence_are_right() -> None:
    chances = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]]
    low, high = reliability_bins(chances, [0, 1, 1, -100], bins=4)[2:]
    assert (low.lower, low.upper, low.count) == (0.5, 0.75, 1)  # the row without a class does not count
    assert (low.confidence, low.accuracy) == (0.7, 1.0)
    assert (high.count, high.confidence, high.accuracy) == (2, pytest.approx(0.85), 0.5)
    assert high.gap == pytest.approx(-0.35)
    assert expected_calibration_error(chances, [0, 1, 1, -100], 4) == pytest.approx((0.3 + 2 * 0.35) / 3)


def test_without_rows_nothing_is_known() -> None:
    none = np.zeros((0, 3))
    assert math.isnan(expected_calibration_error(none, np.zeros(0)))
    assert math.isnan(log_loss(none, np.zeros(0)))
    assert [each.count for each in reliability_bins(none, np.zeros(0), 3)] == [0, 0, 0]
    assert math.isnan(log_loss([[0.5, 0.5]], [-100]))
    assert [len(part) for part in confidences(none, np.zeros(0))] == [0, 0]


def test_the_log_loss_is_scikit_learn_s() -> None:
    logits, targets = classes(200)
    chances = SINGLE.kind.probabilities(logits, SINGLE)
    assert log_loss(chances, targets) == pytest.approx(sk.log_loss(targets, chances, labels=[0, 1, 2]))
    logits, several = switches(200)
    chances = MANY.kind.probabilities(logits, MANY)
    assert log_loss(chances, several) == pytest.approx(sk.log_loss(several.ravel(), chances.ravel()))
    assert math.isfinite(log_loss([[1.0, 0.0]], [1]))


# ----------------------------------------------------------------------------------------- the temperature


class Logits(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A trained model for scikit-learn: its inputs are its logits."""

    def fit(self, x: Floats, y: Floats) -> Logits:
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x: Floats) -> Floats:
        return x if len(self.classes_) > 2 else (x[:, 1] - x[:, 0]) / 2  # it reads it as ±

    def predict(self, x: Floats) -> Floats:
        return self.classes_[x.argmax(1)]


@pytest.fixture
def no_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PRIOR_DEVIATION", math.inf)


@pytest.mark.usefixtures("no_prior")
@pytest.mark.parametrize("width", [2, 3, 20])
def test_the_temperature_is_scikit_learn_s(width: int) -> None:
    logits, targets = classes(400, width=width)
    task = Task(problem_type="single_label_classification", labels=tuple(range(width)))
    theirs = CalibratedClassifierCV(FrozenEstimator(Logits().fit(logits, targets)), method="temperature")
    theirs.fit(logits, targets)
    ours = task.kind.calibrated(logits, targets, task)
    (fitted,) = theirs.calibrated_classifiers_
    assert ours.temperature == pytest.approx(1 / fitted.calibrators[0].beta_, rel=1e-4)
    expected = theirs.predict_proba(logits)
    np.testing.assert_allclose(ours.kind.probabilities(logits, ours), expected, atol=1e-5)


def test_few_rows_move_the_temperature_little_and_many_move_it_all_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: dict[float, list[float]] = {}
    for deviation in (calibration.PRIOR_DEVIATION, math.inf):
        monkeypatch.setattr(calibration, "PRIOR_DEVIATION", deviation)
        fitted = (SINGLE.kind.calibrated(*classes(rows), SINGLE) for rows in (3, 30, 300, 3000))
        found[deviation] = [abs(math.log(each.temperature)) for each in fitted]
    shrunk, free = found.values()
    shares = [own / other for own, other in zip(shrunk, free, strict=True)]
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    assert shares[-1] > 0.99
    assert free[-1] == pytest.approx(math.log(2.5), rel=0.05)


def test_rows_that_are_all_right_do_not_make_it_infinitely_sure() -> None:
    logits, targets = np.array([[2.0, 0.0], [0.0, 2.0]] * 5), np.array([0.0, 1.0] * 5)
    task = Task(problem_type="single_label_classification", labels=(False, True))
    assert 0.3 < task.kind.calibrated(logits, targets, task).temperature < 1
    hopeless = task.kind.calibrated(1e6 * logits, 1 - targets, task).temperature
    assert hopeless <= calibration.TEMPERATURES[1]


def test_one_class_or_no_rows_leave_a_usable_task() -> None:
    logits, _ = classes(20)
    fitted = SINGLE.kind.calibrated(logits, np.zeros(20), SINGLE)
    assert 0 < fitted.temperature < math.inf
    assert SINGLE.kind.calibrated(logits[:0], np.zeros(0), SINGLE).temperature == pytest.approx(1, abs=1e-5)
    assert SINGLE.kind.calibrated(logits, np.full(20, -100.0), SINGLE).temperature == pytest.approx(
        1, abs=1e-5
    )
    several = MANY.kind.calibrated(np.zeros((5, 4)), np.zeros((5, 4)), MANY)
    assert several.thresholds == ()


def test_the_temperature_has_the_lowest_loss_with_its_prior() -> None:
    logits, targets = switches(50)

    def total(temperature: float) -> float:
        chances = MANY.kind.probabilities(logits, replace(MANY, temperature=temperature))
        return (
            50 * log_loss(chances, targets) + 0.5 * (math.log(temperature) / calibration.PRIOR_DEVIATION) ** 2
        )

    found = MANY.kind.calibrated(logits, targets, MANY).temperature
    grid = np.exp(np.linspace(*np.log(calibration.TEMPERATURES), 2001))
    assert found == pytest.approx(min(grid, key=total), rel=0.01)
    assert fit_temperature(lambda at: 0.0) == pytest.approx(1, abs=1e-5)


def test_calibrating_again_forgets_the_temperature_before() -> None:
    logits, targets = switches(80)
    once = MANY.kind.calibrated(logits, targets, MANY)
    assert once.kind.calibrated(logits, targets, once) == once
    assert once.uncalibrated() == MANY
    assert NUMBER.kind.calibrated(logits[:, :1], targets[:, 0], NUMBER) == NUMBER


def test_probabilities_are_better_after_and_labels_are_the_same() -> None:
    fitted = SINGLE.kind.calibrated(*classes(300), SINGLE)
    logits, targets = classes(1000, seed=1)
    before, after = (task.kind.probabilities(logits, task) for task in (SINGLE, fitted))
    assert (before.argmax(1) == after.argmax(1)).all()
    assert log_loss(after, targets) < log_loss(before, targets)
    assert expected_calibration_error(after, targets) < 0.5 * expected_calibration_error(before, targets)


# ------------------------------------------------------------------------------------------ the thresholds


def slow_threshold(chances: Floats, truth: Floats) -> float:
    """The best F1 of all places between two probabilities, by scikit-learn."""
    values = sorted(set(chances.tolist()))
    cuts = [(low + high) / 2 for low, high in pairwise(values)] + [0.5]
    best = max(sk.f1_score(truth, chances > cut, zero_division=0.0) for cut in cuts)
    good = [cut for cut in cuts if sk.f1_score(truth, chances > cut, zero_division=0.0) == best]
    return min(good, key=lambda cut: (abs(cut - 0.5), cut))


@pytest.mark.parametrize("seed", range(8))
def test_a_threshold_has_the_best_f1(seed: int) -> None:
    logits, targets = switches(120, seed=seed)
    chances = np.round(MANY.kind.probabilities(logits, MANY), 2)  # some are equal
    for own, truth in zip(chances.T[:3], targets.T[:3], strict=True):
        assert f1_threshold(own, truth) == pytest.approx(slow_threshold(own, truth), abs=1e-9)


def test_a_label_with_few_rows_keeps_its_threshold() -> None:
    logits, targets = switches(300)
    assert targets[:, 3].sum() < calibration.MIN_POSITIVES
    fitted = MANY.kind.calibrated(logits, targets, MANY)
    assert fitted.thresholds[3] == 0.5
    assert all(each != 0.5 for each in fitted.thresholds[:2])
    assert f1_threshold([0.1] * 4 + [0.9] * 50, [1] * 4 + [0] * 50) == 0.5
    assert f1_threshold([0.1] * 50 + [0.9] * 4, [1] * 50 + [0] * 4) == 0.5
    saturated = f1_threshold([0.0] * 20 + [5e-324] * 20, [0] * 20 + [1] * 20)
    assert 0 < saturated < 1


def test_metrics_and_answers_use_the_thresholds() -> None:
    logits, targets = switches(200)
    fitted = MANY.kind.calibrated(logits, targets, MANY)
    given_ = [MANY.kind.answer(row, fitted).label for row in logits.tolist()]
    predicted = np.array([[label in labels for label in MANY.labels] for labels in given_])  # type: ignore[operator]
    expected = sk.f1_score(targets, predicted, average="macro", zero_division=0.0)
    assert MANY.kind.measure(logits, targets, fitted)["f1_macro"] == pytest.approx(expected)
    assert expected > MANY.kind.measure(logits, targets, MANY)["f1_macro"]


# -------------------------------------------------------------------------------------------------- the task


@pytest.mark.parametrize(("task", "made"), [(SINGLE, classes), (MANY, switches)])
def test_an_answer_has_the_probabilities_of_the_task(task: Task, made: Any) -> None:
    logits, targets = made(60)
    for each in (task, task.kind.calibrated(logits, targets, task)):
        chances = each.kind.probabilities(logits, each)
        for row, expected in zip(logits.tolist(), chances, strict=True):
            answer = each.kind.answer(row, each)
            np.testing.assert_allclose([chance for _, chance in answer.probabilities], expected, atol=1e-12)


def test_loss_and_logits_do_not_change() -> None:
    logits, targets = (torch.as_tensor(each) for each in classes(20))
    warm = replace(SINGLE, temperature=3.0)
    losses = [task.kind.loss(logits, targets.long(), task, None) for task in (SINGLE, warm)]
    assert torch.equal(*losses)
    assert warm.kind.logits(logits, warm) is logits


def test_defaults_are_not_written() -> None:
    """So that records are what they were, and earlier versions read them."""
    written = SINGLE.to_dict()
    assert written == {
        "problem_type": "single_label_classification",
        "labels": ["a", "ж", "<b>"],
        "pair": False,
        "mean": 0.0,
        "scale": 1.0,
        "max_length": None,
    }
    assert Task.from_dict(written) == SINGLE
    fitted = MANY.kind.calibrated(*switches(200), MANY)
    assert fitted.to_dict()["thresholds"] == list(fitted.thresholds)
    assert Task.from_dict(fitted.to_dict()) == fitted


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "warm", True, None])
def test_a_temperature_is_a_number_above_0(value: Any) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        replace(SINGLE, temperature=value)


@pytest.mark.parametrize(
    ("task", "values", "words"),
    [
        (NUMBER, {"temperature": 2.0}, "without labels"),
        (SINGLE, {"thresholds": (0.5, 0.5, 0.5)}, "does not answer yes or no"),
        (MANY, {"thresholds": (0.5, 0.5)}, "4, one per label"),
        (MANY, {"thresholds": (0.5, 0.5, 0.5, 1.0)}, "thresholds"),
        (MANY, {"thresholds": (0.5, 0.5, 0.5, math.nan)}, "thresholds"),
    ],
)
def test_what_a_task_cannot_have_is_refused(task: Task, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(task, **values)


# ------------------------------------------------------------------------------------------------ abstaining


def test_the_confidence_of_several_labels_is_that_of_the_least_certain_one() -> None:
    task = replace(MANY, thresholds=(0.2, 0.5, 0.5, 0.5))
    logits = [math.log(p / (1 - p)) for p in (0.3, 0.9, 0.05, 0.01)]
    answer = task.kind.answer(logits, task)
    assert answer.label == ("a", "b")
    assert task.kind.confidence(answer, task) == pytest.approx(0.3)  # yes to "a", with a probability of 0.3
    assert MANY.kind.confidence(MANY.kind.answer(logits, MANY), MANY) == pytest.approx(0.7)  # no to "a"
    assert NUMBER.kind.confidence(NUMBER.kind.answer([1.0], NUMBER), NUMBER) is None


@pytest.mark.parametrize("task", [SINGLE, replace(MANY, temperature=1.7, thresholds=(0.2, 0.5, 0.7, 0.5))])
def test_certainties_of_many_rows_are_those_of_each_answer(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.random.default_rng(0).normal(size=(50, task.num_labels), scale=3)
    answers = [task.kind.answer(row, task) for row in logits.tolist()]
    each = [task.kind.confidence(answer, task) for answer in answers]
    spy = Mock(wraps=task.kind.answer)
    monkeypatch.setattr(task.kind, "answer", spy)
    np.testing.assert_allclose(certainties(logits, task), each, rtol=1e-12)
    targets = np.zeros(logits.shape if task.thresholds else 50)
    rows = Rows(split="test", logits=logits, targets=targets, lengths=(1,) * 50, metrics={})
    np.testing.assert_allclose(outcomes(task, rows).confidence, each, rtol=1e-12)
    assert spy.call_count <= 1  # not one per row
    with pytest.raises(ConfigError, match="has no probabilities"):
        certainties(np.zeros((2, 1)), NUMBER)


def test_rows_that_are_answered_are_counted_and_measured() -> None:
    logits, targets = classes(400)
    found = answered(logits, targets, SINGLE, 0.8)
    chances = SINGLE.kind.probabilities(logits, SINGLE)
    sure = chances.max(axis=1) >= 0.8
    np.testing.assert_allclose(certainties(logits, SINGLE), chances.max(axis=1))
    assert (found["rows"], found["coverage"]) == (sure.sum(), sure.mean())
    accuracy = sk.accuracy_score(targets[sure], chances[sure].argmax(1))
    assert found["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert answered(logits, targets, SINGLE, 0.0)["coverage"] == 1
    nothing = answered(np.zeros((5, 3)), np.zeros(5), SINGLE, 0.9)
    assert nothing == {"abstain_below": 0.9, "rows": 0, "coverage": 0.0, "metrics": {}}


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "0.7", True])
def test_abstain_below_is_a_probability(value: Any) -> None:
    with pytest.raises(ConfigError, match="a probability from 0 to 1"):
        check_abstain_below(value)
    with pytest.raises(ConfigError, match="has no probabilities"):
        check_abstain_below(0.5, NUMBER)
