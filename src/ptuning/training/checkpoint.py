"""Checkpoints: a run resumed from one gives the same result to the bit. Safetensors and JSON, never pickle.

A checkpoint is the adapter folder of the best evaluation so far, ready to use, plus ``resume/``:

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
    """How far a run is: the only mutable state of the loop besides the model and the optimizer.

    Attributes:
        epoch: Epochs done.
        batch: Batches done in the current epoch.
        step: Optimizer steps done.
        loss_sum: Sum of the training rows' losses since the last evaluation.
        loss_rows: The number of those rows.
        stale: Evaluations since the best one.
        seconds: Wall time so far.
        train_seconds: The part of it that was spent in training steps.
        rows: Training rows seen so far.
        history: Every evaluation so far.
        best: The index of the best evaluation.
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
        """Count an optimizer step over ``batches`` and ``rows``, with the mean loss ``loss``."""
        self.batch += batches
        self.step += 1
        self.loss_sum += loss * rows
        self.loss_rows += rows
        self.rows += rows
        self.train_seconds += seconds

    def possible(self, batches: Sequence[int], steps: int) -> bool:
        """Whether a run with ``batches`` per epoch and ``steps`` in all can have this position."""
        if self.epoch == len(batches):
            return self.batch == 0 and self.step == steps and self.best is not None
        return self.epoch < len(batches) and self.batch < batches[self.epoch] and self.step < steps


def data_digest(*splits: Sequence[TokenRow]) -> str:
    """A digest of the rows: a run can only be resumed on the rows that it started with."""
    digest = hashlib.sha256()
    for rows in splits:
        digest.update(str(len(rows)).encode())
        for row in rows:
            digest.update(repr((row.input_ids, row.label)).encode())
            for window in row.more:
                digest.update(repr(window.input_ids).encode())
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
    """Write the checkpoint, completely or not at all.

    Args:
        kept: The task's parameters at the best evaluations, ``position.best`` among them.
        setting: What must be the same when the run is resumed.
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
    """Restore model, optimizer and random generators; return the run's position and its best parameters.

    Raises:
        AdapterError: no checkpoint there, one that was altered or cut short, or one of another version.
        ConfigError: the configuration or the data have changed since the run started.
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
    started_with = as_now(state.setting)
    refuse_changes(started_with, setting)
    custom = setting.get("optimizer") is not None  # a user's optimizer, whose state has any form
    try:
        if missing := sorted(setting.keys() - started_with.keys()):
            raise ValueError(f"{STATE} has no {missing[0]}, so whether it has changed is unknown")
        kept_at = _kept_evaluations(state.position, tensors)
        parameters = model.task_parameters()
        if custom:
            optimizer_state.check(optimizer, parameters, tensors, state.optimizer)
        _check_tensors(parameters, tensors, kept_at, state.position.step, custom_optimizer=custom)
        _set_generators(tensors)
    except (ValueError, RuntimeError) as error:
        raise cannot_resume(folder, error) from error
    restore(model, _under("now.", tensors))
    optimizer_state.restore(optimizer, parameters, tensors, state.optimizer)
    history = [Evaluation(**dict(each)) for each in state.position.history]
    position = Position(**{**dict(state.position), "history": history})
    kept = {index: _under(f"kept.{index}.", tensors) for index in kept_at}
    return position, {
        index: {name: value.to(model.device) for name, value in values.items()}
        for index, values in kept.items()
    }


def refuse_changes(started_with: Mapping[str, Any], setting: Mapping[str, Any]) -> None:
    """Refuse to resume with another setting than the run started with.

    Raises:
        ConfigError: names the first difference.
    """
    for key, then in started_with.items():
        if key in setting and (now := json.loads(json.dumps(setting[key]))) != then:
            raise changed(key, then, now, "the run")


def changed(key: str, then: Any, now: Any, what: str) -> ConfigError:
    """The error for a setting that has changed since ``what`` (a run, a search) started."""
    remedy = f"use the same configuration, or {START_AGAIN}"
    if key == "data":
        return ConfigError("cannot resume: the data has changed", remedy=remedy)
    return ConfigError(
        f"cannot resume with another {key}",
        got=repr(now),
        expected=f"{then!r}, as when {what} started",
        remedy=remedy,
    )


def as_now(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A stored setting with the options' current names, and with options that were added later."""
    added = {
        "loss": None,
        "optimizer": None,
        "lr_scheduler": None,
        "fit.greater_is_better": None,
        "fit.calibrate": True,
        "init_from": None,
    }
    current = {f"fit.{old}": f"fit.{new}" for old, new in OLD_NAMES.items()}
    return {**added, **{current.get(name, name): value for name, value in setting.items()}}


def restore(model: PTuningModel, values: Mapping[str, Tensor]) -> None:
    """Set the task's parameters."""
    with torch.no_grad():
        for name, parameter in model.task_parameters().items():
            parameter.copy_(values[name])


def snapshot(model: PTuningModel) -> dict[str, Tensor]:
    """A copy of the task's parameters."""
    return {name: value.detach().clone() for name, value in model.task_parameters().items()}


def mean(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several copies of the task's parameters."""
    return {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}


# ----------------------------------------------------------------------- the files in resume/


class _Record(BaseModel):
    """JSON with exactly these fields."""

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


def _kept_evaluations(position: _Position, tensors: Mapping[str, Tensor]) -> list[int]:
    """The indices of the evaluations for which parameters are kept."""
    names = {name.split(".")[1] for name in tensors if name.startswith("kept.")}
    possible = {str(index) for index in range(len(position.history))}
    if strange := sorted(names - possible):
        raise ValueError(
            f"{TENSORS} has parameters of an evaluation {strange[0]!r} that is not in the history"
        )
    kept = sorted(map(int, names))
    if position.best is not None and position.best not in kept:
        raise ValueError("another version wrote it, and it has no parameters of the best evaluations")
    return kept


def _check_tensors(
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    kept: Sequence[int],
    step: int,
    *,
    custom_optimizer: bool = False,
) -> None:
    """Check that the checkpoint has the tensors that :func:`save` writes for these parameters at ``step``.

    Args:
        kept: The indices of the evaluations for which parameters are kept.
        custom_optimizer: Whether the optimizer is a user's; its tensors have been checked already.
    """
    if custom_optimizer:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
    wanted = {f"now.{name}": like for name, like in parameters.items()}
    wanted |= {f"kept.{index}.{name}": like for index in kept for name, like in parameters.items()}
    for name, like in parameters.items():  # moments exist only after the first step
        if _under(f"optimizer.{name}/", tensors):
            moments = {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like}
            wanted |= {f"optimizer.{name}/{key}": value for key, value in moments.items()}
    generators = {name for name in tensors if name in ("rng.cpu", "rng.cuda")}
    if different := sorted((wanted.keys() | {"rng.cpu"}) ^ (tensors.keys() - (generators - {"rng.cpu"}))):
        what = "lacks" if different[0] not in tensors else "has a tensor of another task:"
        raise ValueError(f"{TENSORS} {what} {different[0]}")
    for name, like in wanted.items():
        found = tensors[name]
        if (found.shape, found.dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"{name} is {_kind(found)}, expected {_kind(like)}: it was altered, or is another version's"
            )
        if not bool(found.isfinite().all()) or (
            name.endswith(("/exp_avg_sq", "/step")) and (found < 0).any()
        ):
            raise ValueError(f"{name} has values that no run can have: NaN, infinite or negative")
    if step and not custom_optimizer and not any(name.startswith("optimizer.") for name in tensors):
        raise ValueError(f"{TENSORS} has no optimizer moments, expected those of {step} steps")
    for name in generators:
        if tensors[name].dtype != torch.uint8 or tensors[name].dim() != 1:
            raise ValueError(f"{name} is {_kind(tensors[name])}, expected the state of a random generator")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _set_generators(tensors: Mapping[str, Tensor]) -> None:
    """Raises ``RuntimeError`` or ``ValueError`` for a state that this version of torch cannot load."""
    cpu, before = tensors["rng.cpu"], torch.get_rng_state()
    if cpu.shape != before.shape:
        raise ValueError(
            f"rng.cpu has {len(cpu)} bytes, expected {len(before)}; another version of torch wrote it"
        )
    torch.set_rng_state(cpu)
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])


def cannot_resume(folder: Path, error: Exception | str) -> AdapterError:
    """The error for a checkpoint that cannot be used; says why and what to do."""
    why = (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    return AdapterError(f"cannot resume from {folder}: {why}", remedy=START_AGAIN)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
