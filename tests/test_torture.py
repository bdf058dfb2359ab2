"""The torture campaigns: a slice of each holds, and each finds a fault that is planted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

CAMPAIGNS = (
    *("kill", "adapter", "resume", "numbers", "files", "disk", "signals", "stream", "backbones", "text"),
    "threads",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the campaigns fork"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a trial of every line came to, sound and with a fault planted: by campaign.

    In a program of its own, because a fork of this process, whose threads it would copy asleep, may hang.
    """
    results = tmp_path_factory.mktemp("torture") / "found.json"
    places = [ROOT / "src", ROOT / "benchmarks", ROOT / "tests"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "planted.py", "1", results],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    loaded: dict[str, Any] = json.loads(results.read_text())
    return loaded


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_slice_of_a_campaign_holds(name: str, found: dict[str, Any]) -> None:
    lines = found[name]["sound"]
    assert lines
    assert [failure for line in lines for failure in line["failures"]] == []
    assert all(line["held"] == line["trials"] > 0 for line in lines)


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_planted_fault_is_found(name: str, found: dict[str, Any]) -> None:
    (line,) = found[name]["planted"]
    assert line["held"] < line["trials"]
    assert all(failure["trial"] and failure["why"] for failure in line["failures"])


# ---------------------------------------------------------------------------------- the frame


def test_a_trial_that_hangs_dies_or_fails_is_a_figure_and_the_others_go_on(tmp_path: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from torture.trials import Line, NotHeld, Trial, run

def fails(place):
    raise NotHeld(f"seen in {place}")

works = [lambda place: None, fails, lambda place: time.sleep(60), lambda place: os._exit(3),
         lambda place: 1 / 0, lambda place: (place / "x").write_text("left"),
         lambda place: len(list(place.iterdir())) and 1 / 0]
line = Line("works", [Trial(str(n), work) for n, work in enumerate(works)], limit=1.5)
found = run("frame", line, Path(sys.argv[1]), 2)
for trial, why in sorted(found.failures, key=lambda each: each[0].name):
    print(trial.name, why)
print(found)
"""
    places = [ROOT / "src", ROOT / "benchmarks"]
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "scratch"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[:-1] == [
        "1 seen in TRIAL",
        "2 hangs: not done after 2 s",
        "3 the process died (exit 3)",
        "4 ZeroDivisionError: division by zero",
    ]
    assert done.stdout.splitlines()[-1].startswith("frame, works: 3 of 7 held")
    assert not list((tmp_path / "scratch").iterdir())


def test_everything_follows_from_the_seed() -> None:
    from torture.damage import CHANGES, changed
    from torture.trials import Draw, Trial, sample

    data = bytes(range(200))
    one, other = ([changed(data, Draw(seed).random("x", i)) for i in range(50)] for seed in (3, 3))
    assert one == other != [changed(data, Draw(4).random("x", i)) for i in range(50)]
    assert all(new != data for new, _, _ in one)
    assert {changed(data, Draw(0).random(kind), [kind])[1].split()[0] for kind in CHANGES}
    trials = [Trial(str(n), lambda place: None) for n in range(100)]
    assert sample(trials, 5, "a") == sample(trials, 5, "a") != sample(trials, 5, "b")
    assert sample(trials, None, "a") == trials


def test_of_failures_that_look_alike_the_smallest_is_kept() -> None:
    from torture.trials import Found, Trial

    def nothing(place: Path) -> None: ...

    found = Found("kill", "line", 10)
    found.failures = [(Trial(f"t{n}", nothing, size=9 - n), f"byte {n} of 'x{n}'") for n in range(4)]
    found.failures.append((Trial("other", nothing), "another reason"))
    assert found.to_dict()["failures"] == [
        {"trial": "t3", "why": "byte 3 of 'x3'", "alike": 4},
        {"trial": "other", "why": "another reason", "alike": 1},
    ]
    assert str(found) == "kill, line: 5 of 10 held (0 s)"


def test_the_result_says_what_was_run() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "torture.json").read_text())
    assert {line["campaign"] for line in result["lines"]} == set(CAMPAIGNS)
    assert result["held"] == result["trials"] == sum(line["trials"] for line in result["lines"]) > 500
    assert result["machine"]["versions"]
    assert "/tmp" not in json.dumps(result)
