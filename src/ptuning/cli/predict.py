"""``ptuning predict``: predicts labels and probabilities, in order and in bounded memory."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ptuning.cli.options import Parser
from ptuning.cli.predict_ray import add_ray_options, check_ray_options, predict_on_ray
from ptuning.cli.predict_tasks import TaskAnswers, add_adapters, check_adapters
from ptuning.cli.shared import (
    add_abstain_below,
    add_data,
    add_model,
    add_packed_memory,
    check_abstain_below,
    check_folder_of,
    data_of,
    load_model,
    pack,
    print_notes,
)
from ptuning.cli.streams import is_live, live_input
from ptuning.errors import ConfigError, OutputError, PTuningError
from ptuning.paths import local_path

if TYPE_CHECKING:
    from ptuning.data import Example
    from ptuning.data.bad_rows import LeftOut
    from ptuning.inference.predictor import Prediction
    from ptuning.task import Task
    from ptuning.training.config import DataConfig

FORMATS = ["text", "csv", "tsv", "jsonl", "parquet"]
WINDOW = 1024


def parser() -> Parser:
    made = Parser(
        prog="ptuning predict",
        usage="ADAPTER [FILE] [options]\n       ptuning predict --adapters FOLDER [FILE] [options]",
        description="Predict labels and probabilities for the rows of a file or of standard input, with one "
        "adapter, or with the adapter that each row names. Rows are streamed, in order.",
        epilog="examples: ptuning predict support new.csv; echo 'hello' | ptuning predict support; "
        "ptuning predict --adapters trained rows.csv",
    )
    add_model(made, optional=True)
    made.add_argument("file", metavar="FILE", nargs="?", help="same as --input")
    made.add_argument(
        "--input",
        type=str,
        help="file, folder or hf:NAME; - is standard input; with --ray also a pattern or URI such as "
        "'s3://bucket/*.parquet' (default: -)",
    )
    made.add_argument(
        "--input_format",
        choices=FORMATS,
        help="format of the input (default: by file name; for standard input text, one text per line, or "
        "jsonl with --adapters)",
    )
    made.add_argument(
        "--output",
        type=str,
        default="-",
        help="file to write; - is standard output; with --ray a folder or URI (default: -)",
    )
    made.add_argument(
        "--format",
        choices=["jsonl", "csv", "parquet"],
        help="format of the output; parquet with --ray only (default: jsonl, with --ray parquet)",
    )
    made.add_argument(
        "--keep",
        metavar="COLUMNS",
        help="input columns to copy to the output, separated by commas, such as id; * for all (default: "
        "none, with --ray all)",
    )
    made.add_argument(
        "--batch_tokens",
        type=int,
        default=4096,
        help="maximum tokens per batch, padding included (default: 4096)",
    )
    made.add_argument(
        "--batch_size", type=int, help="maximum rows per batch (default: as many as batch_tokens allows)"
    )
    made.add_argument("--window", type=int, help=f"maximum rows in memory at once (default: {WINDOW})")
    add_abstain_below(made)
    add_packed_memory(made)
    add_adapters(made)
    add_ray_options(made)
    add_data(made, label=False, more=["too_long"])
    return made


def main(argv: Sequence[str]) -> None:
    made = parser()
    given = made.parse_args(list(argv))
    if given.adapters is not None and given.adapter is not None:  # the only argument is FILE
        given.adapter, given.file = given.file, given.adapter
    check_adapters(given, made)
    if given.file is not None and given.input is not None:
        raise ConfigError("FILE and --input", got="both", expected="one of them")
    given.input = given.input or given.file or "-"
    check_numbers(given)
    check_ray_options(given)
    if given.ray is not None:
        predict_on_ray(given)
        return
    given.format, given.window = given.format or "jsonl", given.window or WINDOW
    if given.output == "-" and sys.stdout is None:
        raise OutputError("standard output is closed", remedy="name a file with --output")
    if given.output != "-":
        check_folder_of("--output", given.output, _file(given.output))
    from ptuning.cli.tables import plain_console
    from ptuning.cli.throughput import Throughput
    from ptuning.data import stream_examples
    from ptuning.inference.kernel_caches import bound_kernel_caches
    from ptuning.inference.read_ahead import read_ahead
    from ptuning.inference.writing import writer

    bound_kernel_caches()
    data = data_of(given, given.input)
    several = given.adapters is not None
    answers = TaskAnswers(given, data) if several else OneAdapter(given, data)
    form: Any = given.input_format or (("jsonl" if several else "text") if given.input == "-" else None)
    keep = [] if given.keep is None else [name.strip() for name in given.keep.split(",")]
    apart = given.output != "-" or not sys.stdout.isatty()
    with live_input(given.input) as source:
        found = stream_examples(source, format=form, keep=keep, **answers.rows, **data.reading())
        print_notes(found.notes)
        printed, done = len(found.notes), 0
        rows = read_ahead(found.examples) if is_live(source) else found.examples
        with Throughput(plain_console(stderr=True), live=apart) as rate, _open(given.output) as stream:
            write = writer(stream, given.format, answers.task)
            for prediction in answers.stream(rate.waiting_for(rows), found.left_out):
                write(prediction)
                rate.one_more()
                done += 1
    print_notes(found.notes[printed:])
    if (left_out := found.left_out.note(found.origin, done)) is not None:
        print_notes([left_out])


def check_numbers(given: Any) -> None:
    """Refuse sizes and probabilities that are out of range.

    Raises:
        ConfigError: names the option.
    """
    for option, maximum in {
        "batch_size": 1_000_000,
        "batch_tokens": 1_000_000_000,
        "window": 10_000_000,
    }.items():
        value = getattr(given, option)
        if value is not None and not 1 <= value <= maximum:
            raise ConfigError(f"--{option}", got=value, expected=f"at least 1 and at most {maximum:,}")
    check_abstain_below(given.abstain_below)


class OneAdapter:
    """Answers rows with one adapter; see :class:`~ptuning.cli.predict_tasks.TaskAnswers`."""

    def __init__(self, given: Any, data: DataConfig) -> None:
        from ptuning.inference.predictor import Predictor

        model = load_model(given)
        pack(model.backbone, given)
        self.task: Task | None = model.task
        self.rows: dict[str, Any] = {"pair": model.task.pair}
        self._predictor = Predictor(
            model=model,
            batch_size=given.batch_size,
            batch_tokens=given.batch_tokens,
            window=given.window,
            too_long=data.too_long,
            abstain_below=given.abstain_below,
        )

    def stream(self, examples: Iterable[Example | None], left_out: LeftOut) -> Iterator[Prediction]:
        return self._predictor.stream(examples)


@contextmanager
def _open(output: str) -> Iterator[IO[str]]:
    """Standard output, or a file that appears when it is complete; both in UTF-8."""
    if output == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)
        yield sys.stdout
        sys.stdout.flush()
        return
    from ptuning.adapters.atomic import atomic_file

    target = _file(output)
    if target.is_dir():
        raise ConfigError(
            "--output", got=f"the folder {output!r}", expected="a file", remedy="name a file in it"
        )
    if target.exists() and not target.is_file():
        with _output_errors(output, str(target)), open(target, "w", encoding="utf-8", newline="") as stream:
            yield stream  # a device or a pipe is not replaced
        return
    temporary = str(target.with_name(f".{target.name}."))
    with (
        _output_errors(output, temporary),
        atomic_file(target) as part,
        open(part, "x", encoding="utf-8", newline="") as stream,
    ):
        yield stream


def _file(output: str) -> Path:
    return Path(os.path.realpath(local_path(output, "--output", expand=False)))


@contextmanager
def _output_errors(output: str, file: str) -> Iterator[None]:
    """Turn system errors for files with names that start with ``file`` into an error about ``--output``."""
    try:
        yield
    except OSError as error:
        of_another = error.filename is not None and not str(error.filename).startswith(file)
        if isinstance(error, (PTuningError, BrokenPipeError)) or of_another:
            raise
        raise OutputError(
            f"--output {output}: {error.strerror or error}",
            remedy="nothing was written; free some space, or choose another file",
        ) from error
