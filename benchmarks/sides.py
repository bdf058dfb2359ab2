"""What is compared: ptuning's prompts, PEFT's, and full fine-tuning, each made the way its users make it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

import ptuning
from ptuning import DeepPrompt, InputPrompt, PTuningModel
from ptuning.model.architectures import ARCHITECTURES

VIRTUAL_TOKENS = 20
"""P, the guide's, on every side."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the things compared.

    Args:
        kind: Who runs it.
        prompt: Which prompt; empty for full fine-tuning.
        grouped: PEFT alone: batches of rows of similar length, as ptuning has them.
        by_hand: Inference with PEFT alone: a loop over batches sorted by length in place of the Trainer.
        engine: ptuning alone: fields of ``ptuning.Engine`` that differ from its defaults.
    """

    kind: Literal["ptuning", "peft", "full"]
    prompt: Literal["", "deep", "upper", "input", "p_tuning", "prefix"] = ""
    grouped: bool = False
    by_hand: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)


REFERENCE = "PEFT P_TUNING"
"""What everything is compared with: the guide's recipe."""

SIDES: Mapping[str, Side] = {
    REFERENCE: Side(kind="peft", prompt="p_tuning"),
    "PEFT P_TUNING, grouped by length": Side(kind="peft", prompt="p_tuning", grouped=True),
    "PEFT P_TUNING, sorted by hand": Side(kind="peft", prompt="p_tuning", by_hand=True),
    "PEFT PREFIX_TUNING": Side(kind="peft", prompt="prefix"),
    "PEFT PREFIX_TUNING, sorted by hand": Side(kind="peft", prompt="prefix", by_hand=True),
    "full fine-tuning": Side(kind="full"),
    "ptuning input": Side(kind="ptuning", prompt="input"),
    "ptuning deep": Side(kind="ptuning", prompt="deep"),
    "ptuning deep, upper half": Side(kind="ptuning", prompt="upper"),
    "ptuning deep, checkpointing": Side(
        kind="ptuning", prompt="deep", engine={"checkpoint_activations": True}
    ),
}

SWITCHES: Mapping[str, Side] = {
    "ptuning deep, upper half, stem not reused": Side(
        kind="ptuning", prompt="upper", engine={"reuse_stem": False}
    ),
    "ptuning deep, upper half, all tokens in the last layer": Side(
        kind="ptuning", prompt="upper", engine={"pooled_layer": False}
    ),
    "ptuning deep, upper half, checkpointing": Side(
        kind="ptuning", prompt="upper", engine={"checkpoint_activations": True}
    ),
    "ptuning deep, upper half, fused attention": Side(
        kind="ptuning", prompt="upper", engine={"attention": "fused"}
    ),
    "ptuning deep, upper half, stem in memory alone": Side(
        kind="ptuning", prompt="upper", engine={"stem_disk": 0.0}
    ),
    "ptuning input, prompt once a row": Side(kind="ptuning", prompt="input", engine={"shared_prompt": False}),
    "ptuning deep, torch.compile": Side(kind="ptuning", prompt="deep", engine={"compile": True}),
    "ptuning deep, all tokens in the last layer": Side(
        kind="ptuning", prompt="deep", engine={"pooled_layer": False}
    ),
    "ptuning deep, fused attention": Side(kind="ptuning", prompt="deep", engine={"attention": "fused"}),
    "ptuning deep, upper half, torch.compile": Side(kind="ptuning", prompt="upper", engine={"compile": True}),
}
"""One optimisation changed at a time, held against the side of which it is a variant."""


def has_engine() -> bool:
    """Whether this ptuning has the switches that a side's ``engine`` names."""
    return hasattr(ptuning, "Engine")


def side_of(name: str) -> Side:
    """The side of that name, a switched one included."""
    return {**SIDES, **SWITCHES}[name]


def first_prompted_layer(side: Side, layers: int) -> int:
    """s: the first layer that has a prompt."""
    return layers // 2 if side.prompt == "upper" else 0


def ptuning_model(side: Side, folder: Path, precision: str, tokenizer: Any) -> PTuningModel:
    """The one place where the benchmarks make a model of ptuning's."""
    config = AutoConfig.from_pretrained(folder)
    prompt: DeepPrompt | InputPrompt
    if side.prompt == "input":
        # In front of a decoder's text; an encoder's stands where it stands by default.
        causal = ARCHITECTURES[config.model_type].causal
        prompt = InputPrompt(
            num_virtual_tokens=VIRTUAL_TOKENS, placement="start" if causal else InputPrompt().placement
        )
    else:
        first = first_prompted_layer(side, config.num_hidden_layers)
        # What PEFT's prefix tuning reads, so that both compute the same; an older ptuning has no choice.
        read: dict[str, Any] = {"pooling": "native"} if "pooling" in DeepPrompt.__dataclass_fields__ else {}
        prompt = DeepPrompt(num_virtual_tokens=VIRTUAL_TOKENS, first_layer=first, **read)
    options: dict[str, Any] = {}
    if side.engine:
        if not has_engine():
            raise SystemExit(f"this ptuning has no Engine, so {dict(side.engine)} cannot be asked for")
        options["engine"] = ptuning.Engine(**side.engine)
    return PTuningModel.from_backbone(
        str(folder),
        prompt,
        num_labels=2,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        tokenizer=tokenizer,
        **options,
    )


def peer_model(side: Side, folder: Path) -> Any:
    """A peer's model in fp32; the Trainer's ``bf16`` is autocast over it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    if side.kind == "full":
        return model
    if side.prompt == "prefix":
        return get_peft_model(
            model, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL_TOKENS)
        )
    recipe = PromptEncoderConfig(
        task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL_TOKENS, encoder_hidden_size=128
    )
    return get_peft_model(model, recipe)
