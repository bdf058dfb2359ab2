"""Bulk scoring, searches and serving on a Ray cluster (extra ``ptuning[ray]``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptuning._lazy import lazy

if TYPE_CHECKING:
    from ptuning.ray.output import Written, write_predictions
    from ptuning.ray.scoring import predict_dataset
    from ptuning.ray.tuning import train_search, train_several

__getattr__, __dir__ = lazy(
    __name__,
    {"predict_dataset": "ptuning.ray.scoring"}
    | dict.fromkeys(("Written", "write_predictions"), "ptuning.ray.output")
    | dict.fromkeys(("train_search", "train_several"), "ptuning.ray.tuning"),
)

__all__ = ["Written", "predict_dataset", "train_search", "train_several", "write_predictions"]
