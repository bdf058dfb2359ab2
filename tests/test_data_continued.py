"""The task of rows that a trained task continues with: which labels, in which order, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data import Example, Origin, infer_task
from ptuning.data.continued import continued_task
from ptuning.errors import ConfigError, DataError
from ptuning.task import Task

ORIGIN = Origin(name="more.csv", unit="line")
ONE, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def rows(labels: Sequence[Any], *, pair: bool = False) -> list[Example]:
    return [
        Example(row=row, text=f"text {row}", text_b="b" if pair else None, label=label, origin=ORIGIN)
        for row, label in enumerate(labels, 2)
    ]


def task(*labels: Any, kind: str = ONE, **facts: Any) -> Task:
    return Task(problem_type=kind, labels=labels, **facts)


def failure(labels: Sequence[Any], old: Task, **options: Any) -> ConfigError | DataError:
    with pytest.raises((DataError, ConfigError)) as caught:
        continued_task(rows(labels), old, **options)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("old", "given", "order"),
    [
        (("b", "a"), ["a", "b"], ("b", "a")),
        (("b", "a"), ["c", "a", "0"], ("b", "a", "0", "c")),
        (("b", "a"), ["a", "a"], ("b", "a")),  # one label in every row is enough here
        ((2, 1), [1, 3, 0], (2, 1, 0, 3)),
        ((False, True), [True, False], (False, True)),
        (("ä", "<b>"), ["<b>", "ö", "ä"], ("ä", "<b>", "ö")),
        (("10", "9"), ["9", "11", "2"], ("10", "9", "2", "11")),
    ],
)
def test_old_labels_come_first_and_keep_their_order(old: Any, given: Any, order: Any) -> None:
    found = continued_task(rows(given), task(*old))
    assert found.same
    assert found.task.labels == order


@given(
    st.lists(st.sampled_from("abcdef"), min_size=2, unique=True),
    st.lists(st.sampled_from("abcdefgh"), min_size=1),
)
def test_no_label_is_lost_whatever_the_rows_have(old: list[str], given: list[str]) -> None:
    if not set(old) & set(given):
        assert "forgotten" in str(failure(given, task(*old)))
        return
    found = continued_task(rows(given), task(*old)).task.labels
    assert found[: len(old)] == tuple(old)
    assert set(found) == set(old) | set(given)
    assert list(found[len(old) :]) == sorted(set(given) - set(old))


def test_what_the_rows_lack_and_what_they_add_is_said() -> None:
    notes = continued_task(rows(["a", "c"]), task("a", "b")).notes
    assert notes[0] == "1 new label: 'c'"
    assert "no training row has 'b'" in notes[1]
    assert "may forget it" in notes[1]
    assert not continued_task(rows(["a", "b"]), task("a", "b")).notes


@pytest.mark.parametrize(
    ("old", "given"),
    [(("0", "1"), [0, 1]), ((0, 1), ["0", "1"]), ((0, 1), ["1", "x"]), (("True", "False"), [True, False])],
)
def test_labels_that_differ_by_type_alone_are_refused(old: Any, given: Any) -> None:
    error = failure(given, task(*old))
    assert error.problem.startswith("more.csv, line 2: the label")
    assert error.remedy is not None
    assert "in training, so write it as in the training data" in error.remedy


def test_rows_of_other_labels_alone_are_another_task_that_has_to_be_named() -> None:
    error = failure(["c", "d"], task("a", "b"))
    assert "init_head: new" in str(error)
    found = continued_task(rows(["c", "d"]), task("a", "b"), head="new")
    assert not found.same
    assert found.task == infer_task(rows(["c", "d"]))


def test_a_new_head_ignores_labels_that_happen_to_be_the_same() -> None:
    found = continued_task(rows([0, 1]), task(0, 1, 2), head="new")
    assert (found.same, found.task.labels) == (False, (0, 1))


def test_ids_are_refused_but_known_labels_are_not_counted() -> None:
    many = [f"l{number}" for number in range(60)]
    assert len(continued_task(rows([*many, *many[:3]]), task(*many, "other")).task.labels) == 61
    assert "looks like ids" in str(failure([*many, "a"], task("a", "b")))


def test_a_class_label_has_its_own_order() -> None:
    found = continued_task(rows(["z", "a"]), task("a", "b"), names=["z", "y", "a"])
    assert found.task.labels == ("a", "b", "z", "y")


def test_what_was_calibrated_is_fitted_again() -> None:
    old = task("a", "b", kind=SEVERAL, temperature=2.0, thresholds=(0.3, 0.6), max_length=9)
    found = continued_task(rows([("a", "c")]), old).task
    assert found == task("a", "b", "c", kind=SEVERAL, max_length=9)


def test_numbers_keep_their_unit() -> None:
    old = task(kind=NUMBER, mean=3.0, scale=1.5, max_length=40)
    found = continued_task(rows([1.0, 2.5]), old)
    assert found.same
    assert found.task == old
    assert not found.notes
    (note,) = continued_task(rows([70.5, 80.0]), old).notes
    assert "init_head: new" in note


def test_whole_numbers_after_a_regression_have_to_be_named() -> None:
    old = task(kind=NUMBER, mean=3.0, scale=1.5)
    assert "problem_type=) regression or single_label" in str(failure([0, 1], old))
    assert continued_task(rows([0, 1]), old, problem_type=NUMBER).task.mean == 3.0
    other = continued_task(rows([0, 1]), old, problem_type=ONE)
    assert (other.same, other.task.labels) == (False, (0, 1))
    assert not continued_task(rows(["yes", "no"]), old).same


def test_single_labels_after_lists_of_them_have_to_be_named() -> None:
    old = task("a", "b", kind=SEVERAL)
    assert "label_separator" in str(failure(["a", "b"], old))
    assert not continued_task(rows(["x", "y"]), old).same
    found = continued_task(rows([("a", "c"), ()]), old)
    assert (found.same, found.task.labels) == (True, ("a", "b", "c"))


def test_scores_after_classes_are_another_task() -> None:
    found = continued_task(rows([0.5, 1.0, 2.0]), task(0, 1))
    assert (found.same, found.task.problem_type) == (False, NUMBER)


@pytest.mark.parametrize("pair", [True, False])
def test_pairs_and_single_texts_do_not_continue_each_other(pair: bool) -> None:
    old = task("a", "b", pair=not pair)
    with pytest.raises(ConfigError) as caught:
        continued_task(rows(["a", "b"], pair=pair), old)
    assert caught.value.got == ("two texts" if pair else "one text") + " per row"
    assert not continued_task(rows(["a", "b"], pair=pair), old, head="new").same
