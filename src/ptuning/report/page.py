"""From a :class:`ReportData` to one HTML file that needs nothing else: no network, no script, no fonts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ptuning.adapters import atomic
from ptuning.kinds import LabelForm
from ptuning.paths import local_path
from ptuning.report.blocks import Section, several
from ptuning.report.data import ReportData
from ptuning.report.figures.outcomes import outcomes
from ptuning.report.sections import labels, overview, reading, trust
from ptuning.visible import visible


def page_of(data: ReportData) -> str:
    """The report of one adapter, as HTML."""
    rows = data.splits[-1]
    return rendered(
        title=data.name,
        subtitle=f"{data.task.kind.title.capitalize()}, {data.task.kind.summary(data.task)}: report on "
        f"{several(len(rows), 'row')} of {rows.split}",
        sections=tuple(_sections(data)),
    )


def _sections(data: ReportData) -> Iterator[Section]:
    rows = data.rows
    yield overview.headline(data)
    yield from overview.learning(data)
    if not len(rows):
        yield Section(name="rows", title="Rows", lead="No row has a label.", blocks=())
    elif data.task.kind.form is LabelForm.NUMBER:
        yield reading.errors(data, rows)
        yield from trust.text_length(data, rows, None)
        yield reading.largest(data, rows)
    else:
        found = outcomes(data.task, rows)
        yield from labels.matrices(data, found)
        yield labels.classes(data, found)
        yield from labels.thresholds(data, found)
        yield trust.confidence(data, found)
        yield from trust.text_length(data, rows, found)
        yield reading.mistakes(data, rows, found)
        yield reading.suspects(data, rows, found)
    yield overview.about(data)


def rendered(*, title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """A page of sections, as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from ptuning import __version__

    environment = Environment(
        loader=PackageLoader("ptuning.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title, subtitle=subtitle, sections=sections, version=__version__
    )


def _shown(value: Any) -> Any:
    """What a template shows of a value; whoever wrote it, it cannot hide or reorder text."""
    from markupsafe import Markup

    return visible(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def write_page(file: str | os.PathLike[str], text: str) -> Path:
    """Write a page, completely or not at all.

    Raises:
        ConfigError: not a path.
        OutputError: it could not be written.
    """
    target = Path(os.path.realpath(local_path(file, "report")))
    with atomic.writing_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_file(target) as new:
            atomic.write_bytes(new, text.encode())
    return target
