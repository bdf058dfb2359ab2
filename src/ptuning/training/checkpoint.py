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
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptuning import adapters
from ptuning.data.tokens import TokenRow
from ptuning.errors import AdapterError, ConfigError
from ptuning.model.ptuning import PTuningModel
from ptuning.training import optimizer_state
from ptuning.training.config import OLD_NAMES
from ptuning.training.records import Evaluation
from ptuning.training.run_files import START_AGAIN, STATE, TENSORS
from ptuning.validation import explain

Kept = dict[int, dict[str, Tensor]]
"""By index in the history, the task's parameters at the best evaluations."""


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

    def took(self, loss: float, rows: int, *, batches: int, seconds: float) -> None:
        """Count an optimizer step over so many batches and rows, with this mean loss."""
        self.batch += batches
        self.step += 1
        self.loss_sum += loss * rows
        self.loss_rows += rows
        self.rows += rows
        self.train_seconds += seconds

    def possible(self, batches: Sequence[int], steps: int) -> bool:
        """Whether a run of so many batches in each epoch, and of so many steps, can be there."""
        if self.epoch == len(batches):
            return self.batch == 0 and self.step == steps and self.best is not None
        return self.epoch < len(batches) and self.batch < batches[self.epoch] and self.step < steps


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
    tensors |= optimizer_state.tensors_of(optimizer, parameters)
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()

    def write(inside: Path) -> None:
        (inside / "resume").mkdir()
        state = {"position": asdict(position), "setting": dict(setting)}
        if setting.get("optimizer") is not None:
            state["optimizer"] = optimizer_state.values_of(optimizer, parameters)
        (inside / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, inside / TENSORS)

    metrics = {} if position.best is None else {"validation": position.history[position.best].metrics}
    best = None if position.best is None else kept[position.best]
    adapters.save(model.to_adapter(values=best, metrics=metrics), folder, extra_files=write)


def load(
    folder: Path, *, model: PTuningModel, optimizer: torch.optim.Optimizer, setting: Mapping[str, Any]
) -> tuple[Position, Kept]:
    """Put model, optimizer and generators back where the run was; return its position and its best tasks.

    Raises:
        AdapterError: no checkpoint there, one altered or cut short, or one that no run of this version wrote.
        ConfigError: the configuration or the data are not those the run began with.
    """
    listed = adapters.verify(folder)
    try:
        for name in (STATE, TENSORS):
            if name not in listed:
                raise ValueError(f"it has no {name}")
        state = _State.read((folder / STATE).read_bytes())
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        raise cannot_resume(folder, error) from error
    began_with = as_now(state.setting)
    refuse_changes(began_with, setting)
    own = setting.get("optimizer") is not None  # a user's, with a state that only it knows
    try:
        if missing := sorted(setting.keys() - began_with.keys()):
            raise ValueError(f"{STATE} does not say with what {missing[0]} the run began")
        looks = _looks(state.position, tensors)
        parameters = model.task_parameters()
        if own:
            optimizer_state.check(optimizer, parameters, tensors, state.optimizer)
        _check_tensors(parameters, tensors, looks, state.position.step, own_optimizer=own)
        _set_generators(tensors)
    except (ValueError, RuntimeError) as error:
        raise cannot_resume(folder, error) from error
    restore(model, _under("now.", tensors))
    optimizer_state.restore(optimizer, parameters, tensors, state.optimizer)
    history = [Evaluation(**dict(each)) for each in state.position.history]
    position = Position(**{**dict(state.position), "history": history})
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
                f"{key}: the run started with {then!r}, got {now!r}"
                if key != "data"
                else "the data has changed"
            )
            raise ConfigError(f"cannot resume: {what}; use the same configuration, or {START_AGAIN}")


def as_now(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting with options by today's names, and those that the version before did not have."""
    before = {"loss": None, "optimizer": None, "lr_scheduler": None, "fit.greater_is_better": None}
    old = {f"fit.{name}": f"fit.{now}" for name, now in OLD_NAMES.items()}
    return {**before, **{old.get(name, name): value for name, value in setting.items()}}


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


# ------------------------------------------------------------------------- what stands in resume/


class _Record(BaseModel):
    """What JSON has to hold, and nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Evaluation(_Record):
    """The fields of an :class:`Evaluation`."""

    epoch: float = Field(ge=0, allow_inf_nan=False)
    step: int = Field(ge=0)
    train_loss: float
    metrics: dict[str, float]


class _Position(_Record):
    """The fields of a :class:`Position`."""

    epoch: int = Field(ge=0)
    batch: int = Field(ge=0)
    step: int = Field(ge=0)
    loss_sum: float
    loss_rows: int = Field(ge=0)
    stale: int = Field(ge=0)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    train_seconds: float = Field(ge=0, allow_inf_nan=False)
    rows: int = Field(ge=0)
    history: list[_Evaluation]
    best: int | None = Field(ge=0)


class _State(_Record):
    """``resume/state.json``."""

    position: _Position
    setting: dict[str, Any]
    optimizer: dict[str, Any] = {}

    @classmethod
    def read(cls, data: bytes) -> _State:
        try:
            state = cls.model_validate(json.loads(data.decode()))
        except ValidationError as error:
            raise ValueError(f"{STATE}: {explain(error)}") from None
        best, count = state.position.best, len(state.position.history)
        if (best is None) != (count == 0) or (best is not None and best >= count):
            raise ValueError(f"{STATE}: position.best is {best}, of {count} evaluations")
        return state


def _looks(position: _Position, tensors: Mapping[str, Tensor]) -> list[int]:
    """The evaluations whose parameters are kept."""
    names = {name.split(".")[1] for name in tensors if name.startswith("kept.")}
    possible = {str(index) for index in range(len(position.history))}
    if strange := sorted(names - possible):
        raise ValueError(f"{TENSORS} has parameters of an evaluation {strange[0]!r}, which there was not")
    looks = sorted(map(int, names))
    if position.best is not None and position.best not in looks:
        raise ValueError("it is another version's, and holds no best evaluations")
    return looks


def _check_tensors(
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    looks: Sequence[int],
    step: int,
    *,
    own_optimizer: bool = False,
) -> None:
    """Compare every tensor of the checkpoint with what :func:`save` writes of these parameters at a step.

    Args:
        own_optimizer: A user's, so that its tensors have been checked already.
    """
    if own_optimizer:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
    wanted = {f"now.{name}": like for name, like in parameters.items()}
    wanted |= {f"kept.{look}.{name}": like for look in looks for name, like in parameters.items()}
    for name, like in parameters.items():  # one that has not been stepped yet has no moments
        if _under(f"optimizer.{name}/", tensors):
            moments = {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like}
            wanted |= {f"optimizer.{name}/{key}": value for key, value in moments.items()}
    generators = {name for name in tensors if name in ("rng.cpu", "rng.cuda")}
    if different := sorted((wanted.keys() | {"rng.cpu"}) ^ (tensors.keys() - (generators - {"rng.cpu"}))):
        what = "lacks" if different[0] not in tensors else "has, of another task,"
        raise ValueError(f"{TENSORS} {what} {different[0]}")
    for name, like in wanted.items():
        found = tensors[name]
        if (found.shape, found.dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"{name} is {_kind(found)}, expected {_kind(like)}: it is another version's, or was altered"
            )
        if not bool(found.isfinite().all()) or (
            name.endswith(("/exp_avg_sq", "/step")) and (found < 0).any()
        ):
            raise ValueError(f"{name} has values that no healthy run has: NaN, infinite or negative")
    if step and not own_optimizer and not any(name.startswith("optimizer.") for name in tensors):
        raise ValueError(f"{TENSORS} has no moments of the optimizer, expected those of {step} steps")
    for name in generators:
        if tensors[name].dtype != torch.uint8 or tensors[name].dim() != 1:
            raise ValueError(f"{name} is {_kind(tensors[name])}, expected the state of a random generator")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _set_generators(tensors: Mapping[str, Tensor]) -> None:
    """Raises ``RuntimeError`` or ``ValueError`` of a state that this version of torch cannot take."""
    cpu, before = tensors["rng.cpu"], torch.get_rng_state()
    if cpu.shape != before.shape:
        raise ValueError(f"rng.cpu has {len(cpu)} bytes, expected {len(before)}; another torch wrote it")
    torch.set_rng_state(cpu)
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])


def cannot_resume(folder: Path, error: Exception | str) -> AdapterError:
    """The error that says why, and what to do."""
    why = (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    return AdapterError(f"{folder} cannot be resumed from: {why}; {START_AGAIN}")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
