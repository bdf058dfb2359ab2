"""Calibrated adapters as a user sees them: training, commands, predictions, cards, PEFT, the server."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import sentiment
from ptuning import (
    FitConfig,
    MultiPredictor,
    Predictor,
    PTuningModel,
    Task,
    TaskTable,
    adapters,
    fit,
    pipeline,
)
from ptuning.adapters.card import model_card
from ptuning.calibration import expected_calibration_error, log_loss
from ptuning.cli import main
from ptuning.data import load_examples
from ptuning.errors import AdapterError, AdapterMismatch, ConfigError
from ptuning.serving.page.views import answer_view
from ptuning.serving.rows import RowAnswer
from ptuning.serving.scores import scores_of
from ptuning.training.evaluation import score
from ptuning.training.prepare import tokenised

Ran = tuple[int, str, str]
TEXTS = ["the film was good", "slow food", "a bad, bad day", "the bill"]


def labelled(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    rows = sentiment(count, seed=seed)
    if kind == "number":
        return [{**row, "label": 2.5 if row["label"] == "positive" else 0.0} for row in rows]
    if kind == "many":
        return [
            {"text": row["text"], "label": [row["label"], *["ж"] * (place % 3 == 0)]}
            for place, row in enumerate(rows)
        ]
    return rows


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of each kind, its run folder, and the rows of each split."""
    home = tmp_path_factory.mktemp("calibrated")
    for kind in ("single", "many", "number"):
        for split, count in (("train", 48), ("validation", 60), ("test", 40)):
            found = labelled(kind, count, seed=len(split))
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
            (home / f"{kind}-{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        argv = [
            "--backbone",
            str(tiny_folder),
            "--precision",
            "fp32",
            "--device",
            "cpu",
            "--output",
            str(home / kind),
            "--report",
            "false",
        ]
        for split in ("train", "validation", "test"):
            argv += [f"--data.{split}", str(home / f"{kind}-{split}.jsonl")]
        argv += ["--fit.num_train_epochs", "4", "--prompt.num_virtual_tokens", "4", "--fit.batch_size", "8"]
        assert main(["train", *argv, "--fit.head_learning_rate", "0.05"]) == 0
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of all of it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ptuning(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*argv: str) -> Ran:
        model = ["--precision", "fp32", "--device", "cpu"]
        held = model if argv[0] in ("predict", "evaluate", "calibrate") else []
        capsys.readouterr()
        code = main([*argv, *held])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def refused(found: Ran) -> str:
    """One line on standard error, exit code 2."""
    assert (found[0], found[1]) == (2, "")
    assert found[2].count("\n") == 1
    assert found[2].startswith("ptuning: error: ")
    return found[2]


def loaded(folder: Path | str) -> PTuningModel:
    return PTuningModel.from_pretrained(folder, dtype=torch.float32).eval()


def scored(model: PTuningModel, file: Path | str) -> tuple[Any, Any]:
    """Logits and targets of a file's rows."""
    split = tokenised(model, load_examples(str(file), task=model.task).examples)
    return score(model, split).logits.double().numpy(), split.targets


# -------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["single", "many"])
def test_training_fits_the_task_to_the_validation_rows_and_records_it(home: Path, kind: str) -> None:
    model = loaded(home / kind)
    task, plain = model.task, model.task.uncalibrated()
    expected = plain.kind.calibrated(*scored(model, f"{kind}-validation.jsonl"), plain)
    assert task.temperature == pytest.approx(expected.temperature, rel=1e-4)
    assert task.thresholds == pytest.approx(expected.thresholds, abs=1e-4)
    assert task.temperature != 1
    assert bool(task.thresholds) == (kind == "many")

    record = adapters.load(home / kind).extra["calibration"]
    result = json.loads((home / f"{kind}.run" / "result.json").read_text("utf-8"))
    assert record == result["calibration"]
    assert (record["rows"], record["temperature"]) == (60, task.temperature)
    assert record["thresholds"] == list(task.thresholds)
    for split in ("validation", "test"):
        logits, targets = scored(model, f"{kind}-{split}.jsonl")
        for when, each in (("before", plain), ("after", task)):
            chances = each.kind.probabilities(logits, each)
            found = record[split][when]
            assert found["ece"] == pytest.approx(expected_calibration_error(chances, targets), abs=1e-4)
            assert found["log_loss"] == pytest.approx(log_loss(chances, targets), abs=1e-4)
            measured = each.kind.measure(logits, targets, each)
            for name in each.kind.threshold_metrics:
                assert found[name] == pytest.approx(measured[name], abs=1e-6)
    improved = record["validation"]
    assert improved["after"]["log_loss"] < improved["before"]["log_loss"]


def test_the_metrics_of_an_adapter_are_those_of_its_answers(ptuning: Callable[..., Ran], home: Path) -> None:
    recorded = adapters.load(home / "many").metrics["test"]
    code, out, _ = ptuning("evaluate", "many", "many-test.jsonl", "--json")
    assert code == 0
    assert json.loads(out)["metrics"] == pytest.approx(recorded, abs=1e-4)


def test_a_number_has_nothing_to_calibrate(ptuning: Callable[..., Ran], home: Path) -> None:
    assert not loaded(home / "number").task.is_calibrated
    assert "calibration" not in adapters.load(home / "number").extra
    assert json.loads((home / "number.run" / "result.json").read_text("utf-8"))["calibration"] is None
    assert "no probabilities" in refused(ptuning("calibrate", "number", "number-test.jsonl"))
    words = refused(ptuning("predict", "number", "number-test.jsonl", "--abstain_below", "0.5"))
    assert "no probabilities" in words
    assert "no probabilities" in refused(
        ptuning("evaluate", "number", "number-test.jsonl", "--abstain_below", "1")
    )
    code, out, _ = ptuning("evaluate", "number", "number-test.jsonl", "--json")
    assert code == 0
    assert "calibration" not in json.loads(out)


def made(folder: Path, task: Task) -> PTuningModel:
    torch.manual_seed(0)
    return PTuningModel.from_backbone(str(folder), task=task, dtype=torch.float32)


def test_training_again_forgets_the_temperature_and_the_option_leaves_it_out(tiny_folder: Path) -> None:
    rows = [(row["text"], row["label"]) for row in sentiment(40)]
    plain = Task(problem_type="single_label_classification", labels=("negative", "positive"))
    options = {"num_train_epochs": 4, "head_learning_rate": 0.05, "batch_size": 8}
    found: dict[tuple[float, bool], Any] = {}
    for temperature in (1.0, 7.0):
        for calibrate in (True, False):
            model = made(tiny_folder, replace(plain, temperature=temperature))
            result = fit(
                model, {"train": rows, "validation": rows}, FitConfig(calibrate=calibrate, **options)
            )
            assert (result.calibration is not None) == calibrate == model.task.is_calibrated
            found[temperature, calibrate] = (
                model.task,
                result.history,
                model.state_dict()["head.classifier-weight"],
            )
    assert found[7.0, True][0] == found[1.0, True][0]
    assert found[7.0, False][0] == plain
    first, *others = found.values()
    assert all(other[1] == first[1] and torch.equal(other[2], first[2]) for other in others)


def test_a_run_that_learned_nothing_is_not_calibrated(tiny_folder: Path) -> None:
    rows = [(row["text"], row["label"]) for row in sentiment(64)]
    mixed = [(text, "positive" if place % 3 else "negative") for place, (text, _) in enumerate(rows)]
    task = Task(problem_type="single_label_classification", labels=("negative", "positive"))
    config = FitConfig(num_train_epochs=1, learning_rate=1e-9, head_learning_rate=1e-9)
    model = made(tiny_folder, task)
    result = fit(model, {"train": mixed, "validation": mixed}, config)
    assert result.diagnosis is not None
    assert result.diagnosis.kind == "not learned"
    assert (model.task, result.calibration) == (task, None)


# ------------------------------------------------------------------------------------------- probabilities


def answers(model: PTuningModel) -> list[dict[str, float]]:
    """What the task's temperature makes of the model's own logits."""
    task = model.task
    with torch.no_grad():
        rows = [
            model(**model.tokenizer(text, return_tensors="pt")).logits[0].double().numpy() for text in TEXTS
        ]
    chances = task.kind.probabilities(np.stack(rows), task)
    return [dict(zip(map(str, task.labels), map(float, row), strict=True)) for row in chances]


@pytest.mark.parametrize("kind", ["single", "many"])
def test_every_way_to_ask_gives_the_calibrated_probabilities(home: Path, kind: str) -> None:
    model = loaded(home / kind)
    expected = answers(model)
    uncalibrated = loaded(home / kind)
    uncalibrated.set_task(model.task.uncalibrated())
    assert expected != [pytest.approx(each, abs=1e-3) for each in answers(uncalibrated)]

    def same(found: list[Mapping[str, float]]) -> None:
        for got, wanted in zip(found, expected, strict=True):
            assert got == pytest.approx(wanted, abs=1e-5)

    predicted = Predictor(model)(TEXTS)
    same([{str(label): chance for label, chance in each.probabilities} for each in predicted])
    table = TaskTable(model.backbone)
    table.put("task", adapters.load(home / kind))
    rows = MultiPredictor(table, model.tokenizer).predict(TEXTS, ["task"] * len(TEXTS))
    same([{str(label): chance for label, chance in each.probabilities} for each in rows])
    assert [each.label for each in rows] == [each.label for each in predicted]
    classify = pipeline(model, top_k=None)
    same([{each["label"]: each["score"] for each in row} for row in classify(TEXTS)])
    usual = "sigmoid" if kind == "many" else "softmax"
    same([{each["label"]: each["score"] for each in row} for row in classify(TEXTS, function_to_apply=usual)])
    raw = [
        {each["label"]: each["score"] for each in row} for row in classify(TEXTS, function_to_apply="none")
    ]
    again = pipeline(uncalibrated, top_k=None)(TEXTS, function_to_apply="none")
    assert raw == [{each["label"]: each["score"] for each in row} for row in again]

    for text, wanted, other, answer in zip(TEXTS, expected, raw, predicted, strict=True):
        logits = tuple(other[str(label)] for label in model.task.labels)
        served = RowAnswer(name="task", digest="", task=model.task, logits=logits, tokens=1, truncated=False)
        assert dict(scores_of(served)) == pytest.approx(wanted, abs=1e-5), text
        assert dict(scores_of(served, usual)) == pytest.approx(wanted, abs=1e-5)  # type: ignore[arg-type]
        assert dict(scores_of(served, "none")) == other
        view = answer_view(served)
        chosen = {bar.label for bar in view.bars if bar.chosen}
        given = answer.label if isinstance(answer.label, tuple) else (answer.label,)
        assert chosen == set(map(str, given))
        assert all(bar.chosen == (bar.share > bar.threshold) for bar in view.bars) or kind == "single"


def test_the_state_dict_says_the_temperature(tiny_folder: Path) -> None:
    task = Task(problem_type="single_label_classification", labels=("a", "b"))
    plain, warm = (made(tiny_folder, each) for each in (task, replace(task, temperature=2.0)))
    warm.load_state_dict(warm.state_dict())
    with pytest.raises(AdapterMismatch, match="temperature"):
        plain.load_state_dict(warm.state_dict())
    with pytest.raises(AdapterMismatch, match=r"temperature is 1\.0, and this model's is 2\.0"):
        warm.load_state_dict(plain.state_dict())


# --------------------------------------------------------------------------------------------- abstaining


def test_uncertain_rows_get_no_label(ptuning: Callable[..., Ran], home: Path) -> None:
    usual = [json.loads(line) for line in ptuning("predict", "single", "single-test.jsonl")[1].splitlines()]
    assert "abstained" not in usual[0]
    sure = sorted(max(each["probabilities"].values()) for each in usual)
    limit = (sure[len(sure) // 2] + sure[len(sure) // 2 - 1]) / 2
    code, out, _ = ptuning("predict", "single", "single-test.jsonl", "--abstain_below", str(limit))
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    for before, after in zip(usual, found, strict=True):
        unsure = max(before["probabilities"].values()) < limit
        assert after == {**before, "label": None if unsure else before["label"], "abstained": unsure}
    assert sum(each["abstained"] for each in found) == len(found) // 2

    _, out, _ = ptuning(
        "predict", "single", "single-test.jsonl", "--format", "csv", "--abstain_below", str(limit)
    )
    cells = list(csv.DictReader(io.StringIO(out)))
    assert list(cells[0]) == ["row", "label", "p(negative)", "p(positive)", "abstained"]
    assert [each["abstained"] for each in cells] == [json.dumps(each["abstained"]) for each in found]
    assert [each["label"] for each in cells] == [each["label"] or "" for each in found]

    code, out, _ = ptuning("evaluate", "single", "single-test.jsonl", "--json", "--abstain_below", str(limit))
    evaluated = json.loads(out)
    truth = [row["label"] for row in labelled("single", 40, seed=4)]
    right = [a["label"] == b for a, b in zip(found, truth, strict=True) if not a["abstained"]]
    assert (code, evaluated["answered"]["rows"], evaluated["answered"]["coverage"]) == (0, 20, 0.5)
    assert evaluated["answered"]["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))
    _, out, _ = ptuning("evaluate", "single", "single-test.jsonl", "--abstain_below", str(limit))
    assert "20 of 40 rows (50.0%), accuracy" in out
    assert "calibration error " in out


def test_rows_of_many_tasks_abstain_too(ptuning: Callable[..., Ran], home: Path) -> None:
    folder = home / "all"
    folder.mkdir()
    for kind in ("single", "many", "number"):
        shutil.copytree(home / kind, folder / kind)
    rows = [{"text": text, "task": task} for text in TEXTS for task in ("single", "many")]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for limit, count in (("0", 0), ("1", len(rows))):
        code, out, _ = ptuning("predict", "--adapters", "all", "rows.jsonl", "--abstain_below", limit)
        found = [json.loads(line) for line in out.splitlines()]
        assert (code, sum(each["abstained"] for each in found)) == (0, count)
    _, out, _ = ptuning(
        "predict", "--adapters", "all", "rows.jsonl", "--format", "csv", "--abstain_below", "1"
    )
    cells = list(csv.DictReader(io.StringIO(out)))
    assert list(cells[0]) == ["row", "task", "label", "value", "probabilities", "abstained"]
    assert {(each["label"], each["abstained"]) for each in cells} == {("", "true")}
    (home / "rows.jsonl").write_text(json.dumps({"text": "good", "task": "number"}) + "\n", "utf-8")
    words = refused(ptuning("predict", "--adapters", "all", "rows.jsonl", "--abstain_below", "0.5"))
    assert "the task 'number'" in words
    assert "no probabilities" in words


@pytest.mark.parametrize("value", ["-0.5", "70", "nan"])
def test_abstain_below_must_be_a_probability(ptuning: Callable[..., Ran], value: str) -> None:
    for command in ("predict", "evaluate"):
        words = refused(ptuning(command, "single", "single-test.jsonl", f"--abstain_below={value}"))
        assert "expected a probability from 0 to 1" in words


def test_a_predictor_that_cannot_abstain_says_so_at_once(home: Path) -> None:
    with pytest.raises(ConfigError, match="no probabilities"):
        Predictor(loaded(home / "number"), abstain_below=0.7)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        Predictor(loaded(home / "single"), abstain_below=70)


# ---------------------------------------------------------------------------------------- ptuning calibrate


@pytest.mark.parametrize("kind", ["single", "many"])
def test_an_adapter_can_be_calibrated_later(ptuning: Callable[..., Ran], home: Path, kind: str) -> None:
    before = adapters.load(home / kind)
    code, out, err = ptuning("calibrate", kind, f"{kind}-test.jsonl", "--output", "again", "--json")
    assert (code, err) == (0, "")
    model, after = loaded(home / kind), adapters.load(home / "again")
    plain = model.task.uncalibrated()
    expected = plain.kind.calibrated(*scored(model, f"{kind}-test.jsonl"), plain)
    assert after.task.temperature == pytest.approx(expected.temperature, rel=1e-4)
    assert after.task.thresholds == pytest.approx(expected.thresholds, abs=1e-4)
    record = json.loads(out)
    assert after.extra["calibration"] == record
    assert record["rows"] == 40
    figures = before.extra["calibration"]["test"]["after"]
    assert record["validation"]["before"] == pytest.approx(figures, abs=1e-4)
    for name, value in before.tensors().items():
        assert torch.equal(value, after.tensors()[name])
    stale = set(plain.kind.threshold_metrics)
    assert after.metrics["test"] == {n: v for n, v in before.metrics["test"].items() if n not in stale}
    assert adapters.load(home / kind).task == before.task

    code, out, _ = ptuning("calibrate", kind, f"{kind}-test.jsonl")
    assert code == 0
    assert "probabilities calibrated on 40 validation rows: temperature " in out
    assert out.endswith(f"saved {kind}\n")
    assert adapters.load(home / kind).task == after.task
    assert adapters.verify(home / kind)


def test_calibrate_refuses_before_it_computes(
    ptuning: Callable[..., Ran], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PTuningModel, "from_pretrained", None)  # nothing is loaded
    with (home / "single" / "README.md").open("a", encoding="utf-8") as card:
        card.write("My own words.\n")
    assert "edited by hand" in refused(ptuning("calibrate", "single", "single-test.jsonl"))
    words = refused(ptuning("calibrate", "someone/adapter", "single-test.jsonl"))
    assert "--output" in words


def test_training_rows_are_noticed_by_their_name(ptuning: Callable[..., Ran], home: Path) -> None:
    code, _, err = ptuning("calibrate", "single", "single-train.jsonl", "--output", "again")
    assert code == 0
    assert "single-train.jsonl has the name of the training rows" in err


# ------------------------------------------------------------------------------------------ cards, PEFT


def test_card_and_inspect_show_it(ptuning: Callable[..., Ran], home: Path) -> None:
    for kind in ("single", "many"):
        adapter = adapters.load(home / kind)
        card = (home / kind / "README.md").read_text("utf-8")
        record = adapter.extra["calibration"]["test"]
        assert f"the temperature {adapter.task.temperature:.4g}, fitted to 60 rows" in card
        assert f"| test | ece | {record['before']['ece']:.4f} | {record['after']['ece']:.4f} |" in card
        assert ("a threshold of its own" in card) == (kind == "many")
        assert f"temperature {adapter.task.temperature:.4g}" in ptuning("inspect", kind)[1]
        facts = json.loads(ptuning("inspect", kind, "--json")[1])
        assert facts["task"]["temperature"] == adapter.task.temperature
        assert facts["calibration"] == adapter.extra["calibration"]
    card = (home / "number" / "README.md").read_text("utf-8")
    assert "## Probabilities" not in card


@pytest.mark.parametrize(
    "record",
    [
        None,
        7,
        [],
        {"test": 3},
        {"test": {"before": {"ece": "x", "<b>": 1}, "after": {"ece": None, "<b>": 2}}},
    ],
)
def test_a_card_takes_any_record(home: Path, record: Any) -> None:
    """``extra`` is anybody's."""
    adapter = adapters.load(home / "single")
    card = model_card(replace(adapter, extra={**adapter.extra, "calibration": record}))
    assert "Probabilities are calibrated" in card
    assert "| <b>" not in card


def test_peft_s_format_leaves_it_out_and_says_so(
    ptuning: Callable[..., Ran], tiny_folder: Path, tmp_path: Path
) -> None:
    task = Task(
        problem_type="multi_label_classification", labels=("a", "b"), temperature=1.5, thresholds=(0.25, 0.5)
    )
    model = made(tiny_folder, task)
    metrics = {"test": {"f1_micro": 0.5, "auc": 0.9}}
    model.save_pretrained(tmp_path / "own", metrics=metrics)
    assert adapters.load(tmp_path / "own").task == task
    code, out, err = ptuning("export-peft", "own", "exported")
    assert (code, out.strip()) == (0, str(tmp_path / "exported"))
    assert "note: PEFT's format has no calibration, so this is left out: the temperature 1.5: divide " in err
    assert "; the thresholds 0.25, 0.5" in err
    exported = adapters.load(tmp_path / "exported")
    assert exported.task == task.uncalibrated()
    assert exported.metrics == {"test": {"auc": 0.9}}
    assert "has no calibration, so this is left out" in (tmp_path / "exported" / "README.md").read_text(
        "utf-8"
    )
    again = model_card(adapters.recalibrated(exported, task))
    assert "Probabilities are calibrated" in again
    assert "left out" not in again
    for name, value in exported.tensors().items():
        assert torch.equal(value, adapters.load(tmp_path / "own").tensors()[name])
    ids = {"input_ids": torch.tensor([[1, 7, 8, 2]])}
    assert torch.equal(loaded(tmp_path / "exported")(**ids).logits, loaded(tmp_path / "own")(**ids).logits)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", -2.0),
        ("thresholds", [0.5]),
        ("thresholds", 0.5),
        ("thresholds", [0.5, 0.5, 1.0]),
        ("thresholds", ["0.5", 0.5, 0.5]),
    ],
)
def test_a_corrupted_field_is_refused_by_name(home: Path, field: str, value: Any) -> None:
    from ptuning.adapters.seal import sealed

    file = home / "many" / "ptuning.json"
    content = json.loads(file.read_text("utf-8"))
    content["task"][field] = value
    del content["sha256_self"]
    file.write_bytes(sealed(content))
    with pytest.raises(AdapterError, match=field):
        adapters.load(home / "many")


def test_no_probability_is_lost_in_rounding() -> None:
    """A temperature near its bounds gives probabilities that are numbers."""
    task = Task(problem_type="single_label_classification", labels=("a", "b"), temperature=0.05)
    chances = [chance for _, chance in task.kind.answer([800.0, -800.0], task).probabilities]
    assert chances == [1.0, 0.0]
    several = Task(problem_type="multi_label_classification", labels=("a", "b"), temperature=0.05)
    assert all(math.isfinite(c) for _, c in several.kind.answer([800.0, -800.0], several).probabilities)
