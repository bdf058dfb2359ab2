"""``ptuning check-data``: checks a data set before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_data, data_of
from ptuning.training.config import DataConfig

if TYPE_CHECKING:
    from ptuning.data import Example, Loaded
    from ptuning.task import Task


def parser() -> Parser:
    made = Parser(
        prog="ptuning check-data",
        usage="FILE [options]",
        description="Check a data set before training: rows, labels, text lengths, duplicates, and leaks "
        "between splits. The exit code is 2 if it cannot be used for training.",
        epilog="example: ptuning check-data reviews.csv --label stars --test new.csv",
    )
    made.add_argument(
        "file", type=str, help="training rows: CSV, TSV, JSON, Parquet or Excel file, a folder, or hf:NAME"
    )
    made.add_argument(
        "--backbone",
        type=str,
        default="demo",
        help="model to check text lengths with: its tokenizer, and its maximum length minus the default "
        "prompt "
        "(default: demo)",
    )
    add_data(made, label=True, more=set(DataConfig.model_fields) - {"train"})
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    import json

    from ptuning.data import check, infer_task, load_examples
    from ptuning.errors import DataError
    from ptuning.visible import visible

    data = data_of(given, given.file)
    loaded: dict[str, Loaded] = {}
    task: Task | None = None
    for name, source in {"train": data.train, "validation": data.validation, "test": data.test}.items():
        if source is not None:
            loaded[name] = found = load_examples(
                source,
                **data.reading(),
                pair=loaded["train"].columns.pair if loaded else None,
                problem_type=data.problem_type,
                task=task,
                collect_problems=True,
            )
            if name == "train":
                with suppress(DataError):  # the report has it
                    task = infer_task(found.examples, problem_type=data.problem_type, names=found.label_names)
    lengths, limit = _lengths(given.backbone, data.max_length)
    report = check(
        {name: split.examples for name, split in loaded.items()},
        columns=loaded["train"].columns,
        problems={name: split.problems for name, split in loaded.items()},
        skipping=data.bad_rows == "skip",
        notes={name: split.notes for name, split in loaded.items()},
        problem_type=data.problem_type,
        names=loaded["train"].label_names,
        lengths=lengths,
        limit=limit,
        windows=data.too_long == "windows",
        fraction=data.validation_fraction,
    )
    lines = visible("\n".join(report.lines()), lines=True)
    print(json.dumps(report.to_dict(), indent=1) if given.json else lines)
    if not report.ok:
        raise DataError("the data cannot be used for training", remedy="correct the errors above")
    over = {split.name: split.lengths.over for split in report.splits if split.lengths is not None}
    if data.too_long == "error" and any(over.values()):
        rows = " and ".join(f"{count:,} of {name}" for name, count in over.items() if count)
        raise DataError(
            "data.too_long",
            got=f"'error', and there are rows of more than {limit} tokens: {rows}",
            remedy="shorten them, cut them with --data.too_long truncate, or read them in parts with "
            "--data.too_long windows",
        )


def _lengths(
    backbone: str, max_length: int | None
) -> tuple[Callable[[Sequence[Example]], list[int]], int | None]:
    from ptuning.data.tokens import Tokenise
    from ptuning.model.config import DeepPrompt
    from ptuning.model.loading import load_tokenizer

    tokenizer = load_tokenizer(backbone)
    limit = None
    if tokenizer.model_max_length < 1_000_000:  # larger values mean "unknown"
        limit = tokenizer.model_max_length - DeepPrompt().virtual_tokens
    if max_length is not None:
        limit = max_length if limit is None else min(limit, max_length)
    return Tokenise(tokenizer=tokenizer, limit=None).lengths, limit
