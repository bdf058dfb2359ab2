"""What the parts share: the backbone, real texts, adapter folders, a classifier. Each is made once."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ptuning.model import Backbone
from ptuning.model.loading import load_backbone, load_tokenizer
from serving import tasks
from serving.plan import Plan
from texts import COLUMNS, root

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Lab:
    """Where a run works.

    Args:
        plan: How much is measured.
        scratch: A folder; what is in it already is used.
        model: The backbone's folder, or ``demo`` for MiniLM.
        data: Texts to use in place of the real data sets; for pairs, each is its own second text.
    """

    plan: Plan
    scratch: Path
    model: str = "demo"
    data: tuple[str, ...] = ()

    def backbone(self, precision: str) -> Backbone:
        """A fresh one."""
        backbone, _ = load_backbone(self.model, None, None, None, None, DTYPES[precision], None, False)
        return backbone

    @cached_property
    def precision(self) -> str:
        """The one in which this machine is faster, from a product of a feed-forward network."""
        rates = {name: _rate(dtype) for name, dtype in DTYPES.items()}
        return max(rates, key=lambda name: rates[name])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's."""
        return load_tokenizer(self.model, None, None)

    def rows(self, data: str, split: str = "test") -> list[Any]:
        """Texts of ``sst2``, pairs of texts of ``mrpc``."""
        if self.data:
            return [(text, text) for text in self.data] if len(COLUMNS[data]) == 2 else list(self.data)
        lines = (root() / data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        given = [tuple(json.loads(line)[column] for column in COLUMNS[data]) for line in lines]
        return [row if len(row) == 2 else row[0] for row in given]

    def labelled(self, data: str, split: str) -> list[tuple[str, int]]:
        """Single texts with the numbers of their classes."""
        if self.data:
            return [(text, number % 2) for number, text in enumerate(self.data)]
        lines = (root() / data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        given = [json.loads(line) for line in random.Random(0).sample(lines, min(2000, len(lines)))]
        (column,) = COLUMNS[data]
        return [(row[column], row["label"]) for row in given]

    @cached_property
    def texts(self) -> str:
        """A file with the single texts of the load generator."""
        file = self.scratch / "texts.json"
        file.write_text(json.dumps(self.rows("sst2")))
        return str(file)

    def adapters(self, count: int, first: int = 0) -> Path:
        """A folder of ``count`` adapters for single texts, from the ``first`` on."""
        every = self.scratch / f"adapters-{self.plan.most}"
        if not every.exists():
            making = every.with_suffix(".making")
            tasks.save(self.backbone("fp32"), making, self.plan.most)
            making.rename(every)
        if count == self.plan.most:
            return every
        folder = self.scratch / f"adapters-{self.plan.most}-{first}-{count}"
        return folder if folder.exists() else tasks.some(every, folder, count, first)


def _rate(dtype: torch.dtype) -> float:
    rows, weight = torch.randn(1728, 384, dtype=dtype), torch.randn(1536, 384, dtype=dtype)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        seconds.append(time.perf_counter() - began)
    return 1 / min(seconds)


@contextmanager
def folder(given: Path | None) -> Iterator[Path]:
    """The scratch folder: the one that is given stays, a temporary one goes."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="ptuning-serving-") as made:
        yield Path(made)
