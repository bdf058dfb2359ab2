"""Training: data → batches → loop → result, on Accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptuning._lazy import lazy

if TYPE_CHECKING:
    from ptuning.training.callbacks import Callback, RunState
    from ptuning.training.config import DataConfig, FitConfig, TrainConfig
    from ptuning.training.console import ConsoleCallback
    from ptuning.training.records import Evaluation, SeveralResult, TrainResult
    from ptuning.training.run import fit, train
    from ptuning.training.search import SearchResult, train_search
    from ptuning.training.several import train_several
    from ptuning.training.tracking import TrackerCallback

__getattr__, __dir__ = lazy(
    __name__,
    dict.fromkeys(("DataConfig", "FitConfig", "TrainConfig"), "ptuning.training.config")
    | dict.fromkeys(("Evaluation", "SeveralResult", "TrainResult"), "ptuning.training.records")
    | dict.fromkeys(("Callback", "RunState"), "ptuning.training.callbacks")
    | {
        "ConsoleCallback": "ptuning.training.console",
        "fit": "ptuning.training.run",
        "SearchResult": "ptuning.training.search",
        "TrackerCallback": "ptuning.training.tracking",
        "train": "ptuning.training.run",
        "train_search": "ptuning.training.search",
        "train_several": "ptuning.training.several",
    },
)

__all__ = [
    "Callback",
    "ConsoleCallback",
    "DataConfig",
    "Evaluation",
    "FitConfig",
    "RunState",
    "SearchResult",
    "SeveralResult",
    "TrackerCallback",
    "TrainConfig",
    "TrainResult",
    "fit",
    "train",
    "train_search",
    "train_several",
]
