"""PEFT's names for prompt learning, so that a program written for PEFT runs here with one line changed.

``from peft import …`` becomes ``from ptuning.peft import …``. Underneath stands ``PTuningModel``; what it
does otherwise than PEFT, and why, is in docs/from-peft.md. Nothing here needs PEFT to be installed.
"""

from ptuning.peft.configs import (
    PeftConfig,
    PeftType,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptEncoderReparameterizationType,
    PromptLearningConfig,
    PromptTuningConfig,
    PromptTuningInit,
    TaskType,
    get_peft_config,
)
from ptuning.peft.model import PeftModel, PeftModelForSequenceClassification
from ptuning.peft.opening import AutoPeftModelForSequenceClassification, get_peft_model
from ptuning.peft.state import get_peft_model_state_dict, set_peft_model_state_dict

__all__ = [
    "AutoPeftModelForSequenceClassification",
    "PeftConfig",
    "PeftModel",
    "PeftModelForSequenceClassification",
    "PeftType",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "TaskType",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "set_peft_model_state_dict",
]


def __getattr__(name: str) -> object:
    """One sentence for what programs import from PEFT besides."""
    if name.endswith("Config") or name.startswith(("PeftModelFor", "AutoPeftModel", "prepare_model_for")):
        raise ImportError(
            f"ptuning.peft has no {name}: it does prompts for sequence classification; import it from peft"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
