"""The faults of ``make mutations``: each can still be planted, and the committed result has each as found."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import mutations

FAULTS = mutations.faults()


def test_every_fault_can_be_planted() -> None:
    """Its text occurs once. If this fails, the source has changed: adapt ``benchmarks/faults.toml``."""
    assert [fault.title for fault in FAULTS if mutations.occurrences(fault) != 1] == []
    assert [fault.title for fault in FAULTS if fault.old == fault.new] == []
    assert [title for title, count in Counter(fault.title for fault in FAULTS).items() if count > 1] == []
    for node in mutations.nodes_of(FAULTS):
        file, _, test = node.partition("::")
        assert f"def {test}" in (mutations.ROOT / file).read_text(encoding="utf-8"), node


def test_every_fault_was_found() -> None:
    record = json.loads(mutations.RESULTS.read_text(encoding="utf-8"))
    assert sorted({fault.title for fault in FAULTS} ^ record["by"].keys()) == [], "run make mutations again"
    assert [title for title, test in record["by"].items() if test is None] == []
    assert record["faults"] == record["found"] == len(FAULTS)


def test_a_fault_is_planted_in_a_copy_alone(tmp_path: Path) -> None:
    mutations.copy_project(tmp_path / "copy")
    fault = FAULTS[0]
    copied = tmp_path / "copy" / mutations.PACKAGE / fault.file
    assert fault.old in copied.read_text(encoding="utf-8")
    assert mutations.occurrences(fault, tmp_path / "copy") == 1
    assert mutations.occurrences(fault._replace(file="model/gone.py")) == 0
