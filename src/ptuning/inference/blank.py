"""The check for blank texts, shared by all prediction functions."""

from __future__ import annotations

from ptuning.data.places import shortened
from ptuning.errors import DataError


def refuse_blank(name: str, *texts: str | None) -> None:
    """Refuse blank texts, as for rows of files.

    Args:
        name: The name of the text in the message.
        texts: The text, or both texts of a pair; ``None`` for a missing one.

    Raises:
        DataError: a text is blank.
    """
    for text in texts:
        if text is not None and not text.strip():
            raise DataError(
                name,
                got=shortened(text),
                expected="at least one character that is not a space",
                remedy="leave it out",
            )
