"""Where the time of a training step goes: ``ptuning deep`` and its upper half, operation by operation.

torch's profiler over some steps on real rows, its operations put together by kind. Profiling itself costs a
few per cent, so the seconds are for their shares; ``training.py`` has the speeds.

    PTUNING_DATA=... python benchmarks/step.py [--steps 10]
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from backbones import folder_of, tokenizer_folder
from charts import draw
from measuring import machine, write
from ptuning.data.stems import stems_of
from ptuning.data.tokens import TokenRow, shuffled_batches
from ptuning.inference.evaluate import batch_of
from ptuning.model.loading import load_tokenizer
from sides import ptuning_model, side_of
from texts import rows_of

RESULTS = Path(__file__).parent / "results"
SIDES = ("ptuning deep", "ptuning deep, upper half")

KINDS = {
    "matrix products": ("mm", "addmm", "linear"),
    "attention's products": ("bmm", "baddbmm"),
    "softmax": ("_softmax", "_softmax_backward_data"),
    "activation": ("gelu", "gelu_backward", "silu", "silu_backward"),
    "norms": ("native_layer_norm", "native_layer_norm_backward"),
    "copies": ("copy_", "cat", "clone", "contiguous", "index_select", "gather", "fill_", "zero_"),
    "sums": ("add", "add_", "mul", "mul_", "sum", "div"),
}
"""Which of torch's own operations make a kind; all others are ``the rest``: the optimizer, Python's share of
the calls, views, masks."""


def steps(side: str, folder: Path, batch_size: int, count: int) -> dict[str, Any]:
    """Seconds a step by kind, of ``count`` steps after as many to warm up."""
    tokenizer = load_tokenizer(str(tokenizer_folder("minilm")))
    model = ptuning_model(side_of(side), folder, "bf16", tokenizer).train()
    given = rows_of("mrpc", "train", 40 * batch_size, tokenizer, segments=model.backbone.uses_segments)
    rows = [
        TokenRow(
            input_ids=row["input_ids"],
            token_type_ids=row.get("token_type_ids") if model.backbone.uses_segments else None,
            segment_ids=None,
            label=row["labels"],
        )
        for row in given
    ]
    stems = stems_of(model, rows)
    parameters = list(model.task_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    batches = shuffled_batches([len(row) for row in rows], batch_size, seed=0, epoch=0)

    def step(batch: list[int]) -> None:
        model(**batch_of([rows[i] for i in batch], 0, stems)).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for batch in batches[:count]:
        step(batch)
    began = time.perf_counter()
    for batch in batches[count : 2 * count]:
        step(batch)
    seconds = (time.perf_counter() - began) / count
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in batches[2 * count : 3 * count]:
            step(batch)
    spent: dict[str, float] = defaultdict(float)
    kinds = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}
    for event in profiler.key_averages():
        spent[kinds.get(event.key, "the rest")] += event.self_cpu_time_total / 1e6 / count
    total = sum(spent.values())
    return {
        "seconds_a_step": seconds,
        "seconds_a_step_profiled": total,
        "seconds_by_kind": {kind: spent[kind] for kind in (*KINDS, "the rest")},
        "share_by_kind": {kind: spent[kind] / total for kind in (*KINDS, "the rest")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    folder = folder_of("minilm", Path())  # the embedded one: it is nowhere but in its package
    sides = {side: steps(side, folder, given.batch_size, given.steps) for side in SIDES}
    found = {
        "what": "seconds of a training step by kind of operation; MiniLM, MRPC, bf16",
        "command": shlex.join(["python", "benchmarks/step.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "settings": {"batch_size": given.batch_size, "steps": given.steps},
        "sides": sides,
    }
    file = given.results / "step-minilm-mrpc-bf16.json"
    write(file, found)
    bars = [
        (f"{side}: {kind}", 1000 * seconds, None, f"{1000 * seconds:.0f} ms")
        for side in SIDES
        for kind, seconds in sides[side]["seconds_by_kind"].items()
    ]
    title = f"A training step of {given.batch_size} rows, MiniLM on MRPC, bf16"
    draw(file.with_suffix(".png"), title, "milliseconds", bars)


if __name__ == "__main__":
    main()
