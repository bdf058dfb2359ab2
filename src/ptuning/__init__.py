"""P-tuning: adapt a frozen Hugging Face model to a task by training a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptuning._lazy import lazy

if TYPE_CHECKING:
    from ptuning.errors import PTuningError
    from ptuning.estimators import PTuningClassifier, PTuningRegressor
    from ptuning.inference import MultiPredictor, Prediction, Predictor, pipeline
    from ptuning.model import (
        ClozeHead,
        DeepMLPEncoder,
        DeepPrompt,
        EmbeddingEncoder,
        Engine,
        InputPrompt,
        LSTMEncoder,
        MLPEncoder,
        PTuningModel,
        RandomInit,
        ResidualEncoder,
        TaskTable,
        TextInit,
        VocabularyInit,
    )
    from ptuning.task import Task
    from ptuning.training import (
        Callback,
        ConsoleCallback,
        DataConfig,
        FitConfig,
        RunState,
        SearchResult,
        SeveralResult,
        TrackerCallback,
        TrainConfig,
        TrainResult,
        fit,
        train,
        train_search,
        train_several,
    )

__version__ = "0.1.0"

_MODEL = [
    "ClozeHead",
    "DeepMLPEncoder",
    "DeepPrompt",
    "EmbeddingEncoder",
    "Engine",
    "InputPrompt",
    "LSTMEncoder",
    "MLPEncoder",
    "PTuningModel",
    "RandomInit",
    "ResidualEncoder",
    "TaskTable",
    "TextInit",
    "VocabularyInit",
]
_TRAINING = [
    "Callback",
    "ConsoleCallback",
    "DataConfig",
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
__getattr__, __dir__ = lazy(
    __name__,
    dict.fromkeys(_MODEL, "ptuning.model")
    | dict.fromkeys(_TRAINING, "ptuning.training")
    | dict.fromkeys(("MultiPredictor", "Prediction", "Predictor", "pipeline"), "ptuning.inference")
    | dict.fromkeys(("PTuningClassifier", "PTuningRegressor"), "ptuning.estimators")
    | {"PTuningError": "ptuning.errors", "Task": "ptuning.task"},
)

__all__ = [
    "Callback",
    "ClozeHead",
    "ConsoleCallback",
    "DataConfig",
    "DeepMLPEncoder",
    "DeepPrompt",
    "EmbeddingEncoder",
    "Engine",
    "FitConfig",
    "InputPrompt",
    "LSTMEncoder",
    "MLPEncoder",
    "MultiPredictor",
    "PTuningClassifier",
    "PTuningError",
    "PTuningModel",
    "PTuningRegressor",
    "Prediction",
    "Predictor",
    "RandomInit",
    "ResidualEncoder",
    "RunState",
    "SearchResult",
    "SeveralResult",
    "Task",
    "TaskTable",
    "TextInit",
    "TrackerCallback",
    "TrainConfig",
    "TrainResult",
    "VocabularyInit",
    "fit",
    "pipeline",
    "train",
    "train_search",
    "train_several",
]
