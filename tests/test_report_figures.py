"""Every figure of the report, compared with scikit-learn or slow numpy on the same numbers."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from ptuning.report.data import Rows
from ptuning.report.figures import headline
from ptuning.report.figures.classes import (
    by_class,
    confusion,
    most_confused,
    similar_together,
    worst_classes,
)
from ptuning.report.figures.confidence import abstention, reliability, risk_coverage
from ptuning.report.figures.curves import curves
from ptuning.report.figures.differences import compared, disagreements
from ptuning.report.figures.headline import counts, intervals, midranks
from ptuning.report.figures.label_errors import label_errors
from ptuning.report.figures.lengths import by_length
from ptuning.report.figures.outcomes import outcomes
from ptuning.report.figures.rows import (
    certainty_of_mistake,
    confident_mistakes,
    largest_errors,
    least_certain,
)
from ptuning.task import Task
from reports import NUMBER, SEVERAL, SINGLE, scored, with_metrics

CASES = [(SINGLE, 2), (SINGLE, 3), (SEVERAL, 1), (SEVERAL, 4), (NUMBER, 1)]
each_case = pytest.mark.parametrize(("kind", "classes"), CASES)


def measured(task: Task, rows: Rows, drawn: np.ndarray) -> dict[str, float]:
    """The metrics of a resample, by the kind's own code: the rows are written out."""
    part = replace(rows, logits=rows.logits[drawn], targets=rows.targets[drawn])
    return dict(with_metrics(task, part).metrics)


# -------------------------------------------------------------------------------------- intervals


@each_case
def test_each_resample_has_the_metrics_that_its_rows_have(kind: str, classes: int) -> None:
    task, rows = scored(kind, classes, 40)
    drawn = np.random.default_rng(1).integers(40, size=(12, 40))
    weights = np.array([np.bincount(each, minlength=40) for each in drawn], dtype=float)
    found = headline.Statistics(task, rows, None).of(weights)
    for number, each in enumerate(drawn):
        expected = measured(task, rows, each)
        assert {name: found[name][number] for name in expected} == pytest.approx(expected, rel=1e-6)
        undefined = found.keys() - expected.keys()
        assert all(np.isnan(found[name][number]) for name in undefined)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """So few resamples that each can be measured slowly."""
    for name in ("RESAMPLES", "FEWEST"):
        monkeypatch.setattr(headline, name, 30)
    return 30


@each_case
def test_the_intervals_are_the_percentiles_over_resamples(kind: str, classes: int, few: int) -> None:
    task, rows = scored(kind, classes, 60)
    found = intervals(task, rows, seed=3)
    assert found.resamples == few
    assert found.bounds.keys() == rows.metrics.keys()
    resampled = np.concatenate(list(counts(60, few, 3)))
    assert (resampled.sum(axis=1) == 60).all()
    each = [measured(task, rows, np.repeat(np.arange(60), part.astype(int))) for part in resampled]
    for name, bounds in found.bounds.items():
        values = [one[name] for one in each if name in one]
        assert bounds == pytest.approx(np.percentile(values, [2.5, 97.5]), rel=1e-6)


def test_the_interval_of_an_accuracy_is_about_that_of_the_binomial_distribution() -> None:
    task, rows = scored(SINGLE, 3, 400)
    low, high = intervals(task, rows).bounds["accuracy"]
    right = round(rows.metrics["accuracy"] * 400)
    expected = stats.binomtest(right, 400).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert intervals(task, rows).bounds["accuracy"] == (low, high)


def test_a_metric_that_cannot_be_resampled_has_no_interval() -> None:
    task, rows = scored(SINGLE, 3, 50)
    own = replace(rows, metrics={**rows.metrics, "loss": 0.123, "mine": 0.5})
    assert intervals(task, own).bounds.keys() == rows.metrics.keys() - {"loss"}
    certain = np.eye(3)[rows.targets.astype(int)] * 9
    perfect = with_metrics(task, replace(rows, logits=certain))
    assert "accuracy" not in intervals(task, perfect).bounds  # every resample has 1
    one = replace(rows, logits=rows.logits[:1], targets=rows.targets[:1])
    assert intervals(task, one).bounds == {}


def test_class_weights_are_in_the_interval_of_the_loss() -> None:
    task, rows = scored(SINGLE, 3, 80)
    import torch

    logits, targets = torch.from_numpy(rows.logits), torch.from_numpy(rows.targets).long()
    weights = torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64)
    loss = float(task.kind.loss(logits, targets, task, weights))
    weighted = replace(rows, metrics={"loss": loss})
    assert "loss" in intervals(task, weighted, weights.tolist()).bounds
    assert "loss" not in intervals(task, weighted).bounds


def test_midranks_are_those_of_the_drawn_values() -> None:
    values = np.array([3.0, 1.0, 3.0, 2.0, 1.0])
    w = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 1, 3]], dtype=float)
    ranks = midranks(values, w)
    for row, each in zip(ranks, w, strict=True):
        expected = stats.rankdata(np.repeat(values, each.astype(int)))
        assert np.repeat(row, each.astype(int)) == pytest.approx(expected)


def test_many_rows_have_fewer_resamples() -> None:
    assert [headline.resamples_of(rows) for rows in (0, 5000, 10_000, 10**7)] == [1000, 1000, 500, 200]


# ------------------------------------------------------------------------------- labels, confusion


@pytest.mark.parametrize(("kind", "classes"), CASES[:-1])
def test_precision_recall_f1_and_support(kind: str, classes: int) -> None:
    task, rows = scored(kind, classes, 150)
    found = outcomes(task, rows)
    for each in by_class(found):
        has = rows.targets[:, each.index] > 0.5 if kind == SEVERAL else rows.targets == each.index
        said = found.predicted[:, each.index] > 0 if kind == SEVERAL else found.predicted == each.index
        hits = (has & said).sum()
        assert (each.support, each.predicted) == (has.sum(), said.sum())
        assert each.precision == pytest.approx(hits / said.sum())
        assert each.recall == pytest.approx(hits / has.sum())
        assert each.f1 == pytest.approx(sk.f1_score(has, said))


def test_a_class_without_rows_has_no_figures() -> None:
    task, rows = scored(SINGLE, 4, 60)
    logits = rows.logits.copy()
    logits[:, 3] = -99
    found = by_class(outcomes(task, replace(rows, logits=logits, targets=rows.targets % 3)))
    assert (found[3].precision, found[3].recall, found[3].f1, found[3].support) == (None, None, None, 0)


def test_the_confusion_matrix_and_its_pairs() -> None:
    task, rows = scored(SINGLE, 20, 800)
    found = outcomes(task, rows)
    matrix = confusion(found)
    assert (matrix == sk.confusion_matrix(rows.targets, rows.logits.argmax(1), labels=range(20))).all()
    pairs = most_confused(matrix, 5)
    wrong = sorted((matrix[i, j] for i in range(20) for j in range(20) if i != j), reverse=True)
    assert [each.count for each in pairs] == wrong[:5]
    assert all(matrix[each.truth, each.predicted] == each.count for each in pairs)
    assert all(each.share == pytest.approx(each.count / matrix[each.truth].sum()) for each in pairs)
    assert all(matrix[each.predicted, each.truth] == each.back for each in pairs)
    worst = worst_classes(matrix, 4)
    mistakes = [matrix[i].sum() + matrix[:, i].sum() - 2 * matrix[i, i] for i in range(20)]
    assert sorted(mistakes, reverse=True)[:4] == sorted((mistakes[i] for i in worst), reverse=True)
    assert len(most_confused(np.diag([3, 4]), 5)) == len(worst_classes(np.diag([3, 4]), 5)) == 0


def test_confused_classes_are_next_to_each_other() -> None:
    matrix = np.diag([50] * 8)
    for one, other in ((0, 5), (1, 7), (2, 4)):
        matrix[one, other] = matrix[other, one] = 20
    order = similar_together(matrix).tolist()
    assert sorted(order) == list(range(8))
    assert all(abs(order.index(one) - order.index(other)) == 1 for one, other in ((0, 5), (1, 7), (2, 4)))
    assert similar_together(np.eye(2)).tolist() == [0, 1]


@pytest.mark.parametrize(("kind", "classes"), [(SINGLE, 2), (SEVERAL, 3)])
def test_roc_and_precision_recall(kind: str, classes: int) -> None:
    task, rows = scored(kind, classes, 120)
    found = outcomes(task, rows)
    made = curves(found)
    assert [each.index for each in made] == ([1] if kind == SINGLE else [0, 1, 2])
    for each in made:
        has = rows.targets == 1 if kind == SINGLE else rows.targets[:, each.index] > 0.5
        chances = found.probabilities[:, each.index]
        assert each.auc == pytest.approx(sk.roc_auc_score(has, chances))
        assert each.average_precision == pytest.approx(sk.average_precision_score(has, chances))
        assert each.prevalence == has.mean()
        cuts = [chances >= cut for cut in [*sorted(chances), 2]]
        points = [((said & ~has).sum() / (~has).sum(), (said & has).sum() / has.sum()) for said in cuts]
        drawn = zip(each.false_positive_rate, each.true_positive_rate, strict=True)
        assert {tuple(map(float, point)) for point in drawn} <= {tuple(map(float, point)) for point in points}
        precise = [(said & has).sum() / max(said.sum(), 1) for said in cuts[:-1]]
        assert each.precision.tolist() == pytest.approx([*precise, 1.0])
        assert each.recall.tolist() == pytest.approx([y for _, y in points])
    assert curves(outcomes(*scored(SINGLE, 3))) == ()


def test_a_label_that_all_rows_or_none_have_has_no_curve() -> None:
    task, rows = scored(SEVERAL, 3)
    targets = rows.targets.copy()
    targets[:, 0], targets[:, 1] = 0, 1
    assert [each.index for each in curves(outcomes(task, replace(rows, targets=targets)))] == [2]


# ------------------------------------------------------------------------------------- confidence


def test_the_reliability_diagram_before_and_after_the_temperature() -> None:
    task, rows = scored(SINGLE, 2, 500, temperature=2.0)
    before, after = reliability(task, rows)
    assert (before.temperature, after.temperature) == (1, 2)
    found = outcomes(task, rows)
    shares, means = calibration_curve(found.right, found.confidence, n_bins=15)
    full = [each for each in after.bins if each.count]
    assert [each.accuracy for each in full] == pytest.approx(shares)
    assert [each.confidence for each in full] == pytest.approx(means)
    weight = np.array([each.count for each in full]) / 500
    assert after.error == pytest.approx((weight * np.abs(shares - means)).sum())
    assert after.log_loss == pytest.approx(sk.log_loss(rows.targets, found.probabilities))
    assert before.log_loss == pytest.approx(rows.metrics["loss"])
    (only,) = reliability(*scored(SINGLE, 2))
    assert only.temperature == 1


def test_coverage_and_accuracy_at_a_threshold() -> None:
    task, rows = scored(SINGLE, 3, 300)
    found = outcomes(task, rows)
    for each in abstention(found, (0.0, 0.5, 0.8, 1.1)):
        given = [i for i in range(300) if found.probabilities[i].max() >= each.threshold]
        assert (each.answered, each.coverage) == (len(given), len(given) / 300)
        right = [rows.logits[i].argmax() == rows.targets[i] for i in given]
        assert each.accuracy == (pytest.approx(np.mean(right)) if given else None)
    coverage, accuracy = risk_coverage(found)
    assert (coverage[-1], accuracy[-1]) == (1, pytest.approx(rows.metrics["accuracy"]))
    for x, y in zip(coverage[::40], accuracy[::40], strict=True):
        first = np.argsort(-found.confidence, kind="stable")[: round(x * 300)]
        assert y == pytest.approx(found.right[first].mean())


def test_rows_of_equal_confidence_are_answered_together() -> None:
    task, rows = scored(SINGLE, 2, 40)
    same = replace(rows, logits=np.tile([[1.0, 0.0]], (40, 1)))
    coverage, accuracy = risk_coverage(outcomes(task, same))
    assert coverage.tolist() == [1]
    assert accuracy[0] == pytest.approx((rows.targets == 0).mean())


def test_thresholds_of_the_task_decide_what_is_answered() -> None:
    task, rows = scored(SEVERAL, 2, 100)
    moved = replace(task, thresholds=(0.9, 0.2))
    found = outcomes(moved, rows)
    for logits, predicted in zip(rows.logits.tolist(), found.predicted, strict=True):
        answer = task.kind.answer(logits, moved)
        assert tuple(np.array(task.labels, dtype=object)[predicted > 0]) == answer.label


# ----------------------------------------------------------------------------- lengths, rows, errors


def test_figures_by_length() -> None:
    task, rows = scored(SINGLE, 3, 203)
    right = outcomes(task, rows).right
    bins = by_length(rows.lengths, right, shares=True)
    assert len(bins) == 5
    assert sum(each.rows for each in bins) == 203
    lengths = np.array(rows.lengths)
    for each in bins:
        inside = (lengths >= each.shortest) & (lengths <= each.longest)
        assert inside.sum() == each.rows
        assert each.value == pytest.approx(right[inside].mean())
        expected = stats.binomtest(int(right[inside].sum()), each.rows).proportion_ci(method="wilson")
        assert (each.low, each.high) == (expected.low, expected.high)
    assert by_length([5] * 100, [1] * 100, shares=True) == ()  # one length
    assert by_length([5, 6, 7], [1, 0, 1], shares=True) == ()  # too few rows


def test_errors_by_length() -> None:
    _, rows = scored(NUMBER, rows=100)
    errors = np.abs(rows.logits[:, 0] - rows.targets)
    for each in by_length(rows.lengths, errors, shares=False):
        inside = [e for e, n in zip(errors, rows.lengths, strict=True) if each.shortest <= n <= each.longest]
        assert each.value == pytest.approx(np.mean(inside))
        half = 1.96 * np.std(inside, ddof=1) / len(inside) ** 0.5
        assert (each.low, each.high) == pytest.approx((max(0, each.value - half), each.value + half))


def test_the_rows_to_read() -> None:
    task, rows = scored(SINGLE, 3, 300)
    found = outcomes(task, rows)
    wrong = [i for i in range(300) if rows.logits[i].argmax() != rows.targets[i]]
    by_hand = sorted(wrong, key=lambda i: -found.probabilities[i].max())
    assert confident_mistakes(found, 8).tolist() == by_hand[:8]
    assert (
        least_certain(found, 8).tolist() == sorted(range(300), key=lambda i: found.probabilities[i].max())[:8]
    )
    _, numbers = scored(NUMBER, rows=50)
    errors = np.abs(numbers.logits[:, 0] - numbers.targets)
    assert (
        largest_errors(numbers.logits[:, 0], numbers.targets, 3).tolist() == np.argsort(-errors)[:3].tolist()
    )


def test_a_mistake_of_several_labels_is_as_confident_as_its_surest_wrong_one() -> None:
    task, rows = scored(SEVERAL, 3, 60)
    found = outcomes(task, rows)
    for index, certainty in enumerate(certainty_of_mistake(found)):
        wrong = found.predicted[index] != found.truth[index]
        chances = np.maximum(found.probabilities[index], 1 - found.probabilities[index])
        assert certainty == pytest.approx(chances[wrong].max() if wrong.any() else 0)


def test_rows_without_a_target_do_not_count() -> None:
    task, rows = scored(SINGLE, 3, 30)
    targets = rows.targets.copy()
    targets[[4, 9]] = -100
    known = replace(rows, targets=targets).known(task)
    assert len(known) == 28
    assert 6 not in known.numbers  # the row after the header and four more
    assert known.texts is not None
    assert known.texts[4] == rows.texts[5]  # type: ignore[index]
    number, scores = scored(NUMBER, rows=10)
    assert len(replace(scores, targets=np.r_[scores.targets[:9], np.nan]).known(number)) == 9


# ------------------------------------------------------------------------------------ label errors


def planted(kind: str, classes: int) -> tuple[Task, Rows, list[int]]:
    """Rows of a good model, some of whose labels are wrong."""
    task, rows = scored(kind, classes, 300)
    targets, wrong = rows.targets.copy(), [5, 50, 150, 250]
    logits = rows.logits * 1.0
    if kind == SINGLE:
        logits[np.arange(300), targets.astype(int)] += 6
        targets[wrong] = (targets[wrong] + 1) % classes
    else:
        logits += (2 * targets - 1) * 6
        targets[wrong, 0] = 1 - targets[wrong, 0]
    return task, replace(rows, logits=logits, targets=targets), wrong


@pytest.mark.parametrize(("kind", "classes"), [(SINGLE, 4), (SEVERAL, 3), (SEVERAL, 1)])
def test_planted_label_errors_are_found(kind: str, classes: int) -> None:
    pytest.importorskip("cleanlab")
    task, rows, wrong = planted(kind, classes)
    found = label_errors(outcomes(task, rows))
    assert found.missing is None
    assert set(found.rows[: len(wrong)]) >= set(wrong[:3])
    assert len(found.rows) < 20


def test_classes_without_rows_do_not_matter_to_label_errors() -> None:
    pytest.importorskip("cleanlab")
    task, rows = scored(SINGLE, 6, 60)
    few = replace(rows, targets=rows.targets % 3)
    assert label_errors(outcomes(task, few)).missing is None
    one = replace(rows, targets=rows.targets * 0)
    assert "two classes" in str(label_errors(outcomes(task, one)).missing)
    assert "20 rows" in str(label_errors(outcomes(*scored(SINGLE, 2, 10))).missing)


def test_without_cleanlab_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    found = label_errors(outcomes(*scored(SINGLE, 2)))
    assert 'pip install "ptuning[report]"' in str(found.missing)


# -------------------------------------------------------------------------------------- differences


def test_differences_in_the_loss_have_the_class_weights_of_each() -> None:
    import torch

    task, rows = scored(SINGLE, 3, 80)
    logits, targets = torch.from_numpy(rows.logits), torch.from_numpy(rows.targets).long()
    weights = torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64)
    weighted, plain = (float(task.kind.loss(logits, targets, task, each)) for each in (weights, None))
    (found,) = compared([(task, rows), (task, rows)], "loss", [None, weights.tolist()])
    assert found.value == pytest.approx(weighted - plain)


@pytest.mark.parametrize(
    ("kind", "classes", "metric"), [(SINGLE, 3, "accuracy"), (SEVERAL, 3, "f1_micro"), (NUMBER, 1, "mae")]
)
def test_differences_are_measured_on_the_same_resamples(
    kind: str, classes: int, metric: str, few: int
) -> None:
    task, rows = scored(kind, classes, 80)
    noise = np.random.default_rng(5).normal(0, 1.5, rows.logits.shape)
    worse = with_metrics(task, replace(rows, logits=rows.logits + noise))
    same, other = compared([(task, rows), (task, rows), (task, worse)], metric)
    assert (same.value, same.bounds, same.only_this) == (0, None, 0)
    assert other.value == pytest.approx(worse.metrics[metric] - rows.metrics[metric])
    assert other.bounds is not None
    resampled = np.concatenate(list(counts(80, few, 0)))
    drawn = [np.repeat(np.arange(80), part.astype(int)) for part in resampled]
    values = [measured(task, worse, part)[metric] - measured(task, rows, part)[metric] for part in drawn]
    assert other.bounds == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-6)
    if kind == NUMBER:
        assert other.same is None
        return
    one, two = outcomes(task, rows), outcomes(task, worse)
    assert other.only_this == sum(two.right[i] and not one.right[i] for i in range(80))
    assert other.only_first == sum(one.right[i] and not two.right[i] for i in range(80))
    agree = [np.array_equal(one.predicted[i], two.predicted[i]) for i in range(80)]
    assert other.same == np.mean(agree)
    chosen = disagreements([(task, rows), (task, worse)], 100)
    assert sorted(chosen) == [i for i in range(80) if not agree[i]]
