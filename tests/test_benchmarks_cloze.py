"""The benchmark of cloze heads: which rows a run reads, its plan and its table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cloze

    yield cloze
    sys.modules.pop("cloze")


@pytest.mark.parametrize("data", ["sst2", "mrpc"])
def test_the_rows_of_a_run_are_apart(benchmark: Any, data_root: Path, data: str) -> None:
    for development in (False, True):
        run = benchmark.Run(data=data, method="linear", rows=16, seed=1, development=development)
        found = benchmark.splits_of(run)
        assert [len(found[name]) for name in ("train", "validation")] == [32, 32]
        seen = [{str(row) for row in rows} for rows in found.values()]
        assert sum(map(len, seen)) == len(set().union(*seen))


def test_the_plan_has_each_run_once_and_few_rows_first(benchmark: Any) -> None:
    runs = list(benchmark.plan(["sst2", "mrpc"], [16, 100], [0, 1]))
    assert len(runs) == len({str(run) for run in runs}) == 2 + 2 * 2 * 2 * 4
    assert [run.rows for run in runs] == sorted(run.rows for run in runs)


def test_the_table_has_means_and_what_learned_nothing_in_each_column(benchmark: Any) -> None:
    def record(method: str, rows: int, seed: int, accuracy: float) -> dict[str, Any]:
        return {
            **{"data": "sst2", "method": method, "rows": rows, "seed": seed, "options": {}},
            "test": {"accuracy": accuracy},
        }

    records = [record("linear", 16, 0, 0.6), record("linear", 16, 1, 0.8), record("linear", 100, 0, 0.9)]
    header, rows = benchmark.table(lambda *given: given, [record("zero-shot", 16, 0, 0.75), *records])
    assert header == ("method", "SST-2, 16 rows per class", "SST-2, 100 rows per class")
    assert [row[1:] for row in rows] == [("0.750 (1)", "0.750 (1)"), ("0.700 ± 0.141 (2)", "0.900 (1)")]
