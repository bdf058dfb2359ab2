"""Training: data → batches → loop → result, on Accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptuning._lazy import lazy

if TYPE_CHECKING:
    from ptuning.training.config import DataConfig, FitConfig, TrainConfig
    from ptuning.training.loop import fit
    from ptuning.training.result import Evaluation, TrainResult
    from ptuning.training.run import train

__getattr__, __dir__ = lazy(
    __name__,
    dict.fromkeys(("DataConfig", "FitConfig", "TrainConfig"), "ptuning.training.config")
    | dict.fromkeys(("Evaluation", "TrainResult"), "ptuning.training.result")
    | {"fit": "ptuning.training.loop", "train": "ptuning.training.run"},
)

__all__ = ["DataConfig", "Evaluation", "FitConfig", "TrainConfig", "TrainResult", "fit", "train"]
