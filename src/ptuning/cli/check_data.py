"""``ptuning check-data``: what would be trained on, before anything is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_reading, reading, tell

if TYPE_CHECKING:
    from ptuning.data import Example, Loaded


def parser() -> Parser:
    made = Parser(
        prog="ptuning check-data",
        usage="FILE [options]",
        description="Say what would be trained on: rows, labels, lengths against the limit, duplicates, "
        "leaks between splits. Exit code 2 if it could not be trained on.",
    )
    made.add_argument("file", type=str, help="the training rows: CSV, TSV, JSON lines, Parquet, or hf:NAME")
    made.add_argument("--validation", type=str | None, help="the validation rows")
    made.add_argument("--test", type=str | None, help="the test rows")
    made.add_argument(
        "--backbone",
        type=str,
        default="demo",
        help="whose tokenizer counts, and whose limit, less the default prompt, holds",
    )
    add_reading(made, label=True)
    made.add_argument(
        "--problem_type",
        choices=["auto", "single_label_classification", "multi_label_classification", "regression"],
        default="auto",
        help="what a label is; told from the labels",
    )
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    import json

    from ptuning.data import check, load_examples
    from ptuning.errors import DataError
    from ptuning.training.config import DataConfig
    from ptuning.visible import visible

    loaded: dict[str, Loaded] = {}
    for name, source in {"train": given.file, "validation": given.validation, "test": given.test}.items():
        if source is not None:
            loaded[name] = load_examples(
                source,
                **reading(given),
                pair=loaded["train"].columns.pair if loaded else None,
                collect_problems=True,
            )
            tell(loaded[name].notes)
    lengths, limit = _lengths(given.backbone)
    report = check(
        {name: split.examples for name, split in loaded.items()},
        columns=loaded["train"].columns,
        problems={name: split.problems for name, split in loaded.items()},
        problem_type=given.problem_type,
        names=loaded["train"].label_names,
        lengths=lengths,
        limit=limit,
        fraction=DataConfig.model_fields["validation_fraction"].default,
    )
    lines = visible("\n".join(report.lines()), lines=True)
    print(json.dumps(report.to_dict(), indent=1) if given.json else lines)
    if not report.ok:
        raise DataError("the data cannot be trained on as it stands; mend the errors above")


def _lengths(backbone: str) -> tuple[Callable[[Sequence[Example]], list[int]], int | None]:
    from ptuning.data.tokens import Tokenise
    from ptuning.model.config import DeepPrompt
    from ptuning.model.loading import load_tokenizer

    tokenizer = load_tokenizer(backbone)
    limit = None
    if tokenizer.model_max_length < 1_000_000:  # more means "not said"
        limit = tokenizer.model_max_length - DeepPrompt().virtual_tokens
    return Tokenise(tokenizer=tokenizer, limit=None).lengths, limit
