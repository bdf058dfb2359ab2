"""What a pass does in the layers, one small class for each thing: prompt, virtual units, stem, recording.

A :class:`~ptuning.model.layers.ForwardPass` runs the layers with a list of parts. Each layer asks every part,
in the order of the list. Readouts (``readout.py``) are parts too: they watch the layers' outputs.

Shapes: B rows, T tokens, L layers, H hidden size, P virtual tokens, U virtual units, s the first prompted
layer, h_kv key/value heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptuning.model.units import scaled_units


@dataclass(kw_only=True, slots=True)
class LayerPass:
    """What one layer is given for one batch, and what is known about it afterwards.

    Attributes:
        keys: ``[B, h_kv, P, d]``, the layer's prompt; ``None`` without one.
        values: As ``keys``.
        prompt_mask: ``[B, P]``, False at the virtual tokens that a row does not have; ``None`` if every row
            has all of them.
        units: ``[2, U, H]``, the layer's virtual units, scaled, or one set per row, ``[2, B, U, H]``;
            ``None`` without any.
        plain: Compute attention as matmul, softmax, matmul rather than with the fused kernel.
        text: Keys and values ``[B, h_kv, T, d]`` to attend to in place of those of the layer's own tokens. A
            layer that runs for one token sees the whole text through them.
        record: Whether to store the tokens' keys and values in ``recorded``.
        recorded: ``[B, h_kv, T, d]`` each; see ``record``.
        read: Whether the attention has read the prompt.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    prompt_mask: Tensor | None = None
    units: Tensor | None = None
    plain: bool = False
    text: tuple[Tensor, Tensor] | None = None
    record: bool = False
    recorded: tuple[Tensor, Tensor] | None = None
    read: bool = False


class LayerPart:
    """Base class: does nothing. Layers are counted from 0."""

    one_token: slice | None = None
    """The token of the last layer that is needed, if only one is; as a slice of the tokens."""
    keys_values_only = False
    """Whether the last layer is only needed for its keys and values."""

    def skips(self, index: int) -> bool:
        """Whether layer ``index`` is left out: its output is its input."""
        return False

    def entering(self, index: int, hidden: Tensor) -> Tensor:
        """Layer ``index``'s input ``[B, T, H]``, as it is or replaced. Called for skipped layers too."""
        return hidden

    def give(self, index: int, given: LayerPass, batch: int, dtype: torch.dtype) -> None:
        """Add to what layer ``index`` is given, for ``batch`` rows computed in ``dtype``."""

    def after(self, index: int, given: LayerPass) -> None:
        """Layer ``index`` has run with ``given``."""

    def prompted_layers(self, layers: int) -> range:
        """The layers, out of so many, that have to read a prompt."""
        return range(0)


class Prompt(LayerPart):
    """A deep prompt: P keys and values in front of the text's, in layer s and all layers above.

    Args:
        prompts: ``[L−s, 2, P, H_kv]``, or one per row ``[B, L−s, 2, P, H_kv]``; keys, then values.
        head_dim: d, so that h_kv = H_kv / d.
        first_layer: s.

    Attributes:
        num_layers: L−s.
        num_virtual_tokens: P.
    """

    def __init__(self, prompts: Tensor, head_dim: int, first_layer: int = 0) -> None:
        self.first_layer = first_layer
        self.num_layers, self.num_virtual_tokens = prompts.shape[-4], prompts.shape[-2]
        batched = prompts if prompts.dim() == 5 else prompts[None]
        # [B, L−s, 2, P, H_kv] → [L−s, 2, B, h_kv, P, d]
        self._prompts = batched.unflatten(-1, (-1, head_dim)).permute(1, 2, 0, 4, 3, 5)

    def keys_values(self, index: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Layer ``index``'s keys and values, each ``[B, h_kv, P, d]``; ``None`` below s."""
        if index < self.first_layer:
            return None
        keys, values = self._prompts[index - self.first_layer].to(dtype).expand(2, batch, -1, -1, -1)
        return keys, values

    def mask(self, index: int) -> Tensor | None:
        """``[B, P]``: which of layer ``index``'s virtual tokens each row has; ``None`` for all of them."""
        return None

    def give(self, index: int, given: LayerPass, batch: int, dtype: torch.dtype) -> None:
        if (found := self.keys_values(index, batch, dtype)) is not None:
            given.keys, given.values = found
            given.prompt_mask = self.mask(index)

    def prompted_layers(self, layers: int) -> range:
        return range(self.first_layer, layers)


class Units(LayerPart):
    """Virtual units of the feed-forward networks in layer s and above (:mod:`~ptuning.model.units`).

    Args:
        units: ``[L−s, 2, U, H]``, as they are trained.
        first_layer: s.
    """

    def __init__(self, units: Tensor, first_layer: int = 0) -> None:
        self._units, self._first_layer = scaled_units(units), first_layer

    def give(self, index: int, given: LayerPass, batch: int, dtype: torch.dtype) -> None:
        if index >= self._first_layer:
            given.units = self._units[index - self._first_layer]


class FromStem(LayerPart):
    """Starts at layer s with hidden states that were computed before.

    Args:
        stem: ``[B, T, H]``, the input of layer s.
        first_layer: s.
    """

    def __init__(self, stem: Tensor, first_layer: int) -> None:
        self._stem, self._first_layer = stem, first_layer

    def skips(self, index: int) -> bool:
        return index < self._first_layer

    def entering(self, index: int, hidden: Tensor) -> Tensor:
        return self._stem if index == self._first_layer else hidden


class StopAt(LayerPart):
    """Skips layer s and all above.

    Attributes:
        entered: ``[B, T, H]``, the input that layer s would have had.
    """

    def __init__(self, layer: int) -> None:
        self._layer = layer
        self.entered: Tensor | None = None

    def skips(self, index: int) -> bool:
        return index >= self._layer

    def entering(self, index: int, hidden: Tensor) -> Tensor:
        if index == self._layer:
            self.entered = hidden
        return hidden


class Record(LayerPart):
    """Stores every layer's keys and values of the tokens.

    Attributes:
        recorded: Per layer, keys and values, ``[B, h_kv, T, d]`` each.
    """

    keys_values_only = True

    def __init__(self) -> None:
        self.recorded: list[tuple[Tensor, Tensor]] = []

    def give(self, index: int, given: LayerPass, batch: int, dtype: torch.dtype) -> None:
        given.record = True

    def after(self, index: int, given: LayerPass) -> None:
        if given.recorded is not None:
            self.recorded.append(given.recorded)
