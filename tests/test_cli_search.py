"""``ptuning train --recipe search``: a line a trial, a table, a picture, the best saved, and how to go on."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptuning import TrainConfig, adapters
from ptuning.cli import main
from ptuning.training import trials
from ptuning.training.console import ConsoleCallback

Rows = Callable[..., list[dict[str, Any]]]
Ran = tuple[int, str, str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Rows, jsonl: Callable[..., Path]) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    jsonl("train.jsonl", rows(48))
    return tmp_path


@pytest.fixture
def train(home: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run ``ptuning train`` with the options of a small search and some more."""
    values = {
        "backbone": tiny_folder,
        "precision": "fp32",
        "device": "cpu",
        "output": "out",
        "report": "false",
        "recipe": "search",
    }
    values |= {"fit.epochs": 2, "fit.batch_size": 8, "prompt.num_virtual_tokens": 4}
    values |= {"search.trials": 4, "search.epochs": 1}
    small = [part for name, value in values.items() for part in (f"--{name}", str(value))]

    def run(*argv: str) -> Ran:
        code = main(["train", *small, "train.jsonl", *argv])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def cells(err: str) -> list[list[str]]:
    lines = [line for line in err.splitlines() if re.search("[│┃]", line)]
    return [re.split(r"\s*[│┃]\s*", line.strip(" │┃")) for line in lines]


@pytest.mark.usefixtures("any_features")
def test_trials_are_told_and_shown_and_the_best_is_saved(train: Callable[..., Ran], home: Path) -> None:
    code, out, err = train()
    assert code == 0
    found = json.loads((home / "out.run/search/result.json").read_text())
    best = found["winner"]
    assert out == (
        f"saved out (trial {best} of 4, trained in full)\nnext: ptuning predict out --input FILE\n"
    )
    said = [line for line in err.splitlines() if re.match(r"trial +\d+ of 4: ", line)]
    assert len(said) == 4
    values = [each["values"] for each in found["trials"]]
    assert said[0].startswith("trial  1 of 4: first layer 0, learning rate 0.06, head learning rate 0.01: a")
    assert len([line for line in err.splitlines() if line.startswith("epoch ")]) == 2  # the run's, no trial's
    head, *rows = cells(err)[:5]
    assert head == ["trial", "first layer", "learning rate", "head learning rate", "accuracy", "epochs"]
    for number, (row, tried) in enumerate(zip(rows, values, strict=True), 1):
        assert row[:4] == [str(number), *(f"{value:g}" for value in tried.values())]
        assert ("*kept" in row) == (number == best)
    assert re.search(r"^picture: .*out.run/search/search.png$", err, re.MULTILINE)
    assert (home / "out.run/search/search.png").stat().st_size > 5000
    rate = f"{values[best - 1]['learning_rate']:g}"
    assert f"recipe: search: 2 epochs, batch size 8, learning rates {rate} (prompt)" in err
    assert adapters.verify("out")
    kept = TrainConfig.checked(yaml.safe_load((home / "out.run/config.yaml").read_text()))
    assert (kept.recipe, kept.search.trials) == ("search", 4)


def test_ctrl_c_is_one_line_and_resume_goes_on(
    train: Callable[..., Ran], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ConsoleCallback.on_trial_begin

    def pressed(self: ConsoleCallback, number: int, count: int, steps: int) -> None:
        real(self, number, count, steps)
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleCallback, "on_trial_begin", pressed)
        code, out, err = train()
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (
        "ptuning: interrupted at trial 3 of 4; finished trials are kept; to continue, run the same command "
        "with --resume"
    )
    code, _, err = train()
    assert code == 2
    assert "has an unfinished run; continue it with --resume" in err
    code, _, err = train("--resume")
    assert code == 0
    assert "; 2 finished before" in err
    assert [line[:12] for line in err.splitlines() if line.startswith("trial  ")] == [
        "trial  3 of ",
        "trial  4 of ",
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--seeds", "0,1"], "recipe: search tries learning rates itself"),
        (["--prompt_rates", "0.1"], "recipe: search tries learning rates itself"),
        (["--resume"], "nothing to resume: there is no "),
        (["--recipe", "auto"], "search: these options need recipe: search"),
        (["--recipe", "serach"], "recipe: got 'serach', expected 'auto' or 'search'"),
        (["--search.trails", "3"], "unknown option search.trails; did you mean --search.trials?"),
        (["--search.first_layers", "[7]"], " has 3 layers, counted from 0; got 7, expected at most 2"),
        (["--search.first_layers", "7"], "search.first_layers: got 7, expected list"),
        (
            ["--fit.prompt_rate", "1", "--fit.head_rate", "1", "--prompt.first_layer", "1"],
            "nothing is left to",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    train: Callable[..., Ran], home: Path, argv: list[str], said: str
) -> None:
    code, out, err = train(*argv)
    assert (code, out) == (2, "")
    assert len([line for line in err.splitlines() if line.startswith("ptuning: error: ")]) == 1
    assert said in err.splitlines()[-1]
    assert {file.name for file in home.iterdir()} == {"train.jsonl"}


def test_a_missing_extra_is_one_line(train: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "find_spec", lambda name: None)
    assert train() == (
        2,
        "",
        "ptuning: error: recipe: search needs optuna, which is not installed; install it with: "
        "pip install 'ptuning[search]'\n",
    )


def test_the_option_help_says_whose_choice_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in ("passes over the training rows", "for the prompt", "for the head"):
        assert f"{name} (default: the recipe's choice)" in text
