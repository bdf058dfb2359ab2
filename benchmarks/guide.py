"""The P-tuning guide's recipe, with PEFT and with ptuning under PEFT's names: ``make guide``.

One program runs all; what differs is the package that the names come from, and where the prompt is. MiniLM,
two epochs, batch 32, learning rate 1e-3, weight decay 0.01, fp32, as the guide has it. The better epoch is
selected by the validation loss, and the test rows are read once. A run is a line of the results, and what is
there is not run again.

    PTUNING_DATA=... python benchmarks/guide.py [--data mrpc sst2-1000] [--seeds 0 1]
    python benchmarks/guide.py --table
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ptuning.model.embedded import resolve
from quality.data import home, write_rows
from quality.plan import data_set
from quality.records import append, read
from quality.tables import TITLES
from runs import Table, mean, plain_table, provenance

RESULTS = Path(__file__).parent / "results" / "guide.jsonl"
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "PEFT": ("peft", {}),
    "ptuning.peft": ("ptuning.peft", {}),
    "ptuning.peft, start": ("ptuning.peft", {"placement": "start"}),
}
"""The package that the names come from, and further options of ``PromptEncoderConfig``."""


def compute_metrics(found: Any) -> dict[str, float]:
    answers = np.argmax(found.predictions, axis=1)
    return {
        "accuracy": float(accuracy_score(found.label_ids, answers)),
        "f1": float(f1_score(found.label_ids, answers)),
    }


def run(
    way: str,
    data: str,
    seed: int,
    splits: Mapping[str, Dataset],
    tokenizer: Any,
    options: Mapping[str, Any],
    scratch: Path,
) -> dict[str, Any]:
    """The guide's steps from the model on; a line of the results."""
    package, usual = WAYS[way]
    names = import_module(package)
    set_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(resolve("demo"))
    config = names.PromptEncoderConfig(
        task_type="SEQ_CLS", num_virtual_tokens=20, encoder_hidden_size=128, **usual, **options
    )
    model = names.get_peft_model(base, config)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(scratch),
            learning_rate=1e-3,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            num_train_epochs=2,
            weight_decay=0.01,
            eval_strategy="epoch",
            # PEFT's best model at the end is a corrupted one, so it is left with its last.
            save_strategy="no" if way == "PEFT" else "epoch",
            load_best_model_at_end=way != "PEFT",
            report_to="none",
            seed=seed,
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer=tokenizer, padding="longest"),
        compute_metrics=compute_metrics,
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    test = trainer.predict(splits["test"]).metrics or {}
    log = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    made = provenance()
    return {
        "way": way,
        "data": data,
        "seed": seed,
        "options": dict(options),
        "trained": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "validation_loss": [round(entry["eval_loss"], 4) for entry in log],
        "validation_accuracy": [round(entry["eval_accuracy"], 4) for entry in log],
        "test": {name: test[f"test_{name}"] for name in ("accuracy", "f1", "loss")},
        "constant": constant(splits),
        "seconds": round(seconds, 1),
        **made,
        "machine": made["machine"] | {"peft": version("peft")},
    }


def constant(splits: Mapping[str, Dataset]) -> dict[str, float]:
    """What the training rows' majority class scores on the test rows."""
    labels = np.asarray(splits["test"]["labels"])
    answers = np.full_like(labels, np.bincount(splits["train"]["labels"]).argmax())
    return {
        "accuracy": float(accuracy_score(labels, answers)),
        "f1": float(f1_score(labels, answers, zero_division=0.0)),
    }


def tokenised(data: str, seed: int, tokenizer: Any) -> dict[str, Dataset]:
    """The rows of a data set of the quality study."""
    with tempfile.TemporaryDirectory() as scratch:
        files = write_rows(data_set(data), seed, home(data_set(data)), Path(scratch))
        rows = {
            split: [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
            for split, file in files.items()
        }
    return {
        split: Dataset.from_list(
            [{**tokenizer(*texts(row), truncation=True), "labels": row["label"]} for row in each]
        )
        for split, each in rows.items()
    }


def texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (row["sentence1"], row["sentence2"]) if "sentence1" in row else (row["sentence"],)


def table(markdown: Table, records: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation over seeds, by data and way."""
    kept = [record for record in records if not record["options"]]
    lines: list[tuple[str, ...]] = []
    for data in dict.fromkeys(record["data"] for record in kept):
        here = [record for record in kept if record["data"] == data]
        first = here[0]["constant"]
        lines.append(
            (TITLES[data], "a constant answer", f"{first['accuracy']:.3f}", f"{first['f1']:.3f}", "")
        )
        for way in WAYS:
            runs = [record for record in here if record["way"] == way]
            if runs:
                figures = [mean([run["test"][name] for run in runs]) for name in ("accuracy", "f1", "loss")]
                lines.append((TITLES[data], f"{way} ({len(runs)})", *figures))
    return markdown(("data", "names of (runs)", "accuracy", "F1", "loss"), lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["mrpc"], metavar="NAME", help="data sets of the study")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further options to try")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the results, run nothing")
    given = parser.parse_args(words)
    records = read(given.results)
    if given.table:
        print(table(plain_table, records))
        return
    options = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in given.set)}
    tokenizer = AutoTokenizer.from_pretrained(resolve("demo"))
    names = ("data", "seed", "way", "options")
    done = [tuple(record[name] for name in names) for record in records]
    for data in given.data:
        for seed in given.seeds:
            left = [way for way in given.ways if (data, seed, way, options) not in done]
            splits = tokenised(data, seed, tokenizer) if left else {}
            for way in left:
                with tempfile.TemporaryDirectory() as scratch:
                    record = run(way, data, seed, splits, tokenizer, options, Path(scratch))
                append(record, given.results)
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
