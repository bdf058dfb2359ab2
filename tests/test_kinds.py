"""Kinds of task: a new one is a class and a row of the table, and everything else works with it."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ptuning
from ptuning import FitConfig, Predictor, PTuningModel, Task, adapters, fit, pipeline
from ptuning.cli import main
from ptuning.cli.options import leaves
from ptuning.data import infer_task
from ptuning.data.examples import Example
from ptuning.errors import AdapterError, ConfigError, DataError
from ptuning.kinds import (
    KINDS,
    Answer,
    ConstantAnswer,
    Kind,
    LabelForm,
    Metric,
    kind_named,
    kind_of_config,
    metric_named,
)
from ptuning.kinds.metric import LOSS, mean_error
from ptuning.kinds.single_label import SingleLabel
from ptuning.model.tasks import class_weights_of
from ptuning.training.config import TrainConfig

Floats = Any
Rows = Callable[..., list[dict[str, Any]]]


class Count(Kind):
    """How often something happens: a Poisson regression, of which the package knows nothing."""

    name = "count"
    title = "count regression"
    form = LabelForm.NUMBER
    metrics = (LOSS, Metric(name="deviance", lower_is_better=True, standard_error=mean_error))
    main_metric = "deviance"
    varied_rows = "counts"
    baseline_rule = "always the mean count"
    width = 1

    def check(self, task: Task) -> None:
        if task.labels:
            raise ConfigError("labels", got=list(task.labels), expected="none for counts")

    def summary(self, task: Task) -> str:
        return "a count"

    def expected_target(self, target: float, task: Task) -> str | None:
        return None if target >= 0 and target == round(target) else "a count, 0 or more"

    def strata(self, targets: Sequence[object]) -> Sequence[Hashable]:
        return [str(target) for target in targets]

    def as_targets(self, labels: Tensor, logits: Tensor, task: Task) -> Tensor:
        if labels.numel() != len(logits):
            raise DataError("labels", got=list(labels.shape), expected="one count per row")
        return labels.float().reshape(-1)

    def valid(self, targets: Tensor, task: Task) -> Tensor:
        return targets >= 0

    def wrong_target(self, value: float, targets: Tensor, task: Task) -> tuple[str, str]:
        return "a count, 0 or more", "remove the row"

    def label_remedy(self, task: Task) -> str:
        return "pass one count per row"

    def loss(self, logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None) -> Tensor:
        return F.poisson_nll_loss(logits.view(-1), targets)

    def answer(self, logits: Tensor, task: Task) -> Answer:
        return Answer(math.exp(float(logits[0])))

    def scores(self, logits: Floats, targets: Floats, task: Task) -> Mapping[str, float]:
        rate = np.exp(logits[:, 0])
        ratio = np.where(targets > 0, targets, 1) / rate
        return {"deviance": 2 * (targets * np.log(ratio) - (targets - rate)).mean()}

    def constant_answer(self, targets: Floats, task: Task) -> ConstantAnswer:
        return ConstantAnswer(f"always {targets.mean():.3g}", (math.log(targets.mean()),))

    def measure_constant(
        self,
        logits: Sequence[float],
        shares: Sequence[float],
        targets: Floats,
        task: Task,
        weights: Sequence[float] | None,
    ) -> dict[str, float]:
        loss = float((math.exp(logits[0]) - targets * logits[0]).mean())
        return {"loss": loss, **self.measure(np.tile(np.array(logits), (len(targets), 1)), targets, task)}

    def reference_losses(
        self, targets: Floats, task: Task, weights: Sequence[float] | None
    ) -> tuple[float, float]:
        best = targets.mean()
        return float(best - best * math.log(best)), 1.0


class Ordinal(SingleLabel):
    """Classes with an order: a wrong one costs as much as it is far."""

    name = "ordinal"
    title = "ordinal classification"
    metrics = (LOSS, Metric(name="accuracy"), Metric(name="distance", lower_is_better=True))
    main_metric = "distance"
    transformers_name = None
    head_fit = None

    def loss(self, logits: Tensor, targets: Tensor, task: Task, weights: Tensor | None) -> Tensor:
        distance = (torch.arange(task.num_labels, device=logits.device) - targets[:, None]).abs()
        return (logits.softmax(1) * distance).sum(1).mean()

    def scores(self, logits: Floats, targets: Floats, task: Task) -> Mapping[str, float]:
        distance = np.abs(logits.argmax(1) - targets)
        return {"accuracy": float((distance == 0).mean()), "distance": float(distance.mean())}


class Answers(Ordinal):
    """Classes of which only the answer to one row is known, not the arrays of many."""

    name = "answers"
    probabilities = Kind.probabilities
    calibrated = Kind.calibrated


class Broken(Ordinal):
    """Cannot be calibrated."""

    name = "broken"

    def calibrated(self, logits: Floats, targets: Floats, task: Task) -> Task:
        raise ZeroDivisionError("no\nrows")


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows in the table."""
    for kind in (Count(), Ordinal(), Answers(), Broken()):
        monkeypatch.setitem(KINDS, kind.name, kind)


@pytest.fixture
def files(tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Training and test rows whose label is one of two values."""
    monkeypatch.chdir(tmp_path)

    def written(positive: Any, negative: Any) -> Path:
        for name, count, seed in (("train", 96, 0), ("test", 40, 1)):
            labelled = [
                {**row, "label": positive if row["label"] == "positive" else negative}
                for row in rows(count, seed=seed)
            ]
            text = "".join(json.dumps(row) + "\n" for row in labelled)
            (tmp_path / f"{name}.jsonl").write_text(text, "utf-8")
        return tmp_path

    return written


def small(backbone: Path, kind: str) -> list[str]:
    values = {
        "data.train": "train.jsonl",
        "data.test": "test.jsonl",
        "data.problem_type": kind,
        "backbone": backbone,
        "output": "out",
        "precision": "fp32",
        "device": "cpu",
        "prompt.num_virtual_tokens": 4,
        "fit.batch_size": 8,
        "fit.epochs": 6,
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


@pytest.mark.usefixtures("kinds", "any_features")
def test_a_new_kind_of_number_trains_predicts_evaluates_saves_and_loads(
    tiny_folder: Path, files: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    home = files(8, 1)
    assert main(["check-data", "train.jsonl", "--data.problem_type", "count"]) == 0
    assert "task: count" in capsys.readouterr().out
    assert main(["train", *small(tiny_folder, "count")]) == 0
    said = capsys.readouterr()
    assert "deviance" in said.out + said.err

    adapter = adapters.load(home / "out")
    assert adapter.task == Task(problem_type="count")
    found = json.loads((home / "out" / "ptuning.json").read_text("utf-8"))
    assert found["task"]["problem_type"] == "count"
    scores = found["metrics"]["test"]
    assert scores["deviance"] < found["metrics"]["baseline"]["deviance"]
    card = (home / "out" / "README.md").read_text("utf-8")
    assert "- kind: count regression" in card
    assert "- output: one number" in card

    assert main(["evaluate", "out", "test.jsonl", "--json", "--precision", "fp32"]) == 0
    again = json.loads(capsys.readouterr().out)["metrics"]
    assert again == pytest.approx({name: scores[name] for name in ("loss", "deviance")}, rel=1e-4)
    assert main(["predict", "out", "--input", "test.jsonl", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("row,value\n")
    assert main(["inspect", "out"]) == 0
    assert "count" in capsys.readouterr().out

    model = PTuningModel.from_pretrained(home / "out")
    good, bad = Predictor(model)(["the good film", "the bad film"])
    assert good.label > 3 > bad.label > 0
    assert good.to_dict() == {"value": good.label}
    assert model.config.problem_type is None
    score = pipeline(model)("the good film")[0]["score"]
    assert score == pytest.approx(good.label, rel=1e-4)
    with pytest.raises(DataError, match=r"got -1 in row 0 .*expected a count"):
        model(
            input_ids=torch.ones(1, 3, dtype=torch.long),
            attention_mask=torch.ones(1, 3),
            labels=torch.tensor([-1.0]),
        )


@pytest.mark.usefixtures("kinds")
def test_a_new_kind_of_classes_trains_and_answers(
    tiny_folder: Path, files: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    home = files("high", "low")
    assert main(["train", *small(tiny_folder, "ordinal"), "--fit.select_by", "distance"]) == 0
    capsys.readouterr()
    model = PTuningModel.from_pretrained(home / "out")
    assert model.task.uncalibrated() == Task(problem_type="ordinal", labels=("high", "low"))
    assert model.task.is_calibrated
    assert [each.label for each in Predictor(model)(["the good film", "the bad film"])] == ["high", "low"]
    found = adapters.load(home / "out").metrics
    assert found["test"]["distance"] < found["baseline"]["distance"]
    result = fit(model, {"train": "train.jsonl"}, FitConfig(epochs=1, class_weights="balanced"))
    assert result.metric == "distance"
    assert result.beats_baseline


@pytest.mark.usefixtures("kinds")
def test_a_new_kind_needs_no_arrays_of_probabilities(
    tiny_folder: Path, files: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is kept, and its report and evaluation say what its answers say."""
    home = files("high", "low")
    assert main(["train", *small(tiny_folder, "answers"), "--fit.epochs", "1"]) == 0
    assert "could not be" not in capsys.readouterr().err
    assert adapters.load(home / "out").task == Task(problem_type="answers", labels=("high", "low"))
    assert (home / "out.run" / "report.html").exists()
    assert main(["evaluate", "out", "test.jsonl", "--json", "--precision", "fp32"]) == 0
    calibration = json.loads(capsys.readouterr().out)["calibration"]
    predicted = Predictor(PTuningModel.from_pretrained(home / "out"))
    rows = [json.loads(line) for line in (home / "test.jsonl").read_text("utf-8").splitlines()]
    chances = [
        dict(each.probabilities)[row["label"]]
        for row, each in zip(rows, predicted(row["text"] for row in rows), strict=True)
    ]
    assert calibration["log_loss"] == pytest.approx(-np.log(chances).mean(), rel=1e-4)


@pytest.mark.usefixtures("kinds")
def test_a_calibration_that_fails_does_not_cost_the_run(
    tiny_folder: Path, files: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    home = files("high", "low")
    assert main(["train", *small(tiny_folder, "broken")]) == 0
    assert (
        "probabilities could not be calibrated (no rows); they are used as they are"
        in capsys.readouterr().err
    )
    assert adapters.load(home / "out").task == Task(problem_type="broken", labels=("high", "low"))


@pytest.mark.usefixtures("kinds")
def test_a_new_kinds_own_rules_are_kept() -> None:
    counts = [Example(row=row, text="x", label=label) for row, label in enumerate((0, 3, 2), start=1)]
    assert infer_task(counts, problem_type="count") == Task(problem_type="count")
    with pytest.raises(ConfigError) as caught:
        Task(problem_type="count", labels=("a", "b"))
    assert caught.value.got == ["a", "b"]
    with pytest.raises(ConfigError, match="a count regression has no classes"):
        class_weights_of((1.0,), Task(problem_type="count"))
    shown = {leaf.key: leaf.choices for leaf in leaves(TrainConfig)}
    assert shown["data.problem_type"][0] == "auto"
    assert shown["data.problem_type"][-4:] == ("count", "ordinal", "answers", "broken")
    assert metric_named("deviance").lower_is_better
    assert not metric_named("of nobody").lower_is_better


def test_an_adapter_of_a_kind_that_is_not_here_is_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as there:
        there.setitem(KINDS, "count", Count())
        made = PTuningModel.from_backbone(str(tiny_folder), task=Task(problem_type="count"))
        made.save_pretrained(tmp_path / "out")
    with pytest.raises(AdapterError, match=r"task\.problem_type: got 'count', expected 'single_label"):
        adapters.load(tmp_path / "out")


def test_the_table_is_by_name_and_transformers_finds_its_own() -> None:
    for name, kind in KINDS.items():
        assert kind.name == name
        assert kind_of_config(kind.transformers_name, 3) is kind
        assert kind.main_metric in [metric.name for metric in kind.metrics]
    assert kind_of_config(None, 1).name == "regression"
    assert kind_of_config(None, 2).name == "single_label_classification"
    with pytest.raises(ConfigError) as caught:
        kind_named("regresion")
    assert caught.value.got == "'regresion'"
    assert "'regression'" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("labels", "got"), [((1, "1"), "both 1 and '1'"), (("a", "a"), "'a' twice"), (("True", True), "both")]
)
def test_labels_that_are_written_the_same_way_are_refused(labels: tuple[Any, ...], got: str) -> None:
    """A prediction in JSON, a table and ``id2label`` name them as text."""
    with pytest.raises(ConfigError) as caught:
        Task(problem_type="single_label_classification", labels=labels)
    assert got in str(caught.value.got)


def test_no_other_module_compares_names_of_kinds() -> None:
    """Guards the property: outside ``ptuning.kinds`` a name of a kind stands in text at most."""
    source = Path(ptuning.__file__).parent
    names = set(KINDS)
    found = []
    for file in source.rglob("*.py"):
        if file.parent.name == "kinds":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and node.value in names:
                found.append(f"{file.relative_to(source)}:{node.lineno}")
    assert found == []
