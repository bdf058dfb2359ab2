"""``ptuning train``: from options, from a file, interrupted and gone on with, refused in one line."""

from __future__ import annotations

import errno
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

Rows = Callable[..., list[dict[str, Any]]]
Files = Callable[..., Path]
Ran = tuple[int, str, str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Rows, jsonl: Files) -> Path:
    """The working directory, with a training and a test file in it."""
    monkeypatch.chdir(tmp_path)
    jsonl("train.jsonl", rows(96))
    jsonl("test.jsonl", rows(40, seed=1))
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
    values |= {
        "fit.epochs": 2,
        "fit.batch_size": 8,
        "fit.prompt_rate": 0.03,
        "fit.head_rate": 0.03,
        "prompt.num_virtual_tokens": 4,
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def train(home: Path, small: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run ``ptuning train`` with the options of a small run and some more."""

    def run(*argv: str) -> Ran:
        code = main(["train", *small, *argv])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.fixture
def refused(train: Callable[..., Ran], home: Path) -> Callable[..., str]:
    """Run what cannot work; check that it is said in one line and that nothing was written; the line."""

    def run(*argv: str, code: int = 2) -> str:
        before = {file.name for file in home.iterdir()}
        found, out, err = train(*argv)
        assert (found, out) == (code, "")
        assert err.startswith("ptuning: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert {file.name for file in home.iterdir()} <= before
        return err.removeprefix("ptuning: error: ").strip()

    return run


def tensors(folder: str) -> dict[str, torch.Tensor]:
    adapter = adapters.load(folder)
    return {"prompt": adapter.prompt_tensor, **adapter.head}


def same(one: str, other: str) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ------------------------------------------------------------------------------------------ it works


def test_a_file_and_options(train: Callable[..., Ran], home: Path) -> None:
    code, out, err = train("train.jsonl", "--data.test", "test.jsonl", "--fit.epochs", "6")
    assert code == 0
    assert out == "saved out\nnext: ptuning predict out --input FILE\n"
    assert "ptuning: " not in err
    assert "training 834 of 28,114 parameters (2.97 %) on cpu, backbone in float32; 66 steps" in err
    assert len([line for line in err.splitlines() if line.startswith("epoch ")]) == 6
    assert "baseline: always 'negative'" in err
    assert json.loads((home / "out.run/result.json").read_text())["metrics"]["test"]["accuracy"] > 0.9
    assert adapters.verify("out")


def test_a_run_that_learns_nothing_says_so(train: Callable[..., Ran], rows: Rows, jsonl: Files) -> None:
    noise = [{**row, "label": "positive" if i % 4 else "negative"} for i, row in enumerate(rows(96, seed=3))]
    jsonl("noise.jsonl", noise)
    code, out, err = train("noise.jsonl", "--fit.prompt_rate", "1e-12", "--fit.head_rate", "1e-12")
    assert code == 0
    assert "NOT LEARNED" in err
    assert "--fit.learning_rate=" in err
    said, then = out.splitlines()
    assert said == "saved out, but do not use it: it has not learned"
    assert then.startswith("next: the same command with --fit.")
    assert "predict" not in out
    assert then.removeprefix("next: the same command with ") in err  # what the diagnosis has first


def test_the_data_can_be_named_either_way(train: Callable[..., Ran]) -> None:
    assert train("train.jsonl", "--output", "a")[0] == 0
    assert train("--data.train", "train.jsonl", "--output", "b")[0] == 0
    assert same("a", "b")


def test_a_yaml_file_says_the_same_as_options(train: Callable[..., Ran], home: Path) -> None:
    (home / "run.yaml").write_text(
        "data:\n  train: train.jsonl\n  validation_fraction: 0.25\nfit:\n  weight_decay: 1e-2\n  seed: 3\n"
        "prompt:\n  depth: input\n  placement: '{prompt:2} {text_a} {prompt:2}'\n  num_virtual_tokens: null\n"
    )
    placed = ["--prompt.depth", "input", "--prompt.placement", "{prompt:2} {text_a} {prompt:2}"]
    placed += ["--prompt.num_virtual_tokens", "null"]
    options = ["--data.validation_fraction", "0.25", "--fit.weight_decay", "1e-2", "--fit.seed", "3", *placed]
    assert train("--output", "b", "train.jsonl", *options)[0] == 0
    assert train("--config", "run.yaml", "--output", "a")[0] == 0
    assert same("a", "b")


def test_options_win_over_the_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever they stand, and by whichever of their names."""
    (home / "run.yaml").write_text("data: {train: train.jsonl}\nfit: {epochs: 5, seed: 3}\noutput: mine\n")
    for argv in (
        ["--fit.epochs", "7", "--train=test.jsonl", "--config", "run.yaml"],
        ["--config", "run.yaml", "--fit.epochs", "7", "test.jsonl"],
        ["test.jsonl", "--config=run.yaml", "--fit.epochs=7"],
    ):
        assert main(["train", *argv, "--print_config"]) == 0
        found = yaml.safe_load(capsys.readouterr().out)
        assert found["data"]["train"] == "test.jsonl"
        assert found["output"] == "mine"
        assert (found["fit"]["num_train_epochs"], found["fit"]["seed"]) == (7, 3)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--prompt.depth", "input"],
        ["--prompt.depth", "input", "--prompt.encoder.kind", "lstm", "--prompt.encoder.dropout", "0.5"],
        ["--prompt.depth", "input", "--prompt.init.kind", "text", "--prompt.init.text", "good: or 'bad'?"],
        ["--prompt.depth", "input", "--prompt.placement", "{prompt:2} {text_a} film? {prompt:3}"],
        ["--prompt.encoder.kind", "mlp", "--prompt.first_layer", "1"],
        ["--fit.class_weights", "[1, 2.5]", "--fit.evaluate_every", "5", "--fit.patience", "2"],
        ["--fit.class_weights", "balanced", "--fit.prompt_rate", "1e-3", "--fit.backbone_dropout", "true"],
        ["--data.label", "2024", "--data.text", "yes", "--data.label_separator", ": ", "--output", "1.5"],
        ["--backbone", "größe/模型", "--revision", "0123"],
    ],
    ids=lambda options: " ".join(options)[:40] or "defaults",
)
def test_print_config_is_whole_and_reads_back(
    home: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["train", "train.jsonl", *options, "--print_config"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    config = TrainConfig.checked(yaml.safe_load(printed.out))
    assert yaml.safe_load(printed.out) == config.model_dump(mode="json")  # defaults included
    (home / "run.yaml").write_text(printed.out, encoding="utf-8")
    assert main(["train", "--config", "run.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == printed.out
    assert not (home / "out").exists()


def test_a_text_option_is_taken_as_it_was_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train.jsonl", "--data.text", "yes", "--data.label", "007", "--backbone", "1e3", "--print_config"]
    assert main(["train", *argv]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["data"]["text"], found["data"]["label"], found["backbone"]) == ("yes", "007", "1e3")


def test_the_runs_own_configuration_starts_it_again(train: Callable[..., Ran], home: Path) -> None:
    assert train("train.jsonl", "--output", "a", "--fit.seed", "5")[0] == 0
    assert main(["train", "--config", "a.run/config.yaml", "--output", "b"]) == 0
    assert same("a", "b")


# ---------------------------------------------------------------------------------------- interrupts


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have somebody press Ctrl-C when a step is done."""
    real = ConsoleCallback.on_step_end

    def at(number: int) -> None:
        def step(self: ConsoleCallback, state: RunState) -> None:
            real(self, state)
            if state.step == number:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(ConsoleCallback, "on_step_end", step)

    return at


def test_ctrl_c_says_how_to_go_on_and_resume_finishes_to_the_bit(
    train: Callable[..., Ran], home: Path, ctrl_c: Callable[[int], None]
) -> None:
    assert train("train.jsonl", "--output", "straight")[0] == 0
    ctrl_c(14)
    code, out, err = train("train.jsonl")
    assert (code, out) == (130, "")
    said = [line for line in err.splitlines() if line.startswith("ptuning: ")]
    assert said == [
        "ptuning: interrupted at step 14 of 22 and saved; to continue, run the same command with --resume"
    ]
    assert err.endswith(f"{said[0]}\n")
    assert not (home / "out").exists()
    ctrl_c(0)
    code, out, err = train("train.jsonl", "--resume")
    assert (code, out) == (0, "saved out\nnext: ptuning predict out --input FILE\n")
    assert "22 steps, continuing from step 14" in " ".join(err.split())
    assert same("straight", "out")


def test_ctrl_c_before_there_is_anything_to_save(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ptuning.cli.train.main", pressed)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "ptuning: interrupted\n"


def test_resume_with_other_options_is_refused(
    train: Callable[..., Ran], refused: Callable[..., str], ctrl_c: Callable[[int], None]
) -> None:
    ctrl_c(3)
    assert train("train.jsonl")[0] == 130
    said = refused("train.jsonl", "--resume", "--fit.head_rate", "0.5")
    assert said.startswith("cannot resume with another fit.head_learning_rate: got 0.5, expected 0.03, ")


def test_resume_with_nothing_to_resume(refused: Callable[..., str]) -> None:
    assert refused("train.jsonl", "--resume").startswith("nothing to resume: ")


def test_a_refused_run_leaves_the_configuration_of_the_interrupted_one(
    train: Callable[..., Ran], home: Path, ctrl_c: Callable[[int], None]
) -> None:
    ctrl_c(3)
    assert train("train.jsonl")[0] == 130
    before = (home / "out.run/config.yaml").read_text()
    assert train("train.jsonl", "--resume", "--fit.seed", "9")[0] == 2
    assert (home / "out.run/config.yaml").read_text() == before


# ------------------------------------------------------------------------------- what the user wrote


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--fit.epohcs", "3"], r"option fit.epohcs; did you mean --fit.num_train_epochs\?; see: ptuning"),
        (["--epochs", "3"], r"unknown option epochs; did you mean --fit.num_train_epochs\?"),
        (["--ouput", "x"], r"unknown option ouput; did you mean --output\?"),
        (["--zzz"], "unknown option zzz; see: ptuning train --help"),
        (["more.jsonl"], "unknown option more.jsonl"),
        (["--fit.epochs"], "--fit.epochs: expected one argument"),
        (["--fit.epochs", "many"], "fit.num_train_epochs: got 'many', expected integer"),
        (["--fit.epochs", "0"], "fit.num_train_epochs: got 0, expected greater than or equal to 1"),
        (["--fit.epochs", "1.5"], "fit.num_train_epochs: got 1.5, expected integer"),
        (["--fit.evaluate_every", "often"], "fit.evaluate_every: got 'often', expected integer or 'epoch'"),
        (["--fit.class_weights", "even"], "fit.class_weights: got 'even', expected 'balanced' or list"),
        (["--fit.class_weights", "[1, x]"], "fit.class_weights.1: got 'x', expected number"),
        (["--fit.class_weights", "[1, .inf]"], "fit.class_weights.1: got inf, expected a finite number"),
        (["--fit.prompt_rate", "inf"], "fit.learning_rate: got 'inf', expected a finite number"),
        (["--fit.clip", ".nan"], "fit.max_grad_norm: got"),
        (["--fit.clip", "-1"], "fit.max_grad_norm: got -1, expected greater than 0"),
        (["--precision", "fp8"], "precision: got 'fp8', expected 'auto', 'fp32' or 'bf16'"),
        (["--prompt.depth", "medium"], "prompt.depth: got 'medium', expected one of input, deep"),
        (["--prompt.depth", "deep", "--prompt.placement", "front"], "placement: .* does not apply to deep"),
        (["--prompt.depth", "input", "--prompt.first_layer", "1"], "first_layer: .* does not apply to input"),
        (["--prompt.encoder.kind", "lstm"], "encoder.kind: got 'lstm', expected one of embedding, mlp"),
        (["--prompt.encoder.dropout", "0.5"], "prompt.encoder.dropout: .* does not apply to .*embedding"),
        (["--prompt.num_virtual_tokens", "0"], "num_virtual_tokens: got 0, expected greater than or equal"),
        (["--prompt.first_layer", "9"], "first_layer"),
        (["--data.validation_fraction", "1.5"], "data.validation_fraction: got 1.5, expected less than 1"),
        (["--data.max_length", "2"], "data.max_length: got 2"),
        (["--data.label_separator", ""], "label_separator: got '', expected the text between"),
        (["--data.train", "train.jsonl"], "FILE and --data.train: got both"),
        (
            ["--data.validation", "train.jsonl", "--data.validation_fraction", "0.2"],
            "data.validation_fraction: with data.validation nothing is split off",
        ),
        (["--prompt.train_head", "false", "--fit.head_rate", "1"], "fit.head_learning_rate: the head"),
        (["--backbone", "demo", "--revision", "main"], "revision: got 'main', expected no revision"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_option_is_one_line(refused: Callable[..., str], argv: list[str], said: str) -> None:
    assert re.search(said, refused("train.jsonl", *argv))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("fit.select_by", "prettiness", "prettiness.*expected"),
        ("fit.class_weights", "[1, 2, 3]", "class_weights: got .*expected 2 numbers"),
    ],
)
def test_an_option_that_does_not_suit_the_data_is_one_line(
    refused: Callable[..., str], option: str, value: str, said: str
) -> None:
    """Found once the data have been read, so the run's folder is there already."""
    assert re.search(said, refused("train.jsonl", f"--{option}", value))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (
            ["--prompt.depth", "input", "--prompt.placement", "between"],
            "prompt.placement: got 'between', for rows of one text, expected a value that works without",
        ),
        (
            ["--prompt.pooling", "similarity"],
            "prompt.pooling: got 'similarity', for rows of one text, expected a value that works without",
        ),
    ],
    ids=["placement", "pooling"],
)
def test_a_prompt_that_needs_two_texts_is_refused_before_the_last_runs_files_are_touched(
    train: Callable[..., Ran], refused: Callable[..., str], home: Path, prompt: list[str], said: str
) -> None:
    assert train("train.jsonl")[0] == 0
    before = {file: file.stat().st_mtime_ns for file in home.rglob("*")}
    assert said in refused("train.jsonl", *prompt)
    assert {file: file.stat().st_mtime_ns for file in home.rglob("*")} == before


def test_no_data(refused: Callable[..., str]) -> None:
    assert refused().startswith("no training rows, expected a file, such as")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("fit:\n  epohcs: 3\n", "fit.epohcs: unknown option; did you mean fit.num_train_epochs?"),
        ("fti:\n  epochs: 3\n", "fti: unknown option"),
        ("epochs: 3\n", "epochs: unknown option; did you mean fit.num_train_epochs?"),
        ("nonsense: 1\n", "nonsense: unknown option"),
        ("fit:\n  schedule: square\n", "fit.lr_scheduler_type: got 'square', expected 'linear', 'cosine' or"),
        ("fit: [1]\n", "fit: got [1], expected "),
        ("prompt: input\n", "prompt: got 'input', expected "),
        ("data: null\n", "data: got None, expected "),
        ("data: [1, 2]\n", "data: got [1, 2], expected "),
        ("data: train.jsonl\n", "data: got 'train.jsonl', expected "),
        ("data:\n  text: 12\n", "data.text: got 12, expected string"),
        ("prompt:\n  depth: deep\n  placement: front\n", "prompt.placement: unknown option; it does not"),
        ("", "--config run.yaml: got an empty file, expected options such as 'data:' and 'fit:'"),
        ("- fit\n- data\n", "--config run.yaml: got a YAML list, expected options"),
        ("hello\n", "--config run.yaml: got a YAML str, expected options"),
        ("fit: [1\ndata: }", "--config run.yaml, line 2: while parsing a flow sequence: "),
        ("fit:\n\tepochs: 3\n", "--config run.yaml, line 2: while scanning for the next token: "),
        ("fit: !!python/object/apply:os.getcwd []\n", "--config run.yaml, line 1: tag:yaml.org,2002:py"),
        (b"\xff\xfe\x00rubbish\x80", "--config run.yaml: not UTF-8 text"),
        (b"\x00\x01\x02", "--config run.yaml: not YAML: "),
    ],
)  # fmt: skip
def test_a_wrong_configuration_file_is_one_line(
    refused: Callable[..., str], home: Path, content: str | bytes, said: str
) -> None:
    (home / "run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in refused("train.jsonl", "--config", "run.yaml")


def test_a_configuration_file_that_is_not_there(refused: Callable[..., str]) -> None:
    assert "--config nosuch.yaml: No such file or directory" in refused("--config", "nosuch.yaml")
    assert "--config .: Is a directory" in refused("--config=.")


# -------------------------------------------------------------------------------------- what it reads

GOOD = [{"text": f"good {i}", "label": "positive"} for i in range(10)]
BAD = [{"text": f"bad {i}", "label": "negative"} for i in range(10)]
BOTH = [*GOOD, *BAD]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "content", "argv", "said"),
    [
        ("x.csv", b"text,foo\ngood,a\n", [], "x.csv: got the label 'a' in every row, expected at least two"),
        ("x.csv", b"foo,label\ngood,a\n", [], "x.csv: cannot tell which column is the text"),
        ("x.jsonl", lines(BOTH), ["--data.text", "txet"], "no column 'txet' for text.*did you mean 'text'"),
        ("x.jsonl", lines(BOTH), ["--data.label", "lable"], "no column 'lable'.*did you mean 'label'"),
        ("x.csv", b"", [], "x.csv: no rows, expected at least one"),
        ("x.csv", b"text,label\n", [], "x.csv: no rows after the column names"),
        ("x.jsonl", b"\n\n", [], "x.jsonl: no rows"),
        ("x.jsonl", lines(GOOD), [], "x.jsonl: got the label 'positive' in every row"),
        ("x.jsonl", lines([*BOTH, {"text": " ", "label": "positive"}]), [], "line 21, .*: got ' '"),
        ("x.jsonl", lines([*BOTH, {"text": None, "label": "positive"}]), [], "line 21, .*: got null"),
        ("x.jsonl", lines([*BOTH, {"text": 7, "label": "positive"}]), [], "line 21, .*got the int 7"),
        ("x.jsonl", lines([*BOTH, {"text": "x", "label": None}]), [], "line 21, .*: got null"),
        ("x.jsonl", lines([*BOTH, {"text": "x"}]), [], "x.jsonl, line 21: no 'label'"),
        ("x.jsonl", lines([*BOTH, {"text": "x", "label": 1}]), [], "x.jsonl, line 1: .*but 1 .int."),
        ("x.jsonl", b'{"text": "good"', [], "x.jsonl, line 1: not a JSON object"),
        ("x.csv", b'text,label\n"good,a\n', [], "x.csv, line 2: not a row of cells"),
        ("x.csv", b"text,label\ngood,a,b\n", [], "x.csv, line 2: got 3 cells, expected 2"),
        ("x.csv", b"text,label\ngo\xff,a\n", [], "x.csv, line 2: byte 0xff at character 3 is not UTF-8"),
        ("x.parquet", b"rubbish", [], "x.parquet: not a Parquet file"),
        ("x.csv.gz", b"rubbish", [], "x.csv.gz: not a complete gzip file"),
        ("x.xls", b"rubbish", [], "x.xls has the extension '.xls' and does not look like rows"),
    ],
)  # fmt: skip
def test_wrong_data_is_one_line_that_names_the_place(
    refused: Callable[..., str], home: Path, name: str, content: bytes, argv: list[str], said: str
) -> None:
    (home / name).write_bytes(content)
    assert re.search(said, refused(name, *argv))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_unseen_in_training(refused: Callable[..., str], home: Path, split: str) -> None:
    (home / "more.jsonl").write_bytes(lines([*BOTH, {"text": "so so", "label": "mixed"}]))
    said = refused("train.jsonl", f"--data.{split}", "more.jsonl")
    assert said.startswith(
        "more.jsonl, line 21: the label 'mixed' does not occur in the training rows, expected one of"
    )


def test_a_split_with_one_text_beside_one_with_two(refused: Callable[..., str], home: Path) -> None:
    (home / "pairs.jsonl").write_bytes(lines([{**row, "text_b": "film"} for row in BOTH]))
    assert refused("pairs.jsonl", "--data.test", "test.jsonl").startswith("data.test: got one text per row")


def test_a_text_that_is_too_long_where_that_is_an_error(refused: Callable[..., str], home: Path) -> None:
    (home / "long.jsonl").write_bytes(lines([*BOTH, {"text": "film " * 90, "label": "positive"}]))
    said = refused("long.jsonl", "--data.too_long", "error")
    assert re.match(r"long.jsonl, line 21: got 92 tokens, expected at most \d\d next to the prompt", said)


def test_files_that_are_not_there(refused: Callable[..., str]) -> None:
    assert refused("nosuch.csv").startswith("nosuch.csv does not exist")
    assert refused(".").startswith(". has files of several splits")
    assert refused("train.jsonl", "--data.test", "nosuch.csv").startswith("nosuch.csv does not exist")


@pytest.mark.parametrize("name", ["nosuch/model", "nosuch", "./nosuch", "/nosuch", "no such", "out.run"])
def test_a_backbone_that_is_not_there_says_what_to_do(refused: Callable[..., str], name: str) -> None:
    """The tests run with HF_HUB_OFFLINE=1: a Hub id that is not in the cache is out of reach, at once."""
    said = refused("train.jsonl", "--backbone", name)
    assert said.startswith(f"backbone {name!r} ")
    assert "'demo' for the embedded MiniLM" in said


# ------------------------------------------------------------------------------------- what it writes


def test_an_output_that_holds_other_things_is_left_alone(refused: Callable[..., str], home: Path) -> None:
    (home / "out").mkdir()
    (home / "out" / "thesis.tex").write_text("years of work")
    assert "out is not empty and is not an adapter" in refused("train.jsonl")
    assert [file.name for file in (home / "out").iterdir()] == ["thesis.tex"]
    assert "train.jsonl, expected a folder" in refused("train.jsonl", "--output", "train.jsonl")


def test_a_full_disk_leaves_the_adapter_that_was_there(
    train: Callable[..., Ran], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("train.jsonl")[0] == 0
    before = {file: file.read_bytes() for file in (home / "out").iterdir()}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = train("train.jsonl", "--fit.seed", "1")
    assert (code, out) == (1, "")
    said = [line for line in err.splitlines() if line.startswith("ptuning: ")]
    assert len(said) == 1
    assert err.endswith(f"{said[0]}\n")
    assert said[0].startswith("ptuning: error: could not write ")
    assert "No space left on device" in said[0]
    assert "Traceback" not in err
    assert {file: file.read_bytes() for file in (home / "out").iterdir()} == before
    assert {file.name for file in home.iterdir()} == {"out", "out.run", "train.jsonl", "test.jsonl"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(refused: Callable[..., str], home: Path) -> None:
    (home / "locked").mkdir(mode=0o500)
    assert "Permission denied" in refused("train.jsonl", "--output", "locked/out", code=1)


@pytest.mark.parametrize("output", [".", "/"])
def test_the_working_folder_cannot_be_the_output(refused: Callable[..., str], output: str) -> None:
    """It would be replaced by a rename, under the feet of everything that runs in it."""
    assert "expected a folder for the adapter alone" in refused("train.jsonl", "--output", output)


def test_a_place_where_no_folder_can_be_made(refused: Callable[..., str]) -> None:
    said = refused("train.jsonl", "--output", "train.jsonl/out", code=1)
    assert re.search(r"could not write .*: Not a directory\. .*; choose another folder", said)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_too_little_memory_is_one_line(
    train: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from ptuning import PTuningModel

    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(PTuningModel, "forward", fail)
    code, _, err = train("train.jsonl")
    assert code == 1
    assert err.splitlines()[-1].startswith("ptuning: error: out of memory (")
    assert "lower the batch size" in err.splitlines()[-1]


def test_a_bug_of_ours_is_not_dressed_up(train: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from ptuning import PTuningModel

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(PTuningModel, "forward", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        train("train.jsonl")
