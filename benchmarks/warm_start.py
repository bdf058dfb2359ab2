"""Does a warm start pay? ``ptuning train --init_from`` next to a cold start, on the demo backbone.

Three cases with few new rows:

``sst2``
    16 and 100 rows per class of SST-2, from row 20,000 on; the adapter was trained on its first thousand.
``mrpc``
    16 and 100 rows per class of MRPC; the adapter was trained on the first 2,000 rows of STS-B, another task:
    its prompt is taken over, the head is new.
``class``
    16 rows of one class of the demo data, and 4 or 16 of each other class; the adapter was trained on 40 rows
    of each of the others. The seed decides which class is new.

Cold start and warm start have the same rows and the same validation rows: as many as are new (``class``: the
demo's). The test rows are read once per run, at the end. ``--development`` reads other training rows in place
of the test rows, to try options with ``--set``; its results go to another file. Every run is a line of the
results, and what is there is not run again::

    export PTUNING_DATA=folder   # with train.jsonl and validation.jsonl in each of mrpc/, stsb/ and sst2/
    python benchmarks/warm_start.py --seeds 0 1 2 3 4
    python benchmarks/warm_start.py --table
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from ptuning import PTuningModel, TrainConfig, train
from ptuning.data import Example
from ptuning.inference.evaluate import logits_of
from ptuning.training.metrics import measure
from ptuning.training.prepare import tokenised
from quality.data import Row, drawn, rows_of, write_lines
from quality.records import append, read
from recipe_data import combinations
from runs import provenance, with_options

RESULTS = Path(__file__).parent / "results" / "warm-start.jsonl"
FIRST = {"sst2": 1000, "stsb": 2000}
"""Rows of the adapters that runs start from."""
OLD = {"sst2": "sst2", "mrpc": "stsb"}
"""The data that they were trained on."""
APART = {"sst2": (20_000, 40_000), "mrpc": (0, 2800)}
"""Where new training rows are drawn from."""
DEVELOPMENT = {"sst2": (50_000, 50_800), "mrpc": (2800, 3672)}
"""Training rows that are judged in development, in place of the test rows."""
OLD_ROWS, NEW_ROWS = 40, 16
"""Rows per class of the demo data: of the adapter, and of the class that is new."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        case: ``sst2``, ``mrpc`` or ``class``.
        arm: ``adapter`` (no training), ``cold`` or ``warm``.
        rows: New rows per class; with ``class``, of each old class.
        seed: Of the rows and the run.
        options: Further options of ``ptuning train``.
    """

    case: str
    arm: str
    rows: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    development: bool = False


def plan(cases: Sequence[str], seeds: Sequence[int], sizes: Sequence[int]) -> Iterator[Run]:
    """The study, the first seeds first."""
    for seed in seeds:
        for case in cases:
            arms = ("cold", "warm") if case == "mrpc" else ("adapter", "cold", "warm")
            for rows in (4, 16) if case == "class" else sizes:
                for arm in arms:
                    yield Run(case=case, arm=arm, rows=rows, seed=seed)


# ------------------------------------------------------------------------------------------ the rows


def demo(split: str) -> list[Row]:
    text = (resources.files("ptuning") / "demo_data" / f"{split}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def splits_of(run: Run) -> dict[str, list[Row]]:
    """Training, validation and test rows, and the ``old`` rows that the adapter was trained on."""
    if run.case == "class":
        return new_class(run)
    source, seed, old = run.case, run.seed, OLD[run.case]
    rows = rows_of(source, "train")
    first, last = APART[source]
    validation = drawn(rows_of(source, "validation"), run.rows, seed)
    test = rows[slice(*DEVELOPMENT[source])] if run.development else rows_of(source, "test")
    return {
        "train": drawn(rows[first:last], run.rows, seed),
        "validation": validation,
        "test": test,
        "old": rows_of(old, "train")[: FIRST[old]],
    }


def held_out(seed: int) -> str:
    """The class that is new."""
    labels = sorted({row["label"] for row in demo("train")})
    return str(labels[seed % len(labels)])


def new_class(run: Run) -> dict[str, list[Row]]:
    rows, new = demo("train"), held_out(run.seed)
    old = drawn([row for row in rows if row["label"] != new], OLD_ROWS, run.seed)
    kept = {row["text"] for row in old}
    others = [row for row in rows if row["label"] != new and row["text"] not in kept]
    more = drawn(others, run.rows, run.seed)
    added = drawn([row for row in rows if row["label"] == new], NEW_ROWS, run.seed)
    test = demo("validation") if run.development else demo("test")
    return {"train": more + added, "validation": demo("validation"), "test": test, "old": old}


# ------------------------------------------------------------------------------------------ the runs


def adapter(run: Run, splits: Mapping[str, list[Row]], folder: Path) -> Path:
    """The adapter that the warm start begins from, trained unless it is there."""
    name = {"mrpc": "stsb", "sst2": "sst2"}.get(run.case, f"class-{run.seed}")
    output = folder / name
    if not (output / "ptuning.json").exists():
        rows = splits["old"]
        file = write_lines(rows, folder / "rows" / f"{name}.jsonl")
        seed = run.seed if run.case == "class" else 0
        began = time.process_time()
        values = {"data": {"train": file}, "output": str(output), "fit": {"seed": seed}}
        found = train(TrainConfig.checked(values), restart=True)
        seconds = time.process_time() - began
        print(f"adapter {name}: {found.metric} {found.metrics['validation']}, {seconds:.0f} s", flush=True)
    return output


def judged(model: PTuningModel, rows: Sequence[Row], new: str | None) -> dict[str, float]:
    """The metrics on ``rows``; with a new class, also those of the rows of old classes and of the new one."""
    pair = "sentence2" in rows[0]
    first, second = ("sentence1", "sentence2") if pair else ("text" if "text" in rows[0] else "sentence", "")
    label = {str(each): each for each in model.task.labels}
    known = [row for row in rows if str(row["label"]) in label]
    examples = [
        Example(
            row=number,
            text=row[first],
            text_b=row[second] if pair else None,
            label=label[str(row["label"])],
        )
        for number, row in enumerate(known, 1)
    ]
    split = tokenised(model, examples)
    logits = logits_of(model, split.rows)
    found = measure(logits.double().numpy(), split.targets, model.task)
    if new is not None:
        right = [
            model.task.labels[int(answer)] == row["label"]
            for answer, row in zip(logits.argmax(1), known, strict=True)
        ]
        pairs = list(zip(right, known, strict=True))
        old = [each for each, row in pairs if row["label"] != new]
        of_new = [each for each, row in pairs if row["label"] == new]
        found["accuracy_old"] = sum(old) / len(old)
        found["accuracy_new"] = sum(of_new) / len(of_new) if of_new else 0.0
        found["accuracy"] = sum(right) / len(rows)
    return found


def do(run: Run, folder: Path) -> dict[str, Any]:
    """Train and judge; a line of the results."""
    splits = splits_of(run)
    new = held_out(run.seed) if run.case == "class" else None
    began, wall = time.process_time(), 0.0
    history: list[Any] = []
    if run.arm == "adapter":
        output = adapter(run, splits, folder)
    else:
        values: dict[str, Any] = {"fit": {"seed": run.seed}}
        if run.arm == "warm":
            values["init_from"] = str(adapter(run, splits, folder))
        values = with_options(values, run.options)
        here, output = folder / "rows", folder / "run"
        files = {
            "train": write_lines(splits["train"], here / "train.jsonl"),
            "validation": write_lines(splits["validation"], here / "validation.jsonl"),
        }
        began = time.process_time()
        values |= {"data": {**files, "problem_type": "single_label_classification"}, "output": str(output)}
        found = train(TrainConfig.checked(values), restart=True)
        history = [{"epoch": each.epoch, **each.metrics} for each in found.history]
        wall = time.process_time() - began
    model = PTuningModel.from_pretrained(output)
    return {
        **asdict(run),
        "new_class": new,
        "test": judged(model, splits["test"], new),
        "history": history,
        "rows_read": {name: len(each) for name, each in splits.items()},
        "cpu_seconds": round(wall, 1),
        **provenance(),
    }


# ----------------------------------------------------------------------------------------- the table


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation over seeds, by case, rows and arm."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        how = " ".join(f"{name}={value}" for name, value in record["options"].items())
        groups.setdefault((record["case"], record["rows"], record["arm"], how), []).append(record)
    found = [
        "| case | rows | start | seeds | accuracy | old classes | new class |",
        "|---|---|---|---|---|---|---|",
    ]
    for (case, rows, arm, how), each in sorted(groups.items(), key=lambda item: tuple(map(str, item[0]))):
        cells = [
            _mean([record["test"][name] for record in each if name in record["test"]])
            for name in ("accuracy", "accuracy_old", "accuracy_new")
        ]
        found.append(f"| {case} | {rows} | {f'{arm} {how}'.strip()} | {len(each)} | {' | '.join(cells)} |")
    return "\n".join(found)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--cases", nargs="+", default=["sst2", "mrpc", "class"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 100])
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--development", action="store_true", help="judge other training rows")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE[,VALUE]", help="options to try")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/warm-start"), help="the adapters")
    parser.add_argument("--table", action="store_true", help="print the results, run nothing")
    given = parser.parse_args(words)
    records = read(given.results)
    if given.table:
        print(table(records))
        return
    if given.set and not given.development:
        parser.error("options are tried with --development")
    torch.set_num_threads(1)
    names = [each.name for each in Run.__dataclass_fields__.values()]
    done = [{name: record[name] for name in names} for record in records]
    for options in combinations(given.set) if given.set else [{}]:
        for run in plan(given.cases, given.seeds, given.sizes):
            if given.arms and run.arm not in given.arms:
                continue
            wanted = {**asdict(run), "options": dict(options), "development": given.development}
            if wanted in done:
                continue
            record = do(Run(**wanted), given.scratch)
            append(record, given.results)
            print(
                f"{run.case} {run.rows} {run.arm} {run.seed} {options}: "
                f"{ {name: round(value, 4) for name, value in record['test'].items()} }, "
                f"{record['cpu_seconds']} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
