"""Predictions as JSON Lines or CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any

from ptuning.visible import cell, json_text

if TYPE_CHECKING:
    from ptuning.inference.predictor import Prediction
    from ptuning.task import Task


def writer(stream: IO[str], form: str, task: Task) -> Callable[[Prediction], None]:
    """A function that writes one prediction; the columns of a CSV are determined by the first one."""
    if form == "jsonl":
        return lambda found: print(
            json_text(_with_kept({"row": found.row, **found.to_dict()}, found.kept)),
            file=stream,
            flush=stream.isatty(),
        )
    table = csv.writer(stream, lineterminator="\n")
    names = ["label", *(f"p({label})" for label in task.labels)] if task.labels else ["value"]
    has_header = False

    def write(found: Prediction) -> None:
        nonlocal has_header
        label = "|".join(map(str, found.label)) if isinstance(found.label, tuple) else found.label
        own = [found.row, label, *(f"{chance:.6f}" for _, chance in found.probabilities)]
        cells = _with_kept(dict(zip(["row", *names], own, strict=True)), found.kept)
        if not has_header:
            table.writerow(map(cell, cells))
        has_header = True
        table.writerow(
            json_text(value) if isinstance(value, list | dict) else cell(value) for value in cells.values()
        )

    return write


def _with_kept(own: dict[str, Any], kept: Mapping[str, Any] | None) -> dict[str, Any]:
    """A prediction with the kept columns; a column with the name of one of its parts becomes
    ``input.label``.
    """
    for name, value in (kept or {}).items():
        free = name
        while free in own:
            free = f"input.{free}"
        own[free] = _plain(value)
    return own


def _plain(value: Any) -> Any:
    """A value that JSON can represent; other values, such as dates, as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value)
