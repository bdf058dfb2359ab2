"""Workers side by side: every side once a round, in a fresh process each, and what the rounds come to."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from backbones import MODELS, folder_of, tokenizer_folder
from charts import draw
from measuring import machine, write
from ptuning.model.architectures import ARCHITECTURES
from report import rate
from sides import REFERENCE, SWITCHES, has_engine, side_of
from specs import Spec
from texts import rows_of

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FLOOR = "floor"

Run = tuple[str, str, str]
"""Model, data, precision."""


def options(description: str | None, plan: list[Run]) -> argparse.Namespace:
    """What training and inference can be asked for; ``runs`` is what was."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS))
    parser.add_argument("--data", nargs="+", choices=["mrpc", "sst2"])
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"])
    parser.add_argument("--sides", nargs="+", help="these alone, by name")
    parser.add_argument("--switches", action="store_true", help="also with each optimisation switched off")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="rows of the data; by default as many as the model affords")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, help="by default the model's own")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    asked = (given.models, given.data, given.precision)
    given.runs = (
        list(product(given.models or ["minilm"], given.data or ["mrpc"], given.precision or ["bf16"]))
        if any(asked)
        else plan
    )
    if given.switches and not has_engine():
        sys.exit("--switches needs ptuning.Engine, which this ptuning does not have")
    logging.disable_progress_bar()
    return given


@contextmanager
def folders() -> Iterator[Path]:
    """Where random models are for as long as a benchmark runs."""
    with tempfile.TemporaryDirectory(prefix="ptuning-bench-") as scratch:
        yield Path(scratch)


def mean_tokens(model: str, folder: Path, data: str, split: str, rows: int) -> float:
    """Tokens a row, special ones included, of the rows that ``model`` will be measured on."""
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(model))
    segments = ARCHITECTURES[config.model_type].segments and config.type_vocab_size > 1
    found = rows_of(data, split, rows, tokenizer, segments=segments)
    return statistics.fmean(len(row["input_ids"]) for row in found)


def heading(what: str, script: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The head of a result: what was measured, how, when, on what."""
    return {
        "what": what,
        "command": shlex.join(["python", f"benchmarks/{script}.py", *_asked(sys.argv[1:])]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine() | {"peft": version("peft")},
        "settings": dict(settings),
    }


def _asked(words: list[str]) -> list[str]:
    """The command line without where the results went, which is this machine's own business."""
    at = words.index("--results") if "--results" in words else len(words)
    return words[:at] + words[at + 2 :]


def measured(file: Path, found: dict[str, Any], specs: Mapping[str, Spec], rounds: int) -> dict[str, Any]:
    """Every spec in every round; ``file`` is written after each of them, so a cut-off loses one at most.

    Odd rounds go the other way round, so that a machine that grows slower is no side's advantage.
    """
    found["rounds"] = []
    for number in range(rounds):
        results: dict[str, Any] = {}
        found["rounds"].append(results)
        names = list(specs) if number % 2 == 0 else list(specs)[::-1]
        for name in names:
            results[name] = work(specs[name])
            _say(file.stem, number, name, results[name])
            summarise(found)
            write(file, found)
    return found


def work(spec: Spec, timeout: float = 3600) -> dict[str, Any]:
    """One measurement in a fresh process; if it fails, ``{"error": …}``."""
    command = [sys.executable, str(HERE / "worker.py"), "--json-spec", spec.to_json()]
    with tempfile.TemporaryDirectory(prefix="ptuning-bench-cache-") as cache:
        environment = {
            **os.environ,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PTUNING_CACHE": cache,  # empty: nothing that an earlier run has computed may help this one
        }
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"error": f"nothing within {timeout:.0f} seconds"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()][-3:]
    text = " | ".join(said).replace(spec.folder, "MODEL").replace(str(HERE.parent), "")
    return {"error": f"exit status {done.returncode}: {text}"}


def _say(run: str, number: int, name: str, result: Mapping[str, Any]) -> None:
    if "error" in result:
        said = result["error"]
    elif "rates" in result:
        said = f"median rate {result['median_rate']:.0f} Gflop/s"
    else:
        elsewhere = result.get("others", 0) + result.get("stolen", 0)
        first, later = (rate(result[key]) for key in ("first_examples_per_second", "examples_per_second"))
        said = f"{first}, then {later} rows/s, peak {result['memory_process_peak'] / 1024:.2f} GiB" + (
            f"; {100 * elsewhere:.0f} % of the cores went elsewhere" if elsewhere > 0.1 else ""
        )
    print(f"{run}, round {number + 1}, {name}: {said}", flush=True)


# ------------------------------------------------------------------------------------- summarising


def summarise(found: dict[str, Any]) -> None:
    """Medians over the rounds, the ratios of the medians to PEFT's, and the share of the floor."""
    names = list(dict.fromkeys(name for results in found["rounds"] for name in results))
    good = {
        name: [results[name] for results in found["rounds"] if "error" not in results.get(name, {"error": 0})]
        for name in names
    }
    found["failed"] = {
        name: errors
        for name in names
        if (errors := [r[name]["error"] for r in found["rounds"] if "error" in r.get(name, {})])
    }
    found["medians"] = medians = {
        name: _medians(runs) for name, runs in good.items() if runs and name != FLOOR
    }
    if reference := medians.get(REFERENCE):
        found["ratios"] = {
            name: {
                key: round(each[key] / reference[key], 3)
                for key in ("first_examples_per_second", "examples_per_second", "memory_peak", "cuda_peak")
                if each.get(key) and reference.get(key)
            }
            for name, each in medians.items()
        }
    if full := found["settings"].get("full_rows"):
        for each in medians.values():
            each["full_epoch_seconds_extrapolated"] = round(full / each["examples_per_second"], 1)
    if floors := good.get(FLOOR):
        found["floor"] = _floor(floors)
        found["share_of_floor"] = {
            name: {
                "first": round(share["first"] * each["first_examples_per_second"], 4),
                "later": round(share["later"] * each["examples_per_second"], 4),
            }
            for name, each in medians.items()
            if (share := found["floor"]["seconds_an_example"].get(side_of(name).prompt))
        }


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every number that all the runs have."""
    keys = [
        key
        for key, value in runs[0].items()
        if isinstance(value, int | float) and all(key in r for r in runs)
    ]
    return {key: statistics.median(run[key] for run in runs) for key in keys} | {"runs": len(runs)}


def _floor(floors: list[dict[str, Any]]) -> dict[str, Any]:
    """The lowest of the rounds: a floor is what the machine can do."""
    examples = floors[0]["examples"]
    return {
        "seconds_an_example": {
            prompt: {part: min(f["examples"][prompt][part]["seconds"] for f in floors) for part in parts}
            for prompt, parts in examples.items()
        },
        "gigaflops_an_example": {
            prompt: {part: each["gigaflops"] for part, each in parts.items()}
            for prompt, parts in examples.items()
        },
    }


def chart(file: Path, found: Mapping[str, Any], title: str) -> None:
    """The medians as bars: later epochs in full, the first as a line within."""
    ratios, shares = found.get("ratios", {}), found.get("share_of_floor", {})
    bars = []
    for name, each in found["medians"].items():
        label = rate(each["examples_per_second"])
        if name in ratios and name != REFERENCE:
            label += f"   {ratios[name]['examples_per_second']:.2f} ×"
        if name in shares:
            label += f"   {100 * shares[name]['later']:.0f} % of the floor"
        bars.append((name, each["examples_per_second"], each["first_examples_per_second"], label))
    draw(file, title, "rows a second; × is against PEFT P_TUNING", bars, under=describe(found))


def describe(found: Mapping[str, Any]) -> str:
    """The conditions in a line."""
    settings, on = found["settings"], found["machine"]
    where = on.get("accelerator") or f"{on['processor']}, {on['threads']} threads"
    return (
        f"{settings['rows']} rows of {settings['mean_tokens']:.0f} tokens, batch {settings['batch_size']}, "
        f"rounds: {len(found['rounds'])}, medians; {where}; torch {on['versions']['torch']}; {found['date']}"
    )


def switched(given: argparse.Namespace) -> list[str]:
    """The names of the sides with one optimisation changed, where they were asked for."""
    return list(SWITCHES) if given.switches else []


def model_of(name: str, scratch: Path) -> Path:
    """The folder of a model; made if need be."""
    print(f"{name}: making or finding it", flush=True)
    return folder_of(name, scratch)
