"""Predictions as JSON Lines or CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from ptuning.visible import cell, json_text

if TYPE_CHECKING:
    from ptuning.inference.predictor import Prediction
    from ptuning.task import Task


def writer(stream: IO[str], form: str, task: Task | None) -> Callable[[Prediction], None]:
    """A function that writes one prediction; the columns of a CSV are determined by the first one.

    Args:
        form: ``jsonl`` or ``csv``.
        task: The task of all predictions; ``None`` if each has its own. A CSV then has the columns of
            :func:`_of_its_task` in place of one column per class.
    """
    if form == "jsonl":
        return lambda found: print(
            json_text(_with_kept(_as_object(found), found.kept)),
            file=stream,
            flush=stream.isatty(),
        )
    table = csv.writer(stream, lineterminator="\n")
    own_cells = _of_its_task if task is None else partial(_of_one_task, task)
    has_header = False

    def write(found: Prediction) -> None:
        nonlocal has_header
        cells = _with_kept(own_cells(found), found.kept)
        if not has_header:
            table.writerow(map(cell, cells))
        has_header = True
        table.writerow(
            json_text(value) if isinstance(value, list | dict) else cell(value) for value in cells.values()
        )

    return write


def _as_object(found: Prediction) -> dict[str, Any]:
    task = {} if found.task is None else {"task": found.task}
    return {"row": found.row, **task, **found.to_dict()}


def _of_one_task(task: Task, found: Prediction) -> dict[str, Any]:
    """One column per class."""
    names = ["label", *(f"p({label})" for label in task.labels)] if task.labels else ["value"]
    own = [found.row, _label(found), *(f"{chance:.6f}" for _, chance in found.probabilities)]
    return {**dict(zip(["row", *names], own, strict=True)), **_abstained(found)}


def _of_its_task(found: Prediction) -> dict[str, Any]:
    """The same columns for every task: ``label`` is empty for a regression, ``value`` for all others;
    ``probabilities`` is a JSON object.
    """
    given = found.to_dict()
    return {
        "row": found.row,
        "task": found.task,
        "label": _label(found) if "label" in given else "",
        "value": given.get("value", ""),
        "probabilities": given.get("probabilities", ""),
        **_abstained(found),
    }


def _abstained(found: Prediction) -> dict[str, Any]:
    """The last column, if abstaining was asked for."""
    return {} if found.abstained is None else {"abstained": json_text(found.abstained)}


def _label(found: Prediction) -> Any:
    """Empty if the model abstained."""
    if found.label is None:
        return ""
    return "|".join(map(str, found.label)) if isinstance(found.label, tuple) else found.label


def _with_kept(own: dict[str, Any], kept: Mapping[str, Any] | None) -> dict[str, Any]:
    """A prediction with the kept columns; a column with the name of one of its parts becomes
    ``input.label``.
    """
    for name, value in (kept or {}).items():
        free = name
        while free in own:
            free = f"input.{free}"
        own[free] = plain(value)
    return own


def plain(value: Any) -> Any:
    """A value that JSON can represent; other values, such as dates, as strings."""
    if isinstance(value, Decimal) and value.as_tuple().exponent == 0:
        return int(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value)
