"""PEFT's functions that make a model: an untrained adapter on a backbone, or a trained one in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ptuning.errors import ConfigError
from ptuning.model.ptuning import PTuningModel
from ptuning.peft.arguments import check_others
from ptuning.peft.configs import PeftConfig, PromptLearningConfig
from ptuning.peft.loading_arguments import LoadingArguments
from ptuning.peft.model import DEFAULT, PeftModel


class AutoPeftModelForSequenceClassification:
    """An adapter on the backbone that it names, in one call."""

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        adapter_name: str = DEFAULT,
        is_trainable: bool = False,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        allow_pickle: bool = False,
        dtype: torch.dtype | str | None = None,
        **others: Any,
    ) -> PeftModel:
        """As :meth:`PeftModel.from_pretrained`; ``dtype``, or ``torch_dtype``, is that of the backbone."""
        arguments = LoadingArguments.of({"dtype": dtype, **others})
        check_others("from_pretrained", arguments.others)
        task = PTuningModel.from_pretrained(
            model_id, revision=revision, token=token, allow_pickle=allow_pickle, dtype=arguments.dtype
        )
        made = PeftModel(task.backbone)
        made.add_task(adapter_name, task, is_trainable)
        made.set_adapter(adapter_name, inference_mode=not is_trainable)
        arguments.check_against(made.active, made.active_peft_config)
        arguments.move(made, given=False)
        return made.eval()


def get_peft_model(
    model: PreTrainedModel,
    peft_config: PeftConfig,
    adapter_name: str = DEFAULT,
    *,
    revision: str | None = None,
    **others: Any,
) -> PeftModel:
    """A model with an untrained prompt.

    Args:
        model: An ``AutoModelForSequenceClassification``, which is adopted: frozen in place.
        peft_config: One of this package's configurations.
        adapter_name: The name of the adapter.
        revision: The backbone's branch, tag or commit, for the record.
        others: Those of :data:`HARMLESS`.
    """
    check_others("get_peft_model", others)
    if not isinstance(peft_config, PromptLearningConfig):
        raise ConfigError(
            "peft_config",
            got=f"a {type(peft_config).__module__}.{type(peft_config).__name__}",
            expected="one of ptuning.peft's PromptEncoderConfig, PromptTuningConfig and PrefixTuningConfig",
        )
    made = PeftModel(model, peft_config, adapter_name)
    if revision is not None:
        peft_config.revision = revision
        made.backbone.revision = revision
    return made
