"""PEFT's API for prompt learning: change one line to run a program written for PEFT with ptuning.

``from peft import …`` becomes ``from ptuning.peft import …``. It is implemented with ``PTuningModel``; the
differences from PEFT, and the reasons, are in docs/from-peft.md. PEFT does not have to be installed.
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
    """An error in one sentence for other names that programs import from PEFT."""
    if name.endswith("Config") or name.startswith(("PeftModelFor", "AutoPeftModel", "prepare_model_for")):
        raise ImportError(
            f"ptuning.peft has no {name}, because it only does prompts for sequence classification; "
            f"import it "
            "from peft"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
