"""``ptuning train``: a prompt, trained and saved."""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.cli.options import Parser, add_options, parse
from ptuning.training.config import TrainConfig, dump


def parser() -> Parser:
    made = Parser(
        prog="ptuning train",
        usage="[FILE] [options]",
        description="Train a prompt on a frozen backbone and save the adapter. Every option can stand in the "
        "YAML file of --config instead.",
        epilog="example: ptuning train reviews.csv --output reviews --data.label stars",
    )
    made.add_argument("train_file", nargs="?", help="short for --data.train")
    made.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUTPUT.run")
    add_options(made, TrainConfig)
    return made


def main(argv: Sequence[str]) -> None:
    values, extra, printing = parse(parser(), TrainConfig, argv, ("train_file", "resume"))
    data = values.setdefault("data", {})
    if extra["train_file"] is not None and isinstance(data, dict):  # what else it may be, the check refuses
        data["train"] = extra["train_file"]
    config = TrainConfig.checked(values)
    if printing:
        print(dump(config), end="")
        return
    # From here on torch is needed; --help and a wrong option were answered without it.
    from rich.console import Console

    from ptuning.cli.tables import metrics_table
    from ptuning.training.console import ConsoleReporter
    from ptuning.training.run import train

    console = Console(stderr=True)
    result = train(config, resume=bool(extra["resume"]), reporter=ConsoleReporter(console))
    console.print(metrics_table(result.metrics, result.baseline, result.baseline_rule))
    console.print(
        f"{result.examples_per_second:.0f} rows/s, {result.seconds:.0f} s; best at epoch "
        f"{result.best.epoch:g} by validation {result.metric}"
        + ("; stopped early" if result.stopped_early else ""),
        highlight=False,
    )
    if result.advice:
        console.print(f"\n{result.advice}", style="bold red", highlight=False)
    print(f"saved {config.output}")
    print(f"next: ptuning predict {config.output} --input FILE")
