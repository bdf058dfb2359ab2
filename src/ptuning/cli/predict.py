"""``ptuning predict``: rows in, labels and probabilities out, in order, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ptuning.cli.options import Parser
from ptuning.cli.shared import add_data, add_model, data_of, load_model
from ptuning.errors import ConfigError, OutputError, PTuningError

if TYPE_CHECKING:
    from ptuning.inference.predictor import Prediction
    from ptuning.task import Task

FORMATS = ["text", "csv", "tsv", "jsonl", "parquet"]


def parser() -> Parser:
    made = Parser(
        prog="ptuning predict",
        usage="ADAPTER [options]",
        description="Classify the rows of a file or of standard input. Rows stream: a window is held.",
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
    from ptuning.cli.rate import Rate
    from ptuning.cli.tables import plain_console
    from ptuning.data import stream_examples
    from ptuning.inference.predictor import Predictor

    for option in ("batch_size", "batch_tokens", "window"):
        value = getattr(given, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option}: got {value}, expected at least 1")
    data = data_of(given, given.input)
    model = load_model(given)
    form: Any = given.input_format or ("text" if given.input == "-" else None)
    found = stream_examples(given.input, format=form, pair=model.task.pair, **data.reading())
    predictor = Predictor(
        model=model,
        batch_size=given.batch_size,
        batch_tokens=given.batch_tokens,
        window=given.window,
        too_long=data.too_long,
    )
    apart = given.output != "-" or not sys.stdout.isatty()
    with Rate(plain_console(stderr=True), live=apart) as rate, _open(given.output) as stream:
        write = _writer(stream, given.format, model.task)
        for prediction in predictor.stream(rate.waiting_for(found.examples)):
            write(prediction)
            rate.one_more()


def _writer(stream: IO[str], form: str, task: Task) -> Callable[[Prediction], None]:
    if form == "jsonl":
        return lambda found: print(
            json.dumps({"row": found.row, **found.to_dict()}, ensure_ascii=False),
            file=stream,
            flush=stream.isatty(),
        )
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(
        ["row", "value"]
        if task.is_regression
        else ["row", "label", *(f"p({label})" for label in task.labels)]
    )

    def write(found: Prediction) -> None:
        label = "|".join(map(str, found.label)) if isinstance(found.label, tuple) else found.label
        table.writerow([found.row, label, *(f"{chance:.6f}" for _, chance in found.probabilities)])

    return write


@contextmanager
def _open(output: str) -> Iterator[IO[str]]:
    """Standard output, or a file that appears only when it is whole; UTF-8, both."""
    if output == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)
        yield sys.stdout
        sys.stdout.flush()
        return
    target = Path(os.path.realpath(output))
    if target.is_dir():
        raise ConfigError(f"--output {output!r} is a folder, expected a file; name a file in it")
    if target.exists() and not target.is_file():
        with _blaming(output, str(target)), open(target, "w", encoding="utf-8", newline="") as stream:
            yield stream  # a device or a pipe is written to, never replaced
        return
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with _blaming(output, str(part)):
            with open(part, "x", encoding="utf-8", newline="") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if target.exists():
                shutil.copymode(target, part)
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _blaming(output: str, file: str) -> Iterator[None]:
    """Say of what the system refuses for ``file`` that it is about ``--output``."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (PTuningError, BrokenPipeError)) or error.filename not in (None, file):
            raise
        raise OutputError(
            f"--output {output}: {error.strerror or error}; nothing was written, make room or name another"
        ) from error
