"""What ``fit`` takes: data in any form, labels as names or numbers, of texts or token ids alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Sequence
from transformers import AutoTokenizer

from conftest import sentiment
from ptuning import DeepPrompt, FitConfig, PTuningModel, Task, TrainResult, fit
from ptuning.errors import ConfigError, DataError
from ptuning.task import ProblemType
from ptuning.training.callbacks import Callback
from ptuning.training.config import DataConfig
from ptuning.training.prepare import gather_all
from tiny import tiny

Row = dict[str, Any]
ROWS = sentiment(40)
TEXTS = [row["text"] for row in ROWS]
NAMES = [row["label"] for row in ROWS]
INDICES = [int(name == "positive") for name in NAMES]
ONCE = FitConfig(epochs=1, batch_size=8)
LABELS = ("negative", "positive")
OPTIONS = DataConfig(train="given")


class Saying(Callback):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_message(self, message: str) -> None:
        self.said.append(message)


def model_for(folder: Path, **options: Any) -> PTuningModel:
    torch.manual_seed(0)
    prompt = DeepPrompt(num_virtual_tokens=4)
    return PTuningModel.from_backbone(str(folder), prompt, dtype=torch.float32, **options)


def ran(folder: Path, data: Any, **options: Any) -> tuple[TrainResult, PTuningModel]:
    model = model_for(folder, **(options or {"num_labels": 2}))
    return fit(model, data, ONCE), model


def losses(run: tuple[TrainResult, PTuningModel]) -> list[Any]:
    return [(each.train_loss, each.metrics) for each in run[0].history]


def classes(labels: list[Any] = INDICES, names: tuple[str, ...] = LABELS) -> Dataset:
    return Dataset.from_dict({"text": TEXTS, "label": labels}).cast_column(
        "label", ClassLabel(names=list(names))
    )


# -------------------------------------------------------------------------------------- forms

FORMS: dict[str, Callable[[Path], Any]] = {
    "pandas": lambda folder: pandas.DataFrame(ROWS),
    "polars": lambda folder: polars.DataFrame(ROWS),
    "(texts, labels)": lambda folder: (TEXTS, NAMES),
    "tuples": lambda folder: list(zip(TEXTS, NAMES, strict=True)),
    "mappings": lambda folder: ROWS,
    "an iterator": lambda folder: iter(ROWS),
    "a data set": lambda folder: Dataset.from_list(ROWS),
    "a stream": lambda folder: Dataset.from_list(ROWS).to_iterable_dataset(),
    "class labels": lambda folder: classes(),
    "a path": lambda folder: folder / "rows.csv",
    "a path as text": lambda folder: str(folder / "rows.csv"),
    "a split": lambda folder: {"train": pandas.DataFrame(ROWS), "validation": None},
    "a DatasetDict": lambda folder: DatasetDict(train=classes()),
}


@pytest.mark.parametrize("name", FORMS)
def test_one_data_set_in_any_form_trains_as_its_rows_do(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    pandas.DataFrame(ROWS).to_csv(tmp_path / "rows.csv", index=False)
    expected = ran(tiny_folder, {"train": ROWS}, task=task(*LABELS))
    found = ran(tiny_folder, FORMS[name](tmp_path))
    assert losses(found) == losses(expected)
    assert found[1].task == expected[1].task
    assert found[1].config.id2label == {0: "negative", 1: "positive"}


def test_what_was_put_aside_and_taken_over_is_said(tiny_folder: Path) -> None:
    heard = Saying()
    fit(model_for(tiny_folder, num_labels=2), pandas.DataFrame(ROWS), ONCE, callbacks=[heard])
    assert heard.said[0] == "labels: 'negative', 'positive', as the training rows name them"
    assert heard.said[1].startswith("4 of 40 rows split off for validation (columns={'validation_fraction'")
    heard = Saying()
    fit(
        model_for(tiny_folder, num_labels=2),
        {"train": (TEXTS, INDICES), "validation": ROWS_01},
        ONCE,
        callbacks=[heard],
    )
    assert not any(each.startswith("labels") or "split off" in each for each in heard.said)


ROWS_01 = (TEXTS[:10], np.array(INDICES[:10]))


def test_a_dataset_dict_of_three_splits_is_taken(tiny_folder: Path) -> None:
    data = DatasetDict(train=classes(), validation=classes(), test=classes())
    result, model = ran(tiny_folder, data)
    assert model.task.labels == LABELS
    assert set(result.metrics) == {"validation", "test"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "data.train: got None, expected a path, an hf: name, a data frame"),
        (5, "data.train: got the int 5, expected"),
        (pandas.DataFrame({"text": [], "label": []}), "data.train: no rows, expected at least one"),
        ((TEXTS, NAMES[:-1]), "data.train: got 40 of 'text' and 39 of 'label', expected the same"),
        ({"train": TEXTS}, "data.train, row 1: got the str .*, expected"),
        ({"train": ROWS, "validation": (TEXTS, [1])}, "data.validation: got 40 of 'text' and 1 of 'label'"),
        ({"train": ROWS, "unsupervised": ROWS}, "got a split 'unsupervised', expected train, validation and"),
        (Path("nowhere.csv"), "nowhere.csv does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_one_sentence(tiny_folder: Path, data: Any, message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        ran(tiny_folder, data)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------- labels: one rule

SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
MULTI_HOT = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]]


def task(*labels: Any, kind: ProblemType = SINGLE) -> Task:
    return Task(problem_type=kind, labels=labels)


def texts(labels: Any) -> Dataset:
    return Dataset.from_dict({"text": [f"text {at}" for at in range(len(labels))], "label": labels})


def named(labels: Any, *names: str) -> Dataset:
    feature = ClassLabel(names=list(names))
    several = isinstance(labels[0], list)
    return texts(labels).cast_column("label", Sequence(feature) if several else feature)


def tokens(data: Dataset) -> Dataset:
    return data.add_column("input_ids", [[1, 5 + at, 2] for at in range(len(data))])


CASES: dict[str, tuple[Dataset, Task, bool, tuple[Any, ...], list[Any]]] = {
    "names for numbers": (texts(["b", "a", "b"]), task(0, 1), True, ("a", "b"), ["b", "a", "b"]),
    "digits by value": (texts(["10", "9"]), task(0, 1), True, ("9", "10"), ["10", "9"]),
    "truth values": (texts([True, False]), task(0, 1), True, (False, True), [True, False]),
    "numbers": (texts([1, 0]), task(0, 1), True, (0, 1), [1, 0]),
    "counted from 1": (texts([3, 1, 2]), task(0, 1, 2), True, (1, 2, 3), [3, 1, 2]),
    "minus one and one": (texts([1, -1]), task(0, 1), True, (-1, 1), [1, -1]),
    "whole floats": (texts([1.0, 0.0]), task(0, 1), True, (0, 1), [1, 0]),
    "whole floats into names": (texts([1.0, 0.0]), task("a", "b"), False, ("a", "b"), ["b", "a"]),
    "class labels in their order": (
        named([1, 0], "neg", "POS"),
        task(0, 1),
        True,
        ("neg", "POS"),
        ["POS", "neg"],
    ),
    "a class without rows": (named([1, 0], "c", "b", "a"), task(0, 1, 2), True, ("c", "b", "a"), ["b", "c"]),
    "fewer classes than outputs": (named([1, 0], "x", "y"), task(0, 1, 2), True, (0, 1, 2), [1, 0]),
    "names for the backbone's": (
        texts(["ham", "spam"]),
        task("NEG", "POS"),
        True,
        ("ham", "spam"),
        ["ham", "spam"],
    ),
    "the backbone's own": (texts(["POS", "NEG"]), task("NEG", "POS"), True, ("NEG", "POS"), ["POS", "NEG"]),
    "one of the backbone's own": (
        texts(["POS", "POS"]),
        task("NEG", "POS"),
        True,
        ("NEG", "POS"),
        ["POS", "POS"],
    ),
    "numbers for the backbone's": (texts([1, 0]), task("NEG", "POS"), True, ("NEG", "POS"), ["POS", "NEG"]),
    "class labels for the backbone's": (
        named([0, 1], "a", "b"),
        task("N", "P"),
        True,
        ("a", "b"),
        ["a", "b"],
    ),
    "class labels of the backbone's": (named([0, 1], "P", "N"), task("N", "P"), True, ("N", "P"), ["P", "N"]),
    "a task's own": (texts(["b", "a"]), task("a", "b"), False, ("a", "b"), ["b", "a"]),
    "indices into names": (texts([1, 0]), task("a", "b"), False, ("a", "b"), ["b", "a"]),
    "truth values into names": (texts([True, False]), task("a", "b"), False, ("a", "b"), ["b", "a"]),
    "indices into numbers": (texts([0, 1]), task(2, 10), False, (2, 10), [2, 10]),
    "a task's own numbers": (texts([1, 2]), task(1, 2, 3), False, (1, 2, 3), [1, 2]),
    "class labels by name": (named([0, 1], "b", "a"), task("a", "b"), False, ("a", "b"), ["b", "a"]),
    "class labels by number": (named([0, 1], "x", "y"), task("a", "b"), False, ("a", "b"), ["a", "b"]),
    "multi-hot": (
        texts(MULTI_HOT),
        task("x", "y", "z", kind=MULTI),
        False,
        ("x", "y", "z"),
        [("x", "z"), ("y",), (), ("x", "y")],
    ),
    "multi-hot, floats": (texts([[1.0, 0.0]]), task("x", "y", kind=MULTI), False, ("x", "y"), [("x",)]),
    "multi-hot for numbers": (
        texts(MULTI_HOT),
        task(0, 1, 2, kind=MULTI),
        True,
        (0, 1, 2),
        [(0, 2), (1,), (), (0, 1)],
    ),
    "lists of names": (
        texts([["y"], ["z", "x"]]),
        task(0, 1, 2, kind=MULTI),
        True,
        ("x", "y", "z"),
        [("y",), ("z", "x")],
    ),
    "lists of indices": (
        texts([[2], [0, 1]]),
        task("x", "y", "z", kind=MULTI),
        False,
        ("x", "y", "z"),
        [("z",), ("x", "y")],
    ),
    "lists of class labels": (
        named([[1], [0, 1]], "no", "up"),
        task(0, 1, kind=MULTI),
        True,
        ("no", "up"),
        [("up",), ("no", "up")],
    ),
}


@pytest.mark.parametrize("form", ["texts", "tokens"])
@pytest.mark.parametrize("name", CASES)
def test_labels_mean_the_same_with_texts_and_token_ids(name: str, form: str) -> None:
    data, given, unnamed, labels, expected = CASES[name]
    data = tokens(data) if form == "tokens" else data
    found = gather_all({"train": data, "validation": data}, OPTIONS, task=given, unnamed=unnamed)
    assert found.task.labels == labels
    assert list(map(type, found.task.labels)) == list(map(type, labels))
    assert [each.label for each in found.train] == expected


REFUSED: dict[str, tuple[Dataset, Task, bool, str]] = {
    "too many names": (texts(["a", "b", "c"]), task(0, 1), True,
        r"labels: got 3 strings \('a', 'b', 'c'\), expected 2 labels \(0, 1\), because .* num_labels=2"
        r"; create it with num_labels=3, or pass task=Task\(problem_type='single_label_classification', "
        r"labels=\('a', 'b', 'c'\)\)"),
    "too many classes": (named([0], "a", "b", "c"), task(0, 1), True,
        r"labels: got 3 classes \('a', 'b', 'c'\), expected at most 2, because .*; create it with num_lab"),
    "out of range": (texts([0, 1, 2]), task(0, 1), True, "row 3, the label: got 2, expected a class index"),
    "no label": (texts([0, 1, -1]), task(0, 1), True, "row 3, the label: got -1, expected a class index"),
    "a name that the task lacks": (texts(["a", "c"]), task("a", "b"), False,
        r"row 2, the label: got 'c' \(str\), expected one of 'a', 'b', because the model was created with "
        r"these labels; correct the label, or create the model for the labels of the data: task="),
    "scores": (texts([0.0, 0.5]), task(0, 1), True,
        r"row 1, the label: got 0.0 \(float\), expected one of 0, 1, because the model was created with "
        "num_labels=2; for scores, create it with num_labels=1"),
    "multi-hot for one label": (texts(MULTI_HOT), task(0, 1, 2), True, "got the list"),
    "a width of its own": (texts([[1.0, 0.0, 0.0]]), task("x", "y", kind=MULTI), False, "expected 2 zeros"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["texts", "tokens"])
@pytest.mark.parametrize("name", REFUSED)
def test_labels_of_no_meaning_are_refused_alike(name: str, form: str) -> None:
    data, given, unnamed, message = REFUSED[name]
    data = tokens(data) if form == "tokens" else data
    with pytest.raises(DataError, match=message) as caught:
        gather_all({"train": data, "validation": data}, OPTIONS, task=given, unnamed=unnamed)
    assert "unseen in training" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_of_the_validation_rows_alone_is_unseen_in_training() -> None:
    splits = {"train": texts(["a", "b"]), "validation": texts(["a", "c"])}
    with pytest.raises(
        DataError, match="row 2: the label 'c' does not occur in the training rows, expected one of 'a', 'b'"
    ):
        gather_all(splits, OPTIONS, task=task(0, 1), unnamed=True)


def test_names_that_were_found_just_now_have_no_numbers() -> None:
    """Nobody said which of them is 0, so a split of numbers beside them is a mistake."""
    splits = {"train": texts(["a", "b"]), "validation": texts([0, 1])}
    with pytest.raises(
        DataError, match="row 1: the label 0 does not occur in the training rows, expected one of 'a', 'b'"
    ):
        gather_all(splits, OPTIONS, task=task(0, 1), unnamed=True)
    found = gather_all(splits, OPTIONS, task=task("a", "b"))
    assert [each.label for each in found.validation or ()] == ["a", "b"]
    classes = {"train": named([0, 1], "x", "y"), "validation": texts([0, 1])}
    found = gather_all(classes, OPTIONS, task=task(0, 1), unnamed=True)
    assert [each.label for each in found.validation or ()] == ["x", "y"]


def test_a_loaded_adapter_keeps_its_names(tiny_folder: Path, tmp_path: Path) -> None:
    _, model = ran(tiny_folder, ROWS)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PTuningModel.from_pretrained(tmp_path / "adapter")
    swapped = [{**row, "label": row["label"].upper()} for row in ROWS]
    with pytest.raises(DataError, match=r"row 1, the label: got 'NEGATIVE'.*expected one of 'negative', "):
        fit(loaded, swapped, ONCE)
    fit(loaded, (TEXTS, INDICES), ONCE)
    assert loaded.task.labels == LABELS


def test_class_labels_train_the_same_tokenised_or_not(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    data = DatasetDict(train=classes(), validation=classes(), test=classes())
    ready = data.map(lambda part: tokenizer(part["text"]), batched=True)
    one, other = ran(tiny_folder, data), ran(tiny_folder, ready)
    assert losses(one) == losses(other)
    assert one[1].task == other[1].task
    assert one[0].metrics == other[0].metrics


# ----------------------------------------------------------------- the backbone's own names


def named_backbone(count: int = 2, problem_type: str | None = None, **changes: Any) -> Any:
    model = tiny("bert", num_labels=count)
    model.config.id2label = dict(enumerate(["NEG", "POS", "NEUTRAL"][:count]))
    model.config.problem_type = problem_type
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


@pytest.mark.parametrize("where", ["module", "folder"])
@pytest.mark.parametrize(
    ("options", "kind", "labels"),
    [
        ({}, SINGLE, ("NEG", "POS", "NEUTRAL")),
        ({"num_labels": 3}, SINGLE, ("NEG", "POS", "NEUTRAL")),
        ({"num_labels": 2}, SINGLE, (0, 1)),
        ({"problem_type": MULTI}, MULTI, ("NEG", "POS", "NEUTRAL")),
        ({"problem_type": "regression"}, "regression", ()),
        ({"num_labels": 1}, "regression", ()),
        ({"task": task("x", "y", "z")}, SINGLE, ("x", "y", "z")),
    ],
)
def test_a_backbones_names_are_kept(
    tmp_path: Path, where: str, options: dict[str, Any], kind: str, labels: tuple[Any, ...], tiny_folder: Path
) -> None:
    backbone: Any = named_backbone(3)
    if where == "folder":
        backbone.save_pretrained(tmp_path / "base")
        AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "base")
        backbone = str(tmp_path / "base")
    model = PTuningModel.from_backbone(backbone, DeepPrompt(num_virtual_tokens=4), **options)
    assert (model.task.problem_type, model.task.labels) == (kind, labels)
    if labels and isinstance(labels[0], str):
        assert list(model.config.id2label.values()) == list(labels)


def test_a_backbone_of_several_labels_says_so() -> None:
    model = PTuningModel.from_backbone(named_backbone(problem_type=MULTI), DeepPrompt(num_virtual_tokens=4))
    assert (model.task.problem_type, model.task.labels) == (MULTI, ("NEG", "POS"))


def test_names_that_are_not_distinct_are_numbers() -> None:
    backbone = named_backbone(id2label={0: "same", 1: "same"})
    assert PTuningModel.from_backbone(backbone, DeepPrompt(num_virtual_tokens=4)).task.labels == (0, 1)


def test_a_model_by_name_is_not_a_model() -> None:
    with pytest.raises(ConfigError, match="model: got a str, expected a PTuningModel") as refused:
        fit("demo", [{"text": "a", "label": 0}])  # type: ignore[arg-type]
    assert "from_backbone" in str(refused.value.remedy)
