"""Every command has help, every option is documented, and none of it waits for torch."""

from __future__ import annotations

import re
import subprocess
import sys
from argparse import SUPPRESS
from importlib import import_module

import pytest

from ptuning import __version__
from ptuning.cli import COMMANDS, main
from ptuning.cli.options import Parser, leaves
from ptuning.training.config import FitConfig, TrainConfig


def parser_of(command: str) -> Parser:
    made: Parser = import_module(f"ptuning.cli.{command.replace('-', '_')}").parser()
    return made


@pytest.mark.parametrize("argument", ["--help", "-h", "help"])
def test_help_lists_every_command(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    assert main([argument]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    for command, text in COMMANDS.items():
        assert re.search(rf"^  {command} +{re.escape(text)}$", found.out, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ptuning {__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_shows_every_option(
    capsys: pytest.CaptureFixture[str], command: str, flag: str
) -> None:
    assert main([command, flag]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    assert found.out.startswith(f"usage: ptuning {command} ")
    for action in parser_of(command)._actions:
        for option in action.option_strings:
            assert option in found.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command: str) -> None:
    for action in parser_of(command)._actions:
        name = action.option_strings or action.dest
        assert action.help, f"{command} {name} has no help"
        assert action.help != SUPPRESS
        assert len(action.help.split(" (default")[0]) > 5, f"{command} {name}: {action.help!r} says nothing"


def test_every_choice_of_the_configuration_is_an_option_with_its_default() -> None:
    options = {option: action for action in parser_of("train")._actions for option in action.option_strings}
    for leaf in leaves(TrainConfig):
        assert f"--{leaf.key}" in options
        assert f"(default: {leaf.default})" in str(options[f"--{leaf.key}"].help)
    assert f"(default: {FitConfig().batch_size})" in str(options["--fit.batch_size"].help)
    assert "(default: required)" in str(options["--data.train"].help)


def test_a_default_that_depends_on_the_depth_shows_both() -> None:
    options = {action.dest: str(action.help) for action in parser_of("train")._actions}
    assert "(default: none or 20)" in options["prompt.num_virtual_tokens"]
    assert "(default: input or deep)" in options["prompt.depth"]


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    heavy = {"torch", "transformers", "datasets", "accelerate", "sklearn", "pyarrow", "numpy"}
    code = (
        "import sys; from ptuning.cli import main\n"
        f"code = main({argv!r})\n"
        f"print(*sorted({heavy!r} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.split() == []
    assert done.stdout


def test_python_m_ptuning_is_the_program() -> None:
    run = [sys.executable, "-m", "ptuning"]
    done = subprocess.run([*run, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ptuning {__version__}\n"
    done = subprocess.run([*run, "predcit"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "ptuning: error: unknown command 'predcit'; did you mean predict?\n"


def test_demo_has_a_parser_and_defaults() -> None:
    found = parser_of("demo").parse_args([])
    assert (found.output, found.epochs, found.seed) == ("demo-adapter", 12, 0)
