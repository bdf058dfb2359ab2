"""``ptuning report``: adapters, or the runs of one training, side by side on one page."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_data, add_device, add_pickle, data_of, load_model
from ptuning.errors import ConfigError
from ptuning.kinds import KINDS
from ptuning.visible import visible

if TYPE_CHECKING:
    from pathlib import Path

    from ptuning.report.data import Entry, ReportData

OUTPUT = "report.html"


def parser() -> Parser:
    made = Parser(
        prog="ptuning report",
        usage="ADAPTER [ADAPTER …] [options]",
        description="Write a page that compares adapters: by what their training recorded, or evaluated "
        "on the "
        "rows of a file. For an adapter that was trained with several seeds or learning rates, all of its "
        "runs are compared.",
        epilog="example: ptuning report first second --data test.csv --output comparison.html",
    )
    made.add_argument("adapters", metavar="ADAPTER", nargs="+", help="adapter folder")
    made.add_argument(
        "--data",
        type=str,
        metavar="FILE",
        help="labelled rows to evaluate all of them on, as ptuning evaluate takes",
    )
    made.add_argument(
        "--output", type=str, metavar="HTML", default=OUTPUT, help=f"the page to write (default: {OUTPUT})"
    )
    made.add_argument("--no_texts", action="store_true", help="leave the texts of the rows out")
    made.add_argument("--backbone", type=str, help="Hub id or folder of the backbone (default: as recorded)")
    add_device(made)
    add_pickle(made)
    add_data(made, label=True, more=["too_long"])
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    if given.data is None and (lost := [key for key in vars(given) if key.startswith("data.")]):
        raise ConfigError(f"--{lost[0]}", got="no rows to read", remedy="add --data FILE, or leave it out")
    import sys

    from ptuning import adapters
    from ptuning.report.comparison import comparison_page
    from ptuning.report.data import Comparison
    from ptuning.report.page import page_of, write_page
    from ptuning.training.comparing import recorded

    found = [each for name in given.adapters for each in recorded(adapters.locate(name))]
    if given.data is not None and len(found) == 1:
        page = page_of(_report(given, found[0]))
    else:
        names = _distinct([folder for folder, _ in found])
        entries = [replace(entry, name=name) for name, (_, entry) in zip(names, found, strict=True)]
        if given.data is not None:
            entries = [
                _on_rows(given, entry, folder) for entry, (folder, _) in zip(entries, found, strict=True)
            ]
        runs = len(given.adapters) == 1 and len(found) > 1
        page = comparison_page(
            Comparison(
                title=f"{found[0][0].name} and {len(found) - 1} more" if not runs else given.adapters[0],
                what="run" if runs else "adapter",
                entries=tuple(entries),
                metric=_metric(entries),
                spread=runs and all(name.startswith("seed-") and "_" not in name for name in names),
            )
        )
    print(f"report: {visible(str(write_page(given.output, page)))}", file=sys.stderr)


def _report(given: Namespace, found: tuple[Path, Entry]) -> ReportData:
    """A single adapter on the rows of a file, with its learning curves."""
    folder, entry = found
    data = _scored(given, folder)
    return replace(data, history=entry.history, averaged=entry.averaged)


def _on_rows(given: Namespace, entry: Entry, folder: Path) -> Entry:
    """An adapter on the rows of a file."""
    data = _scored(given, folder)
    (rows,) = data.splits
    return replace(
        entry,
        metrics={rows.split: rows.metrics},
        baseline={rows.split: rows.baseline},
        task=data.task,
        rows=rows,
        class_weights=data.class_weights,
    )


def _scored(given: Namespace, folder: Path) -> ReportData:
    from ptuning.cli.evaluated import evaluated, report_of

    model = load_model(Namespace(**{**vars(given), "adapter": str(folder), "revision": None}))
    rows = evaluated(model, given.data, data_of(given, given.data))
    return report_of(str(folder), model, rows, given.data, no_texts=given.no_texts)


def _metric(entries: Sequence[Entry]) -> str:
    """The metric that is shown first: the main one of a kind of task whose metrics all of them have."""
    found = [set(values) for entry in entries for values in entry.metrics.values()]
    shared = set.intersection(*found) if found else set()
    kinds = (entry.task.kind.main_metric for entry in entries if entry.task is not None)
    mains = (*kinds, *(kind.main_metric for kind in KINDS.values()))
    return next((name for name in mains if name in shared), "loss")


def _distinct(folders: Sequence[Path]) -> list[str]:
    """A name for each adapter: its folder's, with as many of the folders above it as make it unique."""
    names = [folder.name for folder in folders]
    depth = 1
    while len(set(names)) < len(names) and depth < max(len(folder.parts) for folder in folders):
        depth += 1
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
    return names if len(set(names)) == len(names) else [f"{n}. {name}" for n, name in enumerate(names, 1)]
