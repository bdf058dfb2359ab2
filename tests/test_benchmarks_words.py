"""The benchmark of the words behind a text: each way of reading is measured once, and shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from language_models import language_model

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import words

    yield words
    sys.modules.pop("words")


@pytest.mark.parametrize("pair", [False, True])
def test_each_way_of_reading_is_measured(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: bool
) -> None:
    language_model(tmp_path / "llama", "llama")
    monkeypatch.setenv("PTUNING_DATA", str(tmp_path))
    name, source = ("mrpc", "mrpc") if pair else ("sst2", "sst2")
    (tmp_path / source).mkdir()
    words = {0: "dull and bad", 1: "great and moving"}
    rows = [
        {"sentence1": words[i % 2], "sentence2": words[i // 2 % 2], "label": int(i % 2 == i // 2 % 2)}
        if pair
        else {"sentence": f"It was {words[i % 2]}", "label": i % 2}
        for i in range(80)
    ]
    for split in ("train", "validation", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / source / f"{split}.jsonl").write_text(text)
    # The tiny tokenizer does not know the letters of all words.
    ways = [way for way in (benchmark.PAIRS if pair else benchmark.SINGLE) if "This" not in str(way.template)]
    monkeypatch.setattr(benchmark, "PAIRS" if pair else "SINGLE", ways)
    found = benchmark.shares(str(tmp_path / "llama"), benchmark.DATA[name])
    assert [(each["pooling"], each["template"]) for each in found] == list(ways)
    best = max(each["explained"] for each in found)
    assert best > 0.9  # equal words are easily told from others
    assert all(0 <= each["explained"] <= 1 for each in found)


def test_the_tables_have_the_last_result_of_each_data_set(benchmark: Any) -> None:
    def record(data: str, ways: Any, value: float) -> dict[str, Any]:
        return {"data": data, "shares": [{**way._asdict(), "explained": value} for way in ways]}

    def shown(header: Any, rows: Any) -> str:
        return str([header, rows])

    records = [
        record("sst2", benchmark.SINGLE, 0.1),
        record("sst2", benchmark.SINGLE, 0.2),
        record("stsb", benchmark.PAIRS, 0.5),
    ]
    single, pairs = benchmark.table(shown, records).split("\n\n")
    assert "SST-2, 200 rows" in single
    assert single.count("'0.200'") == len(benchmark.SINGLE)
    assert pairs.count("'0.500'") == len(benchmark.PAIRS)
    assert pairs.count("each text for itself") == 5
    assert benchmark.table(shown, []) == "Not run yet."
