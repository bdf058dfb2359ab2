"""The backbones that are measured: MiniLM as it is, larger ones in their true shapes with random weights.

Speed and memory do not depend on what the weights say. The random ones are made on the spot, once a run,
in a folder that every worker loads from; nothing is downloaded. ``get_backbones.py`` makes two real ones, for
what depends on the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ptuning.model.embedded import resolve


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A backbone, and how much of it a run can afford.

    Args:
        kind: transformers' ``model_type``; empty for the embedded MiniLM.
        config: What differs from that architecture's own defaults.
        batch_size: Rows a batch.
        rows: Training rows; few where a row takes seconds, so that the run is shortened and not the model.
    """

    kind: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 16
    rows: int = 32


MODELS: Mapping[str, Measured] = {
    "minilm": Measured(batch_size=32, rows=320),
    "bert-base": Measured(kind="bert", rows=64),
    "roberta-large": Measured(
        kind="roberta",
        config={
            "vocab_size": 50265,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
        },
    ),
    "qwen2-0.5b": Measured(
        kind="qwen2",
        config={
            "vocab_size": 151936,
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
        },
    ),
}


def folder_of(name: str, scratch: Path) -> Path:
    """Where a worker loads ``name`` from; a random model is made there if it is not there yet."""
    demo = resolve("demo")
    if name == "minilm":
        return Path(demo)
    folder = scratch / name
    if not (folder / "config.json").is_file():
        make(MODELS[name].kind, MODELS[name].config, folder, AutoTokenizer.from_pretrained(demo).pad_token_id)
    return folder


def tokenizer_folder() -> Path:
    """Whose tokenizer serves all of them: each of MiniLM's ids is smaller than their vocabularies.

    It is not saved beside a random model, because ``AutoTokenizer`` would take the class of that model's
    architecture for it, and cut the same text into other tokens.
    """
    return Path(resolve("demo"))


def make(kind: str, config: Mapping[str, Any], folder: Path, pad_token_id: int) -> None:
    """A model of random fp32 weights, in ``folder``: the peers' bf16 is autocast, which starts from fp32."""
    torch.manual_seed(0)
    # Padding is the tokenizer's: RoBERTa's positions and a decoder's pooled token are told from it.
    made = AutoConfig.for_model(kind, **config, num_labels=2, pad_token_id=pad_token_id)
    model = AutoModelForSequenceClassification.from_config(made, dtype=torch.float32)
    model.save_pretrained(folder)
