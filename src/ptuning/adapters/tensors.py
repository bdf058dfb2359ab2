"""What an adapter's tensors must be, wherever they come from: readable, real, finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import torch as safetensors
from torch import Tensor

from ptuning.errors import AdapterError


def parse_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors in a safetensors file's bytes.

    Raises:
        ValueError: they are no such file, or hold numbers of a kind that torch does not know.
    """
    try:
        return safetensors.load(data)
    except Exception as error:  # SafetensorError, and KeyError and others of a header that is nearly one
        raise ValueError(f"no safetensors: {first_line(error)}") from error


def check_finite(tensors: Mapping[str, Tensor], remedy: str) -> None:
    """Refuse tensors that hold a NaN or an infinity.

    Args:
        remedy: How the sentence ends: what follows, and what to do.

    Raises:
        AdapterError: names the first such tensor.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise AdapterError(
                f"{name} holds {count} of {tensor.numel()} numbers that are not finite (NaN or infinite)"
                f"{remedy}"
            )


def on_cpu(tensor: Tensor) -> Tensor:
    """A tensor's values on the CPU, also where each process has a shard of it (``fully_shard``)."""
    full = getattr(tensor, "full_tensor", None)
    found: Tensor = tensor.detach() if full is None else full().detach()
    return found.cpu()


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
