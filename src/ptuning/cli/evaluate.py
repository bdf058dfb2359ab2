"""``ptuning evaluate``: computes the metrics of an adapter on labelled rows."""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_data, add_model, data_of, load_model, print_notes


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
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    import json

    from ptuning.cli.tables import metrics_table, plain_console
    from ptuning.data import load_examples
    from ptuning.training.evaluation import evaluate
    from ptuning.training.metrics import Baseline
    from ptuning.training.prepare import tokenised

    data = data_of(given, given.file)
    model = load_model(given)
    loaded = load_examples(given.file, **data.reading(), pair=model.task.pair, task=model.task)
    print_notes(loaded.notes)
    examples = loaded.examples
    split = tokenised(model, examples, data.too_long)
    # The baseline is from the training rows; an adapter that was not trained by ptuning may not have one.
    known = model.loaded.extra.get("baseline") if model.loaded is not None else None
    baseline = Baseline.read(known) if known else Baseline.of(split.targets, model.task)
    weights = None if model.class_weights is None else model.class_weights.tolist()
    found, floor = evaluate(model, split), baseline.measure(split.targets, model.task, weights)
    if given.json:
        print(
            json.dumps(
                {"rows": len(examples), "metrics": found, "baseline": floor, "rule": baseline.rule}, indent=1
            )
        )
    else:
        plain_console().print(
            metrics_table({f"{len(examples)} rows": found}, {f"{len(examples)} rows": floor}, baseline.rule)
        )
