"""Estimators that share a backbone: folds, threads, processes, and scikit-learn's own tools around them."""

from __future__ import annotations

import gc
import pickle
import shutil
import warnings
import weakref
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from joblib import parallel_config
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from conftest import WORDS
from ptuning import Engine, PTuningClassifier, PTuningRegressor
from ptuning.errors import BackboneNotFound
from ptuning.estimators import backbones
from ptuning.model.loading import load_backbone
from test_estimators import LABELS, NEW, SMALL, TEXTS


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the backbones that are loaded from now on; those of earlier tests are forgotten."""
    found: list[str] = []
    load = backbones.load_backbone

    def counting(name: str, *args: Any, **options: Any) -> Any:
        found.append(name)
        return load(name, *args, **options)

    monkeypatch.setattr(backbones, "load_backbone", counting)
    monkeypatch.setattr(backbones, "_SHARED", weakref.WeakValueDictionary())
    return found


@pytest.fixture
def classifier(tiny_folder: Path) -> PTuningClassifier:
    return PTuningClassifier(str(tiny_folder), **{**SMALL, "num_train_epochs": 1})


@pytest.fixture
def settings() -> Iterator[None]:
    """Seeds that the folds of a test have in common."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --------------------------------------------------------------------------------- one backbone


def test_folds_load_the_backbone_once(classifier: PTuningClassifier, loads: list[str]) -> None:
    cross_val_score(classifier, TEXTS, LABELS, cv=2)
    grid = GridSearchCV(classifier, {"num_virtual_tokens": [1, 2], "first_layer": [0, 1]}, cv=2)
    grid.fit(TEXTS, LABELS)
    assert len(loads) == 1
    assert grid.best_estimator_.model_.prompt_config.num_virtual_tokens in (1, 2)


def test_a_fold_is_what_it_is_alone(classifier: PTuningClassifier) -> None:
    """What earlier folds did on the shared backbone changes nothing."""
    folds = list(StratifiedKFold(3).split(TEXTS, LABELS))
    found = cross_val_predict(classifier, TEXTS, LABELS, cv=folds, method="predict_proba")
    for train, test in folds:
        alone = PTuningClassifier(**classifier.get_params())
        alone.fit([TEXTS[row] for row in train], [LABELS[row] for row in train])
        rows = [TEXTS[row] for row in test]
        assert found[test].tolist() == alone.predict_proba(rows).tolist()


def test_a_backbone_is_freed_with_its_last_estimator(tiny_folder: Path, loads: list[str]) -> None:
    classifier = PTuningClassifier(str(tiny_folder), **{**SMALL, "num_train_epochs": 1})
    first = clone(classifier).fit(TEXTS, LABELS)
    weights = weakref.ref(first.model_.backbone.weights)
    second = PTuningClassifier(**classifier.get_params()).fit(TEXTS, LABELS)  # not a clone
    assert second.model_.backbone.same_weights(first.model_.backbone)
    assert len(loads) == 1
    del first, classifier
    gc.collect()
    assert weights() is not None
    del second
    gc.collect()
    assert weights() is None
    assert len(backbones._SHARED) == 0


def test_what_one_fit_sets_does_not_reach_another(classifier: PTuningClassifier, loads: list[str]) -> None:
    first = clone(classifier).set_params(engine=Engine(attention="plain")).fit(TEXTS, LABELS)
    before = first.predict_proba(NEW)
    second = clone(classifier).set_params(fit_options={"backbone_dropout": True}).fit(TEXTS, LABELS)
    assert len(loads) == 1
    assert second.model_.backbone.same_weights(first.model_.backbone)
    assert first.model_.backbone.engine.attention == "plain"
    assert second.model_.backbone.engine == Engine()
    second.model_.backbone.dropout = True
    second.model_.train()
    assert first.predict_proba(NEW).tolist() == before.tolist()


def test_other_weights_are_another_backbone(
    classifier: PTuningClassifier, loads: list[str], tmp_path: Path, tiny_folder: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "backbone"))
    classifier.set_params(backbone=str(folder))
    first = clone(classifier).fit(TEXTS, LABELS)
    first.model_.half()  # of the shared weights, so nobody shares them any longer
    second = clone(classifier).fit(TEXTS, LABELS)
    assert second.model_.backbone.dtype == torch.float32
    (folder / "model.safetensors").touch()  # written again
    third = clone(classifier).fit(TEXTS, LABELS)
    assert len(loads) == 3
    assert not third.model_.backbone.same_weights(second.model_.backbone)


def test_a_pickle_finds_its_backbone_where_the_parameter_says(
    classifier: PTuningClassifier, loads: list[str], tmp_path: Path, tiny_folder: Path
) -> None:
    """Also one without safetensors, because the user has named it."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "backbone"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    fitted = clone(classifier).set_params(backbone=str(folder)).fit(TEXTS, LABELS)
    data, expected = pickle.dumps(fitted), fitted.predict_proba(NEW).tolist()
    backbones._SHARED.clear()
    assert pickle.loads(data).predict_proba(NEW).tolist() == expected
    moved = folder.rename(tmp_path / "moved")
    backbones._SHARED.clear()
    copied = pickle.loads(data).set_params(backbone=str(moved))
    assert copied.predict_proba(NEW).tolist() == expected
    assert loads == [str(folder), str(folder), str(moved)]


def test_an_adapter_to_start_from_cannot_have_a_pickled_backbone_read(
    classifier: PTuningClassifier, tmp_path: Path, tiny_folder: Path
) -> None:
    """Its author chose the backbone; the user can, too."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "backbone"))
    named = clone(classifier).set_params(backbone=str(folder), num_train_epochs=1)
    adapter = named.fit(TEXTS, LABELS).save_pretrained(tmp_path / "adapter")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    backbones._SHARED.clear()
    start = {"init_from": str(adapter), "prompt": None, "num_train_epochs": 1}
    with pytest.raises(BackboneNotFound, match="as a pickle"):
        clone(classifier).set_params(backbone="demo", **start).fit(TEXTS, LABELS)
    clone(classifier).set_params(backbone=str(folder), **start).fit(TEXTS, LABELS)


def test_the_token_is_used_for_the_backbone_and_is_not_kept(
    classifier: PTuningClassifier, loads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clone(classifier).fit(TEXTS, LABELS).save_pretrained(tmp_path / "adapter")
    backbones._SHARED.clear()
    load, tokens = backbones.load_backbone, list[Any]()

    def seen(*args: Any, **options: Any) -> Any:
        given = signature(load_backbone).bind(*args, **options)
        tokens.append(given.arguments.get("token"))
        return load(*args, **options)

    monkeypatch.setattr(backbones, "load_backbone", seen)
    found = PTuningClassifier.from_pretrained(folder, device="cpu", precision="fp32", token="hf_secret")
    again = PTuningClassifier.from_pretrained(folder, device="cpu", precision="fp32", token="hf_other")
    assert tokens == ["hf_secret"]
    assert again.model_.backbone.same_weights(found.model_.backbone)
    assert "hf_secret" not in repr(vars(found))
    assert b"hf_secret" not in pickle.dumps(found)


def test_two_threads_load_a_pickle_once(classifier: PTuningClassifier, loads: list[str]) -> None:
    data = pickle.dumps(clone(classifier).fit(TEXTS, LABELS))
    expected = pickle.loads(data).predict(NEW).tolist()
    loads.clear()
    backbones._SHARED.clear()
    copied, found = pickle.loads(data), []
    threads = [Thread(target=lambda: found.append(copied.predict(NEW).tolist())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected, expected]
    assert len(loads) == 1


def test_threads_find_what_one_thread_finds(classifier: PTuningClassifier, loads: list[str]) -> None:
    options: dict[str, Any] = {"cv": 3, "scoring": "neg_log_loss"}
    expected = cross_val_score(classifier, TEXTS, LABELS, **options)
    with parallel_config("threading"):
        found = cross_val_score(classifier, TEXTS, LABELS, n_jobs=2, **options)
    assert found.tolist() == expected.tolist()
    assert len(loads) == 1


@pytest.mark.slow
def test_processes_find_what_one_process_finds(classifier: PTuningClassifier, loads: list[str]) -> None:
    """Fitted estimators come back from the processes without the backbone, and share it here."""
    options: dict[str, Any] = {"cv": 2, "scoring": "neg_log_loss", "return_estimator": True}
    expected = cross_validate(classifier, TEXTS, LABELS, **options)
    found = cross_validate(classifier, TEXTS, LABELS, n_jobs=2, **options)
    assert found["test_score"].tolist() == expected["test_score"].tolist()
    for ours, theirs in zip(expected["estimator"], found["estimator"], strict=True):
        assert theirs.predict_proba(NEW).tolist() == ours.predict_proba(NEW).tolist()
    assert len(loads) == 1


# ------------------------------------------------------------------------ scikit-learn's own tools


def test_a_pipeline_in_a_grid_search(classifier: PTuningClassifier, loads: list[str]) -> None:
    cut = FunctionTransformer(lambda texts: [text.removesuffix("!") for text in texts])
    pipeline = Pipeline([("cut", cut), ("clf", classifier)])
    grid = {"clf__learning_rate": np.array([1e-3, 3e-2]), "clf__num_virtual_tokens": np.array([1, 2])}
    search = GridSearchCV(pipeline, grid, cv=2, refit="accuracy", scoring=["accuracy", "roc_auc"])
    search.fit([text + "!" for text in TEXTS], LABELS)
    assert len(loads) == 1
    assert set(search.predict(NEW)) <= set(LABELS)
    assert search.best_estimator_.named_steps["clf"].learning_rate in (1e-3, 3e-2)
    assert search.predict_proba(NEW).shape == (len(NEW), 2)


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibration(classifier: PTuningClassifier, method: str) -> None:
    calibrated = CalibratedClassifierCV(classifier, cv=2, method=method).fit(TEXTS, LABELS)
    assert calibrated.classes_.tolist() == sorted(set(LABELS))
    assert np.allclose(calibrated.predict_proba(NEW).sum(1), 1)


def test_other_tools(classifier: PTuningClassifier, loads: list[str]) -> None:
    sizes, train, test = learning_curve(classifier, TEXTS, LABELS, cv=2, train_sizes=[0.6, 1.0])
    assert train.shape == test.shape == (len(sizes), 2)
    score, permuted, _ = permutation_test_score(classifier, TEXTS, LABELS, cv=2, n_permutations=1)
    assert 0 <= score <= 1
    assert permuted.shape == (1,)
    votes = VotingClassifier([("a", classifier), ("b", clone(classifier))], voting="soft")
    assert set(votes.fit(TEXTS, LABELS).predict(NEW)) <= set(LABELS)
    assert len(loads) == 1


class Numbers:
    """Writes rows of numbers as texts, so that scikit-learn's checks of an estimator can run."""

    def fit(self, X: Any, y: Any) -> Any:  # noqa: N803
        if y is not None:
            X, y = validate_data(self, X, y, multi_output=True, dtype=np.float64)  # noqa: N806
            X = _words(X)  # noqa: N806
        return super().fit(X, y)  # type: ignore[misc]

    def _logits(self, given: Any) -> Any:
        check_is_fitted(self)
        rows = validate_data(self, given, reset=False, dtype=np.float64)
        return super()._logits(_words(rows))  # type: ignore[misc]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.string = tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        for each in (tags.classifier_tags, tags.regressor_tags):
            if each is not None:
                each.poor_score = True  # a random backbone
        return tags


def _words(rows: Any) -> list[str]:
    cells = np.floor(rows * 4).astype(int) % len(WORDS)
    return [" ".join(WORDS[cell] for cell in row) for row in cells]


class NumbersClassifier(Numbers, PTuningClassifier):
    pass


class NumbersRegressor(Numbers, PTuningRegressor):
    pass


CANNOT_HOLD = {
    "check_methods_subset_invariance": "fp32 sums of another batch differ in the last bits; the check "
    "compares to 1e-7",
    "check_array_api_input": "there are no arrays of numbers",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NumbersClassifier, NumbersRegressor])
def test_scikit_learns_own_checks(kind: type[PTuningClassifier], tiny_folder: Path) -> None:
    estimator = kind(
        str(tiny_folder), **{**SMALL, "num_train_epochs": 1, "batch_size": 64, "random_state": None}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks' own
        found = check_estimator(estimator, expected_failed_checks=CANNOT_HOLD, on_skip=None, on_fail=None)
    assert len(found) > 50
    wrong = [each for each in found if each["status"] not in ("passed", "xfail", "skipped")]
    assert [(each["check_name"], str(each["exception"])) for each in wrong] == []
