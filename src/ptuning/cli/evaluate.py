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
    data_of,
    load_model,
    print_notes,
)

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
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    import json

    from ptuning.cli.tables import metrics_table, plain_console
    from ptuning.data import load_examples
    from ptuning.inference.abstaining import answered
    from ptuning.inference.abstaining import check_abstain_below as check_task
    from ptuning.training.calibration import of_probabilities
    from ptuning.training.evaluation import metrics_of, score
    from ptuning.training.metrics import Baseline
    from ptuning.training.prepare import tokenised

    check_abstain_below(given.abstain_below)
    data = data_of(given, given.file)
    model = load_model(given)
    check_task(given.abstain_below, model.task)
    loaded = load_examples(given.file, **data.reading(), pair=model.task.pair, task=model.task)
    print_notes(loaded.notes)
    examples = loaded.examples
    split = tokenised(model, examples, data.too_long)
    # The baseline is from the training rows; an adapter that was not trained by ptuning may not have one.
    known = model.loaded.extra.get("baseline") if model.loaded is not None else None
    baseline = Baseline.read(known) if known else Baseline.of(split.targets, model.task)
    weights = None if model.class_weights is None else model.class_weights.tolist()
    scored = score(model, split)
    found, floor = metrics_of(model, scored), baseline.measure(split.targets, model.task, weights)
    logits = scored.logits.double().numpy()
    more: dict[str, Any] = {}
    if model.task.labels:
        more["calibration"] = of_probabilities(logits, split.targets, model.task)
    if given.abstain_below is not None:
        more["answered"] = answered(logits, split.targets, model.task, given.abstain_below)
    if given.json:
        facts = {"rows": len(examples), "metrics": found, "baseline": floor, "rule": baseline.rule, **more}
        print(json.dumps(facts, indent=1))
        return
    rows = f"{len(examples)} rows"
    console = plain_console()
    console.print(metrics_table({rows: found}, {rows: floor}, baseline.rule))
    for line in _lines(more, found, len(examples), model.task):
        console.print(line, highlight=False, soft_wrap=True)


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
