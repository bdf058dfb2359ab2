"""Does a temperature that is fitted to few validation rows help, and from how many rows on?

    PTUNING_DATA=... [PTUNING_ELSEWHERE=...] python benchmarks/calibration.py [--seeds 0 1]

The embedded MiniLM is trained on 300 rows for eight epochs, and otherwise with the default options. 300
validation rows select the checkpoint, as always. Then the temperature is fitted to 10, 30 and 100 of these
rows, 20 draws each, and to all of them. Calibration error (ECE, 15 bins) and log loss are of up to 1,000 test
rows. The logits of each run are kept in ``--scratch``, so a second call only computes the figures.

Sets: SST-2, MRPC (pairs), 20 newsgroups (20 classes, ``make quality-elsewhere``), WNUT 17 with several labels
(which of six kinds of entity a message names), and SST-2 with one positive row in ten, with and without
balanced class weights.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from measuring import machine, write
from ptuning import PTuningModel, Task, TrainConfig, calibration, train
from ptuning.calibration import expected_calibration_error, log_loss
from ptuning.data import load_examples
from ptuning.training.evaluation import score
from ptuning.training.prepare import tokenised
from quality.data import elsewhere, root

RESULTS = Path(__file__).parent / "results" / "calibration.json"
TRAINING, VALIDATION, TEST = 300, 300, 1000
EVALUATE = 38
"""Steps between two evaluations: two epochs."""
ROWS = {10: 20, 30: 20, 100: 20, VALIDATION: 1}
"""Draws by the number of validation rows that a temperature is fitted to."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: all rows to learn from, test rows, and options of ``fit``."""

    rows: Callable[[str], list[Row]]
    fit: Mapping[str, Any]


def _read(folder: Path, split: str) -> list[Row]:
    names = ("train", "validation") if split == "train" else (split,)
    lines = [line for name in names for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def _rare(split: str) -> list[Row]:
    """SST-2 with one positive row in ten."""
    found = _read(root() / "sst2", split)
    positive, negative = ([row for row in found if row["label"] == label] for label in (1, 0))
    return negative[: 9 * len(positive)] + positive[: len(negative) // 9]


def _entities(split: str) -> list[Row]:
    found = _read(root() / "wnut17", split)
    return [
        {"text": " ".join(row["tokens"]), "label": sorted({tag[2:] for tag in row["tags"] if tag != "O"})}
        for row in found
    ]


SOURCES = {
    "sst2": Source(rows=lambda split: _read(root() / "sst2", split), fit={}),
    "newsgroups": Source(rows=lambda split: _read(elsewhere() / "newsgroups", split), fit={}),
    "wnut17": Source(rows=_entities, fit={}),
    "mrpc": Source(rows=lambda split: _read(root() / "mrpc", split), fit={}),
    "sst2-rare": Source(rows=_rare, fit={}),
    "sst2-rare-weighted": Source(rows=_rare, fit={"class_weights": "balanced"}),
}


# --------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True, kw_only=True)
class Run:
    """Logits and targets of a trained model.

    Attributes:
        validation, test: Logits ``[N, C]`` and targets each.
        shares: ``[C]``, of the training rows that have each label.
    """

    task: Task
    validation: tuple[Any, Any]
    test: tuple[Any, Any]
    shares: Any


def run(name: str, seed: int, scratch: Path) -> Run:
    """Train, unless it was done before."""
    kept = scratch / f"{name}-{seed}.npz"
    if not kept.is_file():
        _train(name, seed, scratch / "work", kept)
    with np.load(kept) as found:
        arrays = {key: found[key] for key in found.files if key != "task"}
        task = Task.from_dict(json.loads(str(found["task"])))
    return Run(
        task=task,
        validation=(arrays["validation_logits"], arrays["validation_targets"]),
        test=(arrays["test_logits"], arrays["test_targets"]),
        shares=arrays["shares"],
    )


def _train(name: str, seed: int, work: Path, kept: Path) -> None:
    source, draw = SOURCES[name], random.Random(seed)
    pool, test = source.rows("train"), source.rows("test")
    draw.shuffle(pool)
    random.Random(0).shuffle(test)
    splits = {
        "validation": pool[:VALIDATION],
        "train": pool[VALIDATION : VALIDATION + TRAINING],
        "test": test[:TEST],
    }
    folder = work / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for split, found in splits.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    several = {"problem_type": "multi_label_classification"} if name == "wnut17" else {}
    config = TrainConfig.checked(
        {
            "data": {**files, **several},
            "output": str(folder / "adapter"),
            "fit": {"seed": seed, "num_train_epochs": 8, "evaluate_every": EVALUATE, **source.fit},
        }
    )
    train(config, restart=True)
    model = PTuningModel.from_pretrained(folder / "adapter").eval()
    model.set_task(model.task.uncalibrated())
    found, shares = {}, None
    for split in splits:
        loaded = load_examples(str(folder / f"{split}.jsonl"), pair=model.task.pair, task=model.task)
        made = tokenised(model, loaded.examples)
        if split == "train":
            shares = model.task.kind.constant_answer(made.targets, model.task).shares
        else:
            found[f"{split}_logits"] = score(model, made).logits.double().numpy()
            found[f"{split}_targets"] = made.targets
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(kept, task=json.dumps(model.task.to_dict()), shares=np.array(shares), **found)


# ------------------------------------------------------------------------------------------ the figures


def log_likelihood(logits: Any, targets: Any, temperature: float) -> float:
    """Summed over the rows; of several labels, a row's mean."""
    if targets.ndim == 2:
        signed = np.where(targets > 0.5, logits, -logits) / temperature
        return float(log_expit(signed).mean(axis=1).sum())
    classes = targets.astype(int)
    return float(log_softmax(logits / temperature, axis=1)[np.arange(len(classes)), classes].sum())


def with_prior(deviation: float) -> Callable[[Run], float]:
    """The temperature with a normal prior of its logarithm; ``inf`` for none."""

    def fitted(found: Run) -> float:
        def loss(at: float) -> float:
            return 0.5 * (at / deviation) ** 2 - log_likelihood(*found.validation, float(np.exp(at)))

        low, high = np.log(calibration.TEMPERATURES)
        return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))

    return fitted


def best_possible(found: Run) -> float:
    """The temperature that suits the test rows: what no rule can exceed."""
    return with_prior(np.inf)(replace(found, validation=found.test))


RULES: dict[str, Callable[[Run], float]] = {
    "none": lambda found: 1.0,
    "no prior": with_prior(np.inf),
    **{f"prior {deviation:g}": with_prior(deviation) for deviation in (0.1, 0.25, 0.5, 1.0)},
    "best possible": best_possible,
}


def figures(found: Run, temperature: float) -> dict[str, float]:
    task = replace(found.task, temperature=temperature)
    logits, targets = found.test
    chances = task.kind.probabilities(logits, task)
    return {
        "temperature": temperature,
        "ece": expected_calibration_error(chances, targets),
        "log_loss": log_loss(chances, targets),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--scratch", type=Path, default=Path(".calibration"))
    given = parser.parse_args()
    for seed in given.seeds:
        for name in given.sets:
            run(name, seed, given.scratch)
            print("trained", name, seed, flush=True)


if __name__ == "__main__":
    main()
