"""PEFT's adapter format, if PEFT can represent the adapter; otherwise ptuning's, in files of the same names.

PEFT's ``P_TUNING`` is input depth before ``[CLS]`` (placement ``start``). Its ``PREFIX_TUNING`` is deep in
every layer, with the positions of the text shifted by P, because PEFT's prompt is a key/value cache. Any
other adapter is written as ``peft_type: "PTUNING"``, a name that PEFT does not know, so that it refuses the
folder rather than computing something else.

See also: ``record.py`` for what is written, ``folder.py``, which writes it. PEFT itself is not imported; the
tests compare this module with the installed PEFT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ptuning.adapters.calibrated import LEFT_OUT, recalibrated
from ptuning.adapters.record import MIX, Adapter
from ptuning.errors import AdapterError
from ptuning.task import OVERLAP

UNITS = "units"
"""The tensor name of a prompt's virtual units; PEFT has no such tensor."""

HEAD_PREFIX = "base_model."
"""PEFT has the backbone in ``PeftModel.base_model``; the keys of the head start with this prefix."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one ``peft_type`` stores a prompt.

    Args:
        key: The name of the prompt tensor.
        pack: Converts the prompt to the stored shape.
        unpack: The inverse, given the number of prompted layers.
    """

    key: str
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, int], Tensor]


def _unchanged(prompt: Tensor, _: int = 0) -> Tensor:
    return prompt


def _pack_layers(prompt: Tensor) -> Tensor:
    """``[L, 2, P, H_kv]`` → ``[P, L·2·H_kv]``: a row is layer-major, keys then values."""
    return prompt.permute(2, 0, 1, 3).reshape(prompt.shape[2], -1)


def unpack_layers(stored: Tensor, layers: int) -> Tensor:
    """PEFT's prefix ``[P, L·2·H_kv]`` in ptuning's shape, ``[L, 2, P, H_kv]``."""
    return stored.view(stored.shape[0], layers, 2, -1).permute(1, 2, 0, 3).contiguous()


def is_prefix(stored: Tensor, layers: int) -> bool:
    """Whether :func:`unpack_layers` can convert ``stored``."""
    return stored.dim() == 2 and stored.numel() > 0 and stored.shape[1] % (2 * layers) == 0


OURS = "PTUNING"
LAYOUTS: Mapping[str, Layout] = {
    "P_TUNING": Layout(key="prompt_embeddings", pack=_unchanged, unpack=_unchanged),
    "PREFIX_TUNING": Layout(key="prompt_embeddings", pack=_pack_layers, unpack=unpack_layers),
    OURS: Layout(key="prompt", pack=_unchanged, unpack=_unchanged),
}

WRITTEN_BY_US: Mapping[str, str] = {"written_by": "ptuning"}
"""The value of a field that PEFT ignores if there is a ``task_type``. It marks a folder of ptuning's, so that
one without its ``ptuning.json``, which has the labels, is not mistaken for a PEFT adapter."""

# PEFT's (0.21) behaviour for some architectures, by ``model_type``. The tests compare this with PEFT.
NO_CACHE = frozenset(
    {
        *("albert", "distilbert", "modernbert", "deberta-v2", "mpnet"),
        *("eurobert", "nomic_bert", "gte", "jina_embeddings_v3", "ultrabert"),
    }
)
"""Their forward has no key/value cache, so PEFT's ``PREFIX_TUNING`` raises."""
NO_POSITION_IDS = frozenset({"bloom"})
"""A cache does not shift positions: ALiBi uses distances from the mask, so PEFT's offset is 0."""
HEADS_NOT_FOUND = frozenset({"distilbert"})
"""PEFT looks up ``num_attention_heads`` under names that this configuration does not have, although
``P_TUNING`` does not use the value."""

_ALWAYS_SAVED = ("classifier", "score")
"""PEFT adds these to ``modules_to_save`` itself at every load, so they are not written."""


def why_not_peft(adapter: Adapter) -> str | None:
    """Why PEFT cannot load this adapter, and which option would change that; ``None`` if it can."""
    task = adapter.task
    if adapter.cloze is not None:
        return "it has a cloze head, and PEFT's sequence classification has a trained one"
    if not any(_module(name) in _ALWAYS_SAVED for name in adapter.head):
        return "it has no head, and PEFT expects one; prompt.train_head true saves one"
    if (reason := _why_not_prefix(adapter) if adapter.deep else _why_not_input(adapter)) is not None:
        return reason
    if task.mean != 0 or task.scale != 1:  # last, because export-peft can solve this one
        return (
            f"its scores are in units of {task.scale:g} around {task.mean:g}, and PEFT's format has no "
            "scaling; saving with peft=True (ptuning export-peft) moves the scaling into the head"
        )
    return None


def for_peft(adapter: Adapter) -> Adapter:
    """The adapter in a form that PEFT can represent, with the same logits.

    The scaling of a regression is folded into the output layer. Temperature, thresholds and windows are left
    out (:func:`left_out_for_peft`): PEFT does not know them, and a folder should mean the same to every
    reader.

    Raises:
        AdapterError: there is no such form; says why, and which option would change that.
    """
    task = adapter.task
    if task.mean != 0 or task.scale != 1:
        # The output layer has one row, and may have a bias of one value. The task may also own other tensors
        # of one row (RoBERTa's token types).
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
                f"PEFT cannot load this adapter: its scores are around {task.mean:g}, and {rows[-1]} "
                "has no bias that could include that",
                remedy="train on targets minus their mean",
            )
    if (reason := why_not_peft(adapter)) is not None:
        raise AdapterError(f"PEFT cannot load this adapter: {reason}")
    if (note := left_out_for_peft(adapter)) is not None:
        plain = recalibrated(adapter, adapter.task.uncalibrated())
        task = replace(plain.task, max_windows=1, window_overlap=OVERLAP)
        adapter = replace(plain, task=task, extra={**plain.extra, LEFT_OUT: note})
    return adapter


def left_out_for_peft(adapter: Adapter) -> str | None:
    """What :func:`for_peft` leaves out, and what to do about it, in a sentence; ``None`` if nothing."""
    task = adapter.task
    lacks = ["calibration"] * task.is_calibrated + ["windows"] * (task.max_windows > 1)
    if not lacks:
        return None
    parts = [f"the temperature {task.temperature:.4g}: divide the logits by it"] * (task.temperature != 1)
    if task.thresholds:
        parts.append(f"the thresholds {', '.join(f'{each:.4g}' for each in task.thresholds)}")
    if task.max_windows > 1:
        parts.append(f"windows: average the logits of up to {task.max_windows} windows of a long text")
    return f"PEFT's format has no {' and no '.join(lacks)}, so this is left out: {'; '.join(parts)}"


def _why_not_input(adapter: Adapter) -> str | None:
    placement = adapter.prompt.get("placement")
    if placement != "start" or adapter.anchors:
        return (
            f"its virtual tokens are placed at {placement!r}, and those of PEFT's P_TUNING are always before "
            "the entire text; train again with prompt.placement 'start'"
        )
    return None


def _why_not_prefix(adapter: Adapter) -> str | None:
    kind = adapter.backbone.get("model_type")
    first, offset = adapter.prompt.get("first_layer", 0), adapter.prompt.get("position_offset", 0)
    if kind in NO_CACHE:
        return (
            f"PEFT's PREFIX_TUNING needs a key/value cache, and {kind} models have none; "
            "train again with prompt.depth 'input' and prompt.placement 'start'"
        )
    if first:
        return (
            f"its prompt starts at layer {first}, and PEFT's PREFIX_TUNING has a prompt in every layer; "
            "train again with prompt.first_layer 0"
        )
    if adapter.anchors:
        return (
            f"its template {adapter.prompt.get('template')!r} has words, which PEFT does not insert; "
            "train again with prompt.pooling 'native' and without prompt.template"
        )
    if (pooling := adapter.prompt.get("pooling") or "native") != "native":
        return (
            f"its pooling is {pooling!r}, and with PEFT the head reads the backbone's own pooled token; "
            "train again with prompt.pooling 'native'"
        )
    if adapter.units is not None:
        return (
            f"its prompt has {adapter.units.shape[2]} virtual units in the feed-forward networks, and PEFT's "
            "PREFIX_TUNING only changes the attention; train again with prompt.num_virtual_units 0"
        )
    expected = 0 if kind in NO_POSITION_IDS else adapter.virtual_tokens
    if offset not in (None, expected):  # None: PEFT wrote it, and the backbone decides like PEFT
        return (
            f"its prompt.position_offset is {offset}, and PEFT's PREFIX_TUNING always uses {expected} for "
            f"{adapter.virtual_tokens} virtual tokens on {kind}; train again with that value"
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
    """The inverse of :func:`to_peft`: the prompt in ptuning's shape, its virtual units if it has any, and the
    head by the backbone's own names.

    Raises:
        AdapterError: a ``peft_type`` that is not in :data:`LAYOUTS`, or tensors that do not match it.
    """
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        raise AdapterError("peft_type", got=repr(kind), expected=f"one of {', '.join(LAYOUTS)}")
    layout = LAYOUTS[kind]
    rest = dict(tensors)
    if layout.key not in rest:
        raise AdapterError(f"its tensors lack {layout.key!r}, which peft_type {kind} needs")
    stored = rest.pop(layout.key)
    units = rest.pop(UNITS, None) if kind == OURS else None
    if strange := sorted(name for name in rest if not name.startswith(HEAD_PREFIX)):
        raise AdapterError(
            got=f"a tensor {strange[0]!r}", expected=f"{layout.key!r} and {HEAD_PREFIX}* for the head"
        )
    layers = config.get("num_layers") if kind == "PREFIX_TUNING" else 1
    if type(layers) is not int or layers < 1 or (kind == "PREFIX_TUNING" and not is_prefix(stored, layers)):
        raise AdapterError(
            f"its {layout.key!r} has the shape {list(stored.shape)}, which is not a {kind} prompt for "
            f"{layers!r} layers"
        )
    prompt = layout.unpack(stored, layers)
    return prompt, units, {name.removeprefix(HEAD_PREFIX): value for name, value in rest.items()}


def modules_to_save(adapter: Adapter) -> list[str]:
    """PEFT's names of the modules, other than the head, that the task has a copy of."""
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
    """PEFT loads a prompt in inference mode, without its encoder, so the encoder options have no effect."""
    width = int(adapter.prompt_tensor.shape[1])
    return {
        **_shared_options(adapter),
        "token_dim": width,  # E. PEFT's default is the hidden width, which is wrong for ALBERT and ELECTRA
        "num_attention_heads": 1 if adapter.backbone.get("model_type") in HEADS_NOT_FOUND else None,
        "encoder_reparameterization_type": "MLP",
        "encoder_hidden_size": width,
        "encoder_num_layers": 2,
        "encoder_dropout": 0.0,
    }


def _prefix_options(adapter: Adapter) -> dict[str, Any]:
    """PEFT takes the number and width of heads from the backbone; our facts only have their product, H_kv."""
    return {
        **_shared_options(adapter),
        "token_dim": None,
        "num_attention_heads": None,
        "encoder_hidden_size": None,
        "prefix_projection": False,
    }


def _module(name: str) -> str:
    """The module that PEFT must save in order to save the parameter ``name``.

    ``classifier.dense.weight`` → ``classifier``; ``bert.pooler.dense.weight`` → ``bert.pooler``.
    """
    parts = name.split(".")
    if "pooler" in parts:
        return ".".join(parts[: parts.index("pooler") + 1])
    return parts[0] if parts[0] in _ALWAYS_SAVED else name.rpartition(".")[0]


def _detached(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()
