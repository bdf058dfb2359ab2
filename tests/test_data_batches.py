"""Batches: every row once, neither too many rows nor too many places, and little of it padding."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data.tokens import cut, shuffled_batches, sorted_batches
from ptuning.training.config import FitConfig

many_lengths = st.lists(st.integers(1, 200), max_size=120)
sizes = st.integers(1, 40)
budgets = st.none() | st.integers(1, 4000)


def check(
    lengths: Sequence[int], batches: Sequence[Sequence[int]], batch_size: int | None, tokens: int | None
) -> None:
    """Every row once; and no batch above a cap, unless it is a single row that no budget holds."""
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert batch_size is None or len(batch) <= batch_size
        assert tokens is None or len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens


def as_before(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of the first version, word for word: runs that it began must find the same."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    window = batch_size * 50
    batches = [
        part[at : at + batch_size]
        for start in range(0, len(order), window)
        for part in [sorted(order[start : start + window], key=lengths.__getitem__)]
        for at in range(0, len(part), batch_size)
    ]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


@given(lengths=many_lengths, size=sizes, tokens=budgets, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_shuffled_batches(lengths: list[int], size: int, tokens: int | None, seed: int, epoch: int) -> None:
    found = shuffled_batches(lengths, size, seed=seed, epoch=epoch, batch_tokens=tokens)
    check(lengths, found, size, tokens)
    torch.rand(1)  # somebody else draws
    assert found == shuffled_batches(tuple(lengths), size, seed=seed, epoch=epoch, batch_tokens=tokens)


@given(lengths=many_lengths, size=sizes, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_without_a_budget_the_batches_are_those_of_the_first_version(
    lengths: list[int], size: int, seed: int, epoch: int
) -> None:
    assert shuffled_batches(lengths, size, seed=seed, epoch=epoch) == as_before(lengths, size, seed, epoch)


def test_a_known_order_stays_what_it_is() -> None:
    """Of many windows; that a library draws otherwise some day is to be noticed too."""
    lengths = [1 + (row * row) % 97 for row in range(5000)]
    found = shuffled_batches(lengths, 16, seed=3, epoch=2)
    assert found == as_before(lengths, 16, 3, 2)
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    assert digest == "87eb1cc5d1c690e8f94a2e13024069c6fd8eece6c57fd9df966e5ed18fd9432a"


@given(lengths=many_lengths, size=st.none() | sizes, tokens=budgets)
def test_sorted_batches(lengths: list[int], size: int | None, tokens: int | None) -> None:
    found = sorted_batches(lengths, size, tokens)
    check(lengths, found, size, tokens)
    flat = [lengths[row] for batch in found for row in batch]
    assert flat == sorted(lengths, reverse=True)


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60), size=st.none() | sizes, tokens=budgets)
def test_a_batch_is_as_large_as_it_may_be(lengths: list[int], size: int | None, tokens: int | None) -> None:
    """The first row of each batch would not have fitted into the one before."""
    found = cut(range(len(lengths)), lengths, size, tokens)
    assert [row for batch in found for row in batch] == list(range(len(lengths)))
    for batch, after in pairwise(found):
        more = [*batch, after[0]]
        assert len(more) == (size or -1) + 1 or (
            tokens is not None and len(more) * max(lengths[i] for i in more) > tokens
        )


def test_cutting_by_hand() -> None:
    lengths = [5, 3, 3, 2, 9, 1]
    assert cut(range(6), lengths, None, 10) == [[0, 1], [2, 3], [4], [5]]
    assert cut(range(6), lengths, 1, 10) == [[0], [1], [2], [3], [4], [5]]
    assert cut(range(6), lengths, 4, None) == [[0, 1, 2, 3], [4, 5]]
    assert cut(range(6), lengths, None, None) == [[0, 1, 2, 3, 4, 5]]
    assert cut(range(6), lengths, None, 1) == [[0], [1], [2], [3], [4], [5]]  # one row always
    assert cut([], lengths, 4, 10) == []


@cache
def real_lengths(root: Path, name: str) -> list[int]:
    """Tokens of each training row, as the embedded backbone takes it."""
    from ptuning.data import load_examples
    from ptuning.data.tokens import Tokenise
    from ptuning.model.loading import load_tokenizer

    examples = load_examples(str(root / name / "train.jsonl")).examples
    return list(map(len, Tokenise(tokenizer=load_tokenizer("demo"), limit=492)(examples)))


def padding(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    places = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1 - sum(lengths[row] for batch in batches for row in batch) / places


@pytest.mark.data
@pytest.mark.skipif(
    "PTUNING_DATA" not in os.environ, reason="set PTUNING_DATA to a folder with mrpc/, sst2/ and stsb/"
)
@pytest.mark.parametrize("name", ["mrpc", "sst2"])
@pytest.mark.parametrize(
    ("size", "tokens"),
    [(FitConfig().batch_size, None), (32, None), (16, 512), (64, 1024), (64, 4096), (256, 4096)],
)
def test_less_than_a_twentieth_is_padding(data_root: Path, name: str, size: int, tokens: int | None) -> None:
    lengths = real_lengths(data_root, name)
    for epoch in range(2):
        batches = shuffled_batches(lengths, size, seed=0, epoch=epoch, batch_tokens=tokens)
        check(lengths, batches, size, tokens)
        assert 0 < padding(lengths, batches) < 0.05
    assert padding(lengths, sorted_batches(lengths, size, tokens)) < 0.05
