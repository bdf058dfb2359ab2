"""Input prompts by encoder and placement, with the default recipe of ``ptuning train``.

Each run is a line of the results, and what is there is not run again. Validation rows select, test rows are
read once per run, at the end::

    export PTUNING_DATA=folder   # with train.jsonl, validation.jsonl and test.jsonl in sst2/ and mrpc/
    python benchmarks/input_prompts.py --seeds 0 1 2
    python benchmarks/input_prompts.py --backbones all-mpnet-base-v2 --encoders embedding   # make backbones
    python benchmarks/input_prompts.py --table

``benchmarks/guide.py`` compares the placements under PEFT's names, with the guide's own recipe.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from quality.data import home, loadable, write_rows
from quality.plan import BACKBONES, data_set
from quality.records import append, read
from quality.tables import TITLES
from quality.worker import train_prompt
from runs import Table, counted_mean, plain_table, provenance

RESULTS = Path(__file__).parent / "results" / "input-prompts.jsonl"
ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "embedding": {"kind": "embedding"},
    "residual": {"kind": "residual"},
    "mlp, added": {"kind": "mlp", "width": 128, "residual": True},
    "mlp": {"kind": "mlp", "width": 128},
    "lstm": {"kind": "lstm", "width": 128},
}
"""``mlp, added`` is what ``ptuning.peft`` makes of ``P_TUNING``, and ``mlp`` what PEFT does."""
PLACEMENTS = ("start", "front")
VIRTUAL_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        backbone: ``demo``, or one of those that ``make backbones`` makes.
        data: A data set of the quality study.
        encoder: One of :data:`ENCODERS`.
        placement: One of :data:`PLACEMENTS`, or another.
        seed: Of the rows and the run.
    """

    backbone: str
    data: str
    encoder: str
    placement: str
    seed: int


def plan(
    backbones: Sequence[str],
    data: Sequence[str],
    encoders: Sequence[str],
    placements: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[Run]:
    """Every run that is asked for, the first seeds first."""
    for seed in seeds:
        for backbone in backbones:
            for name in data:
                for encoder in encoders:
                    for placement in placements:
                        yield Run(
                            backbone=backbone, data=name, encoder=encoder, placement=placement, seed=seed
                        )


def do(run: Run) -> dict[str, Any]:
    """Train and judge; a line of the results."""
    data = data_set(run.data)
    prompt = {
        "depth": "input",
        "num_virtual_tokens": VIRTUAL_TOKENS,
        "encoder": dict(ENCODERS[run.encoder]),
        "placement": run.placement,
    }
    with tempfile.TemporaryDirectory() as scratch:
        files = write_rows(data, run.seed, home(data), Path(scratch) / "rows")
        options = {"backbone": loadable(run.backbone), "prompt": prompt}
        found = train_prompt(options, files, run.seed, Path(scratch))
    return {
        **asdict(run),
        **found,
        **provenance(),
    }


NAMES = {"demo": "MiniLM"}


def of_study(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The quality study's input prompts on whole data sets, as records of this benchmark."""
    return [
        {
            "backbone": record["setting"]["backbone"],
            "data": record["dataset"],
            "encoder": record["setting"]["prompt"]["encoder"]["kind"],
            "placement": record["setting"]["prompt"]["placement"],
            "seed": record["seed"],
            "metrics": record["metrics"],
        }
        for record in records
        if record["method"].startswith("input") and record["dataset"] in ("mrpc", "sst2")
    ]


def table(markdown: Table, records: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation of the test metric over seeds, by encoder and placement."""
    cells: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for record in records:
        name = (record["backbone"], record["data"], record["encoder"])
        value = record["metrics"]["test"][data_set(record["data"]).metric]
        cells.setdefault(name, {}).setdefault(record["placement"], []).append(value)
    placements = list(dict.fromkeys((*PLACEMENTS, *(each["placement"] for each in records))))
    rows = [
        (
            NAMES.get(backbone, backbone),
            TITLES[data],
            encoder,
            *(counted_mean(found.get(placement, [])) for placement in placements),
        )
        for (backbone, data, encoder), found in sorted(cells.items(), key=lambda item: _place(*item[0]))
    ]
    return markdown(("backbone", "data", "encoder", *(f"`{name}`" for name in placements)), rows)


def _place(backbone: str, data: str, encoder: str) -> tuple[int, str, int]:
    return ["demo", *BACKBONES.values()].index(backbone), data, list(ENCODERS).index(encoder)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--backbones", nargs="+", default=["demo"], choices=["demo", *BACKBONES.values()])
    parser.add_argument(
        "--data", nargs="+", default=["sst2-100"], metavar="NAME", help="data sets of the study"
    )
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--placements", nargs="+", default=list(PLACEMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the results, run nothing")
    given = parser.parse_args(words)
    records = read(given.results)
    if given.table:
        print(table(plain_table, [*of_study(read()), *records]))
        return
    torch.set_num_threads(1)
    names = list(Run.__dataclass_fields__)
    done = [{name: record[name] for name in names} for record in records]
    for run in plan(given.backbones, given.data, given.encoders, given.placements, given.seeds):
        if asdict(run) in done:
            continue
        record = do(run)
        append(record, given.results)
        metric = data_set(run.data).metric
        print(
            f"{run.backbone} {run.data} {run.encoder} {run.placement} {run.seed}: {metric} "
            f"{record['metrics']['validation'][metric]:.3f} of the validation rows, "
            f"{record['metrics']['test'][metric]:.3f} of the test rows, {record['cpu_seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
