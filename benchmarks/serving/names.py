"""The names of the tasks, and draws of them. Without torch: the load generator starts quickly."""

from __future__ import annotations

import random
from typing import Literal

Draw = Literal["uniform", "zipf"]


def name_of(number: int) -> str:
    """Of the task of that number."""
    return f"task-{number:04d}"


def drawn(tasks: int, count: int, draw: Draw, seed: int = 0) -> list[str]:
    """The names of ``count`` tasks out of ``tasks``; ``zipf``: the k-th has a weight of 1/k."""
    weights = [1.0 if draw == "uniform" else 1 / (k + 1) for k in range(tasks)]
    return [name_of(k) for k in random.Random(seed).choices(range(tasks), weights, k=count)]
