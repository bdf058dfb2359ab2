"""How a source is read: one list of options for every command, function and configuration that reads one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from ptuning.data.reading import Header, Quoting

BadRows = Literal["error", "skip"]
Duplicates = Literal["keep", "drop"]


class ReadOptions(TypedDict, total=False):
    """Keyword arguments of :func:`~ptuning.data.load_examples`; fields of ``DataConfig`` have the same names.

    The field of ``DataConfig`` holds an option's type, bounds, default and help. What is left out has that
    default.
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


#: Options that mean nothing where no labels are read, as in prediction.
OF_LABELS = frozenset({"label", "label_separator", "no_label", "duplicates"})
