"""What ``engine.packed_memory`` is worth: prediction and training with packed weights and without.

Both sides run in one process and take turns, in reversed order every other round. A ratio is the median of
the rounds' ratios, of wall time and of the process's CPU time; on a machine that does other work, only the
latter means something, and only with one thread. ``product_milliseconds`` is the same for single matrix
products, with what was not built: fp32, GELU inside the product, and queries, keys and values in one product.

    PTUNING_DATA=... python benchmarks/packing.py [--rounds 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from backbones import folder_of, tokenizer_folder
from measuring import write
from ptuning import PTuningModel
from ptuning.data.stems import stems_of
from ptuning.data.tokens import TokenRow, shuffled_batches
from ptuning.inference.evaluate import batch_of, logits_of
from ptuning.model.loading import load_tokenizer
from rounds import heading
from sides import ptuning_model, side_of
from texts import rows_of
from worker import Quiet

RESULTS = Path(__file__).parent / "results"
DATA = {"short rows": "sst2", "pairs": "mrpc"}
ENGINES: Mapping[str, Mapping[str, Any]] = {"off": {"packed_memory": 0}, "on": {}}
BATCH_SIZE = 32
ONE_BY_ONE = 48
"""Rows that are predicted one at a time."""

Timed = Mapping[str, Callable[[], object]]


Clock = Callable[[], float]
WALL, CPU = time.perf_counter, time.process_time


def alternating(sides: Timed, rounds: int) -> dict[Clock, dict[str, list[float]]]:
    """Seconds of each side in each round, by either clock; each has run once before."""
    seconds: dict[Clock, dict[str, list[float]]] = {
        clock: {name: [] for name in sides} for clock in (WALL, CPU)
    }
    for number in range(-1, rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            began = {clock: clock() for clock in seconds}
            sides[name]()
            for clock, found in seconds.items():
                if number >= 0:
                    found[name].append(clock() - began[clock])
    return seconds


def compared(sides: Timed, rounds: int, rows: int) -> dict[str, Any]:
    """Rows a second of both sides, and how much more ``on`` does."""
    quiet = Quiet()
    seconds = alternating(sides, rounds)
    ratios = {
        clock: [off / on for off, on in zip(found["off"], found["on"], strict=True)]
        for clock, found in seconds.items()
    }
    return {
        "rows_per_second": {
            name: round(rows / statistics.median(each), 1) for name, each in seconds[WALL].items()
        },
        "ratio": round(statistics.median(ratios[WALL]), 3),
        "ratios": [round(ratio, 3) for ratio in ratios[WALL]],
        "cpu_ratio": round(statistics.median(ratios[CPU]), 3),
        "cpu_ratios": [round(ratio, 3) for ratio in ratios[CPU]],
        **quiet.found(),
    }


def models(side: str, precision: str, tokenizer: Any) -> dict[str, PTuningModel]:
    folder = folder_of("minilm", Path())
    return {
        name: ptuning_model(replace(side_of(side), engine=engine), folder, precision, tokenizer)
        for name, engine in ENGINES.items()
    }


def token_rows(data: str, split: str, count: int, tokenizer: Any) -> list[TokenRow]:
    return [
        TokenRow(
            input_ids=row["input_ids"],
            token_type_ids=row.get("token_type_ids"),
            segment_ids=None,
            label=row["labels"],
        )
        for row in rows_of(data, split, count, tokenizer, segments=True)
    ]


def predicting(model: PTuningModel, rows: list[TokenRow], batch_size: int) -> Callable[[], object]:
    model.eval()
    return lambda: logits_of(model, rows, batch_size=batch_size)


def training(model: PTuningModel, rows: list[TokenRow]) -> Callable[[], object]:
    """One epoch; the stem, if there is one, has been computed."""
    model.train()
    stems = stems_of(model, rows)
    parameters = list(model.task_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    batches = shuffled_batches([len(row) for row in rows], BATCH_SIZE, seed=0, epoch=0)

    def epoch() -> None:
        for batch in batches:
            model(**batch_of([rows[i] for i in batch], 0, stems)).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def whole(precision: str, data: str, count: int, rounds: int) -> dict[str, Any]:
    """Prediction and training of MiniLM."""
    tokenizer = load_tokenizer(str(tokenizer_folder("minilm")))
    rows = {split: token_rows(data, split, count, tokenizer) for split in ("train", "test")}
    deep = models("ptuning deep", precision, tokenizer)
    upper = models("ptuning deep, upper half", precision, tokenizer)
    few = rows["test"][:ONE_BY_ONE]
    tasks: dict[str, tuple[int, Timed]] = {
        "prediction": (
            len(rows["test"]),
            {name: predicting(model, rows["test"], BATCH_SIZE) for name, model in deep.items()},
        ),
        "prediction, one row at a time": (
            len(few),
            {name: predicting(model, few, 1) for name, model in deep.items()},
        ),
    }
    found = {name: compared(sides, rounds, number) for name, (number, sides) in tasks.items()}
    for name, given in (("training", deep), ("training, upper half", upper)):
        sides = {engine: training(model, rows["train"]) for engine, model in given.items()}
        found[name] = compared(sides, rounds, len(rows["train"]))
    memory = {name: model.backbone.packed_weights.nbytes / 2**20 for name, model in deep.items()}
    tokens = statistics.fmean(map(len, rows["test"]))
    return {"mean_tokens": round(tokens, 1), "packed_mebibytes": memory, **found}


def products(dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Milliseconds of MiniLM's products with so many tokens: as torch has them, packed, and what could be."""
    pack, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
    hidden, wide = 384, 1536
    found: dict[str, Any] = {}

    def weight(outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
        made = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
        return made, torch.randn(outputs).to(dtype), pack(made)

    up, *three = weight(wide, hidden), *(weight(hidden, hidden) for _ in range(3))
    joined, joined_bias = pack(torch.cat([each[0] for each in three])), torch.cat([each[1] for each in three])

    def products(x: Tensor) -> dict[str, Callable[[], object]]:
        linear, gelu = functional.linear, functional.gelu
        return {
            "up": lambda: linear(x, up[0], up[1]),
            "up, packed": lambda: multiply(x, up[2], up[1], "none", [], ""),
            "up, GELU": lambda: gelu(linear(x, up[0], up[1])),
            "up, GELU, packed": lambda: gelu(multiply(x, up[2], up[1], "none", [], "")),
            "up, GELU, packed, in one": lambda: multiply(x, up[2], up[1], "gelu", [], "none"),
            "q, k, v": lambda: [linear(x, each[0], each[1]) for each in three],
            "q, k, v, packed": lambda: [multiply(x, each[2], each[1], "none", [], "") for each in three],
            "q, k, v, packed, in one": lambda: multiply(x, joined, joined_bias, "none", [], ""),
        }

    for tokens in (1, 32, 512, 2048):
        sides = products(torch.randn(tokens, hidden).to(dtype))
        with torch.inference_mode():
            seconds = alternating(sides, 10 * rounds)[CPU if torch.get_num_threads() == 1 else WALL]
        found[f"{tokens} tokens"] = {
            name: round(1000 * statistics.median(each), 3) for name, each in seconds.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--threads", type=int, help="of torch; by default one per core")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    file = given.results / "packing-minilm.json"
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    settings = {"batch_size": BATCH_SIZE, "rows": given.rows, "rounds": given.rounds}
    what = "MiniLM with packed weights (on: the default) and without (off); fp32 packs nothing"
    found = {**heading(what, "packing", settings), "runs": {}}
    for precision in dtypes:
        for name, data in DATA.items():
            found["runs"][f"{precision}, {name}"] = run = whole(precision, data, given.rows, given.rounds)
            for what in (key for key, value in run.items() if isinstance(value, dict) and "ratio" in value):
                print(f"{precision}, {name}, {what}: {run[what]['ratio']}, CPU {run[what]['cpu_ratio']}")
            write(file, found)
    found["product_milliseconds"] = {name: products(dtype, given.rounds) for name, dtype in dtypes.items()}
    write(file, found)


if __name__ == "__main__":
    main()
