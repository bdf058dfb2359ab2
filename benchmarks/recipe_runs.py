"""What was tried for the default recipe by ``ptuning.train`` itself, where an option was there to try.

It learns from the rows of ``recipe_data.py`` and is evaluated on the development rows; no test row is read.
``--set`` takes options of ``ptuning train``, several values each, and runs and appends every combination that
the results do not have yet; what is left out is the default recipe's, and is in the results as well::

    export PTUNING_DATA=folder   # with train.jsonl and validation.jsonl in each of mrpc/, stsb/ and sst2/
    python benchmarks/recipe_runs.py                                        # what was run
    python benchmarks/recipe_runs.py --set data=mrpc-100 fit.head_rate=0.0002,0.008 fit.seed=0,1
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptuning import TrainConfig, train
from ptuning.training.config import OLD_NAMES
from quality.data import write_lines
from quality.records import append, read
from recipe_data import METRICS, combinations, drawn, examples
from runs import provenance, with_options

RESULTS = Path(__file__).parent / "results" / "recipe-runs.jsonl"


def run(data: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train and evaluate; a line of the results."""
    source = data.partition("-")[0]
    rows, development = examples(source)
    places = drawn(data, options.get("fit.seed", 0), np.array([float(row["label"]) for row in rows]))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        files = {"train": [rows[i] for i in places], "validation": development}
        values: dict[str, Any] = {
            "data": {name: write_lines(each, Path(folder) / f"{name}.jsonl") for name, each in files.items()}
        }
        values = with_options(values, options)
        found = train(TrainConfig.checked({**values, "output": f"{folder}/adapter", "report": False}))
        decided = used(Path(folder) / "adapter")
    return {
        "data": data,
        "options": dict(options),
        "used": decided,
        "metric": METRICS[source],
        "history": [{"epoch": each.epoch, **each.metrics} for each in found.history],
        "rows": {"train": len(places), "development": len(development)},
        "cpu_seconds": round(time.process_time() - began, 1),
        **provenance(),
    }


def used(adapter: Path) -> dict[str, Any]:
    """What decided the run, whoever chose it."""
    kept = json.loads((adapter / "ptuning.json").read_text(encoding="utf-8"))
    fit = kept["extra"]["fit"]
    return {
        **{
            f"prompt.{name}": kept["prompt"][name] for name in ("pooling", "num_virtual_units", "num_queries")
        },
        **{
            f"fit.{name}": fit[OLD_NAMES.get(name, name)]
            for name in ("epochs", "prompt_rate", "head_rate", "backbone_dropout")
        },
    }


def said(record: Mapping[str, Any]) -> str:
    """For people."""
    how = " ".join(f"{name}={value}" for name, value in (record["options"] | record["used"]).items())
    looks = " ".join(f"{each[record['metric']]:.4f}" for each in record["history"])
    return f"{record['data']} {how}: {looks}, {record['cpu_seconds']} s"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--set", nargs="+", metavar="KEY=VALUE[,VALUE]", help="what to run and append")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    records = read(given.results)
    if not given.set:
        for record in records:
            print(said(record))
        return
    done = [(record["data"], record["options"]) for record in records]
    for options in combinations(given.set):
        data = options.pop("data", None)
        if data is None or str(data).partition("-")[0] not in METRICS:
            parser.error(f"data is {data!r}; expected one of {', '.join(METRICS)}, or one of them with -N")
        if (data, options) not in done:
            record = run(data, options)
            append(record, given.results)
            print(said(record), flush=True)


if __name__ == "__main__":
    main()
