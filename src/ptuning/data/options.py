"""The options for reading a source, shared by all commands, functions and configurations that read one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from ptuning.data.reading import Header, Quoting

BadRows = Literal["error", "skip"]
Duplicates = Literal["keep", "drop"]
TooLong = Literal["truncate", "error", "windows"]
"""What happens to a text that is too long."""
WINDOWS = 16
"""Windows per row at most, if the user does not say. In training, a row with all its windows needs as
much memory as so many cut texts: more than a batch of them where batches are smaller."""


class ReadOptions(TypedDict, total=False):
    """Keyword arguments of :func:`~ptuning.data.load_examples`.

    ``DataConfig`` has a field of the same name for each, which defines its type, bounds, default and help.
    """

    text: str | None
    text_b: str | None
    label: str | Sequence[str] | None
    label_separator: str | None
    separator: str | None
    encoding: str | None
    header: Header
    quoting: Quoting
    no_label: str | Sequence[str] | None
    bad_rows: BadRows
    duplicates: Duplicates


#: Options that have no effect if labels are not read, as in prediction.
OF_LABELS = frozenset({"label", "label_separator", "no_label", "duplicates"})
