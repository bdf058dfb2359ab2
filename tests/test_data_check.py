"""The report of check-data: facts, and findings with their rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas
import pytest

from ptuning.data import (
    Baseline,
    Columns,
    Example,
    LabelCount,
    Lengths,
    Origin,
    Problem,
    Report,
    check,
    load_examples,
)
from ptuning.data.places import Note
from ptuning.errors import DataError


def rows(*labelled: tuple[str, Any]) -> list[Example]:
    origin = Origin(name="a.csv", unit="line")
    return [
        Example(row=row, text=text, label=label, origin=origin)
        for row, (text, label) in enumerate(labelled, 2)
    ]


def plain(labels: Sequence[Any], word: str = "text") -> list[Example]:
    return rows(*((f"{word} {number}", label) for number, label in enumerate(labels)))


def found(report: Report, text: str) -> tuple[str, str, int, tuple[int, ...]]:
    (finding,) = [finding for finding in report.findings if text in finding.message]
    return finding.level, finding.split, finding.count, finding.rows


GOOD = plain(["a"] * 12 + ["b"] * 8)


def test_good_data_has_no_findings() -> None:
    report = check(
        {"train": GOOD, "test": plain(["a", "b", "b"], "other")}, columns=Columns(text="t", label="l")
    )
    assert report.findings == ()
    assert report.ok
    train, test = report.splits
    assert train.labels == (
        LabelCount(label="a", rows=12, share=0.6),
        LabelCount(label="b", rows=8, share=0.4),
    )
    assert train.baseline == Baseline(kind="majority", answer="a", score=0.6)
    assert test.baseline == Baseline(kind="majority", answer="a", score=1 / 3)
    assert json.loads(json.dumps(report.to_dict()))["splits"][0]["labels"][0] == {
        "label": "a",
        "rows": 12,
        "share": 0.6,
    }
    assert "\n".join(report.lines()).startswith(
        "columns: text = t, label = l\ntask: single_label_classification, one text per row\ntrain: 20 rows\n"
        "  'a': 12 (60.0%)\n  'b': 8 (40.0%)\n  always 'a': accuracy 0.6\n  characters: 6 to 7, median 6"
    )


def test_regression_baseline_is_the_spread() -> None:
    report = check({"train": plain([0.5, 2.5, 1.5, 3.5]), "test": plain([4.0], "other")})
    assert [split.labels for split in report.splits] == [(), ()]
    train, test = (split.baseline for split in report.splits)
    assert train is not None
    assert train.kind == "mean"
    assert train.score == pytest.approx(1.25**0.5)
    assert test == Baseline(kind="mean", answer=2.0, score=2.0)


def test_multi_label_baseline_is_the_most_common_set() -> None:
    report = check({"train": plain([("a", "b"), ("b", "a"), ("a",), ()])})
    assert report.splits[0].baseline == Baseline(kind="majority", answer=["a", "b"], score=0.5)
    assert [label.rows for label in report.splits[0].labels] == [3, 2]


def test_lengths_against_the_limit() -> None:
    report = check({"train": GOOD}, lengths=lambda examples: list(range(1, len(examples) + 1)), limit=18)
    assert report.splits[0].lengths == Lengths(
        unit="tokens", shortest=1, median=10, p90=18, p99=20, longest=20, limit=18, over=2
    )
    assert found(report, "longer than the limit of 18 tokens") == ("warning", "train", 2, (20, 21))
    assert "10.0% of the inputs" in report.findings[0].message
    assert report.lines()[-1].endswith("[2 rows: 20, 21]")


def test_characters_without_a_tokenizer() -> None:
    pair = [Example(row=row, text="ab", text_b="cde" * row, label=str(row)) for row in (1, 2)]
    lengths = check({"train": pair}, limit=1).splits[0].lengths
    assert lengths is not None
    assert (lengths.unit, lengths.shortest, lengths.longest, lengths.over) == ("characters", 5, 8, 0)


def test_repeats_and_conflicts() -> None:
    report = check({"train": [*GOOD, *rows(("x", "a"), ("x", "a"), ("y", "a"), ("y", "b"))]})
    assert found(report, "1 row repeats an earlier one") == ("note", "train", 1, (3,))
    assert found(report, "1 text is in several rows with different labels, 2 rows") == (
        *("warning", "train", 2),
        (4, 5),
    )


def test_pairs_repeat_only_as_pairs() -> None:
    pairs = [Example(row=row, text="same", text_b=f"b {row}", label="ab"[row % 2]) for row in range(20)]
    other = [Example(row=1, text="same", text_b="new", label="a")]
    assert check({"train": pairs, "test": other}).findings == ()
    leak = [Example(row=1, text="Same ", text_b="B  3", label="a")]
    assert found(check({"train": pairs, "test": leak}), "also in train") == ("warning", "test", 1, (1,))
    twice = [*pairs, Example(row=30, text="x", text_b="x", label="a"), Example(row=31, text="x", label="a")]
    assert found(check({"train": twice}), "rows with two equal texts") == ("note", "train", 1, (30,))
    assert found(check({"train": twice}), "one text among rows with two") == ("error", "train", 1, (31,))


def test_leaks_between_all_splits() -> None:
    report = check(
        {
            "train": GOOD,
            "validation": rows(("TEXT   3", "a"), ("v", "b")),
            "test": rows(("text 3", "a"), ("V ", "a"), ("new", "a"), ("newer", "b")),
        }
    )
    leaks = [(f.split, f.rows, f.message) for f in report.findings if "are too high" in f.message]
    assert [(split, numbers) for split, numbers, _ in leaks] == [
        ("validation", (2,)),
        ("test", (2,)),
        ("test", (2, 3)),
    ]
    assert "50.0% of the rows have a text that is also in train" in leaks[0][2]
    assert "remove them from validation" in leaks[2][2]


def test_unseen_labels_are_errors_by_label() -> None:
    report = check({"train": GOOD, "test": plain(["a", "c", "d", "c"], "other")})
    assert not report.ok
    assert found(report, "the label 'c' does not occur in the training rows") == ("error", "test", 2, (3, 5))
    assert found(report, "the label 'd' does not occur in the training rows") == ("error", "test", 1, (4,))
    assert report.splits[1].baseline == Baseline(kind="majority", answer="a", score=1.0)


def test_a_split_without_labels_is_checked_for_its_texts() -> None:
    report = check({"train": GOOD, "test": plain([None, None], "other")})
    assert report.findings == ()
    assert report.splits[1].baseline is None


def test_odd_texts() -> None:
    odd = rows((" ", "a"), ("caf\ufffd", "a"), ("bell\x07", "a"), ("N/A", "b"), ("fine\ttext\n", "b"))
    report = check({"train": [*odd, *plain(["a"] * 5 + ["b"] * 5)]})
    assert found(report, "a blank text") == ("error", "train", 1, (2,))
    assert found(report, "U+FFFD") == ("warning", "train", 1, (3,))
    assert found(report, "control characters") == ("warning", "train", 1, (4,))
    assert found(report, "read as a word") == ("note", "train", 1, (5,))
    assert [finding.level for finding in report.findings] == ["error", "warning", "warning", "note"]


def test_odd_labels() -> None:
    report = check({"train": plain(["a"] * 95 + ["A"] * 3)}, names=("a", "A", "z"))
    assert found(report, "labels without training rows: 'z'")[0] == "warning"
    assert found(report, "fewer than 5 training rows: 'A'")[0] == "warning"
    assert found(report, "differ only in case or spaces: 'a', 'A'")[0] == "warning"
    assert found(report, "96.9% of the rows have the label 'a'")[0] == "note"


def test_problems_of_loading_are_grouped() -> None:
    problems = [
        Problem(row=row, kind="null label", error=DataError(f"a.csv, line {row}: null"))
        for row in range(5, 30)
    ]
    report = check({"train": GOOD}, problems={"train": problems})
    assert found(report, "a.csv, line 5: null") == ("error", "train", 25, tuple(range(5, 25)))
    assert report.splits[0].left_out == 25
    assert "train: 20 rows, 25 left out" in report.lines()
    assert report.lines()[-1].endswith(f"[25 rows: {', '.join(map(str, range(5, 25)))}, …]")


@pytest.mark.parametrize(
    ("splits", "text"),
    [
        ({}, "no usable rows"),
        ({"train": []}, "no usable rows"),
        ({"train": plain(["a", "a"])}, "the label 'a' in every row"),
        ({"train": plain(["a", 1])}, "expected one type"),
    ],
)
def test_data_without_a_task(splits: dict[str, list[Example]], text: str) -> None:
    report = check(splits)
    assert found(report, text)[:2] == ("error", "train")
    assert report.task is None
    assert not report.ok
    json.dumps(report.to_dict())


@pytest.mark.parametrize("form", ["frame", "columns", "tuples", "splits"])
def test_data_in_memory_is_checked_as_its_examples_are(form: str) -> None:
    texts, labels = ["one", "two", "three", "two"], ["a", "b", None, "a"]
    frame = pandas.DataFrame({"text": texts, "label": labels})
    given: Any = {
        "frame": frame,
        "columns": (texts, labels),
        "tuples": list(zip(texts, labels, strict=True)),
        "splits": {"train": frame},
    }[form]
    loaded = load_examples(frame, collect_problems=True)
    expected = check({"train": loaded.examples}, columns=loaded.columns, problems={"train": loaded.problems})
    assert check(given).to_dict() == expected.to_dict()
    assert not expected.ok


def test_of_many_labels_the_most_and_the_least_frequent_are_shown() -> None:
    labels = [f"l{label:03d}" for label in range(150) for _ in range(1 + label)]
    lines = check({"train": plain(labels)}).lines()
    shown = [line for line in lines if line.startswith("    'l")]
    assert len(shown) == 20
    assert "  150 labels; the 10 most frequent:" in lines
    assert "  130 others with 11 to 140 rows, then the 10 least frequent:" in lines
    assert (shown[0].split(":")[0].strip(), shown[-1].split(":")[0].strip()) == ("'l149'", "'l000'")


def test_what_was_read_and_what_is_odd_is_reported() -> None:
    notes = [Note("a.csv: the labels are lists", rows=(3,)), Note("odd", level="warning")]
    report = check({"train": plain([0, 1, 2, -1] * 5)}, notes={"train": notes})
    assert found(report, "the labels are lists") == ("note", "train", 1, (3,))
    assert found(report, "odd")[0] == "warning"
    assert found(report, "the label -1 occurs next to 0 to 2")[:3] == ("warning", "train", 5)


def test_scores_of_one_text_differ_and_do_not_contradict() -> None:
    report = check({"train": rows(*((f"t {n // 2}", n + 0.5) for n in range(20)))})
    assert found(report, "10 texts are in several rows with different scores")[0] == "note"
