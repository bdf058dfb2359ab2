"""Fresh initial values for parameters that a checkpoint lacks, made as the model makes them.

transformers does that once, when it loads a model. Each task on a backbone needs its own values, drawn when
the task is made. So they are the same whether the backbone was loaded for this task or has served others, and
the backbone itself is not written to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptuning.errors import UnsupportedBackbone


def fresh_parameters(
    model: PreTrainedModel, shapes: Mapping[str, Sequence[int]], beside: Iterable[str]
) -> dict[str, Tensor]:
    """Initial values for parameters of ``model``, in fp32 on the CPU, drawn from torch's global generator.

    They do not depend on the model's device.

    Args:
        model: Initialises them, with its ``_init_weights``; nothing of it is changed.
        shapes: The parameters to make, by name, and their shapes, which may be others than the model's.
        beside: Further names that the model may access meanwhile; they are not drawn.

    Raises:
        UnsupportedBackbone: the model's code does not initialise one of them.
    """
    made = {name: nn.Parameter(torch.full(tuple(shape), math.nan)) for name, shape in shapes.items()}
    owners = {name.rpartition(".")[0] for name in (*made, *beside)}
    others = {
        name: _done(value)
        for name, value in model.named_parameters()
        if name.rpartition(".")[0] in owners and name not in made
    }
    with torch.no_grad():
        _initialise(model, _hollow(model, {**others, **made}))
    for name, value in made.items():
        if bool(value.isnan().any()):
            raise UnsupportedBackbone(
                f"{type(model).__name__} does not initialise {name}, and its checkpoint lacks it",
                remedy="use a checkpoint that has it",
            )
    return {name: value.detach() for name, value in made.items()}


def _done(value: Tensor) -> nn.Parameter:
    """A stand-in for a parameter that is not made: it takes no memory, and transformers skips it."""
    found = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
    found._is_hf_initialized = True  # type: ignore[attr-defined]
    return found


def _hollow(module: nn.Module, parameters: Mapping[str, nn.Parameter], above: str = "") -> nn.Module:
    """A copy of ``module`` with only ``parameters`` and the modules that own them below it."""
    made = copy.copy(module)
    made._parameters = {
        name: parameters.get(above + name) if value is not None else None
        for name, value in module._parameters.items()
    }
    made._buffers = {
        name: None if value is None else value.clone() for name, value in module._buffers.items()
    }
    made._modules = {
        name: _hollow(child, parameters, f"{above}{name}.")
        for name, child in module._modules.items()
        if child is not None and any(key.startswith(f"{above}{name}.") for key in parameters)
    }
    return made


def _initialise(model: PreTrainedModel, module: nn.Module) -> None:
    """From the leaves up, in transformers' order: some parents correct their children."""
    for child in module.children():
        _initialise(model, child)
    model._init_weights(module)
