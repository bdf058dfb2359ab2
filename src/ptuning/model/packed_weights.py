"""Frozen linear layers whose weights are packed once, for matrix products in half precision on a CPU.

oneDNN multiplies by a weight that is laid out in blocks. torch has no place for such a copy, so it lays the
weight out in every call. A frozen weight always gives the same blocks: here they are made at the first call
and kept, one copy for products with the weight and one, for gradients, with its transpose.

:class:`PackedWeights` has the copies, one of each for all views of a backbone. :class:`PackedLinear` takes
the place of a linear layer's ``forward``. It uses a packed copy only where that is certain to be right, and
calls the layer's own ``forward`` otherwise.

The result differs from the layer's own by rounding at most. A copy takes as much memory as the weight in half
precision; the original stays, because state dicts, other devices and dtypes, and compiled layers need it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ptuning.model.views import Bound

_KINDS: Mapping[type[nn.Module], bool] = {nn.Linear: False, Conv1D: True}
"""The modules that are packed, subclasses excluded, and whether they keep their weight transposed."""
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_CHECKS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
"""What products can be computed in, and torch's question whether the processor can."""
_SAMPLES = 8
"""Rows and columns of a weight that are compared in every call."""


@functools.cache
def is_supported(dtype: torch.dtype) -> bool:
    """Whether this torch on this processor multiplies by packed weights of ``dtype``.

    fp32 is left out: its products do not lay the weight out (docs/performance.md). The operators are internal
    to torch, so they are tried before they are used.
    """
    if dtype not in _CHECKS or not torch.backends.mkldnn.is_available():
        return False
    cpu = torch.autocast("cpu", enabled=False)
    with torch.inference_mode(False), torch.no_grad(), cpu:
        weight = torch.linspace(-1, 1, 24, device="cpu").view(6, 4).to(dtype)
        x, bias = weight[:3], weight.flatten()[:6]
        try:
            if not getattr(torch.ops.mkldnn, _CHECKS[dtype])():
                return False
            found = _multiply(x, _pack(weight), bias)
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(found, nn.functional.linear(x, weight, bias), atol=0.02)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return found


class _Copy(NamedTuple):
    """A packed weight, and what tells that the weight is still the same."""

    packed: Tensor
    weight: Tensor
    same: Tensor
    """The weight's memory, so that no other tensor can get its address."""
    version: int
    sample: Tensor
    expected: Tensor

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype, transposed: bool) -> _Copy:
        # Not an inference tensor, even if the first call is made in inference mode: training uses it too.
        with torch.inference_mode(False), torch.no_grad():
            same, version = weight.detach(), weight._version
            every = [max(1, size // _SAMPLES) for size in same.shape]
            sample = same[:: every[0], :: every[1]].view(_BITS[same.dtype])
            given = same.t() if transposed else same
            return cls(_pack(given.to(dtype).contiguous()), weight, same, version, sample, sample.clone())

    def is_of(self, weight: Tensor) -> bool:
        """Whether the weight has not changed.

        torch counts changes, except those through ``weight.data``. The sample finds these if they concern
        the weight as a whole.
        """
        return (
            weight is self.weight
            and weight._version == self.version
            and self.same.is_set_to(weight)
            and torch.equal(self.sample, self.expected)
        )


class PackedWeight:
    """The packed copies of one linear layer's weight: made when they are first used.

    Args:
        parameters: The layer's parameters by name; all views have the same dictionary.
    """

    def __init__(self, parameters: Mapping[str, Tensor | None]) -> None:
        self.parameters = parameters
        self._copies: dict[tuple[torch.dtype, bool], _Copy] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"parameters": self.parameters, "_copies": {}}  # a copy has other weights

    def packed(self, weight: Tensor, dtype: torch.dtype, transposed: bool) -> Tensor:
        """``weight``, or its transpose, packed for products in ``dtype``."""
        # Two threads may both make the copy; one is kept, and both are right. So there is no lock.
        found = self._copies.get((dtype, transposed))
        if found is None or not found.is_of(weight):
            if found is not None:
                self.clear()  # the other copies are of the old weight, too
            found = self._copies[dtype, transposed] = _Copy.of(weight, dtype, transposed)
        return found.packed

    @property
    def nbytes(self) -> int:
        """Bytes of the copies that have been made."""
        copies = tuple(self._copies.values())
        return sum(copy.packed.numel() * copy.packed.dtype.itemsize for copy in copies)

    def clear(self) -> None:
        """Drop the copies."""
        self._copies = {}


class PackedWeights:
    """The packed copies of a backbone's weights, for all of its views and tasks.

    Args:
        layers: The layers of the adopted model; their ``nn.Linear`` and ``Conv1D`` modules are packed.

    Attributes:
        needed: Bytes of one copy of every weight. With gradients there are two.
    """

    def __init__(self, layers: nn.Module) -> None:
        self._weights = {
            name: PackedWeight(module._parameters)
            for name, module in layers.named_modules()
            if type(module) in _KINDS
        }
        weights = (packed.parameters.get("weight") for packed in self._weights.values())
        self.needed = sum(2 * weight.numel() for weight in weights if weight is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of the copies that have been made."""
        return sum(weight.nbytes for weight in self._weights.values())

    def ways(self, limit: float) -> int:
        """2 if copies of all weights and of their transposes fit into ``limit`` GiB, 1 if only those of the
        weights do, otherwise 0. All or none, so that results do not depend on what was called before.
        """
        return min(2, int(limit * 2**30 // self.needed)) if self.needed else 0

    def install(self, layers: nn.Module, ways: int) -> None:
        """Let the linear layers of a view use packed weights, or their own if ``ways`` is 0.

        A layer whose ``forward`` someone else has replaced stays as it is.
        """
        for name, module in layers.named_modules():
            weight, replaced = self._weights.get(name), vars(module).get("forward")
            if weight is None or not (replaced is None or isinstance(replaced, PackedLinear)):
                continue
            if ways and type(module) in _KINDS:
                vars(module)["forward"] = PackedLinear(module, weight, backward=ways > 1)
            else:
                vars(module).pop("forward", None)

    def clear(self) -> None:
        """Drop all copies: the weights move."""
        for weight in self._weights.values():
            weight.clear()


class PackedLinear(Bound):
    """A linear layer's ``forward``, with the weight packed.

    Args:
        module: The layer.
        weight: Its packed weight.
        backward: Whether to pack its transpose too, for gradients.
    """

    def __init__(self, module: nn.Module, weight: PackedWeight, *, backward: bool) -> None:
        self.module, self.weight, self.backward = module, weight, backward
        self.transposed = _KINDS[type(module)]

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        if not torch.compiler.is_compiling() and len(inputs) == 1 and not named:
            (x,) = inputs
            if (dtype := self._dtype(x)) is not None:
                return self._packed(x.to(dtype), dtype)
        found: Tensor = type(self.module).forward(self.module, *inputs, **named)
        return found

    def rebound(self, module: nn.Module) -> PackedLinear:
        """For a copy of the layer, in which a pass may have put a task's own weight: that is not packed."""
        return PackedLinear(module, self.weight, backward=self.backward)

    def _dtype(self, x: Any) -> torch.dtype | None:
        """What the product of ``x`` is computed in; ``None`` if not by a packed weight."""
        parameters = self.module._parameters
        if parameters is not self.weight.parameters:
            return None  # the module of one task, or of one pass
        weight, bias = parameters.get("weight"), parameters.get("bias")
        if type(weight) is not nn.Parameter or type(x) not in (Tensor, nn.Parameter):
            return None
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            alike = x.dtype in _BITS and weight.dtype in _BITS
        else:
            dtype = weight.dtype
            alike = x.dtype == dtype and (bias is None or bias.dtype == dtype)
        if dtype not in _CHECKS or not alike or not (x.is_cpu and weight.is_cpu):
            return None
        if weight.requires_grad or (bias is not None and bias.requires_grad) or weight.is_inference():
            return None
        if x.layout is not torch.strided or x.numel() == 0 or x.dim() == 0:
            return None
        if x.shape[-1] != weight.shape[0 if self.transposed else 1]:
            return None
        able = torch.backends.mkldnn.enabled and not _is_observed() and is_supported(dtype)
        return dtype if able else None

    def _packed(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        parameters = self.weight.parameters
        weight, bias = parameters["weight"], parameters.get("bias")
        bias = None if bias is None else bias.to(dtype)
        if torch.is_grad_enabled() and x.requires_grad:
            return _product(x, weight, bias, self, self.transposed)
        assert weight is not None
        return self.multiply(x, weight, bias, self.transposed)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        """``x Wᵀ + b``; ``x W + b`` if ``transposed``. Without gradients."""
        packs = self.backward or transposed == self.transposed
        if not packs or weight is not self.weight.parameters.get("weight"):
            given = weight.t() if transposed else weight
            return nn.functional.linear(x, given.to(x.dtype), bias)
        return _multiply(x, self.weight.packed(weight, x.dtype, transposed), bias)


class _Product(torch.autograd.Function):
    """A product with a frozen weight. Its gradient is a product with the transpose, so it has any number of
    derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, linear: PackedLinear, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(weight)  # torch then refuses a weight that was changed before the backward pass
        ctx.linear, ctx.transposed = linear, transposed
        found = linear.multiply(x, weight, bias, transposed)
        # As torch.matmul does: a view would not allow what a layer does in place, such as OLMo's clamp_.
        own: Tensor = torch.ops.aten._unsafe_view(found, found.shape)
        return own

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        found = _product(gradient, weight, None, ctx.linear, not ctx.transposed)
        return found, None, None, None, None


_product: Callable[..., Tensor] = _Product.apply


def _is_observed() -> bool:
    """Whether someone follows torch's operations, who would not know the packed product: a trace, a transform
    of ``torch.func``, forward-mode derivatives, or a mode that counts or fakes operations.
    """
    try:
        return (
            torch._C._get_tracing_state() is not None
            or torch._C._are_functorch_transforms_active()
            or torch.autograd.forward_ad._current_level >= 0
            or torch._C._len_torch_dispatch_stack() > 0
        )
    except AttributeError:  # another torch, which cannot be asked like this
        return True
