"""``ptuning evaluate``: computes the metrics of an adapter on labelled rows."""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_data, add_model, data_of, load_model
from ptuning.errors import ConfigError
from ptuning.visible import visible


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
    made.add_argument("--json", action="store_true", help="print the metrics as JSON")
    made.add_argument(
        "--report", type=str, metavar="HTML", help="write a page about what the adapter gets right and wrong"
    )
    made.add_argument("--no_texts", action="store_true", help="leave the texts of the rows out of the report")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    if given.no_texts and given.report is None:
        raise ConfigError("--no_texts is about the report", remedy="add --report FILE.html, or leave it out")
    import json
    import sys

    from ptuning.cli.evaluated import evaluated, report_of
    from ptuning.cli.tables import metrics_table, plain_console

    data = data_of(given, given.file)
    model = load_model(given)
    found = evaluated(model, given.file, data)
    rows, rule = len(found.examples), found.baseline.rule
    if given.json:
        print(
            json.dumps(
                {"rows": rows, "metrics": found.metrics, "baseline": found.floor, "rule": rule}, indent=1
            )
        )
    else:
        plain_console().print(
            metrics_table({f"{rows} rows": found.metrics}, {f"{rows} rows": found.floor}, rule)
        )
    if given.report is not None:
        from ptuning.report.page import page_of, write_page

        page = page_of(report_of(given.adapter, model, found, given.file, no_texts=given.no_texts))
        print(f"report: {visible(str(write_page(given.report, page)))}", file=sys.stderr)
