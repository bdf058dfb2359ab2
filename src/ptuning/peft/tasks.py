"""An adapter of PEFT's names as a :class:`PTuningModel`: made from its configuration, trained or frozen."""

from __future__ import annotations

from torch import nn

from ptuning.model.backbone import Backbone
from ptuning.model.config import TextInit
from ptuning.model.loading import load_tokenizer
from ptuning.model.prompt import DeepMLP, PromptEncoder
from ptuning.model.ptuning import PTuningModel
from ptuning.model.tasks import task_of
from ptuning.peft.arguments import check_facts, parameters_of
from ptuning.peft.configs import PrefixTuningConfig, PromptLearningConfig


def untrained_task(backbone: Backbone, config: PromptLearningConfig) -> PTuningModel:
    """A new task on the backbone, as the configuration says.

    Raises:
        ConfigError: choices that contradict each other or the backbone.
    """
    check_facts(config, backbone)
    prompt = config.prompt()
    named = getattr(config, "tokenizer_name_or_path", None)
    wants_words = isinstance(getattr(prompt, "init", None), TextInit)
    task = PTuningModel(
        backbone,
        prompt,
        task_of(backbone.model.config),
        tokenizer=load_tokenizer(str(named)) if wants_words else None,
        head=parameters_of(backbone, config.modules_to_save or ()),
        learning_rate_scales=(
            getattr(config, "prompt_rate_scale", 1.0),
            getattr(config, "head_rate_scale", 1.0),
        ),
    )
    if isinstance(config, PrefixTuningConfig) and config.init_weights == "zero":
        _start_at_zero(task.prompt_encoder)
    return task


def set_trainable(task: PTuningModel, on: bool) -> None:
    """Whether training changes a task; a head that its configuration freezes stays frozen."""
    task.requires_grad_(on)
    task.head.requires_grad_(on and task.prompt_config.train_head)


def _start_at_zero(encoder: PromptEncoder) -> None:
    last = encoder.layers[-1] if isinstance(encoder, DeepMLP) else encoder
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
