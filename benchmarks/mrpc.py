"""What the default recipe reaches on MRPC, for several seeds: ``make quality``.

The configuration is ``ptuning train``'s own defaults; the best epoch is picked on MRPC's validation rows
and the test rows are looked at once. Each seed's result is appended to the results file as it comes, with
the machine, the versions and the command, so that a run that is cut off loses one seed at most.

    PTUNING_DATA=... python benchmarks/mrpc.py [--seeds 0 1 2] [--peers]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from measuring import machine, write
from ptuning import TrainConfig, train
from ptuning.training.console import ConsoleReporter
from ptuning.training.peers import fine_tune, head_only

RESULTS = Path(__file__).parent / "results" / "mrpc.json"


def configuration(root: Path, seed: int, output: Path) -> TrainConfig:
    return TrainConfig.checked(
        {
            "data": {split: str(root / f"{split}.jsonl") for split in ("train", "validation", "test")},
            "output": str(output),
            "fit": {"seed": seed},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--peers", action="store_true", help="also the head alone and full fine-tuning, seed 0"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    if "PTUNING_DATA" not in os.environ:
        sys.exit("set PTUNING_DATA to a folder with mrpc/train.jsonl, validation.jsonl and test.jsonl")
    root = Path(os.environ["PTUNING_DATA"]) / "mrpc"
    found: dict[str, Any] = {
        "what": "MRPC test accuracy and F1 of the default recipe, best epoch by validation accuracy",
        "command": " ".join(["python", "benchmarks/mrpc.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "runs": [],
    }
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            config = configuration(root, seed, Path(scratch) / f"seed-{seed}")
            found["configuration"] = {**config.model_dump(mode="json"), "data": "mrpc", "output": None}
            result = train(config, reporter=ConsoleReporter(console))
            found["runs"].append(
                {
                    "seed": seed,
                    "test": result.metrics["test"],
                    "validation": result.metrics["validation"],
                    "baseline": result.baseline["test"],
                    "trained": result.trained,
                    "total": result.total,
                    "best_epoch": result.best.epoch,
                    "seconds": round(result.seconds, 1),
                    "examples_per_second": round(result.examples_per_second, 1),
                }
            )
            found["median_test_accuracy"] = statistics.median(
                run["test"]["accuracy"] for run in found["runs"]
            )
            write(given.results, found)
        if given.peers:
            config = configuration(root, 0, Path(scratch) / "peers")
            found["peers"] = []
            for peer in (head_only, fine_tune):
                reached = peer(config)
                found["peers"].append(
                    {
                        "name": reached.name,
                        "seed": 0,
                        "test": reached.metrics,
                        "trained": reached.trained,
                        "seconds": round(reached.seconds, 1),
                    }
                )
                write(given.results, found)
    print(json.dumps({key: found[key] for key in ("command", "median_test_accuracy")}, indent=1))


if __name__ == "__main__":
    main()
