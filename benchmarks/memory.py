"""Peak memory of training RoBERTa-large on long texts, against PEFT and full fine-tuning: ``make bench``.

Texts are random tokens of exactly the wanted length: what counts is how many there are. Each side takes a few
steps in a process of its own, whose peak is taken from the moment that the model is loaded. On a GPU the
peak of torch's allocator is what counts, and 512 places are the default, the prompt's 20 among them.

    python benchmarks/memory.py [--models roberta-large] [--length 256] [--batch-size 8] [--steps 2]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers.utils import logging

from backbones import MODELS, tokenizer_folder
from charts import draw
from measuring import write
from rounds import RESULTS, describe, folders, heading, measured, model_of, summarise
from sides import REFERENCE, VIRTUAL_TOKENS, has_engine
from specs import Spec

LONGEST = 512 - VIRTUAL_TOKENS
"""What fits beside the prompt, whose places PEFT and ptuning take off the backbone's positions."""

CHECKPOINTED = "ptuning deep, checkpointing"
SIDES = [
    REFERENCE,
    "PEFT PREFIX_TUNING",
    "full fine-tuning",
    "ptuning deep",
    "ptuning deep, upper half",
    CHECKPOINTED,
]


def run(model: str, precision: str, given: argparse.Namespace, scratch: Path) -> None:
    """One model and precision."""
    folder = model_of(model, scratch)
    rows = given.steps * given.batch_size
    names = given.sides or [name for name in SIDES if name != CHECKPOINTED or has_engine()]
    specs = {
        name: Spec(
            what="training",
            side=name,
            folder=str(folder),
            tokenizer=str(tokenizer_folder(model)),
            precision=precision,  # type: ignore[arg-type]
            data="made",
            length=given.length,
            rows=rows,
            batch_size=given.batch_size,
            epochs=1,
        )
        for name in names
    }
    settings = {
        "model": model,
        "data": "random tokens",
        "precision": precision,
        "rows": rows,
        "mean_tokens": given.length,
        "batch_size": given.batch_size,
        "epochs": 1,
        "virtual_tokens": VIRTUAL_TOKENS,
    }
    what = "peak memory while training, in MiB, of the process and, on a GPU, of torch's allocator"
    file = given.results / f"memory-{model}-{given.length}-{precision}.json"
    found = measured(file, heading(what, "memory", settings), specs, given.rounds)
    summarise(found)
    write(file, found)
    key = "cuda_peak" if torch.cuda.is_available() else "memory_peak"
    ratios = found.get("ratios", {})
    bars = [
        (
            name,
            each[key] / 1024,
            None,
            f"{each[key] / 1024:.2f}" + ("" if name == REFERENCE else _share(ratios.get(name, {}).get(key))),
        )
        for name, each in found["medians"].items()
        if each.get(key)
    ]
    where = "of the GPU" if key == "cuda_peak" else "of the whole process"
    draw(
        file.with_suffix(".png"),
        f"Peak memory of training {model}, {given.length} tokens a text, {precision}",
        f"GiB {where}, from the loaded model on; % is of PEFT P_TUNING's",
        bars,
        under=describe(found),
    )


def _share(ratio: float | None) -> str:
    return "" if ratio is None else f"   {100 * ratio:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["roberta-large"])
    parser.add_argument("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16"])
    parser.add_argument("--sides", nargs="+", help="these alone, by name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=LONGEST if torch.cuda.is_available() else 256)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    logging.disable_progress_bar()
    with folders() as scratch:
        for model in given.models:
            for precision in given.precision:
                run(model, precision, given, scratch)


if __name__ == "__main__":
    main()
