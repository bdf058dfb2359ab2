"""What an attention port is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ptuning.model.layer_parts import LayerPart, LayerPass

Memo = dict[Any, Any]
"""What a port remembers during one pass, such as a mask that all layers share."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What deep prompts and the engine can do through a port.

    Attributes:
        layers: Run the layers one by one: prompts that start above layer 0, virtual units, readouts other
            than the native one, a stem, activation checkpointing.
        one_token: Run the last layer for one token only.
        record: Record keys and values, so that all rows can share a decoder's leading prompt.
        compile: Compile the layers.
    """

    layers: bool = True
    one_token: bool = True
    record: bool = True
    compile: bool = True


class AttentionPort(ABC):
    """How a pass reaches an architecture's layers and their attention. Without state of its own."""

    can: ClassVar[Capabilities]

    @abstractmethod
    def install(self, model: Any) -> None:
        """Prepare a ``PreTrainedModel`` once; its weights stay the same tensors."""

    @abstractmethod
    def under_way(
        self, found: object, parts: Sequence[LayerPart], inputs: dict[str, Any], dtype: torch.dtype
    ) -> AbstractContextManager[None]:
        """Let the layers find a pass.

        Args:
            found: The pass.
            parts: Its parts.
            inputs: The transformer's keyword arguments; the port may add some.
            dtype: What the frozen weights are kept in.
        """

    def find(self, arguments: dict[str, Any]) -> object:
        """The pass that a layer with these arguments belongs to, taken out of them; ``None`` without one."""
        return None

    def layer_arguments(
        self, arguments: dict[str, Any], given: LayerPass, hidden: Tensor, dtype: torch.dtype, memo: Memo
    ) -> dict[str, Any]:
        """A layer's ``arguments`` with ``given`` in them.

        Args:
            hidden: ``[B, T, H]``, its input.
            dtype: What it computes in.
        """
        return arguments

    def running(self, given: LayerPass) -> AbstractContextManager[None]:
        """Around a layer that runs with ``given``."""
        return nullcontext()

    def hidden(self, output: Any) -> Tensor:
        """``[B, T, H]`` out of what a layer returns."""
        found: Tensor = output
        return found

    def output(self, hidden: Tensor) -> Any:
        """``hidden`` in the form that a layer returns."""
        return hidden

    def keys_values(
        self, layer: Callable[..., Any], hidden: Tensor, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        """A layer's keys and values of all tokens, ``[B, h_kv, T, d]`` each; ``None`` if it shows none."""
        return None
