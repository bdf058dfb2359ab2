"""What the default recipe was tried with, by ptuning itself: no test rows, nothing twice, all told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from test_docs import table

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import quality_records
import recipe_runs
import recipe_tables
from recipe_prototype import METRICS

RESULTS = quality_records.read(recipe_runs.RESULTS)


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
