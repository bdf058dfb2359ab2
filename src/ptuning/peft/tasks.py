"""An adapter of PEFT's names as a :class:`PTuningModel`: made from its configuration, trained or frozen."""

from __future__ import annotations

from contextlib import suppress

from torch import nn
from transformers import PreTrainedTokenizerBase

from ptuning.errors import BackboneNotFound
from ptuning.model.backbone import Backbone
from ptuning.model.config import InputPrompt, PromptConfig, TextInit
from ptuning.model.loading import load_tokenizer
from ptuning.model.prompt import DeepMLP, PromptEncoder
from ptuning.model.ptuning import PTuningModel
from ptuning.model.task_parts import reads_virtual_token
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
    task = PTuningModel(
        backbone,
        prompt,
        task_of(backbone.model.config),
        tokenizer=_tokenizer(backbone, config, prompt),
        head=parameters_of(backbone, config.modules_to_save or ()),
        learning_rate_scales=(
            getattr(config, "prompt_rate_scale", 1.0),
            getattr(config, "head_rate_scale", 1.0),
        ),
    )
    if isinstance(config, PrefixTuningConfig) and config.init_weights == "zero":
        _start_at_zero(task.prompt_encoder)
    return task


def _tokenizer(
    backbone: Backbone, config: PromptLearningConfig, prompt: PromptConfig
) -> PreTrainedTokenizerBase | None:
    """The tokenizer, where the prompt's initial values need one."""
    if isinstance(prompt, InputPrompt) and isinstance(prompt.init, TextInit):
        return load_tokenizer(str(getattr(config, "tokenizer_name_or_path", None)))
    if reads_virtual_token(backbone, prompt) and (name := str(backbone.config._name_or_path or "")):
        with suppress(BackboneNotFound):  # a model that was saved without one
            return load_tokenizer(name, backbone.revision)
    return None


def set_trainable(task: PTuningModel, on: bool) -> None:
    """Whether training changes a task; a head that its configuration freezes stays frozen."""
    task.requires_grad_(on)
    task.head.requires_grad_(on and task.prompt_config.train_head)


def _start_at_zero(encoder: PromptEncoder) -> None:
    last = encoder.layers[-1] if isinstance(encoder, DeepMLP) else encoder
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
