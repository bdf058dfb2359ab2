"""JSON with a digest of its own bytes, so that any change is detected."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

SELF = "sha256_self"
_BLANK = "0" * 64
"""The placeholder for the digest while it is computed."""


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """``values`` as indented ASCII JSON."""
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode("ascii")


def digest(data: bytes) -> str:
    """The SHA-256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sealed(values: Mapping[str, Any]) -> bytes:
    """JSON of ``values`` and the digest of its own bytes, taken with the digest blanked."""
    blank = json_bytes({**values, SELF: _BLANK})
    before, after = blank.rsplit(
        _BLANK.encode(), 1
    )  # the last field is the digest, whatever the others contain
    return before + digest(blank).encode() + after


def is_sealed(data: bytes, values: Mapping[str, Any]) -> bool:
    """Whether ``data`` is what :func:`sealed` made of ``values``, which were read from it."""
    seal = values.get(SELF)
    return (
        isinstance(seal, str)
        and re.fullmatch("[0-9a-f]{64}", seal) is not None
        and digest(_BLANK.encode().join(data.rsplit(seal.encode(), 1))) == seal
    )
