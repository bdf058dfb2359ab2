"""What was tried for the default recipe: a trial's options, its rows, and the results that were recorded.

Test rows are not read. Development rows are, for MRPC, 800 training rows that are set aside and the
validation rows; for SST-2, which learns from its first 10,000 training rows, the validation rows and the
training rows from 20,000 to 21,500; for STS-B, the validation rows. ``SOURCE-N`` learns from N rows of each
class (of STS-B from 2N rows), drawn by the seed; the development rows are always the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quality.data import rows_of

TRIALS = Path(__file__).parent / "results" / "recipe-trials.jsonl"
"""The results of the prototype, which is no longer here: docs/trials.md says where it is."""
METRICS = {"mrpc": "accuracy", "stsb": "pearson", "sst2": "accuracy"}
INITS = ("normal", "words", "sep", "cls", "names")
SCHEDULES = ("linear", "cosine", "constant")
POOLINGS = ("native", "cls", "mean", "meanpool", "both", "layers")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything that decides a training.

    Attributes:
        data: ``mrpc``, ``stsb`` or ``sst2``, or ``SOURCE-N`` for few rows.
        rate: The prompt's peak rate.
        warmup: The share of the steps in which the rates rise.
        schedule: How they fall: ``linear``, ``cosine``, or not at all: ``constant``.
        init: What the prompt begins as: ``normal:0.5`` with that deviation, or the backbone's own keys and
            values of real ``words``, of ``sep``, of ``cls`` or of the classes' ``names``, with noise if a
            deviation is given.
        values_from_nought: The values begin at 0.
        normalised_keys: The keys keep the length that they begin with; their direction is learned.
        low_rank: The width of a low-rank reparameterisation that is added to the prompt (residual prompt
            tuning, arXiv:2305.03937); 0 for none.
        instance: The width of a network that adds to the first virtual token of every layer what it makes
            of the text's mean in the frozen backbone (instance-dependent prompts, arXiv:2204.04497); 0 for
            none.
        offset_rank: The rank of what is added to the word embeddings by their place (decomposed prompt
            tuning, arXiv:2309.05173); 0 for none.
        added_share: What the last three learn at, as a share of the prompt's rate.
        pooling: What the head reads: [CLS] through BERT's pooler (``native``) or without it (``cls``), the
            mean of the text's tokens through the pooler (``meanpool``; ptuning's ``mean``) or without it
            (``mean``), ``native`` beside that mean (``both``), or ptuning's mix of ``layers``.
        average: The decay of an exponential moving average of the trained numbers; 0 for none.
        dropout: The backbone's.
        prompt_dropout: The share of the virtual tokens that a step leaves out.
        prompt_noise: The deviation of what a step adds to the prompt.
        sharpness: How far a step climbs before it takes the gradient that it goes down by (sharpness-aware
            minimisation, arXiv:2010.01412); 0 for not at all.
        position_offset: Of the text; if left out, P where every layer has a prompt, otherwise 0.
        looks: Evaluations in the run. They and the average leave the training as it is.
    """

    data: str = "mrpc"
    seed: int = 0
    virtual_tokens: int = 20
    first_layer: int = 0
    rate: float = 1e-2
    head_rate: float = 1e-3
    epochs: int = 8
    batch_size: int = 16
    weight_decay: float = 0.0
    warmup: float = 0.06
    schedule: str = "linear"
    init: str = "normal:0.5"
    values_from_nought: bool = False
    normalised_keys: bool = False
    low_rank: int = 0
    instance: int = 0
    offset_rank: int = 0
    added_share: float = 1.0
    pooling: str = "native"
    average: float = 0.0
    label_smoothing: float = 0.0
    dropout: float = 0.0
    prompt_dropout: float = 0.0
    prompt_noise: float = 0.0
    sharpness: float = 0.0
    position_offset: int | None = None
    looks: int = 8

    def __post_init__(self) -> None:
        for name, got, known in (
            ("data", self.source, tuple(METRICS)),
            ("init", self.init.partition(":")[0], INITS),
            ("pooling", self.pooling, POOLINGS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if got not in known:
                raise ValueError(f"{name} is {got!r}; expected one of {', '.join(known)}")

    @property
    def source(self) -> str:
        """The folder of its rows."""
        return self.data.partition("-")[0]

    @property
    def metric(self) -> str:
        """What it is judged by."""
        return METRICS[self.source]


def _lines(source: str, split: Literal["train", "validation"]) -> list[dict[str, Any]]:
    """Rows of a file. The test rows have no name here."""
    assert split in ("train", "validation")
    return rows_of(source, split)


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
