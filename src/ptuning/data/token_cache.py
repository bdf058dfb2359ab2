"""Token ids of whole splits, kept on disk: a second run on the same texts does not tokenise them again.

A kept split is one safetensors file under a digest of everything that its ids depend on: the tokenizer's
whole pipeline, the options of :class:`~ptuning.data.tokens.Tokenise`, the libraries' versions, every text.
Labels are not in it. What is damaged, or another split's, is a miss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
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
from ptuning.data.tokens import Tokenise, TokenRow

LIMIT = 1 << 30
"""Bytes of all kept splits together: some thousand of MRPC's size, or two hundred of SST-2's."""

MIN_ROWS = 2000
"""Fewer rows are tokenised in less time than it takes to notice."""

_FORMAT = 1  # of the files; raise it when they change
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
    """What ``tokenise(examples, labels)`` returns, from the cache if it is there, and put there if not.

    Args:
        cache: Where splits are kept; one with a limit of 0 keeps none.
        min_rows: Shorter splits are neither looked up nor kept.

    Raises:
        DataError: as ``tokenise`` does. A split that it refuses is never kept.
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
    """A digest of everything that the rows depend on; ``None`` where that cannot be told."""
    tokenizer = _identity(tokenise.tokenizer)
    if tokenizer is None:
        return None
    # ``too_long`` is part of it: what was kept under "error" has been found to fit.
    options = [tokenise.limit, tokenise.segments, tokenise.places, tokenise.wanted, tokenise.too_long]
    versions = [_FORMAT, tokenizers.__version__, transformers.__version__]
    found = hashlib.sha256(json.dumps([versions, options]).encode())
    for part in (tokenizer, _bytes_of(each.text for each in examples)):
        found.update(hashlib.sha256(part).digest())
    if examples[0].text_b is not None:
        found.update(_bytes_of(each.text_b for each in examples))
    return found.hexdigest()


def _bytes_of(texts: Iterable[str | None]) -> bytes:
    """Texts one behind the other, after how many they are and the bytes of each, -1 for one that is missing:
    no two lists of texts give the same.
    """
    encoded = [None if text is None else text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = [len(encoded), *(-1 if text is None else len(text) for text in encoded)]
    return np.array(lengths, dtype="<i8").tobytes() + b"".join(text or b"" for text in encoded)


def _identity(tokenizer: PreTrainedTokenizerBase) -> bytes | None:
    """Everything about a tokenizer that decides its ids; ``None`` for one whose ids cannot be foretold.

    That is so if its work is done in Python, in a class that is not transformers' own, or at random.
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
    # Truncation and padding stand in front, and are whatever the last call asked for.
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
    """Rows without their labels; ``None`` where a number does not fit its type.

    ``input_ids`` int32, all rows' one behind the other; ``offsets`` int64 ``[N + 1]``, where each row
    begins in it; ``token_type_ids`` and ``segment_ids`` int8, like ``input_ids``, if rows have them.
    """
    made: _Arrays = {"offsets": np.cumsum([0, *map(len, rows)], dtype=np.int64)}
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
    """The rows in a file, with ``labels``; ``None`` unless it is whole, ``key``'s, and has ``count`` rows."""
    try:
        with safe_open(file, framework="numpy") as opened:
            said = opened.metadata() or {}
            arrays: _Arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):  # thrown out since, cut short, or no such file at all
        return None
    if (said.get("key"), said.get("digest")) != (key, _digest(arrays)) or len(arrays["offsets"]) != count + 1:
        return None
    ends = arrays.pop("offsets").tolist()
    flat = {name: array.tolist() for name, array in arrays.items()}
    spans = list(map(slice, ends, ends[1:]))
    types, segments = flat.get("token_type_ids"), flat.get("segment_ids")
    return [
        TokenRow(
            input_ids=flat["input_ids"][span],
            token_type_ids=None if types is None else types[span],
            segment_ids=None if segments is None else segments[span],
            label=None if labels is None else labels[row],
        )
        for row, span in enumerate(spans)
    ]


def _digest(arrays: _Arrays) -> str:
    """Of the arrays' names, types, shapes and numbers."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape};".encode())
        found.update(array.tobytes())
    return found.hexdigest()
