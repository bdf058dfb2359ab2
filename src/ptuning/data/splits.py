"""Splits off part of the training examples for validation.

The split is stratified (by class, by the rarest label of a multi-label row, by quantile for regression),
keeps rows with the same text on one side to avoid leaks, and depends only on the seed: the same rows,
fraction and seed give the same split on every machine, process and Python version.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from random import Random

from ptuning.data.examples import Example
from ptuning.data.labels import encode_labels
from ptuning.data.places import option
from ptuning.errors import ConfigError, DataError
from ptuning.task import Task


def split_off(
    examples: Sequence[Example], task: Task | None, *, fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split examples into (training, validation), each in the original order.

    A class with a single row stays in training. Two or more validation rows are from at least two classes, if
    that leaves rows of both in training. The validation part has ``round(fraction * rows)`` rows. If the same
    text is in many rows, which stay together, it may have fewer; or more, but at most half of all rows, if it
    would otherwise be empty or have a single class.

    Args:
        examples: The examples to split.
        task: The task, for the strata; ``None`` for a split that is not stratified.
        fraction: The share of validation rows, above 0 and below 1.
        seed: The random seed.

    Raises:
        ConfigError: ``fraction`` is out of range.
        DataError: There are too few rows.
    """
    if not 0 < fraction < 1:
        raise ConfigError("fraction", got=fraction, expected="a number above 0 and below 1, such as 0.1")
    rows = len(examples)
    wanted = math.floor(fraction * rows + 0.5)
    if wanted < 1 or rows - wanted < 1:
        raise DataError(
            _name(examples),
            got=f"{wanted} validation rows, a fraction of {fraction} of {rows} rows",
            expected="at least one row on both sides",
            remedy="add rows, change the fraction, or pass a validation file",
        )
    strata = _strata(examples, task)
    quotas = _quotas([sum(map(len, stratum)) for stratum in strata], wanted)
    ordered = [_in_order(stratum, draw) for stratum, draw in zip(strata, _draws(strata, seed), strict=True)]
    taken = [_take(groups, quota) for groups, quota in zip(ordered, quotas, strict=True)]
    _fill(ordered, quotas, taken, wanted)
    _overfill(ordered, taken, wanted, rows // 2)
    held = {index for groups in taken for group in groups for index in group}
    if not held:
        texts = sum(map(len, strata))
        why = (
            f"the {rows} rows have {texts} different texts, each of them in too many rows to split it off"
            if any(len(stratum) > 1 for stratum in strata)
            else "no label is in two rows with different texts, so no row can be split off"
        )
        raise DataError(
            f"{_name(examples)}: {why}",
            remedy=f"add rows, pass validation rows ({option('validation')}), or increase the fraction "
            f"({option('validation_fraction')})",
        )
    train = [example for index, example in enumerate(examples) if index not in held]
    return train, [examples[index] for index in sorted(held)]


def same_text(example: Example) -> tuple[str, str]:
    """A key for rows with the same texts, ignoring case and spacing."""
    return _normal(example.text), _normal(example.text_b or "")


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _name(examples: Sequence[Example]) -> str:
    return examples[0].origin.name if examples else "the training data"


_Groups = list[list[int]]  # row indices, together where the text is the same


def _strata(examples: Sequence[Example], task: Task | None) -> list[_Groups]:
    keys = _keys(examples, task)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[same_text(example)].append(index)
    strata: dict[Hashable, _Groups] = defaultdict(list)
    for group in groups.values():
        strata[keys[group[0]]].append(group)
    return list(strata.values())


def _keys(examples: Sequence[Example], task: Task | None) -> Sequence[Hashable]:
    """The stratum of every row."""
    if task is None:
        return [None] * len(examples)
    return task.kind.strata(encode_labels(examples, task))


def _quotas(sizes: Sequence[int], wanted: int) -> list[int]:
    """Distribute ``wanted`` rows among strata by largest remainder, leaving at least one row of each.

    Two or more rows are from at least two strata: with a single class, metrics would be meaningless.
    """
    total = sum(sizes)
    quotas = [min(wanted * size // total, size - 1) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda index: (-(wanted * sizes[index] % total), index))
    while sum(quotas) < wanted:
        open_strata = [index for index in by_remainder if quotas[index] < sizes[index] - 1]
        if not open_strata:
            break
        for index in open_strata[: wanted - sum(quotas)]:
            quotas[index] += 1
    others = [index for index, quota in enumerate(quotas) if not quota and sizes[index] > 1]
    if wanted > 1 and others and sum(map(bool, quotas)) == 1:
        quotas[quotas.index(max(quotas))] -= 1
        quotas[max(others, key=lambda index: (sizes[index], -index))] += 1
    return quotas


def _draws(strata: Sequence[_Groups], seed: int) -> list[list[float]]:
    """A random number for every group; Python guarantees that ``Random.random`` does not change."""
    random = Random(seed)
    return [[random.random() for _ in stratum] for stratum in strata]


def _in_order(stratum: _Groups, draw: Sequence[float]) -> _Groups:
    """The groups as they were drawn."""
    return [stratum[group] for group in sorted(range(len(stratum)), key=lambda group: (draw[group], group))]


def _take(ordered: _Groups, quota: int) -> _Groups:
    """Groups in drawn order that fit the quota; one group is always left."""
    taken: _Groups = []
    for group in ordered[:-1]:
        if len(group) <= quota:
            taken.append(group)
            quota -= len(group)
    return taken


def _fill(ordered: Sequence[_Groups], quotas: Sequence[int], taken: Sequence[_Groups], wanted: int) -> None:
    """Take more groups as far as the total allows, from the strata that are furthest below their quota
    first.
    """
    used = {id(group) for groups in taken for group in groups}
    left = [deque(group for group in groups[:-1] if id(group) not in used) for groups in ordered]
    lacking = [quota - _size(groups) for quota, groups in zip(quotas, taken, strict=True)]
    room = wanted - sum(map(_size, taken))
    while room:
        for groups in left:
            while groups and len(groups[0]) > room:
                groups.popleft()  # it will not fit later either
        fitting = [index for index, groups in enumerate(left) if groups]
        if not fitting:
            return
        index = min(fitting, key=lambda index: (-lacking[index], index))
        group = left[index].popleft()
        taken[index].append(group)
        lacking[index] -= len(group)
        room -= len(group)


def _overfill(ordered: Sequence[_Groups], taken: Sequence[_Groups], wanted: int, maximum: int) -> None:
    """Take the smallest groups until there are rows of two strata (of one, if one row is wanted)."""
    strata = min(2, wanted, sum(len(groups) > 1 for groups in ordered))
    while sum(map(bool, taken)) < strata:
        room = maximum - sum(map(_size, taken))
        smallest = [
            (len(group), -len(groups), index, group)
            for index, groups in enumerate(ordered)
            if len(groups) > 1 and not taken[index]
            for group in sorted(groups[:-1], key=len)[:1]
        ]
        size, _, index, group = min(smallest)
        if size > room:
            return
        taken[index].append(group)


def _size(groups: _Groups) -> int:
    return sum(map(len, groups))
