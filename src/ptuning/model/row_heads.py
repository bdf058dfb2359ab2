"""The architecture's own head for rows of different tasks, each with its task's parameters.

transformers' code runs as it is; the head's linear layers and norms are replaced by ones that apply to each
row the parameters of its task, in one batched product for all tasks with as many outputs.

Shapes: N rows, D different tasks, R the most rows of one task, H inputs, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ptuning.model import views
from ptuning.model.backbone import Backbone
from ptuning.model.native_heads import LinearHead, NativeHead, ReadHead


def row_head(backbone: Backbone, heads: Sequence[Mapping[str, Tensor]], owners: Sequence[int]) -> ReadHead:
    """The head for N rows; its logits ``[N, C]`` are padded with zeros to the widest task's.

    Args:
        backbone: The model; its own parameters stand in for those that a task does not have.
        heads: The parameters of D tasks, by the backbone's names, of linear layers and norms only.
        owners: The task of each row, an index into ``heads``.
    """
    parameters: dict[str, dict[str, list[Tensor]]] = {}
    for name in dict.fromkeys(name for head in heads for name in head):
        owner, _, kind = name.rpartition(".")
        own = backbone.model.get_parameter(name)
        parameters.setdefault(owner, {})[kind] = [head.get(name, own) for head in heads]
    layers = {
        name: _row_layer(backbone.model.get_submodule(name), values, owners)
        for name, values in parameters.items()
    }
    model: Any = views.with_modules(backbone.model, layers)
    return LinearHead(model.score) if backbone.architecture.causal else NativeHead(model)


def _row_layer(layer: nn.Module, values: Mapping[str, list[Tensor]], owners: Sequence[int]) -> nn.Module:
    weights, biases = values["weight"], values.get("bias")
    if isinstance(layer, nn.LayerNorm):
        return RowNorm(layer, weights, biases, owners)
    return RowLinear(weights, biases, owners)


class RowLinear(nn.Module):
    """A linear layer with parameters of its own for each row.

    Args:
        weights: ``[C, H]`` of each task.
        biases: ``[C]`` of each task, or ``None``.
        owners: The task of each row.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, owners: Sequence[int]
    ) -> None:
        super().__init__()
        self._weights, self._biases = weights, biases
        rows: dict[int, list[int]] = {}
        for row, owner in enumerate(owners):
            rows.setdefault(owner, []).append(row)
        self._by_width: dict[int, dict[int, list[int]]] = {}
        for owner, its in rows.items():
            self._by_width.setdefault(len(weights[owner]), {})[owner] = its

    def forward(self, states: Tensor) -> Tensor:
        """``[N, …, H]`` → ``[N, …, C]``: of what was read, or of each token that a head will pool itself."""
        states = states.to(self._weights[0].dtype)
        if len(self._by_width) == 1:
            ((_, rows),) = self._by_width.items()
            return self._product(states, rows)[list_order(rows)]
        found = states.new_zeros(*states.shape[:-1], max(self._by_width))
        for width, rows in self._by_width.items():
            places = [row for its in rows.values() for row in its]
            found[places, ..., :width] = self._product(states, rows)
        return found

    def _product(self, states: Tensor, rows: Mapping[int, list[int]]) -> Tensor:
        """``[n, …, C]``, for the rows of tasks with C outputs, task by task."""
        biases = self._biases
        if len(rows) == 1:
            ((owner, its),) = rows.items()
            return nn.functional.linear(
                states[its], self._weights[owner], None if biases is None else biases[owner]
            )
        weight = torch.stack([self._weights[owner] for owner in rows])
        most = max(map(len, rows.values()))
        order = [row for its in rows.values() for row in its]
        if most == 1:
            arranged = states[order][:, None]
        else:
            place = [task * most + i for task, its in enumerate(rows.values()) for i in range(len(its))]
            arranged = states.new_zeros(len(rows) * most, *states.shape[1:])
            arranged[place] = states[order]
            arranged = arranged.unflatten(0, (len(rows), most))
        tokens = arranged.shape[1:-1]
        arranged = arranged.flatten(1, -2)  # a row's tokens have its task's parameters
        if biases is None:
            found = arranged @ weight.mT
        else:
            bias = torch.stack([biases[owner] for owner in rows])
            found = torch.baddbmm(bias[:, None], arranged, weight.mT)
        found = torch.unflatten(found, 1, tokens).flatten(0, 1)
        return found if most == 1 else found[place]


def list_order(rows: Mapping[int, list[int]]) -> list[int]:
    """The places of rows 0, 1, … among the rows task by task."""
    order = [row for its in rows.values() for row in its]
    return sorted(range(len(order)), key=order.__getitem__)


class RowNorm(nn.Module):
    """A layer norm with scale and bias of its own for each row.

    Args:
        layer: The backbone's.
        weights: ``[H]`` of each task.
        biases: ``[H]`` of each task, or ``None``.
        owners: The task of each row.
    """

    def __init__(
        self,
        layer: nn.LayerNorm,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor] | None,
        owners: Sequence[int],
    ) -> None:
        super().__init__()
        self._shape, self._eps = layer.normalized_shape, layer.eps
        self._weight = torch.stack([weights[owner] for owner in owners])
        self._bias = None if biases is None else torch.stack([biases[owner] for owner in owners])

    def forward(self, states: Tensor) -> Tensor:
        """``[N, H]`` → ``[N, H]``."""
        found = nn.functional.layer_norm(states.to(self._weight.dtype), self._shape, eps=self._eps)
        found = found * self._weight
        return found if self._bias is None else found + self._bias
