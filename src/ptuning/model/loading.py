"""Loads a backbone by Hub id or folder, or adopts a module; loads its tokenizer; checks it for an adapter.

A checkpoint may lack a head or a pooler, which each task then trains. If anything else is missing, it is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
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
from ptuning.model.language_head import LanguageHead
from ptuning.model.source import check_config, check_folder, pooling, reading, unsupported

_PICKLE_ONLY = (
    "if its weights are only available as a pickle (pytorch_model.bin) and you trust its author, add "
    "--allow-pickle (in Python: allow_pickle=True), because an adapter chose this backbone; "
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
        allow_pickle: See :func:`load`.
    """
    if isinstance(backbone, str):
        name = canonical(backbone)
        loaded = load(
            name,
            num_labels=num_labels,
            problem_type=problem_type,
            revision=revision,
            token=token,
            allow_pickle=allow_pickle,
            dtype=dtype,
        )
        tokenizer = tokenizer or load_tokenizer(name, revision, token)
    else:
        loaded = backbone if isinstance(backbone, Backbone) else Backbone(backbone)
    if dtype is not None:
        loaded.to(dtype)
    return loaded, tokenizer


def load_tokenizer(
    name: str, revision: str | None = None, token: str | bool | None = None
) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer, with a padding token even if it has none itself.

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
            found.pad_token = found.eos_token  # any token will do, because the attention mask marks padding
    return found


def check_backbone(backbone: Backbone, adapter: adapters.Adapter) -> None:
    """Refuse a backbone that is not the one the adapter was trained on.

    Raises:
        AdapterMismatch: names the first fact that differs.
    """
    have, want = asdict(backbone.facts(without=adapter.head)), adapter.backbone
    origin = adapter.backbone["name"] or "another backbone"
    for fact in ("model_type", "num_layers", "hidden_size", "embedding_size", "key_value_size", "vocab_size"):
        if want[fact] not in (None, have[fact]):  # an adapter from PEFT only records a few of them
            raise AdapterMismatch(
                f"this adapter was trained on {origin}, not on {have['name']}",
                got=f"{fact} {have[fact]}",
                expected=f"{fact} {want[fact]}",
                remedy=f"put it on {_origin(adapter)}",
            )
    if None not in (have["fingerprint"], want["fingerprint"]) and have["fingerprint"] != want["fingerprint"]:
        revision = f"@{want['revision']}" if want["revision"] else ""
        raise AdapterMismatch(
            f"this adapter was trained on {origin}{revision}; {have['name']} has the same shape but other "
            "weights (fingerprints differ), so its predictions would be meaningless",
            got=f"the fingerprint {have['fingerprint'][:12]}…",
            expected=f"{want['fingerprint'][:12]}…",
            remedy="use the original backbone",
        )
    if adapter.cloze is None:
        _check_head(backbone, adapter)
    elif (adapter.cloze.mask is None) != backbone.architecture.causal:
        raise AdapterMismatch(
            f"the adapter's cloze head has {'no' if adapter.cloze.mask is None else 'a'} mask, and "
            f"{have['name']} is a {'decoder' if backbone.architecture.causal else 'masked language model'}",
            remedy="the adapter was altered",
        )
    elif backbone.language_head.digest != adapter.cloze.head:
        raise AdapterMismatch(
            f"this adapter was trained with the language model head of {origin}, and that of {have['name']} "
            "has other weights or settings",
            got=f"the digest {backbone.language_head.digest[:12]}…",
            expected=f"{adapter.cloze.head[:12]}…",
            remedy="use the original backbone",
        )


def _origin(adapter: adapters.Adapter) -> str:
    """The backbone that the adapter was trained on, by name if it is recorded."""
    return str(adapter.backbone["name"] or "the backbone that it was trained on")


def _check_head(backbone: Backbone, adapter: adapters.Adapter) -> None:
    """Refuse a head that does not fit, and a backbone with random parts that the adapter lacks."""
    parameters = dict(backbone.model.named_parameters())
    for name, value in sorted(adapter.head.items()):
        if name == adapters.MIX:
            continue  # ptuning's own parameter; its shape was checked with the record
        if name not in parameters:
            raise AdapterMismatch(
                f"the adapter's head has {name}, and {backbone.name} has no such parameter",
                remedy=f"put it on {_origin(adapter)}, loaded in the same way as for training",
            )
        if parameters[name] is backbone.embedding.weight:
            if torch.equal(parameters[name].detach().float().cpu(), value):
                continue  # PEFT saves them if asked, even unchanged
            raise AdapterMismatch(
                f"the adapter has word embeddings of its own ({name}, {list(value.shape)}), and ptuning does "
                "not change those of the backbone",
                remedy="train it again with the backbone's vocabulary",
            )
        # Only the number of labels may differ, because it belongs to the task.
        rows = (backbone.model.config.num_labels, adapter.task.num_labels)
        shape = parameters[name].shape
        if shape != value.shape and (
            shape[1:] != value.shape[1:] or (len(parameters[name]), len(value)) != rows
        ):
            raise AdapterMismatch(
                f"the adapter's {name}",
                got=f"the shape {list(value.shape)}",
                expected=f"{list(shape)}, as in {backbone.name}",
                remedy=f"put it on {_origin(adapter)}",
            )
    if lost := sorted(backbone.missing - set(adapter.head)):
        raise AdapterMismatch(
            f"the adapter has no {lost[0]}, nor has {backbone.name}'s checkpoint, so it would be random",
            remedy="pass the module that it was trained with (backbone=…), or train it again",
        )


def load(
    name: str,
    *,
    num_labels: int | None,
    problem_type: str | None,
    revision: str | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = True,
    dtype: torch.dtype | None = None,
) -> Backbone:
    """A backbone by Hub id or folder, with a fresh head if its checkpoint has none of that width.

    Args:
        name: A Hub id, a folder, or ``demo`` for the embedded MiniLM.
        num_labels: C; the checkpoint's if ``None``.
        problem_type: The kind of task; from the backbone's configuration if ``None``.
        revision: A branch, tag or commit of the Hub.
        token: The Hub's access token; the one of ``hf auth login`` if left out.
        allow_pickle: Read ``pytorch_model.bin`` if there are no safetensors, with torch's restricted
            unpickler. Only for a backbone that the user named, not for one that an adapter names.
        dtype: What it will be used in. A bf16 checkpoint for fp32 is loaded in fp32, because what a model
            computes from its configuration would be rounded otherwise, such as the scale of Gemma's
            embeddings. In all other cases the weights stay in the checkpoint's dtype.

    Raises:
        BackboneNotFound: no such folder or model, or a damaged one; names the part.
        UnsupportedBackbone: an architecture that is not in the table, or a checkpoint that lacks
            parts of the transformer.
    """
    source = resolve(name)
    hub: dict[str, Any] = {
        "revision": revision,
        "token": token,
        "local_files_only": adapters.hub_out_of_reach(),  # do not retry without a connection
    }
    # Missing parameters get new random values for each task; see fresh.py.
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
            config.chunk_size_feed_forward = 0  # it would refuse most text lengths
            config._attn_implementation = None  # the file may name code on the Hub
            config._experts_implementation = None
        exact = {"dtype": dtype} if dtype == torch.float32 else {}
        try:
            with reading(name, source, "weights", hint="" if allow_pickle else _PICKLE_ONLY):
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    source,
                    config=config,
                    ignore_mismatched_sizes=True,  # a head of another width becomes a fresh head
                    output_loading_info=True,
                    use_safetensors=None if allow_pickle else True,
                    trust_remote_code=False,
                    **exact,
                    **hub,
                )
        except BackboneNotFound:
            with reading(name, source, "configuration"), torch.device("meta"):
                AutoModelForSequenceClassification.from_config(
                    config
                )  # find out whether the configuration is the cause
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
        commit = _commit(source, revision)
        return Backbone(
            model,
            name=name,
            revision=commit,
            missing=missing,
            pooling=pooling(name, source, revision, token, cached_only=hub["local_files_only"]),
            load_language_head=partial(
                _language_head, name, revision=commit or revision, token=token, allow_pickle=allow_pickle
            ),
        )


def _language_head(
    name: str, *, revision: str | None, token: str | bool | None, allow_pickle: bool
) -> LanguageHead:
    """The language model head of a checkpoint; arguments as for :func:`load`.

    Raises:
        BackboneNotFound: it is not there any more, or damaged.
        UnsupportedBackbone: it has none.
    """
    source = resolve(name)
    hub: dict[str, Any] = {
        "revision": revision,
        "token": token,
        "local_files_only": adapters.hub_out_of_reach(),
    }
    with _quiet(), torch.random.fork_rng(devices=()), reading(name, source, "weights"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub)
        config._attn_implementation = None
        causal = ARCHITECTURES[config.model_type].causal
        kind: Any = AutoModelForCausalLM if causal else AutoModelForMaskedLM
        if type(config) not in kind._model_mapping:
            raise UnsupportedBackbone(
                f"{name}: a cloze head needs a language model head, and transformers has none for "
                f"{config.model_type}",
                remedy="use another backbone, or leave prompt.head out",
            )
        model, info = kind.from_pretrained(
            source,
            config=config,
            output_loading_info=True,
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=False,
            **hub,
        )
    inside = f"{model.base_model_prefix}."
    if lost := sorted(key for key in info["missing_keys"] if not key.startswith(inside)):
        raise UnsupportedBackbone(
            f"{name}: a cloze head needs a language model head, and the checkpoint has none (it lacks "
            f"{lost[0]})",
            remedy="use a checkpoint of a masked or causal language model, or leave prompt.head out",
        )
    return LanguageHead(model)


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
