"""Loading a backbone by Hub id or folder, or adopting a module; its tokenizer; checking it for an adapter.

A checkpoint may lack a head or a pooler, which each task then trains; anything else that it lacks is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ptuning import adapters
from ptuning.errors import AdapterMismatch, BackboneNotFound, UnsupportedBackbone
from ptuning.kinds import kind_named
from ptuning.model.architectures import ARCHITECTURES
from ptuning.model.backbone import Backbone
from ptuning.model.drawing import drawing
from ptuning.model.embedded import canonical, resolve
from ptuning.model.source import check_config, check_folder, pooling, reading, unsupported

_PICKLE_ONLY = (
    "; if its weights are only there as a pickle (pytorch_model.bin) and you trust whoever made it, add "
    "--allow-pickle (in Python: allow_pickle=True), because an adapter chose this backbone"
)


def load_backbone(
    backbone: str | PreTrainedModel | Backbone,
    num_labels: int | None,
    problem_type: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    dtype: torch.dtype | None,
    token: str | bool | None = None,
    allow_pickle: bool = True,
) -> tuple[Backbone, PreTrainedTokenizerBase | None]:
    """The backbone, loaded or adopted, in ``dtype``; and its tokenizer, if the backbone was given by name.

    Args:
        allow_pickle: As :func:`load` takes it.
    """
    if isinstance(backbone, str):
        name = canonical(backbone)
        held = load(
            name,
            num_labels=num_labels,
            problem_type=problem_type,
            revision=revision,
            token=token,
            allow_pickle=allow_pickle,
        )
        tokenizer = tokenizer or load_tokenizer(name, revision, token)
    else:
        held = backbone if isinstance(backbone, Backbone) else Backbone(backbone)
    if dtype is not None:
        held.to(dtype)
    return held, tokenizer


def load_tokenizer(
    name: str, revision: str | None = None, token: str | bool | None = None
) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer, with a padding token if it came without one.

    Raises:
        BackboneNotFound: it cannot be loaded.
    """
    source = resolve(name)
    with reading(name, source, "tokenizer"):
        check_folder(name, source)
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source,
            revision=revision,
            token=token,
            local_files_only=adapters.hub_out_of_reach(),
            trust_remote_code=False,
        )
        if found.pad_token_id is None:
            found.pad_token = found.eos_token  # never used: the attention mask marks the padding
    return found


def check_backbone(backbone: Backbone, adapter: adapters.Adapter) -> None:
    """Refuse a backbone that is not the one the adapter was trained on.

    Raises:
        AdapterMismatch: naming the first fact that differs.
    """
    have, want = asdict(backbone.facts(without=adapter.head)), adapter.backbone
    origin = _origin(adapter)
    for fact in ("model_type", "num_layers", "hidden_size", "embedding_size", "key_value_size", "vocab_size"):
        if want[fact] not in (None, have[fact]):  # an adapter that PEFT wrote knows few of them
            raise AdapterMismatch(
                f"this adapter was trained on {origin} ({fact} {want[fact]}), "
                f"but {have['name']} has {fact} {have[fact]}; put it on {origin}"
            )
    if None not in (have["fingerprint"], want["fingerprint"]) and have["fingerprint"] != want["fingerprint"]:
        raise AdapterMismatch(
            f"this adapter was trained on {origin}"
            f"{'@' + want['revision'] if want['revision'] else ''}; {have['name']} has the same shape but "
            "other weights (fingerprints differ), so its answers would mean nothing; use the original one"
        )
    _check_head(backbone, adapter)


def _origin(adapter: adapters.Adapter) -> str:
    """What the adapter was trained on, as far as it is recorded."""
    return str(adapter.backbone["name"] or "the backbone that it was trained on")


def _check_head(backbone: Backbone, adapter: adapters.Adapter) -> None:
    """Refuse a head that is not this backbone's, and a backbone with random parts that the adapter lacks."""
    own = dict(backbone.model.named_parameters())
    for name, value in sorted(adapter.head.items()):
        if name == adapters.MIX:
            continue  # ours; the record has seen to its shape
        if name not in own:
            raise AdapterMismatch(
                f"the adapter's head has {name}, and {backbone.name} has no such parameter; put it on "
                f"{_origin(adapter)}, loaded the way it was for training"
            )
        if own[name] is backbone.embedding.weight:
            if torch.equal(own[name].detach().float().cpu(), value):
                continue  # PEFT saves them on request, changed or not
            raise AdapterMismatch(
                f"the adapter brings word embeddings of its own ({name}, {list(value.shape)}), and ptuning "
                "leaves those of the backbone as they are; train it again with the backbone's vocabulary"
            )
        # Only the number of labels may differ: it is the task's.
        rows = (backbone.model.config.num_labels, adapter.task.num_labels)
        if own[name].shape != value.shape and (
            own[name].shape[1:] != value.shape[1:] or (len(own[name]), len(value)) != rows
        ):
            raise AdapterMismatch(
                f"the adapter's {name} has the shape {list(value.shape)}, but {backbone.name}'s has "
                f"{list(own[name].shape)}; put it on {_origin(adapter)}"
            )
    if lost := sorted(backbone.missing - set(adapter.head)):
        raise AdapterMismatch(
            f"the adapter lacks {lost[0]}, which {backbone.name}'s checkpoint lacks as well, so it would be "
            "made at random; hand over the module that it was trained with (backbone=…), or train it again"
        )


def load(
    name: str,
    *,
    num_labels: int | None,
    problem_type: str | None,
    revision: str | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = True,
) -> Backbone:
    """A backbone by Hub id or folder, with a fresh head if its checkpoint has none of that width.

    Args:
        name: A Hub id, a folder, or ``demo`` for the embedded MiniLM.
        num_labels: C; the checkpoint's own if ``None``.
        problem_type: The kind of task; what the backbone's configuration says if ``None``.
        revision: A branch, tag or commit of the Hub.
        token: The Hub's access token; that of `hf auth login` if left out.
        allow_pickle: Read ``pytorch_model.bin`` if there are no safetensors, with torch's restricted
            unpickler; for a backbone that the user named, not one that somebody's adapter names.

    Raises:
        BackboneNotFound: no such folder or model, or a damaged one; says which part.
        UnsupportedBackbone: an architecture that is not in the table, or a checkpoint that lacks
            parts of the transformer.
    """
    source = resolve(name)
    hub: dict[str, Any] = {
        "revision": revision,
        "token": token,
        "local_files_only": adapters.hub_out_of_reach(),  # retries would only take time
    }
    # Random values for what the checkpoint lacks are drawn again for each task; see fresh.py.
    with _quiet(), drawing(), torch.random.fork_rng(devices=()):
        with reading(name, source, "configuration"):
            check_folder(name, source)
            check_config(name, source, **hub)
            config = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub)
            if num_labels is not None:
                config.num_labels = num_labels
            if problem_type is not None:
                config.problem_type = kind_named(problem_type).transformers_name
            if config.model_type not in ARCHITECTURES:
                raise unsupported(name, config.model_type)
            config.chunk_size_feed_forward = 0  # it saves memory, but refuses texts of most lengths
            config._attn_implementation = None  # the file may name code on the Hub; ours is used
        try:
            with reading(name, source, "weights", hint="" if allow_pickle else _PICKLE_ONLY):
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    source,
                    config=config,
                    ignore_mismatched_sizes=True,  # a head of another width becomes a fresh head
                    output_loading_info=True,
                    use_safetensors=None if allow_pickle else True,
                    trust_remote_code=False,
                    **hub,
                )
        except BackboneNotFound:
            with reading(name, source, "configuration"), torch.device("meta"):
                AutoModelForSequenceClassification.from_config(config)  # is the configuration to blame?
            raise
    missing = frozenset(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    inside = f"{model.base_model_prefix}."
    if lost := sorted(key for key in missing if key.startswith(inside) and not _is_pooler(key)):
        raise UnsupportedBackbone(
            f"{name}: its checkpoint lacks {len(lost)} weights of the transformer itself, {lost[0]} first, "
            "which would be frozen at random values",
            remedy="use a complete checkpoint",
        )
    with reading(name, source, "configuration"):
        return Backbone(
            model,
            name=name,
            revision=_commit(source, revision),
            missing=missing,
            pooling=pooling(name, source, revision, token, cached_only=hub["local_files_only"]),
        )


def _commit(source: str, revision: str | None) -> str | None:
    """The commit on the Hub that was loaded, from the cache; ``None`` for a folder."""
    found = (
        None if Path(source).is_dir() else try_to_load_from_cache(source, "config.json", revision=revision)
    )
    return Path(found).parent.name if isinstance(found, str) else None


def _is_pooler(key: str) -> bool:
    """Checkpoints may lack the pooler: only classification uses it."""
    return ".pooler." in key


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from reporting a fresh head: it is expected, trained and saved."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
