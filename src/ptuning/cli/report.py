"""``ptuning report``: adapters, or the runs of one training, side by side on one page."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_data, add_device, add_pickle, check_page, data_of, load_model
from ptuning.errors import ConfigError
from ptuning.kinds import KINDS
from ptuning.visible import visible

if TYPE_CHECKING:
    from pathlib import Path

    from ptuning.model.ptuning import PTuningModel
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
    if given.data is None:
        _check_unused(given)
    import os
    import sys
    from pathlib import Path

    from ptuning import adapters
    from ptuning.report.comparison import comparison_page
    from ptuning.report.data import Comparison
    from ptuning.report.page import page_of, write_page
    from ptuning.training.comparing import recorded

    folders = [Path(os.path.abspath(adapters.locate(name))) for name in given.adapters]
    found = [each for folder in folders for each in recorded(folder)]
    check_page("--output", given.output, given.data, [*folders, *(folder for folder, _ in found)])
    if given.data is not None and len(found) == 1:
        page = page_of(_report(given, found[0]))
    else:
        names = _distinct([folder for folder, _ in found])
        entries = [replace(entry, name=name) for name, (_, entry) in zip(names, found, strict=True)]
        if given.data is not None:
            entries = list(_on_rows(given, entries, [folder for folder, _ in found]))
        runs = len(given.adapters) == 1 and len(found) > 1
        page = comparison_page(
            Comparison(
                title=folders[0].name if runs else _title(names),
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
    data = _scored(given, folder, _loaded(given, folder, None))
    return replace(data, history=entry.history, averaged=entry.averaged)


def _on_rows(given: Namespace, entries: Iterable[Entry], folders: Iterable[Path]) -> Iterator[Entry]:
    """Adapters on the rows of a file."""
    model = None
    for entry, folder in zip(entries, folders, strict=True):
        model = _loaded(given, folder, model)
        data = _scored(given, folder, model)
        (rows,) = data.splits
        yield replace(
            entry,
            metrics={rows.split: rows.metrics},
            baseline={rows.split: rows.baseline},
            task=data.task,
            rows=rows,
            class_weights=data.class_weights,
        )


def _loaded(given: Namespace, folder: Path, before: PTuningModel | None) -> PTuningModel:
    """An adapter, on the backbone of the one before if both were trained on the same."""
    from ptuning import adapters

    like = None
    if before is not None and before.loaded is not None:
        record, other = adapters.details(folder), before.loaded
        same_labels = len(record["task"].get("labels", ())) == len(other.task.labels)
        kind = record["task"].get("problem_type") == other.task.problem_type
        if kind and same_labels and record["backbone"] == dict(other.backbone):
            like = before
    return load_model(Namespace(**{**vars(given), "adapter": str(folder), "revision": None}), like=like)


def _scored(given: Namespace, folder: Path, model: PTuningModel) -> ReportData:
    from ptuning.cli.evaluated import evaluated, report_of

    rows = evaluated(model, given.data, data_of(given, given.data))
    return report_of(str(folder), model, rows, given.data, no_texts=given.no_texts)


def _check_unused(given: Namespace) -> None:
    """Refuse options about rows if there are none.

    Raises:
        ConfigError: such an option.
    """
    options = {"no_texts": "--no_texts", "backbone": "--backbone", "precision": "--precision"}
    options |= {"device": "--device", "allow_pickle": "--allow-pickle"}
    defaults = parser()
    lost = [f"--{key}" for key in vars(given) if key.startswith("data.")]
    lost += [o for key, o in options.items() if getattr(given, key) != defaults.get_default(key)]
    if lost:
        raise ConfigError(lost[0], got="no rows to read", remedy="add --data FILE, or leave it out")


def _title(names: Sequence[str]) -> str:
    first, *others = names
    return first if not others else f"{first} and {others[0] if len(others) == 1 else f'{len(others)} more'}"


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
    if len(set(names)) == len(names):
        return names
    return [f"{n}. {folder.name}" for n, folder in enumerate(folders, 1)]
