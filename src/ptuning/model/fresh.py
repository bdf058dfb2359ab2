"""Parameters made anew, as a model makes those that its checkpoint lacks.

transformers does that once, while it loads a model. Each task on a backbone needs its own, drawn when the
task is made: so they are the same whether the backbone was loaded for this task or has served others, and
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
    """First values for parameters of ``model``, in fp32 on the CPU, drawn from the generator as it stands.

    Wherever the model is by then: what is drawn does not depend on its device.

    Args:
        model: Says how, by ``_init_weights``; nothing of it is changed.
        shapes: The parameters to make, by name, and their shapes, which may be others than the model's.
        beside: Further names that the model may look for while it makes these; they are not drawn.

    Raises:
        UnsupportedBackbone: the model's code leaves one of them as it was.
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
                f"{type(model).__name__} does not say how {name} begins, and its checkpoint lacks it; take a "
                "checkpoint that has it"
            )
    return {name: value.detach() for name, value in made.items()}


def _done(value: Tensor) -> nn.Parameter:
    """What stands for a parameter that is not to be made: it has no memory, and transformers passes it by."""
    found = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
    found._is_hf_initialized = True  # type: ignore[attr-defined]
    return found


def _hollow(module: nn.Module, parameters: Mapping[str, nn.Parameter], above: str = "") -> nn.Module:
    """``module`` over again, with nothing below it but the modules that own ``parameters``, and those."""
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
    """From the leaves up, the order in which transformers goes: some parents correct their children."""
    for child in module.children():
        _initialise(model, child)
    model._init_weights(module)
