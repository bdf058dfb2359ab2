"""Sides that alternate, and what their rounds come to."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Side = Callable[[int], dict[str, Any]]
"""Measures one thing once, given the number of the round; ``rate`` in the result is what is compared."""


def alternating(sides: Mapping[str, Side], rounds: int, title: str = "") -> list[dict[str, dict[str, Any]]]:
    """Every side once a round. Odd rounds go the other way round, so that a machine that grows slower is no
    side's advantage.
    """
    found = []
    for number in range(rounds):
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        results = {}
        for name in names:
            results[name] = sides[name](number)
            print(f"{title}, round {number + 1}, {name}: {results[name]['rate']:,.1f}", file=sys.stderr)
        found.append({name: results[name] for name in sides})
    return found


def spread(values: Sequence[float], digits: int = 1) -> dict[str, Any]:
    """Median and range."""
    return {
        "median": round(statistics.median(values), digits),
        "range": [round(min(values), digits), round(max(values), digits)],
    }


def compared(
    rounds: Sequence[Mapping[str, Mapping[str, Any]]], references: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Each side's rates, and its ratio to its reference, which is taken in every round.

    Args:
        references: The reference of each side that has one.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in rounds[0]:
        rates = [each[name]["rate"] for each in rounds]
        found[name] = {"rate": spread(rates)}
        if (reference := references.get(name)) is not None:
            others = [each[reference]["rate"] for each in rounds]
            ratios = [rate / other for rate, other in zip(rates, others, strict=True) if other]
            if ratios:
                found[name] |= {"reference": reference, "ratio": spread(ratios, 3)}
    return found


def all_to(reference: str, sides: Mapping[str, Side]) -> dict[str, str]:
    """The same reference for all the others."""
    return {name: reference for name in sides if name != reference}
