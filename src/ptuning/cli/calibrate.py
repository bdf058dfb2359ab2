"""``ptuning calibrate``: fits the temperature and thresholds of an adapter to labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_data, add_model, data_of, load_model, print_notes
from ptuning.errors import ConfigError

if TYPE_CHECKING:
    from ptuning.adapters import Adapter


def parser() -> Parser:
    made = Parser(
        prog="ptuning calibrate",
        usage="ADAPTER FILE [options]",
        description="Fit a temperature to labelled rows, so that the adapter's probabilities can be trusted; "
        "for several labels per row also a threshold for each label. The rows must not be training rows: the "
        "adapter is too certain of those. Labels of single-label tasks do not change.",
        epilog="example: ptuning calibrate support checked.csv",
    )
    add_model(made)
    made.add_argument(
        "file", type=str, help="CSV, TSV, JSON, Parquet or Excel file, a folder, or hf:NAME[/CONFIG][:SPLIT]"
    )
    made.add_argument(
        "--output", type=str, help="folder to write the calibrated adapter to (default: replace ADAPTER)"
    )
    add_data(made, label=True, more=["too_long"])
    made.add_argument("--json", action="store_true", help="print what was fitted, and the figures, as JSON")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    from ptuning import adapters
    from ptuning.data import load_examples
    from ptuning.training.calibration import FITTED_ON, calibrate, in_a_line
    from ptuning.training.evaluation import score
    from ptuning.training.prepare import tokenised
    from ptuning.visible import json_text, visible

    output = adapters.check_destination(_output(given))  # before the backbone is loaded, not after
    data = data_of(given, given.file)
    model = load_model(given)
    if not model.task.labels:
        raise ConfigError(
            visible(given.adapter),
            got=f"a {model.task.kind.title}, which has no probabilities",
            expected="an adapter with labels",
        )
    loaded = load_examples(given.file, **data.reading(), pair=model.task.pair, task=model.task)
    print_notes(loaded.notes)
    adapter = model.loaded or model.to_adapter()
    if _is_training_file(adapter, given.file):
        print_notes(
            [f"{Path(given.file).name} has the name of the training rows, which must not be used here"]
        )
    scored = {FITTED_ON: score(model, tokenised(model, loaded.examples, data.too_long))}
    task, record = calibrate(model.task, scored)
    adapters.save(adapters.recalibrated(adapter, task, record), output)
    if given.json:
        print(json_text(record, indent=1))
        return
    assert record is not None  # it has labels
    print(in_a_line(record))
    print(f"saved {visible(str(given.output or given.adapter))}")


def _output(given: Any) -> str:
    """The folder to write."""
    from ptuning import adapters

    if given.output is not None:
        return str(given.output)
    if not Path(given.adapter).is_dir() or not adapters.is_adapter(Path(given.adapter)):
        raise ConfigError(
            f"{given.adapter} cannot be replaced, because it is not a folder that ptuning wrote",
            remedy="name a folder with --output",
        )
    return str(given.adapter)


def _is_training_file(adapter: Adapter, file: str) -> bool:
    """Whether the adapter's training rows came from a file of this name."""
    recorded = adapter.extra.get("data")
    train = recorded.get("train") if isinstance(recorded, dict) else None
    return isinstance(train, dict) and train.get("source") == Path(file).name
