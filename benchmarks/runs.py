"""What the benchmarks share whose runs are lines of a results file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from statistics import fmean, stdev
from typing import Any

from measuring import machine
from quality.study import revision

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
"""Makes a table of a header and rows."""


def provenance() -> dict[str, Any]:
    """When, by which commit and on what a run was made: the end of its line."""
    return {"date": datetime.now(UTC).date().isoformat(), "revision": revision(), "machine": machine()}


def with_options(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration ``values`` with options such as ``fit.epochs``."""
    found = deepcopy(dict(values))
    for name, value in options.items():
        *sections, option = name.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[option] = value
    return found


def mean(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; a dash if there are none."""
    if not values:
        return "–"
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def counted_mean(values: Sequence[float]) -> str:
    """The same, and how many there are."""
    return f"{mean(values)} ({len(values)})" if values else mean(values)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """For a terminal; a :data:`Table`."""
    return "\n".join(" | ".join(row) for row in (header, *rows))
