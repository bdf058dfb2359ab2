"""Caches the input of the first prompted layer: the frozen layers below it (the stem) always give the same.

The texts of a run are sorted (distinct rows by length, then by their tokens), run through the stem once in
batches of that order, and concatenated into one tensor ``[tokens, H]``. So the values are a function of the
texts and the backbone only, and one file on disk, named by a digest of both, serves all runs and tasks on the
same texts.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from io import RawIOBase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptuning.cache import Cache
from ptuning.data.tokens import TokenRow, collate, sorted_batches, windows_of
from ptuning.model.ptuning import PTuningModel

BATCH_TOKENS = 4096
"""Tokens per batch. It is fixed, because the last bits of the values depend on it."""

GIB = 2**30
_NAME = "hidden"


class Stems:
    """The stem outputs of a set of texts.

    Args:
        hidden: ``[tokens, H]``, the concatenated outputs of all rows; in memory, or mapped from a file.
        places: The start of each row, by :func:`identity`.
    """

    def __init__(self, hidden: Tensor, places: dict[bytes, int]) -> None:
        self.hidden = hidden
        self._places = places

    def of(self, rows: Sequence[TokenRow]) -> Tensor:
        """``[B, T, H]``, padded like the output of :func:`~ptuning.data.tokens.collate`; B counts windows."""
        rows = windows_of(rows)
        found = self.hidden.new_zeros(len(rows), max(map(len, rows)), self.hidden.shape[1])
        for number, row in enumerate(rows):
            begin = self._places[identity(row)]
            found[number, : len(row)] = self.hidden[begin : begin + len(row)]
        return found


def identity(row: TokenRow) -> bytes:
    """A key for the row: all that the backbone reads of it."""
    ids = array("i", row.input_ids)
    types = b"" if row.token_type_ids is None else bytes(row.token_type_ids)
    return b"%d " % len(ids) + ids.tobytes() + types


def stems_of(
    model: PTuningModel,
    rows: Iterable[TokenRow],
    *,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    known: MutableMapping[str, Stems] | None = None,
    mapped: bool = False,
) -> Stems | None:
    """The stem outputs for ``rows``: from the cache if possible, otherwise computed and cached.

    Args:
        model: Its first layer, backbone and engine limits are used.
        on_rows: Called after each batch with the number of distinct rows done and the total; an exception
            from it ends the computation.
        known: Outputs from earlier calls in this process; the new ones are added.
        mapped: Whether outputs that are on disk stay there, also those that fit in memory: the processes of
            a machine then have one copy together.

    Returns:
        ``None`` if there is no stem, or if neither the memory nor the disk limit allows so much.
    """
    engine, layer = model.backbone.engine, model.stem_layer
    if layer == 0 or not engine.reuse_stem:
        return None
    distinct = {identity(row): row for row in windows_of(rows)}
    order = sorted(distinct, key=lambda text: (-len(distinct[text]), text))
    places, total = {}, 0
    for text in order:
        places[text] = total
        total += len(distinct[text])
    size = total * model.backbone.hidden_size * model.backbone.dtype.itemsize
    in_memory = size <= engine.stem_memory * GIB
    cache = Cache("stems", int(engine.stem_disk * GIB))
    key = _digest(model, layer, order)
    known = {} if known is None else known
    if key in known:
        return known[key]
    known.clear()  # the limit is for one set of outputs
    shape = (total, model.backbone.hidden_size)
    hidden = _read(cache.get(key), shape, model.backbone.dtype)
    if hidden is not None:
        known[key] = Stems(hidden.clone() if in_memory and not mapped else hidden, places)
        return known[key]
    parts = _computed(model, [distinct[text] for text in order], on_rows)
    if in_memory:
        hidden = torch.empty(shape, dtype=model.backbone.dtype)
        begin = 0
        for part in parts:
            hidden[begin : begin + len(part)] = part
            begin += len(part)
        with cache.adding(key, size + _HEADER) as path:
            if path is not None:  # otherwise this run uses the copy in memory
                _write(path, [hidden], hidden.dtype, shape)
    else:
        with cache.adding(key, size + _HEADER) as path:
            if path is not None and _write(path, parts, model.backbone.dtype, shape):
                hidden = _read(path, shape, model.backbone.dtype)
    if hidden is None:
        return None
    known[key] = Stems(hidden, places)
    return known[key]


def _computed(
    model: PTuningModel, rows: Sequence[TokenRow], on_rows: Callable[[int, int], None]
) -> Iterator[Tensor]:
    """The stem outputs for rows sorted by length, longest first: ``[tokens, H]`` per batch, in order."""
    done = 0
    for batch in sorted_batches(list(map(len, rows)), len(rows), BATCH_TOKENS):
        inputs = collate([replace(rows[i], label=None, segment_ids=None) for i in batch], 0)
        real = inputs["attention_mask"].bool()
        found = model.stem(**{name: value.to(model.device) for name, value in inputs.items()})
        done += len(batch)
        on_rows(done, len(rows))
        yield found.cpu()[real]


def _digest(model: PTuningModel, layer: int, order: Sequence[bytes]) -> str:
    """A digest of everything that the values depend on, to the last bit."""
    backbone = model.backbone
    facts = {
        "backbone": backbone.digest(),
        "layer": layer,
        "position_offset": model.position_offset,
        "device": backbone.device.type,
        "attention": backbone.engine.attention,
        "compile": backbone.engine.compile,
        "packed": backbone.packs,
        "batch_tokens": BATCH_TOKENS,
        "format": _FORMAT,
        "products": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name(backbone.device)
        if backbone.device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in ("ptuning", "torch", "transformers")},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for row in order:
        digest.update(b"%d:" % len(row))
        digest.update(row)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ on disk
#
# A safetensors file. Its header is written here, because the library needs the full tensor in memory.

_HEADER = 4096
_FORMAT = 1
"""Increase it when the computation or the file format changes."""
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def _write(path: Path, parts: Iterable[Tensor], dtype: torch.dtype, shape: tuple[int, int]) -> bool:
    """Write one tensor, from its ``parts`` in order, with a digest of its bytes in the header.

    Returns:
        Whether there was enough space; if not, the file is removed.
    """
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        room = _put(file, b" " * _HEADER)
        for part in parts:
            data = part.contiguous().view(torch.uint8).numpy().data.cast("B")
            digest.update(data)
            if not (room := room and _put(file, data)):
                break
        file.seek(0)
        room = room and _put(file, _header(dtype, shape, digest.hexdigest()))
    if not room:
        path.unlink(missing_ok=True)
    return room


def _put(file: RawIOBase, data: bytes | memoryview) -> bool:
    """Write all of ``data``. Returns whether there was enough space."""
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) or 0 :]
    except OSError:
        return False
    return True


def _header(dtype: torch.dtype, shape: tuple[int, int], digest: str) -> bytes:
    size = shape[0] * shape[1] * dtype.itemsize
    entry = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": {"sha256": digest}, _NAME: entry}).encode()
    return (_HEADER - 8).to_bytes(8, "little") + text.ljust(_HEADER - 8)


def _read(path: Path | None, shape: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
    """The tensor, mapped from its file; ``None`` if the file is missing or damaged."""
    if path is None:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get("sha256")
            hidden: Tensor = file.get_tensor(_NAME)
    except (OSError, SafetensorError):
        return None
    if hidden.dtype != dtype or hidden.shape != shape:
        return None
    return hidden if hashlib.sha256(hidden.view(torch.uint8).numpy().data).hexdigest() == stated else None
