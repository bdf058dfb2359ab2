"""What can be read off a decoder's last token, by the words behind the text.

The share of a constant answer's loss that a linear head removes on the untrained model, by cross-validation
on training rows (``ptuning.training.head_init.explained``). Single texts are read as they are and behind
several words; pairs both together and each text for itself (pooling ``similarity``)::

    export PTUNING_DATA=folder   # with sst2/, mrpc/ and stsb/; make quality-elsewhere gets the newsgroups
    python benchmarks/words.py --backbone FOLDER [--data sst2 newsgroups mrpc stsb]

Each data set is a line of the results; docs/recipes.md shows the last ones.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ptuning import DeepPrompt, PTuningModel
from ptuning.model.config import Pooling
from ptuning.training.config import DataConfig
from ptuning.training.head_init import explained
from ptuning.training.prepare import read, tokenised
from quality.data import home, write_rows
from quality.plan import DataSet, data_set
from quality.records import append
from runs import Table, provenance

RESULTS = Path(__file__).parent / "results" / "words.jsonl"
DATA: Mapping[str, DataSet] = {
    "sst2": data_set("sst2-100"),
    "newsgroups": data_set("newsgroups"),
    "mrpc": data_set("mrpc-100"),
    "stsb": data_set("stsb"),
}
MOST_TEXTS = 600
"""Rows take two texts if they are pairs; of more, a sample, as STS-B's are sorted by where they come from."""
NAMES = {
    "sst2": "SST-2, 200 rows",
    "newsgroups": "newsgroups, 600",
    "mrpc": "MRPC, 200",
    "stsb": "STS-B, 300",
}


class Way(NamedTuple):
    """How texts are read."""

    pooling: Pooling
    template: str | None


WORDS = ("{text}\n", "{text} It was", "{text}\nThis text is", "{text}\nIn one word:")
SINGLE = (Way("native", None), *(Way("native", words) for words in WORDS))
PAIRS = (
    Way("native", None),
    Way("native", "{text_a}\n{text_b}\nIn one word:"),
    Way("similarity", None),
    *(Way("similarity", words) for words in WORDS),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", required=True, help="a decoder")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    for name in given.data:
        found = shares(given.backbone, DATA[name])
        record = {
            "backbone": Path(given.backbone).name,
            "data": name,
            "shares": found,
            **provenance(),
        }
        append(record, given.results)
        for each in found:
            print(
                f"{name:10} {each['pooling']:10} {each['template']!r:40} {each['explained']:.3f}", flush=True
            )


def shares(backbone: str, data: DataSet) -> list[dict[str, Any]]:
    """The explained share for each :class:`Way` of reading the rows of ``data``."""
    with tempfile.TemporaryDirectory() as scratch:
        files = write_rows(data, 0, home(data), Path(scratch))
        examples, task = read(DataConfig(**files), seed=0)
    rows, most = examples.train, MOST_TEXTS // (2 if task.pair else 1)
    rows = rows if len(rows) <= most else random.Random(0).sample(rows, most)
    found = []
    for way in PAIRS if task.pair else SINGLE:
        torch.manual_seed(0)
        model = PTuningModel.from_backbone(backbone, DeepPrompt(**way._asdict()), task=task)
        share = explained(model, tokenised(model, rows))
        found.append({**way._asdict(), "explained": share})
    return found


def table(markdown: Table, records: Sequence[Mapping[str, Any]]) -> str:
    """The last result of each data set: one table for single texts and one for pairs."""
    last = {record["data"]: record for record in records}
    parts = []
    for ways, title in ((SINGLE, "single texts"), (PAIRS, "pairs")):
        names = [
            name for name in DATA if name in last and len(last[name]["shares"]) == len(ways)
        ]  # the two differ in how many ways there are
        rows = [
            (_said(way), *(f"{last[name]['shares'][at]['explained']:.3f}" for name in names))
            for at, way in enumerate(ways)
        ]
        if names:
            parts.append(markdown((title, *(NAMES[name] for name in names)), rows))
    return "\n\n".join(parts) or "Not run yet."


def _said(way: Way) -> str:
    words = "nothing" if way.template is None else f"`{way.template!r}`".replace("'", "")
    return f"{words}, each text for itself" if way.pooling == "similarity" else words


if __name__ == "__main__":
    main()
