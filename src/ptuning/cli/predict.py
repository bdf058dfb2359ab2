"""``ptuning predict``: rows in, labels and probabilities out, in order, in bounded memory."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_data, add_model, data_of, load_model, tell
from ptuning.cli.streams import is_live, live_input
from ptuning.errors import ConfigError, OutputError, PTuningError
from ptuning.paths import local_path
from ptuning.visible import cell, json_text

if TYPE_CHECKING:
    from ptuning.inference.predictor import Prediction
    from ptuning.task import Task

FORMATS = ["text", "csv", "tsv", "jsonl", "parquet"]


def parser() -> Parser:
    made = Parser(
        prog="ptuning predict",
        usage="ADAPTER [options]",
        description="Classify the rows of a file or of standard input. Rows stream: a window is held, and "
        "answered sooner where the next row is slow to come.",
        epilog="example: echo 'where is my parcel?' | ptuning predict support",
    )
    add_model(made)
    made.add_argument(
        "--input", type=str, default="-", help="file, hf: name, or - for standard input (default)"
    )
    made.add_argument(
        "--input_format",
        choices=FORMATS,
        help="of the input; told from the file's name, and 'text' (a text a line) on standard input",
    )
    made.add_argument("--output", type=str, default="-", help="file, or - for standard output (default)")
    made.add_argument("--format", choices=["jsonl", "csv"], default="jsonl", help="of the output")
    made.add_argument(
        "--keep",
        metavar="COLUMNS",
        help="columns of the input that the output has too, with commas between, such as id; * for all",
    )
    add_data(made, label=False, more=["too_long"])
    made.add_argument(
        "--batch_tokens",
        type=int,
        default=4096,
        help="tokens, padding included, that go through the backbone together (default 4096)",
    )
    made.add_argument(
        "--batch_size", type=int, help="the most rows that go through it together; as the tokens allow"
    )
    made.add_argument("--window", type=int, default=1024, help="rows held in memory at once")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    if given.output == "-" and sys.stdout is None:
        raise OutputError(
            "standard output is closed, so the answers have no place to go; name a file with --output"
        )
    from ptuning.cli.rate import Rate
    from ptuning.cli.tables import plain_console
    from ptuning.data import stream_examples
    from ptuning.inference.arriving import arriving
    from ptuning.inference.predictor import Predictor

    for option, most in {
        "batch_size": 1_000_000,
        "batch_tokens": 1_000_000_000,
        "window": 10_000_000,
    }.items():
        value = getattr(given, option)
        if value is not None and not 1 <= value <= most:
            raise ConfigError(f"--{option}: got {value}, expected at least 1 and at most {most:,}")
    data = data_of(given, given.input)
    model = load_model(given)
    form: Any = given.input_format or ("text" if given.input == "-" else None)
    predictor = Predictor(
        model=model,
        batch_size=given.batch_size,
        batch_tokens=given.batch_tokens,
        window=given.window,
        too_long=data.too_long,
    )
    keep = [] if given.keep is None else [name.strip() for name in given.keep.split(",")]
    apart = given.output != "-" or not sys.stdout.isatty()
    with live_input(given.input) as source:
        found = stream_examples(source, format=form, pair=model.task.pair, keep=keep, **data.reading())
        tell(found.notes)
        said, done = len(found.notes), 0
        rows = arriving(found.examples) if is_live(source) else found.examples
        with Rate(plain_console(stderr=True), live=apart) as rate, _open(given.output) as stream:
            write = _writer(stream, given.format, model.task)
            for prediction in predictor.stream(rate.waiting_for(rows)):
                write(prediction)
                rate.one_more()
                done += 1
    tell(found.notes[said:])
    if (left_out := found.left_out.note(found.origin, done)) is not None:
        tell([left_out])


def _writer(stream: IO[str], form: str, task: Task) -> Callable[[Prediction], None]:
    """What writes one answer; the columns of a table are known with the first."""
    if form == "jsonl":
        return lambda found: print(
            json_text(_beside({"row": found.row, **found.to_dict()}, found.kept)),
            file=stream,
            flush=stream.isatty(),
        )
    table = csv.writer(stream, lineterminator="\n")
    names = ["label", *(f"p({label})" for label in task.labels)] if task.labels else ["value"]
    begun = False

    def write(found: Prediction) -> None:
        nonlocal begun
        label = "|".join(map(str, found.label)) if isinstance(found.label, tuple) else found.label
        own = [found.row, label, *(f"{chance:.6f}" for _, chance in found.probabilities)]
        cells = _beside(dict(zip(["row", *names], own, strict=True)), found.kept)
        if not begun:
            table.writerow(map(cell, cells))
        begun = True
        table.writerow(
            json_text(value) if isinstance(value, list | dict) else cell(value) for value in cells.values()
        )

    return write


def _beside(own: dict[str, Any], kept: Mapping[str, Any] | None) -> dict[str, Any]:
    """An answer with the columns that were kept; ``input.label`` is one that is called as a part of it."""
    for name, value in (kept or {}).items():
        free = name
        while free in own:
            free = f"input.{free}"
        own[free] = _plain(value)
    return own


def _plain(value: Any) -> Any:
    """A value as JSON has it; what JSON has no word for, such as a date, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value)


@contextmanager
def _open(output: str) -> Iterator[IO[str]]:
    """Standard output, or a file that appears only when it is whole; UTF-8, both."""
    if output == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)
        yield sys.stdout
        sys.stdout.flush()
        return
    from ptuning.adapters.atomic import whole_file

    target = Path(os.path.realpath(local_path(output, "--output", expand=False)))
    if target.is_dir():
        raise ConfigError(f"--output {output!r} is a folder, expected a file; name a file in it")
    if target.exists() and not target.is_file():
        with _blaming(output, str(target)), open(target, "w", encoding="utf-8", newline="") as stream:
            yield stream  # a device or a pipe is written to, never replaced
        return
    beside = str(target.with_name(f".{target.name}."))
    with (
        _blaming(output, beside),
        whole_file(target) as part,
        open(part, "x", encoding="utf-8", newline="") as stream,
    ):
        yield stream


@contextmanager
def _blaming(output: str, file: str) -> Iterator[None]:
    """Say of what the system refuses for files that begin with ``file`` that it is about ``--output``."""
    try:
        yield
    except OSError as error:
        of_another = error.filename is not None and not str(error.filename).startswith(file)
        if isinstance(error, (PTuningError, BrokenPipeError)) or of_another:
            raise
        raise OutputError(
            f"--output {output}: {error.strerror or error}; nothing was written, make room or name another"
        ) from error
