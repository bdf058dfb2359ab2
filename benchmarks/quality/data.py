"""The rows of a data set of the study, drawn and written as files that every method reads."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptuning.model.embedded import resolve
from quality.plan import BACKBONES, DataSet

SPLITS = ("train", "validation", "test")

Row = dict[str, Any]


def root() -> Path:
    """The folder of the data sets."""
    if "PTUNING_DATA" not in os.environ:
        sys.exit(
            "set PTUNING_DATA to a folder with mrpc/, stsb/ and sst2/, each train.jsonl, "
            "validation.jsonl and test.jsonl"
        )
    return Path(os.environ["PTUNING_DATA"])


def elsewhere() -> Path:
    """The folder of ``quality.elsewhere``'s data sets, whether or not it is there."""
    own = Path(__file__).parent.parent.parent / ".quality-elsewhere"
    return Path(os.environ.get("PTUNING_ELSEWHERE", own))


def home(data: DataSet) -> Path:
    """The folder that the data set's own folder is in."""
    return elsewhere() if data.elsewhere else root()


def loadable(backbone: str) -> str:
    """What to load for a backbone of the plan: its folder, or where MiniLM is embedded."""
    if backbone not in BACKBONES.values():
        return resolve(backbone)
    own = Path(__file__).parent.parent.parent / ".backbones"
    folder = Path(os.environ.get("PTUNING_BACKBONES", own)) / backbone
    if not folder.exists():
        sys.exit(f"{backbone} is not there; make backbones makes it")
    return str(folder)


def write_rows(data: DataSet, seed: int, source: Path, to: Path) -> dict[str, str]:
    """The three splits as JSON lines in ``to``; returns the files by split."""
    splits = {name: _read(source / data.source / f"{name}.jsonl") for name in SPLITS}
    if data.per_class is None:
        splits["train"] = splits["train"][: data.limit]
    else:
        splits["train"] = drawn(splits["train"], data.per_class, seed)
        if len(splits["validation"]) > len(
            splits["train"]
        ):  # who has few rows to learn from has no more to pick by
            splits["validation"] = drawn(splits["validation"], data.per_class, seed)
    return {name: write_lines(rows, to / f"{name}.jsonl") for name, rows in splits.items()}


def rows_of(source: str, split: str) -> list[Row]:
    """All rows of one file below ``PTUNING_DATA``."""
    return _read(root() / source / f"{split}.jsonl")


def write_lines(rows: Sequence[Row], file: Path) -> str:
    """The rows as JSON lines; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    return str(file)


def drawn(rows: Sequence[Row], per_class: int, seed: int) -> list[Row]:
    """So many rows of each class, or all that a class has, in the order they came; the seed decides which."""
    places: dict[Any, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row["label"]].append(place)
    draw = random.Random(seed)
    chosen = [
        place
        for label in sorted(places)
        for place in draw.sample(places[label], min(per_class, len(places[label])))
    ]
    return [rows[place] for place in sorted(chosen)]


def _read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
