"""What our ``state_dict`` says about itself, so that a file with only tensors can be opened as a task.

``transformers.Trainer`` and ``accelerate`` write a model's ``state_dict`` and nothing else. Ours has the
prompt encoder, the head, and under :data:`KEY` a record: JSON in a tensor of bytes, as safetensors has only
tensors. With it :meth:`PTuningModel.from_pretrained` opens a checkpoint of the Trainer, an altered byte is
found, and a checkpoint of another task is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptuning.adapters.schema import StateFields, check_fields
from ptuning.adapters.tensors import check_finite, first_line, on_cpu
from ptuning.errors import AdapterError, AdapterMismatch
from ptuning.files import parse_json
from ptuning.model.config import prompt_from_dict, prompt_to_dict
from ptuning.task import ADDED_LATER

KEY = "_extra_state"
"""Where torch puts what :meth:`torch.nn.Module.get_extra_state` returns."""

FILE = "model.safetensors"
"""What the Trainer calls a state dict."""

FORMAT_VERSION = 1


def check_given(given: Mapping[str, Any], prefix: str, here: Callable[[], Mapping[str, Any]]) -> None:
    """Check a state dict before any of it is loaded; one without a record is taken as it is.

    Args:
        given: The state dict.
        prefix: What the names of this task start with in it.
        here: Gives the record of the task that it is loaded into.

    Raises:
        AdapterError: the tensors are not those that were saved.
        AdapterMismatch: they are of another task, prompt or backbone.
    """
    own = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    if (stored := own.pop(KEY, None)) is None:
        return
    # Not saved, but a state dict may have been made around the model; torch calls these unexpected.
    own = {name: value for name, value in own.items() if not name.startswith("backbone.")}
    record = read(stored)
    check(record, own)
    compare(record, here())


def write(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """The record with the digest of itself and of ``tensors``, as a tensor of bytes."""
    whole = {"format_version": FORMAT_VERSION, **record}
    text = json.dumps({**whole, "sha256": _digest(whole, tensors)}, sort_keys=True).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def read(stored: Tensor) -> dict[str, Any]:
    """What :func:`write` wrote.

    Raises:
        AdapterError: not such a record, or one of a newer format.
    """
    try:
        if not isinstance(stored, Tensor) or stored.dtype != torch.uint8 or stored.dim() != 1:
            raise ValueError("it is not a vector of bytes")
        record = parse_json(bytes(stored.cpu().numpy()))
        version = record.get("format_version") if isinstance(record, dict) else None
        if type(version) is not int or version < 1:
            raise ValueError("it has no format_version")
        if version > FORMAT_VERSION:
            raise AdapterError(
                "the state dict's format",
                got=version,
                expected=f"at most {FORMAT_VERSION}, which this version of ptuning reads",
                remedy="update it with: pip install --upgrade ptuning",
            )
        check_fields(StateFields, record)
    except AdapterError:
        raise
    except (ValueError, RuntimeError) as error:
        raise AdapterError(
            f"the state dict's {KEY} is not a record of ptuning ({first_line(error)}): the checkpoint was "
            "altered or cut short",
            remedy="use another checkpoint",
        ) from None
    found: dict[str, Any] = record
    return found


def check(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse an altered record, or tensors other than those it was written for.

    Raises:
        AdapterError: a byte differs.
    """
    whole = {key: value for key, value in record.items() if key != "sha256"}
    if record.get("sha256") != _digest(whole, tensors):
        raise AdapterError(
            "the state dict was altered or cut short: its sha256 is not the recorded one",
            remedy=f"use another checkpoint. If you changed the tensors on purpose, remove {KEY!r} from it",
        )


def compare(record: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a record of another task, prompt or backbone, wherever these were loaded from.

    Raises:
        AdapterMismatch: naming what differs.
    """
    # Old records lack options that did not exist then.
    record = {**record, "prompt": prompt_to_dict(prompt_from_dict(record["prompt"]))}
    record, here = ({**each, "task": {**ADDED_LATER, **each["task"]}} for each in (record, here))
    for fact in ("task", "prompt", "backbone", "anchors", "cloze", "head", "rate_scales"):
        theirs, ours = (_leaves(fact, json.loads(json.dumps(each.get(fact)))) for each in (record, here))
        if odd := [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
            raise AdapterMismatch(
                f"the state dict is of another model: its {odd[0]} is {theirs.get(odd[0])!r}, and this "
                f"model's is {ours.get(odd[0])!r}",
                remedy="create the model with that run's options, or open the checkpoint's folder with "
                "PTuningModel.from_pretrained",
            )


def _leaves(name: str, fact: Any) -> dict[str, Any]:
    """A fact by dotted names, without what may differ between two equal models."""
    if not isinstance(fact, dict):
        return {name: fact}
    apart = ("name", "revision", "num_parameters", "init")  # its origin, and its initial values
    inner = (_leaves(f"{name}.{key}", value) for key, value in fact.items() if key not in apart)
    return {key: value for part in inner for key, value in part.items()}


def read_file(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The record and the tensors of a folder that the Trainer wrote; ``None`` if there is no such file.

    A model that wraps ours (several adapters, a parallel one) adds a prefix to every name; it is removed.

    Raises:
        AdapterError: a file that cannot be read, that was altered, or that has more than one task.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        with safe_open(str(file), framework="pt") as stored:
            names: list[str] = list(stored.keys())
            records = [name for name in names if name.rpartition(".")[2] == KEY]
            if not records:
                return None
            if len(records) > 1:
                raise AdapterError(
                    f"{file} has {len(records)} tasks",
                    remedy="load it into the model that wrote it, and save each with save_pretrained",
                )
            prefix = records[0].removesuffix(KEY)
            tensors = {
                name.removeprefix(prefix): stored.get_tensor(name)
                for name in names
                if name.startswith(prefix) and name != records[0]
            }
            record = read(stored.get_tensor(records[0]))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(
            f"{file} cannot be read: it was altered or cut short ({error})",
            remedy="use another checkpoint",
        ) from error
    check(record, tensors)
    held = sum(value.numel() for value in tensors.values())
    for name, size in _leaves("prompt", record["prompt"]).items():
        if type(size) is int and size > max(held, 1024):  # before allocating anything of that size
            raise AdapterError(
                f"{file} says {name} {size}, but has {held} values in all: it was altered",
                remedy="use another checkpoint",
            )
    for name, value in tensors.items():
        if value.dtype != torch.float32:
            raise AdapterError(
                f"{name} in {file}",
                got=str(value.dtype),
                expected="torch.float32",
                remedy="use another checkpoint",
            )
    check_finite(tensors, f" in {file}", "its training diverged; use another checkpoint")
    return record, tensors


def _digest(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        own = on_cpu(value).clone()  # numpy fixes the size of a storage, and FSDP resizes its own
        digest.update(own.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
