"""A short soak: mixed load, reloads, deletions, bad bodies, dropped connections; each answer is checked."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from conftest import WORDS
from ptuning.inference.mixed import MultiPredictor
from ptuning.model import PTuningModel, TaskTable

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from serving.lab import Lab
from serving.plan import QUICK
from serving.soak import Soak, grown, measure
from serving.soak_oracle import Oracle, Said

TEXTS = tuple(f"{a} {b} {c}" for a in WORDS[:4] for b in WORDS[14:20] for c in WORDS[20:22])


@pytest.fixture
def lab(tiny_folder: Path, tmp_path: Path) -> Lab:
    return Lab(QUICK, tmp_path, str(tiny_folder), TEXTS)


@pytest.mark.slow
def test_a_short_soak(lab: Lab) -> None:
    soak = Soak(seconds=12, tasks=8, clients=6, pause=0.05, change=0.3, texts=20)
    found = measure(lab, soak)
    assert (found["wrong"], found["faults"], found["server_errors"]) == (0, 0, {}), found
    assert found["outdated_at_the_end"] == []
    assert found["exit_code"] == 0
    assert found["checked"] > 100
    asked = {kind.rpartition(" ")[0] for kind in found["requests"]}
    protocols = {"rows", "lines", "hugging face", "text-embeddings-inference", "infinity", "vllm"}
    assert protocols | {"open inference", "reads", "bad"} <= asked
    assert found["requests"]["killed"] > 0
    assert found["control"]["compared"] == found["control"]["told_apart"] > 0


@pytest.fixture
def oracle(lab: Lab) -> Oracle:
    made = Oracle(lab.backbone("fp32"), lab.tokenizer)
    for task, seed in (("a", 1), ("a", 2), ("b", 3)):
        made.publish(task, seed, f"digest-{seed}")
    return made


def answer(lab: Lab, oracle: Oracle, task: str, seed: int) -> Said:
    backbone = lab.backbone("fp32")
    table = TaskTable(backbone)
    tokenizer = AutoTokenizer.from_pretrained(lab.model)
    table.put("x", PTuningModel.from_adapter(oracle.adapter(task, seed), backbone, tokenizer=tokenizer))
    (found,) = MultiPredictor(table, tokenizer).predict([TEXTS[0]], ["x"])
    scores = {str(name): value for name, value in found.probabilities}
    return Said("rows", task, f"digest-{seed}", TEXTS[0], scores)


def test_right_answers_pass_with_their_digest_or_without_one(lab: Lab, oracle: Oracle) -> None:
    right = answer(lab, oracle, "a", 2)
    oracle.check([right, replace(right, digest="")])
    assert (oracle.wrong, oracle.checked, oracle.unnamed) == ([], 2, 1)


@pytest.mark.parametrize(
    "fault",
    [
        {"digest": "digest-1"},  # the version before
        {"digest": "digest-3"},  # another task's
        {"digest": "unknown"},
        {"task": "b", "digest": "digest-3"},  # the neighbour's answer
        {"text": TEXTS[1]},  # another row's
        {"scores": {"a-no": 0.5, "a-yes": 0.5}},
    ],
)
def test_a_planted_fault_is_found(lab: Lab, oracle: Oracle, fault: dict[str, Any]) -> None:
    oracle.check([replace(answer(lab, oracle, "a", 2), **fault)])
    assert len(oracle.wrong) == 1


def test_the_slope_of_the_memory_leaves_out_the_beginning() -> None:
    samples = [
        {
            "seconds": float(at),
            "rss_mib": 100.0 + (0.1 * at if at >= 20 else 5 * at),
            "files": 9,
            "threads": 4,
        }
        for at in range(101)
    ]
    found = grown(samples)
    assert found["rss_mib_per_hour"] == pytest.approx(0.1 * 3600, rel=0.05)
    assert found["files"] == {"first": 9, "settled": 9, "last": 9}
