"""How a source is read: one list of options for every command, function and configuration that reads one."""

from __future__ import annotations

from typing import TypedDict

from ptuning.data.reading import Header, Quoting


class ReadOptions(TypedDict, total=False):
    """Keyword arguments of :func:`~ptuning.data.load_examples`; fields of ``DataConfig`` have the same names.

    The field of ``DataConfig`` holds an option's type, bounds, default and help. What is left out has that
    default.
    """

    text: str | None
    text_b: str | None
    label: str | None
    label_separator: str | None
    separator: str | None
    encoding: str | None
    header: Header
    quoting: Quoting
