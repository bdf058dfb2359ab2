"""Finding a backbone: by Hub id or folder or as a module, with its tokenizer; and telling it from another.

What a checkpoint lacks is found here: a fresh head or pooler is the task's to train, all else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ptuning import adapters
from ptuning.adapters.hub import HTTPError
from ptuning.errors import AdapterMismatch, BackboneNotFound, UnsupportedBackbone
from ptuning.model.architectures import ARCHITECTURES
from ptuning.model.backbone import Backbone
from ptuning.model.embedded import canonical, resolve
from ptuning.task import ProblemType

_POOLING = "1_Pooling/config.json"
"""Where sentence-transformers says how a model's tokens become one vector."""


def hold(
    backbone: str | PreTrainedModel | Backbone,
    num_labels: int | None,
    problem_type: ProblemType | None,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    dtype: torch.dtype | None,
    token: str | bool | None = None,
) -> tuple[Backbone, PreTrainedTokenizerBase | None]:
    """The backbone, loaded or adopted, in ``dtype``; and its tokenizer, where it can be known."""
    if isinstance(backbone, str):
        name = canonical(backbone)
        held = load(name, num_labels=num_labels, problem_type=problem_type, revision=revision, token=token)
        tokenizer = tokenizer or load_tokenizer(name, revision, token)
    else:
        held = backbone if isinstance(backbone, Backbone) else Backbone(backbone)
    if dtype is not None:
        held.to(dtype)
    return held, tokenizer


def load_tokenizer(
    name: str, revision: str | None = None, token: str | bool | None = None
) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer, with a padding token where it came without one.

    Raises:
        BackboneNotFound: there is none in reach.
    """
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve(name),
            revision=revision,
            token=token,
            local_files_only=adapters.hub_out_of_reach(),
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from error
    if found.pad_token_id is None:
        found.pad_token = found.eos_token  # never read: the attention mask says what is padding
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
    """What the adapter was trained on, as far as it says."""
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
        if own[name].shape[1:] != value.shape[1:] or (
            own[name].shape[0] not in (value.shape[0], backbone.model.config.num_labels)
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
    problem_type: ProblemType | None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Backbone:
    """A backbone by Hub id or folder, with a fresh head where its checkpoint has none of that width.

    Args:
        name: A Hub id, a folder, or ``demo`` for the embedded MiniLM.
        num_labels: C; the checkpoint's own if ``None``.
        problem_type: transformers' ``config.problem_type``; the backbone's own if ``None``.
        revision: A branch, tag or commit of the Hub.
        token: The Hub's access token; the one that was logged in with if left out.

    Raises:
        BackboneNotFound: no such folder, or no such model in reach.
        UnsupportedBackbone: an architecture that is not in the table, or a checkpoint that lacks
            parts of the transformer.
    """
    source = resolve(name)
    try:
        # What is drawn for parts that the checkpoint lacks is drawn again for each task; see fresh.py.
        with _quiet(), torch.random.fork_rng(devices=()):
            cached_only = adapters.hub_out_of_reach()  # then the client's retries would only take time
            config = AutoConfig.from_pretrained(
                source,
                revision=revision,
                token=token,
                local_files_only=cached_only,
                trust_remote_code=False,
            )
            if num_labels is not None:
                config.num_labels = num_labels
            config.problem_type = problem_type or config.problem_type
            if config.model_type not in ARCHITECTURES:
                raise UnsupportedBackbone(
                    f"{name}: {config.model_type!r} is not supported; expected one of "
                    f"{', '.join(ARCHITECTURES)} (docs/backbones.md)"
                )
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source,
                config=config,
                revision=revision,
                token=token,
                local_files_only=cached_only,
                ignore_mismatched_sizes=True,  # a head of another width is a fresh head; see below
                output_loading_info=True,
                trust_remote_code=False,
            )
    except UnsupportedBackbone:
        raise
    except (OSError, ValueError) as error:
        raise _not_found(name, error) from error
    missing = frozenset(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    inside = f"{model.base_model_prefix}."
    if lost := sorted(key for key in missing if key.startswith(inside) and not _is_pooler(key)):
        raise UnsupportedBackbone(
            f"{name}: its checkpoint lacks {len(lost)} weights of the transformer itself, {lost[0]} first; "
            "it would be frozen at random, so it cannot be a backbone"
        )
    return Backbone(
        model,
        name=name,
        revision=_commit(source, revision),
        missing=missing,
        pooling=_pooling(source, revision, token, cached_only=cached_only),
    )


def _pooling(
    source: str, revision: str | None, token: str | bool | None, *, cached_only: bool
) -> Literal["native", "mean"]:
    """How a sentence embedding model says that it is read; ``native`` for all that says nothing."""
    try:
        file = (
            Path(source) / _POOLING
            if Path(source).is_dir()
            else Path(
                hf_hub_download(
                    source, _POOLING, revision=revision, token=token, local_files_only=cached_only
                )
            )
        )
        says = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, HTTPError):  # most models have no such file
        return "native"
    mean = says.get("pooling_mode_mean_tokens") or says.get("pooling_mode") == "mean"
    return "mean" if mean else "native"


def _commit(source: str, revision: str | None) -> str | None:
    """Which commit of the Hub was loaded: what the cache has it under. ``None`` for a folder."""
    found = (
        None if Path(source).is_dir() else try_to_load_from_cache(source, "config.json", revision=revision)
    )
    return Path(found).parent.name if isinstance(found, str) else None


def _is_pooler(key: str) -> bool:
    """The one part of a transformer that checkpoints may lack, because only classification uses it."""
    return ".pooler." in key


def _not_found(name: str, error: Exception) -> BackboneNotFound:
    """The error for a model, or tokenizer, that could not be loaded; transformers' first line says why."""
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return BackboneNotFound(
        f"backbone {name!r} could not be loaded: {reason}. Expected a folder with config.json and "
        "model.safetensors, a Hub id such as 'roberta-base' (with a connection, or already in the cache), "
        "or 'demo' for the embedded MiniLM. If an adapter names it, say where it is here with --backbone (in "
        "Python: backbone=…)"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from reporting a fresh head: it is expected, found, trained and saved."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
