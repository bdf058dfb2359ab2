"""What one worker is asked to measure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One measurement, in a process of its own.

    Args:
        what: What to do with the side; a floor is measured from matrix products alone.
        side: A name of ``sides.py``; for a floor nothing.
        folder: The backbone.
        tokenizer: The folder of its tokenizer; the backbone's own if left out.
        precision: ptuning's bf16 are weights in bf16; a peer's is the Trainer's, autocast over fp32.
        data: ``mrpc`` or ``sst2``; ``made`` for rows of ``length`` random tokens.
        length: Tokens a row of ``made`` data; for a floor the typical length.
        rows: How many rows.
        batch_size: Rows a batch.
        epochs: Passes over the rows.
        spend: Seconds that the floor spends on each product.
    """

    what: Literal["training", "inference", "training floor", "inference floor"]
    folder: str
    tokenizer: str = ""
    side: str = ""
    precision: Literal["bf16", "fp32"] = "bf16"
    data: str = "mrpc"
    length: int = 0
    rows: int = 32
    batch_size: int = 16
    epochs: int = 2
    spend: float = 0.1

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        return cls(**json.loads(text))
