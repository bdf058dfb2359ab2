"""What was tried for the default recipe as tables for docs/trials.md, one a data set and one of whole runs.

A line is a training; its difference is to the first training of the table, with the same seed. Trials that
differ only in how often, or beside which average, they were looked at are the same training: one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from measuring import processor
from quality.plan import Record
from recipe_data import Trial

Table = Callable[[tuple[str, ...], list[tuple[str, ...]]], str]

SOURCES = {"mrpc": "MRPC", "stsb": "STS-B", "sst2": "SST-2"}

SAID: Mapping[str, str] = {
    "virtual_tokens": "{} virtual tokens",
    "first_layer": "first layer {}",
    "rate": "rate {:g}",
    "head_rate": "head rate {:g}",
    "epochs": "{} epochs",
    "batch_size": "batches of {}",
    "weight_decay": "weight decay {:g}",
    "warmup": "warm-up {:g}",
    "schedule": "{} schedule",
    "low_rank": "low rank {}",
    "instance": "instance-dependent, width {}",
    "offset_rank": "word offsets of rank {}",
    "added_share": "added at {:g} of the rate",
    "label_smoothing": "label smoothing {:g}",
    "dropout": "backbone dropout {:g}",
    "prompt_dropout": "prompt dropout {:g}",
    "prompt_noise": "prompt noise {:g}",
    "sharpness": "sharpness {:g}",
    "position_offset": "position offset {}",
    "average": "average's decay {:g}",
}
POOLED = {
    "native": "[CLS] through the pooler",
    "cls": "[CLS] without the pooler",
    "mean": "mean without the pooler",
    "meanpool": "mean through the pooler",
    "both": "[CLS] through the pooler beside the mean",
    "layers": "all layers",
}
OWN = {"words": "words", "sep": "[SEP]", "cls": "[CLS]", "names": "the classes' names"}


def tables(table: Table, records: Sequence[Record]) -> str:
    """A heading and a table for each data set, of readings of all layers another one."""
    groups: dict[tuple[str, bool], list[Record]] = {}
    for record in records:
        trial = Trial(**record["trial"])
        groups.setdefault((trial.data, trial.pooling == "layers"), []).append(record)
    parts = [_of(table, group) for group in groups.values()]
    return "\n\n".join([*parts, _note(records, "recipe_trials")])


def runs(table: Table, records: Sequence[Record]) -> str:
    """One table of what ``ptuning.train`` itself was tried with."""
    lines = [
        (
            f"{SOURCES[record['data'].partition('-')[0]]}, {record['rows']['train']:,} rows",
            record["used"]["prompt.pooling"],
            str(record["used"].get("prompt.num_virtual_units", 0)),
            "on" if record["used"].get("fit.backbone_dropout") else "off",
            *(f"{record['used'][f'fit.{name}']:g}" for name in ("epochs", "prompt_rate", "head_rate")),
            _also(record),
            str(record["options"].get("fit.seed", 0)),
            *_looks([each[record["metric"]] for each in record["history"]]),
            f"{record['history'][-1]['loss']:.3f}",
        )
        for record in sorted(records, key=lambda each: each["data"])
    ]
    header = (
        "rows",
        "pooling",
        "virtual units",
        "dropout",
        "epochs",
        "prompt rate",
        "head rate",
        "also",
        "seed",
        "first look",
        "best",
        "last",
        "its loss",
    )
    return "\n\n".join([table(header, lines), _note(records, "recipe_runs")])


def _also(record: Record) -> str:
    """What was given of options that have no column."""
    left = {"fit.seed", *record["used"]}
    return ", ".join(f"{name} {value}" for name, value in record["options"].items() if name not in left)


def _looks(values: Sequence[float]) -> tuple[str, str, str]:
    return f"{values[0]:.4f}", f"{max(values):.4f}", f"{values[-1]:.4f}"


def plain(trial: Trial) -> Trial:
    """The trial without what leaves the training as it is."""
    return replace(trial, average=0.0, looks=Trial.looks)


def trainings(records: Sequence[Record]) -> dict[Trial, Record]:
    """The records by trial, in their order; of the same training seen twice that with an average."""
    found = {replace(Trial(**record["trial"]), looks=Trial.looks): record for record in records}
    averaged = {plain(trial) for trial in found if trial.average}
    return {trial: each for trial, each in found.items() if trial.average or trial not in averaged}


def _of(table: Table, records: Sequence[Record]) -> str:
    kept = trainings(records)
    reference, first = next(iter(kept.items()))
    metric, rows = reference.metric, first["rows"]
    by_plain = {plain(trial): record for trial, record in kept.items()}
    said = {trial: ", ".join(changes(trial, reference)) or "nothing" for trial in kept}
    order = list(dict.fromkeys(said.values()))
    lines: list[tuple[str, ...]] = []
    for trial in sorted(kept, key=lambda each: (order.index(said[each]), each.seed)):
        record, beside = kept[trial], by_plain.get(replace(plain(reference), seed=trial.seed))
        last, average = record["last"], record["average"]
        more = f"{last[metric] - beside['last'][metric]:+.4f}" if beside not in (None, record) else ""
        means = (f"{average[metric]:.4f}", f"{average['loss']:.3f}") if average else ("", "")
        figures = (f"{last[metric]:.4f}", more, f"{last['loss']:.3f}", *means)
        lines.append((said[trial], str(trial.seed), *figures))
    name = metric.capitalize() if metric == "pearson" else metric
    constant = f", of which a constant answer gets {rows['constant']:.3f}" if rows["constant"] else ""
    header = ("changed", "seed", name, "difference", "loss", f"{name} of the average", "its loss")
    return "\n\n".join(
        [
            f"### Tried on {SOURCES[reference.source]}, {rows['train']:,} rows"
            + (", all layers read" if reference.pooling == "layers" else ""),
            f"{rows['development']:,} development rows{constant}. The first line is: "
            f"{', '.join(settings(reference))}.",
            table(header, lines),
        ]
    )


def changes(trial: Trial, reference: Trial) -> list[str]:
    """In words, what is other than in the reference. That there is no average is no change."""
    now, before = asdict(trial), asdict(reference)
    left = {"seed", "looks"} | ({"average"} if not trial.average else set())
    return [_said(name, value) for name, value in now.items() if value != before[name] and name not in left]


def settings(trial: Trial) -> list[str]:
    """What decides the training, in words."""
    always = ("virtual_tokens", "first_layer", "rate", "head_rate", "epochs", "batch_size", "init", "pooling")
    usual = Trial()
    return [
        _said(name, value)
        for name, value in asdict(trial).items()
        if name in always or (name in SAID and value != getattr(usual, name))
    ]


def _said(name: str, value: object) -> str:
    if name == "pooling":
        return f"reads {POOLED[str(value)]}"
    if name == "values_from_nought":
        return "values from 0" if value else "values as the keys"
    if name == "normalised_keys":
        return "keys of constant length" if value else "keys of any length"
    if name != "init":
        return SAID[name].format(value)
    how, _, deviation = str(value).partition(":")
    if how == "normal":
        return f"begins with deviation {deviation}"
    return f"begins as {OWN[how]}" + (f" with noise {deviation}" if deviation else "")


def _note(records: Sequence[Record], script: str) -> str:
    """By what, when and on what, and how long it took."""
    if not records:
        return "Nothing has been tried yet."
    told = [record["machine"] for record in records]
    where = dict.fromkeys(processor(each) for each in told)
    versions = dict.fromkeys(
        f"torch {each['versions']['torch']}, transformers {each['versions']['transformers']}" for each in told
    )
    dates = sorted({record["date"] for record in records})
    hours = math.fsum(record["cpu_seconds"] for record in records) / 3600
    revisions = dict.fromkeys(str(record["revision"]) for record in records)
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return (
        f"`python benchmarks/{script}.py`, {when}, revision {' and '.join(revisions)}, "
        f"{' and '.join(where)}, one thread, {' and '.join(versions)}; "
        f"{len(records)} trainings, {hours:.1f} hours of a core."
    )
