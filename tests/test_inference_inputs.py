"""What predicts takes the same texts in the same forms, and refuses the same blank ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
import pytest
import torch
from datasets import Dataset

from ptuning import DeepPrompt, Predictor, PTuningModel, Task, pipeline
from ptuning.errors import ConfigError, DataError
from ptuning.peft import PromptEncoderConfig, get_peft_model
from tiny import tiny

TEXTS = ["a good film", "a bad one", "NA"]
FRAME = pandas.DataFrame({"text": TEXTS, "label": [1, 0, 1]}, index=[7, 8, 9])


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> PTuningModel:
    torch.manual_seed(1)
    task = Task(problem_type="single_label_classification", labels=("negative", "positive"))
    prompt = DeepPrompt(num_virtual_tokens=4)
    made = PTuningModel.from_backbone(str(tiny_folder), prompt, task=task, dtype=torch.float32)
    with torch.no_grad():
        for value in made.task_parameters().values():
            value.add_(torch.randn_like(value), alpha=0.3)
    return made.eval()


def chances(predictor: Predictor, texts: Any) -> list[float]:
    return [each.probabilities[0][1] for each in predictor(texts)]


COLUMNS: dict[str, Callable[[], Any]] = {
    "a list": lambda: TEXTS,
    "a tuple": lambda: tuple(TEXTS),
    "a generator": lambda: (text for text in TEXTS),
    "a series": lambda: FRAME["text"],
    "an index": lambda: pandas.Index(TEXTS),
    "a polars series": lambda: polars.Series(TEXTS),
    "an array": lambda: np.array(TEXTS),
    "an object array": lambda: np.array(TEXTS, dtype=object),
    "an Arrow array": lambda: pyarrow.array(TEXTS),
    "a chunked array": lambda: pyarrow.chunked_array([TEXTS[:1], TEXTS[1:]]),
    "a data set's column": lambda: Dataset.from_dict({"text": TEXTS})["text"],
}
TABLES: dict[str, Callable[[], Any]] = {
    "a frame": lambda: FRAME,
    "a polars frame": lambda: polars.DataFrame({"text": TEXTS}),
    "a table": lambda: pyarrow.table({"text": TEXTS}),
    "a data set": lambda: Dataset.from_dict({"text": TEXTS}),
    "a stream": lambda: Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(),
    "columns": lambda: {"text": TEXTS},
    "mappings": lambda: [{"text": text} for text in TEXTS],
}


@pytest.mark.parametrize("name", [*COLUMNS, *TABLES])
def test_texts_in_any_form_are_the_texts(model: PTuningModel, name: str) -> None:
    predictor = Predictor(model)
    expected = chances(predictor, TEXTS)
    assert len({round(chance, 4) for chance in expected}) == 3
    assert chances(predictor, (COLUMNS.get(name) or TABLES[name])()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in ("a tuple", "a generator")])
def test_the_pipeline_takes_the_columns_that_the_predictor_takes(model: PTuningModel, name: str) -> None:
    """Tuples are no lists to transformers, and generators are answered lazily."""
    classify = pipeline(model, device="cpu")
    assert classify(COLUMNS[name]()) == classify(TEXTS)


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("columns", "mappings")])
def test_the_pipeline_asks_for_the_column_of_a_table(model: PTuningModel, name: str) -> None:
    with pytest.raises(ConfigError, match="expected texts; pass its column of texts, or a list of mappings"):
        pipeline(model, device="cpu")(TABLES[name]())


def test_pairs_in_any_form_are_the_pairs(tiny_folder: Path) -> None:
    task = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
    predictor = Predictor(
        PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=task)
    )
    pairs = [("a good film", "one"), ("a bad one", "two")]
    expected = chances(predictor, pairs)
    frame = pandas.DataFrame(pairs, columns=["text", "text_b"])
    for given in ([list(pair) for pair in pairs], np.array(pairs), frame, frame.to_dict("records")):
        assert chances(predictor, given) == pytest.approx(expected, abs=1e-5)
    assert chances(predictor, pairs[0]) == pytest.approx(expected[:1], abs=1e-5)
    with pytest.raises(DataError, match=r"text 2: got ' ', expected at least"):
        predictor([pairs[0], ("a film", " ")])
    with pytest.raises(ConfigError, match=r"got one text.*, expected two texts, as in training"):
        predictor(["a film"])


@pytest.mark.parametrize("blank", ["", "  ", "\t\n"])
def test_a_blank_text_is_refused_alike(model: PTuningModel, blank: str) -> None:
    classify, predictor = pipeline(model, device="cpu"), Predictor(model)
    for given in (blank, ["good", blank], pandas.Series([blank])):
        for ask in (classify, predictor):
            with pytest.raises(DataError, match=r"got .*, expected at least one character that is not"):
                ask(given)
    with pytest.raises(DataError, match="row 1, the text in 'text': got '"):
        predictor([{"text": blank}])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "texts: got a NoneType, expected a string or a list of strings"),
        (b"text", "texts: got a bytes, expected"),
        (5, "texts: got a int, expected"),
        ({"a": "b"}, "texts: got a dict, expected"),
        (["good", 1], "text 2: got 1, expected a string or a pair of strings"),
        (pandas.Series(["good", None]), "text 2: got None, expected a string"),
    ],
)
def test_what_is_no_text_is_one_sentence(model: PTuningModel, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Predictor(model)(given)


def test_a_table_without_a_known_column_says_what_to_pass(model: PTuningModel) -> None:
    with pytest.raises(DataError, match="pass only the column of texts"):
        Predictor(model)(FRAME.rename(columns={"text": "first", "label": "second"}).assign(third="x"))


def test_what_is_no_model_is_one_sentence() -> None:
    for given in ("folder", None):
        with pytest.raises(
            ConfigError, match=r"expected a PTuningModel; load a folder or Hub id with PTuningModel\.from"
        ):
            Predictor(given)  # type: ignore[arg-type]


def test_the_active_adapter_of_a_peft_model_answers() -> None:
    made = get_peft_model(tiny("bert"), PromptEncoderConfig(num_virtual_tokens=4))
    assert Predictor(made).model is made.active  # type: ignore[arg-type]


def test_a_loaded_model_is_in_eval_mode_and_says_its_type(model: PTuningModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "adapter")
    loaded = PTuningModel.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16)
    assert not loaded.training
    assert not any(module.training for module in (*loaded.modules(), *loaded.backbone.modules()))
    assert loaded.dtype == torch.bfloat16
    assert model.dtype == torch.float32
