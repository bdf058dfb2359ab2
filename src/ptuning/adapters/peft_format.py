"""PEFT's adapter format, where PEFT can say what an adapter is; otherwise ours, under the same file names.

PEFT's ``P_TUNING`` is input depth before ``[CLS]`` (placement ``start``). Its ``PREFIX_TUNING`` is deep
in every layer, with the text's positions moved up by P, because PEFT's prompt is a key/value cache.
Whatever lies between is written as ``peft_type: "PTUNING"``, a name that PEFT does not know, so that it
refuses the folder instead of computing something else.

Neighbours: ``record.py`` is what is written, ``folder.py`` writes it. PEFT itself is not imported; the
tests hold this module against the installed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ptuning.adapters.record import MIX, Adapter
from ptuning.errors import AdapterError

UNITS = "units"
"""Where a prompt's virtual units are; no layout of PEFT's has a place for them."""

HEAD_PREFIX = "base_model."
"""PEFT keeps the backbone in ``PeftModel.base_model``; a saved head key is this and the backbone's name."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one ``peft_type`` stores a prompt.

    Args:
        key: The prompt's name among the tensors.
        pack: Our shape to the stored one.
        unpack: Its inverse, given the number of prompted layers.
    """

    key: str
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, int], Tensor]


def _as_it_is(prompt: Tensor, _: int = 0) -> Tensor:
    return prompt


def _pack_layers(prompt: Tensor) -> Tensor:
    """``[L, 2, P, H_kv]`` → ``[P, L·2·H_kv]``: a row is layer-major, keys then values."""
    return prompt.permute(2, 0, 1, 3).reshape(prompt.shape[2], -1)


def unpack_layers(stored: Tensor, layers: int) -> Tensor:
    """PEFT's prefix ``[P, L·2·H_kv]`` as ours, ``[L, 2, P, H_kv]``."""
    return stored.view(stored.shape[0], layers, 2, -1).permute(1, 2, 0, 3).contiguous()


def is_prefix(stored: Tensor, layers: int) -> bool:
    """Whether :func:`unpack_layers` can make something of ``stored``."""
    return stored.dim() == 2 and stored.numel() > 0 and stored.shape[1] % (2 * layers) == 0


OURS = "PTUNING"
LAYOUTS: Mapping[str, Layout] = {
    "P_TUNING": Layout(key="prompt_embeddings", pack=_as_it_is, unpack=_as_it_is),
    "PREFIX_TUNING": Layout(key="prompt_embeddings", pack=_pack_layers, unpack=unpack_layers),
    OURS: Layout(key="prompt", pack=_as_it_is, unpack=_as_it_is),
}

WRITTEN_BY_US: Mapping[str, str] = {"written_by": "ptuning"}
"""What stands in a field that PEFT does not read beside a ``task_type``: so one of our folders that has lost
its ``ptuning.json``, and with it its labels, is not taken for one that PEFT wrote."""

# What PEFT (0.21) makes of single architectures, by ``model_type``. The tests hold this against PEFT.
NO_CACHE = frozenset({"albert", "distilbert", "modernbert", "deberta-v2"})
"""Their forward takes no key/value cache, so PEFT's ``PREFIX_TUNING`` raises."""
NO_POSITION_IDS = frozenset({"bloom"})
"""A cache moves no positions here: ALiBi reads distances off the mask, so PEFT means an offset of 0."""
HEADS_NOT_FOUND = frozenset({"distilbert"})
"""PEFT looks ``num_attention_heads`` up under names that this configuration does not use, though
``P_TUNING`` never reads the number."""

_ALWAYS_SAVED = ("classifier", "score")
"""PEFT adds these to ``modules_to_save`` itself, at every load: written out they would pile up."""


def why_not_peft(adapter: Adapter) -> str | None:
    """Why PEFT cannot express this adapter, and which option would let it; ``None`` if it can."""
    task = adapter.task
    if not any(_module(name) in _ALWAYS_SAVED for name in adapter.head):
        return "it holds no head, and PEFT expects one; prompt.train_head true saves one"
    if (reason := _why_not_prefix(adapter) if adapter.deep else _why_not_input(adapter)) is not None:
        return reason
    if task.mean != 0 or task.scale != 1:  # last: this one export-peft can mend
        return (
            f"its scores are in units of {task.scale:g} around {task.mean:g}, and PEFT's format keeps no "
            "scaling; saved with peft=True (ptuning export-peft) the scaling goes into the head"
        )
    return None


def for_peft(adapter: Adapter) -> Adapter:
    """The adapter in a form that PEFT can hold, with the same logits.

    A regression's scaling is folded into the layer that gives the score.

    Raises:
        AdapterError: it has no such form; says why, and which option would let it.
    """
    task = adapter.task
    if task.mean != 0 or task.scale != 1:
        # The layer that gives the one score: a row, and beside it perhaps a bias of one number. A table of
        # one row elsewhere (RoBERTa's token types) may be the task's own, too.
        rows = [
            name
            for name, value in adapter.head.items()
            if _module(name) in _ALWAYS_SAVED and value.dim() == 2 and value.shape[0] == 1
        ]
        bias = rows[-1].removesuffix("weight") + "bias" if rows else ""
        if rows and (bias in adapter.head or task.mean == 0):
            head = dict(adapter.head)
            head[rows[-1]] = head[rows[-1]] * task.scale
            if bias in head:
                head[bias] = head[bias] * task.scale + task.mean
            adapter = replace(adapter, head=head, task=replace(task, mean=0.0, scale=1.0))
        elif rows:
            raise AdapterError(
                f"PEFT cannot hold this adapter: its scores are around {task.mean:g}, and "
                f"{rows[-1]} has no bias to put that into; train on targets with their mean taken off"
            )
    if (reason := why_not_peft(adapter)) is not None:
        raise AdapterError(f"PEFT cannot hold this adapter: {reason}")
    return adapter


def _why_not_input(adapter: Adapter) -> str | None:
    placement = adapter.prompt.get("placement")
    if placement != "start" or adapter.anchors:
        return (
            f"its virtual tokens stand at {placement!r}, and PEFT's P_TUNING knows only the place before the "
            "whole text; prompt.placement 'start' can be expressed"
        )
    return None


def _why_not_prefix(adapter: Adapter) -> str | None:
    kind = adapter.backbone.get("model_type")
    first, offset = adapter.prompt.get("first_layer", 0), adapter.prompt.get("position_offset", 0)
    if kind in NO_CACHE:
        return (
            f"PEFT's PREFIX_TUNING needs a key/value cache, and {kind} models take none; "
            "prompt.depth 'input' with prompt.placement 'start' can be expressed"
        )
    if first:
        return (
            f"its prompt begins at layer {first}, and PEFT's PREFIX_TUNING prompts every layer; "
            "prompt.first_layer 0 can be expressed"
        )
    if (pooling := adapter.prompt.get("pooling") or "native") != "native":
        return (
            f"its head reads by the pooling {pooling!r}, and under PEFT it reads the backbone's own pooled "
            "token; prompt.pooling 'native' can be expressed"
        )
    if adapter.units is not None:
        return (
            f"its prompt has {adapter.units.shape[2]} virtual units in the feed-forward networks, and PEFT's "
            "PREFIX_TUNING has a place in the attention alone; prompt.num_virtual_units 0 can be expressed"
        )
    expected = 0 if kind in NO_POSITION_IDS else adapter.virtual_tokens
    if offset not in (None, expected):  # None: PEFT wrote it, and the backbone decides as PEFT does
        return (
            f"its prompt.position_offset is {offset}, and PEFT's PREFIX_TUNING always means {expected} for "
            f"{adapter.virtual_tokens} virtual tokens on {kind}; that value can be expressed"
        )
    return None


def to_peft(adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``adapter_config.json`` and the tensors of ``adapter_model.safetensors``.

    The tensors are contiguous copies on the CPU that share no memory, as safetensors requires.
    """
    if why_not_peft(adapter) is not None:
        kind, own = OURS, {"num_virtual_tokens": adapter.virtual_tokens}
    elif adapter.deep:
        kind, own = "PREFIX_TUNING", _prefix_options(adapter)
    else:
        kind, own = "P_TUNING", _input_options(adapter)
    layout = LAYOUTS[kind]
    tensors = {layout.key: layout.pack(adapter.prompt_tensor)}
    tensors |= {} if adapter.units is None else {UNITS: adapter.units}
    tensors |= {HEAD_PREFIX + name: value for name, value in adapter.head.items()}
    config = {
        "peft_type": kind,
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": adapter.backbone.get("name"),
        "revision": adapter.backbone.get("revision"),
        "inference_mode": True,
        **own,
    }
    return config, {name: _detached(value) for name, value in tensors.items()}


def from_peft(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """The prompt in our shape, its virtual units if it has any, and the head by the backbone's own names: the
    inverse of :func:`to_peft`.

    Raises:
        AdapterError: a ``peft_type`` that is not in :data:`LAYOUTS`, or tensors that are not its.
    """
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        raise AdapterError(f"its peft_type is {kind!r}, expected one of {', '.join(LAYOUTS)}")
    layout = LAYOUTS[kind]
    rest = dict(tensors)
    if layout.key not in rest:
        raise AdapterError(f"its tensors lack {layout.key!r}, expected for peft_type {kind}")
    stored = rest.pop(layout.key)
    units = rest.pop(UNITS, None) if kind == OURS else None
    if strange := sorted(name for name in rest if not name.startswith(HEAD_PREFIX)):
        raise AdapterError(
            f"it holds a tensor {strange[0]!r}; expected {layout.key!r} and {HEAD_PREFIX}* for the head"
        )
    layers = config.get("num_layers") if kind == "PREFIX_TUNING" else 1
    if type(layers) is not int or layers < 1 or (kind == "PREFIX_TUNING" and not is_prefix(stored, layers)):
        raise AdapterError(
            f"its {layout.key!r} of shape {list(stored.shape)} is no {kind} prompt of {layers!r} layers"
        )
    prompt = layout.unpack(stored, layers)
    return prompt, units, {name.removeprefix(HEAD_PREFIX): value for name, value in rest.items()}


def modules_to_save(adapter: Adapter) -> list[str]:
    """The modules besides the head of which the task holds a copy, as PEFT names them."""
    return sorted({_module(name) for name in adapter.head if name != MIX} - set(_ALWAYS_SAVED))


def _shared_options(adapter: Adapter) -> dict[str, Any]:
    modules = modules_to_save(adapter)
    return {
        "auto_mapping": WRITTEN_BY_US,
        "num_virtual_tokens": adapter.virtual_tokens,
        "num_transformer_submodules": 1,
        "num_layers": adapter.backbone["num_layers"],
        "modules_to_save": modules or None,
    }


def _input_options(adapter: Adapter) -> dict[str, Any]:
    """PEFT loads a prompt in inference mode: the encoder is not built, its options describe nothing kept."""
    width = int(adapter.prompt_tensor.shape[1])
    return {
        **_shared_options(adapter),
        "token_dim": width,  # E. Left out, PEFT would take the hidden width: wrong for ALBERT, ELECTRA
        "num_attention_heads": 1 if adapter.backbone.get("model_type") in HEADS_NOT_FOUND else None,
        "encoder_reparameterization_type": "MLP",
        "encoder_hidden_size": width,
        "encoder_num_layers": 2,
        "encoder_dropout": 0.0,
    }


def _prefix_options(adapter: Adapter) -> dict[str, Any]:
    """PEFT reads heads and their width from the backbone; our facts hold only the product, H_kv."""
    return {
        **_shared_options(adapter),
        "token_dim": None,
        "num_attention_heads": None,
        "encoder_hidden_size": None,
        "prefix_projection": False,
    }


def _module(name: str) -> str:
    """Which whole module PEFT must save to hold the parameter ``name``.

    ``classifier.dense.weight`` → ``classifier``; ``bert.pooler.dense.weight`` → ``bert.pooler``.
    """
    parts = name.split(".")
    if "pooler" in parts:
        return ".".join(parts[: parts.index("pooler") + 1])
    return parts[0] if parts[0] in _ALWAYS_SAVED else name.rpartition(".")[0]


def _detached(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()
