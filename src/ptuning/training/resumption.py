"""Resuming a run: what must be the same, and what a run that ends early records and reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ptuning.config_file import read_config
from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.training.checkpoint import changed
from ptuning.training.config import TrainConfig
from ptuning.training.interrupt import Interrupted
from ptuning.training.run_files import CONFIG, RESULT, START_AGAIN, write

_DECIDES = (
    *("data", "backbone", "revision", "init_from", "init_head"),
    *("prompt", "recipe", "fit", "search", "precision"),
)
"""The parts of a configuration that the result depends on."""


@contextmanager
def recording_divergence(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Record that a run, or a search, in this block diverged, so that it counts as finished."""
    try:
        yield
    except TrainingDiverged as error:
        write(folder / RESULT, json.dumps({"diverged": str(error)}, indent=1) + "\n", accelerator)
        raise


@contextmanager
def saying_how_to_resume(saved: Callable[[], bool]) -> Iterator[None]:
    """On Ctrl-C after the last step but before the end of the run: say how to resume, if possible."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        if not saved():
            raise
        raise Interrupted(
            "interrupted; the last checkpoint is kept; to continue, run the same command with --resume"
        ) from None


def check_same(config: TrainConfig, what: str) -> None:
    """Refuse to resume ``what`` (a run, a search) with another configuration than it was started with."""
    file = config.run_folder / CONFIG
    try:
        started = TrainConfig.checked(read_config(file, "the run's"))
    except ConfigError as error:
        raise ConfigError(f"cannot resume: {error}", remedy=START_AGAIN) from None
    then, now = (_leaves(each.model_dump(mode="json", include={*_DECIDES})) for each in (started, config))
    for key in (*then, *(key for key in now if key not in then)):
        if then.get(key) != now.get(key):
            raise changed(key, then.get(key), now.get(key), what)


def _leaves(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return found
