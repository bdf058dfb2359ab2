"""The command line. Each command is a small module of this package with ``parser()`` and ``main(argv)``.

Exit codes: 0 success, 1 failure, 2 wrong usage or input, 128 + signal number if interrupted (Ctrl-C: 130).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": "train a prompt and save it as an adapter",
    "evaluate": "compute the metrics of an adapter on labelled rows",
    "report": "compare adapters, or the runs of one training, on a page",
    "calibrate": "fit an adapter's probabilities to labelled rows, so that they can be trusted",
    "predict": "predict the labels of rows from a file or standard input",
    "serve": "answer HTTP requests for many adapters on one backbone",
    "inspect": "show the task, prompt, backbone and metrics of an adapter",
    "push": "upload an adapter to the Hugging Face Hub, with a model card",
    "import-peft": "convert a prompt trained with PEFT to a ptuning adapter",
    "export-peft": "convert a ptuning adapter to PEFT's format",
    "check-data": "check a data set before training: labels, lengths, duplicates, leaks",
    "cache": "show or clear the cache on disk",
    "demo": "train and compare on the data that ptuning ships",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ptuning COMMAND …`` and return its exit code."""
    from ptuning.training.interrupt import interruptible

    with interruptible() as stop:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        except KeyboardInterrupt as error:
            return _say_interrupted(str(error) or "interrupted", stop.exit_code)
        except BaseException as error:
            if stop.raised:  # inside a callback of a library, which turned it into another exception
                return _say_interrupted("interrupted", stop.exit_code)
            if (code := _failed(error)) is None:
                raise
            return code


def console() -> None:
    """The ``ptuning`` program."""
    from ptuning.cli.launched import is_main
    from ptuning.training.interrupt import exit_on_signals

    _open_standard_streams()
    if not is_main() and sys.stdout is not None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    code = main()
    exit_on_signals()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # a full disk, or a closed pipe
        code = code or (1 if isinstance(error, BrokenPipeError) else _say(_os_error(error), 1))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it exits
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open the null device for closed standard streams; otherwise the next open file would get their
    number.
    """
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def _failed(error: BaseException) -> int | None:
    """Print the error in one line and return the exit code; ``None`` for an unexpected exception."""
    from ptuning.cli.launched import left_to_launcher
    from ptuning.errors import PTuningError, UserError, out_of_memory

    match error:
        case SystemExit():  # a command's --help
            return int(error.code or 0)
        case PTuningError():
            code = 2 if isinstance(error, UserError) else 1
            return code if left_to_launcher(error) else _say(str(error), code)
        case BrokenPipeError():
            return 1  # the reader of our output has gone (``| head``), so there is nothing to print
        case OSError():
            return _say(_os_error(error), 1)
        case MemoryError() | RuntimeError() if out_of_memory(error):
            return _say(
                f"out of memory ({_first_line(error)}); lower the batch size or the maximum length", 1
            )
    return None


def _run(given: list[str]) -> int:
    if not given:
        return _say(f"no command; expected one of {', '.join(COMMANDS)}; see: ptuning --help", 2)
    command, *argv = given
    if command in ("-h", "--help", "help"):
        print(_usage())
    elif command == "--version":
        from ptuning import __version__

        print(f"ptuning {__version__}")
    elif command in COMMANDS:
        if sys.stdout is None and command in ("evaluate", "calibrate", "inspect", "check-data", "cache"):
            return _say(f"standard output is closed, but ptuning {command} writes its result there", 1)
        import_module(f"ptuning.cli.{command.replace('-', '_')}").main(argv)
    else:
        import difflib

        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
        return _say(f"unknown command {command!r}; {hint}", 2)
    return 0


def _os_error(error: OSError) -> str:
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _say_interrupted(message: str, code: int) -> int:
    """Like :func:`_say`, by one of the processes that a launcher interrupts."""
    from ptuning.cli.launched import is_main

    return _say(message, code) if is_main() else code


def _say(message: str, code: int) -> int:
    from ptuning.visible import visible

    line = visible(" ".join(message.split()))
    print(f"ptuning: {'' if code > 128 else 'error: '}{line}", file=sys.stderr)
    return code


def _usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ptuning COMMAND [options]",
            "",
            "P-tuning: adapt a frozen Hugging Face model to a task by training a prompt, with less than "
            "1 % of",
            "the model's parameters.",
            "",
            "commands:",
            *lines,
            "",
            "ptuning COMMAND --help shows the options of a command. ptuning demo needs no data and no "
            "network.",
        ]
    )
