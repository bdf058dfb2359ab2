"""The ``curl`` line that asks the server what the page asked."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from ptuning.serving.rows import Row
from ptuning.visible import json_text

LONGEST = 100_000
"""Maximum bytes of a body on the command line: Linux allows 128 KiB per argument."""
FILE = "@rows.json"
"""What is in the line for a body that is longer."""


def task_curl(base: str, row: Row, *, truncate: bool, key: bool) -> str:
    """For one text or pair of one task.

    Args:
        base: The server's address, without a slash at the end.
        key: Whether the server asks for a key; it is read from ``$PTUNING_KEY``.
    """
    text: Any = row.text if row.text_pair is None else {"text": row.text, "text_pair": row.text_pair}
    if not truncate:  # the task's own address has no such option
        return rows_curl(base, [row], truncate=truncate, key=key)
    return _line(f"{base}/tasks/{quote(row.task, safe='')}", {"inputs": text}, key)


def tasks_curl(base: str, rows: Sequence[Row], *, every: bool, truncate: bool, key: bool) -> str:
    """For one text or pair of several tasks.

    Args:
        every: Whether these are all tasks of single texts.
    """
    first = rows[0]
    if any(row.text_pair != first.text_pair for row in rows):  # tasks of one text and of two
        return rows_curl(base, rows, truncate=truncate, key=key)
    body = {
        "text": first.text,
        "text_pair": first.text_pair,
        "tasks": "*" if every else [row.task for row in rows],
    }
    return _rows_line(base, {name: value for name, value in body.items() if value is not None}, truncate, key)


def rows_curl(base: str, rows: Sequence[Row], *, truncate: bool, key: bool) -> str:
    """For rows of any tasks."""
    found = [
        {"task": row.task, "text": row.text} | ({} if row.text_pair is None else {"text_pair": row.text_pair})
        for row in rows
    ]
    return _rows_line(base, {"rows": found}, truncate, key)


def _rows_line(base: str, body: dict[str, Any], truncate: bool, key: bool) -> str:
    return _line(f"{base}/v1/rows", body if truncate else {**body, "truncate": False}, key)


def _line(url: str, body: dict[str, Any], key: bool) -> str:
    text = json_text(body)
    data = shlex.quote(text) if len(text.encode()) <= LONGEST else FILE
    words = ["curl", "-sS", shlex.quote(url), "-H", shlex.quote("Content-Type: application/json")]
    if key:
        words += ["-H", '"Authorization: Bearer $PTUNING_KEY"']
    return " ".join([*words, "--data-binary", data])
