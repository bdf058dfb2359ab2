"""Texts that are too long: cut, or read in overlapping windows, in training and in prediction.

Two data sets of long texts are made of sentences of SST-2 and MRPC. The limit is so low that most of a text
is behind it:

- ``needle``: one film review among three sentences of news, at a random place; the label is the review's.
- ``majority``: five film reviews; the label is what more of them say.

For each seed and data set three adapters are trained: on cut texts, on windows, and on entire texts. The
backbone can read these in one pass, so that is what windows could reach at most. Each is tested as it was
trained; the one of cut texts also on windows; and windows also by the most certain one in place of the mean.

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
from collections.abc import Callable, Iterator, Sequence
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
EPOCHS = 5
FIRST_LAYER = 4
"""Of the demo backbone's six: the layers below run once per text."""
WAYS: dict[str, TooLong | None] = {"cut": "truncate", "windows": "windows", "entire": None}

Row = dict[str, Any]


def read(data: str, split: str) -> list[Row]:
    file = Path(os.environ["PTUNING_DATA"]) / data / f"{split}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def reviews(split: str) -> list[Row]:
    """SST-2's longer ones."""
    return [row for row in read("sst2", split) if len(row["sentence"].split()) >= 6]


def needle(split: str, draw: random.Random) -> Iterator[Row]:
    news, found = [row["sentence1"] for row in read("mrpc", split)], reviews(split)
    draw.shuffle(found)
    for review in found:
        sentences = draw.sample(news, 3)
        sentences.insert(draw.randrange(4), review["sentence"])
        yield {"text": " ".join(sentences), "label": review["label"]}


def majority(split: str, draw: random.Random) -> Iterator[Row]:
    found = reviews(split)
    while True:
        some = draw.sample(found, 5)
        text, label = " . ".join(row["sentence"] for row in some), sum(row["label"] for row in some) > 2
        yield {"text": text, "label": int(label)}


DATA: dict[str, Callable[[str, random.Random], Iterator[Row]]] = {"needle": needle, "majority": majority}


def splits_of(name: str) -> dict[str, list[Row]]:
    """The same rows for each seed. Test rows are made of test sentences, the others of training sentences."""
    learned = list(islice(DATA[name]("train", random.Random(0)), ROWS["train"] + ROWS["validation"]))
    test = list(islice(DATA[name]("test", random.Random(1)), ROWS["test"]))
    return {"train": learned[: ROWS["train"]], "validation": learned[ROWS["train"] :], "test": test}


def accuracy(logits: Tensor, rows: Sequence[Row]) -> float:
    return float((logits.argmax(1) == torch.tensor([row["label"] for row in rows])).float().mean())


def most_certain(windows: Tensor, rows: Sequence[TokenRow]) -> Tensor:
    """The logits of each row's window with the largest difference between the two."""
    parts = windows.split([len(row.windows) for row in rows])
    return torch.stack([part[(part[:, 1] - part[:, 0]).abs().argmax()] for part in parts])


def run(name: str, way: str, seed: int) -> dict[str, Any]:
    """Train one adapter, and test it."""
    data = splits_of(name)
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
    trained = time.process_time()
    examples = [Example(row=i, text=row["text"]) for i, row in enumerate(data["test"])]
    rows = Tokenise.for_model(model)(examples)
    tested = {"accuracy": accuracy(logits_of(model, rows), data["test"])}
    predicted = time.process_time()
    found = {
        "data": name,
        "way": way,
        "seed": seed,
        "test": tested,
        "validation": dict(result.metrics["validation"]),
        "windows": round(fmean(len(row.windows) for row in rows), 2),
        "tokens": round(fmean(sum(map(len, row.windows)) for row in rows), 1),
        "cpu_seconds": {"training": round(trained - began, 1), "test": round(predicted - trained, 1)},
    }
    if way != "entire":
        read_all = Tokenise.for_model(model, "windows")(examples)
        windows = logits_of(model, windows_of(read_all))
        counts = [len(row.windows) for row in read_all]
        tested["mean of windows"] = accuracy(mean_of_windows(windows, counts), data["test"])
        tested["most certain window"] = accuracy(most_certain(windows, read_all), data["test"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    if "PTUNING_DATA" not in os.environ:
        sys.exit("set PTUNING_DATA to a folder with mrpc/ and sst2/, each with train.jsonl and test.jsonl")
    found: dict[str, Any] = {
        "what": "test accuracy on texts that are too long: cut, in windows, and entire",
        "command": " ".join(["python", "benchmarks/windows.py", *sys.argv[1:]]),
        "settings": {"rows": ROWS, "limit": LIMIT, "epochs": EPOCHS, "first_layer": FIRST_LAYER},
        "majority": {},
        "runs": [],
    }
    if given.results.exists():
        found["runs"] = json.loads(given.results.read_text(encoding="utf-8"))["runs"]
    done = {(each["data"], each["way"], each["seed"]) for each in found["runs"]}
    found |= {"date": datetime.now(UTC).date().isoformat(), "machine": machine()}
    for name in given.data:
        share = fmean(row["label"] for row in splits_of(name)["test"])
        found["majority"][name] = round(max(share, 1 - share), 4)
    for seed, name, way in product(given.seeds, given.data, WAYS):
        if (name, way, seed) not in done:
            found["runs"].append(run(name, way, seed))
            write(given.results, found)
            print(json.dumps(found["runs"][-1]), flush=True)


if __name__ == "__main__":
    main()
