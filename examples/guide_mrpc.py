"""Hugging Face's P-tuning guide, every step: sentence pairs, P-tuning, transformers' Trainer.

Offline, on the embedded MiniLM and 160 sentence pairs that ptuning ships (or MRPC, if the environment
variable PTUNING_DATA names a folder with mrpc/*.jsonl)::

    python examples/guide_mrpc.py

As in the guide, on roberta-large and GLUE's MRPC from the Hub::

    python examples/guide_mrpc.py --online

``--deep`` uses a deep prompt (P-tuning v2), which learns much more, instead of the guide's input prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_dataset
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

from ptuning import DeepPrompt, InputPrompt, MLPEncoder, PTuningModel, Task
from ptuning.model.embedded import resolve

CLASSES = ("not equivalent", "equivalent")
SENTENCE1 = "Coast redwood trees are the tallest trees on the planet and can grow over 300 feet tall."
SENTENCE2 = (
    "The coast redwood trees, which can attain a height of over 300 feet, are the tallest trees on earth."
)


def pairs(online: bool) -> DatasetDict:
    """Train and test pairs: GLUE's, those of PTUNING_DATA, or the ones next to this file."""
    if online:
        return load_dataset("nyu-mll/glue", "mrpc")
    if root := os.environ.get("PTUNING_DATA"):
        return DatasetDict(
            {split: rows(Path(root) / "mrpc" / f"{split}.jsonl") for split in ("train", "validation", "test")}
        )
    shipped = rows(Path(__file__).parent / "paraphrases.jsonl")
    return DatasetDict(
        {split: shipped.filter(lambda row, split=split: row["split"] == split) for split in ("train", "test")}
    )


def rows(file: Path) -> Dataset:
    return Dataset.from_list([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])


def compute_metrics(eval_pred: Any) -> dict[str, float]:
    predictions = np.argmax(eval_pred.predictions, axis=1)
    return {
        "accuracy": float(accuracy_score(eval_pred.label_ids, predictions)),
        "f1": float(f1_score(eval_pred.label_ids, predictions)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--online", action="store_true", help="roberta-large and GLUE, from the Hub")
    parser.add_argument("--deep", action="store_true", help="the deep prompt, at its own learning rate")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, default=None, help="adapter folder; a temporary one if left out"
    )
    given = parser.parse_args()
    backbone = "roberta-large" if given.online else "demo"

    # Prepare.
    dataset = pairs(given.online)
    print(dataset["train"][0])
    tokenizer = AutoTokenizer.from_pretrained(resolve(backbone))

    def tokenize(examples: dict[str, list[str]]) -> Any:
        return tokenizer(examples["sentence1"], examples["sentence2"], truncation=True, max_length=256)

    tokenized = dataset.map(tokenize, batched=True)
    tokenized = tokenized.rename_column("label", "labels")

    # P-tuning.
    prompt = (
        DeepPrompt(num_virtual_tokens=20)
        if given.deep
        else InputPrompt(num_virtual_tokens=20, placement="start", encoder=MLPEncoder(width=128))
    )
    torch.manual_seed(0)
    task = Task(problem_type="single_label_classification", labels=CLASSES, pair=True)
    model = PTuningModel.from_backbone(backbone, prompt, task=task)
    model.print_trainable_parameters()

    # Train, with an evaluation each epoch, and end with the best model.
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                learning_rate=1e-2 if given.deep else 1e-3,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=32,
                num_train_epochs=given.epochs,
                weight_decay=0.01,
                eval_strategy="epoch",
                save_strategy="epoch",
                load_best_model_at_end=True,
                report_to="none",
                dataloader_pin_memory=torch.cuda.is_available(),
                seed=0,
            ),
            train_dataset=tokenized["train"],
            eval_dataset=tokenized["validation" if "validation" in tokenized else "test"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer=tokenizer, padding="longest"),
            compute_metrics=compute_metrics,
        )
        trainer.train()
        print({name: value for name, value in trainer.evaluate().items() if name.startswith("eval_")})

    # Save, and load from the saved folder.
    with tempfile.TemporaryDirectory() as scratch:
        folder = model.save_pretrained(given.output or Path(scratch) / "mrpc-p-tuning")
        print(f"saved {folder}: {sorted(file.name for file in folder.iterdir())}")
        loaded = PTuningModel.from_pretrained(folder).eval()

    # Use it.
    inputs = tokenizer(SENTENCE1, SENTENCE2, truncation=True, padding="longest", return_tensors="pt")
    with torch.no_grad():
        logits = loaded(**inputs).logits
    print(logits)
    for name, share in zip(CLASSES, torch.softmax(logits, dim=1).tolist()[0], strict=True):
        print(f"{name}: {round(share * 100)}%")


if __name__ == "__main__":
    main()
