"""SetFit on few rows, run by the interpreter of an environment of its own: ``make quality-setfit`` makes it.

SetFit 1.1 needs transformers 4, and ptuning 5; so this script knows nothing of ptuning. It gets files and
options as JSON, and its last line is the probabilities that it ends with, which the worker measures like
everyone's. Hyperparameters are SetFit's own, but for the body's rate, which is swept, and the steps, which
are bounded. The texts of a pair are joined by the tokenizer's separator.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression

BATCH = 16
"""SetFit's own default."""


def main() -> None:
    given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    transformer = Body(given["backbone"], model_args={"attn_implementation": "eager"})
    pooling = Pooling(transformer.get_word_embedding_dimension(), "mean")
    body = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    head = LogisticRegression()
    model = SetFitModel(model_body=body, model_head=head)
    splits = {
        name: read(Path(file), transformer.tokenizer.sep_token) for name, file in given["files"].items()
    }
    most = steps(splits["train"]["label"])
    arguments = TrainingArguments(
        output_dir=given["scratch"],
        batch_size=BATCH,
        body_learning_rate=given["rate"],
        max_steps=given["most_steps"] if most > given["most_steps"] else -1,
        seed=given["seed"],
        save_strategy="no",
        report_to="none",
        show_progress_bar=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(splits["train"]))
    cpu, wall = time.process_time(), time.perf_counter()
    trainer.train()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    found = {
        "probabilities": {
            name: model.predict_proba(splits[name]["text"], as_numpy=True).tolist()
            for name in ("validation", "test")
        },
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "steps": min(most, given["most_steps"]),
        "trained": sum(value.numel() for value in body.parameters()) + head.coef_.size + head.intercept_.size,
        "peak_mib": peak_mib(),
        "precision": "fp32 weights, bf16 autocast, fp32 loss" if FAST else "fp32",
        "versions": {
            name: version(name) for name in ("setfit", "sentence-transformers", "transformers", "torch")
        },
    }
    print(json.dumps(found), flush=True)


FAST = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
"""Whether this machine multiplies bf16 fast."""


class Body(Transformer):  # type: ignore[misc]
    """Its products are bf16 where that is fast, as all the others'; means and cosines stay fp32: as bf16 they
    spoil the loss.
    """

    def forward(self, features: dict[str, Any], **given: Any) -> dict[str, Any]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=FAST):
            found: dict[str, Any] = super().forward(features, **given)
        return {**found, "token_embeddings": found["token_embeddings"].float()}


def read(file: Path, separator: str) -> dict[str, list[Any]]:
    """The texts, those of a pair as one, and the labels."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {
        "text": [
            f" {separator} ".join(text for name, text in row.items() if name != "label") for row in rows
        ],
        "label": [row["label"] for row in rows],
    }


def steps(labels: list[Any]) -> int:
    """An epoch's, of all pairs with the fewer kind sampled up: SetFit's default."""
    counts = Counter(labels).values()
    alike = sum(count * (count + 1) // 2 for count in counts)
    unlike = (len(labels) ** 2 - sum(count**2 for count in counts)) // 2
    return math.ceil(2 * max(alike, unlike) / BATCH)


def peak_mib() -> float:
    """The most memory that this process has held; Linux alone."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(
        round(int(line.split()[1]) / 1024, 1) for line in status.splitlines() if line.startswith("VmHWM:")
    )


if __name__ == "__main__":
    main()
