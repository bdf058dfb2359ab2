"""The command line. Each command is a module of this package with ``HELP`` and ``main(argv)``; all are thin.

Exit codes: 0 done, 1 failure, 2 the user's mistake, 128 + the number of a signal that ended it (Ctrl-C 130).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": "train a prompt and save the adapter",
    "evaluate": "measure an adapter on labelled rows, beside the baseline",
    "predict": "classify rows of a file or of standard input",
    "inspect": "show what an adapter is, and whether it fits a backbone",
    "push": "put an adapter on the Hugging Face Hub, with a filled-in model card",
    "import-peft": "turn a prompt that PEFT wrote into an adapter of ptuning's",
    "export-peft": "write an adapter that PEFT is sure to load",
    "check-data": "say what would be trained on: rows, labels, lengths, duplicates, leaks",
    "cache": "show what is kept on disk for the next run, or delete it",
    "demo": "train on the data that ptuning ships, and compare",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ptuning COMMAND …`` and return its exit code."""
    from ptuning.training.interrupt import interruptible

    with interruptible() as stop:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        except KeyboardInterrupt as error:
            return _say(str(error) or "interrupted", stop.exit_code)
        except BaseException as error:
            if stop.raised:  # while a library was in a callback, and made another exception of it
                return _say("interrupted", stop.exit_code)
            if (code := _failed(error)) is None:
                raise
            return code


def console() -> None:
    """The ``ptuning`` program."""
    from ptuning.training.interrupt import exit_on_signals

    _hold_standard_streams()
    code = main()
    exit_on_signals()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # a full disk, or a reader that has gone
        code = code or (1 if isinstance(error, BrokenPipeError) else _say(_os_error(error), 1))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it exits
    sys.exit(code)


def _hold_standard_streams() -> None:
    """Put the null device where a standard stream is closed: the next file opened would be taken for it."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which gets the lowest number that is free: this one


def _failed(error: BaseException) -> int | None:
    """Say in a line what is wrong, and return the exit code; ``None`` for what nobody expects."""
    from ptuning.errors import PTuningError, UserError, out_of_memory

    match error:
        case SystemExit():  # a command's --help
            return int(error.code or 0)
        case PTuningError():
            return _say(str(error), 2 if isinstance(error, UserError) else 1)
        case BrokenPipeError():
            return 1  # whoever read our output has gone (``| head``): nothing to say, and nobody to say it to
        case OSError():
            return _say(_os_error(error), 1)
        case MemoryError() | RuntimeError() if out_of_memory(error):
            said = f"out of memory ({_first_line(error)}); lower the batch size, or cut texts shorter"
            return _say(said, 1)
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
        if sys.stdout is None and command in ("evaluate", "inspect", "check-data", "cache"):
            return _say(f"standard output is closed, and what ptuning {command} finds is written there", 1)
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
            "Teach a frozen Hugging Face model a new task by training a prompt, under 1 % as many numbers.",
            "",
            "commands:",
            *lines,
            "",
            "ptuning COMMAND --help shows a command's options; ptuning demo needs no data and no network.",
        ]
    )
