"""The benchmark of warm starts: which rows a run reads, and its table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import warm_start

    yield warm_start
    sys.modules.pop("warm_start")


def texts(rows: list[dict[str, Any]]) -> set[str]:
    return {row["text"] for row in rows}


@pytest.mark.parametrize("rows", [4, 16])
def test_a_new_class_is_unknown_to_the_adapter_and_all_rows_are_apart(benchmark: Any, rows: int) -> None:
    for seed in range(6):
        found = benchmark.splits_of(benchmark.Run(case="class", arm="warm", rows=rows, seed=seed))
        new = benchmark.held_out(seed)
        assert new not in {row["label"] for row in found["old"]}
        assert sum(row["label"] == new for row in found["train"]) == benchmark.NEW_ROWS
        assert len(found["train"]) == benchmark.NEW_ROWS + 5 * rows
        assert not texts(found["old"]) & texts(found["train"])
        assert not (texts(found["old"]) | texts(found["train"])) & (
            texts(found["test"]) | texts(found["validation"])
        )
    assert len({benchmark.held_out(seed) for seed in range(6)}) == 6


def test_new_rows_are_apart_from_old_and_from_judged_ones(benchmark: Any, data_root: Path) -> None:
    for case in ("sst2", "mrpc"):
        run = benchmark.Run(case=case, arm="warm", rows=16, seed=1, development=True)
        found = benchmark.splits_of(run)
        assert [len(found[name]) for name in ("train", "validation")] == [32, 32]
        seen = [{str(row) for row in found[name]} for name in ("train", "old", "test", "validation")]
        assert sum(map(len, seen)) == len(set().union(*seen))


def test_the_plan_has_each_run_once_and_the_first_seeds_first(benchmark: Any) -> None:
    runs = list(benchmark.plan(["sst2", "mrpc", "class"], [0, 1], [16, 100]))
    assert len(runs) == len({str(run) for run in runs})
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert {run.arm for run in runs if run.case == "mrpc"} == {"cold", "warm"}


def test_the_table_has_means_and_deviations(benchmark: Any) -> None:
    def record(seed: int, accuracy: float) -> dict[str, Any]:
        return {
            "case": "sst2",
            "rows": 16,
            "arm": "warm",
            "options": {},
            "seed": seed,
            "test": {"accuracy": accuracy},
        }

    assert "| sst2 | 16 | warm | 2 | 75.0 ± 7.1 |" in benchmark.table([record(0, 0.7), record(1, 0.8)])
