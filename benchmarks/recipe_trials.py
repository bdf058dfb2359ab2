"""What was tried for the default recipe: deep prompts on MiniLM, one training a line of the results.

The mathematics is a prototype's (``recipe_prototype.py`` and the loop below), independent of ptuning's
engine, so that a switch could be tried before it was an option; only the backbone's loading is ptuning's.

Test rows are not read. Development rows are, for MRPC, 800 training rows that are set aside and the
validation rows; for SST-2, which learns from its first 10,000 training rows, the validation rows and the
training rows from 20,000 to 21,500; for STS-B, the validation rows. ``SOURCE-N`` learns from N rows of each
class (of STS-B from 2N rows), drawn by the seed; the development rows are always the same.

There is no plan: what came next was decided by what had been found, so the results say what was run::

    export PTUNING_DATA=folder   # with train.jsonl and validation.jsonl in each of mrpc/, stsb/ and sst2/
    python benchmarks/recipe_trials.py                 # the trials that were run, numbered
    python benchmarks/recipe_trials.py --again 12      # number 12 once more: are its figures the same?
    python benchmarks/recipe_trials.py --set data=sst2-100 epochs=24 init=normal:0.2,words seed=0,1

The last one runs every combination that the results do not have yet, and appends each as it ends. One thread.
The same trial gives the same figures, on the same machine and versions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from measuring import machine
from ptuning.model.loading import hold
from quality import revision
from quality_data import root
from quality_records import append, read
from recipe_prototype import METRICS, MOST_TOKENS, Affine, Batch, Bert, Learner, Trial

RESULTS = Path(__file__).parent / "results" / "recipe-trials.jsonl"
CLIP = 1.0
NAMES = {"sst2": "negative positive", "mrpc": "different equivalent", "stsb": "different equivalent"}
"""What the classes mean."""


# ----------------------------------------------------------------------------------------------- rows


class Rows(NamedTuple):
    """Ids and segments of each row, and the targets."""

    tokens: list[tuple[list[int], list[int]]]
    targets: NDArray[np.float64]

    def batch(self, places: Sequence[int]) -> Batch:
        """Rows padded behind."""
        longest = max(len(self.tokens[i][0]) for i in places)
        ids = torch.zeros(len(places), longest, dtype=torch.long)
        types, mask = torch.zeros_like(ids), torch.zeros(len(places), longest)
        for row, i in enumerate(places):
            own, segments = self.tokens[i]
            ids[row, : len(own)], types[row, : len(own)] = torch.tensor(own), torch.tensor(segments)
            mask[row, : len(own)] = 1
        return Batch(ids, types, mask)

    def shuffled(self, size: int, rng: np.random.Generator, window: int = 50) -> list[list[int]]:
        """Batches of rows of similar length."""
        order = rng.permutation(len(self.tokens)).tolist()
        found: list[list[int]] = []
        for begin in range(0, len(order), window * size):
            near = sorted(order[begin : begin + window * size], key=lambda i: len(self.tokens[i][0]))
            found += [near[i : i + size] for i in range(0, len(near), size)]
        rng.shuffle(found)
        return found


def _lines(source: str, split: Literal["train", "validation"]) -> list[dict[str, Any]]:
    """Rows of a file. The test rows have no name here."""
    assert split in ("train", "validation")
    text = (root() / source / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def examples(source: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All rows to learn from, and the development rows."""
    train, development = _lines(source, "train"), _lines(source, "validation")
    if source == "mrpc":
        order = np.random.default_rng(7).permutation(len(train))
        development = [train[i] for i in order[:800]] + development
        train = [train[i] for i in order[800:]]
    elif source == "sst2":
        development, train = development + train[20_000:21_500], train[:10_000]
    return train, development


def drawn(data: str, seed: int, targets: NDArray[np.float64]) -> list[int]:
    """Which of the rows to learn from ``SOURCE-N`` is, or all of them."""
    source, _, count = data.partition("-")
    if not count:
        return list(range(len(targets)))
    rng = np.random.default_rng(100 + seed)
    if METRICS[source] == "pearson":
        return list(map(int, rng.choice(len(targets), 2 * int(count), replace=False)))
    classes = [np.flatnonzero(targets == each) for each in (0.0, 1.0)]
    return [i for own in classes for i in rng.choice(own, int(count), replace=False).tolist()]


@cache
def _whole(source: str, backbone: str) -> tuple[Rows, Rows]:
    train, development = examples(source)
    return _tokenised(train, backbone), _tokenised(development, backbone)


def _tokenised(rows: Sequence[dict[str, Any]], backbone: str) -> Rows:
    pair = "sentence2" in rows[0]
    first, second = ("sentence1", [row["sentence2"] for row in rows]) if pair else ("sentence", None)
    made = loaded(backbone)[1]([row[first] for row in rows], second, truncation=True, max_length=MOST_TOKENS)
    tokens = list(zip(made["input_ids"], made["token_type_ids"], strict=True))
    return Rows(tokens, np.array([float(row["label"]) for row in rows]))


def rows_of(trial: Trial, backbone: str = "demo") -> tuple[Rows, Rows]:
    """What is learned from, and the development rows; scores are scaled by those that are learned from."""
    (tokens, targets), development = _whole(trial.source, backbone)
    chosen = drawn(trial.data, trial.seed, targets)
    tokens, targets = [tokens[i] for i in chosen], targets[chosen]
    mean, deviation = (targets.mean(), targets.std()) if trial.metric == "pearson" else (0.0, 1.0)
    scaled = (development.targets - mean) / deviation
    return Rows(tokens, (targets - mean) / deviation), Rows(development.tokens, scaled)


# ------------------------------------------------------------------------------------------- training


@cache
def loaded(backbone: str = "demo", dtype: torch.dtype = torch.bfloat16) -> tuple[Bert, Any]:
    """The frozen backbone and its tokenizer."""
    held, tokenizer = hold(backbone, 2, "single_label_classification", None, None, torch.float32)
    return Bert(held, dtype), tokenizer


def start_of(trial: Trial, bert: Bert, tokenizer: Any, rows: Rows, rng: np.random.Generator) -> Tensor:
    """What the prompt begins as, ``[layers, 2, heads, P, D]``."""
    how, _, deviation = trial.init.partition(":")
    shape = (bert.layers - trial.first_layer, 2, bert.heads, trial.virtual_tokens, bert.head_width)
    if how == "normal":
        start = torch.randn(shape) * float(deviation)
    else:
        if how == "names":
            named = tokenizer(NAMES[trial.source])
            rows = Rows([(named["input_ids"], named["token_type_ids"])], np.zeros(1))
        start = _own(trial.virtual_tokens, how, bert, tokenizer, rows, rng)[trial.first_layer :]
        if deviation:
            start = start + torch.randn_like(start) * float(deviation)
    if trial.values_from_nought:
        start[:, 1] = 0
    return start


@torch.no_grad()
def _own(count: int, how: str, bert: Bert, tokenizer: Any, rows: Rows, rng: np.random.Generator) -> Tensor:
    """The backbone's own keys and values of so many tokens of 64 rows, or of the classes' names."""
    batch, own = rows.batch(rng.choice(len(rows.tokens), 64).tolist()), list[Affine]()
    bert.hidden_states(batch, own=own)
    sep, cls = batch.ids == tokenizer.sep_token_id, batch.ids == tokenizer.cls_token_id
    words = batch.mask.bool() & ~sep & ~cls
    found = {"sep": sep, "cls": cls, "words": words, "names": words}[how].nonzero()
    row, place = found[rng.choice(len(found), count, replace=len(found) < count)].T
    # Advanced indices on both sides of a slice come first: [P, heads, D].
    kept = [[part[row, :, place].float().transpose(0, 1) for part in layer] for layer in own]
    return torch.stack([torch.stack(layer) for layer in kept])


def run(trial: Trial, backbone: str = "demo") -> dict[str, Any]:
    """Train and evaluate; a line of the results."""
    bert, tokenizer = loaded(backbone)
    train, development = rows_of(trial, backbone)
    torch.manual_seed(trial.seed)
    rng = np.random.default_rng(trial.seed)
    start = start_of(trial, bert, tokenizer, train, rng)
    learner = Learner(trial, bert, 1 if trial.metric == "pearson" else 2, start)
    rates = [rate for _, rate in learner.groups]
    optimizer = torch.optim.AdamW(
        [{"params": group} for group, _ in learner.groups], weight_decay=trial.weight_decay
    )
    average = [each.detach().clone() for each in learner.parameters]
    steps, step = trial.epochs * math.ceil(len(train.tokens) / trial.batch_size), 0
    history: list[dict[str, Any]] = []
    losses: list[float] = []
    begun = time.process_time()
    for epoch in range(1, trial.epochs + 1):
        for places in train.shuffled(trial.batch_size, rng):
            factor = _factor(trial, step, steps)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            loss = _loss(learner, train, places)
            loss.backward()
            if trial.sharpness:
                with _climbed(learner.parameters, trial.sharpness):
                    _loss(learner, train, places).backward()
            torch.nn.utils.clip_grad_norm_(learner.parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            losses.append(loss.item())
            decay = min(trial.average, step / (step + 10))
            for mean, each in zip(average, learner.parameters, strict=True):
                mean.lerp_(each.detach(), 1 - decay)
        if epoch % max(1, trial.epochs // trial.looks) == 0 or epoch == trial.epochs:
            look = {"epoch": epoch, "train_loss": round(sum(losses) / len(losses), 4)}
            history.append(look | evaluated(learner, development))
            if trial.average:
                history[-1]["average"] = _with(average, learner, development)
            losses.clear()
    last = history[-1]
    return {
        "trial": asdict(trial),
        "last": {name: last[name] for name in (trial.metric, "loss")},
        "average": last.get("average"),
        "history": history,
        "rows": {
            "train": len(train.tokens),
            "development": len(development.tokens),
            "constant": constant(trial, development),
        },
        "cpu_seconds": round(time.process_time() - begun, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "revision": revision(),
        "machine": machine(),
    }


def _loss(learner: Learner, rows: Rows, places: Sequence[int]) -> Tensor:
    """Of a batch, in training."""
    logits = learner.logits(rows.batch(places), training=True)
    target = torch.from_numpy(rows.targets[places])
    if learner.trial.metric == "pearson":
        return ((logits[:, 0] - target).float() ** 2).mean()
    return F.cross_entropy(logits, target.long(), label_smoothing=learner.trial.label_smoothing)


@contextmanager
def _climbed(parameters: Sequence[nn.Parameter], way: float) -> Iterator[None]:
    """The numbers so far up their gradient, which is forgotten; then again where they were."""
    before = [each.detach().clone() for each in parameters]
    with torch.no_grad():
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        norm = torch.stack([each.norm() for each in gradients]).norm().clamp(min=1e-12)
        for each, gradient in zip(parameters, gradients, strict=True):
            each.add_(gradient, alpha=float(way / norm))
            each.grad = None
    yield
    with torch.no_grad():
        for each, kept in zip(parameters, before, strict=True):
            each.copy_(kept)


def constant(trial: Trial, rows: Rows) -> float:
    """The metric of the best answer that is always the same; no correlation with it is 0."""
    if trial.metric == "pearson":
        return 0.0
    return round(float(np.bincount(rows.targets.astype(int)).max() / len(rows.targets)), 4)


@torch.no_grad()
def evaluated(learner: Learner, rows: Rows) -> dict[str, float]:
    """The metric and the loss."""
    metric = learner.trial.metric
    order = sorted(range(len(rows.tokens)), key=lambda i: len(rows.tokens[i][0]))
    logits = torch.empty(len(order), len(learner.bias))
    for begin in range(0, len(order), 64):
        places = order[begin : begin + 64]
        logits[places] = learner.logits(rows.batch(places))
    if metric == "pearson":
        scores = logits[:, 0].numpy()
        figure = float(np.corrcoef(scores, rows.targets)[0, 1])
        loss = float(((scores - rows.targets) ** 2).mean())
    else:
        target = torch.from_numpy(rows.targets).long()
        figure = float((logits.argmax(1) == target).float().mean())
        loss = float(F.cross_entropy(logits, target))
    return {metric: round(figure, 4), "loss": round(loss, 4)}


def _factor(trial: Trial, step: int, steps: int) -> float:
    """What the rates are multiplied by."""
    warm = trial.warmup * steps
    rise, done = min(1.0, (step + 1) / max(warm, 1)), max(0.0, (step - warm) / max(1, steps - warm))
    falls = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
    return rise * falls[trial.schedule]


def _with(numbers: Sequence[Tensor], learner: Learner, rows: Rows) -> dict[str, float]:
    """The learner evaluated with other numbers than its own."""
    kept = [each.detach().clone() for each in learner.parameters]
    try:
        for each, other in zip(learner.parameters, numbers, strict=True):
            each.data.copy_(other)
        return evaluated(learner, rows)
    finally:
        for each, own in zip(learner.parameters, kept, strict=True):
            each.data.copy_(own)


# --------------------------------------------------------------------------------------- command line


def combinations(words: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of ``key=value[,value …]``."""
    values = {}
    for word in words:
        name, _, listed = word.partition("=")
        values[name] = [_value(each) for each in listed.split(",")]
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


def _value(text: str) -> Any:
    """A number or ``true`` and its like as JSON has them; anything else is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def said(record: dict[str, Any]) -> str:
    """For people: what was not left as it is, and the figures."""
    usual = asdict(Trial())
    changed = [f"{name}={value}" for name, value in record["trial"].items() if value != usual[name]]
    figures = " ".join(f"{name} {value}" for name, value in record["last"].items())
    if average := record["average"]:
        figures += f" (average: {' '.join(f'{name} {value}' for name, value in average.items())})"
    return f"{' '.join(changed)}: {figures}, {record['cpu_seconds']} s"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--set", nargs="+", metavar="KEY=VALUE[,VALUE]", help="trials to run and append")
    what.add_argument("--again", type=int, metavar="N", help="run number N again, and compare")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    records = read(given.results)
    if given.again is not None:
        if not 1 <= given.again <= len(records):
            parser.error(f"--again is {given.again}; expected 1 to {len(records)}, a line of the results")
        before = records[given.again - 1]
        now = run(Trial(**before["trial"]))
        same = all(now[name] == before[name] for name in ("last", "average", "history"))
        print(f"then: {said(before)}\nnow:  {said(now)}\nevery figure the same: {'yes' if same else 'no'}")
    elif given.set:
        try:
            trials = [Trial(**each) for each in combinations(given.set)]
        except (TypeError, ValueError) as error:
            parser.error(str(error))
        done = {Trial(**record["trial"]) for record in records}
        for trial in trials:
            if trial not in done:
                record = run(trial)
                append(record, given.results)
                print(said(record), flush=True)
    else:
        for number, record in enumerate(records, 1):
            print(f"{number:3} {said(record)}")


if __name__ == "__main__":
    main()
