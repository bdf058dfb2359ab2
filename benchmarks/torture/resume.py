"""Damage to what an interrupted run left: its bytes, and states that are sealed again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.training.run import train
from torture.adapter import CARD, CONFIG
from torture.damage import JUNK, changed
from torture.lab import (
    NEW,
    RECORD,
    WEIGHTS,
    Lab,
    copy_run,
    held,
    refused,
    reseal,
    tensors_of,
    weights,
    write_tensors,
)
from torture.trials import Draw, Line, Trial

STATE, TENSORS = "resume/state.json", "resume/state.safetensors"
CHECKPOINT = Path("adapter.run") / "checkpoint"
Alter = Callable[[Path], object]
"""Changes a checkpoint."""


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    files = (STATE, TENSORS, RECORD, WEIGHTS, STATE, TENSORS, CONFIG, CARD)
    source = Path(f"{lab.stopped}.run") / "checkpoint"
    trials = []
    for i in range(draw.count(300)):
        file, random = files[i % len(files)], draw.random("resume", i)
        if random.random() < 0.1:
            trials.append(Trial(f"{file} gone", _resumed(lab, _gone(file))))
            continue
        data, what, size = changed((source / file).read_bytes(), random)
        trials.append(Trial(f"{file}: {what}", _resumed(lab, _with(file, data)), size))
    yield Line("bytes of a checkpoint", trials)
    cases = {**_states(json.loads((source / STATE).read_text())), **_tensors()}
    yield Line(
        "a state that is sealed again", [Trial(name, _resumed(lab, alter)) for name, alter in cases.items()]
    )


def _resumed(lab: Lab, alter: Alter) -> Callable[[Path], None]:
    """Refused, or gone on from to the same weights; and what was trained is not lost by the refusal."""

    def attempt(place: Path) -> None:
        output = copy_run(lab.stopped, place / "adapter")
        alter(place / CHECKPOINT)
        before = _contents(place / CHECKPOINT)
        if refused(lambda: train(lab.config(output, fit=NEW), resume=True)) is None:
            held(weights(output) == weights(lab.reference), "accepted, and the run ends with other weights")
        else:
            held(_contents(place / CHECKPOINT) == before, "refused, and the checkpoint is changed")
            held(not output.exists(), "refused, and an adapter stands there")

    return attempt


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _with(file: str, data: bytes) -> Alter:
    return lambda folder: (folder / file).write_bytes(data)


def _gone(file: str) -> Alter:
    return lambda folder: (folder / file).unlink()


def _states(state: Mapping[str, Any]) -> dict[str, Alter]:
    """States that are no states, and every field of one left out or of another kind."""

    def raw(data: bytes) -> Alter:
        def alter(folder: Path) -> None:
            (folder / STATE).write_bytes(data)
            reseal(folder)

        return alter

    def text(values: Any) -> Alter:
        return raw(json.dumps(values).encode())

    cases: dict[str, Alter] = {
        "the state is a list": raw(b"[]"),
        "the state is null": raw(b"null"),
        "the state is nested deep": raw(b"[" * 100_000 + b"]" * 100_000),
        "the state is no UTF-8": raw(b"\xff"),
        "the state is empty": raw(b""),
        "the state has no position": text({k: v for k, v in state.items() if k != "position"}),
        "the state has no setting": text({k: v for k, v in state.items() if k != "setting"}),
        "the position has a field more": text({**state, "position": {**state["position"], "more": 1}}),
        "the history holds numbers": text({**state, "position": {**state["position"], "history": [1, 2]}}),
    }
    for name, value in state["position"].items():
        less = {k: v for k, v in state["position"].items() if k != name}
        cases[f"position.{name} left out"] = text({**state, "position": less})
        for junk in JUNK:
            if type(junk) is not type(value) and not (junk is None and name == "best"):
                own = {**state["position"], name: junk}
                if (
                    isinstance(value, int | float)
                    and isinstance(junk, int | float)
                    and not isinstance(junk, bool)
                ):
                    continue  # a number for a number may be right
                cases[f"position.{name} = {str(junk)[:20]!r}"] = text({**state, "position": own})
    for name in ("step", "epoch", "batch", "best", "loss_rows", "stale", "rows"):
        for number in (-1, 99) if name == "best" else (-1,):
            own = {**state["position"], name: number}
            cases[f"position.{name} = {number}"] = text({**state, "position": own})
    return cases


def _tensors() -> dict[str, Alter]:
    """Tensors of a state left out, of another size, not finite."""

    def tensors(change: Callable[[str, Tensor], Tensor | None], more: Mapping[str, Tensor] = {}) -> Alter:
        def alter(folder: Path) -> None:
            found = {name: change(name, value) for name, value in tensors_of(folder / TENSORS).items()}
            kept = {name: value for name, value in found.items() if value is not None}
            write_tensors(folder / TENSORS, {**kept, **more})
            reseal(folder)

        return alter

    def where(part: str, change: Callable[[Tensor], Tensor | None]) -> Alter:
        return tensors(lambda name, value: change(value) if part in name else value)

    cases: dict[str, Alter] = {
        "a kept task of another name": tensors(lambda name, value: value, {"kept.x.y": torch.zeros(1)}),
        "no random generator": where("rng.cpu", lambda value: None),
        "a random generator of another size": where(
            "rng.cpu", lambda value: torch.zeros(3, dtype=torch.uint8)
        ),
        "a random generator of floats": where("rng.cpu", lambda value: value.float()),
        "no moments": where("optimizer.", lambda value: None),
    }
    for part in ("now.", "kept.", "exp_avg"):
        cases |= {
            f"{part}: left out": where(part, lambda value: None),
            f"{part}: of another shape": where(part, lambda value: torch.zeros(7)),
            f"{part}: NaN": where(part, lambda value: value * math.nan),
            f"{part}: of no dimensions": where(part, lambda value: torch.zeros(())),
            f"{part}: integers": where(part, lambda value: value.long()),
        }
    return cases
