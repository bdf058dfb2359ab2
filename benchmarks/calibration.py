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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from ptuning.calibration import expected_calibration_error, f1_threshold, log_loss
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
    kept = _kept(name, seed, scratch)
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


def _kept(name: str, seed: int, scratch: Path) -> Path:
    return scratch / f"{name}-{seed}.npz"


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
    arrays: dict[str, Any] = {}
    for split in splits:
        loaded = load_examples(str(folder / f"{split}.jsonl"), pair=model.task.pair, task=model.task)
        made = tokenised(model, loaded.examples)
        if split == "train":
            shares = model.task.kind.constant_answer(made.targets, model.task).shares
            arrays["shares"] = np.array(shares)
        else:
            arrays[f"{split}_logits"] = score(model, made).logits.double().numpy()
            arrays[f"{split}_targets"] = made.targets
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(kept, task=json.dumps(model.task.to_dict()), **arrays)


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


RULES: dict[str, Callable[[Run], float]] = {
    "no prior": with_prior(np.inf),
    **{f"prior {deviation:g}": with_prior(deviation) for deviation in (0.1, 0.25, 0.35, 0.5, 1.0)},
}


def figures(found: Run, temperature: float) -> dict[str, float]:
    """Of the test rows."""
    task = replace(found.task, temperature=temperature)
    logits, targets = found.test
    chances = task.kind.probabilities(logits, task)
    return {
        "temperature": temperature,
        "ece": expected_calibration_error(chances, targets),
        "log_loss": log_loss(chances, targets),
    }


def draws(found: Run) -> Iterator[tuple[int, Run]]:
    """Runs with fewer validation rows, and their number."""
    logits, targets = found.validation
    for rows, count in ROWS.items():
        for number in range(count):
            drawn = np.random.default_rng(number).permutation(len(logits))[:rows]
            yield rows, replace(found, validation=(logits[drawn], targets[drawn]))


def rules(found: Run) -> list[dict[str, Any]]:
    """What each rule makes of the test rows, by number of validation rows: means over the draws, and harm."""
    before = figures(found, 1.0)["log_loss"]
    several: dict[tuple[int, str], list[dict[str, float]]] = {}
    for rows, drawn in draws(found):
        for rule, fit in RULES.items():
            several.setdefault((rows, rule), []).append(figures(found, fit(drawn)))
    return [
        {
            "rows": rows,
            "rule": rule,
            **{name: fmean(each[name] for each in all_of) for name in ("temperature", "ece", "log_loss")},
            "harmed": fmean(each["log_loss"] > before for each in all_of),
            "worst_change": max(each["log_loss"] - before for each in all_of),
        }
        for (rows, rule), all_of in several.items()
    ]


def thresholds(found: Run) -> list[dict[str, Any]]:
    """F1 on the test rows, by number of validation rows and of positives that a label must have."""
    logits, targets = found.test
    several: dict[tuple[int, int], list[dict[str, float]]] = {}
    for rows, drawn in draws(found):
        fitted = found.task.kind.calibrated(*drawn.validation, found.task)
        chances, truth = fitted.kind.probabilities(drawn.validation[0], fitted), drawn.validation[1]
        for least in (1, 5, 10, 20):
            own = tuple(f1_threshold(*label, least) for label in zip(chances.T, truth.T, strict=True))
            task = replace(fitted, thresholds=own)
            several.setdefault((rows, least), []).append(task.kind.measure(logits, targets, task))
    names = found.task.kind.threshold_metrics
    return [
        {"rows": rows, "positives": least, **{name: fmean(each[name] for each in all_of) for name in names}}
        for (rows, least), all_of in several.items()
    ]


def without_weights(found: Run) -> Run:
    """The run with logits as they would be without balanced class weights: less by the logarithm of each."""
    shift = -np.log(found.shares)
    (validation, one), (test, other) = found.validation, found.test
    return replace(found, validation=(validation - shift, one), test=(test - shift, other))


def summary(name: str, seed: int, found: Run) -> dict[str, Any]:
    """The figures of one run."""
    best = with_prior(np.inf)(replace(found, validation=found.test))
    made: dict[str, Any] = {
        "set": name,
        "seed": seed,
        "before": figures(found, 1.0),
        "best_possible": figures(found, best),
        "rules": rules(found),
    }
    if found.test[1].ndim == 2:
        made["metrics_before"] = found.task.kind.measure(*found.test, found.task)
        made["thresholds"] = thresholds(found)
    if SOURCES[name].fit.get("class_weights") == "balanced":
        plain = without_weights(found)
        made["without_weights"] = figures(plain, with_prior(calibration.PRIOR_DEVIATION)(plain))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sets", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--scratch", type=Path, default=Path(".calibration"))
    parser.add_argument("--trained", action="store_true", help="only runs that are in --scratch already")
    given = parser.parse_args()
    runs = []
    for seed in given.seeds:
        for name in given.sets:
            if given.trained and not _kept(name, seed, given.scratch).is_file():
                continue
            runs.append(summary(name, seed, run(name, seed, given.scratch)))
            print(f"{name}, seed {seed}", flush=True)
    print(as_table(runs))
    command = f"python benchmarks/calibration.py --seeds {' '.join(map(str, given.seeds))}"
    write(
        RESULTS,
        {
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "rows": {"training": TRAINING, "validation": VALIDATION, "test": TEST},
            "runs": runs,
        },
    )


def of_rule(found: Mapping[str, Any], rows: int, rule: str) -> Mapping[str, Any]:
    """The entry of a run for a number of validation rows and a rule."""
    return next(each for each in found["rules"] if (each["rows"], each["rule"]) == (rows, rule))


def as_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The docs' table: the change of log loss and calibration error, means over the runs of a set."""
    lines = []
    for name in dict.fromkeys(each["set"] for each in runs):
        own = [each for each in runs if each["set"] == name]
        for rows in ROWS:
            found = [of_rule(each, rows, f"prior {calibration.PRIOR_DEVIATION:g}") for each in own]
            free = [of_rule(each, rows, "no prior") for each in own]
            changes = [
                f"{fmean(each['before'][figure] for each in own):.3f} → {fmean(r[figure] for r in found):.3f}"
                for figure in ("ece", "log_loss")
            ]
            cells = [
                name,
                str(rows),
                f"{fmean(each['temperature'] for each in found):.2f}",
                *changes,
                f"{fmean(each['harmed'] for each in found):.0%}",
                f"{max(each['worst_change'] for each in found):+.3f}",
                f"{fmean(each['log_loss'] for each in free):.3f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
