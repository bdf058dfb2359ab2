"""What was tried for the default recipe: no test rows, no run repeated, every result in the tables."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from test_docs import table

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import recipe_runs
import recipe_tables
from quality.records import read
from recipe_data import METRICS, TRIALS, Trial

RESULTS = read(recipe_runs.RESULTS)
TRIED = read(TRIALS)


@pytest.fixture
def data(tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of pairs without test rows: a run that looked for them would fail."""
    root = tmp_path / "data"
    (root / "stsb").mkdir(parents=True)
    for split, count in (("train", 40), ("validation", 12)):
        made = [
            {"sentence1": row["text"], "sentence2": "the film", "label": n % 6 - 0.5}
            for n, row in enumerate(rows(count, seed=count))
        ]
        text = "".join(json.dumps(row) + "\n" for row in made)
        (root / "stsb" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PTUNING_DATA", str(root))
    return root


@pytest.mark.usefixtures("data")
@pytest.mark.usefixtures("any_features")
def test_a_run_says_what_was_given_what_was_used_and_what_came_of_it(tiny_folder: Path) -> None:
    options = {"fit.seed": 1, "fit.epochs": 2, "prompt.pooling": "mean", "prompt.num_virtual_tokens": 3}
    options |= {"prompt.encoder.kind": "mlp", "prompt.encoder.width": 8}
    record = recipe_runs.run("stsb-6", {**options, "backbone": str(tiny_folder)})
    assert record["used"] == {
        "prompt.pooling": "mean", "prompt.num_virtual_units": 0, "prompt.num_queries": 0,
        "fit.epochs": 2, "fit.prompt_rate": 0.06,
        "fit.head_rate": 0.01, "fit.backbone_dropout": False,
    }  # fmt: skip
    assert record["rows"] == {"train": 12, "development": 12}
    assert [each["epoch"] for each in record["history"]] == [1, 2]
    assert {"pearson", "loss"} <= set(record["history"][0])
    assert json.loads(json.dumps(record)) == record
    also = "prompt.num_virtual_tokens 3, prompt.encoder.kind mlp, prompt.encoder.width 8"
    assert f"| {also}, backbone {tiny_folder} | 1 |" in recipe_tables.runs(table, [record])
    again = recipe_runs.run("stsb-6", {**options, "backbone": str(tiny_folder)})
    assert again["history"] == record["history"]


def test_what_is_in_the_results_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Any] = []

    def run(data: str, options: dict[str, Any]) -> dict[str, Any]:
        ran.append((data, options))
        return {**RESULTS[0], "data": data, "options": options}

    monkeypatch.setattr(recipe_runs, "run", run)
    words = ["--results", str(tmp_path / "results.jsonl")]
    recipe_runs.main([*words, "--set", "data=mrpc-16", "fit.seed=0,1", "prompt.pooling=mean"])
    recipe_runs.main([*words, "--set", "data=mrpc-16", "fit.seed=1,2", "prompt.pooling=mean"])
    assert ran == [("mrpc-16", {"fit.seed": n, "prompt.pooling": "mean"}) for n in (0, 1, 2)]
    recipe_runs.main(words)
    assert [line.partition(" prompt")[0] for line in capsys.readouterr().out.splitlines()[-3:]] == [
        f"mrpc-16 fit.seed={n}" for n in (0, 1, 2)
    ]
    for wrong, told in ((["fit.seed=0"], "data is None"), (["data=rte"], "expected one of mrpc, stsb, sst2")):
        with pytest.raises(SystemExit):
            recipe_runs.main([*words, "--set", *wrong])
        assert told in capsys.readouterr().err


def test_every_line_of_the_results_is_in_the_table() -> None:
    assert RESULTS
    rendered = recipe_tables.runs(table, RESULTS)
    assert rendered.count("\n| ") == len(RESULTS) + 1  # and the rule below the header
    asked = [(record["data"], tuple(record["options"].items())) for record in RESULTS]
    assert len(set(asked)) == len(asked)
    for record in RESULTS:
        assert record["metric"] == METRICS[record["data"].partition("-")[0]]
        assert f"{record['history'][-1][record['metric']]:.4f}" in rendered
        assert record["machine"]["threads"] == 1


def test_every_line_of_the_results_is_a_trial_and_what_it_found() -> None:
    assert TRIED
    trials = [Trial(**record["trial"]) for record in TRIED]
    assert len(set(trials)) == len(trials)
    for trial, record in zip(trials, TRIED, strict=True):
        assert asdict(trial) == asdict(Trial()) | record["trial"]
        last = record["history"][-1]
        assert last["epoch"] == trial.epochs
        assert record["last"] == {name: last[name] for name in (trial.metric, "loss")}
        assert record["average"] == last.get("average")
        assert (record["average"] is None) == (trial.average == 0)
        assert record["machine"]["threads"] == 1


def test_tables_tell_every_training_once() -> None:
    record = {**TRIED[0], "average": None, "last": {"accuracy": 0.8, "loss": 0.5}}
    base = Trial(data="sst2-100")

    def line(accuracy: float, **switches: Any) -> dict[str, Any]:
        trial = replace(base, **switches)
        average = {"accuracy": 0.9, "loss": 0.4} if trial.average else None
        last = {"accuracy": accuracy, "loss": 0.5}
        return {**record, "trial": asdict(trial), "last": last, "average": average}

    records = [
        *(line(0.7), line(0.7, looks=1, average=0.9), line(0.75, rate=0.02), line(0.6, seed=1)),
        line(0.65, seed=1, rate=0.02),
    ]
    shown = recipe_tables.tables(table, records)
    assert "| nothing | 0 | 0.7000 |  | 0.500 | 0.9000 | 0.400 |" in shown
    assert "| rate 0.02 | 0 | 0.7500 | +0.0500 | 0.500 |  |  |" in shown
    assert "| rate 0.02 | 1 | 0.6500 | +0.0500 | 0.500 |  |  |" in shown
    assert shown.count("| 0.500 |") == 4
    for each in fields(Trial):  # every switch can be told
        value = {"init": "words", "pooling": "mean", "schedule": "cosine"}.get(each.name, 3)
        if each.name not in ("data", "seed", "looks"):
            assert len(recipe_tables.changes(replace(base, **{each.name: value}), base)) == 1, each.name
