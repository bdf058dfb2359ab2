"""Kills, simulated: from one thing that touches the disk on, nothing touches it any more.

What a killed process would not have done, the process that plays it does not do either: once it is dead,
everything that would change the disk raises, clean-up included. Locks are freed as it
unwinds, as the system frees them.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ptuning.adapters import atomic


class Killed(BaseException):
    """Nothing catches this but the test."""


CHANGES = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir")


@contextmanager
def killed_at(step: int, *, exchange: bool = True, below: str | None = None) -> Iterator[list[str]]:
    """Raise :class:`Killed` instead of the ``step``-th change of the disk, and of all later ones.

    Args:
        step: From 1; 0 for never.
        exchange: Whether the system can exchange two names.
        below: Count changes of this folder's content alone.

    Yields:
        What was done so far.
    """
    seen: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            opens = name in ("open", "os.open")
            mode = args[1] if len(args) > 1 else options.get("mode", "r")
            writes = not opens or (
                any(c in mode for c in "wxa+") if isinstance(mode, str) else mode & os.O_CREAT
            )
            place = os.fspath(args[0]) if args and isinstance(args[0], str | os.PathLike) else ""
            inside = below is None or not place.startswith("/") or place.startswith(below)
            if writes and inside:
                seen.append(f"{name} {place}")
                if step and len(seen) >= step:
                    raise Killed(f"at {seen[step - 1]}")
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        patch.setattr(os, "fsync", lambda handle: None)  # slow, and nothing that a kill could cut in two
        patch.setattr(os, "open", watched("os.open", os.open))
        for module in (builtins, io):
            patch.setattr(module, "open", watched("open", open))
        if exchange:
            patch.setattr(atomic, "_exchange", watched("exchange", atomic._exchange))
        else:
            patch.setattr(atomic, "_exchange", lambda one, other: False)
        yield seen


def steps(act: Callable[[], object], *, exchange: bool = True, below: str | None = None) -> int:
    """How often ``act`` changes the disk when all goes well."""
    with killed_at(0, exchange=exchange, below=below) as seen:
        act()
    return len(seen)


def dies(act: Callable[[], object], step: int, *, exchange: bool = True, below: str | None = None) -> bool:
    """Run ``act`` and kill it at ``step``; whether it came that far."""
    try:
        with killed_at(step, exchange=exchange, below=below):
            act()
    except Killed:
        return True
    return False
