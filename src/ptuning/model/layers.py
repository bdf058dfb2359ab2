"""A backbone's layers, one after another: which of them run, on which tokens, and with which prompt.

transformers hands its keyword arguments through to every layer. A :class:`ForwardPass` that stands among
them is asked, layer by layer, what to do (:func:`install` sees to that); without one a layer is as it
was. So a pass can begin at layer s with hidden states that were computed before, end at layer s with
what enters there, or run the last layer for one token, and the backbone's own code makes its
embeddings, masks, rotary positions and norms around it, in every architecture alike.

Glossary: B rows, T tokens, L layers, H hidden width, P virtual tokens, s the first layer run or prompted.
"""

from __future__ import annotations

import copy
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any, Literal

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptuning.errors import ConfigError, UnsupportedBackbone
from ptuning.model import disentangled
from ptuning.model.attention import ARGUMENT, LayerPass, Looked, additive, prefers_plain
from ptuning.model.config import Engine
from ptuning.model.pooling import average, weighed
from ptuning.model.similarity import agreement
from ptuning.model.units import FeedForward, as_read
from ptuning.model.views import Bound, rebound

_BY_TOKEN = {"position_embeddings": -2, "position_ids": -1}
"""Arguments of a layer that hold something for each token, and the dimension of the tokens."""


class ForwardPass:
    """One batch's way through the layers.

    Args:
        layers: L.
        prompts: ``[L−s, 2, P, H_kv]``, or one a row ``[B, L−s, 2, P, H_kv]``; keys, then values.
            ``None`` where no layer has a prompt.
        first_layer: s, the first layer that has one.
        head_dim: d, so that h_kv = H_kv / d.
        engine: How to compute.
        pooled: The token that the head reads, where it reads one: the last layer runs for it alone.
        spread: Put what the last layer gives for that token in every token's place.
        mean: ``[B, T]``, 1 at real tokens, to put the mean of what the last layer gives for these in every
            token's place, whichever the head reads.
        units: ``[L−s, 2, U, H]``, what the feed-forward networks of the prompted layers have beside their own
            hidden units (:mod:`~ptuning.model.units`).
        mix: ``[L−s+1, 2+2Q, H]``, to put there, in place of that mean, the weighed sum of means, greatest
            values and what queries find (:func:`~ptuning.model.pooling.weighed`), of what enters layer
            ``first_layer`` and of what it and each layer above gives.
        similarity: The rows are the first texts of pairs and then the second ones. What takes that place is,
            how well the two texts agree (:mod:`~ptuning.model.similarity`), so that the last layer gives
            half as many rows.
        stem: ``[B, T, H]``, what enters layer ``first_layer``; the layers below are passed by.
        stop: A layer; it and those above are passed by, and :attr:`entered` is what would have entered it.
        record: Keep every layer's keys and values of the tokens in :attr:`recorded`; no more of the last
            layer is run than that takes.
    """

    def __init__(
        self,
        layers: int,
        prompts: Tensor | None = None,
        *,
        first_layer: int = 0,
        head_dim: int = 1,
        engine: Engine | None = None,
        pooled: Literal["first", "last"] | None = None,
        spread: bool = False,
        mean: Tensor | None = None,
        units: Tensor | None = None,
        mix: Tensor | None = None,
        similarity: bool = False,
        stem: Tensor | None = None,
        stop: int | None = None,
        record: bool = False,
    ) -> None:
        self.layers = layers
        self.first_layer = first_layer
        self.engine = engine or Engine()
        self.pooled = pooled if self.engine.pooled_layer and mean is None else None
        self.spread = spread
        self.mean = mean
        self.units = None if units is None else as_read(units)
        self.mix = mix
        self._mixed = torch.zeros(())  # a sum, of nothing yet
        self.similarity = similarity
        self.stem = stem
        self.stop = stop
        self.record = record
        self.entered: Tensor | None = None
        self.recorded: list[tuple[Tensor, Tensor]] = []
        self._prompts: Tensor | None = None
        if prompts is not None:
            batched = prompts if prompts.dim() == 5 else prompts[None]
            # [B, L−s, 2, P, H_kv] → [L−s, 2, B, h_kv, P, d]
            self._prompts = batched.unflatten(-1, (-1, head_dim)).permute(1, 2, 0, 4, 3, 5)
        self._calls = 0
        self._read: set[int] = set()
        self._masks: dict[tuple[int, int, torch.dtype | None], tuple[Tensor, Tensor]] = {}

    # ------------------------------------------------------------------------------------ a layer

    def through(self, layer: Layer, hidden: Tensor, arguments: dict[str, Any]) -> Any:
        """What comes out of the next layer, ``[B, T, H]``; ``[B, 1, H]`` of a last one run for one token."""
        index = self._calls  # by order of call: ALBERT's layers are one module
        self._calls += 1
        if self.stop is not None and index >= self.stop:
            if index == self.stop:
                self.entered = hidden
            return layer.passed_by(hidden)
        if self.stem is not None and index < self.first_layer:
            return layer.passed_by(hidden)
        if self.stem is not None and index == self.first_layer:
            hidden = self.stem
        self._mix(index, hidden)
        if layer.disentangled:  # reads its prompt itself
            return self._meant(index, self._run(layer, index, hidden, arguments))
        given = self._given(index, hidden)
        arguments = self._with_wide_mask(arguments, given, hidden)
        known = _keys_values(layer, hidden, arguments) if self._cuts(index) else None
        if self.record and known is not None:
            self.recorded.append(known)
            return hidden
        if known is not None:
            given.text = known
            out = self._pooled_token(layer, index, hidden, {**arguments, ARGUMENT: given})
        else:
            out = self._meant(index, self._run(layer, index, hidden, {**arguments, ARGUMENT: given}))
        if given.read:
            self._read.add(index)
        if given.seen is not None:
            self.recorded.append(given.seen)
        return out

    def _cuts(self, index: int) -> bool:
        """Whether of this layer no more is needed than the text's keys and values, and perhaps one token."""
        return index == self.layers - 1 and (self.record or self.pooled is not None)

    def _meant(self, index: int, out: Any) -> Any:
        """What layer ``index`` gave; of the last, where that is wanted, the tokens' mean in place of each."""
        if self.mean is None or index != self.layers - 1:
            return out
        if isinstance(out, tuple):  # DeBERTa's: hidden states and attentions
            return (self._meant(index, out[0]), *out[1:])
        if self.similarity:
            first, second = out.chunk(2)
            one, other = self.mean.bool().chunk(2)
            read = agreement(first, second, (one, other))
        elif self.mix is not None:
            read = self._mix(self.layers, out)
        else:
            read = average(out, self.mean)
        return read.to(out.dtype)[:, None].expand(-1, *out.shape[1:])

    def _mix(self, index: int, entering: Tensor) -> Tensor:
        """Add what enters layer ``index`` to what the head reads, ``[B, H]`` in fp32."""
        if self.mix is not None and self.mean is not None and index >= self.first_layer:
            self._mixed = self._mixed + weighed(entering, self.mean, self.mix[index - self.first_layer])
        return self._mixed

    def _given(self, index: int, hidden: Tensor) -> LayerPass:
        dtype = _computing_dtype(hidden)
        way = self.engine.attention
        plain = prefers_plain(hidden.device, dtype) if way == "auto" else way == "plain"
        given = LayerPass(plain=plain, record=self.record)
        if (prompt := self.keys_values(index, hidden.shape[0], dtype)) is not None:
            given.keys, given.values = prompt
        return given

    def _run(self, layer: Layer, index: int, hidden: Tensor, arguments: dict[str, Any]) -> Any:
        """The whole layer, in one of the ways there are."""
        compiled = self.engine.compile and not layer.disentangled
        run = layer.compiled(hidden.device) if compiled else layer.original
        units = self._units(index)
        prompted = self._prompts is not None and self._prompts.requires_grad and index >= self.first_layer
        learns = torch.is_grad_enabled() and (prompted or hidden.requires_grad)
        with layer.holding(units):
            if not (learns and self.engine.checkpoint_activations):
                return run(hidden, **arguments)
            return checkpoint(
                run,
                hidden,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), self._again(layer, units)),
                **arguments,
            )

    def _units(self, index: int) -> Tensor | None:
        """Layer ``index``'s, ``[2, U, H]``; ``None`` below ``first_layer``."""
        if self.units is None or index < self.first_layer:
            return None
        return self.units[index - self.first_layer]

    @contextmanager
    def _again(self, layer: Layer, units: Tensor | None) -> Iterator[None]:
        """Around a checkpointed layer that runs again, when the pass itself is long over."""
        with disentangled.bound(self), layer.feed_forward.holding(units):
            yield

    def _pooled_token(self, layer: Layer, index: int, hidden: Tensor, arguments: dict[str, Any]) -> Any:
        """The layer for one token: the text is to it what a prompt is, keys and values."""
        place = slice(0, 1) if self.pooled == "first" else slice(-1, None)
        one = dict(arguments)
        for name, dimension in _BY_TOKEN.items():
            if (value := one.get(name)) is not None:
                one[name] = _at(value, place, dimension)
        if (mask := one.get("attention_mask")) is not None and mask.shape[-2] > 1:
            one["attention_mask"] = mask[..., place, :]
        with layer.holding(self._units(index)):
            out = layer.original(hidden[:, place], **one)
        return out.expand_as(hidden) if self.spread else out

    # ------------------------------------------------------------------------- prompts and masks

    def keys_values(self, index: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Layer ``index``'s keys and values, each ``[B, h_kv, P, d]``; ``None`` below ``first_layer``."""
        if self._prompts is None or index < self.first_layer:
            return None
        keys, values = self._prompts[index - self.first_layer].to(dtype).expand(2, batch, -1, -1, -1)
        return keys, values

    def reads(self, index: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """:meth:`keys_values`, for attention that fetches its prompt itself."""
        self._read.add(index)
        return self.keys_values(index, batch, dtype)

    def _with_wide_mask(self, arguments: dict[str, Any], given: LayerPass, hidden: Tensor) -> dict[str, Any]:
        """``arguments`` with a mask that is open to the prompt, made once a pass for each mask.

        A backbone has one mask, or two where some of its layers slide.
        """
        mask = arguments.get("attention_mask")
        if mask is None:
            return arguments
        tokens = 0 if given.keys is None else given.keys.shape[2]
        dtype = _computing_dtype(hidden) if given.plain else None
        key = (id(mask), tokens, dtype)
        if key not in self._masks:
            wide = nn.functional.pad(mask, (tokens, 0), value=True)
            # Holding the mask beside it keeps its id from being given away.
            self._masks[key] = (wide if dtype is None else additive(wide, dtype), mask)
        return {**arguments, "attention_mask": self._masks[key][0]}

    def check_read(self, architecture: str) -> None:
        """Refuse a backbone that left a prompt unread: its answers would be the prompt-less model's."""
        prompted = set(range(self.first_layer, self.layers))
        if self._prompts is not None and not prompted <= self._read:
            raise UnsupportedBackbone(
                f"{architecture} read the deep prompts of {len(self._read & prompted)} of its "
                f"{len(prompted)} layers: it does not go through transformers' attention "
                "interface; use an input-depth prompt (prompt.depth: input)"
            )


class Layer(Bound):
    """A layer's forward method, in its place: it asks the pass what to do.

    Args:
        module: The layer.
        feed_forward: The names of the first and the last linear layer of its feed-forward network.
        disentangled: DeBERTa's: its pass is found elsewhere, and it returns a pair.
    """

    def __init__(
        self, module: nn.Module, feed_forward: tuple[str, str], *, disentangled: bool = False
    ) -> None:
        self.module = module
        self.feed_forward = FeedForward(*map(module.get_submodule, feed_forward))
        self.original: Callable[..., Any] = module.forward
        self.disentangled = disentangled
        self._names = list(inspect.signature(type(module).forward).parameters)[2:]
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, hidden: Tensor, *positional: Any, **arguments: Any) -> Any:
        found = disentangled.current() if self.disentangled else arguments.pop(ARGUMENT, None)
        arguments.update(zip(self._names, positional, strict=False))
        if not isinstance(found, ForwardPass):
            return self.original(hidden, **arguments)
        return found.through(self, hidden, arguments)

    @contextmanager
    def holding(self, units: Tensor | None) -> Iterator[None]:
        """In the ``with`` block the layer runs, with these virtual units ``[2, U, H]``."""
        with self.feed_forward.holding(units):
            yield
        if units is not None:
            self.feed_forward.check_read()

    def passed_by(self, hidden: Tensor) -> Any:
        """What a layer that does not run gives in the form that its neighbours expect."""
        return (hidden, None) if self.disentangled else hidden

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}  # a copy compiles its own: the original's has its weights

    def rebound(self, module: nn.Module) -> Layer:
        """For a copy of the layer, of which a pass has other parameters in place."""
        made = copy.copy(self)
        made.module, made.original = module, rebound(self.original, self.module, module)
        return made

    def unbound(self) -> Any:
        """What stood in the layer's ``__dict__`` before this one, if anything did."""
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
                    f"engine.compile needs a C++ compiler, and there is no {compiler!r}; install one, name "
                    "it in the environment variable CXX, or leave engine.compile out"
                )
            # One program each for training and evaluation, prompted or not, one row or more, padded or not
            # and so on: more than the 8 that torch stops at, whatever the lengths and the number of layers.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
            self._compiled = torch.compile(self.original, dynamic=True)
        return self._compiled


def install(
    layers: Iterable[nn.Module], feed_forward: tuple[str, str], *, disentangled: bool = False
) -> None:
    """Let every layer ask the pass that comes by; one without stays as it was, and one that does already."""
    for layer in layers:
        if not isinstance(layer.forward, Layer):
            layer.forward = Layer(layer, feed_forward, disentangled=disentangled)


def _keys_values(layer: Layer, hidden: Tensor, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """A layer's keys and values of all tokens, ``[B, h_kv, T, d]`` each, and nothing more of it.

    ``None`` if its attention does not come by here: somebody has set another implementation.
    """
    try:
        layer.original(hidden, **{**arguments, ARGUMENT: LayerPass(look=True)})
    except Looked as looked:
        return looked.keys_values
    return None


def _at(value: Any, place: slice, dimension: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_at(each, place, dimension) for each in value)
    return value[..., place, :] if dimension == -2 else value[..., place]


def _computing_dtype(hidden: Tensor) -> torch.dtype:
    """What a layer's products are computed in: autocast's, where that is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
