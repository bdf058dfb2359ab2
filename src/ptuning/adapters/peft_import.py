"""Reads adapters that PEFT wrote: ``P_TUNING``, ``PROMPT_TUNING`` and ``PREFIX_TUNING`` for classification.

PEFT saves the output of the prompt encoder, and the layer called ``classifier`` or ``score``. Its files do
not have labels, the maximum input length or facts about the backbone, so the :class:`Adapter` does not have
them
either: the labels are numbers, and most facts of the backbone are ``None``.

:data:`OPTIONS` lists the PEFT options that are supported. Any other option with a value is refused, because
it may change the logits.

See also: ``peft_format.py`` for the other direction, ``folder.py``, which calls :func:`read`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ptuning.adapters.peft_format import HEAD_PREFIX, LAYOUTS, WRITTEN_BY_US
from ptuning.adapters.record import OUTPUT_LAYERS, Adapter, output_layer
from ptuning.adapters.schema import Text
from ptuning.adapters.tensors import check_finite, first_line, parse_tensors
from ptuning.errors import AdapterError, ConfigError
from ptuning.files import MAX_JSON_BYTES, parse_json, read_regular
from ptuning.kinds import standard_kind
from ptuning.model.config import prompt_from_dict
from ptuning.task import Task
from ptuning.validation import explain, shortened

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

PROMPT = "prompt_embeddings"
"""The name of the prompt tensor in all of PEFT's formats."""

KINDS: Mapping[str, str] = {"P_TUNING": "input", "PROMPT_TUNING": "input", "PREFIX_TUNING": "deep"}
"""``peft_type`` → depth."""

_SHARED = frozenset(
    [
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "num_virtual_tokens",
        "token_dim",
        "num_transformer_submodules",
        "num_attention_heads",
        "num_layers",
        "modules_to_save",
    ]
)
OPTIONS: Mapping[str, frozenset[str]] = {
    "P_TUNING": _SHARED
    | {"encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"},
    "PROMPT_TUNING": _SHARED
    | {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"},
    "PREFIX_TUNING": _SHARED | {"init_weights", "encoder_hidden_size", "prefix_projection"},
}
"""Supported options by ``peft_type``. Options of the prompt encoder are not needed for inference."""

_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Fields(BaseModel):
    """The types of the options that are used, if present; booleans are not accepted as numbers."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="ignore")
    peft_type: Text
    task_type: Text | None = None
    peft_version: Text | None = None
    base_model_name_or_path: Text | None = None
    revision: Text | None = None
    num_virtual_tokens: _Count | None = None
    num_layers: _Count | None = None
    num_transformer_submodules: _Count | None = None
    encoder_hidden_size: _Count | None = None
    encoder_num_layers: _Count | None = None
    encoder_dropout: Annotated[float, Field(ge=0, le=1)] | None = None
    encoder_reparameterization_type: Literal["MLP", "LSTM"] | None = None
    prefix_projection: bool | None = None


NAMES: Mapping[str, str] = {".modules_to_save.default.": ".", ".modules_to_save.": "."}
"""Infixes in parameter names of the head from older PEFT versions, and their replacements."""


def is_peft(folder: Path) -> bool:
    """Whether ``folder`` has a PEFT adapter, of a supported kind or not."""
    return _peft_type(folder) is not None


def peft_config(folder: Path) -> dict[str, Any]:
    """The contents of PEFT's ``adapter_config.json``, after checking that all options are supported.

    Raises:
        AdapterError: as :func:`read`.
    """
    config = _checked(folder)
    _kind(folder, config)
    return config


def read(folder: Path, *, allow_pickle: bool = False) -> Adapter:
    """Read an adapter that PEFT wrote.

    Args:
        folder: A folder written by ``PeftModel.save_pretrained``.
        allow_pickle: Whether to read ``adapter_model.bin`` if there is no safetensors file.

    Raises:
        AdapterError: an unsupported kind, task or option, or a file that was altered or cut short.
    """
    config = _checked(folder)
    if config.get("auto_mapping") == WRITTEN_BY_US:
        raise AdapterError(
            f"{folder} was written by ptuning, but its ptuning.json, which has the labels, is missing",
            remedy="copy or download the folder again",
        )
    kind = _kind(folder, config)
    tensors = {
        _name(name): _real(folder, name, value) for name, value in _tensors(folder, allow_pickle).items()
    }
    check_finite(tensors, f" in {folder}", "its training diverged, so train it again")
    prompt = _prompt(folder, config, tensors.pop(PROMPT, None))
    if strange := sorted(name for name in tensors if not name.startswith(HEAD_PREFIX)):
        raise AdapterError(
            str(folder),
            got=f"a tensor {strange[0]!r}",
            expected=f"{PROMPT!r} and {HEAD_PREFIX}* for the head",
        )
    head = {name.removeprefix(HEAD_PREFIX): value for name, value in tensors.items()}
    deep = KINDS[kind] == "deep"
    facts: dict[str, Any] = dict.fromkeys(
        ("model_type", "hidden_size", "embedding_size", "key_value_size", "vocab_size", "num_parameters")
    )
    choices = _choices(kind, config, prompt)
    try:
        prompt_from_dict(choices)
    except ConfigError as error:
        raise AdapterError(f"{folder / CONFIG} has options that PEFT cannot have written: {error}") from error
    return Adapter(
        prompt=choices,
        task=_task(folder, head),
        backbone={
            **facts,
            "name": config.get("base_model_name_or_path"),
            "revision": config.get("revision"),
            "num_layers": prompt.shape[0] if deep else None,
            "key_value_size" if deep else "embedding_size": prompt.shape[-1],
            "fingerprint": None,
        },
        prompt_tensor=prompt,
        head=head,
        extra={"imported": {"peft_type": kind, "peft_version": config.get("peft_version")}},
    )


# ------------------------------------------------------------------------------------------ reading


def _config(folder: Path) -> dict[str, Any]:
    try:
        values = parse_json(read_regular(folder / CONFIG, MAX_JSON_BYTES))
    except OSError as error:
        raise AdapterError(f"{folder / CONFIG} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise AdapterError(
            f"{CONFIG} in {folder} was altered or cut short: it is not valid JSON ({first_line(error)})",
            remedy="copy or download it again",
        ) from None
    if not isinstance(values, dict):
        raise AdapterError(
            str(folder / CONFIG), got=f"a JSON {type(values).__name__}", expected="a JSON object"
        )
    return values


def _checked(folder: Path) -> dict[str, Any]:
    """The configuration, after checking the types of its options."""
    values = _config(folder)
    try:
        _Fields.model_validate(values)
    except ValidationError as error:
        wrong = explain(error)
        remedy = "; ".join(filter(None, (wrong.remedy, "it was altered")))
        problem = f"{folder / CONFIG}, {wrong.problem}"
        raise AdapterError(problem, got=wrong.got, expected=wrong.expected, remedy=remedy) from None
    return values


def _peft_type(folder: Path) -> str | None:
    try:
        kind = _config(folder).get("peft_type")
    except AdapterError:
        return None
    return kind if isinstance(kind, str) else None


def _kind(folder: Path, config: Mapping[str, Any]) -> str:
    """The ``peft_type``, after checking that all options are supported."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise AdapterError(
            f"{folder} is a PEFT adapter of type {shortened(kind)}",
            expected=f"one of {', '.join(KINDS)}",
            remedy="load it with peft.PeftModel.from_pretrained",
        )
    if (task := config.get("task_type")) != "SEQ_CLS":
        raise AdapterError(
            f"{folder} is a {kind} adapter for the task_type {shortened(task)}",
            expected="'SEQ_CLS', because ptuning does classification",
            remedy="load it with peft.PeftModel.from_pretrained",
        )
    if (parts := config.get("num_transformer_submodules")) not in (None, 1):
        raise AdapterError(
            f"{folder} is for an encoder-decoder model ({parts} transformers)",
            expected="one transformer",
            remedy="load it with peft.PeftModel.from_pretrained",
        )
    unknown = {name: value for name, value in config.items() if name not in OPTIONS[kind]}
    if given := sorted(name for name, value in unknown.items() if value not in (None, False, [], {})):
        close = difflib.get_close_matches(given[0], OPTIONS[kind], n=1)
        meant = f"did you mean {close[0]!r}? Otherwise update" if close else "update"
        raise AdapterError(
            f"{folder / CONFIG} has the option {shortened(given[0])} ({shortened(unknown[given[0]])}), "
            f"which this version of ptuning does not know for {kind}",
            remedy=f"{meant} ptuning, or load it with peft.PeftModel.from_pretrained",
        )
    return kind


def _tensors(folder: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if (file := folder / WEIGHTS).is_file():
        try:
            return parse_tensors(read_regular(file))
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"{WEIGHTS} in {folder} was altered or cut short ({error})",
                remedy="copy or download it again",
            ) from error
    if not (file := folder / PICKLED).is_file():
        raise AdapterError(f"{folder} has a {CONFIG} and no {WEIGHTS}", remedy="copy or download it again")
    if not allow_pickle:
        raise AdapterError(
            f"{folder} has a pickle ({PICKLED}, from an old version of PEFT) instead of {WEIGHTS}",
            remedy="if you trust it, pass --allow-pickle (in Python: allow_pickle=True)",
        )
    try:  # torch's restricted unpickler makes tensors and containers, and runs nothing
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file may raise anything
        raise AdapterError(
            f"{PICKLED} in {folder} is not a pickle of tensors only, or was cut short ({first_line(error)})",
            remedy="do not trust it, and ask for safetensors",
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise AdapterError(
            f"{PICKLED} in {folder} is not a dictionary of named tensors", remedy="ask for safetensors"
        )
    return found


def _real(folder: Path, name: str, value: Tensor) -> Tensor:
    """The tensor in fp32; a tensor that is not floating point cannot be a trained parameter."""
    if not value.is_floating_point() or value.layout != torch.strided:
        raise AdapterError(
            f"{folder}: {name} is {value.dtype} ({value.layout})",
            expected="floating point values",
            remedy="it was altered",
        )
    return value.float()


def _name(name: str) -> str:
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name


# ------------------------------------------------------------------------------------------ meaning


def _prompt(folder: Path, config: Mapping[str, Any], stored: Tensor | None) -> Tensor:
    """The prompt in ptuning's shape."""
    if stored is None:
        raise AdapterError(f"{folder} lacks the tensor {PROMPT!r}", remedy="copy or download it again")
    kind, layers = str(config["peft_type"]), config.get("num_layers")
    tokens = config.get("num_virtual_tokens")
    if stored.dim() != 2 or stored.shape[0] != tokens or not stored.numel():
        raise AdapterError(
            f"{folder}: its {PROMPT!r} has the shape {list(stored.shape)}",
            expected=f"{tokens} rows, as in {CONFIG}, and at least 1",
            remedy="copy or download both again",
        )
    if KINDS[kind] == "input":
        return stored.contiguous()
    if not isinstance(layers, int) or layers < 1 or stored.shape[1] % (2 * layers):
        raise AdapterError(
            f"{folder}: its {PROMPT!r} has the shape {list(stored.shape)}, which is not a prefix for "
            f"{layers} layers",
            remedy="copy or download it again",
        )
    return LAYOUTS[kind].unpack(stored, layers)


def _task(folder: Path, head: Mapping[str, Tensor]) -> Task:
    """The task, as far as the width of the logits determines it; 1 means regression, as in transformers."""
    layer = output_layer(head)
    weight = None if layer is None else head[f"{layer}.weight"]
    if weight is not None and (weight.dim() != 2 or not weight.numel()):
        raise AdapterError(
            f"{folder}: {layer}.weight has the shape {list(weight.shape)}",
            expected="one row per label",
            remedy="it was altered",
        )
    width = None if weight is None else weight.shape[0]
    bias = head.get(f"{layer}.bias")
    if bias is not None and bias.shape != (width,):
        raise AdapterError(
            f"{folder}: {layer}.weight has {width} labels and {layer}.bias has the shape {list(bias.shape)}",
            remedy="it was altered",
        )
    if width is None:
        raise AdapterError(
            f"{folder} has no classification layer ({', '.join(OUTPUT_LAYERS)}), so PEFT itself would "
            "use a random one",
            remedy="ask for an adapter that was saved with it",
        )
    kind = standard_kind(width)
    return Task(problem_type=kind.name, labels=kind.numbered_labels(width))


def _choices(kind: str, config: Mapping[str, Any], prompt: Tensor) -> dict[str, Any]:
    """The configuration of the prompt in ptuning's terms."""
    choices: dict[str, Any] = {"depth": KINDS[kind], "num_virtual_tokens": int(prompt.shape[-2])}
    if KINDS[kind] == "deep":
        # The backbone decides the offset, because it depends on how its architecture treats a key/value
        # cache.
        projected = {"kind": "mlp", "width": config.get("encoder_hidden_size")}
        return {
            **choices,
            "first_layer": 0,
            "position_offset": None,
            "pooling": "native",
            **({"encoder": projected} if config.get("prefix_projection") else {}),
        }
    choices["placement"] = "start"
    if kind == "P_TUNING":
        choices["encoder"] = _encoder(config)
    return choices


def _encoder(config: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt encoder, for the record; it is not needed for inference."""
    width = config.get("encoder_hidden_size")
    if config.get("encoder_reparameterization_type") != "LSTM":
        return {"kind": "mlp", "width": width}
    layers = config.get("encoder_num_layers") or 2
    dropout = config.get("encoder_dropout") or 0.0 if layers > 1 else 0.0
    return {"kind": "lstm", "width": width, "num_layers": layers, "dropout": dropout}
