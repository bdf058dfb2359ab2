"""Blank texts, of which there is nothing to say: refused alike by everything that predicts."""

from __future__ import annotations

from ptuning.data.places import shortened
from ptuning.errors import DataError


def refuse_blank(name: str, *texts: str | None) -> None:
    """Refuse a text that has no character but spaces, as rows of files are.

    Args:
        name: What the error calls the text.
        texts: The text, or both of a pair; ``None`` for one that is not there.

    Raises:
        DataError: one is blank.
    """
    for text in texts:
        if text is not None and not text.strip():
            raise DataError(
                f"{name} is blank ({shortened(text)}), expected at least one character that is not a space; "
                "leave it out"
            )
