"""``ptuning evaluate``: computes the metrics of an adapter on labelled rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptuning.cli.options import Parser
from ptuning.cli.shared import (
    add_abstain_below,
    add_data,
    add_model,
    check_abstain_below,
    check_page,
    data_of,
    load_model,
)
from ptuning.errors import ConfigError
from ptuning.visible import visible

if TYPE_CHECKING:
    from ptuning.task import Task


def parser() -> Parser:
    made = Parser(
        prog="ptuning evaluate",
        usage="ADAPTER FILE [options]",
        description="Compute the metrics of an adapter on labelled rows, and those of a constant answer as a "
        "baseline.",
    )
    add_model(made)
    made.add_argument(
        "file", type=str, help="CSV, TSV, JSON, Parquet or Excel file, a folder, or hf:NAME[/CONFIG][:SPLIT]"
    )
    add_data(made, label=True, more=["too_long"])
    add_abstain_below(made)
    made.add_argument("--json", action="store_true", help="print the metrics as JSON")
    made.add_argument(
        "--report",
        dest="report_file",
        type=str,
        metavar="HTML",
        help="write a page about what the adapter gets right and wrong",
    )
    made.add_argument(
        "--no_texts",
        dest="without_texts",
        action="store_true",
        help="leave the texts of the rows out of the report",
    )
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    if given.without_texts and given.report_file is None:
        raise ConfigError("--no_texts is about the report", remedy="add --report FILE.html, or leave it out")
    if given.report_file is not None:
        check_page("--report", given.report_file, given.file, [given.adapter])
    import json
    import sys

    from ptuning.cli.evaluated import evaluated, report_of
    from ptuning.cli.tables import metrics_table, plain_console
    from ptuning.inference.abstaining import answered
    from ptuning.inference.abstaining import check_abstain_below as check_task
    from ptuning.training.calibration import of_probabilities

    check_abstain_below(given.abstain_below)
    data = data_of(given, given.file)
    model = load_model(given)
    check_task(given.abstain_below, model.task)
    found = evaluated(model, given.file, data)
    logits, targets = found.scored.logits.double().numpy(), found.scored.split.targets
    more: dict[str, Any] = {}
    if model.task.labels:
        more["calibration"] = of_probabilities(logits, targets, model.task)
    if given.abstain_below is not None:
        more["answered"] = answered(logits, targets, model.task, given.abstain_below)
    count, rule = len(found.examples), found.baseline.rule
    if given.json:
        facts = {"rows": count, "metrics": found.metrics, "baseline": found.floor, "rule": rule, **more}
        print(json.dumps(facts, indent=1))
    else:
        rows, console = f"{count} rows", plain_console()
        console.print(metrics_table({rows: found.metrics}, {rows: found.floor}, rule))
        for line in _lines(more, found.metrics, count, model.task):
            console.print(line, highlight=False, soft_wrap=True)
    if given.report_file is not None:
        from ptuning.report.page import page_of, write_page

        page = page_of(report_of(given.adapter, model, found, given.file, no_texts=given.without_texts))
        print(f"report: {visible(str(write_page(given.report_file, page)))}", file=sys.stderr)


def _lines(more: Mapping[str, Any], metrics: Mapping[str, float], rows: int, task: Task) -> Iterator[str]:
    """What is printed below the table: calibration, and the rows that are certain enough."""
    if (found := more.get("calibration")) is not None:
        yield (
            f"calibration error {found['ece']:.4f}, log loss {found['log_loss']:.4f}"
            + (f"; temperature {task.temperature:.4g}" if task.temperature != 1 else "")
        )
    if (sure := more.get("answered")) is not None:
        name = task.kind.main_metric
        yield (
            f"answered with a probability of at least {sure['abstain_below']:g}: {sure['rows']:,} of "
            f"{rows:,} rows ({sure['coverage']:.1%})"
            + (f", {name} {sure['metrics'][name]:.4f}" if name in sure["metrics"] else "")
            + (f"; all rows: {metrics[name]:.4f}" if name in metrics else "")
        )
