"""Checks of arguments that programs written for PEFT pass."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ptuning.errors import ConfigError
from ptuning.model.backbone import Backbone
from ptuning.peft.configs import PrefixTuningConfig, PromptLearningConfig

HARMLESS = frozenset(
    {
        *("autocast_adapter_dtype", "low_cpu_mem_usage", "ephemeral_gpu_offload", "torch_device", "mixed"),
        *("use_safetensors", "ignore_mismatched_sizes", "save_embedding_layers", "state_dict"),
        "trust_remote_code",
    }
)
"""PEFT arguments that programs pass and that have no effect on the results here: prompts and heads are always
fp32 and small, files are always safetensors, the model's own state is saved, and no code of a repository is
run."""


def check_others(where: str, others: Mapping[str, Any]) -> None:
    """Refuse arguments that PEFT would act on and ptuning does not support."""
    for name, value in others.items():
        if name not in HARMLESS:
            raise ConfigError(
                f"{where}: {name} ({type(value).__name__}) is not supported by ptuning.peft",
                remedy="set it where the backbone is loaded, or leave it out",
            )
    if others.get("mixed"):
        raise ConfigError(
            f"{where}: mixed adapters of several methods are only supported by PEFT", remedy="leave it out"
        )


def subfolder_of(model_id: str | Path, subfolder: str) -> Path:
    """A subfolder of a local adapter folder. On the Hub each adapter has a repository of its own."""
    folder = Path(model_id).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"subfolder {subfolder!r}",
            got=str(model_id),
            expected="a local folder",
            remedy="on the Hub an adapter has a repository of its own",
        )
    return folder / subfolder


def check_facts(config: PromptLearningConfig, backbone: Backbone) -> None:
    """Refuse facts in a configuration that are not the backbone's."""
    deep = isinstance(config, PrefixTuningConfig)
    facts = {
        "num_layers": (backbone.num_layers,),
        "num_attention_heads": (
            backbone.config.num_attention_heads,
            backbone.key_value_size // backbone.head_dim,
        ),
        "token_dim": (backbone.key_value_size, backbone.hidden_size) if deep else (backbone.embedding_size,),
    }
    for name, expected in facts.items():
        if (given := getattr(config, name)) is not None and given not in expected:
            raise ConfigError(
                name,
                got=given,
                expected=f"{expected[0]}, as {backbone.name} has",
                remedy="leave it out, it is detected",
            )


def parameters_of(backbone: Backbone, wanted: Sequence[str]) -> dict[str, Tensor]:
    """The parameters of the modules that ``modules_to_save`` names by the ends of their names."""
    found: dict[str, Tensor] = {}
    known = [name for name, _ in backbone.model.named_modules() if name]
    for each in wanted:
        owners = [name for name in known if name == each or name.endswith(f".{each}")]
        if not owners and each not in ("classifier", "score"):  # PEFT lists both, whichever there is
            ends = sorted(
                {name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()}
            )
            close = difflib.get_close_matches(each, ends, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(ends)}"
            raise ConfigError(f"modules_to_save: {backbone.name} has no module {each!r}", remedy=hint)
        for owner in owners:
            for name, value in backbone.model.get_submodule(owner).named_parameters(prefix=owner):
                if name not in backbone.head_names:
                    found[name] = value
    if any(value is backbone.embedding.weight for value in found.values()):
        raise ConfigError(
            "modules_to_save: word embeddings cannot be trained",
            remedy="leave out the modules that have them",
        )
    return found
