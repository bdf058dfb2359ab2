"""A backbone's layers, one after another, each with what the parts of a pass bring (``layer_parts.py``).

A :class:`ForwardPass` reaches every layer through the architecture's attention port (``ports/``) and decides,
layer by layer, what to do; a layer that finds no pass runs as it always did. So a pass can start at layer s
with hidden states that were computed before, end at layer s, or run the last layer for one token. The
backbone's own code makes embeddings, masks, rotary positions and norms around it, in every architecture.

Shapes: B rows, T tokens, L layers, H hidden size, s the first layer that runs or has a prompt.
"""

from __future__ import annotations

import copy
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptuning.errors import ConfigError, UnsupportedBackbone
from ptuning.model.config import Engine
from ptuning.model.layer_parts import LayerPart, LayerPass
from ptuning.model.ports import AttentionPort
from ptuning.model.ports.interface import prefers_plain
from ptuning.model.ports.port import Memo
from ptuning.model.units import FeedForward
from ptuning.model.views import Bound, rebound

_BY_TOKEN = {"position_embeddings": -2, "position_ids": -1}
"""Arguments of a layer that have something for each token, and the dimension of the tokens."""


class ForwardPass:
    """One batch's way through the layers.

    Args:
        layers: L.
        parts: What happens in them, in this order.
        port: How the layers and their attention are reached.
        engine: How to compute.
        same_length: Whether the transformer's code behind the layers needs as many tokens as went in, also
            where the last layer ran for one token.

    Attributes:
        states: ``[B, T, H]``, what the last layer returned, before any final norm; ``[B, 1, H]`` if it ran
            for one token. ``None`` until then, and for a pass that ends below it.
    """

    def __init__(
        self,
        layers: int,
        parts: Sequence[LayerPart],
        port: AttentionPort,
        engine: Engine | None = None,
        *,
        same_length: bool = False,
    ) -> None:
        self.layers, self.parts, self.port, self.same_length = layers, tuple(parts), port, same_length
        self.engine = engine or Engine()
        self.states: Tensor | None = None
        self._calls = 0
        self._read: set[int] = set()
        self._memo: Memo = {}
        one_token = self.engine.pooled_layer and port.can.one_token
        places = [part.one_token for part in self.parts if part.one_token is not None]
        self._place = places[0] if one_token and places else None
        self._keys_values_only = any(part.keys_values_only for part in self.parts)

    def through(self, layer: Layer, hidden: Tensor, arguments: dict[str, Any]) -> Any:
        """The next layer's output, in the form that the transformer expects.

        Args:
            layer: The layer.
            hidden: ``[B, T, H]``, its input.
            arguments: Its other arguments.
        """
        index = self._calls  # by order of call: ALBERT's layers are one module
        self._calls += 1
        for part in self.parts:
            hidden = part.entering(index, hidden)
        if any(part.skips(index) for part in self.parts):
            return self.port.output(hidden)
        out = self._run(layer, index, hidden, arguments)
        if index == self.layers - 1:
            self.states = out
            if self.same_length:
                out = out.expand_as(hidden)
        return self.port.output(out)

    def _run(self, layer: Layer, index: int, hidden: Tensor, arguments: dict[str, Any]) -> Tensor:
        dtype = _computing_dtype(hidden)
        way = self.engine.attention
        given = LayerPass(plain=prefers_plain(hidden.device, dtype) if way == "auto" else way == "plain")
        for part in self.parts:
            part.give(index, given, hidden.shape[0], dtype)
        arguments = self.port.layer_arguments(arguments, given, hidden, dtype, self._memo)
        is_last = index == self.layers - 1
        known = None
        if is_last and (self._keys_values_only or self._place is not None):
            known = self.port.keys_values(layer.original, hidden, arguments)
        if known is not None and self._keys_values_only:
            given.recorded, out = known, hidden
        elif known is not None and self._place is not None:
            given.text = known
            out = self._for_one_token(layer, given, hidden, arguments, self._place)
        else:
            out = self._for_all_tokens(layer, given, hidden, arguments)
        if given.read:
            self._read.add(index)
        for part in self.parts:
            part.after(index, given)
        return out

    def _for_all_tokens(
        self, layer: Layer, given: LayerPass, hidden: Tensor, arguments: dict[str, Any]
    ) -> Tensor:
        compiled = self.engine.compile and self.port.can.compile
        run = layer.compiled(hidden.device) if compiled else layer.original
        prompted = given.keys is not None and given.keys.requires_grad
        learns = torch.is_grad_enabled() and (prompted or hidden.requires_grad)
        with self._running(layer, given):
            if not (learns and self.engine.checkpoint_activations):
                return self.port.hidden(run(hidden, **arguments))
            # A checkpointed layer runs again during the backward pass, when this pass is long over.
            out = checkpoint(
                run,
                hidden,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), self._running(layer, given, check=False)),
                **arguments,
            )
            return self.port.hidden(out)

    def _for_one_token(
        self, layer: Layer, given: LayerPass, hidden: Tensor, arguments: dict[str, Any], place: slice
    ) -> Tensor:
        """``[B, 1, H]``: the layer for one token, which sees the text as keys and values."""
        one = dict(arguments)
        for name, dimension in _BY_TOKEN.items():
            if (value := one.get(name)) is not None:
                one[name] = _slice_tokens(value, place, dimension)
        if (mask := one.get("attention_mask")) is not None and mask.shape[-2] > 1:
            one["attention_mask"] = mask[..., place, :]
        with self._running(layer, given):
            return self.port.hidden(layer.original(hidden[:, place], **one))

    @contextmanager
    def _running(self, layer: Layer, given: LayerPass, check: bool = True) -> Iterator[None]:
        with self.port.running(given), layer.feed_forward.using(given.units):
            yield
            if check and given.units is not None:
                layer.feed_forward.check_read()

    def check_read(self, architecture: str) -> None:
        """Refuse a backbone that left a prompt unread: its answers would be the prompt-less model's.

        Raises:
            UnsupportedBackbone: which layers did not read it.
        """
        prompted = {index for part in self.parts for index in part.prompted_layers(self.layers)}
        if not prompted <= self._read:
            raise UnsupportedBackbone(
                f"{architecture} read the deep prompts of {len(self._read & prompted)} of its "
                f"{len(prompted)} layers: its attention does not use transformers' attention interface",
                remedy="use an input-depth prompt (prompt.depth: input)",
            )


class Layer(Bound):
    """A layer's forward method, in its place: it asks the pass what to do.

    Args:
        module: The layer.
        feed_forward: The names of the first and the last linear layer of its feed-forward network.
        port: How it finds the pass.
    """

    def __init__(self, module: nn.Module, feed_forward: tuple[str, str], port: AttentionPort) -> None:
        self.module = module
        self.feed_forward = FeedForward(*map(module.get_submodule, feed_forward))
        self.original: Callable[..., Any] = module.forward
        self.port = port
        self._names = list(inspect.signature(type(module).forward).parameters)[2:]
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, hidden: Tensor, *positional: Any, **arguments: Any) -> Any:
        found = self.port.find(arguments)
        arguments.update(zip(self._names, positional, strict=False))
        if not isinstance(found, ForwardPass):
            return self.original(hidden, **arguments)
        return found.through(self, hidden, arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}  # a copy compiles its own: the original's has its weights

    def rebound(self, module: nn.Module) -> Layer:
        """For a copy of the layer in which a pass has put other parameters."""
        made = copy.copy(self)
        made.module, made.original = module, rebound(self.original, self.module, module)
        return made

    def unbound(self) -> Any:
        """What was in the layer's ``__dict__`` before this one, if anything was."""
        of_class = (
            isinstance(self.original, MethodType) and self.original.__func__ is type(self.module).forward
        )
        return None if of_class else self.original

    def compiled(self, device: torch.device) -> Callable[..., Any]:
        """:attr:`original`, compiled; layers share the program, as they share the code.

        Raises:
            ConfigError: there is nothing to compile with.
        """
        if self._compiled is None:
            compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
            if device.type == "cpu" and shutil.which(compiler) is None:
                raise ConfigError(
                    f"engine.compile needs a C++ compiler, and there is no {compiler!r}",
                    remedy="install one, name it in the environment variable CXX, or turn engine.compile off",
                )
            # One program each for training and evaluation, with and without a prompt, one row or more, padded
            # or not: more than the 8 that torch stops at, whatever the lengths and the number of layers.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
            self._compiled = torch.compile(self.original, dynamic=True)
        return self._compiled


def install(layers: Iterable[nn.Module], feed_forward: tuple[str, str], port: AttentionPort) -> None:
    """Let every layer ask the pass that reaches it. One that does already stays as it is."""
    for layer in layers:
        if not isinstance(layer.forward, Layer):
            layer.forward = Layer(layer, feed_forward, port)


def _slice_tokens(value: Any, place: slice, dimension: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_slice_tokens(each, place, dimension) for each in value)
    return value[..., place, :] if dimension == -2 else value[..., place]


def _computing_dtype(hidden: Tensor) -> torch.dtype:
    """What a layer's products are computed in: autocast's, where that is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
