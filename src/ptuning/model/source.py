"""Checks a backbone's folder or repository, and turns any damage into one error that names the damaged part.

transformers reads configuration, weights and tokenizer, and raises all kinds of errors: a ``KeyError`` for an
unknown activation, the safetensors library's own error, a plain ``Exception``. :func:`reading` is the only
place that turns them into errors of ptuning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import hf_hub_download
from transformers import PreTrainedConfig

from ptuning.adapters.hub import HTTPError
from ptuning.adapters.tensors import first_line
from ptuning.errors import BackboneNotFound, PTuningError, UnsupportedBackbone, out_of_memory
from ptuning.files import MAX_JSON_BYTES, is_special, parse_json, read_regular
from ptuning.model.architectures import ARCHITECTURES, EXPECTED
from ptuning.validation import shortened

Part = Literal["configuration", "weights", "tokenizer"]
_FILES: Mapping[Part, str] = {
    "configuration": "config.json",
    "weights": "model.safetensors",
    "tokenizer": "tokenizer.json, tokenizer_config.json",
}
_POOLING = "1_Pooling/config.json"
"""sentence-transformers' file about pooling."""

_MAXIMA: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1_000),
    **dict.fromkeys(("hidden_size", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), 1_000_000),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "hidden_dim", "n_inner"), 10_000_000),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_key_value_heads"), 100_000),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "position_buckets"), 100_000_000),
    **dict.fromkeys(("head_dim", "type_vocab_size", "max_relative_positions", "conv_kernel_size"), 1_000_000),
    "vocab_size": 100_000_000,
    "num_labels": 1_000_000,
}
"""Bounds far above any real model. Beyond them, transformers would use all memory, or build for hours."""
_MAX_TABLE = 2**36
"""The maximum number of parameters of an embedding table: 256 GiB."""


@contextmanager
def reading(name: str, source: str, part: Part, *, hint: str = "") -> Iterator[None]:
    """Turn any error in the ``with`` block into one that says which part of the backbone could not be read.

    Args:
        name: The backbone's name, as the user gave it.
        source: The folder or Hub id that is loaded.
        hint: A further remedy.

    Raises:
        BackboneNotFound: in place of every error except ours, out of memory and an interrupt.
    """
    try:
        yield
    except PTuningError:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in the tokenizers library is a BaseException
        if out_of_memory(error):
            raise
        raise _unreadable(name, source, part, error, hint) from error


def _unreadable(
    name: str, source: str, part: Part, error: BaseException, hint: str
) -> BackboneNotFound | UnsupportedBackbone:
    local = _is_there(source)
    reason, shown = first_line(error)[:300], shortened(name)
    problem = f"backbone {shown} could not be loaded"
    if not local and _is_a_missing_path(source):
        reason = "there is no such folder"  # the Hub's words about repository ids say nothing of that
    if not local and isinstance(error, OSError | ValueError):  # usually it does not exist
        return BackboneNotFound(
            f"{problem}: {reason}",
            expected="a folder with config.json and model.safetensors, a Hub id such as 'roberta-base' "
            "(with a connection, or already in the cache), or 'demo' for the embedded MiniLM",
            remedy=f"{hint}if an adapter names it, say where it is with --backbone (in Python: backbone=…)",
        )
    kind = type(error).__name__
    if isinstance(error, ImportError):
        return BackboneNotFound(
            f"{problem}: its {part} needs a package that is not installed ({reason})",
            remedy="install it, or name another backbone",
        )
    where = "copy the folder again" if local else "delete it from the Hub's cache and download it again"
    return BackboneNotFound(
        f"{problem}: its {part} ({_FILES[part]}) is damaged, or of a kind that transformers does not know "
        f"({kind}: {reason})",
        remedy=f"{hint}{where}, or name another backbone",
    )


def _is_there(source: str) -> bool:
    """Whether ``source`` is a model's folder on this machine."""
    try:
        return (Path(source) / "config.json").is_file() or (Path(source) / "tokenizer_config.json").is_file()
    except (OSError, ValueError):
        return False


def _is_a_missing_path(source: str) -> bool:
    """Whether ``source`` is a path, as no Hub id begins like it or has two slashes, and nothing is there."""
    if not (source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source):
        return False
    try:
        return not Path(source).exists()
    except (OSError, ValueError):
        return False


def check_folder(name: str, source: str) -> None:
    """Refuse a folder with a pipe or a device in place of a file, because reading it might never end.

    Raises:
        BackboneNotFound: names the file.
    """
    try:
        children = [*Path(source).iterdir(), Path(source) / _POOLING] if Path(source).is_dir() else []
    except (OSError, ValueError):
        return  # transformers will report the error
    for child in children:
        if is_special(child):
            raise BackboneNotFound(
                f"backbone {name!r} could not be loaded: {child} is not a regular file (a pipe or a device)",
                remedy="put the model's own file there, or name another backbone",
            )


def check_config(name: str, source: str, **options: Any) -> None:
    """Read the configuration as plain JSON, and refuse models that transformers should not try to build.

    Args:
        options: As transformers' ``from_pretrained`` takes them: ``revision``, ``token``, …

    Raises:
        UnsupportedBackbone: an architecture that is not in the table.
        Exception: no such model, not JSON, absurd sizes; :func:`reading` turns it into an error of ptuning.
    """
    if (file := Path(source) / "config.json").is_file():
        parse_json(
            read_regular(file, MAX_JSON_BYTES)
        )  # before transformers, which has no limits on size and depth
    values, _ = PreTrainedConfig.get_config_dict(source, **options)
    if not isinstance(values, dict):
        raise TypeError(f"it is a {type(values).__name__}, expected a JSON object")
    kind = values.get("model_type")
    if isinstance(kind, str) and kind not in ARCHITECTURES:
        raise unsupported(name, kind)
    for field, maximum in _MAXIMA.items():
        value = values.get(field)
        if isinstance(value, int) and value > maximum:
            raise ValueError(f"{field} is {str(value)[:30]}, expected at most {maximum}")
    width = max((_int(values.get(field)) for field in ("hidden_size", "n_embd", "dim")), default=0)
    for field in ("vocab_size", "max_position_embeddings", "n_positions"):
        if _int(values.get(field)) * width > _MAX_TABLE:
            raise ValueError(
                f"{field} is {values[field]}, which makes a table of {values[field]} × {width} parameters"
            )


def unsupported(name: str, kind: Any) -> UnsupportedBackbone:
    """The error for a ``model_type`` that is not in the table."""
    return UnsupportedBackbone(
        f"{name}: this architecture is not supported",
        got=repr(str(kind)[:100]),
        expected=EXPECTED,
    )


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def pooling(
    name: str, source: str, revision: str | None, token: str | bool | None, *, cached_only: bool
) -> Literal["native", "mean"]:
    """``mean`` for a sentence embedding model with mean pooling; ``native`` for all other models.

    Raises:
        BackboneNotFound: its file cannot be read.
    """
    try:
        file = Path(source) / _POOLING
        if not Path(source).is_dir():
            file = Path(
                hf_hub_download(
                    source, _POOLING, revision=revision, token=token, local_files_only=cached_only
                )
            )
        if not file.is_file():
            return "native"
    except (OSError, ValueError, HTTPError):  # most models have no such file
        return "native"
    try:
        says = parse_json(read_regular(file, MAX_JSON_BYTES))
        if not isinstance(says, dict):
            raise ValueError(f"it is a {type(says).__name__}, expected a JSON object")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise BackboneNotFound(
            f"backbone {name!r} could not be loaded: its pooling ({_POOLING}) is damaged ({reason})",
            remedy="copy or download it again, or delete that file",
        ) from error
    mean = says.get("pooling_mode_mean_tokens") or says.get("pooling_mode") == "mean"
    return "mean" if mean else "native"
