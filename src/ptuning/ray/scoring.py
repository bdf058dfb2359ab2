"""Predictions for the rows of a Ray data set: what to do is checked here, the work is done by actors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from ptuning.data.columns import Columns, find_columns
from ptuning.data.options import BadRows, TooLong
from ptuning.data.places import listing, option
from ptuning.errors import AdapterError, ConfigError, DataError
from ptuning.ray.cluster import Versions, require_ray

if TYPE_CHECKING:
    from ray.data import Dataset

    from ptuning.ray.scorer import Scoring
    from ptuning.task import Task

ROWS = 1024
"""Rows per call of an actor, which sorts them by length: as many as ``ptuning predict`` sorts at once. More
would have less padding, but more would be repeated if a node dies, and workers would end less together."""
BATCH_TOKENS = 4096
_STARTS = 3
"""How many actors in a row may die while they start."""


class ScoringOptions(TypedDict, total=False):
    """Keyword arguments of :func:`predict_dataset`, which explains them."""

    task_column: str | None
    text: str | None
    text_b: str | None
    keep: Sequence[str] | None
    prefix: str
    bad_rows: BadRows
    too_long: TooLong | None
    abstain_below: float | None
    batch_tokens: int
    backbone: str | None
    revision: str | None
    device: Literal["auto", "cpu"]
    precision: Literal["auto", "fp32", "bf16"]
    memory_limit: int | None
    packed_memory: float | None
    allow_pickle: bool


def predict_dataset(
    adapters: str | Path | Mapping[str, str | Path],
    dataset: Dataset,
    *,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_size: int = ROWS,
    **options: Unpack[ScoringOptions],
) -> Dataset:
    """A data set with a prediction for each row. Nothing runs until it is consumed.

    Actors load the backbone and the adapters once each, from the paths that are given, so these have to be
    there on every node, or on the Hub. Rows keep their columns and get those of
    :class:`~ptuning.ray.prediction_columns.PredictionColumns`. Their order is Ray's.

    Args:
        adapters: An adapter's folder or Hub id; with ``task_column``, a folder with an adapter in each
            sub-folder, or the folder of each adapter by name.
        dataset: The rows.
        concurrency: The number of actors, or their minimum and maximum; Ray decides if ``None``.
        num_cpus: Cores per actor; torch uses as many threads.
        num_gpus: GPUs per actor.
        batch_size: Rows per call of an actor, which sorts them by length for batches of its own.
        options: ``task_column``
            is the column with the name of each row's adapter; a second text that is missing, null or blank is
            none. ``text`` and ``text_b`` are the columns of the texts, found by name if they are left out.
            ``keep`` are the columns that are kept, by default all. ``prefix`` is what the names of the
            added columns start with. ``bad_rows="skip"``, the default, leaves a row that cannot be answered
            without a prediction, with the reason in the column ``error``; with ``"error"`` the first of them
            ends the work. ``too_long``, ``abstain_below`` and ``batch_tokens`` are those of
            :class:`~ptuning.inference.predictor.Predictor`; ``backbone``, ``revision``, ``device``,
            ``precision``, ``packed_memory`` (GiB), ``memory_limit`` (bytes, with ``task_column``) and
            ``allow_pickle`` those of ``ptuning predict``.

    Raises:
        ConfigError: Ray is not installed, an option is wrong, or the data set has a column with the name of
            one that is added.
        DataError: the data set does not have the columns.
        AdapterError: there is no adapter.
    """
    require_ray()
    schema = dataset.schema()
    names = [] if schema is None else list(schema.names)
    plan = planned(adapters, names, num_cpus=num_cpus, **options)
    return scored(
        plan, dataset, concurrency=concurrency, num_cpus=num_cpus, num_gpus=num_gpus, batch_size=batch_size
    )


def planned(
    adapters: str | Path | Mapping[str, str | Path],
    names: Sequence[str],
    *,
    num_cpus: float = 1,
    source: str = "the data set",
    **options: Unpack[ScoringOptions],
) -> Scoring:
    """What the actors have to do, checked as far as this process can. It needs no cluster.

    Args:
        names: The columns of the rows.
        source: The name of the rows in messages.

    Arguments and errors are otherwise those of :func:`predict_dataset`.
    """
    from ptuning.inference.abstaining import check_abstain_below
    from ptuning.ray.prediction_columns import PredictionColumns
    from ptuning.ray.scorer import Scoring

    task_column, bad_rows = options.get("task_column"), options.get("bad_rows", "skip")
    batch_tokens, abstain_below = options.get("batch_tokens", BATCH_TOKENS), options.get("abstain_below")
    choices = {
        "bad_rows": (bad_rows, ("error", "skip")),
        "too_long": (options.get("too_long"), (None, "truncate", "error", "windows")),
        "device": (options.get("device", "auto"), ("auto", "cpu")),
        "precision": (options.get("precision", "auto"), ("auto", "fp32", "bf16")),
    }
    for name, (got, allowed) in choices.items():
        if got not in allowed:
            raise ConfigError(name, got=repr(got), expected=f"one of {listing(filter(None, allowed))}")
    if batch_tokens < 1:
        raise ConfigError("batch_tokens", got=batch_tokens, expected="at least 1")
    check_abstain_below(abstain_below)
    task: Task | None = None
    folder: str | None = None
    several: str | Mapping[str, str] | None = None
    if task_column is None:
        if isinstance(adapters, Mapping):
            raise ConfigError(
                "adapters", got="several", expected="one adapter", remedy="name the task_column"
            )
        folder = _everywhere(adapters)
        task, digests = _of_one(folder, options.get("revision"), options.get("allow_pickle", False))
        check_abstain_below(abstain_below, task)
    else:
        several, digests = _of_several(adapters)
    columns = _columns(names, task, task_column, options.get("text"), options.get("text_b"), source)
    keep, backbone = options.get("keep"), options.get("backbone")
    if keep is not None and (missing := [name for name in keep if name not in names]):
        raise DataError(
            f"{source}: no column {missing[0]!r} to keep", expected=f"one of {listing(names, 40)}"
        )
    added = PredictionColumns(
        task=task, abstaining=abstain_below is not None, prefix=options.get("prefix", "")
    )
    added.check_free(names if keep is None else keep)
    return Scoring(
        adapter=folder,
        adapters=several,
        digests=digests,
        columns=columns,
        added=added,
        keep=None if keep is None else tuple(dict.fromkeys(keep)),
        bad_rows=bad_rows,
        backbone=None if backbone is None else _everywhere(backbone),
        revision=options.get("revision"),
        device=options.get("device", "auto"),
        precision=options.get("precision", "auto"),
        batch_tokens=batch_tokens,
        too_long=options.get("too_long"),
        abstain_below=abstain_below,
        memory_limit=options.get("memory_limit"),
        packed_memory=options.get("packed_memory"),
        allow_pickle=options.get("allow_pickle", False),
        threads=max(1, int(num_cpus)),
        versions=Versions.here(),
        directory=os.getcwd(),
    )


def scored(
    scoring: Scoring,
    dataset: Dataset,
    *,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_size: int = ROWS,
) -> Dataset:
    """The data set of :func:`predict_dataset`, for a plan that was checked.

    Raises:
        ConfigError: ``batch_size`` or a number of workers, cores or GPUs is wrong.
    """
    from ray.data import ActorPoolStrategy, Dataset

    from ptuning.ray.scorer import Scorer

    if batch_size < 1:
        raise ConfigError("batch_size", got=batch_size, expected="at least 1")
    if num_cpus < 0 or num_gpus < 0:
        raise ConfigError("num_cpus and num_gpus", got=f"{num_cpus} and {num_gpus}", expected="0 or more")
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency or 1, concurrency)
    if least < 1 or (most is not None and most < least):
        raise ConfigError("concurrency", got=concurrency, expected="1 or more actors, or (minimum, maximum)")
    found = dataset.map_batches(
        Scorer,
        batch_format="pyarrow",
        batch_size=batch_size,
        fn_constructor_args=(scoring,),
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        udf_modifying_row_count=False,
    )
    found = Dataset.copy(found, _deep_copy=True)  # its context is the caller's otherwise
    found.context.raise_original_map_exception = True  # Ray's own would come without the error of ours
    if hasattr(found.context, "max_consecutive_actor_init_deaths"):
        found.context.max_consecutive_actor_init_deaths = _STARTS
    return found


def _of_one(name: str, revision: str | None, allow_pickle: bool) -> tuple[Task, Mapping[str, str]]:
    """The task of an adapter, and its version.

    Raises:
        AdapterError: it is not an adapter that ptuning saved.
    """
    from ptuning.adapters import is_adapter, is_peft, load, locate, version

    folder = locate(name, revision=revision, allow_pickle=allow_pickle)
    if not is_adapter(folder) and is_peft(folder):
        raise AdapterError(
            f"{name}: an adapter that PEFT saved",
            expected="one that says what its labels are",
            remedy="convert it first: ptuning import-peft",
        )
    return load(folder, allow_pickle=allow_pickle).task, {"": version(folder)}


def _of_several(
    adapters: str | Path | Mapping[str, str | Path],
) -> tuple[str | Mapping[str, str], Mapping[str, str]]:
    """The adapters as they are sent to workers, and the version of each.

    Raises:
        AdapterError: there is none, or one of them is not an adapter.
    """
    from ptuning.adapters import OWN_FILES, is_peft, version
    from ptuning.inference.adapter_folder import folders_of

    folders = folders_of(adapters)
    several = (
        {name: _everywhere(path) for name, path in adapters.items()}
        if isinstance(adapters, Mapping)
        else _everywhere(adapters)
    )
    if not isinstance(adapters, Mapping):  # training leaves NAME.run there, which is none
        found = {
            name: path
            for name, path in folders.items()
            if is_peft(path) or any((path / file).is_file() for file in OWN_FILES)
        }
        if not found:
            raise AdapterError(f"{adapters} has no adapters", expected="a sub-folder for each task")
        folders = found
    return several, {name: version(folder) for name, folder in folders.items()}


def _everywhere(name: str | Path) -> str:
    """A folder by its full path, since workers are started in another one; a Hub id as it is."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.exists(path) else str(name)


def _columns(
    names: Sequence[str],
    task: Task | None,
    task_column: str | None,
    text: str | None,
    text_b: str | None,
    source: str,
) -> Columns:
    """The columns of the texts and the task.

    Raises:
        DataError: one is missing, or names do not say which one it is, or there are two texts for a task with
            one and the other way round.
    """
    from dataclasses import replace

    if task_column is not None and task_column not in names:
        raise DataError(
            f"{source}: no column {task_column!r} for task_column", expected=f"one of {listing(names, 40)}"
        )
    others = [name for name in names if name != task_column]
    found = find_columns(others, text, text_b, need_label=False, source_name=source)
    if task is not None and found.pair != task.pair:
        both = f"both with {option('text')} and {option('text_b')}"
        raise DataError(
            f"{source}, text",
            got=f"{found.text!r} and {found.text_b!r}" if found.pair else f"only {found.text!r}",
            expected=f"{'two texts' if task.pair else 'one text'} per row, as in training",
            remedy=f"name {both if task.pair else 'it with ' + option('text')}, of {listing(names, 40)}",
        )
    return replace(found, task=task_column, seconds=())
