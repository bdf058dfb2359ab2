"""Put part of the training examples aside for validation.

The draw is stratified (by class, by the rarest label of a multi-label row, by quantile for regression),
keeps rows with the same text on one side so that nothing leaks, and depends on the seed alone: the same
rows, fraction and seed give the same split on every machine, process and Python version.
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
    """Split examples into (training, validation), each in the order it came.

    A stratum never goes to validation whole: a class with one row stays in training. Two validation rows and
    more are of two strata at least, where that leaves both some. The validation part has
    ``round(fraction * rows)`` rows. Where the same text stands in many rows, which stay together, it has as
    many as can be dealt out; and more, but never above half, where it would have none, or of one stratum.

    Args:
        examples: What to split.
        task: Gives the strata; ``None`` for a plain draw.
        fraction: The validation part, above 0 and below 1.
        seed: Decides the draw.

    Raises:
        ConfigError: ``fraction`` is out of range.
        DataError: There are too few rows to put one aside.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction is {fraction!r}, expected a number above 0 and below 1, such as 0.1")
    rows = len(examples)
    wanted = math.floor(fraction * rows + 0.5)
    if wanted < 1 or rows - wanted < 1:
        raise DataError(
            f"{_name(examples)}: {rows} rows, of which a fraction of {fraction} is {wanted}, expected at "
            "least one row on both sides; add rows, change the fraction, or give a validation file"
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
            f"the {rows} rows hold {texts} different texts, none in so few of them that it could be put aside"
            if any(len(stratum) > 1 for stratum in strata)
            else "no label stands in two rows of different text, expected one that does, to put a row aside"
        )
        raise DataError(
            f"{_name(examples)}: {why}; add rows, give validation rows ({option('validation')}), "
            f"or put more of these aside ({option('validation_fraction')})"
        )
    train = [example for index, example in enumerate(examples) if index not in held]
    return train, [examples[index] for index in sorted(held)]


def same_text(example: Example) -> tuple[str, str]:
    """What two rows share that say the same: their texts without case and spacing."""
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
    """Share ``wanted`` rows among strata by largest remainder, at least one row of each left over.

    Two rows and more are of two strata at least: those of one class would tell nothing of a model.
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
    """A random number for every group; ``Random.random`` is what Python promises never to change."""
    random = Random(seed)
    return [[random.random() for _ in stratum] for stratum in strata]


def _in_order(stratum: _Groups, draw: Sequence[float]) -> _Groups:
    """The groups as they were drawn."""
    return [stratum[group] for group in sorted(range(len(stratum)), key=lambda group: (draw[group], group))]


def _take(ordered: _Groups, quota: int) -> _Groups:
    """Groups in drawn order, as long as they fit the quota; one group always stays."""
    taken: _Groups = []
    for group in ordered[:-1]:
        if len(group) <= quota:
            taken.append(group)
            quota -= len(group)
    return taken


def _fill(ordered: Sequence[_Groups], quotas: Sequence[int], taken: Sequence[_Groups], wanted: int) -> None:
    """Take groups above their stratum's quota, those first whose stratum lacks most, as the total allows."""
    used = {id(group) for groups in taken for group in groups}
    left = [deque(group for group in groups[:-1] if id(group) not in used) for groups in ordered]
    lacking = [quota - _size(groups) for quota, groups in zip(quotas, taken, strict=True)]
    room = wanted - sum(map(_size, taken))
    while room:
        for groups in left:
            while groups and len(groups[0]) > room:
                groups.popleft()  # nor will it fit later: the room only shrinks
        fitting = [index for index, groups in enumerate(left) if groups]
        if not fitting:
            return
        index = min(fitting, key=lambda index: (-lacking[index], index))
        group = left[index].popleft()
        taken[index].append(group)
        lacking[index] -= len(group)
        room -= len(group)


def _overfill(ordered: Sequence[_Groups], taken: Sequence[_Groups], wanted: int, most: int) -> None:
    """Take the smallest groups until there are some of two strata, or of one where one row is wanted."""
    strata = min(2, wanted, sum(len(groups) > 1 for groups in ordered))
    while sum(map(bool, taken)) < strata:
        room = most - sum(map(_size, taken))
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
