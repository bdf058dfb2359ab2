"""An adapter with another temperature and other thresholds, and what its card says about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ptuning.adapters.record import Adapter
from ptuning.task import Task

RECORD = "calibration"
"""Where ``extra`` has what a calibration was fitted to and what it changed."""
LEFT_OUT = "left_out_for_peft"
"""Where ``extra`` has what an adapter lost when it was written for PEFT, in a sentence."""


def recalibrated(adapter: Adapter, task: Task, record: Mapping[str, Any] | None = None) -> Adapter:
    """The adapter with the temperature and thresholds of ``task``.

    Metrics that were measured with other thresholds are left out, and so are the records of the calibration
    before.

    Args:
        record: What the calibration was fitted to and what it changed, as in
            :attr:`TrainResult.calibration <ptuning.TrainResult>`.
    """
    extra = {name: value for name, value in adapter.extra.items() if name not in (RECORD, LEFT_OUT)}
    stale = task.kind.threshold_metrics if task.thresholds != adapter.task.thresholds else ()
    metrics = {
        split: {name: value for name, value in found.items() if name not in stale}
        if isinstance(found, Mapping) and split != "baseline"
        else found
        for split, found in adapter.metrics.items()
    }
    own = {} if record is None else {RECORD: dict(record)}
    return replace(adapter, task=task, metrics=metrics, extra={**extra, **own})


def calibration_changes(adapter: Adapter) -> Iterator[tuple[str, str, float, float]]:
    """The recorded figures: split, name, before, after. The record may be anyone's, so anything else is left
    out.
    """
    record = adapter.extra.get(RECORD)
    for split in ("validation", "test"):
        found = record.get(split) if isinstance(record, Mapping) else None
        before, after = (
            (found or {}).get(at) if isinstance(found, Mapping) else None for at in ("before", "after")
        )
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            for name, value in before.items():
                if _is_number(value) and _is_number(after.get(name)):
                    yield split, str(name), value, after[name]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
