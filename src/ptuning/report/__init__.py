"""A report: one self-contained HTML page about a trained task, from plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptuning._lazy import lazy

if TYPE_CHECKING:
    from ptuning.report.comparison import comparison_page
    from ptuning.report.data import Comparison, Entry, ReportData, Rows
    from ptuning.report.page import page_of, write_page

__getattr__, __dir__ = lazy(
    __name__,
    dict.fromkeys(("Comparison", "Entry", "ReportData", "Rows"), "ptuning.report.data")
    | {"comparison_page": "ptuning.report.comparison"}
    | dict.fromkeys(("page_of", "write_page"), "ptuning.report.page"),
)

__all__ = ["Comparison", "Entry", "ReportData", "Rows", "comparison_page", "page_of", "write_page"]
