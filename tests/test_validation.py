"""Choices made in Python are held to types and bounds as those of a file are, in one sentence of ours."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptuning import (
    DataConfig,
    DeepPrompt,
    Engine,
    FitConfig,
    InputPrompt,
    PTuningModel,
    Task,
    TextInit,
    TrainConfig,
)
from ptuning.cli import main
from ptuning.errors import ConfigError, PTuningError
from ptuning.paths import local_path
from ptuning.training.config import SearchConfig

DATA = DataConfig(train="x.csv")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FitConfig(epohcs=3), "epohcs: unknown option; did you mean num_train_epochs?"),
        (lambda: FitConfig(3), "FitConfig: got a positional argument, expected options by"),
        (lambda: FitConfig(epochs=0), "num_train_epochs: got 0, expected greater than or equal to 1"),
        (lambda: FitConfig(class_weights={"a": 1}), "class_weights: got {'a': 1}, expected 'balanced' or"),
        (lambda: TrainConfig(data=DATA, fit={"epohcs": 3}), "fit.epohcs: unknown option; did you mean fit"),
        (lambda: TrainConfig(data=DATA, epochs=3), "epochs: unknown option; did you mean fit.num_train_ep"),
        (lambda: TrainConfig(), "data: missing, and it has no default"),
        (lambda: DataConfig(), "train: missing, and it has no default"),
        (lambda: DataConfig(train="x", lable="y"), "lable: unknown option; did you mean label?"),
        (lambda: SearchConfig(trails=3), "trails: unknown option; did you mean trials?"),
        (lambda: DeepPrompt(x=1), "DeepPrompt: unknown option x"),
        (lambda: DeepPrompt(20), "DeepPrompt: got a positional argument, expected options by name"),
        (lambda: DeepPrompt(num_tokens=3), "DeepPrompt: unknown option num_tokens; did you mean num_"),
        (lambda: dataclasses.replace(DeepPrompt(), x=3), "DeepPrompt: unknown option x"),
        (lambda: TextInit(), "TextInit: text is missing, and it has no default"),
        (lambda: Engine(compil=True), "Engine: unknown option compil; did you mean compile?"),
        (lambda: Task(labels=("a", "b")), "Task: problem_type is missing"),
        (lambda: Task(problem_type="regression", scael=1.0), "Task: unknown option scael; did you mean"),
        (lambda: Task(problem_type="single_label_classification", labels="ab"), "labels: got 'ab', expected"),
        (lambda: InputPrompt(placement="{prompt:99999} {text_a}"), "expected a number from 1 to 9999"),
        (lambda: PTuningModel.from_backbone("demo", num_labels="2"), "num_labels: got '2', expected a"),
        (lambda: PTuningModel.from_backbone("demo", num_labels=0), "num_labels: got 0, expected a whole"),
        (lambda: PTuningModel.from_backbone("demo", num_labels=True), "num_labels: got True, expected"),
    ],
)  # fmt: skip
def test_a_slip_is_one_sentence(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)
    assert isinstance(caught.value, PTuningError)
    assert "\n" not in str(caught.value)


def test_the_parts_of_a_slip_are_attributes() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(data=DATA, fit={"epochs": 0, "seed": -1})
    assert caught.value.problem == "fit.num_train_epochs"
    assert (caught.value.got, caught.value.expected) == ("0", "greater than or equal to 1")
    assert caught.value.remedy == "and 1 more wrong option"
    with pytest.raises(ConfigError) as caught:
        DeepPrompt(num_tokens=3)
    assert caught.value.remedy == "did you mean num_virtual_tokens?"


BEYOND: dict[str, tuple[type, list[Any]]] = {
    "num_train_epochs": (FitConfig, [10**6, 10**9, 2**63, 10**30, True, 1.5]),
    "batch_size": (FitConfig, [10**9, True]),
    "batch_tokens": (FitConfig, [10**12, True]),
    "gradient_accumulation_steps": (FitConfig, [10**9, False]),
    "learning_rate": (FitConfig, [1e300, True, float("inf"), float("nan")]),
    "head_learning_rate": (FitConfig, [1e300, True, -1.0]),
    "weight_decay": (FitConfig, [1e300, True]),
    "warmup_ratio": (FitConfig, [True, 1.0]),
    "max_grad_norm": (FitConfig, [True, 0.0]),
    "evaluate_every": (FitConfig, [10**12, True, "often"]),
    "average_checkpoints": (FitConfig, [10**6, True]),
    "patience": (FitConfig, [10**9, True]),
    "seed": (FitConfig, [2**32, 2**64, -1, True]),
    "class_weights": (FitConfig, [[True, 1.0], [float("nan"), 1.0]]),
    "trials": (SearchConfig, [10**9, True]),
    "minutes": (SearchConfig, [1e300, True]),
    "first_layers": (SearchConfig, [[10**9], [True]]),
    "num_virtual_tokens": (DeepPrompt, [10**7, 2**63, True, 0]),
    "num_virtual_units": (DeepPrompt, [10**7, 2**63, True]),
    "num_queries": (DeepPrompt, [10**7, True]),
    "first_layer": (DeepPrompt, [10**9, True]),
    "position_offset": (DeepPrompt, [2**63, True]),
    "stem_memory": (Engine, [1e300, True, -1.0, float("inf")]),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_number_out_of_bounds_is_refused(name: str) -> None:
    kind, values = BEYOND[name]
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{name}(\.0)?: got .*, expected "):
            kind(**{name: value})


def test_every_number_of_the_configuration_has_an_upper_bound() -> None:
    """Found by trying: no option takes a number that is beyond all sense, but for those that mean it."""
    unbounded = {"max_grad_norm"}  # "any"
    for kind in (FitConfig, SearchConfig, DeepPrompt, Engine):
        made = kind.model_fields if hasattr(kind, "model_fields") else kind.__dataclass_fields__
        names = list(made)
        for name in set(names) - unbounded:
            with pytest.raises(ConfigError):
                kind(**{name: 10**35})
    with pytest.raises(ConfigError):
        DataConfig(train="x", max_length=10**12)


@pytest.mark.parametrize(
    "made",
    [DeepPrompt(num_virtual_tokens=3), Engine(), FitConfig(epochs=3), Task(problem_type="regression"),
     TrainConfig(data=DATA)],
    ids=lambda made: type(made).__name__,
)  # fmt: skip
def test_what_was_made_can_be_copied_and_pickled(made: Any) -> None:
    assert pickle.loads(pickle.dumps(made)) == made
    assert copy.deepcopy(made) == made
    if dataclasses.is_dataclass(made):
        assert dataclasses.replace(made) == made  # type: ignore[type-var]
    else:
        assert made.model_copy() == made


# --------------------------------------------------------------------------------------------- paths

ODD = {
    "a\0b": "without a NUL character",
    "~nosuchuser/x": "no such user",
    "a" * 5000: "too long",
    "b" * 300: "too long",
    "a\ud800": "broken characters",
}


@pytest.mark.parametrize("path", ODD, ids=["NUL", "nobody", "long", "long name", "surrogate"])
def test_a_path_that_cannot_be_one(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=ODD[path]) as caught:
        local_path(path, "output")
    assert str(caught.value).startswith("output: got ")
    assert len(str(caught.value)) < 200


def test_a_link_to_itself_and_what_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match="a link that leads back to itself"):
        local_path(tmp_path / "loop", "output")
    for value in (3, None, ["x"]):
        with pytest.raises(ConfigError, match="expected a path, as a string"):
            local_path(value, "output")  # type: ignore[arg-type]
    assert local_path("nosuch/x", "output") == Path("nosuch/x")
    assert local_path("~/x", "output") == Path.home() / "x"


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--config", "ODD"],
        ["train", "ODD", "--print_config", "--output", "x"],
        ["train", "x.csv", "--output", "ODD"],
        ["train", "ODD"],
        ["inspect", "ODD"],
        ["predict", "ODD"],
        ["evaluate", "ODD", "x.csv"],
        ["check-data", "ODD"],
        ["check-data", "x.csv", "--validation", "ODD"],
        ["export-peft", "ODD", "out"],
        ["import-peft", "x", "ODD"],
        ["push", "ODD", "a/b"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    "odd", ["a\0b", "~nosuchuser/x", "a" * 5000, "loop"], ids=["NUL", "nobody", "long", "loop"]
)
def test_an_odd_path_is_one_line_in_every_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    odd: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 9)
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    before = sorted(tmp_path.iterdir())
    code = main([odd if each == "ODD" else each for each in argv])
    found = capsys.readouterr()
    if "--print_config" in argv:
        assert code == 0  # a name alone is not looked at
        return
    assert code == 2
    assert found.out == ""
    assert found.err.startswith("ptuning: error: ")
    assert found.err.count("\n") == 1
    assert len(found.err) < 600
    assert sorted(tmp_path.iterdir()) == before
