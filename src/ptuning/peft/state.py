"""An adapter's state dict under PEFT's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from ptuning import adapters
from ptuning.errors import AdapterError, ConfigError
from ptuning.model.prompt import Embedding, PromptEncoder
from ptuning.model.ptuning import PTuningModel
from ptuning.model.state import KEY
from ptuning.peft.model import DEFAULT, PeftModel

_PARTS = "parametrizations."
"""The prefix of torch's names for the parts of a :class:`ScaledParameter`."""


class IncompatibleKeys(NamedTuple):
    """What :func:`set_peft_model_state_dict` returns, as torch does: two empty lists."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def get_peft_model_state_dict(
    model: PeftModel | PTuningModel, state_dict: None = None, adapter_name: str = DEFAULT
) -> dict[str, Tensor]:
    """An adapter's parameters: the prompt encoder as ``prompt_encoder.*``, virtual units as ``units.*``, the
    head as PEFT names it.

    Args:
        model: The model.
        state_dict: Not supported: it is always the model's own.
        adapter_name: The adapter.
    """
    if state_dict is not None:
        raise ConfigError(
            "state_dict: a given state dict is not supported",
            remedy="leave it out, and name the adapter: adapter_name=…",
        )
    task = _task_of(model, adapter_name)
    encoder = {f"prompt_encoder.{name}": value for name, value in _values(task.prompt_encoder).items()}
    if task.units is not None:
        encoder |= {f"units.{name}": value for name, value in _values(task.units).items()}
    head = {f"base_model.{name}": value.detach() for name, value in task.head.named().items()}
    return {**encoder, **head}


def set_peft_model_state_dict(
    model: PeftModel | PTuningModel, peft_model_state_dict: Mapping[str, Tensor], adapter_name: str = DEFAULT
) -> IncompatibleKeys:
    """The inverse of :func:`get_peft_model_state_dict`.

    It also takes what PEFT's function of that name returns. Its ``prompt_embeddings`` are the output of the
    encoder, so they replace the encoder and give the same logits.

    Raises:
        AdapterError: missing or unexpected keys, or another shape; nothing is changed then.
    """
    task = _task_of(model, adapter_name)
    given = {name: value for name, value in peft_model_state_dict.items() if name != KEY}
    made = given.pop("prompt_embeddings", None)
    wanted = get_peft_model_state_dict(model, adapter_name=adapter_name)
    if made is not None:
        wanted = {name: value for name, value in wanted.items() if not name.startswith("prompt_encoder.")}
    if odd := sorted(wanted.keys() ^ given.keys()):
        where = "lacks" if odd[0] in wanted else "has an unexpected"
        raise AdapterError(
            f"the state dict {where} {odd[0]!r}",
            expected=", ".join(wanted),
            remedy="create the model with the configuration of the one that it came from",
        )
    for name, value in wanted.items():
        if given[name].shape != value.shape:
            raise AdapterError(
                f"the state dict's {name} has the shape {list(given[name].shape)}", expected=list(value.shape)
            )
    if made is not None:
        task.set_prompt(_unpacked(task, made))
    with torch.no_grad():
        for part in ("prompt_encoder", "units"):
            inner = {
                name.removeprefix(f"{part}."): value
                for name, value in given.items()
                if name.startswith(f"{part}.")
            }
            if inner:
                _set_values(getattr(task, part), inner)
        task.head.copy_({name: given[f"base_model.{name}"] for name in task.head.names})
    return IncompatibleKeys([], [])


def _values(encoder: PromptEncoder) -> dict[str, Tensor]:
    """An encoder's parameters by their plain names, scaled ones included."""
    state = {name: value for name, value in encoder.state_dict().items() if not name.startswith(_PARTS)}
    if parametrize.is_parametrized(encoder, "weight"):
        state["weight"] = cast(Embedding, encoder).weight.detach()
    return state


def _set_values(encoder: PromptEncoder, values: Mapping[str, Tensor]) -> None:
    if parametrize.is_parametrized(encoder, "weight"):
        cast(Any, encoder).weight = values["weight"].to(cast(Embedding, encoder).weight)
    encoder.load_state_dict(dict(values), strict=False)  # the names have been compared


def _task_of(model: PeftModel | PTuningModel, adapter_name: str) -> PTuningModel:
    return model if isinstance(model, PTuningModel) else model.task_named(adapter_name)


def _unpacked(task: PTuningModel, made: Tensor) -> Tensor:
    """PEFT's ``prompt_embeddings`` in the shape that the encoder returns."""
    with torch.no_grad():
        now = task.prompt_encoder()
    tokens, size = now.shape[-2], now.numel()
    if made.shape != (tokens, size // tokens):
        raise AdapterError(
            f"the state dict's prompt_embeddings have the shape {list(made.shape)}",
            expected=[tokens, size // tokens],
        )
    return adapters.unpack_layers(made, now.shape[0]) if now.dim() == 4 else made
