"""Changes of bytes, and values that do not belong where they are put."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

CHANGES = ("bit", "bit", "bit", "cut", "append", "insert", "swap", "zero", "empty")

JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 3.7, 1e308, 10**30, "", "x", "../../x", "\ud800", "a" * 100_000),
    *([], [1], [[]], {}, {"a": 1}),
)
"""JSON values of every kind and size."""


def changed(data: bytes, draw: Random, kinds: Sequence[str] = CHANGES) -> tuple[bytes, str, int]:
    """Other bytes, what was done, and to how many of them."""
    while True:
        kind = draw.choice(kinds)
        new, what, size = _change(bytearray(data), kind, draw)
        if new != data:
            return new, what, size


def _change(data: bytearray, kind: str, draw: Random) -> tuple[bytes, str, int]:
    at, other, bit = draw.randrange(len(data)), draw.randrange(len(data)), draw.randrange(8)
    match kind:
        case "bit":
            data[at] ^= 1 << bit
            return bytes(data), f"bit {bit} of byte {at} turned", 1
        case "cut":
            size = len(data) - at
            del data[at:]
            return bytes(data), f"cut behind byte {at}", size
        case "append":
            more = draw.choice([b" ", b"\n", b"\0", draw.randbytes(20)])
            return bytes(data + more), f"{more!r} appended", len(more)
        case "insert":
            data[at:at] = bytes([draw.randrange(256)])
            return bytes(data), f"{data[at]} inserted before byte {at}", 1
        case "swap":
            data[at], data[other] = data[other], data[at]
            return bytes(data), f"bytes {at} and {other} swapped", 2
        case "zero":
            data[at : at + 16] = bytes(len(data[at : at + 16]))
            return bytes(data), f"16 bytes from {at} zeroed", 16
    return b"", "emptied", len(data)
