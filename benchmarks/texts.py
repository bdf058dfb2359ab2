"""The rows that are measured on, tokenised once and the same for every side."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from ptuning.data.tokens import segments_of

COLUMNS = {"mrpc": ("sentence1", "sentence2"), "sst2": ("sentence",)}
"""The text columns of each data set below ``PTUNING_DATA``."""

Row = dict[str, Any]


def root() -> Path:
    """The folder of the data sets."""
    if "PTUNING_DATA" not in os.environ:
        sys.exit("set PTUNING_DATA to a folder with mrpc/ and sst2/, each train.jsonl and test.jsonl")
    return Path(os.environ["PTUNING_DATA"])


def count(data: str, split: str = "train") -> int:
    """How many rows a split has."""
    with (root() / data / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return sum(1 for _ in lines)


def rows_of(data: str, split: str, wanted: int, tokenizer: Any, *, segments: bool) -> list[Row]:
    """``wanted`` rows, drawn by a fixed seed, as token ids with ``segment_ids`` for placements between texts.

    Args:
        data: A key of :data:`COLUMNS`.
        split: ``train`` or ``test``.
        wanted: How many rows; all of them if there are fewer.
        tokenizer: The backbone's.
        segments: Whether the backbone reads ``token_type_ids``.
    """
    lines = (root() / data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = random.Random(0).sample(lines, min(wanted, len(lines)))
    given = [json.loads(line) for line in drawn]
    texts = [[row[column] for row in given] for column in COLUMNS[data]]
    encoded = tokenizer(*texts, truncation=True, return_token_type_ids=segments, verbose=False)
    return [
        {
            **{name: values[i] for name, values in encoded.items()},
            "segment_ids": segments_of(encoded.sequence_ids(i)),
            "labels": row["label"],
        }
        for i, row in enumerate(given)
    ]


def made_rows(wanted: int, length: int, vocabulary: int, *, first: int = 5) -> list[Row]:
    """Rows of exactly ``length`` random tokens, none of them a special one."""
    draw = random.Random(0)
    return [
        {
            "input_ids": [draw.randrange(first, vocabulary) for _ in range(length)],
            "attention_mask": [1] * length,
            "segment_ids": [0] * length,
            "labels": number % 2,
        }
        for number in range(wanted)
    ]
