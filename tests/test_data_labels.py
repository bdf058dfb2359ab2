"""Labels: the kind of task, a stable order, targets, and errors that name the row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data import Example, Origin, encode_labels, infer_task
from ptuning.errors import ConfigError, DataError
from ptuning.task import ProblemType, Task

ORIGIN = Origin(name="a.csv", unit="line")
SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"


def rows(labels: Sequence[Any]) -> list[Example]:
    return [
        Example(row=row, text=f"text {row}", label=label, origin=ORIGIN)
        for row, label in enumerate(labels, 2)
    ]


def failure(labels: Sequence[Any], **options: Any) -> ConfigError | DataError:
    with pytest.raises((DataError, ConfigError)) as caught:
        infer_task(rows(labels), **options)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("labels", "kind", "order"),
    [
        (["b", "a", "b"], SINGLE, ("a", "b")),
        ([2, 10, 1], SINGLE, (1, 2, 10)),
        (["2", "10", "1"], SINGLE, ("1", "2", "10")),
        (["2", "10", "x"], SINGLE, ("10", "2", "x")),
        ([True, False], SINGLE, (False, True)),
        ([1.0, 0.0], SINGLE, (0.0, 1.0)),
        (["1.0", "-2"], SINGLE, ("-2", "1.0")),
        (["nan", "1.5"], SINGLE, ("1.5", "nan")),
        ([*"123456789" * 4, "NA"], SINGLE, (*"123456789", "NA")),
        (["1_0", "1.5"], SINGLE, ("1.5", "1_0")),
        ([1, 2.5], REGRESSION, ()),
        (["1", "2.5"], REGRESSION, ()),
        ([("b", "a"), ()], MULTI, ("a", "b")),
        ([(3,), (20, 1)], MULTI, (1, 3, 20)),
    ],
)
def test_auto(labels: list[Any], kind: str, order: tuple[Any, ...]) -> None:
    task = infer_task(rows(labels))
    assert task.problem_type == kind
    assert [(type(label), label) for label in task.labels] == [(type(label), label) for label in order]


@given(
    st.one_of(
        st.lists(st.text(min_size=1), min_size=2, unique=True),
        st.lists(st.integers(), min_size=2, unique=True),
        st.lists(st.integers().map(str), min_size=2, unique=True),
    ),
    st.randoms(use_true_random=False),
)
def test_label_order_does_not_depend_on_row_order(labels: list[Any], random: Any) -> None:
    first = infer_task(rows(labels), problem_type=SINGLE)
    random.shuffle(labels)
    task = infer_task(rows(labels), problem_type=SINGLE)
    assert first == task
    targets = encode_labels(rows(labels), task)
    assert [task.labels[int(target)] for target in targets] == labels  # type: ignore[arg-type]


def test_pairs_are_seen() -> None:
    assert not infer_task(rows(["a", "b"])).pair
    pairs = [Example(row=row, text="x", text_b="y", label=row) for row in (1, 2)]
    assert infer_task(pairs).pair


def test_names_give_the_order_and_rule_regression_out() -> None:
    task = infer_task(rows(["1.5", "z"]), names=("z", "absent", "1.5"))
    assert task.labels == ("z", "absent", "1.5")
    assert "a.csv, line 3: the label 'q' does not occur" in str(failure(["z", "q"], names=("z", "a")))


def test_regression_scale() -> None:
    targets = [0.5, 2.0, 4.25, 1.0]
    task = infer_task(rows([str(target) for target in targets]))
    assert task.mean == pytest.approx(statistics.fmean(targets))
    assert task.scale == pytest.approx(statistics.pstdev(targets))
    assert encode_labels(rows(["2", 3, 0.5]), task) == [2.0, 3.0, 0.5]


def test_whole_numbers_are_regression_on_request() -> None:
    assert infer_task(rows([1, 5]), problem_type="regression").scale == 2.0


def test_multi_label_targets() -> None:
    examples = rows([("b", "a"), (), ("c",)])
    task = infer_task(examples)
    assert encode_labels(examples, task) == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_single_targets() -> None:
    task = Task(problem_type=SINGLE, labels=("b", "a"))
    assert encode_labels(rows(["a", "b", "a"]), task) == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "options", "where", "got", "expected", "remedy"),
    [
        (["a", "a"], {}, "a.csv", "the label 'a'", "two different labels", "add rows of another class"),
        ([1, "1"], {}, "line 2", "1 (int), but '1' (str) in line 3", "one type", "write them all the same"),
        ([1, True], {}, "line 2", "1 (int), but True (bool)", "one type", "the same way"),
        ([1, 2.0], {}, "line 2", "1 (int), but 2.0 (float)", "one type", "the same way"),
        ([1.5, "2"], {}, "line 2", "1.5 (float), but '2' (str)", "one type", "the same way"),
        (["a", ("b",)], {}, "line 2", "the label 'a'", "a list of labels", "label_separator"),
        (["a", "b"], {"problem_type": MULTI}, "line 2", "'a'", "a list of labels", "label_separator"),
        (
            [("a",), ("b",)],
            {"problem_type": SINGLE},
            "line 2",
            "the list ('a',)",
            "one label (single_label_classification)",
            "lists in every row with --data.problem_type multi",
        ),
        ([(), ()], {}, "a.csv", "no label in any row", "at least one", "label column"),
        ([("a", "a")], {}, "line 2", "'a' twice in ['a', 'a']", "once", "zeros and ones"),
        ([(0, 1, 0), (1, 0, 0)], {}, "line 2", "0 twice", "once", "as many as there are labels"),
        ([(0.5, 1.0)], {}, "line 2", "0.5 in the list", "whole numbers", "round"),
        (["a", None], {}, "line 3", "the label None", "a label", "remove the row"),
        (
            [*(f"{n % 9}.5" for n in range(30)), "NA"],
            {},
            "line 32",
            "'NA', while nearly all others are numbers",
            "a number",
            "set --data.problem_type single",
        ),
        (["1.5", "x"], {"problem_type": REGRESSION}, "line 3", "'x'", "a finite number", "remove the row"),
        ([1.5, float("inf")], {"problem_type": REGRESSION}, "line 3", "inf", "a finite number", "remove"),
        (["1.5", "nan"], {"problem_type": REGRESSION}, "line 3", "'nan'", "a finite number", "correct"),
        ([True, False], {"problem_type": REGRESSION}, "line 2", "True", "a finite number", "problem_type"),
        ([1.5, 1.5], {}, "a.csv", "1.5 in every row", "different numbers", "label column"),
        ([1.7e9 + n / 2 for n in range(4)], {}, "a.csv", "1.7e+09 ± 0.559", "larger share", "subtract"),
        ([1e308, -1e308, 0.5], {}, "a.csv", "cannot be computed", "ordinary numbers", "another unit"),
        (
            [f"id {n}" for n in range(60)],
            {},
            "a.csv",
            "60 different labels in 60 rows",
            "far fewer",
            "--data.label (in Python: label=), or, if it is right, say what it is with --data.problem_type",
        ),
        (
            [str(n % 1001) for n in range(5000)],
            {},
            "a.csv",
            "1001 different labels in 5000",
            "fewer",
            "label",
        ),
    ],
)
def test_labels_that_cannot_be_learned(
    labels: list[Any], options: dict[str, Any], where: str, got: str, expected: str, remedy: str
) -> None:
    error = failure(labels, **options)
    assert isinstance(error, DataError)
    assert where in str(error).partition(": got")[0]
    assert got in str(error.got)
    assert expected in str(error.expected)
    assert remedy in str(error.remedy)


def test_a_task_of_nothing_and_a_kind_that_there_is_not() -> None:
    assert "expected at least two" in str(failure([]))
    error = failure(["a"], problem_type="ranking")
    assert isinstance(error, ConfigError)
    assert error.got == "'ranking'"
    assert "'auto', 'single_label_classification'" in str(error.expected)


def test_many_labels_are_accepted_when_stated() -> None:
    labels = [f"id {n}" for n in range(60)]
    assert infer_task(rows(labels), problem_type=SINGLE).num_labels == 60
    assert infer_task(rows(labels), names=labels).num_labels == 60
    assert infer_task(rows(labels[:50])).num_labels == 50


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        (
            "maybe",
            [
                "a.csv, line 3: the label 'maybe' does not occur in the training rows",
                "'1', 'no'",
                "correct the label",
            ],
        ),
        (1, ["the label 1 does not occur", "'1' was a str in training", "as in the training data"]),
    ],
)
def test_an_unseen_label_is_named(label: Any, parts: list[str]) -> None:
    task = Task(problem_type=SINGLE, labels=("1", "no"))
    with pytest.raises(DataError) as caught:
        encode_labels([Example(row=3, text="x", label=label, origin=ORIGIN)], task)
    assert [part for part in parts if part not in str(caught.value)] == []
    with pytest.raises(DataError, match=r"line 3: the label .* does not occur in the training rows"):
        encode_labels(rows([(), (label,)]), Task(problem_type=MULTI, labels=("1", "no")))


@pytest.mark.parametrize(
    ("known", "here", "parts"),
    [
        (
            ("0", "1"),
            ["good", "bad"],
            [
                "line 2: the label 'good' does not occur",
                "in training: '0', '1' (numbers as text)",
                "here: 'bad', 'good' (words)",
            ],
        ),
        ((0, 1), ["good", "bad"], ["in training: 0, 1 (numbers), here: 'bad', 'good' (words)"]),
        (("bad", "good"), ["GOOD", "BAD"], ["it differs from 'good' only in case or spaces"]),
        (("so so", "good"), ["so  so"], ["it differs from 'so so' only in case or spaces"]),
        ((0, 1), [-1, -1], ["if it means that a row has no label, --data.no_label -1"]),
        (("a", "b"), ["a", "-"], ["--data.no_label -"]),
    ],
)
def test_how_the_labels_of_both_look(known: tuple[Any, ...], here: list[Any], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        encode_labels(rows(here), Task(problem_type=SINGLE, labels=known))
    assert [part for part in parts if part not in str(caught.value)] == []


def test_every_row_with_a_label_that_cannot_be_is_named() -> None:
    with pytest.raises(DataError) as caught:
        encode_labels(rows(["a", "x", "b", *"yz"]), Task(problem_type=SINGLE, labels=("a", "b")))
    assert str(caught.value).endswith(
        "the labels of 2 other rows are unknown as well: lines 5 ('y'), 6 ('z')"
    )
    with pytest.raises(DataError) as caught:
        encode_labels(rows([*"12", *["x"] * 30]), Task(problem_type=REGRESSION))
    assert str(caught.value).startswith("a.csv, line 4: got")
    assert caught.value.got == "the label 'x'"
    assert str(caught.value).endswith("22 ('x'), 23 ('x') and 10 more")


def test_a_score_that_no_loss_can_hold_is_named() -> None:
    task = infer_task(rows([0.5, 1.5, 2.5, 3.5]))
    with pytest.raises(DataError, match="line 3: got the label 1e") as caught:
        encode_labels(rows([1.5, 1e39]), task)
    assert caught.value.expected == "a score like those in training, which are 2 ± 1.12"
    assert encode_labels(rows([1.5, 1e9]), task) == [1.5, 1e9]
