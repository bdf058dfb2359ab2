"""Checkpoints that can be gone on from, to the bit: safetensors and JSON, never pickle.

A checkpoint is the adapter folder of the best task so far, usable as it is, plus ``resume/``:

``resume/state.json``
    position in the data, evaluations so far, the configuration and a digest of the data;
``resume/state.safetensors``
    the task's parameters now and at the best evaluations, AdamW's moments, the random generators.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptuning import adapters
from ptuning.data.tokens import TokenRow
from ptuning.errors import AdapterError, ConfigError
from ptuning.model.ptuning import PTuningModel
from ptuning.training.result import Evaluation

Kept = dict[int, dict[str, Tensor]]
"""By index in the history, the task's parameters at the best evaluations."""

FOLDER = "checkpoint"
_STATE, _TENSORS = "resume/state.json", "resume/state.safetensors"


@dataclass(kw_only=True)
class Position:
    """How far a run is. The one mutable thing of the loop besides the model and the optimizer.

    Attributes:
        epoch: Epochs done.
        batch: Batches done in the epoch after those.
        step: Optimizer steps done.
        loss_sum: Of the training rows since the last evaluation.
        loss_rows: How many those were.
        stale: Evaluations since the best.
        seconds: Wall time so far.
        train_seconds: Of it, in training steps.
        rows: Training rows seen so far.
        history: Every evaluation so far.
        best: The index of the best of them.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    stale: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    rows: int = 0
    history: list[Evaluation] = field(default_factory=list)
    best: int | None = None


def data_digest(*splits: Sequence[TokenRow]) -> str:
    """What tells one data set from another: a run goes on only on the rows that it began with."""
    digest = hashlib.sha256()
    for rows in splits:
        digest.update(str(len(rows)).encode())
        for row in rows:
            digest.update(repr((row.input_ids, row.label)).encode())
    return digest.hexdigest()


def save(
    folder: Path,
    *,
    model: PTuningModel,
    optimizer: torch.optim.Optimizer,
    position: Position,
    kept: Mapping[int, Mapping[str, Tensor]],
    setting: Mapping[str, Any],
) -> None:
    """Write the checkpoint, whole or not at all.

    Args:
        kept: The task's parameters at the best evaluations, ``position.best`` among them.
        setting: What has to be the same for the run to go on.
    """
    parameters = model.task_parameters()
    now = {name: value.detach().clone() for name, value in parameters.items()}
    tensors = {f"now.{name}": value for name, value in now.items()}
    for index, values in kept.items():
        tensors |= {f"kept.{index}.{name}": value for name, value in values.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}/{key}"] = torch.as_tensor(value)
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()

    def write(inside: Path) -> None:
        (inside / "resume").mkdir()
        state = {"position": asdict(position), "setting": dict(setting)}
        (inside / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, inside / _TENSORS)

    metrics = {} if position.best is None else {"validation": position.history[position.best].metrics}
    try:
        if position.best is not None:
            restore(model, kept[position.best])
        adapter = model.to_adapter(metrics=metrics)
    finally:
        restore(model, now)
    adapters.save(adapter, folder, extra_files=write)


def load(
    folder: Path, *, model: PTuningModel, optimizer: torch.optim.Optimizer, setting: Mapping[str, Any]
) -> tuple[Position, Kept]:
    """Put model, optimizer and generators back where the run was; return its position and its best tasks.

    Raises:
        AdapterError: no checkpoint there, or one altered or cut short.
        ConfigError: the configuration or the data are not those the run began with.
    """
    adapters.verify(folder)
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(
            f"{folder} cannot be resumed from ({error}); start again without --resume"
        ) from error
    found = state["position"]
    looks = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("kept.")})
    if found["best"] is not None and found["best"] not in looks:
        raise AdapterError(
            f"{folder} cannot be resumed from: it is another version's, and holds no best evaluations; start "
            "again without --resume"
        )
    refuse_changes(state["setting"], setting)
    restore(model, _under("now.", tensors))
    for name, parameter in model.task_parameters().items():
        moments = _under(f"optimizer.{name}/", tensors)
        if moments:
            optimizer.state[parameter] = {
                key: value.to(parameter.device) if value.dim() else value for key, value in moments.items()
            }
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    position = Position(**{**found, "history": [Evaluation(**each) for each in found["history"]]})
    kept = {look: _under(f"kept.{look}.", tensors) for look in looks}
    return position, {
        look: {name: value.to(model.device) for name, value in values.items()}
        for look, values in kept.items()
    }


def refuse_changes(began_with: Mapping[str, Any], setting: Mapping[str, Any]) -> None:
    """Refuse to go on with another setting than a run began with.

    Raises:
        ConfigError: the first difference.
    """
    for key, then in began_with.items():
        if key in setting and (now := json.loads(json.dumps(setting[key]))) != then:
            what = (
                f"{key}: the run began with {then!r}, got {now!r}"
                if key != "data"
                else "the data has changed"
            )
            raise ConfigError(
                f"cannot resume: {what}; use the same configuration, or start again without --resume"
            )


def restore(model: PTuningModel, values: Mapping[str, Tensor]) -> None:
    """Set the task's parameters."""
    with torch.no_grad():
        for name, parameter in model.task_parameters().items():
            parameter.copy_(values[name])


def snapshot(model: PTuningModel) -> dict[str, Tensor]:
    """A copy of the task's parameters."""
    return {name: value.detach().clone() for name, value in model.task_parameters().items()}


def mean(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of several copies of the task's parameters."""
    return {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
