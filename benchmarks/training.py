"""Training speed against PEFT and full fine-tuning: ``make bench``, or ``make bench-quick`` for MiniLM alone.

Every side trains the same rows in batches of the same size for the same epochs, in a fresh process, once a
round. Each model, data set and precision has its own result, written as it comes, and a chart.

    PTUNING_DATA=... python benchmarks/training.py [--models minilm] [--data mrpc] [--precision bf16]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import texts
from backbones import MODELS, tokenizer_folder
from measuring import write
from rounds import FLOOR, Run, chart, heading, mean_tokens, measured, model_of, options, summarise, switched
from rounds import folders as scratch_folder
from sides import REFERENCE, VIRTUAL_TOKENS
from specs import Spec

PLAN: list[Run] = [
    ("minilm", "mrpc", "bf16"),
    ("bert-base", "mrpc", "bf16"),
    ("roberta-large", "mrpc", "bf16"),
    ("qwen2-0.5b", "mrpc", "bf16"),
    ("minilm", "sst2", "bf16"),
    ("minilm", "mrpc", "fp32"),
]
"""What ``make bench`` runs, in this order."""

GROUPED = "PEFT P_TUNING, grouped by length"
SIDES = [
    REFERENCE,
    GROUPED,
    "PEFT PREFIX_TUNING",
    "full fine-tuning",
    "ptuning input",
    "ptuning deep",
    "ptuning deep, upper half",
]


def sides(rows: int, batch_size: int) -> list[str]:
    """The default sides: grouping by length means nothing where an epoch is a few batches."""
    return [name for name in SIDES if name != GROUPED or rows >= 4 * batch_size]


def run(model: str, data: str, precision: str, given: argparse.Namespace, scratch: Path) -> None:
    """One model, data set and precision."""
    own = MODELS[model]
    rows, batch_size = given.rows or own.rows, given.batch_size or own.batch_size
    folder = model_of(model, scratch)
    rows = min(rows, texts.count(data))
    tokens = mean_tokens(model, folder, data, "train", rows)
    common = {
        "folder": str(folder),
        "tokenizer": str(tokenizer_folder(model)),
        "precision": precision,
        "data": data,
        "rows": rows,
        "batch_size": batch_size,
        "epochs": given.epochs,
    }
    names = given.sides or [*sides(rows, batch_size), *switched(given)]
    specs = {name: Spec(what="training", side=name, **common) for name in names}
    specs[FLOOR] = Spec(what="training floor", length=round(tokens), **common)
    settings = {
        "model": model,
        "data": data,
        "precision": precision,
        "rows": rows,
        "full_rows": texts.count(data),
        "mean_tokens": round(tokens, 1),
        "batch_size": batch_size,
        "epochs": given.epochs,
        "virtual_tokens": VIRTUAL_TOKENS,
    }
    what = (
        "training examples a second, evaluation aside: the first epoch from the call on, and later epochs; "
        "memory in MiB"
    )
    file = given.results / f"training-{model}-{data}-{precision}.json"
    found = measured(file, heading(what, "training", settings), specs, given.rounds)
    summarise(found)
    write(file, found)
    chart(file.with_suffix(".png"), found, f"Training {model} on {data.upper()}, {precision}")


def main() -> None:
    given = options(__doc__, PLAN)
    with scratch_folder() as scratch:
        for model, data, precision in given.runs:
            run(model, data, precision, given, scratch)


if __name__ == "__main__":
    main()
