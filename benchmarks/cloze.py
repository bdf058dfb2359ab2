"""Few rows on a decoder: a cloze head next to a trained head, no training at all, and LoRA.

16 and 100 rows per class of SST-2 and MRPC, as many validation rows from other training rows, and a part of
the test rows, which are read once per run, at the end. Methods:

``cloze-input``, ``cloze-deep``
    ``prompt.head.template`` with a prompt at the input or in the layers, otherwise the default recipe.
``linear``
    the default recipe of ``ptuning train``: a deep prompt and a trained head.
``zero-shot``
    the template of the cloze runs without a prompt; nothing is trained.
``lora``
    PEFT's LoRA on all linear layers of attention and feed-forward; its learning rate is chosen on the
    validation rows of each run.

``--development`` reads other training rows in place of the test rows, to try options with ``--set``; its
results go to another file. Every run is a line of the results, and what is there is not run again::

    export PTUNING_DATA=folder   # with train.jsonl and test.jsonl in each of mrpc/ and sst2/
    python benchmarks/cloze.py --backbone FOLDER --seeds 0 1 2
    python benchmarks/cloze.py --table
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ptuning import ClozeHead, DeepPrompt, PTuningModel, Task, TrainConfig, train
from ptuning.data import Example
from ptuning.inference.evaluate import logits_of
from ptuning.training.metrics import measure
from ptuning.training.prepare import tokenised
from quality.data import Row, drawn, rows_of, write_lines
from quality.peers import train_peer
from quality.records import append, read
from recipe_data import combinations
from runs import Table, counted_mean, plain_table, provenance, with_options

RESULTS = Path(__file__).parent / "results" / "cloze.jsonl"
TEMPLATES = {
    "sst2": {"template": "{text}\nSentiment:", "verbalizer": {0: "negative", 1: "positive"}},
    "mrpc": {
        "template": "{text_a}\n{text_b}\nDo both sentences mean the same?",
        "verbalizer": {0: "No", 1: "Yes"},
    },
}
TEST = 500
"""The first rows of the test file that are read."""
TRAIN = {"sst2": (0, 40_000), "mrpc": (0, 2000)}
VALIDATION = {"sst2": (40_000, 50_000), "mrpc": (2000, 2800)}
DEVELOPMENT = {"sst2": (50_000, 50_300), "mrpc": (2800, 3100)}
"""Places in the training file of the rows of each kind."""
METHODS = ("zero-shot", "cloze-deep", "cloze-input", "linear", "lora")
LORA_RATES = (3e-4, 1e-3, 3e-3)
LORA: Mapping[str, Any] = {
    "peer": "lora",
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "batch_size": 16,
    "weight_decay": 0.0,
    "schedule": "linear",
    "warmup": 0.06,
    "dropout": True,
    "clip": 1.0,
    "epochs": 8,
    "least_steps": 100,
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        data: ``sst2`` or ``mrpc``.
        method: One of :data:`METHODS`.
        rows: Training rows per class.
        seed: Of the rows and the run.
        options: Further options of ``ptuning train``.
    """

    data: str
    method: str
    rows: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    development: bool = False


def plan(data: Sequence[str], sizes: Sequence[int], seeds: Sequence[int]) -> Iterator[Run]:
    """The study: few rows first, then the first seeds."""
    for rows in sizes:
        for seed in seeds:
            for name in data:
                for method in METHODS:
                    if method != "zero-shot" or (seed == seeds[0] and rows == sizes[0]):
                        yield Run(data=name, method=method, rows=rows, seed=seed)


def splits_of(run: Run) -> dict[str, list[Row]]:
    """Training, validation and test rows."""
    rows, (first, last) = rows_of(run.data, "train"), DEVELOPMENT[run.data]
    return {
        "train": drawn(rows[slice(*TRAIN[run.data])], run.rows, run.seed),
        "validation": drawn(rows[slice(*VALIDATION[run.data])], run.rows, run.seed),
        "test": rows[first:last] if run.development else rows_of(run.data, "test")[:TEST],
    }


def judged(model: PTuningModel, rows: Sequence[Row]) -> dict[str, float]:
    """The metrics on ``rows``."""
    examples = [
        Example(
            row=number,
            text=row["sentence1"] if "sentence1" in row else row["sentence"],
            text_b=row.get("sentence2"),
            label=row["label"],
        )
        for number, row in enumerate(rows, 1)
    ]
    split = tokenised(model, examples)
    return measure(logits_of(model, split.rows).double().numpy(), split.targets, model.task)


def do(run: Run, backbone: str, folder: Path) -> dict[str, Any]:
    """Train and judge; a line of the results."""
    splits = splits_of(run)
    files = {name: write_lines(rows, folder / f"{name}.jsonl") for name, rows in splits.items()}
    began = time.process_time()
    match run.method:
        case "zero-shot":
            found = zero_shot(run, backbone, splits)
        case "lora":
            found = lora(run, backbone, files)
        case _:
            found = prompted(run, backbone, files, folder)
    return {
        **asdict(run),
        **found,
        "cpu_seconds": round(time.process_time() - began, 1),
        **provenance(),
    }


def zero_shot(run: Run, backbone: str, splits: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    task = Task(
        problem_type="single_label_classification", labels=(0, 1), pair="sentence1" in splits["test"][0]
    )
    head = ClozeHead(**TEMPLATES[run.data] | dict(run.options))
    model = PTuningModel.from_backbone(
        backbone, DeepPrompt(head=head), task=task, dtype=torch.bfloat16
    ).plain()
    return {"test": judged(model, splits["test"])}


def prompted(run: Run, backbone: str, files: Mapping[str, str], folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = {
        "data": {**files, "problem_type": "single_label_classification"},
        "backbone": backbone,
        "output": str(folder / "adapter"),
        "fit": {"seed": run.seed},
        "report": False,
    }
    if run.method != "linear":
        depth = run.method.removeprefix("cloze-")
        values["prompt"] = {"depth": depth, "head": dict(TEMPLATES[run.data])}
    found = train(TrainConfig.checked(with_options(values, run.options)), restart=True)
    return {
        "test": found.metrics["test"],
        "validation": found.metrics["validation"],
        "history": [{"epoch": each.epoch, **each.metrics} for each in found.history],
        "epochs": found.setting["fit"]["num_train_epochs"] if "fit" in found.setting else None,
    }


def lora(run: Run, backbone: str, files: Mapping[str, str]) -> dict[str, Any]:
    """The rate that is best on the validation rows; of equals the one with the lower loss."""
    tried = {}
    for rate in LORA_RATES:
        tried[rate] = train_peer({**LORA, "backbone": backbone, "rate": rate}, files, run.seed)["metrics"]
    best = max(
        tried, key=lambda rate: (tried[rate]["validation"]["accuracy"], -tried[rate]["validation"]["loss"])
    )
    return {
        "test": tried[best]["test"],
        "validation": tried[best]["validation"],
        "rate": best,
        "rates": {str(rate): metrics["validation"] for rate, metrics in tried.items()},
    }


TITLES = {
    "zero-shot": "the template without a prompt, nothing trained",
    "cloze-deep": "**cloze, deep prompt**",
    "cloze-input": "**cloze, input prompt**",
    "linear": "**trained head, deep prompt** (the default)",
    "lora": "LoRA",
}
NAMES = {"sst2": "SST-2", "mrpc": "MRPC"}


def table(markdown: Table, records: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation of the accuracy over seeds, by data and rows."""
    cells: dict[tuple[str, str], dict[tuple[str, int], list[float]]] = {}
    for record in records:
        how = " ".join(f"{name}={value}" for name, value in record["options"].items())
        row = cells.setdefault((record["method"], how), {})
        sizes = {each["rows"] for each in records} if record["method"] == "zero-shot" else {record["rows"]}
        for size in sizes:  # it has learned from no rows
            row.setdefault((record["data"], size), []).append(record["test"]["accuracy"])
    columns = sorted(
        {column for row in cells.values() for column in row}, key=lambda each: (each[1], each[0])
    )
    ordered = sorted(cells.items(), key=lambda item: (METHODS.index(item[0][0]), item[0][1]))
    rows = [
        (f"{TITLES[method]} {how}".strip(), *(counted_mean(row.get(column, [])) for column in columns))
        for (method, how), row in ordered
    ]
    return markdown(("method", *(f"{NAMES[data]}, {size} rows per class" for data, size in columns)), rows)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--backbone", default="google/gemma-3-270m", help="Hub id or folder of a decoder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", nargs="+", default=["sst2", "mrpc"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 100])
    parser.add_argument("--methods", nargs="+", default=METHODS, help="only these")
    parser.add_argument("--development", action="store_true", help="judge other training rows")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE[,VALUE]", help="options to try")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/cloze"), help="folder of the runs")
    parser.add_argument("--table", action="store_true", help="print the results, run nothing")
    given = parser.parse_args(words)
    records = read(given.results)
    if given.table:
        print(table(plain_table, records))
        return
    if given.set and not given.development:
        parser.error("options are tried with --development")
    torch.set_num_threads(1)
    names = list(Run.__dataclass_fields__)
    done = [{name: record[name] for name in names} for record in records]
    for options in combinations(given.set) if given.set else [{}]:
        for run in plan(given.data, given.sizes, given.seeds):
            wanted = {**asdict(run), "options": dict(options), "development": given.development}
            if run.method not in given.methods or wanted in done:
                continue
            record = do(Run(**wanted), given.backbone, given.scratch)
            append(record, given.results)
            print(
                f"{run.data} {run.rows} {run.method} {run.seed} {options}: "
                f"{ {name: round(value, 4) for name, value in record['test'].items()} }, "
                f"{record['cpu_seconds']} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
