"""Rows of the first sheet of an Excel workbook (``.xlsx``), each cell as the text of a CSV export."""

from __future__ import annotations

import datetime
import importlib
import warnings
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ptuning.data.cells import Cells, rows_of
from ptuning.data.places import first_line, listing
from ptuning.data.reading import Reading, Rows
from ptuning.errors import DataError

_SAMPLE_ROWS = 500


def workbook_rows(path: Path, reading: Reading) -> Rows:
    """The rows of a workbook's first sheet, numbered as in Excel."""
    reading.count_in("row")
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ModuleNotFoundError:
        raise DataError(
            f"{path} is an Excel workbook, and openpyxl is not installed",
            remedy="run: pip install 'ptuning[excel]', or save the sheet as CSV (UTF-8)",
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions that are not read
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"] or book.worksheets
            sheet = sheets[0]
    except Exception as error:  # from a damaged archive or invalid XML
        raise _damaged(path, error) from error
    if len(sheets) > 1:
        names = [each.title for each in sheets]
        reading.add_note(
            f"only the first of {len(sheets)} sheets is read, {names[0]!r}; save the others "
            f"({listing(names[1:], 6)}) as files of their own"
        )
    cells = _cells(sheet, path)
    beginning = list(islice(cells, _SAMPLE_ROWS))
    return rows_of(chain(beginning, cells), [row for _, row in beginning], reading)


def _cells(sheet: Any, path: Path) -> Cells:
    width: int | None = None
    for number, row in enumerate(_values(sheet, path), 1):
        texts = [_text(value) for value in row]
        while texts and not texts[-1] and (width is None or len(texts) > width):
            texts.pop()
        if not any(texts):
            continue
        width = width or len(texts)
        yield number, texts + [""] * (width - len(texts))


def _values(sheet: Any, path: Path) -> Iterator[tuple[Any, ...]]:
    sheet.reset_dimensions()  # the size that the file states may be wrong
    try:
        yield from sheet.iter_rows(values_only=True)
    except Exception as error:  # as above: sheets are parsed lazily
        raise _damaged(path, error) from error


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return value.isoformat(" ") if isinstance(value, datetime.datetime) else str(value)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: not a readable Excel workbook ({first_line(error)})",
        expected="an .xlsx file without a password",
        remedy="open it in Excel and save it again, or save the sheet as CSV (UTF-8)",
    )
