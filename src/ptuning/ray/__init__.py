"""Bulk scoring, searches and serving on a Ray cluster (extra ``ptuning[ray]``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptuning._lazy import lazy

if TYPE_CHECKING:
    from ptuning.ray.tuning import train_search, train_several

__getattr__, __dir__ = lazy(
    __name__,
    dict.fromkeys(("train_search", "train_several"), "ptuning.ray.tuning"),
)

__all__ = ["train_search", "train_several"]
