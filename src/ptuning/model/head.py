"""The head: a task's own copy of the layers that turn what was read of a text into logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ptuning import adapters
from ptuning.model.backbone import Backbone
from ptuning.model.config import DeepPrompt, PromptConfig
from ptuning.model.pooling import initial_mix
from ptuning.model.prompt import scale_learning_rate


class Head(nn.Module):
    """A task's own copy of the layers that turn the pooled token into logits, in fp32.

    With the pooling ``layers`` it has what that is mixed by, too (:data:`ptuning.adapters.MIX`).
    """

    def __init__(self, original: Mapping[str, Tensor], *, trained: bool) -> None:
        super().__init__()
        for name, value in original.items():
            copy = nn.Parameter(value.detach().float().clone(), requires_grad=trained)
            self.register_parameter(escaped(name), copy)
        self.names = tuple(original)

    def named(self) -> dict[str, Tensor]:
        """The parameters by the backbone's names."""
        return {name: getattr(self, escaped(name)) for name in self.names}

    def copy_(self, values: Mapping[str, Tensor]) -> None:
        """Take these values, by the backbone's names."""
        with torch.no_grad():
            for name in self.names:
                if parametrize.is_parametrized(self, escaped(name)):
                    setattr(self, escaped(name), values[name].to(getattr(self, escaped(name))))
                else:
                    self.get_parameter(escaped(name)).copy_(values[name])

    def scale_learning_rates(self, scale: float, mix: float) -> None:
        """Multiply the learning rate of the layer mix by ``mix``, of all other parameters by ``scale``."""
        for name in self.names:
            scale_learning_rate(self, escaped(name), mix if name == adapters.MIX else scale)


def escaped(name: str) -> str:
    """What the head calls the backbone's parameter ``name``: a parameter's own name may hold no dot."""
    return name.replace(".", "-")


def first_mix(config: PromptConfig, backbone: Backbone) -> dict[str, Tensor]:
    """What a head that reads all layers begins with beside the backbone's own: the mean of the last."""
    if not isinstance(config, DeepPrompt) or config.pooling != "layers":
        return {}
    layers = backbone.num_layers - config.first_layer
    return {adapters.MIX: initial_mix(layers, config.num_queries or 0, backbone.hidden_size)}
