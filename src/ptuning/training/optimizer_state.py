"""An optimizer's state in a checkpoint: tensors as tensors, numbers as JSON, by the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ptuning.errors import ConfigError

Parameters = Mapping[str, nn.Parameter]
_PREFIX = "optimizer."


def tensors_of(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """The tensors of each parameter's state, by ``optimizer.NAME/KEY``."""
    return {
        f"{_PREFIX}{name}/{key}": value.detach().clone()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def values_of(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Any]:
    """The other state of a user's optimizer: numbers per parameter, and the options of its groups.

    Raises:
        ConfigError: a state that cannot be written to a checkpoint.
    """
    state = {
        f"{name}/{key}": _plain(value, key)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if not isinstance(value, Tensor)
    }
    groups = [
        {key: _plain(value, key) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return {"state": state, "groups": groups}


def check(
    optimizer: torch.optim.Optimizer,
    parameters: Parameters,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> None:
    """Check that a stored state belongs to a user's optimizer over these parameters.

    Raises:
        ValueError: it does not.
    """
    state, groups = values.get("state"), values.get("groups")
    if not isinstance(state, dict) or not isinstance(groups, list):
        raise ValueError("it has no state of the optimizer")
    keys = [name.removeprefix(_PREFIX) for name in tensors if name.startswith(_PREFIX)]
    for key in (*keys, *state):
        if key.rpartition("/")[0] not in parameters:
            raise ValueError(f"it has optimizer state for {key}, which is not trained")
    if len(groups) != len(optimizer.param_groups) or not all(isinstance(group, dict) for group in groups):
        raise ValueError(f"it has {len(groups)} parameter groups, expected {len(optimizer.param_groups)}")


def restore(
    optimizer: torch.optim.Optimizer,
    parameters: Parameters,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> None:
    """Restore a state that :func:`tensors_of` and :func:`values_of` returned."""
    for name, parameter in parameters.items():
        found: dict[str, Any] = {
            key.rpartition("/")[2]: value.to(parameter.device) if value.dim() else value
            for key, value in tensors.items()
            if key.rpartition("/")[0] == f"{_PREFIX}{name}"
        }
        plain = values.get("state", {}).items()
        found |= {key.rpartition("/")[2]: value for key, value in plain if key.rpartition("/")[0] == name}
        if found:
            optimizer.state[parameter] = found
    for group, stored in zip(optimizer.param_groups, values.get("groups", ()), strict=False):
        for key, value in stored.items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value


def _plain(value: Any, key: str) -> Any:
    """A number, a text or a list of them, as JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(each, key) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"optimizer: its {key} cannot be written to a checkpoint",
        got=type(value).__name__,
        expected="tensors and numbers",
        remedy="train without an output folder, and save the model yourself",
    )
