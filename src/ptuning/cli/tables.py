"""Tables that more than one command prints."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table


def metrics_table(
    metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Mapping[str, float]], rule: str
) -> Table:
    """Metrics by split, each beside what a constant answer scores."""
    table = Table(title=f"baseline: {rule}", title_justify="left", title_style="dim")
    table.add_column("metric")
    for split in metrics:
        table.add_column(split, justify="right")
        if split in baseline:
            table.add_column("baseline", justify="right", style="dim")
    for name in dict.fromkeys(name for found in metrics.values() for name in found):
        cells = [
            _number(values.get(name))
            for split in metrics
            for values in (metrics[split], *([baseline[split]] if split in baseline else []))
        ]
        table.add_row(name, *cells)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
