"""What training, evaluation and check-data make of odd rows and labels: the same, and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptuning.cli import main
from ptuning.errors import ConfigError, DataError
from ptuning.training.config import DataConfig, TrainConfig
from ptuning.training.prepare import read, read_all

WORDS = ["soup", "jacket", "kettle", "parcel", "screen", "lamp", "charger", "tea", "box", "shirt"]
TEXTS = [f"the {word} was as it should be, visit {visit}" for visit in range(3) for word in WORDS]

Ran = Callable[..., tuple[int, str, str]]


def csv_of(rows: list[tuple[str, ...]], *names: str) -> str:
    lines = [names or ("text", "label"), *rows]
    return "".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, rows: list[tuple[str, ...]], *names: str) -> str:
        (tmp_path / name).write_text(csv_of(rows, *names), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def ptuning(capsys: pytest.CaptureFixture[str]) -> Ran:
    def run(*argv: str) -> tuple[int, str, str]:
        code = main(list(argv))
        out, err = capsys.readouterr()
        return code, out, err

    return run


GOOD = [(text, ["yes", "no"][row % 2]) for row, text in enumerate(TEXTS)]
BAD = [*GOOD, ("", "yes"), ("a text", "")]


def test_bad_rows_are_left_out_said_and_recorded(file: Callable[..., str]) -> None:
    train = file("train.csv", BAD)
    with pytest.raises(DataError, match=r"2 of 32 rows cannot be used.*--data\.bad_rows skip"):
        read(DataConfig(train=train), seed=0)
    examples, _ = read(DataConfig(train=train, bad_rows="skip"), seed=0)
    assert f"{train}: left out 2 of 32 rows that cannot be used" in examples.notes[0]
    assert examples.record()["train"] == {"source": "train.csv", "rows": 27, "left_out": 2}


def test_all_splits_are_read_as_the_training_rows_are(file: Callable[..., str]) -> None:
    """A small file alone might be read in another way."""
    tags = ["a|b", "b|c", "a|c", "a", "c"]
    train = file("train.csv", [(text, tags[row % 5]) for row, text in enumerate(TEXTS)])
    test = file("test.csv", [("one", "a|c"), ("two", "b")])
    found = read_all(DataConfig(train=train, test=test))
    assert [example.label for example in found.test] == [("a", "c"), ("b",)]
    numbers = file("numbers.csv", [(text, str(row % 2)) for row, text in enumerate(TEXTS)])
    floats = file("floats.csv", [("one", "1.0"), ("two", "0.0")])
    found = read_all(DataConfig(train=numbers, test=floats))
    assert [example.label for example in found.test] == ["1", "0"]


def test_odd_labels_and_repeats_are_said_in_training(file: Callable[..., str]) -> None:
    rows = [(text, ["0", "1", "2", "-1"][row % 4]) for row, text in enumerate(TEXTS)]
    train = file("train.csv", [*rows, (TEXTS[0], "0"), (TEXTS[1], "0")])
    notes = "\n".join(read_all(DataConfig(train=train)).notes)
    assert "the label '-1' occurs next to 0 to 2" in notes
    assert "1 row repeats an earlier one" in notes
    assert "1 text is in several rows with different labels" in notes
    dropped = read_all(DataConfig(train=train, duplicates="drop", no_label="-1"))
    assert len(dropped.train) == 22
    assert {example.label for example in dropped.train} == {"0", "1", "2"}


@pytest.mark.parametrize("label", ["toxic,rude", ["toxic", "rude"], "*o*ic,ru?e"])
def test_columns_of_zeros_and_ones_in_the_configuration(file: Callable[..., str], label: Any) -> None:
    rows = [(text, str(row % 2), str(row % 3 // 2)) for row, text in enumerate(TEXTS)]
    train = file("train.csv", rows, "text", "toxic", "rude")
    config = TrainConfig.checked({"data": {"train": train, "label": label}})
    found = read_all(config.data)
    assert found.task.labels == ("toxic", "rude")
    assert found.task.problem_type == "multi_label_classification"
    with pytest.raises(DataError, match=r"--data\.label toxic,rude"):
        read_all(DataConfig(train=train))


def test_numbers_may_stand_for_labels_in_yaml() -> None:
    assert TrainConfig.checked({"data": {"train": "x", "no_label": -1}}).data.no_label == "-1"
    assert TrainConfig.checked({"data": {"train": "x", "no_label": [-1, "-"]}}).data.no_label == ("-1", "-")
    with pytest.raises(ConfigError, match=r"data\.bad_rows: got 'skp', expected 'error' or 'skip'"):
        TrainConfig.checked({"data": {"train": "x", "bad_rows": "skp"}})


def test_check_data_takes_what_train_takes(file: Callable[..., str], tiny_folder: Path, ptuning: Ran) -> None:
    tiny = ["--backbone", str(tiny_folder)]
    code, out, _ = ptuning("check-data", file("bad.csv", BAD), *tiny)
    assert code == 2
    assert out.count("error: train: ") == 2
    assert "--data.bad_rows skip" in out
    code, out, _ = ptuning("check-data", file("bad.csv", BAD), *tiny, "--data.bad_rows", "skip")
    assert code == 0
    assert "train: 30 rows, 2 left out" in out
    labelled = [(text, ["0", "1", "2", "-1"][row % 4]) for row, text in enumerate(TEXTS)]
    code, out, _ = ptuning("check-data", file("minus.csv", labelled), *tiny, "--data.no_label", "-1")
    assert code == 0
    assert "left out 7 rows without a label (data.no_label: -1)" in out
    hot = file(
        "hot.csv",
        [(text, str(row % 2), str(row % 3 // 2)) for row, text in enumerate(TEXTS)],
        "text",
        "x",
        "y",
    )
    code, out, _ = ptuning("check-data", hot, *tiny, "--data.label", "x,y")
    assert code == 0
    assert "columns: text = text, labels = x, y" in out
    code, out, _ = ptuning("check-data", hot, *tiny, "--data.label", "x,y", "--json")
    assert json.loads(out)["columns"]["labels"] == ["x", "y"]


def test_crowds_may_label_the_same_texts(file: Callable[..., str], tiny_folder: Path, ptuning: Ran) -> None:
    rows = [
        (f"text {label} {text}", f"l{label}") for label in range(30) for text in range(4) for _ in range(3)
    ]
    code, out, _ = ptuning("check-data", file("crowd.csv", rows), "--backbone", str(tiny_folder))
    assert code == 0
    assert "240 rows repeat an earlier one" in out
