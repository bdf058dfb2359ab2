"""The results as tables for docs/performance.md, from whatever JSON files there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from measuring import processor

RESULTS = Path(__file__).parent / "results"

Table = Callable[[tuple[str, ...], list[tuple[str, ...]]], str]


def tables(table: Table, results: Path = RESULTS) -> str:
    """Every result, a heading and a table each."""
    parts = []
    for kind, part in (("training", _speed), ("inference", _speed), ("memory", _memory)):
        for file in sorted(results.glob(f"{kind}-*.json")):
            found = json.loads(file.read_text(encoding="utf-8"))
            parts.append("\n\n".join([_heading(kind, found), part(table, found), _note(file, found)]))
    return "\n\n".join(parts) or "No results yet: `make bench` makes them."


def rate(value: float) -> str:
    """Rows a second, in as many digits as say something."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _heading(kind: str, found: Mapping[str, Any]) -> str:
    settings = found["settings"]
    return f"### {kind.capitalize()}: {settings['model']}, {settings['data']}, {settings['precision']}"


def _speed(table: Table, found: Mapping[str, Any]) -> str:
    training = found["settings"].get("full_rows")
    rows = []
    for name, each in found["medians"].items():
        ratio = found.get("ratios", {}).get(name, {})
        share = found.get("share_of_floor", {}).get(name, {}).get("later")
        row = [
            _bold(name),
            f"{each['trained']:,.0f}",
            rate(each["first_examples_per_second"]),
            rate(each["examples_per_second"]),
            f"{ratio['examples_per_second']:.2f} ×" if ratio else "",
            "" if share is None else f"{100 * share:.0f} %",
        ]
        rows.append((*row, f"{each['full_epoch_seconds_extrapolated']:.0f}") if training else tuple(row))
    part = "epoch" if training else "pass"
    header = (
        "side",
        "trained parameters",
        f"rows/s, first {part}",
        "rows/s, later",
        "relative to PEFT P_TUNING",
        "share of the floor",
    )
    return table((*header, "seconds per epoch of all rows \\*") if training else header, rows)


def _memory(table: Table, found: Mapping[str, Any]) -> str:
    on_gpu = any("cuda_peak" in each for each in found["medians"].values())
    key = "cuda_peak" if on_gpu else "memory_peak"
    rows: list[tuple[str, ...]] = [
        (
            _bold(name),
            f"{each[key] / 1024:.2f}",
            f"{each['memory_loaded'] / 1024:.2f}",
            f"{100 * ratio:.0f} %" if (ratio := found.get("ratios", {}).get(name, {}).get(key)) else "",
        )
        for name, each in found["medians"].items()
        if each.get(key)
    ]
    peak = "peak of the GPU, GiB" if on_gpu else "peak, GiB"
    return table(("side", peak, "after loading, GiB", "of PEFT P_TUNING"), rows)


def _bold(name: str) -> str:
    return f"**{name}**" if name.startswith("ptuning") else name


def _note(file: Path, found: Mapping[str, Any]) -> str:
    settings, machine = found["settings"], found["machine"]
    versions = machine["versions"]
    words = [
        f"`{found['command']}`, {found['date']}, {_where(machine)}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, PEFT {machine['peft']}. {settings['rows']} rows of "
        f"{settings['mean_tokens']:g} tokens on average, batch {settings['batch_size']}, median of "
        f"{len(found['rounds'])} rounds ([raw](../benchmarks/results/{file.name}), "
        f"[chart](../benchmarks/results/{file.stem}.png))."
    ]
    if "full_rows" in settings:
        words.append(f"\\* Extrapolated from later rows/s to the {settings['full_rows']:,} training rows.")
    words += _failures(found.get("failed", {}).items())
    return "\n\n".join(words)


def _where(machine: Mapping[str, Any]) -> str:
    return str(machine.get("accelerator") or processor(machine))


def _failures(failed: Iterable[tuple[str, list[str]]]) -> list[str]:
    # An error is one line, the parts of a traceback apart by bars: the last one says what went wrong.
    return [
        f"{name} failed {len(each)} time{'s' if len(each) > 1 else ''}: `{each[0].rpartition(' | ')[2]}`"
        for name, each in failed
    ]
