"""A cache of token ids on disk: a second run on the same texts does not tokenise them again.

Each split is one safetensors file named by a digest of everything that its ids depend on: the tokenizer's
full pipeline, the options of :class:`~ptuning.data.tokens.Tokenise`, the library versions, all texts. Labels
are not in it. A damaged file is a miss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ptuning.cache import Cache
from ptuning.data.examples import Example
from ptuning.data.tokens import Tokenise, TokenRow, windows_of

LIMIT = 1 << 30
"""Maximum bytes of all cached splits: about a thousand of the size of MRPC, or two hundred of SST-2."""

MIN_ROWS = 2000
"""Splits with fewer rows are not cached; tokenising them takes hardly any time."""

_FORMAT = 1  # increase it when the file format changes
_CACHE = Cache("tokens", LIMIT)
_Arrays = dict[str, NDArray[Any]]


def token_rows_of(
    tokenise: Tokenise,
    examples: Sequence[Example],
    labels: Sequence[Any] | None = None,
    *,
    cache: Cache = _CACHE,
    min_rows: int = MIN_ROWS,
) -> list[TokenRow]:
    """The result of ``tokenise(examples, labels)``, cached.

    Args:
        cache: The cache; with a limit of 0 nothing is stored.
        min_rows: Shorter splits are not cached.

    Raises:
        DataError: as ``tokenise`` does. A split that it refuses is never stored.
    """
    key = _key(tokenise, examples) if len(examples) >= max(min_rows, 1) and cache.limit > 0 else None
    if key is None:
        return tokenise(examples, labels)
    file = cache.get(key)
    rows = None if file is None else _read(file, key, len(examples), labels)
    if rows is None:
        rows = tokenise(examples, labels)
        if (arrays := _arrays(rows)) is not None:
            _write(cache, key, arrays)
    return rows


# What the ids depend on -----------------------------------------------------------------------------


def _key(tokenise: Tokenise, examples: Sequence[Example]) -> str | None:
    """A digest of everything that the rows depend on; ``None`` if that cannot be determined."""
    tokenizer = _identity(tokenise.tokenizer)
    if tokenizer is None:
        return None
    # ``too_long`` is part of it: splits stored under "error" have been checked to fit.
    options: list[Any] = [
        tokenise.limit,
        tokenise.segments,
        tokenise.places,
        tokenise.wanted,
        tokenise.too_long,
    ]
    if tokenise.too_long == "windows":
        options += [tokenise.max_windows, tokenise.window_overlap]
    versions = [_FORMAT, tokenizers.__version__, transformers.__version__]
    found = hashlib.sha256(json.dumps([versions, options]).encode())
    for part in (tokenizer, _bytes_of(each.text for each in examples)):
        found.update(hashlib.sha256(part).digest())
    if examples[0].text_b is not None:
        found.update(_bytes_of(each.text_b for each in examples))
    return found.hexdigest()


def _bytes_of(texts: Iterable[str | None]) -> bytes:
    """A unique encoding of a list of texts: their number, the length of each (-1 if ``None``), the texts."""
    encoded = [None if text is None else text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = [len(encoded), *(-1 if text is None else len(text) for text in encoded)]
    return np.array(lengths, dtype="<i8").tobytes() + b"".join(text or b"" for text in encoded)


def _identity(tokenizer: PreTrainedTokenizerBase) -> bytes | None:
    """Everything in a tokenizer that its output depends on; ``None`` if that cannot be determined.

    That is the case for tokenizers in Python, of classes outside of transformers, or with random output.
    """
    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or kind.__module__.split(".")[0] != "transformers":
        return None
    backend: Any = tokenizer.backend_tokenizer
    if any(getattr(backend.model, chance, None) for chance in ("dropout", "alpha", "nbest_size")):
        return None
    try:
        text: str = backend.to_str()
    except Exception:  # a part that was written in Python; the library raises a bare Exception
        return None
    # Truncation and padding come first, with the settings of the last call.
    front, mark, rest = text.partition('"added_tokens":')
    state = json.loads(front.rstrip().rstrip(",") + "}") if mark else {}
    state.pop("truncation", None)
    state.pop("padding", None)
    outside = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
        "names": list(tokenizer.model_input_names),
        "split": bool(getattr(tokenizer, "split_special_tokens", False)),
        "ends": [bool(getattr(tokenizer, name, False)) for name in ("_add_bos_token", "_add_eos_token")],
    }
    return json.dumps([state, outside], sort_keys=True).encode() + (rest if mark else text).encode()


# The file -------------------------------------------------------------------------------------------


def _arrays(rows: Sequence[TokenRow]) -> _Arrays | None:
    """Rows without their labels; ``None`` if a value does not fit its type.

    ``input_ids`` int32, all rows concatenated; ``offsets`` int64 ``[N + 1]``, the start of each row;
    ``token_type_ids`` and ``segment_ids`` int8, like ``input_ids``, if the rows have them. If a row has
    several windows, these are of windows, and there are ``windows`` int32 and ``cut`` int8, ``[N]``.
    """
    of_rows: _Arrays = {}
    if any(row.more for row in rows):
        of_rows["windows"] = np.array([len(row.windows) for row in rows], np.int32)
        of_rows["cut"] = np.array([row.cut for row in rows], np.int8)
    rows = windows_of(rows)
    made: _Arrays = {"offsets": np.cumsum([0, *map(len, rows)], dtype=np.int64), **of_rows}
    for name, kind in (("input_ids", np.int32), ("token_type_ids", np.int8), ("segment_ids", np.int8)):
        parts = [getattr(row, name) for row in rows]
        if parts[0] is not None:
            flat = np.fromiter(chain.from_iterable(parts), np.int64, made["offsets"][-1])
            if flat.size and not (np.iinfo(kind).min <= flat.min() and flat.max() <= np.iinfo(kind).max):
                return None
            made[name] = flat.astype(kind)
    return made


def _write(cache: Cache, key: str, arrays: _Arrays) -> None:
    size = sum(array.nbytes for array in arrays.values()) + 1024  # and the header
    with suppress(OSError, SafetensorError), cache.adding(key, size) as part:
        if part is not None:  # safetensors reports a full disk as an error of its own
            save_file(arrays, part, metadata={"key": key, "digest": _digest(arrays)})


def _read(file: Path, key: str, count: int, labels: Sequence[Any] | None) -> list[TokenRow] | None:
    """The rows in a file, with ``labels``; ``None`` if it is damaged or not the entry of ``key``."""
    try:
        with safe_open(file, framework="numpy") as opened:
            stated = opened.metadata() or {}
            arrays: _Arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):  # evicted, truncated or missing
        return None
    if (stated.get("key"), stated.get("digest")) != (key, _digest(arrays)):
        return None
    windows, cut = (
        arrays.pop("windows", np.ones(count, np.int32)),
        arrays.pop("cut", np.zeros(count, np.int8)),
    )
    if len(windows) != count or len(arrays["offsets"]) != windows.sum() + 1:
        return None
    ends = arrays.pop("offsets").tolist()
    flat = {name: array.tolist() for name, array in arrays.items()}
    spans = list(map(slice, ends, ends[1:]))
    types, segments = flat.get("token_type_ids"), flat.get("segment_ids")
    each = (
        TokenRow(
            input_ids=flat["input_ids"][span],
            token_type_ids=None if types is None else types[span],
            segment_ids=None if segments is None else segments[span],
        )
        for span in spans
    )
    return [
        replace(
            next(each),
            label=None if labels is None else labels[row],
            more=tuple(islice(each, int(windows[row]) - 1)),
            cut=bool(cut[row]),
        )
        for row in range(count)
    ]


def _digest(arrays: _Arrays) -> str:
    """A digest of the names, types, shapes and values of the arrays."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape};".encode())
        found.update(array.tobytes())
    return found.hexdigest()
