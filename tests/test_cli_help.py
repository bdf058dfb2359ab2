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
from ptuning.data.options import OF_LABELS, ReadOptions
from ptuning.training.config import DataConfig, FitConfig, TrainConfig


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
            # An earlier name is taken and not shown.
            shown = re.search(rf"{re.escape(option)}(?![\w.])", found.out)
            assert bool(shown) is (action.help != SUPPRESS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command: str) -> None:
    for action in parser_of(command)._actions:
        name = action.option_strings or action.dest
        assert action.help, f"{command} {name} has no help"
        if action.help == SUPPRESS:  # an earlier name
            continue
        assert len(action.help.split(" (default")[0]) > 5, f"{command} {name}: {action.help!r} says nothing"


def test_every_choice_of_the_configuration_is_an_option_with_its_default() -> None:
    options = {option: action for action in parser_of("train")._actions for option in action.option_strings}
    for leaf in leaves(TrainConfig):
        assert f"--{leaf.key}" in options
        shown = f"{leaf.default})" if leaf.default.startswith("required") else f"default: {leaf.default})"
        text = str(options[f"--{leaf.key}"].help)
        assert shown in text if leaf.default else "default" not in text
        assert not re.search(r"(?i)default: (none|left out)|\bnone or\b|:func:|:class:|<", text), text
    assert f"(default: {FitConfig().batch_size})" in str(options["--fit.batch_size"].help)
    assert "(required)" in str(options["--data.train"].help)


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("prompt.depth", "deep"),
        ("prompt.num_virtual_tokens", "20"),
        ("prompt.encoder.kind", "embedding"),
        ("prompt.encoder.width", "the embedding size E for mlp and lstm, 128 for residual for depth input; "
         "the backbone's hidden size H for depth deep"),
        ("prompt.init.kind", "vocabulary"),
        ("prompt.pooling", "chosen automatically"),
        ("fit.num_train_epochs", "the recipe's choice"),
        ("data.text", "found by name"),
        ("data.label_separator", ""),
        ("revision", ""),
        ("prompt.head.kind", "the classification head"),
        ("prompt.head.template", "required with a cloze head"),
    ],
)  # fmt: skip
def test_a_default_says_what_holds(option: str, default: str) -> None:
    shown = {leaf.key: leaf.default for leaf in leaves(TrainConfig)}
    assert shown[option] == default
    odd = [(key, text) for key, text in shown.items() if len(text) > 120 or " or " in text or ". " in text]
    assert not odd


def test_an_option_of_some_choices_says_which() -> None:
    shown = {leaf.key: leaf.applies_to for leaf in leaves(TrainConfig)}
    assert shown["prompt.placement"] == ("depth input",)
    assert shown["prompt.encoder.num_layers"] == ("depth input", "lstm")
    assert shown["prompt.num_virtual_tokens"] == shown["fit.num_train_epochs"] == ()


def test_an_option_of_few_words_lists_them() -> None:
    """Wherever the configuration takes some words and nothing else, and in every command that has it."""
    shown = {leaf.key: leaf.choices for leaf in leaves(TrainConfig)}
    assert shown["data.problem_type"] == (
        "auto", "single_label_classification", "multi_label_classification", "regression",
    )  # fmt: skip
    assert shown["prompt.depth"] == ("input", "deep")
    assert shown["prompt.encoder.kind"] == ("embedding", "mlp", "lstm", "residual")
    assert shown["prompt.pooling"] == ("native", "mean", "layers", "similarity")
    assert shown["fit.backbone_dropout"] == ("true", "false")
    assert shown["fit.evaluate_every"] == ()  # or a number
    for command in ("train", "check-data", "evaluate", "predict"):
        for action in parser_of(command)._actions:
            if choices := shown.get(action.dest):
                assert action.choices or action.metavar == "{" + ",".join(choices) + "}"


def test_the_options_of_a_source_have_the_same_names_in_every_command() -> None:
    for command in ("train", "check-data", "evaluate", "predict"):
        names = {frozenset(action.option_strings) for action in parser_of(command)._actions}
        for name in ReadOptions.__annotations__:
            if command != "predict" or name not in OF_LABELS:
                assert {f"--data.{name}", f"--{name}"} in names, command
    check = {name for action in parser_of("check-data")._actions for name in action.option_strings}
    assert {f"--data.{name}" for name in DataConfig.model_fields if name != "train"} <= check


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


# ---------------------------------------------------------------------------- what cannot be understood

NEEDS: dict[str, str] = {
    "train": "no training rows, expected a file, such as",
    "evaluate": "the following arguments are required: adapter, file; see: ptuning evaluate --help",
    "calibrate": "the following arguments are required: adapter, file; see: ptuning calibrate --help",
    "predict": "the following arguments are required: adapter; see: ptuning predict --help",
    "inspect": "the following arguments are required: adapter",
    "report": "the following arguments are required: ADAPTER",
    "push": "the following arguments are required: folder, repository",
    "import-peft": "the following arguments are required: adapter, output",
    "export-peft": "the following arguments are required: adapter, output",
    "check-data": "the following arguments are required: file",
    "serve": "adapters: got none, expected at least one; name them, or a folder with --folder",
}
"""What a command says that is given nothing; those that are not here need nothing."""


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("ptuning: error: ")
    assert found.err.count("\n") == 1
    return found.err.removeprefix("ptuning: error: ")


@pytest.mark.parametrize("command", NEEDS)
def test_a_command_without_arguments(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert refused(capsys, command).startswith(NEEDS[command])


def test_no_command_is_forgotten() -> None:
    assert {*NEEDS, "cache", "demo"} == {*COMMANDS}
    assert parser_of("cache").parse_args([])
    assert parser_of("demo").parse_args([])


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option(capsys: pytest.CaptureFixture[str], command: str) -> None:
    positional = [each for each in parser_of(command)._actions if not each.option_strings]
    enough = ["x"] * len(positional)
    said = refused(capsys, command, *enough, "--zzzz", "3")
    assert said == f"unknown option zzzz; see: ptuning {command} --help\n"
    assert refused(capsys, command, *enough, "--zzzz=3") == said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_without_its_value(capsys: pytest.CaptureFixture[str], command: str) -> None:
    for action in parser_of(command)._actions:
        for option in action.option_strings if action.nargs != 0 else ():
            said = refused(capsys, command, option)
            assert (
                said == f"{action.option_strings[0]}: expected one argument; see: ptuning {command} --help\n"
            )
