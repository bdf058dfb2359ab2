"""The backbones that are measured: MiniLM, the two real ones of ``make backbones``, and larger ones in their
true shapes with random weights.

Speed and memory do not depend on what the weights say. The random ones are made on the spot, once a run,
in a folder that every worker loads from; nothing is downloaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from get_backbones import backbones
from ptuning.model.embedded import resolve


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A backbone, and how much of it a run can afford.

    Args:
        kind: transformers' ``model_type``; empty for a backbone with its own weights.
        real: Its folder among those of ``make backbones``; empty for the embedded MiniLM and random ones.
        config: What differs from that architecture's own defaults.
        batch_size: Rows a batch.
        rows: Training rows; few where a row takes seconds, so that the run is shortened and not the model.
    """

    kind: str = ""
    real: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 16
    rows: int = 32


MODELS: Mapping[str, Measured] = {
    "minilm": Measured(batch_size=32, rows=320),
    "mpnet": Measured(real="all-mpnet-base-v2", rows=64),
    "gemma": Measured(real="gemma-3-270m", rows=64),
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
    """Where a worker loads ``name`` from; a random model is made there if it is not there yet.

    Exits if it is a real one that ``make backbones`` has not made.
    """
    own = MODELS[name]
    if not own.kind and not own.real:
        return Path(resolve("demo"))
    folder = backbones() / own.real if own.real else scratch / name
    if (folder / "config.json").is_file():
        return folder
    if own.real:
        sys.exit(f"{name} is not in {backbones()}: run make backbones first")
    make(own.kind, own.config, folder, AutoTokenizer.from_pretrained(resolve("demo")).pad_token_id)
    return folder


def tokenizer_folder(name: str) -> Path:
    """Where the tokenizer of ``name`` is; MiniLM's for random weights, as all its ids fit their vocabularies.

    It is not saved beside a random model, because ``AutoTokenizer`` would take the class of that model's
    architecture for it, and cut the same text into other tokens.
    """
    own = MODELS[name]
    return backbones() / own.real if own.real else Path(resolve("demo"))


def make(kind: str, config: Mapping[str, Any], folder: Path, pad_token_id: int) -> None:
    """A model of random fp32 weights, in ``folder``: the peers' bf16 is autocast, which starts from fp32."""
    torch.manual_seed(0)
    # Padding is the tokenizer's: RoBERTa's positions and a decoder's pooled token are told from it.
    made = AutoConfig.for_model(kind, **config, num_labels=2, pad_token_id=pad_token_id)
    model = AutoModelForSequenceClassification.from_config(made, dtype=torch.float32)
    model.save_pretrained(folder)
