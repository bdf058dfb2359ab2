"""scikit-learn's interface: the estimators equal ``ptuning train``, and obey scikit-learn's conventions."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import polars
import pytest
import scipy.sparse
import torch
from scipy.special import expit
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.utils import get_tags
from sklearn.utils.class_weight import compute_class_weight

from conftest import sentiment
from ptuning import (
    DeepPrompt,
    Engine,
    FitConfig,
    InputPrompt,
    Predictor,
    PTuningClassifier,
    PTuningModel,
    PTuningRegressor,
    Task,
    TrainConfig,
    adapters,
    fit,
    train,
)
from ptuning.errors import ConfigError, DataError
from ptuning.estimators.settings import configuration, seed_of

ROWS = sentiment(48)
TEXTS = [row["text"] for row in ROWS]
LABELS = [row["label"] for row in ROWS]
LENGTHS = [float(len(text)) for text in TEXTS]
NEW = [row["text"] for row in sentiment(9, seed=5)]
PAIRS = [(text, NEW[number % len(NEW)]) for number, text in enumerate(TEXTS)]
SWITCHES = np.array(
    [[label == "positive", len(text) > 14] for text, label in zip(TEXTS, LABELS, strict=True)]
)
Files = Callable[..., Path]

SMALL: Mapping[str, Any] = {
    "num_virtual_tokens": 2,
    "num_train_epochs": 2,
    "learning_rate": 3e-2,
    "head_learning_rate": 3e-2,
    "batch_size": 8,
    "precision": "fp32",
    "device": "cpu",
    "random_state": 3,
}


@pytest.fixture(scope="module")
def classifier(tiny_folder: Path) -> PTuningClassifier:
    """An untrained classifier; the backbone stays loaded as long as its clones of this module are used."""
    return PTuningClassifier(str(tiny_folder), **SMALL)


@pytest.fixture(scope="module")
def regressor(tiny_folder: Path) -> PTuningRegressor:
    return PTuningRegressor(str(tiny_folder), **SMALL)


@pytest.fixture(scope="module")
def fitted(classifier: PTuningClassifier) -> PTuningClassifier:
    return clone(classifier).fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def scores(regressor: PTuningRegressor) -> PTuningRegressor:
    return clone(regressor).fit(TEXTS, LENGTHS)


@pytest.fixture(scope="module")
def several(classifier: PTuningClassifier) -> PTuningClassifier:
    return clone(classifier).fit(TEXTS, SWITCHES.astype(int))


# ------------------------------------------------------------------------------ the same as ptuning


def test_it_is_ptuning_train_to_the_bit(
    fitted: PTuningClassifier, tiny_folder: Path, jsonl: Files, tmp_path: Path
) -> None:
    config = TrainConfig.checked(
        {
            "data": {"train": str(jsonl("rows.jsonl", ROWS))},
            "backbone": str(tiny_folder),
            "output": str(tmp_path / "adapter"),
            "precision": "fp32",
            "device": "cpu",
            "prompt": {"num_virtual_tokens": 2},
            "fit": {
                "num_train_epochs": 2,
                "learning_rate": 3e-2,
                "head_learning_rate": 3e-2,
                "batch_size": 8,
                "seed": 3,
            },
        }
    )
    result = train(config)
    predictor = Predictor(PTuningModel.from_pretrained(tmp_path / "adapter"))
    expected = [[chance for _, chance in each.probabilities] for each in predictor(NEW)]
    assert fitted.predict_proba(NEW).tolist() == expected
    assert fitted.predict(NEW).tolist() == [each.label for each in predictor(NEW)]
    assert fitted.result_.metrics == result.metrics
    assert fitted.result_.adapter is None
    saved = adapters.details(fitted.save_pretrained(tmp_path / "saved"))
    trained = adapters.details(tmp_path / "adapter")
    assert saved["metrics"] == trained["metrics"]
    for record in (saved, trained):
        record["extra"]["data"] = {split: each["rows"] for split, each in record["extra"]["data"].items()}
    assert saved["extra"] == trained["extra"]
    assert saved["task"] == trained["task"]


def test_a_warm_start_is_that_of_ptuning_train_to_the_bit(
    fitted: PTuningClassifier, jsonl: Files, tmp_path: Path
) -> None:
    first = fitted.save_pretrained(tmp_path / "first")
    labels = ["mixed" if number % 3 == 0 else label for number, label in enumerate(LABELS)]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    config = TrainConfig.checked(
        {
            "data": {"train": str(jsonl("more.jsonl", rows))},
            "init_from": str(first),
            "output": str(tmp_path / "second"),
            "precision": "fp32",
            "device": "cpu",
            "fit": {"num_train_epochs": 1, "seed": 3, "class_weights": [1.0, 1.0, 2.0]},
        }
    )
    result = train(config)
    predictor = Predictor(PTuningModel.from_pretrained(tmp_path / "second", dtype=torch.float32))
    options = {"precision": "fp32", "device": "cpu", "num_train_epochs": 1, "random_state": 3}
    made = PTuningClassifier(init_from=first, class_weight={"mixed": 2.0}, **options)
    found = clone(made).fit(TEXTS, labels)
    assert found.model_.task.labels == ("negative", "positive", "mixed")
    assert found.classes_.tolist() == ["mixed", "negative", "positive"]
    expected = [dict(each.probabilities) for each in predictor(NEW)]
    assert found.predict_proba(NEW).tolist() == [
        [chances[name] for name in found.classes_] for chances in expected
    ]
    assert found.result_.metrics == result.metrics
    assert found.result_.history[0].step == 0
    saved, trained = (
        adapters.details(folder)
        for folder in (found.save_pretrained(tmp_path / "third"), tmp_path / "second")
    )
    assert saved["extra"]["init_from"] == trained["extra"]["init_from"]
    assert saved["prompt"] == trained["prompt"]
    copied = pickle.loads(pickle.dumps(found))
    assert copied.init_from == first
    assert copied.predict_proba(NEW).tolist() == found.predict_proba(NEW).tolist()


def test_what_a_warm_start_of_an_estimator_refuses(fitted: PTuningClassifier, tmp_path: Path) -> None:
    first = fitted.save_pretrained(tmp_path / "first")
    with pytest.raises(ConfigError, match="init_head"):
        PTuningClassifier(init_head="new").fit(TEXTS, LABELS)
    with pytest.raises(ConfigError, match="no training row has a label of the adapter"):
        PTuningClassifier(init_from=first, device="cpu").fit(TEXTS, ["a", "b"] * 24)
    with pytest.raises(ConfigError, match=r"prompt\.num_virtual_tokens"):
        PTuningClassifier(init_from=first, device="cpu", num_virtual_tokens=5).fit(TEXTS, LABELS)
    found = PTuningRegressor(
        init_from=str(first), **{**SMALL, "num_virtual_tokens": None, "num_train_epochs": 1}
    )
    found.fit(TEXTS, LENGTHS)
    assert found.model_.prompt_config.virtual_tokens == 2
    assert found._details["extra"]["init_from"]["head"] == "new"


def test_it_is_ptuning_fit_to_the_bit(fitted: PTuningClassifier, tiny_folder: Path) -> None:
    torch.manual_seed(3)
    model = PTuningModel.from_backbone(
        str(tiny_folder), fitted.model_.prompt_config, task=fitted.model_.task, dtype=torch.float32
    )
    options = {name: SMALL[name] for name in ("num_train_epochs", "learning_rate", "head_learning_rate")}
    fit(model, ROWS, FitConfig(**options, batch_size=8, seed=3))
    found = [[chance for _, chance in each.probabilities] for each in Predictor(model)(NEW)]
    assert fitted.predict_proba(NEW).tolist() == found


def test_predictions_do_not_contradict_each_other(fitted: PTuningClassifier) -> None:
    chances, scores = fitted.predict_proba(NEW), fitted.decision_function(NEW)
    assert fitted.classes_.tolist() == ["negative", "positive"]
    assert np.allclose(chances.sum(1), 1, rtol=0, atol=1e-12)
    assert fitted.predict(NEW).tolist() == fitted.classes_[chances.argmax(1)].tolist()
    assert scores.shape == (len(NEW),)
    assert np.allclose(expit(scores / fitted.model_.task.temperature), chances[:, 1])
    assert fitted.score(NEW, fitted.predict(NEW)) == 1


# ------------------------------------------------------------------------------------- parameters


def test_columns_are_in_the_order_of_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PTuningClassifier()
    task = Task(problem_type="single_label_classification", labels=("b", "a"))
    monkeypatch.setattr(PTuningClassifier, "model_", SimpleNamespace(task=task))
    made.classes_ = np.array(["a", "b"])
    assert made._columns([[1.0, 2.0]]).tolist() == [[2.0, 1.0]]


def test_parameters_are_kept_and_not_looked_at_before_fit() -> None:
    wrong = PTuningClassifier(backbone=object(), learning_rate="high", prompt=[], fit_options=7)
    assert wrong.get_params()["learning_rate"] == "high"
    assert wrong.set_params(learning_rate=-1) is wrong
    assert clone(wrong).get_params()["learning_rate"] == -1
    assert "learning_rate=-1" in repr(wrong)
    assert "PTuningClassifier" in wrong._repr_html_()
    with pytest.raises(ValueError, match="Invalid parameter 'rate'"):
        wrong.set_params(rate=1)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"num_train_epochs": 0}, "num_train_epochs"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens"),
        ({"batch_size": "many"}, "batch_size"),
        ({"validation_fraction": 1.5}, "validation_fraction"),
        ({"max_length": 1}, "max_length"),
        ({"precision": "fp8"}, "precision"),
        ({"backbone": object()}, "backbone"),
        ({"prompt": "deep"}, "prompt"),
        ({"prompt": {"depth": "high"}}, "prompt.depth"),
        ({"prompt": InputPrompt(), "first_layer": 1}, "InputPrompt: unknown option first_layer"),
        ({"fit_options": [("patience", 3)]}, "fit_options"),
        ({"fit_options": {"patience": 0}}, "patience"),
        ({"fit_options": {"patients": 3}}, "patients: unknown option"),
        ({"fit_options": {"batch_size": 3}}, "fit_options: batch_size is the parameter batch_size"),
        ({"fit_options": {"epochs": 3}}, "fit_options: num_train_epochs is the parameter num_train_epochs"),
        ({"fit_options": {"seed": 3}}, "fit_options: seed is the parameter random_state"),
        (
            {"fit_options": {"class_weights": "balanced"}},
            "fit_options: class_weights is the parameter class_weight",
        ),
        ({"class_weight": "heavy"}, "class_weight"),
        ({"random_state": -1}, "seed"),
    ],
)
def test_a_wrong_parameter_is_named_at_fit(parameters: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        PTuningClassifier(**parameters).fit(TEXTS, LABELS)
    assert refused.value.problem == problem
    assert isinstance(refused.value, ValueError)


def test_parameters_become_the_options_of_a_run() -> None:
    given = PTuningClassifier(
        prompt={"pooling": "mean"},
        num_virtual_tokens=np.int64(3),
        first_layer=1,
        learning_rate=np.float64(0.5),
        max_length=30,
        too_long="error",
        fit_options={"patience": np.int64(2), "weight_decay": 0.1},
        engine=Engine(stem_disk=0),
    ).get_params()
    config = configuration(given, seed=4, class_weights=(1.0, 2.0))
    assert config.prompt == DeepPrompt(pooling="mean", num_virtual_tokens=3, first_layer=1)
    assert (config.fit.learning_rate, config.fit.patience, config.fit.weight_decay) == (0.5, 2, 0.1)
    assert (config.fit.seed, config.fit.class_weights, config.engine.stem_disk) == (4, (1.0, 2.0), 0)
    assert (config.data.max_length, config.data.too_long) == (30, "error")
    default = configuration(PTuningRegressor().get_params(), seed=0)
    assert (default.prompt, default.fit, default.engine) == (DeepPrompt(), FitConfig(), Engine())


def test_defaults_are_those_of_ptuning() -> None:
    ours, given = TrainConfig.checked({"data": {"train": "X"}}), PTuningClassifier().get_params()
    sections = (ours, ours.data, ours.fit)
    shared = {name for name in given for each in sections if hasattr(each, name)} - {"prompt", "engine"}
    assert len(shared) > 8
    assert {name: given[name] for name in shared} == {
        name: next(getattr(each, name) for each in sections if hasattr(each, name)) for name in shared
    }


def test_random_states_are_scikit_learns() -> None:
    assert seed_of(5) == seed_of(np.int64(5)) == 5
    assert seed_of(np.random.RandomState(1)) == seed_of(np.random.RandomState(1))
    state = np.random.RandomState(1)
    assert seed_of(state) != seed_of(state)
    with pytest.raises(ValueError, match="cannot be used to seed"):
        seed_of("five")


def test_fit_leaves_the_programs_random_numbers(classifier: PTuningClassifier) -> None:
    np.random.seed(0)
    random.seed(0)
    before = (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist())
    clone(classifier).set_params(num_train_epochs=1).fit(TEXTS, LABELS)
    assert (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()) == before


def test_the_tags_say_what_it_takes() -> None:
    tags = get_tags(PTuningClassifier())
    assert tags.input_tags.string
    assert tags.input_tags.one_d_array
    assert not tags.input_tags.two_d_array
    assert tags.classifier_tags.multi_label
    assert is_classifier(PTuningClassifier())
    assert is_regressor(PTuningRegressor())


def test_it_prints_only_if_asked(classifier: PTuningClassifier, capfd: pytest.CaptureFixture[str]) -> None:
    short = clone(classifier).set_params(num_train_epochs=1)
    short.fit(TEXTS, LABELS).predict(NEW)
    assert capfd.readouterr() == ("", "")
    short.set_params(verbose=True).fit(TEXTS, LABELS)
    assert "accuracy" in capfd.readouterr().out


# --------------------------------------------------------------------------------- texts and labels


@pytest.mark.parametrize(
    "given",
    [
        tuple(NEW),
        np.array(NEW),
        np.array(NEW, dtype=object),
        np.array(NEW).reshape(-1, 1),
        [[text] for text in NEW],
        iter(NEW),
        pandas.Series(NEW),
        pandas.DataFrame({"text": NEW}),
        polars.Series(NEW),
        polars.DataFrame({"text": NEW}),
    ],
    ids=lambda given: type(given).__name__,
)
def test_texts_in_any_form(fitted: PTuningClassifier, given: Any) -> None:
    assert fitted.predict(given).tolist() == fitted.predict(NEW).tolist()


@pytest.mark.parametrize(
    ("given", "error", "problem"),
    [
        ("one text", DataError, "X"),
        (b"bytes", DataError, "X"),
        (7, DataError, "X"),
        ([], DataError, "X: no rows"),
        (np.array("one"), DataError, "X"),
        (np.array([["a", "b", "c"]]), DataError, "X"),
        ({"text": NEW}, DataError, "X"),
        (["good", 7], ConfigError, "text 2"),
        (["good", None], ConfigError, "text 2"),
        (["good", " "], DataError, "text 2"),
        (np.array([[1.0, 2.0]]), ConfigError, "text 1"),
        ([("good", "bad")], ConfigError, "the rows, row 1"),
    ],
)
def test_what_is_not_texts_is_refused(
    fitted: PTuningClassifier, given: Any, error: type[Exception], problem: str
) -> None:
    with pytest.raises(error) as refused:
        fitted.predict(given)
    assert refused.value.problem == problem  # type: ignore[attr-defined]


def test_what_is_not_labels_is_refused(classifier: PTuningClassifier, regressor: PTuningRegressor) -> None:
    for estimator in (classifier, regressor):
        with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
            estimator.fit(TEXTS, None)
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            estimator.fit(TEXTS, [0, 1, 0])
        with pytest.raises(TypeError, match="sample_weight"):
            estimator.fit(TEXTS, LENGTHS, sample_weight=LENGTHS)
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        classifier.fit(TEXTS, np.linspace(0, 1, len(TEXTS)))
    with pytest.raises(ValueError, match="got one class, 'a', in every row"):
        classifier.fit(TEXTS, ["a"] * len(TEXTS))
    missing = (
        [*LABELS[:-1], None],
        np.array([*LABELS[:-1], np.nan], dtype=object),
        pandas.Series([None, *LABELS[1:]]),
    )
    for labels in missing:
        with pytest.raises(DataError, match="got a missing value"):
            classifier.fit(TEXTS, labels)
    with pytest.raises(ValueError, match="contains NaN"):
        regressor.fit(TEXTS, [*LENGTHS[:-1], np.nan])
    with pytest.raises(DataError, match="expected different numbers"):
        regressor.fit(TEXTS, [1.0] * len(TEXTS))
    with pytest.raises(DataError, match="got one sample"):
        regressor.fit(TEXTS[:1], [1.0])
    with pytest.raises(ConfigError, match="row 2: got two texts, expected one text"):
        classifier.fit([TEXTS[0], ("a", "b"), *TEXTS[2:]], LABELS)


@pytest.mark.parametrize(
    ("negative", "positive"),
    [(0, 1), (False, True), (2.0, 1.0), ("nein", "größer"), ("a|b", " a"), ("<b>", "10"), (10, 9)],
)
def test_labels_of_any_type(classifier: PTuningClassifier, negative: Any, positive: Any) -> None:
    """They come back as they were given, in scikit-learn's order."""
    labels = np.array([positive if label == "positive" else negative for label in LABELS])
    found = clone(classifier).set_params(num_train_epochs=1).fit(TEXTS, labels)
    assert found.classes_.dtype == labels.dtype
    assert found.classes_.tolist() == np.unique(labels).tolist()
    predicted = found.predict(TEXTS)
    assert predicted.dtype == labels.dtype
    assert set(predicted.tolist()) <= set(labels.tolist())
    copied = pickle.loads(pickle.dumps(found))
    assert copied.predict(TEXTS).tolist() == predicted.tolist()


def test_texts_that_are_too_long(fitted: PTuningClassifier, classifier: PTuningClassifier) -> None:
    long = ["good film " * 20, *TEXTS[1:]]
    short = clone(classifier).set_params(num_train_epochs=1, max_length=12)
    with pytest.raises(DataError, match="row 1"):
        clone(short).set_params(too_long="error").fit(long, LABELS)
    cut = clone(short).fit(long, LABELS)
    read = clone(short).set_params(too_long="windows", max_windows=3).fit(long, LABELS)
    assert (cut.model_.task.max_windows, read.model_.task.max_windows) == (1, 3)
    end = ["good film " * 20 + word for word in ("bad", "good")]
    one, other = cut.decision_function(end).tolist()
    assert one == pytest.approx(other, abs=1e-6)
    assert pickle.loads(pickle.dumps(read)).predict_proba(long).tolist() == read.predict_proba(long).tolist()
    assert read.predict_proba(long)[0].tolist() == pytest.approx(
        [chance for _, chance in Predictor(read.model_)(long[:1])[0].probabilities]
    )
    with pytest.raises(DataError, match="row 1"):
        cut.set_params(too_long="error").predict(long)


@pytest.fixture(scope="module")
def read_in_windows(classifier: PTuningClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that reads long texts in up to 4 windows of 16 tokens."""
    windows = {"too_long": "windows", "max_windows": 4, "window_overlap": 0.5, "max_length": 16}
    found = clone(classifier).set_params(num_train_epochs=1, **windows).fit(TEXTS, LABELS)
    return found.save_pretrained(tmp_path_factory.mktemp("windows") / "adapter")


@pytest.mark.parametrize(
    "parameters",
    [{"too_long": "truncate"}, {"max_windows": 2}, {"window_overlap": 0.0}, {"max_length": 12}],
    ids=str,
)
def test_an_adapter_reads_texts_as_the_parameters_say(
    read_in_windows: Path, parameters: dict[str, Any]
) -> None:
    text = ["good film bad bill the a " * 6]
    as_trained = PTuningClassifier.from_pretrained(read_in_windows, device="cpu", precision="fp32")
    found = PTuningClassifier.from_pretrained(read_in_windows, device="cpu", precision="fp32", **parameters)
    assert found.predict_proba(text).tolist() != as_trained.predict_proba(text).tolist()
    model = PTuningModel.from_pretrained(read_in_windows)
    options = {"max_windows": 1} if "too_long" in parameters else parameters
    model.set_task(replace(model.task, **options))
    expected = [chance for _, chance in Predictor(model)(text)[0].probabilities]
    assert found.predict_proba(text)[0].tolist() == expected
    copied = pickle.loads(pickle.dumps(found))
    assert copied.predict_proba(text)[0].tolist() == expected


def test_metrics_of_another_reading_of_texts_are_not_claimed(read_in_windows: Path, tmp_path: Path) -> None:
    def facts(folder: Path) -> dict[str, Any]:
        return {name: adapters.details(folder)[name] for name in ("metrics", "extra")}

    def saved(name: str, **parameters: Any) -> dict[str, Any]:
        found = PTuningClassifier.from_pretrained(
            read_in_windows, device="cpu", precision="fp32", **parameters
        )
        copied = pickle.loads(pickle.dumps(found))
        folder = found.save_pretrained(tmp_path / name)
        assert facts(copied.save_pretrained(tmp_path / f"{name}-copied")) == facts(folder)
        return facts(folder)

    trained = facts(read_in_windows)
    assert trained["metrics"]["validation"]
    assert saved("same") == trained
    other = saved("other", max_length=12)
    assert other["metrics"] == {}
    assert other["extra"]["data"] == trained["extra"]["data"]
    assert not {"calibration", "learned"} & set(other["extra"])


def test_a_wrong_way_to_read_texts_is_named_at_once(read_in_windows: Path) -> None:
    for parameters, problem in (
        ({"too_long": "skip"}, "too_long"),
        ({"too_long": "truncate", "max_windows": 2}, "max_windows"),
        ({"max_length": 1}, "max_length"),
    ):
        with pytest.raises(ConfigError, match=problem):
            PTuningClassifier.from_pretrained(read_in_windows, device="cpu", **parameters)


def test_an_adapter_that_is_trained_again_keeps_its_windows(read_in_windows: Path) -> None:
    found = PTuningClassifier.from_pretrained(read_in_windows, **{**SMALL, "num_virtual_tokens": None})
    before = found.model_.task
    after = clone(found).set_params(num_train_epochs=1).fit(TEXTS, LABELS).model_.task
    names = ("max_length", "max_windows", "window_overlap")
    assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]
    assert (before.max_windows, before.window_overlap) == (4, 0.5)
    cut = PTuningClassifier.from_pretrained(read_in_windows, device="cpu", too_long="truncate")
    assert (cut.max_windows, cut.model_.task.max_windows) == (None, 1)


def test_labels_as_a_column(fitted: PTuningClassifier, classifier: PTuningClassifier) -> None:
    expected = fitted.predict_proba(NEW).tolist()
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    again = clone(classifier).fit(frame["text"], frame["label"])
    assert again.predict_proba(NEW).tolist() == expected
    with pytest.warns(DataConversionWarning, match="column-vector y"):
        column = clone(classifier).fit(frame[["text"]], np.array(LABELS).reshape(-1, 1))
    assert column.predict_proba(NEW).tolist() == expected


def test_pairs_in_any_form(classifier: PTuningClassifier) -> None:
    forms = (
        PAIRS,
        np.array(PAIRS),
        [list(pair) for pair in PAIRS],
        pandas.DataFrame(PAIRS, columns=["a", "b"]),
    )
    first, *others = (clone(classifier).fit(form, LABELS) for form in forms)
    assert first.model_.task.pair
    for form, other in zip(forms[1:], others, strict=True):
        assert other.predict_proba(form).tolist() == first.predict_proba(PAIRS).tolist()
    with pytest.raises(ConfigError, match="got one text, expected two texts"):
        first.predict(TEXTS)


def test_several_labels(several: PTuningClassifier, classifier: PTuningClassifier) -> None:
    chances, scores = several.predict_proba(NEW), several.decision_function(NEW)
    assert several.classes_.tolist() == [0, 1]
    assert chances.shape == scores.shape == (len(NEW), 2)
    task = several.model_.task
    assert task.is_calibrated
    assert np.allclose(expit(scores / task.temperature), chances)
    assert (
        several.predict(NEW).tolist()
        == (chances > np.array(task.thresholds or [0.5, 0.5])).astype(int).tolist()
    )
    assert several.score(NEW, several.predict(NEW)) == 1
    sparse = clone(classifier).fit(TEXTS, scipy.sparse.csr_matrix(SWITCHES.astype(int)))
    assert sparse.predict_proba(NEW).tolist() == chances.tolist()
    frame = pandas.DataFrame(SWITCHES, columns=["nice", "long"])
    named = clone(classifier).fit(TEXTS, frame)
    assert named.classes_.tolist() == ["nice", "long"]  # in the order of the columns
    assert named.predict(NEW).tolist() == several.predict(NEW).tolist()
    answer = Predictor(named.model_)(NEW[:1])[0].label
    assert answer == tuple(np.array(["nice", "long"])[several.predict(NEW[:1])[0].astype(bool)])


def test_numbers(scores: PTuningRegressor, regressor: PTuningRegressor) -> None:
    found = scores.predict(NEW)
    assert found.shape == (len(NEW),)
    assert found.dtype == np.float64
    assert found.tolist() == [each.label for each in Predictor(scores.model_)(NEW)]
    assert min(LENGTHS) / 2 < found.mean() < max(LENGTHS) * 2  # in the unit of y
    assert scores.score(NEW, found) == 1
    with pytest.warns(DataConversionWarning, match="column-vector y"):
        column = clone(regressor).fit(TEXTS, np.array(LENGTHS).reshape(-1, 1))
    assert column.predict(NEW).tolist() == found.tolist()


@pytest.mark.parametrize("labels", [["negative", "positive"], [1, 0]], ids=str)
def test_class_weights_by_label(classifier: PTuningClassifier, labels: list[Any]) -> None:
    target = np.array([labels[label == "positive"] for label in LABELS])
    short = clone(classifier).set_params(num_train_epochs=1, class_weight={labels[0]: 3})
    weights = short.fit(TEXTS, target).model_.class_weights.tolist()
    expected = compute_class_weight({labels[0]: 3}, classes=np.unique(target), y=target)
    assert weights == expected.tolist()
    assert sorted(weights) == [1, 3]
    with pytest.raises(ValueError, match="are not in class_weight"):
        short.set_params(class_weight={"other": 1.0}).fit(TEXTS, target)


def test_class_weights_balanced_and_of_several_labels(classifier: PTuningClassifier) -> None:
    short = clone(classifier).set_params(num_train_epochs=1, class_weight="balanced")
    rare = ["negative"] * 36 + ["positive"] * 12
    model = short.fit(TEXTS, rare).model_
    counts = [32, 11]  # without the validation rows
    assert sum(counts) == len(rare) - 5
    assert model.class_weights.tolist() == pytest.approx([43 / 2 / count for count in counts])
    short.set_params(class_weight={1: 5.0}).fit(TEXTS, SWITCHES.astype(int))
    assert short.model_.class_weights.tolist() == [1, 5]


# ------------------------------------------------------------------------- pickles and adapters


def test_before_fit_it_says_so(classifier: PTuningClassifier, tmp_path: Path) -> None:
    for use in (
        lambda: classifier.predict(NEW),
        lambda: classifier.predict_proba(NEW),
        lambda: classifier.decision_function(NEW),
        lambda: classifier.score(NEW, NEW),
        lambda: classifier.save_pretrained(tmp_path / "adapter"),
        lambda: classifier.model_,
    ):
        with pytest.raises(NotFittedError, match="Call 'fit'"):
            use()
    assert not hasattr(classifier, "model_")


@pytest.mark.parametrize("name", ["fitted", "several", "scores"])
def test_a_pickle_is_small_and_predicts_the_same(name: str, request: pytest.FixtureRequest) -> None:
    estimator = request.getfixturevalue(name)
    method = "predict" if name == "scores" else "predict_proba"
    data = pickle.dumps(estimator)
    trained = estimator.model_.num_parameters(only_trainable=True)
    assert len(data) < 4 * trained + 20_000  # fp32, and the record and the model card
    assert len(data) < 4 * estimator.model_.num_parameters() / 2
    copied = pickle.loads(data)
    assert "_model" not in vars(copied)  # the backbone is loaded when it is needed first
    assert repr(copied.get_params()) == repr(estimator.get_params())
    assert len(pickle.dumps(copied)) == pytest.approx(len(data), abs=100)
    for each in (copied, copy.deepcopy(estimator), pickle.loads(pickle.dumps(copied))):
        assert getattr(each, method)(NEW).tolist() == getattr(estimator, method)(NEW).tolist()
        assert each.result_ == estimator.result_
    assert copied.model_.backbone.same_weights(estimator.model_.backbone)
    copied.fit(TEXTS, LENGTHS if name == "scores" else LABELS)  # it can be trained again


def test_a_pickle_of_an_untrained_one(classifier: PTuningClassifier) -> None:
    copied = pickle.loads(pickle.dumps(classifier))
    assert copied.get_params() == classifier.get_params()
    with pytest.raises(NotFittedError):
        copied.predict(NEW)


def test_an_adapter_there_and_back(fitted: PTuningClassifier, tmp_path: Path) -> None:
    folder = fitted.save_pretrained(tmp_path / "adapter")
    found = PTuningClassifier.from_pretrained(folder, device="cpu", precision="fp32")
    assert found.predict_proba(NEW).tolist() == fitted.predict_proba(NEW).tolist()
    assert found.classes_.tolist() == fitted.classes_.tolist()
    assert found.backbone == fitted.backbone
    assert found.prompt == fitted.model_.prompt_config
    assert found.model_.backbone.same_weights(fitted.model_.backbone)
    again = found.save_pretrained(tmp_path / "again")
    for part in ("metrics", "extra", "task", "prompt"):
        assert adapters.details(again)[part] == adapters.details(folder)[part]
    assert clone(found).set_params(num_train_epochs=1).fit(TEXTS, LABELS).predict(NEW).shape == (len(NEW),)
    with pytest.raises(ConfigError, match="open it with PTuningClassifier"):
        PTuningRegressor.from_pretrained(folder, device="cpu")


def test_other_adapters(
    fitted: PTuningClassifier, several: PTuningClassifier, scores: PTuningRegressor, tmp_path: Path
) -> None:
    """Their labels may be in another order than scikit-learn's."""
    model = PTuningModel.from_pretrained(fitted.save_pretrained(tmp_path / "adapter"))
    opened = {"device": "cpu", "precision": "fp32"}
    names = {"negative": "z", "positive": "a"}
    model.set_task(type(model.task)(**{**vars(model.task), "labels": tuple(names.values())}))
    found = PTuningClassifier.from_pretrained(model.save_pretrained(tmp_path / "renamed"), **opened)
    assert found.classes_.tolist() == ["a", "z"]
    assert found.predict(NEW).tolist() == [names[label] for label in fitted.predict(NEW).tolist()]
    assert found.predict_proba(NEW).tolist() == fitted.predict_proba(NEW)[:, ::-1].tolist()
    assert found.decision_function(NEW).tolist() == (-fitted.decision_function(NEW)).tolist()
    folder = several.save_pretrained(tmp_path / "several")
    assert (
        PTuningClassifier.from_pretrained(folder, **opened).predict(NEW).tolist()
        == several.predict(NEW).tolist()
    )
    folder = scores.save_pretrained(tmp_path / "scores")
    assert (
        PTuningRegressor.from_pretrained(folder, **opened).predict(NEW).tolist()
        == scores.predict(NEW).tolist()
    )
    with pytest.raises(ConfigError, match="open it with PTuningRegressor"):
        PTuningClassifier.from_pretrained(folder)


@pytest.mark.parametrize("name", ["fitted", "several"])
def test_labels_of_several_types_are_refused(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    estimator = request.getfixturevalue(name)
    model = PTuningModel.from_pretrained(estimator.save_pretrained(tmp_path / "adapter"))
    model.set_task(replace(model.task, labels=("a", 1)))
    with pytest.raises(ConfigError, match="the adapter's labels: got strings and numbers: 'a', 1"):
        PTuningClassifier.from_pretrained(model.save_pretrained(tmp_path / "mixed"), device="cpu")


def test_an_adapter_for_peft_is_opened_too(
    several: PTuningClassifier, tmp_path: Path, tiny_folder: Path
) -> None:
    folder = several.model_.save_pretrained(tmp_path / "peft", peft=True)
    (folder / adapters.RECORD).unlink()
    options = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**options, "auto_mapping": None}))
    found = PTuningClassifier.from_pretrained(folder, backbone=str(tiny_folder))
    assert found.predict_proba(NEW).shape == (len(NEW), 2)
    assert found.backbone == str(tiny_folder)
