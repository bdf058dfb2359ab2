"""The study's results as tables for docs/recipes.md and README.md, from whatever runs there are.

Of a method on a data set the setting counts that the plan has; until that is run the one that was run last,
by its place in the file, said to be an earlier one. Figures of different recipes do not mix. A swept method
is shown once its sweep is whole, at the rate that the validation rows picked; test figures of the other rates
are not looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from measuring import processor
from quality.plan import (
    BACKBONES,
    ELSEWHERE,
    METHODS,
    STUDIED,
    TRAVELLED,
    Record,
    accelerator,
    data_set,
    digest,
    pick,
    setting_of,
)

Table = Callable[[tuple[str, ...], list[tuple[str, ...]]], str]

TITLES: Mapping[str, str] = {
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "sst2": "SST-2",
    **{
        f"{source}-{rows}": f"{title}, {rows:,} rows per class"
        for source, title in (("mrpc", "MRPC"), ("sst2", "SST-2"))
        for rows in (16, 100, 1000)
    },
    "reuters": "Reuters, eight topics, 400 rows",
    "stsb-2000": "STS-B, 2,000 rows",
    "newsgroups": "Twenty newsgroups, 600 rows",
    "tweets": "Tweets, who of two wrote them, 400 rows",
    "reviews": "Sentences of film reviews, how much they praise, 400 rows",
}

NAMES = {"accuracy": "accuracy", "f1": "F1", "pearson": "Pearson", "spearman": "Spearman"}

SHORT = ("mrpc", "stsb", "sst2", "sst2-100")
"""README's data sets."""

PEFT_PROMPTS = ("peft-prefix", "peft-p-tuning")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A method on a data set: the runs that count, one a seed.

    Attributes:
        rate: What was picked, or set; ``None`` for a method that has none, or several.
        edge: Whether that is the lowest or highest of those tried.
        earlier: Whether the plan has another setting by now.
    """

    dataset: str
    runs: Sequence[Record]
    diverged: int = 0
    rate: float | None = None
    edge: bool = False
    earlier: bool = False

    def values(self, metric: str, split: str = "test") -> list[float]:
        """The metric of each run; a correlation with a constant is 0."""
        return [run["metrics"][split].get(metric, 0.0) for run in self.runs]

    def said(self, metric: str) -> str:
        """Mean and sample standard deviation."""
        values = self.values(metric)
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        return f"{fmean(values):.3f}{spread}" if values else "diverged"


def cell(records: Sequence[Record], dataset: str, method: str) -> Cell | None:
    """A method on a data set as the tables have it; ``None`` if it was not run, or its sweep is not whole."""
    own = [each for each in records if (each["dataset"], each["method"]) == (dataset, method)]
    if not own:
        return None
    settings = [_without_rate(each) for each in own]
    planned = _without_rate({"setting": setting_of(method, dataset)})
    counts = planned if planned in settings else settings[-1]
    own = [each for each, setting in zip(own, settings, strict=True) if setting == counts]
    rate, edge = own[-1]["rate"], False
    if tried := METHODS[method].rates:
        swept = {each["rate"]: (each["metrics"] or {}) for each in own if each["seed"] == 0}
        if not set(tried) <= set(swept):
            return None
        rate = pick(
            {each: found.get("validation", {}) for each, found in swept.items()}, data_set(dataset).metric
        )
        edge = rate in (min(swept), max(swept))
    runs = list({each["seed"]: each for each in own if each["rate"] == rate}.values())
    good = [each for each in runs if each["metrics"]]
    return Cell(
        dataset=dataset,
        runs=good,
        diverged=len(runs) - len(good),
        rate=rate,
        edge=edge,
        earlier=counts != planned,
    )


def _without_rate(record: Record) -> str:
    return digest({name: value for name, value in record["setting"].items() if name != "rate"})


def tables(table: Table, records: Sequence[Record]) -> str:
    """A heading and a table for each data set, for docs/recipes.md."""
    parts = [_of(table, records, dataset) for dataset in (*STUDIED, *ELSEWHERE)]
    return "\n\n".join([*parts, *_note(records, "make quality")])


def travelled(table: Table, records: Sequence[Record]) -> str:
    """A table for each of the other backbones, for docs/recipes.md: methods in rows, data sets in columns."""
    parts = []
    for short, backbone in BACKBONES.items():
        names = [name for name in TRAVELLED if name.startswith(f"{short}/")]
        titles = [f"{TITLES[name.partition('/')[2]]}, {NAMES[data_set(name).metric]}" for name in names]
        rows = []
        for method, each in METHODS.items():
            found = [cell(records, name, method) for name in names]
            if any(found):
                cells = ["" if one is None else _brief(one) for one in found]
                trained = {run["trained"] for one in found if one for run in one.runs}
                largest = f"{max(trained):,}" if trained else ""
                rows.append((each.title, largest, *cells))
        parts.append(f"### {backbone}")
        header = ("test", "trained parameters, at most", *titles)
        parts.append(table(header, rows) if rows else "Not run yet.")
    return "\n\n".join([*parts, *_note(records, "make quality-backbones")])


def _brief(found: Cell) -> str:
    """Mean, deviation and number of runs."""
    if not found.runs:
        return "diverged"
    edge = " \\*" if found.edge else ""
    runs = f"{len(found.runs)}, an earlier recipe" if found.earlier else f"{len(found.runs)}"
    return f"{found.said(data_set(found.dataset).metric)} ({runs}){edge}"


def _of(table: Table, records: Sequence[Record], dataset: str) -> str:
    data = data_set(dataset)
    found = {
        method: cell(records, dataset, method) for method in METHODS if dataset in METHODS[method].datasets
    }
    rows = [_row(method, each) for method, each in found.items() if each is not None]
    missing = [_plain(method) for method, each in found.items() if each is None]
    header = (
        *("method", "learning rate", f"test {NAMES[data.metric]}", NAMES[data.also], "runs"),
        *("trained parameters", "CPU minutes", "peak MiB"),
    )
    parts = [f"### {TITLES[dataset]}"]
    if rows:
        parts.append(table(header, rows))
    if any(each is not None and each.edge for each in found.values()):
        parts.append("\\* The lowest or the highest of the three learning rates that were tried.")
    if missing:
        parts.append(f"Not run yet: {'; '.join(missing)}." if rows else "Not run yet.")
    return "\n\n".join(parts)


def _row(method: str, found: Cell) -> tuple[str, ...]:
    data = data_set(found.dataset)
    on_gpu = sum(accelerator(run) is not None for run in found.runs)
    runs = ", ".join(
        [
            *([str(len(found.runs))] if on_gpu < len(found.runs) or not on_gpu else []),
            *([f"{on_gpu} on a GPU"] if on_gpu else []),
            *([f"{found.diverged} diverged"] if found.diverged else []),
        ]
    )
    rate = "" if found.rate is None else f"{found.rate:g}" + (" \\*" if found.edge else "")
    if not found.runs:
        return (METHODS[method].title, rate, "diverged", "", runs, "", "", "")
    first = found.runs[0]
    share = f" ({_percent(100 * first['trained'] / first['total'])} %)" if first["trained"] else ""
    # A GPU's seconds and memory are not for this table; nor are those of a constant answer.
    on_cores = [run for run in found.runs if first["trained"] and not accelerator(run)]
    return (
        METHODS[method].title + (" (an earlier one)" if found.earlier else ""),
        rate,
        found.said(data.metric),
        found.said(data.also),
        runs,
        f"{first['trained']:,}{share}",
        _minutes(median(run["cpu_seconds"] for run in on_cores)) if on_cores else "",
        f"{median(run['peak_mib'] for run in on_cores):,.0f}" if on_cores else "",
    )


def _percent(value: float) -> str:
    """Two digits that say something."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.1f}"


def _plain(method: str) -> str:
    return METHODS[method].title.replace("**", "")


def short(table: Table, records: Sequence[Record]) -> str:
    """README's table: the default recipe beside full fine-tuning, PEFT's best and SetFit."""
    rows = []
    for title, methods in (
        (METHODS["full"].title, ("full",)),
        (METHODS["peft-lora"].title, ("peft-lora",)),
        ("PEFT, the better of `PREFIX_TUNING` and `P_TUNING`", PEFT_PROMPTS),
        (METHODS["setfit"].title, ("setfit",)),
        (METHODS["default"].title, ("default",)),
    ):
        found = [_best(records, dataset, methods) for dataset in SHORT]
        trained = sorted({run["trained"] for each in found if each for run in each.runs})
        ends = dict.fromkeys((trained[0], trained[-1])) if trained else {}
        rows.append(
            (
                title,
                " to ".join(f"{each:,}" for each in ends),
                *(_short(records, dataset, methods) for dataset in SHORT),
            )
        )
    names = [f"{TITLES[name]}, {NAMES[data_set(name).metric]}" for name in SHORT]
    parts = [table(("test, MiniLM", "trained parameters", *names), rows)]
    for mark, means in MARKS.items():
        if any(mark in cell for row in rows for cell in row):
            parts.append(f"{mark} {means}")
    return "\n\n".join([*parts, *_note(records, "make quality")])


MARKS = {
    "\\*": "Its learning rate is the lowest or the highest of the three that were tried.",
    "†": "The other of the two has not been run there yet.",
}


def _short(records: Sequence[Record], dataset: str, methods: Sequence[str]) -> str:
    if not any(dataset in METHODS[method].datasets for method in methods):
        return "few rows only"
    best = _best(records, dataset, methods)
    if best is None:
        return "not run yet"
    alone = any(cell(records, dataset, method) is None for method in methods)
    return best.said(data_set(dataset).metric) + (" \\*" if best.edge else "") + (" †" if alone else "")


def _best(records: Sequence[Record], dataset: str, methods: Sequence[str]) -> Cell | None:
    """The method that is best on the validation rows, on average."""
    found = [each for method in methods if (each := cell(records, dataset, method)) is not None]
    metric = data_set(dataset).metric
    return max(found, key=lambda each: fmean(each.values(metric, "validation") or [-math.inf]), default=None)


def _note(records: Sequence[Record], made: str) -> list[str]:
    """On what, when, and how long it took; ``made`` is the command that does it."""
    if not records:
        return [f"Nothing has been run yet: `{made}` does."]
    newest = max(records, key=lambda each: str(each["date"]))
    revisions = len({each["revision"] for each in records})
    others = f" and {revisions - 1} before it" if revisions > 1 else ""
    dates = sorted({each["date"][:10] for each in records})
    told = [each["machine"]["versions"] for each in records]
    versions = next((each for each in reversed(told) if "setfit" not in each), told[-1])
    return [
        f"`{made}`, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, revision "
        f"{newest['revision']}{others}, transformers {versions['transformers']}, PEFT {versions['peft']}; "
        f"{'; '.join(_places(records))}."
    ]


def _places(records: Sequence[Record]) -> Iterator[str]:
    """How many runs were where."""
    torch = {accelerator(each): each["machine"]["versions"]["torch"] for each in records}
    for gpu, count in Counter(accelerator(each) for each in records).items():
        if gpu is not None:
            yield f"{_runs(count)} on one {gpu}, torch {torch[gpu]}"
            continue
        own = [each for each in records if accelerator(each) is None]
        where = " and ".join(dict.fromkeys(processor(each["machine"]) for each in own))
        hours = math.fsum(each["cpu_seconds"] for each in own) / 3600
        yield f"{_runs(count)} on {where}, one thread per run, torch {torch[None]}, {hours:.1f} core hours"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
