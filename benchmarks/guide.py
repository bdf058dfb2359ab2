"""The P-tuning guide's recipe on MRPC, with PEFT and with ptuning under PEFT's names: ``make guide``.

One program runs both; what differs is the package that the names come from. MiniLM, two epochs,
batch 32, learning rate 1e-3, weight decay 0.01, fp32, as the guide has it. The better epoch is taken by the
validation loss, and the test rows are looked at once.

    PTUNING_DATA=... python benchmarks/guide.py [--seeds 0 1]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
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

from measuring import machine, write
from ptuning.model.embedded import resolve

RESULTS = Path(__file__).parent / "results" / "guide.json"
PACKAGES = {"PEFT": "peft", "ptuning.peft": "ptuning.peft"}


def compute_metrics(found: Any) -> dict[str, float]:
    answers = np.argmax(found.predictions, axis=1)
    return {
        "accuracy": float(accuracy_score(found.label_ids, answers)),
        "f1": float(f1_score(found.label_ids, answers)),
    }


def run(package: str, seed: int, splits: dict[str, Dataset], tokenizer: Any, scratch: Path) -> dict[str, Any]:
    """The guide's steps from the model on."""
    names = import_module(PACKAGES[package])
    set_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(resolve("demo"))
    config = names.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=20, encoder_hidden_size=128)
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
            save_strategy="no" if package == "PEFT" else "epoch",
            load_best_model_at_end=package != "PEFT",
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
    log = trainer.state.log_history
    return {
        "package": package,
        "seed": seed,
        "trained": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "validation_loss": [round(entry["eval_loss"], 4) for entry in log if "eval_loss" in entry],
        "test": {name: test[f"test_{name}"] for name in ("accuracy", "f1", "loss")},
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    if "PTUNING_DATA" not in os.environ:
        sys.exit("set PTUNING_DATA to a folder with mrpc/train.jsonl, validation.jsonl and test.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(resolve("demo"))
    splits = {}
    for split in ("train", "validation", "test"):
        file = Path(os.environ["PTUNING_DATA"]) / "mrpc" / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        splits[split] = Dataset.from_list(
            [
                {**tokenizer(r["sentence1"], r["sentence2"], truncation=True), "labels": r["label"]}
                for r in rows
            ]
        )
    labels = np.asarray(splits["test"]["labels"])
    always = np.ones_like(labels)
    found: dict[str, Any] = {
        "what": "MRPC test accuracy and F1 of the guide's recipe, by the package its names come from",
        "command": " ".join(["python", "benchmarks/guide.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine() | {"peft": version("peft")},
        "majority": {
            "accuracy": float(accuracy_score(labels, always)),
            "f1": float(f1_score(labels, always)),
        },
        "runs": [],
    }
    for seed in given.seeds:
        for package in PACKAGES:
            with tempfile.TemporaryDirectory() as scratch:
                found["runs"].append(run(package, seed, splits, tokenizer, Path(scratch)))
            write(given.results, found)
            print(json.dumps(found["runs"][-1]), flush=True)


if __name__ == "__main__":
    main()
