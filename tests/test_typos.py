"""What a wrong name may have meant."""

from __future__ import annotations

import pytest

from ptuning.typos import LONGEST, one_typo_away

KNOWN = {"spam", "task-3", "x"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(
            (wrong, "spam")
            for wrong in ("sam", "pam", "spa", "spaam", "spams", "aspam", "spem", "Spam", "psam")
        ),
        ("task_3", "task-3"),
        ("", "x"),
        ("spma-", None),
        ("something else", None),
        ("y" * 10_000, None),
    ],
)
def test_one_typo(name: str, meant: str | None) -> None:
    assert one_typo_away(name, KNOWN.__contains__) == meant


def test_the_work_has_a_bound() -> None:
    looked: list[str] = []
    for length in (LONGEST, LONGEST + 1, 100_000):
        one_typo_away("a" * length, lambda name: bool(looked.append(name)))
    assert len(looked) < 6_000
