"""``ptuning train``: trains a prompt and saves it; or trains several on one backbone and saves the best."""

from __future__ import annotations

import os
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptuning.cli.launched import is_main
from ptuning.cli.options import Parser, add_options, nested, old_names
from ptuning.cli.shared import add_ray
from ptuning.errors import ConfigError
from ptuning.training.config import TrainConfig, dump
from ptuning.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

    from ptuning.training.records import SeveralResult, TrainResult
    from ptuning.training.search import SearchResult

LISTS: Mapping[str, tuple[str, Callable[[str], int | float], str]] = {
    "seeds": ("fit.seed", int, "whole numbers separated by commas, such as 0,1,2"),
    "learning_rates": ("fit.learning_rate", float, "numbers separated by commas, such as 0.01,0.03"),
    "head_learning_rates": (
        "fit.head_learning_rate",
        float,
        "numbers separated by commas, such as 0.001,0.01",
    ),
}
"""By option: the single-run option that it replaces, how to parse a value, what is expected."""
OLD_LISTS = {"prompt_rates": "learning_rates", "head_rates": "head_learning_rates"}
"""Earlier names of these options, still accepted."""


def parser() -> Parser:
    made = Parser(
        prog="ptuning train",
        usage="[FILE] [options]",
        description="Train a prompt on a frozen backbone and save it as an adapter. All options can also "
        "be set "
        "in a YAML file (--config). Only the training rows are required.",
        epilog="example: ptuning train reviews.csv --output reviews --data.label stars",
    )
    made.add_argument("train_file", metavar="FILE", nargs="?", help="training rows, same as --data.train")
    made.add_argument(
        "--resume", action="store_true", help="resume an interrupted run from the checkpoint in OUTPUT.run"
    )
    made.add_argument(
        "--restart", action="store_true", help="start again, and replace an unfinished run in OUTPUT.run"
    )
    several = made.add_argument_group("several runs (every combination is trained, the best is saved)")
    for name, (single, _, expected) in LISTS.items():
        several.add_argument(f"--{name}", type=str, metavar="LIST", help=f"values of {single}; {expected}")
    for old in OLD_LISTS:
        several.add_argument(f"--{old}", type=str, help=SUPPRESS)
    cluster = made.add_argument_group("on a Ray cluster (a search, or several runs)")
    add_ray(cluster)
    cluster.add_argument(
        "--ray_workers",
        type=int,
        metavar="N",
        help="how many run at once (default: one trial of a search, so that the trials are those of one "
        "machine; as many runs as the cluster has room for)",
    )
    cluster.add_argument(
        "--ray_cpus", type=float, metavar="N", help="CPU cores of each, and threads (default: 1)"
    )
    cluster.add_argument(
        "--ray_gpus", type=float, metavar="N", help="GPUs of each (default: 1, where the cluster has any)"
    )
    add_options(made, TrainConfig, short="data")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    if given.resume and given.restart:
        raise ConfigError("--resume and --restart: got both, expected one of them")
    for old, now in OLD_LISTS.items():
        if getattr(given, old) is not None and getattr(given, now) is not None:
            raise ConfigError(f"--{now} and --{old}: got both, expected one of them")
        setattr(given, now, getattr(given, now) or getattr(given, old))
    if given.train_file is not None:
        if "data.train" in given:
            raise ConfigError("FILE and --data.train", got="both", expected="one of them")
        setattr(given, "data.train", given.train_file)
    values = nested(given, TrainConfig)
    data = values.setdefault("data", {})
    if isinstance(data, dict) and "train" not in data:
        raise ConfigError(
            "no training rows",
            expected="a file, such as: ptuning train reviews.csv --output reviews",
            remedy="ptuning check-data FILE checks a file first, and ptuning demo needs none",
        )
    config = TrainConfig.checked(values)
    if given.print_config:
        print(dump(config), end="")
        return
    lists = {
        name: _listed(name, getattr(given, name), given) for name in LISTS if getattr(given, name) is not None
    }
    cluster = _cluster(given, several=bool(lists) or config.recipe == "search")
    # Only from here on torch is imported, so that --help and errors about options are fast.
    from ptuning.cli.tables import as_options, plain_console
    from ptuning.training.run_files import REPORT

    train = _several if lists else _search if config.recipe == "search" else _single
    begin = {"resume": given.resume, "restart": given.restart, **cluster}
    console = plain_console(stderr=True)
    console.quiet = not is_main()
    chosen, result = train(config, lists, begin, console)
    found = None if result is None else result.diagnosis
    output = visible(config.output)
    if found is not None and found.kind == "not learned":
        print(f"saved {output}{chosen}, but do not use it: it has not learned")
        first = as_options(found.first or "ptuning check-data")
        print(f"next: {'the same command with ' if first.startswith('--') else ''}{first}")
        return
    print(f"saved {output}{chosen}")
    if (page := config.run_folder / REPORT).is_file():
        print(f"report: {visible(os.path.relpath(page))}")
    print(f"next: ptuning predict {output} --input FILE")


def _cluster(given: Namespace, *, several: bool) -> dict[str, Any]:
    """The options of a Ray cluster, as :mod:`ptuning.ray.tuning` takes them; empty without ``--ray``.

    Args:
        several: Whether it is a search or a set of runs.
    """
    names = {"ray_workers": "concurrency", "ray_cpus": "num_cpus", "ray_gpus": "num_gpus"}
    set_ones = [name for name in names if getattr(given, name) is not None]
    if given.ray is None:
        if set_ones:
            raise ConfigError(f"--{set_ones[0]}", got="no --ray", expected="the address of a cluster")
        return {}
    if not several:
        raise ConfigError(
            "--ray",
            got="a single run",
            expected="--recipe search, or a list such as --seeds 0,1,2, whose runs a cluster shares",
            remedy="leave --ray out; for one run on several GPUs, see docs/scale.md",
        )
    return {"address": given.ray, **{names[name]: getattr(given, name) for name in set_ones}}


def _listed(name: str, text: str, given: Namespace) -> list[int | float]:
    """The values of one of :data:`LISTS`."""
    single, read, expected = LISTS[name]
    if single in given or old_names(TrainConfig).get(single, single) in given:
        raise ConfigError(
            f"--{name} and --{single}",
            got="both",
            expected="one of them",
            remedy=f"--{name} may list a single value",
        )
    try:
        return [read(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--{name}", got=repr(text), expected=expected) from None


Trained = tuple[str, "TrainResult | None"]
"""How the adapter was selected, for a message, and the result of its run."""


def _single(
    config: TrainConfig, lists: Mapping[str, Any], begin: Mapping[str, Any], console: Console
) -> Trained:
    from ptuning.training.console import ConsoleCallback
    from ptuning.training.run import train

    callbacks = [ConsoleCallback(console)]
    result = train(config, resume=begin["resume"], restart=begin["restart"], callbacks=callbacks)
    _show(result, console)
    return "", result


def _search(
    config: TrainConfig, lists: Mapping[str, Any], begin: Mapping[str, Any], console: Console
) -> Trained:
    from ptuning.cli.tables import search_table
    from ptuning.training.console import ConsoleCallback
    from ptuning.training.run_files import PLOT
    from ptuning.training.search import train_search

    train: Callable[..., SearchResult] = train_search
    if "address" in begin:
        from ptuning.ray.tuning import train_search as train_on_cluster

        train = train_on_cluster
    found = train(config, **begin, callbacks=[ConsoleCallback(console)])
    console.print(search_table(found))
    console.print(f"picture: {found.folder / PLOT}\n", highlight=False, soft_wrap=True)
    _show(found.result, console)
    return f" (trial {found.winner} of {len(found.trials)}, trained in full)", found.result


def _show(result: TrainResult, console: Console) -> None:
    """Print the result of one run."""
    from ptuning.cli.tables import metrics_table, print_diagnosis

    console.print(metrics_table(result.metrics, result.baseline, result.baseline_rule))
    console.print(
        f"{result.examples_per_second:.0f} rows/s, {result.seconds:.0f} s; kept by validation "
        f"{result.metric}: {result.kept}" + ("; stopped early" if result.stopped_early else ""),
        highlight=False,
        soft_wrap=True,
    )
    print_diagnosis(result, console)


def _several(
    config: TrainConfig, lists: Mapping[str, Any], begin: Mapping[str, Any], console: Console
) -> Trained:
    from ptuning.cli.tables import print_diagnosis, several_table
    from ptuning.training.console import ConsoleCallback
    from ptuning.training.several import train_several

    train: Callable[..., SeveralResult] = train_several
    if "address" in begin:
        from ptuning.ray.tuning import train_several as train_on_cluster

        train = train_on_cluster
    found = train(config, **lists, **begin, callbacks=[ConsoleCallback(console)])
    console.print(several_table(found))
    for run in found.runs:
        if run.diverged:
            console.print(f"{run.name}: {run.diverged}", style="red", highlight=False)
    if found.best.result is not None:
        print_diagnosis(found.best.result, console)
    return f" ({found.best.name}, best by validation {found.metric})", found.best.result
