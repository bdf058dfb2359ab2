"""Put part of the training examples aside for validation.

The draw is stratified (by class, by the rarest label of a multi-label row, by quantile for regression),
keeps rows with the same text on one side so that nothing leaks, and depends on the seed alone: the same
rows, fraction and seed give the same split on every machine, process and Python version.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from random import Random

from ptuning.data.examples import Example
from ptuning.data.labels import encode_labels
from ptuning.errors import ConfigError, DataError
from ptuning.task import Task

QUANTILES = 10


def split_off(
    examples: Sequence[Example], task: Task | None, *, fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split examples into (training, validation), each in the order it came.

    A stratum never goes to validation whole: a class with one row stays in training. Two validation rows and
    more are of two strata at least, where that leaves both some. The validation part has
    ``round(fraction * rows)`` rows, fewer only where strata are too small or the same text stands in many
    rows.

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
    held = {
        index
        for stratum, quota, draw in zip(strata, quotas, _draws(strata, seed), strict=True)
        for index in _take(stratum, quota, draw)
    }
    if not held:
        raise DataError(
            f"{_name(examples)}: no label stands in two rows of different text, expected one that does, to "
            "put a row aside; add rows, or give a validation file"
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
    targets = encode_labels(examples, task)
    if task.problem_type == "regression":
        bins = max(1, min(QUANTILES, len(examples) // 5))
        ranked = sorted(range(len(examples)), key=lambda index: (targets[index], index))
        place = {index: rank * bins // len(ranked) for rank, index in enumerate(ranked)}
        return [place[index] for index in range(len(examples))]
    if task.problem_type == "single_label_classification":
        return [str(target) for target in targets]
    labels = [[column for column, hot in enumerate(row) if hot] for row in targets if isinstance(row, list)]
    counts = Counter(column for row in labels for column in row)
    return [min(row, key=lambda column: (counts[column], column)) if row else None for row in labels]


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


def _take(stratum: _Groups, quota: int, draw: Sequence[float]) -> list[int]:
    """Groups in drawn order, as long as they fit the quota; one group always stays."""
    taken: list[int] = []
    order = sorted(range(len(stratum)), key=lambda group: (draw[group], group))
    for group in order[:-1]:
        if len(taken) + len(stratum[group]) <= quota:
            taken.extend(stratum[group])
    return taken
