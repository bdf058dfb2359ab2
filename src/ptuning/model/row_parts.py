"""The parts of a pass whose rows belong to different tasks: each row has its own prompt, units and readout.

A task without a prompt or units in a layer, or with fewer of them than another, is padded with zeros: its
rows do not see the padding of a prompt, and a virtual unit of zeros adds nothing.

Shapes: B rows, N answers, T tokens, L layers, s a task's first prompted layer, P virtual tokens,
U virtual units, Q queries, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptuning.model.layer_parts import LayerPart, LayerPass, Prompt
from ptuning.model.packed import PackedTask
from ptuning.model.pooling import mean_of_tokens, weighted_pool
from ptuning.model.ragged import RaggedRows
from ptuning.model.readout import AtPlaces, EveryToken, LastToken, Readout
from ptuning.model.similarity import pair_similarity


class _ByLayer:
    """Vectors of each task in layer s and all layers above, for the rows of a batch.

    Args:
        stacks: ``[L−s, 2, N, H]`` of each task, or ``None``.
        first_layers: s of each task.
        owners: The task of each row.
    """

    def __init__(
        self, stacks: Sequence[Tensor | None], first_layers: Sequence[int], owners: Sequence[int]
    ) -> None:
        self._stacks, self._first_layers, self._owners = stacks, first_layers, owners
        self._rows: dict[tuple[bool, ...], RaggedRows] = {}  # most layers have the same tasks

    def _at(self, index: int) -> tuple[RaggedRows, list[Tensor | None]] | None:
        here = [
            stack[index - first] if stack is not None and first <= index else None
            for stack, first in zip(self._stacks, self._first_layers, strict=True)
        ]
        there = next((each for each in here if each is not None), None)
        if there is None:
            return None
        key = tuple(each is not None for each in here)
        if key not in self._rows:
            sizes = [0 if each is None else each.shape[1] for each in here]
            self._rows[key] = RaggedRows(sizes, self._owners, there.device)
        return self._rows[key], here

    def gather(self, index: int) -> Tensor | None:
        """``[2, B, N, H]``; ``None`` where no task has any."""
        found = self._at(index)
        return None if found is None else found[0].gather(found[1])

    def mask(self, index: int) -> Tensor | None:
        """``[B, N]``; ``None`` where every row has all."""
        found = self._at(index)
        return None if found is None else found[0].mask


class RowPrompts(Prompt):
    """Deep prompts, one per row, of different lengths and from different layers on.

    Args:
        tasks: The different tasks; each has a deep prompt.
        owners: The task of each row, an index into ``tasks``.
        head_dim: d, the size of an attention head.
    """

    def __init__(self, tasks: Sequence[PackedTask], owners: Sequence[int], head_dim: int) -> None:
        stacks = [task.prompts for task in tasks]
        self.first_layer = min(task.first_layer for task in tasks)
        self.num_layers = max(len(stack) for stack in stacks if stack is not None)
        self.num_virtual_tokens = max(stack.shape[2] for stack in stacks if stack is not None)
        self._head_dim = head_dim
        self._by_layer = _ByLayer(stacks, [task.first_layer for task in tasks], owners)

    def keys_values(self, index: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        if (found := self._by_layer.gather(index)) is None:
            return None
        # [2, B, P, H_kv] → [2, B, h_kv, P, d]
        keys, values = found.to(dtype).unflatten(-1, (-1, self._head_dim)).transpose(2, 3)
        return keys, values

    def mask(self, index: int) -> Tensor | None:
        return self._by_layer.mask(index)


class RowUnits(LayerPart):
    """Virtual units, one set per row.

    Args:
        tasks: The different tasks, with units or without.
        owners: The task of each row.
    """

    def __init__(self, tasks: Sequence[PackedTask], owners: Sequence[int]) -> None:
        self._by_layer = _ByLayer(
            [task.units for task in tasks], [task.first_layer for task in tasks], owners
        )

    def give(self, index: int, given: LayerPass, batch: int, dtype: torch.dtype) -> None:
        given.units = self._by_layer.gather(index)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the rows of a batch are that are read in one way.

    Attributes:
        answers: ``[n]``, the places of their answers.
        rows: ``[n]``, the rows that they are read from; ``[2n]`` for pairs that take two rows each, first all
            first texts.
    """

    answers: Tensor
    rows: Tensor


class _Mix:
    """Rows that read a weighted sum over layers, each with its own weights."""

    def __init__(self, tasks: Sequence[PackedTask], places: Places, mask: Tensor) -> None:
        self._first = [task.first_layer for task in tasks]
        self._mixes = [task.mix for task in tasks if task.mix is not None]
        self._rows, self._mask = places.rows, mask[places.rows]
        self._sum = mask.new_zeros(())

    def add(self, index: int, states: Tensor) -> None:
        """``states`` ``[B, T, H]`` enter layer ``index``; L for the last layer's output."""
        reading = [i for i, first in enumerate(self._first) if index >= first]
        if not reading:
            return
        asked = max(self._mixes[i].shape[1] // 2 - 1 for i in reading)
        mix = torch.stack([_padded(self._mixes[i][index - self._first[i]], asked) for i in reading])
        rows, mask = self._rows, self._mask
        if len(reading) < len(self._first):
            part = torch.tensor(reading, device=rows.device)
            rows, mask = rows[part], mask[part]
        chosen = states if len(rows) == len(states) else states[rows]
        found = weighted_pool(chosen, mask, mix)
        if len(reading) < len(self._first):
            found = found.new_zeros(len(self._first), found.shape[1]).index_copy(0, part, found)
        self._sum = self._sum + found

    @property
    def read(self) -> Tensor:
        return self._sum


def _padded(mix: Tensor, asked: int) -> Tensor:
    """``[2+2Q', H]`` of a layer with Q' ≥ Q queries: what the additional ones find has the weight 0."""
    missing = asked - (len(mix) // 2 - 1)
    if not missing:
        return mix
    own = len(mix) // 2 - 1
    none = mix.new_zeros(missing, mix.shape[1])
    return torch.cat((mix[: 2 + own], none, mix[2 + own :], none))


class RowReadout(Readout):
    """Each row is read as its task wants it.

    Args:
        tasks: The task of each answer.
        places: Where the rows of each pooling are: ``native``, ``mean``, ``layers``, ``similarity``, and
            ``mask`` for a cloze head of an encoder.
        native: What the architecture's own head reads.
        mask: ``[B, T]``, 1 at real tokens.
        read: ``[B]``, the place of the mask in rows of the pooling ``mask``.
    """

    def __init__(
        self,
        tasks: Sequence[PackedTask],
        places: Mapping[str, Places],
        native: Readout,
        mask: Tensor,
        read: Tensor | None = None,
    ) -> None:
        self._read = read
        self._answers, self._places, self._native, self._mask = len(tasks), places, native, mask
        if set(places) == {"native"}:
            self.one_token = native.one_token
        mixed = places.get("layers")
        self._mix: _Mix | None = None
        if mixed is not None:
            self._mix = _Mix([tasks[i] for i in mixed.answers.tolist()], mixed, mask)
        self._layers = 0

    def entering(self, index: int, hidden: Tensor) -> Tensor:
        if self._mix is not None:
            self._mix.add(index, hidden)
            self._layers = index + 1
        return hidden

    def read(self, states: Tensor) -> Tensor:
        found = states.new_zeros(self._answers, states.shape[-1])
        for pooling, places in self._places.items():
            rows = slice(None) if len(places.rows) == len(states) else places.rows
            match pooling:
                case "mean":
                    read = mean_of_tokens(states[rows], self._mask[rows])
                case "mask":
                    assert self._read is not None  # there are such rows
                    read = AtPlaces(self._read[rows]).read(states[rows])
                case "layers":
                    assert self._mix is not None  # there are such rows
                    self._mix.add(self._layers, states)
                    read = self._mix.read
                case "similarity" if isinstance(self._native, LastToken):
                    continue  # it compares tokens behind the final norm
                case "similarity":
                    one, other = self._mask[places.rows].bool().chunk(2)
                    first, second = states[places.rows].chunk(2)
                    read = pair_similarity(first, second, (one, other))
                case _ if isinstance(self._native, EveryToken):
                    continue  # its head pools the tokens behind the final norm
                case _:
                    read = self._native.read(states)[rows]
            found[places.answers] = read.to(found.dtype)
        return found
