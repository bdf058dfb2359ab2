"""``ptuning predict --ray``: the rows of many files, scored on a cluster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ptuning.cli.options import Parser
from ptuning.cli.predict_tasks import TASK_COLUMN
from ptuning.cli.shared import add_ray, bytes_of, data_of
from ptuning.errors import ConfigError

BLOCK = 16 << 20
"""Bytes of the blocks that actors get: what is scored again if a node is lost."""


def add_ray_options(parser: Parser) -> None:
    """Add the options for a cluster."""
    add_ray(parser)
    group = parser.add_argument_group("work on a cluster, with --ray")
    group.add_argument(
        "--ray_workers",
        type=int,
        metavar="N",
        help="processes that load the model (default: as many as the cores or GPUs of the cluster allow)",
    )
    group.add_argument(
        "--ray_cpus",
        type=float,
        metavar="N",
        help="cores per such process, and threads of torch (default: 1)",
    )
    group.add_argument(
        "--ray_gpus",
        type=float,
        metavar="N",
        help="GPUs per such process (default: 1 if the cluster has any)",
    )
    group.add_argument(
        "--prefix",
        metavar="TEXT",
        help="what the names of the added columns start with (default: nothing)",
    )


def check_ray_options(given: Any) -> None:
    """Refuse options that do not go together, with ``--ray`` or without it.

    Raises:
        ConfigError: names the option.
    """
    if given.ray is None:
        for name in ("ray_workers", "ray_cpus", "ray_gpus", "prefix"):
            if getattr(given, name) is not None:
                raise ConfigError(f"--{name} is for work on a cluster", remedy="add --ray ADDRESS")
        if given.format == "parquet":
            raise ConfigError("--format", got="parquet", expected="jsonl or csv", remedy="add --ray ADDRESS")
        return
    if given.input == "-" or given.input.startswith("hf:"):
        raise ConfigError(
            "--input",
            got="standard input" if given.input == "-" else given.input,
            expected="with --ray files that all nodes reach: a file, folder, pattern or URI",
        )
    if given.output == "-":
        raise ConfigError(
            "--output", got="standard output", expected="with --ray a folder that all nodes reach"
        )
    if given.format == "csv":
        raise ConfigError("--format", got="csv", expected="with --ray parquet or jsonl")
    if given.input_format == "text":
        raise ConfigError("--input_format", got="text", expected="with --ray csv, tsv, jsonl or parquet")
    for name, instead in (("window", "leave it out"), ("batch_size", "use --batch_tokens")):
        if getattr(given, name) is not None:
            raise ConfigError(f"--{name} is not for work on a cluster", remedy=instead)
    for name, least in (("ray_workers", 1), ("ray_cpus", 0.1), ("ray_gpus", 0.0)):
        value = getattr(given, name)
        if value is not None and not least <= value < 1e6:
            raise ConfigError(f"--{name}", got=value, expected=f"at least {least:g}")


def predict_on_ray(given: Any) -> None:
    """Score files on a cluster.

    Everything that a user can get wrong is checked before a cluster is needed.
    """
    from ptuning.ray.cluster import connected, require_ray

    require_ray()
    from ptuning.ray.inputs import find_files
    from ptuning.ray.layout import TextOptions
    from ptuning.ray.output import Folder, write_predictions
    from ptuning.ray.scoring import planned, scored
    from ptuning.ray.storage import place_of

    data = data_of(given, given.input)
    Folder(place_of(given.output, "--output")).check()
    cpus = 1.0 if given.ray_cpus is None else given.ray_cpus
    options = TextOptions(
        separator=data.separator, encoding=data.encoding, header=data.header, quoting=data.quoting
    )
    files = find_files(given.input, given.input_format, options)
    several = given.adapters is not None
    keep = None if given.keep is None else [name.strip() for name in given.keep.split(",")]
    prefix = given.prefix or ""
    plan = planned(
        given.adapters if several else given.adapter,
        files.layout.names,
        num_cpus=cpus,
        source=given.input,
        task_column=(given.task_column or TASK_COLUMN) if several else None,
        text=data.text,
        text_b=data.text_b,
        keep=None if keep is None or "*" in keep else keep,
        prefix=prefix,
        bad_rows=data.bad_rows,
        too_long=data.too_long,
        abstain_below=given.abstain_below,
        batch_tokens=given.batch_tokens,
        backbone=given.backbone,
        revision=given.revision,
        device=given.device,
        precision=given.precision,
        memory_limit=bytes_of(given, "memory_limit"),
        packed_memory=given.packed_memory,
        allow_pickle=given.allow_pickle,
    )
    began = time.perf_counter()
    with connected(given.ray), _quiet():
        import ray

        gpus, workers = _shares(given, cpus)
        columns = plan.columns
        # Tasks that read and write take no core of their own: the workers may have all of them.
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        strings = columns.text, columns.text_b, columns.task
        rows = files.dataset(strings, keep=plan.keep, num_cpus=0, concurrency=cores)
        predictions = scored(plan, rows, concurrency=workers, num_cpus=cpus, num_gpus=gpus)
        found = write_predictions(
            predictions,
            given.output,
            form=given.format or "parquet",
            rows=files.rows,
            about={"input": given.input, "adapters": dict(plan.digests)},
            num_cpus=0,
        )
    seconds = time.perf_counter() - began
    if found.bad_rows:
        print(
            f"{'warning' if found.bad_rows > found.rows_written else 'note'}: {found.bad_rows:,} of "
            f"{found.rows_read:,} rows cannot be used; they are in {given.output.rstrip('/')}/_bad_rows",
            file=sys.stderr,
        )
    print(f"{found.rows_read:,} rows, {found.rows_read / seconds:,.0f} rows/s", file=sys.stderr)


def _shares(given: Any, cpus: float) -> tuple[float, int | tuple[int, int]]:
    """The GPUs per worker, and the number of workers.

    Raises:
        ConfigError: no node of the cluster has so many cores or GPUs.
    """
    import ray

    every: list[dict[str, Any]] = ray.nodes()
    nodes = [node["Resources"] for node in every if node["Alive"]]
    gpus = given.ray_gpus
    if gpus is None:
        gpus = float(given.device != "cpu" and any(node.get("GPU", 0) for node in nodes))
    fits = [
        min(
            node.get("CPU", 0) // cpus,
            node.get("GPU", 0) // gpus if gpus else float("inf"),
        )
        for node in nodes
    ]
    most = int(sum(fits))
    if most < 1:
        raise ConfigError(
            f"--ray {given.ray}",
            got=f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}, none of them with {cpus:g} cores"
            + (f" and {gpus:g} GPUs" if gpus else ""),
            expected="a node that one worker fits on",
            remedy="lower --ray_cpus or --ray_gpus, or add nodes",
        )
    return gpus, (1, most) if given.ray_workers is None else given.ray_workers


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data without progress bars and log lines, and with blocks of a size for scoring.

    Ray's C++ part prints lines of its own about every pool of actors, which no option switches off; they are
    in its log files too.
    """
    import logging

    from ray.data import DataContext

    context = DataContext.get_current()
    before = context.enable_progress_bars, context.target_max_block_size
    context.enable_progress_bars, context.target_max_block_size = False, BLOCK
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        context.enable_progress_bars, context.target_max_block_size = before
        logger.setLevel(level)
