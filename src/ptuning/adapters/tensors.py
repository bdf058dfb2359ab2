"""Checks of an adapter's tensors: readable, floating point, finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import torch as safetensors
from torch import Tensor

from ptuning.errors import AdapterError


def parse_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors in a safetensors file's bytes.

    Raises:
        ValueError: not a safetensors file, or a data type that torch does not know.
    """
    try:
        return safetensors.load(data)
    except Exception as error:  # SafetensorError, and KeyError and others for a damaged header
        raise ValueError(f"not a safetensors file: {first_line(error)}") from error


def check_finite(tensors: Mapping[str, Tensor], where: str = "", remedy: str | None = None) -> None:
    """Refuse tensors with NaN or infinite values.

    Args:
        where: What comes after the tensor's name in the message.
        remedy: What to do.

    Raises:
        AdapterError: names the first such tensor.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise AdapterError(
                f"{name}{where}",
                got=f"{count} of {tensor.numel()} values that are NaN or infinite",
                expected="finite values",
                remedy=remedy,
            )


def on_cpu(tensor: Tensor) -> Tensor:
    """A tensor's values on the CPU, also where each process has a shard of it (``fully_shard``)."""
    full = getattr(tensor, "full_tensor", None)
    found: Tensor = tensor.detach() if full is None else full().detach()
    return found.cpu()


def first_line(error: BaseException) -> str:
    """The message of another library's error, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
