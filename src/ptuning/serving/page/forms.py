"""What the page's forms send."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile

from ptuning.data import Format
from ptuning.data.reading import Header
from ptuning.serving.page.tables import HEADERS, NAMES


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The fields of a form, with the line breaks that were typed.

    Args:
        task: The task's name.
        text, text_pair: One text or pair.
        truncate: Whether to cut a text that is too long.
        only: The tasks that were ticked.
        order: How the answers of many tasks are ordered: ``name`` or ``sure``.
        rows: Rows that were pasted.
        file: A file with rows.
        form: The format of the rows; ``None`` to detect it.
        column, column_pair: The columns of the texts; empty to detect them.
        header: Whether the first row has the names of the columns.
        keep: Whether the download has the columns of the rows.
    """

    task: str = ""
    text: str = ""
    text_pair: str = ""
    truncate: bool = True
    only: tuple[str, ...] = ()
    order: str = "name"
    rows: str = ""
    file: UploadFile | None = None
    form: Format | None = None
    column: str = ""
    column_pair: str = ""
    header: Header = "auto"
    keep: bool = True


def asked(form: FormData) -> Asked:
    """The fields of a form; those that are missing or of the wrong type have their defaults."""
    file = form.get("file")
    return Asked(
        task=text_of(form, "task"),
        text=text_of(form, "text"),
        text_pair=text_of(form, "text_pair"),
        truncate=text_of(form, "truncate") == "yes",
        only=tuple(each for each in form.getlist("only") if isinstance(each, str)),
        order=text_of(form, "order"),
        rows=text_of(form, "rows"),
        file=file if isinstance(file, UploadFile) and file.filename else None,
        form=next((known for known in NAMES if known == form.get("format")), None),
        column=text_of(form, "column").strip(),
        column_pair=text_of(form, "column_pair").strip(),
        header=next((known for known in HEADERS if known == form.get("header")), "auto"),
        keep=text_of(form, "keep") == "yes",
    )


def text_of(form: FormData, name: str) -> str:
    """A field as text. Browsers send line breaks as CR LF, whatever was typed."""
    value = form.get(name)
    return value.replace("\r\n", "\n") if isinstance(value, str) else ""
