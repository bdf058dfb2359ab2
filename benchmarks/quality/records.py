"""The study's results: one JSON line a run, appended as the runs end."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from quality.plan import Record

RESULTS = Path(__file__).parent.parent / "results" / "quality.jsonl"
BACKBONES = RESULTS.with_name("quality-backbones.jsonl")
"""Of ``quality_backbones.py``."""


def read(file: Path = RESULTS) -> list[dict[str, Any]]:
    """Every record, in the order they came; a last line that was cut off is left out."""
    if not file.exists():
        return []
    found = []
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            if line.strip() and number < len(lines):  # behind the last newline is what was cut off
                found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file.name}, line {number}: {error}") from error
    return found


def append(record: Record, file: Path = RESULTS) -> None:
    """Add a record, and have it on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # until it is closed: two studies may write to one file
        _drop_cut_off(stream)
        stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _drop_cut_off(stream: Any) -> None:
    stream.seek(0)
    whole = stream.read().rpartition(b"\n")
    stream.truncate(len(whole[0]) + len(whole[1]))
    stream.seek(0, os.SEEK_END)
