"""The ``curl`` line that asks the server what the page asked."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from ptuning.serving.rows import Row
from ptuning.visible import json_text

LONGEST = 100_000
"""Maximum characters of a body on the command line: Linux allows 128 KiB per argument."""


def task_curl(base: str, row: Row, *, truncate: bool, key: bool) -> str:
    """For one text or pair of one task.

    Args:
        base: The server's address, without a slash at the end.
        key: Whether the server asks for a key; it is read from ``$PTUNING_KEY``.
    """
    text: Any = row.text if row.text_pair is None else {"text": row.text, "text_pair": row.text_pair}
    body: dict[str, Any] = {"inputs": text}
    if not truncate:
        return rows_curl(base, [row], truncate=truncate, key=key)
    return _line(f"{base}/tasks/{quote(row.task, safe='')}", json_text(body), key)


def rows_curl(base: str, rows: Sequence[Row], *, truncate: bool, key: bool) -> str:
    """For rows of any tasks. Rows that are too long for a command line are read from a file."""
    body: dict[str, Any] = {
        "rows": [
            {"task": row.task, "text": row.text}
            | ({} if row.text_pair is None else {"text_pair": row.text_pair})
            for row in rows
        ]
    }
    if not truncate:
        body["truncate"] = False
    text = json_text(body)
    return _line(f"{base}/v1/rows", text if len(text.encode()) <= LONGEST else None, key)


def _line(url: str, body: str | None, key: bool) -> str:
    words = ["curl", "-sS", shlex.quote(url), "-H", shlex.quote("Content-Type: application/json")]
    if key:
        words += ["-H", '"Authorization: Bearer $PTUNING_KEY"']
    return " ".join([*words, "--data-binary", "@rows.json" if body is None else shlex.quote(body)])
