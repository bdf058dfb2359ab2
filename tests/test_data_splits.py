"""Splits: disjoint, complete, stratified, and decided by the seed alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data import Example, Origin, infer_task, split_off
from ptuning.errors import ConfigError, DataError
from ptuning.task import Task

TASK = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
ORIGIN = Origin(name="a.csv", unit="line")


def rows(labels: Sequence[Any], texts: Sequence[str] | None = None) -> list[Example]:
    return [
        Example(row=row, text=texts[row] if texts else f"text {row}", label=label, origin=ORIGIN)
        for row, label in enumerate(labels)
    ]


def numbers(examples: Sequence[Example]) -> list[int]:
    return [example.row for example in examples]


@given(
    st.lists(st.sampled_from("aabbc"), min_size=8, max_size=80),
    st.floats(0.1, 0.9),
    st.integers(0, 2**32),
)
def test_a_split_is_a_stratified_partition(labels: list[str], fraction: float, seed: int) -> None:
    examples = rows(labels)
    train, validation = split_off(examples, TASK, fraction=fraction, seed=seed)
    assert sorted(numbers(train) + numbers(validation)) == numbers(examples)
    assert numbers(train) == sorted(numbers(train))
    assert numbers(validation) == sorted(numbers(validation))
    assert (train, validation) == split_off(examples, TASK, fraction=fraction, seed=seed)
    held = Counter(example.label for example in validation)
    for label, count in Counter(labels).items():
        assert held[label] < count
        if fraction <= 0.5 and count > 2:
            assert abs(held[label] - fraction * count) <= 1.5


def test_sizes_and_seeds() -> None:
    examples = rows(["a"] * 60 + ["b"] * 30 + ["c"] * 10)
    train, validation = split_off(examples, TASK, fraction=0.2, seed=0)
    assert Counter(example.label for example in validation) == {"a": 12, "b": 6, "c": 2}
    assert len(train) == 80
    assert numbers(validation) != numbers(split_off(examples, TASK, fraction=0.2, seed=1)[1])
    assert len(split_off(examples, None, fraction=0.25, seed=0)[1]) == 25


def test_a_class_of_one_row_stays_in_training() -> None:
    examples = rows(["a", "b", "b", "b", "c"])
    for seed in range(20):
        train, validation = split_off(examples, TASK, fraction=0.4, seed=seed)
        assert {example.label for example in train} == {"a", "b", "c"}
        assert {example.label for example in validation} == {"b"}


def test_validation_rows_are_of_two_classes_at_least() -> None:
    """A tenth of four rows is none, and without one nothing could be said of a model."""
    examples = rows(["a"] * 4 + ["b"] * 96)
    for seed in range(5):
        train, held = split_off(examples, TASK, fraction=0.1, seed=seed)
        assert Counter(example.label for example in held) == {"a": 1, "b": 9}
        assert Counter(example.label for example in train) == {"a": 3, "b": 87}
    once = split_off(rows(["a"] + ["b"] * 99), TASK, fraction=0.1, seed=0)[1]
    assert Counter(example.label for example in once) == {"b": 10}


def test_the_same_text_stays_on_one_side() -> None:
    texts = [f"text {row // 2}" if row % 2 else f"TEXT  {row // 2}" for row in range(40)]
    for seed in range(5):
        train, validation = split_off(rows(["a", "a", "b", "b"] * 10, texts), TASK, fraction=0.3, seed=seed)
        assert {e.text.casefold().split()[1] for e in train}.isdisjoint(e.text.split()[1] for e in validation)
        assert len(validation) == 12


def test_regression_is_stratified_by_quantile() -> None:
    examples = rows([row + 0.5 for row in range(100)])
    _, validation = split_off(examples, infer_task(examples, problem_type="regression"), fraction=0.2, seed=3)
    assert Counter(
        int(example.label) // 10 for example in validation if example.label is not None
    ) == dict.fromkeys(range(10), 2)


def test_multi_label_is_stratified_by_the_rarest_label() -> None:
    examples = rows([("a",)] * 20 + [("a", "b")] * 10 + [("a", "b", "c")] + [()] * 9)
    for seed in range(10):
        train, validation = split_off(examples, infer_task(examples), fraction=0.5, seed=seed)
        assert ("a", "b", "c") in {example.label for example in train}
        assert Counter(example.label for example in validation)[("a", "b")] == 5


def test_the_split_is_the_same_in_every_process() -> None:
    program = (
        "from ptuning.data import Example, split_off\n"
        "rows = [Example(row=n, text=f't {n}', label='ab'[n % 2]) for n in range(50)]\n"
        "print([e.row for e in split_off(rows, None, fraction=0.1, seed=7)[1]])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {"[6, 8, 21, 33, 34]"}


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match="expected a number above 0 and below 1"):
        split_off(rows(["a", "b"]), TASK, fraction=fraction, seed=0)


def test_too_few_rows() -> None:
    with pytest.raises(
        DataError, match=r"a.csv: got 0 validation rows, a fraction of 0.1 of 3 rows.*validation file"
    ):
        split_off(rows(["a", "b", "a"]), TASK, fraction=0.1, seed=0)
    with pytest.raises(DataError, match=r"the training data: got 0 validation rows"):
        split_off([], TASK, fraction=0.1, seed=0)
    with pytest.raises(DataError, match=r"no label is in two rows with different texts.*add rows"):
        split_off(rows(["a", "b", "c"]), TASK, fraction=0.5, seed=0)


# Texts that stand several times --------------------------------------------------------------------


def repeated(labels: int, texts: int, times: int) -> list[Example]:
    return rows(
        [f"l{label}" for label in range(labels) for _ in range(texts * times)],
        [f"text {label} {text}" for label in range(labels) for text in range(texts) for _ in range(times)],
    )


@pytest.mark.parametrize(
    ("labels", "texts", "times"), [(30, 4, 3), (2, 7, 5), (2, 3, 40), (3, 50, 2), (2, 2, 6)]
)
def test_repeated_texts_can_be_split(labels: int, texts: int, times: int) -> None:
    examples = repeated(labels, texts, times)
    for seed in range(5):
        train, held = split_off(examples, infer_task(examples), fraction=0.1, seed=seed)
        assert {e.text for e in train}.isdisjoint(e.text for e in held)
        assert {e.label for e in train} == {e.label for e in examples}
        assert len({e.label for e in held}) >= 2
        assert len(held) <= max(len(examples) // 10, 2 * times)


def test_no_label_goes_whole_and_half_stays() -> None:
    examples = [*repeated(2, 1, 10), *rows(["l0"] * 4)]
    _, held = split_off(examples, infer_task(examples), fraction=0.1, seed=0)
    assert {e.label for e in held} == {"l0"}
    once = rows(["a", "a", "b", "b"] * 10, [f"text {row % 4 // 2} {row % 2}" for row in range(40)])
    assert len(split_off(once, infer_task(once), fraction=0.1, seed=0)[1]) == 20


def test_what_cannot_be_split_says_why() -> None:
    examples = repeated(2, 1, 20)
    with pytest.raises(DataError, match=r"no label is in two rows with different texts.*data\.validation "):
        split_off(examples, infer_task(examples), fraction=0.1, seed=0)
    one_text = [*rows(["a"] * 30 + ["b"] * 30, ["x"] * 30 + ["y"] * 30), *rows(["a"], ["x z"])]
    train, held = split_off(one_text, infer_task(one_text), fraction=0.1, seed=0)
    assert len(train) + len(held) == 61


def test_rows_without_repeated_texts_are_dealt_as_ever() -> None:
    """Results that were written down depend on it."""
    examples = rows([*"aab"] * 40)
    assert numbers(split_off(examples, TASK, fraction=0.1, seed=0)[1]) == [
        *(37, 52, 53, 60, 78, 84, 89, 98, 105, 106, 112, 113)
    ]
