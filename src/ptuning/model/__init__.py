"""The heart: a prompt, its placement, a frozen backbone, a head. Knows torch and transformers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptuning._lazy import lazy

if TYPE_CHECKING:
    from ptuning.model.architectures import ARCHITECTURES, Architecture
    from ptuning.model.backbone import Backbone
    from ptuning.model.config import (
        ClozeHead,
        DeepMLPEncoder,
        DeepPrompt,
        EmbeddingEncoder,
        Engine,
        InputPrompt,
        LSTMEncoder,
        MLPEncoder,
        PromptConfig,
        RandomInit,
        ResidualEncoder,
        TextInit,
        VocabularyInit,
    )
    from ptuning.model.facts import BackboneFacts
    from ptuning.model.packed import PackedTask
    from ptuning.model.ptuning import PTuningModel
    from ptuning.model.table import TaskTable

_CONFIG = [
    "ClozeHead",
    "DeepMLPEncoder",
    "DeepPrompt",
    "EmbeddingEncoder",
    "Engine",
    "InputPrompt",
    "LSTMEncoder",
    "MLPEncoder",
    "PromptConfig",
    "RandomInit",
    "ResidualEncoder",
    "TextInit",
    "VocabularyInit",
]
_HOMES = (
    dict.fromkeys(_CONFIG, "ptuning.model.config")
    | dict.fromkeys(("ARCHITECTURES", "Architecture"), "ptuning.model.architectures")
    | {
        "Backbone": "ptuning.model.backbone",
        "BackboneFacts": "ptuning.model.facts",
        "PTuningModel": "ptuning.model.ptuning",
        "PackedTask": "ptuning.model.packed",
        "TaskTable": "ptuning.model.table",
    }
)
__getattr__, __dir__ = lazy(__name__, _HOMES)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Backbone",
    "BackboneFacts",
    "ClozeHead",
    "DeepMLPEncoder",
    "DeepPrompt",
    "EmbeddingEncoder",
    "Engine",
    "InputPrompt",
    "LSTMEncoder",
    "MLPEncoder",
    "PTuningModel",
    "PackedTask",
    "PromptConfig",
    "RandomInit",
    "ResidualEncoder",
    "TaskTable",
    "TextInit",
    "VocabularyInit",
]
