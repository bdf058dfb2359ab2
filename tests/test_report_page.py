"""The report as a page: every kind of task, rows at the edge, text that wants to be more than text."""

from __future__ import annotations

import re
import threading
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from ptuning.errors import OutputError
from ptuning.report import page
from ptuning.report.blocks import number
from ptuning.report.comparison import comparison_page
from ptuning.report.data import Comparison, Entry, ReportData
from ptuning.report.page import page_of, write_page
from ptuning.threads import DRAWING
from reports import HOSTILE, NUMBER, SEVERAL, SINGLE, entry, report, scored, with_metrics

COMMON = ["metrics", "learning"]
LABELLED = ["labels", "thresholds", "confidence", "length", "rows", "label-errors", "about"]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What a page consists of; its elements must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            self.attributes.append((name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(text: str) -> Page:
    """The page, after checks that every page has to pass."""
    page = Page(text)
    assert page.tags["script"] == page.tags["iframe"] == page.tags["form"] == 0
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert [id for id, count in Counter(page.ids).items() if count > 1] == []
    local = [link for link in page.links if not link.startswith("data:")]
    assert all(link.startswith("#") for link in local)
    assert {link[1:] for link in local} <= set(page.ids)  # nothing points nowhere
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert "http://" not in text.replace("http://www.w3.org/", "")
    assert "https://" not in text
    assert page.tags["table"] == page.tags["caption"]
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert all(labels)
    assert text.count('role="img"') == page.tags["svg"]
    assert "DejaVu Sans'" not in text  # matplotlib's fonts are not the page's
    return page


def sections(text: str) -> list[str]:
    return re.findall(r'<section id="([\w-]+)"', text)


@pytest.mark.parametrize(
    ("kind", "classes", "rows", "expected"),
    [
        (SINGLE, 2, 120, [*COMMON, "confusion", *LABELLED]),
        (SINGLE, 3, 120, [*COMMON, "confusion", *(each for each in LABELLED if each != "thresholds")]),
        (SINGLE, 20, 200, [*COMMON, "confusion", *(each for each in LABELLED if each != "thresholds")]),
        (SINGLE, 150, 600, [*COMMON, "confusion", *(each for each in LABELLED if each != "thresholds")]),
        (SEVERAL, 1, 120, [*COMMON, *LABELLED]),
        (SEVERAL, 9, 120, [*COMMON, *LABELLED]),
        (NUMBER, 1, 120, [*COMMON, "errors", "length", "rows", "about"]),
    ],
)
def test_each_kind_of_task_has_its_sections(kind: str, classes: int, rows: int, expected: list[str]) -> None:
    text = page_of(report(kind, classes, rows))
    checked(text)
    assert sections(text) == expected
    assert len(text) < 500_000


def test_the_page_has_the_figures() -> None:
    data = report(SINGLE, 3, 150)
    text = page_of(data)
    page = checked(text)
    for name, value in data.rows.metrics.items():
        assert f"{value:.3f}" in page.text, name
        assert f"{data.rows.baseline[name]:.3f}" in page.text, name
    matrix = re.search(r"<svg(?:(?!</svg>).)*>predicted</text>.*?</svg>", text, re.DOTALL)
    assert matrix is not None
    truth, predicted = data.rows.targets.astype(int), data.rows.logits.argmax(1)
    drawn = Counter(re.findall(r">(\d+)</text>", matrix[0]))
    assert drawn == Counter(str(((truth == i) & (predicted == j)).sum()) for i in range(3) for j in range(3))
    assert "1,000 resamples" in page.text
    assert "kept" in page.text


def test_what_the_data_say_is_only_shown() -> None:
    data = report(SINGLE, 3, 90, labels=HOSTILE)
    hostile = ("<img src=x onerror=alert(1)> {{ 7 * 7 }}\n\x1b[31m \u202eback", "</td></table>" + "x" * 2000)
    texts = tuple(hostile for _ in range(90))
    rows = replace(data.splits[0], texts=texts, split="<b>", source="<i>.csv")
    data = replace(
        data,
        name="<script>name</script>",
        splits=(rows,),
        baseline_rule="always '<u>'",
        notes=("NOT LEARNED <s>",),
        facts={"<a>": "<em>\u202e"},
    )
    text = page_of(data)
    page = checked(text)
    assert not {"img", "b", "i", "u", "s", "em"} & page.tags.keys()
    assert "{{ 7 * 7 }}" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert "$x^2$" in page.text
    assert "图书" in page.text
    for hidden in ("\u202e", "\x1b"):
        assert hidden not in text
    assert "\\u202e" in page.text
    assert "x" * 300 not in page.text
    compared = Comparison(
        title="<b>",
        what="run",
        entries=(replace(entry("<b>1", SINGLE), note="<i>"), entry("2", SINGLE)),
        metric="f1",
    )
    assert not {"b", "i"} & checked(comparison_page(compared)).tags.keys()


@pytest.mark.parametrize("kind", [SINGLE, SEVERAL, NUMBER])
def test_texts_can_be_left_out(kind: str) -> None:
    data = report(kind, 3, 60)
    secret = tuple(("secret",) for _ in range(60))
    shown = replace(data, splits=(replace(data.splits[0], texts=secret),))
    assert "secret" in page_of(shown)
    hidden = replace(data, splits=(replace(data.splits[0], texts=None),), no_texts=True)
    page = checked(page_of(hidden))
    assert "secret" not in page.text
    assert "Their texts are left out" in page.text
    assert "token ids without texts" in page_of(replace(hidden, no_texts=False))


def few(data: ReportData, count: int) -> ReportData:
    rows = data.splits[0]
    part = replace(
        rows,
        logits=rows.logits[:count],
        targets=rows.targets[:count],
        lengths=rows.lengths[:count],
        numbers=rows.numbers[:count],
        texts=None if rows.texts is None else rows.texts[:count],
    )
    return replace(data, splits=(with_metrics(data.task, part) if count else part,))


@pytest.mark.parametrize("kind", [SINGLE, SEVERAL, NUMBER])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_hardly_any_rows(kind: str, count: int) -> None:
    checked(page_of(replace(few(report(kind, 2, 20), count), history=())))


def test_rows_of_one_class_and_perfect_answers() -> None:
    for kind in (SINGLE, SEVERAL):
        data = report(kind, 3, 60)
        rows = data.splits[0]
        same = with_metrics(data.task, replace(rows, targets=rows.targets * 0))
        checked(page_of(replace(data, splits=(same,))))
        truth = np.eye(3)[rows.targets.astype(int)] if kind == SINGLE else rows.targets
        right = with_metrics(data.task, replace(rows, logits=(truth - 0.5) * 1000))
        page = checked(page_of(replace(data, splits=(right,))))
        assert "All 60 rows are right." in page.text


def test_a_number_that_is_always_the_same() -> None:
    data = report(NUMBER, rows=40)
    rows = data.splits[0]
    constant = with_metrics(data.task, replace(rows, logits=rows.logits * 0, targets=rows.targets * 0 + 2))
    checked(page_of(replace(data, splits=(constant,))))


def test_numbers_of_a_small_unit_have_significant_digits() -> None:
    data = report(NUMBER, rows=60)
    rows, task = data.splits[0], replace(data.task, mean=0.0005, scale=0.0001)
    small = replace(rows, targets=rows.targets / 10_000, logits=(rows.logits - 2.5) / 1.4)
    page = checked(page_of(replace(data, task=task, splits=(with_metrics(task, small),), history=())))
    error = with_metrics(task, small).metrics["mae"]
    assert f"{error:#.3g}" in page.text
    worst = np.abs(small.targets - small.logits[:, 0] * task.scale - task.mean).argmax()
    assert number(float(small.targets[worst])) in page.text
    assert [number(each) for each in (0.0005, -0.00123, 0.0123, 0.5, 0.0, 1e-17, 1234.5)] == [
        *("0.000500", "-0.00123", "0.012", "0.500", "0.000", "0.000", "1,234"),
    ]


def test_splits_and_temperature() -> None:
    data = report(SINGLE, 2, 80, temperature=1.5)
    validation = replace(data.splits[0], split="validation", source="train.csv")
    page = checked(page_of(replace(data, splits=(validation, data.splits[0]))))
    assert page.text.index("test of test.csv: 80 rows") < page.text.index("validation of train.csv: 80 rows")
    assert "1.000 (before)" in page.text
    assert "1.500" in page.text


def test_the_page_says_what_the_validation_rows_chose() -> None:
    data = report(SINGLE, 2, 80, temperature=1.5)
    validation = replace(data.splits[0], split="validation")
    assert "rows also chose" not in page_of(replace(data, splits=(validation,)))
    data = replace(data, chosen=("the checkpoint", "the temperature"))
    said = "The validation rows also chose the checkpoint and the temperature, so the figures on them are a"
    text = page_of(replace(data, splits=(validation,)))
    assert said in text
    assert "These rows also chose the temperature, so the figures are a little too good." in text
    text = page_of(replace(data, splits=(validation, data.splits[0])))
    assert said in text
    assert "These rows also chose" not in text  # those of the diagram are test rows


def test_the_page_is_the_same_whatever_matplotlib_is_set_to() -> None:
    data = report(SEVERAL, 3, 60)
    text = page_of(data)
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red", "text.usetex": True}):
        assert page_of(data) == text
        assert matplotlib.rcParams["font.size"] == 31
    assert dict(matplotlib.rcParams) == before
    others: list[str] = []
    threads = [threading.Thread(target=lambda: others.append(page_of(data))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert others == [text, text]
    assert dict(matplotlib.rcParams) == before


def test_figures_are_computed_without_the_lock_of_the_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[bool] = []

    def by_another_thread() -> None:
        free.append(DRAWING.acquire(timeout=5))
        if free[-1]:
            DRAWING.release()

    def outcomes(*args: object) -> object:
        other = threading.Thread(target=by_another_thread)
        other.start()
        other.join()
        return found(*args)

    found = page.outcomes
    monkeypatch.setattr(page, "outcomes", outcomes)
    page_of(report(SINGLE, 2, 30))
    assert free == [True]


def test_numbers_that_are_not_finite_in_a_history_and_metrics_of_ones_own() -> None:
    data = report(SINGLE, 2, 40)
    rows = replace(data.splits[0], metrics={**data.splits[0].metrics, "my_metric": 12345.678})
    steps = ({"epoch": 0.0, "step": 0, "train_loss": float("nan"), "metrics": {"loss": 1.0}}, *data.history)
    page = checked(page_of(replace(data, splits=(rows,), metric="my_metric", history=steps)))
    assert "my metric" in page.text
    assert "12,346" in page.text


# ------------------------------------------------------------------------------------ side by side


def compare(*entries: Entry, **options: object) -> str:
    made = Comparison(title="set", what="adapter", entries=entries, metric="accuracy", **options)  # type: ignore[arg-type]
    return comparison_page(made)


def test_several_adapters_on_the_same_rows() -> None:
    one, other = entry("one", SINGLE, rows=120), entry("other", SINGLE, rows=120, noise=2.0)
    text = compare(one, replace(other, best=True))
    page = checked(text)
    assert sections(text) == ["metrics", "differences", "learning", "about"]
    assert f"{one.metrics['test']['accuracy']:.3f} ★" in page.text
    difference = other.metrics["test"]["accuracy"] - one.metrics["test"]["accuracy"]
    assert f"{difference:+.3f}" in page.text
    assert "other (chosen)" in page.text
    assert "Rows on which they disagree the most" in page.text
    assert "constant answer" in page.text


def test_names_that_start_with_an_underscore_are_in_the_legends() -> None:
    text = page_of(report(SEVERAL, 3, 120, labels=("_a", " b", "c")))
    legends = [re.sub(" +", " ", each) for each in re.findall(r"<text[^>]*>([^<]*)</text>", text)]
    assert {"_a", "b"} <= {each.strip().split(" (AUC")[0] for each in legends if "(AUC" in each}
    assert {"_a", "b"} <= {each.strip().split(" (AP")[0] for each in legends if "(AP" in each}
    assert ">_one</text>" in compare(entry("_one", SINGLE, rows=60), entry("other", SINGLE, rows=60))


def test_the_training_says_which_end_of_a_metric_of_ones_own_is_better() -> None:
    low, high = (replace(entry(n, SINGLE, rows=30), rows=None, task=None) for n in ("low", "high"))
    low = replace(low, metrics={"test": {"distance": 0.125}})
    high = replace(high, metrics={"test": {"distance": 0.875}})
    assert "0.875 ★" in compare(low, high)  # as the name alone would have it
    told = [replace(each, greater_is_better={"distance": False}) for each in (low, high)]
    assert "0.125 ★" in compare(*told)
    both = "".join(compare(told[0], replace(high, greater_is_better={"distance": True})).split("A star")[1:])
    assert "★" not in both
    data = report(SINGLE, 2, 40)
    rows = replace(data.splits[0], metrics={"distance": 0.125})
    data = replace(data, splits=(rows,), metric="distance", history=())
    pages = [page_of(replace(data, greater_is_better=greater)) for greater in (True, False)]
    assert [page.count('<span class="scale"') for page in pages] == [1, 0]


def test_the_same_rows_are_known_by_their_numbers_and_labels_not_by_the_constant_answer() -> None:
    one, other = entry("one", SINGLE, rows=60), entry("other", SINGLE, rows=60, noise=2.0)
    floor = {"loss": other.baseline["test"]["loss"] + 0.01}  # other shares of the classes in its training
    other = replace(other, baseline={"test": {**other.baseline["test"], **floor}})
    page = checked(compare(one, other))
    assert "the rows or labels differ" not in page.text
    assert page.text.count("★") > 1
    assert "constant answer" in page.text
    as_recorded = [replace(each, rows=None, task=None) for each in (one, other)]
    assert "the rows or labels differ" not in checked(compare(*as_recorded)).text
    moved = replace(other, baseline={"test": {**other.baseline["test"], "accuracy": 0.123}})
    assert "the rows or labels differ" in checked(compare(as_recorded[0], replace(moved, rows=None))).text


def test_adapters_that_skipped_different_rows_are_not_compared_row_by_row() -> None:
    one = entry("one", SINGLE, rows=60)
    assert one.rows is not None
    short = few(ReportData(name="", task=one.task, splits=(one.rows,)), 50).splits[0]  # type: ignore[arg-type]
    renumbered = replace(one.rows, numbers=tuple(number + 1 for number in one.rows.numbers))
    relabelled = replace(one.rows, targets=(one.rows.targets + 1) % 3)
    for rows in (short, renumbered, relabelled):
        page = checked(compare(one, replace(one, name="other", rows=rows)))
        assert "were evaluated on other rows or labels" in page.text
        assert "the rows or labels differ, so no value is the best" in page.text
        assert "★" not in page.text.replace("A star", "")


def test_the_runs_of_one_training() -> None:
    runs = [replace(entry(f"seed-{n}", SINGLE, rows=60, noise=n), rows=None, task=None) for n in range(3)]
    diverged = Entry(name="seed-3", metrics={}, facts={"seed": "3"}, note="it diverged")
    text = compare(*runs, diverged, spread=True)
    page = checked(text)
    assert sections(text) == ["metrics", "learning", "about"]
    values = [run.metrics["test"]["accuracy"] for run in runs]
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in page.text
    assert "seed-3: it diverged" in page.text


def test_adapters_that_cannot_be_compared_row_by_row() -> None:
    other = entry("other", SINGLE, rows=60, labels=("a", "b", "c"))
    page = checked(compare(entry("one", SINGLE, rows=60), other))
    assert "have different labels" in page.text
    checked(compare(entry("one", NUMBER, 1), entry("other", NUMBER, 1, noise=0.3)))
    checked(compare(entry("one", SEVERAL), entry("other", SEVERAL, noise=1.0)))
    checked(compare(*(entry(f"run {n}", SINGLE, rows=30, noise=n) for n in range(14))))
    checked(compare(Entry(name="alone", metrics={"test": {"accuracy": 0.5}})))


# --------------------------------------------------------------------------------------------- file


def test_the_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    file = write_page(tmp_path / "new" / "report.html", "<p>é</p>")
    assert file.read_bytes() == "<p>é</p>".encode()
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="could not write"):
        write_page(tmp_path / "taken" / "report.html", "")
    assert {each.name for each in tmp_path.iterdir()} == {"new", "taken"}


def test_a_task_without_probabilities_by_the_row(tmp_path: Path) -> None:
    task, rows = scored(SINGLE, 2, 30, labels=(0, 1))
    checked(page_of(ReportData(name="numbers", task=task, splits=(rows,))))
