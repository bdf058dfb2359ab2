"""The benchmarks of serving: their arithmetic, a slice of them on a tiny backbone, the committed results."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from conftest import WORDS

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from serving import (
    against_infinity,
    figures,
    generator,
    in_process,
    over_http,
    peft_switching,
    report,
    servers,
)
from serving import load as loads
from serving.__main__ import PARTS, keep
from serving.generator import Answer, Request
from serving.lab import Lab
from serving.load import Load
from serving.names import drawn, name_of
from serving.plan import Plan

ROOT = Path(__file__).parent.parent
TEXTS = tuple(f"{a} {b} {c}" for a in WORDS[:4] for b in WORDS[14:20] for c in WORDS[20:22])
SMALL = Plan(
    rounds=1, rows=32, seconds=0.5, warm=0.1, tasks=(1, 2, 4), kinds=3, processes=2, starts=1, tuned_rows=32
)


@pytest.fixture
def lab(tiny_folder: Path, tmp_path: Path) -> Lab:
    return Lab(SMALL, tmp_path, str(tiny_folder), TEXTS)


# ---------------------------------------------------------------------------------- arithmetic


def test_tasks_are_drawn_evenly_or_zipf_like() -> None:
    even, zipf = (Counter(drawn(10, 20_000, draw)) for draw in ("uniform", "zipf"))  # type: ignore[arg-type]
    assert set(even) == set(zipf) == {name_of(number) for number in range(10)}
    assert all(count == pytest.approx(2000, rel=0.15) for count in even.values())
    for number in (1, 3, 9):
        assert zipf[name_of(0)] / zipf[name_of(number)] == pytest.approx(number + 1, rel=0.2)
    assert drawn(10, 5, "zipf", seed=1) == drawn(10, 5, "zipf", seed=1) != drawn(10, 5, "zipf", seed=2)


def test_sides_alternate_and_are_compared_round_by_round() -> None:
    order: list[str] = []
    rates = {"one": iter((100.0, 50.0, 80.0)), "many": iter((90.0, 50.0, 40.0))}

    def side(name: str) -> figures.Side:
        def measured(number: int) -> dict[str, Any]:
            order.append(f"{name} {number}")
            return {"rate": next(rates[name])}

        return measured

    rounds = figures.alternating({"one": side("one"), "many": side("many")}, 3)
    assert order == ["one 0", "many 0", "many 1", "one 1", "one 2", "many 2"]
    found = figures.compared(rounds, {"many": "one"})
    assert found["one"] == {"rate": {"median": 80.0, "range": [50.0, 100.0]}}
    assert found["many"]["ratio"] == {"median": 0.9, "range": [0.5, 1.0]}


def load(**others: Any) -> Load:
    return Load(urls=("http://x",), texts="", route="rows", **others)


def test_a_closed_loop_counts_the_answers_within_its_time() -> None:
    answers = [Answer(at, at, at + 0.2, 200) for at in (0.0, 0.9, 1.0, 2.0, 2.9)] + [Answer(1, 1, 1.5, 429)]
    found = generator.summary(answers, load(rows=32), 1.0, 3.0, 0.25)
    assert found["codes"] == {"200": 3, "429": 1}
    assert (found["requests_per_second"], found["rows_per_second"]) == (1.5, 48.0)
    assert found["milliseconds"]["p99"] == pytest.approx(200)


def test_an_open_loop_counts_latency_from_the_intended_time() -> None:
    """A request that is sent late, because the generator or the server was busy, has waited all the same."""
    answers = [Answer(1.0, 1.5, 2.0, 200), Answer(0.5, 0.5, 1.2, 200), Answer(2.9, 2.9, 9.9, 200)]
    found = generator.summary(answers, load(rows=1, rate=5.0), 1.0, 3.0, 0.0)
    assert found["requests"] == 2
    assert found["milliseconds"]["p50"] == pytest.approx(1000)
    assert found["milliseconds"]["max"] == pytest.approx(7000)
    assert found["sent_late_p99"] == pytest.approx(500)


def test_percentiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [generator.percentile(values, part) for part in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert generator.percentile([7.0], 99) == 7.0
    assert generator.percentile([], 50) is None


def test_requests_of_each_route(tmp_path: Path) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(["good", "bad"]))
    common: dict[str, Any] = {"texts": str(texts), "urls": ("http://a", "http://b"), "rows": 3, "tasks": 4}

    def first(**others: Any) -> tuple[Request, Any]:
        request = generator.requests(Load(**common, **others))[0]
        return request, json.loads(request.body)

    request, body = first(route="rows")
    assert request.url.endswith("/v1/rows")
    assert [row["text"] in ("good", "bad") for row in body["rows"]] == [True] * 3
    request, body = first(route="classify")
    number = int(body["model"][-4:])
    assert request.url == f"{common['urls'][number % 2]}/classify"
    assert len(body["input"]) == 3
    assert first(route="classify", model="one")[1]["model"] == "one"
    request, body = first(route="task")
    assert re.fullmatch(r"http://[ab]/tasks/task-000\d", request.url)
    assert len(body["inputs"]) == 3


def test_a_part_replaces_its_own_figures_alone(tmp_path: Path) -> None:
    results = tmp_path / "serving.json"
    for name, value in (("http", 1), ("in-process", 2), ("http", 3)):
        keep(results, name, {"figures": value})
    found = json.loads(results.read_text())["parts"]
    assert list(found.items()) == [("in-process", {"figures": 2}), ("http", {"figures": 3})]


def test_infinity_is_compared_in_the_same_precision_and_in_its_fastest() -> None:
    rates = {
        "ptuning fp32, 1,000 tasks, 1 row a request": 50.0,
        "ptuning fp32, 1,000 tasks, 32 rows a request": 90.0,
        **{"infinity float32, 32 rows a request": 100.0, "infinity int8, 32 rows a request": 180.0},
        **{"infinity float32, 1 row a request": 25.0, "infinity int8, 1 row a request": 20.0},
    }
    found = against_infinity.beside([{name: {"rate": rate} for name, rate in rates.items()}])
    many, few = (found[f"ptuning fp32, 1,000 tasks, {words} a request"] for words in ("32 rows", "1 row"))
    assert (many["reference"], many["ratio"]["median"]) == ("infinity float32, 32 rows a request", 0.9)
    assert many["beside_its_best"]["reference"] == "infinity int8, 32 rows a request"
    assert many["beside_its_best"]["ratio"]["median"] == 0.5
    assert few["reference"] == few["beside_its_best"]["reference"] == "infinity float32, 1 row a request"


def test_results_become_tables() -> None:
    spread = {"median": 2.0, "range": [1.0, 3.0]}
    sides = {"one": {"rate": spread}, "many": {"rate": spread, "ratio": spread, "reference": "one"}}
    switched = {"PEFT": {"rate": spread, "ptuning_times_faster": spread, "reference": "many"}}
    late = {"offered_per_second": 5.0, "p50": spread, "p95": spread, "p99": None, "answered": 0.5}
    parts = {
        "in-process": {"figures": {"mrpc bf16": {"sides": sides}}},
        "peft": {"figures": {"bf16": {"sides": switched}}},
        "open-loop": {"figures": {"latencies": {"ptuning": late}}},
        "startup": {"figures": {"1 adapter": {"seconds_to_ready": spread, "resident_mib": spread}}},
    }
    text = report.tables(parts)
    assert "| many | 2 (1 to 3) | 2 (1 to 3) of *one* |" in text
    assert "| PEFT | 2 (1 to 3) | ptuning is 2 (1 to 3) × faster |" in text
    assert "| ptuning | 5 | 2 (1 to 3) | 2 (1 to 3) |  | 50.0 % |" in text
    assert "| 1 adapter | 2 (1 to 3) | 2 (1 to 3) |" in text


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_a_module(name: str) -> None:
    assert callable(importlib.import_module(f"serving.{PARTS[name]}").measure)


# ------------------------------------------------------------------------------------- slices


def test_the_load_generator_keeps_its_rate(tmp_path: Path) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(["good"]))
    with servers.trivial() as server:
        common = Load(urls=(server.url,), texts=str(texts), route="classify", rows=1, seconds=1.0, warm=0.1)
        closed = loads.run(common)
        opened = loads.run(Load(**{**vars(common), "rate": 40.0}))
    assert set(closed["codes"]) == set(opened["codes"]) == {"200"}
    assert closed["requests_per_second"] > opened["requests_per_second"]
    assert 15 < opened["requests"] < 80
    assert 0 < opened["milliseconds"]["p50"] <= opened["milliseconds"]["p99"]


def test_a_cell_in_process(lab: Lab) -> None:
    found = in_process.cell(lab, "mrpc", "fp32")
    sides = found["sides"]
    assert all(side["rate"]["median"] > 0 for side in sides.values())
    assert {side.get("reference") for side in sides.values()} == {None, in_process.ONE, in_process.OWN}
    assert found["table_mib"]["4 like tasks"] > 0


# PEFT asks for what transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", peft_switching.CONFIGS)
def test_peft_answers_every_row_with_the_active_adapter(lab: Lab, kind: str) -> None:
    found = peft_switching.adapter_names(lab, kind)
    assert found["rows"] == found["answered_by_the_active_adapter"] == 4
    assert found["answered_by_their_own_adapter"] == 2


@pytest.mark.slow
def test_a_slice_over_http(lab: Lab) -> None:
    found = over_http.measure(lab)
    (first,) = found["rounds"]
    asked = {name: side for name, side in first.items() if name.startswith("POST")}
    assert len(asked) == 3
    assert all(set(side["codes"]) == {"200"} for side in asked.values()), asked
    assert found["server_memory_mib"]["rss"] > 0


# ---------------------------------------------------------------------------- committed results


def test_the_committed_results_are_complete() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text())
    assert list(found["parts"]) == list(PARTS)
    for name, part in found["parts"].items():
        assert "quick" not in part, name
        assert part["command"].startswith("python -m serving"), name
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", part["date"]), name
        assert part["machine"]["cores"] > 0, name
        assert part["figures"], name
    for sides in _sides(found["parts"]):
        for name, side in sides.items():
            low, high = side["rate"]["range"]
            assert 0 < low <= side["rate"]["median"] <= high, name


def _sides(found: Any) -> list[dict[str, Any]]:
    if not isinstance(found, dict):
        return []
    return [each for name, value in found.items() for each in ([value] if name == "sides" else _sides(value))]


def test_the_committed_soak_held() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "serving-soak.json").read_text())
    assert found["checked"] > 10_000
    assert (found["wrong"], found["faults"], found["server_errors"]) == (0, 0, {})
    assert found["outdated_at_the_end"] == []
    assert found["control"]["told_apart"] > 0.9 * found["control"]["compared"] > 0
    assert found["exit_code"] == 0
