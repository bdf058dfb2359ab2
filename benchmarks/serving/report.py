"""Results as tables in Markdown: ``PYTHONPATH=benchmarks python -m serving.report [FILE]``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(parts: Mapping[str, Any]) -> str:
    """One table for each comparison in the results."""
    made = []
    for name, part in parts.items():
        for title, sides in _sides(part["figures"], name):
            made.append(f"**{title}**, rows a second\n\n{_rates(sides)}")
        if name == "open-loop":
            made.append(f"**{name}**, milliseconds\n\n{_latencies(part['figures'])}")
        if name == "startup":
            rows = [
                (words, _spread(each["seconds_to_ready"]), _spread(each["resident_mib"]))
                for words, each in part["figures"].items()
            ]
            made.append(f"**{name}**\n\n" + table(("", "seconds to ready", "resident MiB"), rows))
    return "\n\n".join(made)


def _sides(figures: Any, title: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if not isinstance(figures, dict):
        return
    for name, value in figures.items():
        if name == "sides":
            yield title, value
        else:
            yield from _sides(value, f"{title}, {name}")


def _rates(sides: Mapping[str, Any]) -> str:
    rows = []
    for name, side in sides.items():
        beside = ""
        if "ratio" in side:
            beside = f"{_spread(side['ratio'])} of *{side['reference']}*"
        elif "ptuning_times_faster" in side:
            beside = f"ptuning is {_spread(side['ptuning_times_faster'])} × faster"
        if (best := side.get("beside_its_best")) and best["ratio"] and best["reference"] != side["reference"]:
            beside += f"; {_spread(best['ratio'])} of *{best['reference']}*"
        rows.append((name, _spread(side["rate"]), beside))
    return table(("side", "median (range)", "beside"), rows)


def _latencies(figures: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            f"{each['offered_per_second']:g}",
            *(_spread(each[part]) if each[part] else "" for part in ("p50", "p95", "p99")),
            f"{100 * each['answered']:.1f} %",
        )
        for name, each in figures["latencies"].items()
    ]
    return table(("", "offered a second", "p50", "p95", "p99", "answered"), rows)


def _spread(found: Mapping[str, Any]) -> str:
    low, high = found["range"]
    return f"{found['median']:g} ({low:g} to {high:g})"


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]] or [
        Path(__file__).parent.parent / "results" / "serving.json"
    ]
    print(tables(json.loads(given[0].read_text())["parts"]))
