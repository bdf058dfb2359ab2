"""Inference: predictions for texts, in order and in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptuning._lazy import lazy

if TYPE_CHECKING:
    from ptuning.inference.mixed import MultiPredictor
    from ptuning.inference.pipelines import PTuningPipeline, pipeline
    from ptuning.inference.predictor import Prediction, Predictor

__getattr__, __dir__ = lazy(
    __name__,
    dict.fromkeys(("Prediction", "Predictor"), "ptuning.inference.predictor")
    | dict.fromkeys(("PTuningPipeline", "pipeline"), "ptuning.inference.pipelines")
    | {"MultiPredictor": "ptuning.inference.mixed"},
)

__all__ = ["MultiPredictor", "PTuningPipeline", "Prediction", "Predictor", "pipeline"]
