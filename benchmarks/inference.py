"""Inference speed against PEFT, over the same test rows: ``make bench``, or ``make bench-quick``.

ptuning runs ``logits_of``, which is what evaluation and ``Predictor`` use; PEFT runs ``Trainer.predict``, and
besides a loop that is as good as it gets by hand: batches sorted by length, inference mode, autocast.
The first pass over the rows and the later ones are kept apart, as in training.

    PTUNING_DATA=... python benchmarks/inference.py [--models minilm] [--precision bf16]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import texts
from backbones import MODELS, tokenizer_folder
from measuring import write
from rounds import FLOOR, Run, chart, folders, heading, mean_tokens, measured, model_of, options, summarise
from sides import REFERENCE, VIRTUAL_TOKENS
from specs import Spec

PLAN: list[Run] = [
    ("minilm", "mrpc", "bf16"),
    ("bert-base", "mrpc", "bf16"),
    ("roberta-large", "mrpc", "bf16"),
    ("qwen2-0.5b", "mrpc", "bf16"),
    ("minilm", "mrpc", "fp32"),
]
SIDES = [
    REFERENCE,
    "PEFT P_TUNING, sorted by hand",
    "PEFT PREFIX_TUNING",
    "PEFT PREFIX_TUNING, sorted by hand",
    "ptuning input",
    "ptuning deep",
]
BATCH_SIZE = 32
MORE_ROWS = 2
"""A forward costs a third of a step, so inference affords more rows than training."""


def run(model: str, data: str, precision: str, given: argparse.Namespace, scratch: Path) -> None:
    """One model, data set and precision."""
    folder = model_of(model, scratch)
    batch_size = given.batch_size or BATCH_SIZE
    rows = min(given.rows or MORE_ROWS * MODELS[model].rows, texts.count(data, "test"))
    tokens = mean_tokens(model, folder, data, "test", rows)
    common = {
        "folder": str(folder),
        "tokenizer": str(tokenizer_folder(model)),
        "precision": precision,
        "data": data,
        "rows": rows,
        "batch_size": batch_size,
        "epochs": given.epochs,
    }
    specs = {name: Spec(what="inference", side=name, **common) for name in given.sides or SIDES}
    specs[FLOOR] = Spec(what="inference floor", length=round(tokens), **common)
    settings = {
        "model": model,
        "data": data,
        "precision": precision,
        "rows": rows,
        "mean_tokens": round(tokens, 1),
        "batch_size": batch_size,
        "epochs": given.epochs,
        "virtual_tokens": VIRTUAL_TOKENS,
    }
    what = "test rows a second, tokenised before: the first pass, and later ones; memory in MiB"
    file = given.results / f"inference-{model}-{data}-{precision}.json"
    found = measured(file, heading(what, "inference", settings), specs, given.rounds)
    summarise(found)
    write(file, found)
    chart(file.with_suffix(".png"), found, f"Inference, {model} on {data.upper()}, {precision}")


def main() -> None:
    given = options(__doc__, PLAN)
    with folders() as scratch:
        for model, data, precision in given.runs:
            run(model, data, precision, given, scratch)


if __name__ == "__main__":
    main()
