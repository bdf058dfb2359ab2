"""The benchmarks of input prompts: the plan, the tables, and that what is there is not run again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield import_module
    for name in ("input_prompts", "guide"):
        sys.modules.pop(name, None)


def measured(placement: str, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        **{"backbone": "demo", "data": "sst2-100", "encoder": "mlp", "placement": placement, "seed": seed},
        "metrics": {"test": {"accuracy": accuracy}, "validation": {"accuracy": 0.1}},
    }


def test_the_plan_has_each_run_once_and_the_first_seeds_first(benchmarks: Any) -> None:
    module = benchmarks("input_prompts")
    runs = list(module.plan(["demo"], ["sst2-100"], list(module.ENCODERS), module.PLACEMENTS, [0, 1]))
    assert len(runs) == len(set(runs)) == 2 * 2 * len(module.ENCODERS)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_every_encoder_is_one_that_train_takes(benchmarks: Any) -> None:
    from ptuning.model.config import prompt_from_dict

    for encoder in benchmarks("input_prompts").ENCODERS.values():
        prompt_from_dict({"depth": "input", "encoder": dict(encoder)})


def test_the_table_has_test_figures_by_placement(benchmarks: Any) -> None:
    module = benchmarks("input_prompts")
    study = {
        "method": "input-residual",
        "dataset": "mrpc",
        "seed": 0,
        "setting": {
            "backbone": "demo",
            "prompt": {"depth": "input", "placement": "between", "encoder": {"kind": "residual"}},
        },
        "metrics": {"test": {"accuracy": 0.7}},
    }
    records = [measured("start", 0, 0.6), measured("start", 1, 0.8), measured("front", 0, 0.9)]
    header, rows = module.table(
        lambda *given: given, [*module.of_study([study, {**study, "method": "full"}]), *records]
    )
    assert header[3:] == ("`start`", "`front`", "`between`")
    assert rows == [
        ("MiniLM", "MRPC", "residual", "–", "–", "0.700 (1)"),
        ("MiniLM", "SST-2, 100 rows per class", "mlp", "0.700 ± 0.141 (2)", "0.900 (1)", "–"),
    ]


def test_a_run_that_is_there_is_not_run_again(
    benchmarks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, ran = benchmarks("input_prompts"), []

    def do(run: Any) -> dict[str, Any]:
        ran.append(run)
        return {**measured(run.placement, run.seed, 0.5), "encoder": run.encoder, "cpu_seconds": 1.0}

    monkeypatch.setattr(module, "do", do)
    words = ["--results", str(tmp_path / "found.jsonl"), "--encoders", "mlp"]
    module.main([*words, "--seeds", "0"])
    module.main([*words, "--seeds", "0", "1"])
    assert [(run.placement, run.seed) for run in ran] == [
        (placement, seed) for seed in (0, 1) for placement in ("start", "front")
    ]


def test_the_guides_table_has_a_constant_answer_and_each_way(benchmarks: Any) -> None:
    module = benchmarks("guide")
    record = {
        **{"way": "PEFT", "data": "mrpc", "options": {}, "constant": {"accuracy": 0.6, "f1": 0.75}},
        "test": {"accuracy": 0.7, "f1": 0.8, "loss": 0.5},
    }
    tried = {**record, "options": {"prompt_rate_scale": 60}}
    _, rows = module.table(lambda *given: given, [record, {**record, "way": "ptuning.peft"}, tried])
    assert rows == [
        ("MRPC", "a constant answer", "0.600", "0.750", ""),
        ("MRPC", "PEFT (1)", "0.700", "0.800", "0.500"),
        ("MRPC", "ptuning.peft (1)", "0.700", "0.800", "0.500"),
    ]


def test_the_committed_results_are_lines_of_runs(benchmarks: Any) -> None:
    module = benchmarks("guide")
    for line in module.RESULTS.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["way"] in module.WAYS
