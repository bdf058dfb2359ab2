"""Texts that are too long: cut, or read in overlapping windows, in training and in prediction.

A text is five film reviews of SST-2, and its label is what more of them say. The limit is so low that a cut
text has one or two of the five.

For each seed three adapters are trained: on cut texts, on windows, and on entire texts. The backbone can read
these in one pass, so that is what windows could reach at most. Each is tested as it was trained; the one of
cut texts also on windows; and windows also by the most certain one in place of the mean.

    PTUNING_DATA=... python benchmarks/windows.py [--seeds 0 1 2]

Runs that the result has already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice, product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from measuring import machine, write
from ptuning import DeepPrompt, FitConfig, PTuningModel, Task, fit
from ptuning.data import Example
from ptuning.data.options import TooLong
from ptuning.data.tokens import Tokenise, TokenRow, windows_of
from ptuning.inference.evaluate import logits_of
from ptuning.model.windows import mean_of_windows

RESULTS = Path(__file__).parent / "results" / "windows.json"
ROWS = {"train": 240, "validation": 80, "test": 300}
LIMIT = 32
"""Tokens of an input, special tokens included."""
EPOCHS = 4
FIRST_LAYER = 4
"""Of the demo backbone's six: the layers below run once per text."""
WAYS: dict[str, TooLong | None] = {"cut": "truncate", "windows": "windows", "entire": None}

Row = dict[str, Any]


def read(data: str, split: str) -> list[Row]:
    file = Path(os.environ["PTUNING_DATA"]) / data / f"{split}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def texts(split: str, seed: int) -> Iterator[Row]:
    """Texts of five of SST-2's longer reviews."""
    draw = random.Random(seed)
    found = [row for row in read("sst2", split) if len(row["sentence"].split()) >= 6]
    while True:
        some = draw.sample(found, 5)
        text, label = " . ".join(row["sentence"] for row in some), sum(row["label"] for row in some) > 2
        yield {"text": text, "label": int(label)}


def splits() -> dict[str, list[Row]]:
    """The same rows for each seed. Test rows are made of test sentences, the others of training sentences."""
    learned = list(islice(texts("train", 0), ROWS["train"] + ROWS["validation"]))
    test = list(islice(texts("test", 1), ROWS["test"]))
    return {"train": learned[: ROWS["train"]], "validation": learned[ROWS["train"] :], "test": test}


def accuracy(logits: Tensor, rows: Sequence[Row]) -> float:
    return round(float((logits.argmax(1) == torch.tensor([row["label"] for row in rows])).double().mean()), 4)


def most_certain(windows: Tensor, rows: Sequence[TokenRow]) -> Tensor:
    """The logits of each row's window with the largest difference between the two."""
    parts = windows.split([len(row.windows) for row in rows])
    return torch.stack([part[(part[:, 1] - part[:, 0]).abs().argmax()] for part in parts])


def run(way: str, seed: int) -> dict[str, Any]:
    """Train one adapter, and test it."""
    data = splits()
    task = Task(
        problem_type="single_label_classification",
        labels=(0, 1),
        max_length=None if way == "entire" else LIMIT,
    )
    torch.manual_seed(seed)
    prompt = DeepPrompt(num_virtual_tokens=20, first_layer=FIRST_LAYER, position_offset=0)
    model = PTuningModel.from_backbone("demo", prompt, task=task)
    began = time.process_time()
    result = fit(
        model,
        {"train": data["train"], "validation": data["validation"]},
        FitConfig(num_train_epochs=EPOCHS, seed=seed),
        columns={"too_long": WAYS[way]},
    )
    seconds = time.process_time() - began
    examples = [Example(row=i, text=row["text"]) for i, row in enumerate(data["test"])]
    own = Tokenise.for_model(model)(examples)
    found: dict[str, Any] = {
        "way": way,
        "seed": seed,
        "test": {},
        "validation": {name: round(value, 4) for name, value in result.metrics["validation"].items()},
        "windows": round(fmean(len(row.windows) for row in own), 2),
        "tokens": round(fmean(sum(map(len, row.windows)) for row in own), 1),
        "training_cpu_seconds": round(seconds, 1),
    }
    if way != "windows":
        found["test"]["accuracy"] = accuracy(logits_of(model, own), data["test"])
    if way != "entire":
        rows = Tokenise.for_model(model, "windows")(examples)
        windows = logits_of(model, windows_of(rows))
        mean = mean_of_windows(windows, [len(row.windows) for row in rows])
        found["test"]["mean of windows"] = accuracy(mean, data["test"])
        found["test"]["most certain window"] = accuracy(most_certain(windows, rows), data["test"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    if "PTUNING_DATA" not in os.environ:
        sys.exit("set PTUNING_DATA to a folder with sst2/train.jsonl and sst2/test.jsonl")
    share = fmean(row["label"] for row in splits()["test"])
    found: dict[str, Any] = {
        "what": "test accuracy on texts that are too long: cut, in windows, and entire",
        "command": "python benchmarks/windows.py",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "settings": {"rows": ROWS, "limit": LIMIT, "epochs": EPOCHS, "first_layer": FIRST_LAYER},
        "majority": round(max(share, 1 - share), 4),
        "runs": [],
    }
    if given.results.exists():
        found["runs"] = json.loads(given.results.read_text(encoding="utf-8"))["runs"]
    done = {(each["way"], each["seed"]) for each in found["runs"]}
    for seed, way in product(given.seeds, given.ways):
        if (way, seed) not in done:
            found["runs"].append(run(way, seed))
            write(given.results, found)
            print(json.dumps(found["runs"][-1]), flush=True)


if __name__ == "__main__":
    main()
