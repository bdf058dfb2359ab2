"""The head: a task's own copy of the layers that turn a readout into logits."""

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
    """A task's own copy of the parameters that turn a readout into logits, in fp32.

    With the pooling ``layers`` it also has the weights of the mix (:data:`ptuning.adapters.MIX`).

    Args:
        original: The initial values, by the backbone's names.
        trained: Whether they are trained.
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
    """The head's name for the backbone's parameter ``name``: torch allows no dot in it."""
    return name.replace(".", "-")


def first_mix(config: PromptConfig, backbone: Backbone) -> dict[str, Tensor]:
    """The initial mix of a head that reads all layers: the mean of the last one. Empty for other heads."""
    if not isinstance(config, DeepPrompt) or config.pooling != "layers":
        return {}
    layers = backbone.num_layers - config.first_layer
    return {adapters.MIX: initial_mix(layers, config.num_queries or 0, backbone.hidden_size)}
