"""How long the quality study's runs take, from those that were run before."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quality.plan import METHODS, MOST_PAIRS, TRAINING, TRAVELLED, Record, accelerator, data_set

GUESS, LARGER = 5e-4, 7
"""Seconds a token takes in training on MiniLM, until there is a record; how many times as long on others."""


def estimate(records: Sequence[Record], dataset: str, method: str) -> float:
    """Seconds of a core that a run will take: as it took before, or as the method took elsewhere, a token."""
    on_cores = [record for record in records if record["metrics"] and not accelerator(record)]
    same = [record for record in on_cores if record["method"] == method]
    here = [record["cpu_seconds"] for record in same if record["dataset"] == dataset]
    if here:
        return math.fsum(here) / len(here)
    tokens = math.fsum(_tokens(record["dataset"], method) for record in same)
    if METHODS[method].kind == "majority":
        return 5.0
    guess = GUESS * (LARGER if dataset in TRAVELLED else 1)
    each = math.fsum(record["cpu_seconds"] for record in same) / tokens if tokens else guess
    return each * _tokens(dataset, method)


def _tokens(dataset: str, method: str) -> float:
    """Tokens that a run is trained on, more or less."""
    data, options = data_set(dataset), METHODS[method].options
    if METHODS[method].kind == "setfit":
        return float(min(MOST_PAIRS, data.rows**2 / 2) * 2 * data.tokens)
    batch, epochs = TRAINING["batch_size"], options.get("epochs", 8)
    steps = max(epochs * math.ceil(data.rows / batch), TRAINING["least_steps"])
    return float(steps * batch * data.tokens)
