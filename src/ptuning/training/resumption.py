"""Continuing a run: what must be the same, and what a run that ends early says and leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ptuning.config_file import read_config
from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.training.config import TrainConfig
from ptuning.training.interrupt import Interrupted
from ptuning.training.run_files import CONFIG, RESULT, START_AGAIN, write

_DECIDES = ("data", "backbone", "revision", "prompt", "recipe", "fit", "search", "precision")
"""The parts of a configuration that decide what a run finds."""


@contextmanager
def over_if_diverged(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """A run, or a search, that diverges in here is over and says so, and another may take its place."""
    try:
        yield
    except TrainingDiverged as error:
        write(folder / RESULT, json.dumps({"diverged": str(error)}, indent=1) + "\n", accelerator)
        raise


@contextmanager
def saying_how_to_go_on(saved: Callable[[], bool]) -> Iterator[None]:
    """Where Ctrl-C comes between the steps' end and the run's, and there is something to go on from."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        if not saved():
            raise
        raise Interrupted(
            "interrupted; what was saved before is kept; to go on, run the same command with --resume"
        ) from None


def check_same(config: TrainConfig, what: str) -> None:
    """Refuse to go on from a run, ``what``, with other choices than it was begun with."""
    file = config.run_folder / CONFIG
    try:
        begun = TrainConfig.checked(read_config(file, "the run's"))
    except ConfigError as error:
        raise ConfigError(f"cannot resume: {error}; {START_AGAIN}") from None
    then, now = (_leaves(each.model_dump(mode="json", include={*_DECIDES})) for each in (begun, config))
    for key in (*then, *(key for key in now if key not in then)):
        if then.get(key) != now.get(key):
            raise ConfigError(
                f"cannot resume: {key}: {what} started with {then.get(key)!r}, got {now.get(key)!r}; "
                f"use the same configuration, or {START_AGAIN}"
            )


def _leaves(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return found
