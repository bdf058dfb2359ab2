"""``ptuning train --seeds 0,1,2``: several runs on one backbone, announced, compared, the best saved."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ptuning import TrainConfig, adapters
from ptuning.cli import main
from ptuning.training.callbacks import RunState
from ptuning.training.console import ConsoleCallback
from warm import Programs

Rows = Callable[..., list[dict[str, Any]]]
Files = Callable[..., Path]
Ran = tuple[int, str, str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Rows, jsonl: Files) -> Path:
    """The working directory, with a training and a test file in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # the table's rows in one line each
    jsonl("train.jsonl", rows(64))
    jsonl("test.jsonl", rows(24, seed=1))
    return tmp_path


@pytest.fixture
def small(tiny_folder: Path) -> list[str]:
    """Options of a small run."""
    values = {
        "backbone": tiny_folder,
        "precision": "fp32",
        "device": "cpu",
        "output": "out",
        "report": "false",
    }
    values |= {"fit.epochs": 2, "fit.batch_size": 8, "prompt.num_virtual_tokens": 4}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def train(home: Path, small: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run ``ptuning train`` with the options of a small run and some more."""

    def run(*argv: str) -> Ran:
        code = main(["train", *small, *argv])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def tensors(folder: str) -> dict[str, torch.Tensor]:
    adapter = adapters.load(folder)
    return {"prompt": adapter.prompt_tensor, **adapter.head}


def same(one: str, other: str) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def cells(err: str) -> dict[str, list[str]]:
    """The rows of the table at the end, by their first cell."""
    lines = [
        re.split(r"\s*[│┃]\s*", line.strip(" │┃")) for line in err.splitlines() if re.search("[│┃]", line)
    ]
    return {line[0]: line[1:] for line in lines}


def test_seeds_are_announced_compared_and_the_best_is_saved(train: Callable[..., Ran], home: Path) -> None:
    code, out, err = train("train.jsonl", "--data.test", "test.jsonl", "--seeds", "0,1,2")
    assert code == 0
    table = json.loads((home / "out.run/result.json").read_text())
    best = table["best"]
    assert out == (
        f"saved out ({best}, best by validation accuracy)\nnext: ptuning predict out --input FILE\n"
    )
    said = [line for line in err.splitlines() if re.match(r"run \d", line)]
    assert said == ["run 1 of 3: seed-0", "run 2 of 3: seed-1", "run 3 of 3: seed-2"]
    assert len([line for line in err.splitlines() if line.startswith("epoch ")]) == 6
    shown = cells(err)
    assert shown["run"][:6] == [
        "validation accuracy", "baseline", "test accuracy", "baseline", "epoch", "seconds"
    ]  # fmt: skip
    assert ("diagnosis" in shown["run"]) == any(run["diagnosis"] for run in table["runs"])
    for run in table["runs"]:
        row = shown[run["name"] + (" *best" if run["name"] == best else "")]
        figures = [of[split]["accuracy"] for split in ("validation", "test")
                   for of in (run["metrics"], run["baseline"])]  # fmt: skip
        assert row[:4] == [f"{figure:.4f}" for figure in figures]
    spread = table["over_seeds"][0]["metrics"]["test"]["accuracy"]
    assert shown["3 seeds, mean ± sd"][2] == f"{spread['mean']:.4f} ± {spread['sd']:.4f}"
    assert adapters.verify("out")
    assert same("out", f"out.run/{best}")


def test_each_is_its_own_command(train: Callable[..., Ran], home: Path) -> None:
    assert train("train.jsonl", "--seeds", "3", "--prompt_rates", "0.01,0.03", "--head_rates=0.02")[0] == 0
    alone = ["--fit.seed", "3", "--fit.prompt_rate", "0.03", "--fit.head_rate", "0.02"]
    assert train("train.jsonl", *alone, "--output", "alone")[0] == 0
    assert same("alone", "out.run/seed-3_learning_rate-0.03_head_learning_rate-0.02")
    assert not (home / "out.run/seed-3_learning_rate-0.03").exists()


def test_its_own_configuration_starts_one_again(train: Callable[..., Ran]) -> None:
    assert train("train.jsonl", "--seeds", "0,1")[0] == 0
    assert main(["train", "--config", "out.run/seed-1.run/config.yaml", "--output", "again"]) == 0
    assert same("again", "out.run/seed-1")


def test_with_a_file_of_options(train: Callable[..., Ran], home: Path) -> None:
    """A file that came from --print_config has a seed; the list at the command line goes over it."""
    (home / "run.yaml").write_text("data: {train: train.jsonl}\nfit: {seed: 9, head_rate: 0.02}\n")
    assert train("--config", "run.yaml", "--seeds", "0,1")[0] == 0
    found = TrainConfig.checked(yaml.safe_load((home / "out.run/seed-1.run/config.yaml").read_text()))
    assert (found.fit.seed, found.fit.head_learning_rate) == (1, 0.02)


def test_print_config_is_that_of_a_single_run(train: Callable[..., Ran], home: Path) -> None:
    plain = train("train.jsonl", "--print_config")
    assert train("train.jsonl", "--print_config", "--seeds", "0,1") == plain
    assert TrainConfig.checked(yaml.safe_load(plain[1])).fit.seed == 0
    assert not (home / "out.run").exists()


def test_one_that_diverges_is_a_row_and_a_line(train: Callable[..., Ran]) -> None:
    code, out, err = train("train.jsonl", "--prompt_rates", "1e30,0.03", "--fit.warmup", "0")
    assert code == 0
    assert out.startswith("saved out (learning_rate-0.03, best by validation accuracy)")
    assert cells(err)["learning_rate-1e+30"][0] == "diverged"
    assert re.search(r"^learning_rate-1e\+30: training diverged at step \d+ of \d+", err, re.MULTILINE)


def test_a_best_run_that_learned_nothing_says_so(train: Callable[..., Ran], rows: Rows, jsonl: Files) -> None:
    noise = [{**row, "label": "positive" if i % 4 else "negative"} for i, row in enumerate(rows(64, seed=3))]
    jsonl("noise.jsonl", noise)
    code, out, err = train(
        "noise.jsonl", "--seeds", "0,1", "--fit.prompt_rate", "1e-12", "--fit.head_rate", "1e-12"
    )
    assert code == 0
    assert "NOT LEARNED" in err
    assert "but do not use it: it has not learned" in out
    assert "predict" not in out


# ---------------------------------------------------------------------------------------- interrupts


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Have somebody press Ctrl-C when a step of a run is done."""
    real_run, real_step, at = ConsoleCallback.on_run_begin, ConsoleCallback.on_step_end, [0]

    def press(run: int, number: int) -> None:
        def counted(self: ConsoleCallback, name: str, number: int, count: int, kept: bool) -> None:
            at[0] = number
            real_run(self, name, number, count, kept)

        def step(self: ConsoleCallback, state: RunState) -> None:
            real_step(self, state)
            if (at[0], state.step) == (run, number):
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(ConsoleCallback, "on_run_begin", counted)
        monkeypatch.setattr(ConsoleCallback, "on_step_end", step)

    return press


def test_ctrl_c_says_how_to_go_on_and_resume_finishes_to_the_bit(
    train: Callable[..., Ran], home: Path, ctrl_c: Callable[[int, int], None]
) -> None:
    assert train("train.jsonl", "--output", "straight", "--seeds", "0,1")[0] == 0
    ctrl_c(2, 9)
    code, out, err = train("train.jsonl", "--seeds", "0,1")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (
        "ptuning: run 2 of 2, seed-1: interrupted at step 9 of 16 and saved; to continue, run the same "
        "command with --resume"
    )
    assert not (home / "out").exists()
    code, _, err = train("train.jsonl", "--seeds", "0,1")
    assert code == 2
    assert re.search(r"error: .*out.run has an unfinished set of runs .* --resume", err)
    ctrl_c(0, 0)
    code, out, err = train("train.jsonl", "--seeds", "0,1", "--resume")
    assert code == 0
    assert "run 1 of 2: seed-0, finished before" in err
    assert "16 steps, continuing from step 9" in " ".join(err.split())
    assert same("straight", "out")
    for name in ("seed-0", "seed-1"):
        assert same(f"straight.run/{name}", f"out.run/{name}")


# --------------------------------------------------------------------------- what the user wrote


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--seeds", "0,x"], "--seeds: got '0,x', expected whole numbers separated by commas, such as 0,1,2"),
        (["--seeds", "0,1.5"], "--seeds: got '0,1.5', expected whole numbers"),
        (["--seeds", "0,,1"], "--seeds: got '0,,1', expected whole numbers"),
        (["--seeds", ""], "--seeds: got '', expected whole numbers"),
        (["--seeds=-1"], "fit.seed: got -1, expected greater than or equal to 0"),
        (["--seeds", "1,1"], "seeds: got [1, 1], expected one value or more, without repetition"),
        (["--prompt_rates", "0.1;0.2"], "--learning_rates: got '0.1;0.2', expected numbers separated by"),
        (["--head_rates", "0"], "fit.head_learning_rate: got 0.0, expected greater than 0"),
        (["--seeds", ",".join(map(str, range(65)))], "65 seeds: got 65 runs, expected at most 64"),
        (["--seeds", "0", "--fit.seed", "1"], "--seeds and --fit.seed: got both, expected one of them"),
        (["--fit.seed=1", "--seeds", "0"], "--seeds and --fit.seed: got both"),
        (["--prompt_rates", "1", "--fit.prompt_rate", "1"], "--learning_rates and --fit.learning_rate: got"),
        (["--head_rates", "1", "--fit.head_rate", "1"], "--head_learning_rates and --fit.head_learning_ra"),
        (["--seed", "0,1"], "unknown option seed; did you mean --fit.seed?"),
        (["--seeds", "0,1", "--resume"], "nothing to resume: there is no "),
        (["--seeds"], "--seeds: expected one argument"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_list_is_one_line(train: Callable[..., Ran], home: Path, argv: list[str], said: str) -> None:
    code, out, err = train("train.jsonl", *argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err
    assert {file.name for file in home.iterdir()} == {"train.jsonl", "test.jsonl"}


# ------------------------------------------------------------------------------- several processes


SCRIPT = """
import sys
from accelerate import Accelerator
from ptuning.cli import main

for more in ([], ["--resume"]):  # the second finds all of it finished
    assert main([*sys.argv[1:], *more]) == 0
    Accelerator(cpu=True).wait_for_everyone()  # the first process has written
"""


@pytest.mark.slow
def test_two_processes_write_what_one_does(
    train: Callable[..., Ran], home: Path, small: list[str], programs: Programs
) -> None:
    (home / "script.py").write_text(SCRIPT)
    argv = ["script.py", "train", *small, "train.jsonl", "--output", "two", "--seeds", "0,1"]
    assert "finished before" in programs.ranks(argv, home)
    assert train("train.jsonl", "--output", "one", "--seeds", "0,1")[0] == 0
    one, two = (json.loads((home / f"{name}.run/result.json").read_text()) for name in ("one", "two"))
    for mine, theirs in zip(one["runs"], two["runs"], strict=True):
        assert theirs["name"] == mine["name"]
        loss = mine["metrics"]["validation"]["loss"]
        assert theirs["metrics"]["validation"]["loss"] == pytest.approx(loss, abs=1e-4)
    assert adapters.verify("two")
    assert same("two", f"two.run/{two['best']}")
