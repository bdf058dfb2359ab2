"""What the quality study compares: data sets, methods, rates and seeds, and which runs are still to be done.

A run is a data set, a method, its setting and a seed. The setting holds every option that decides the run, so
its digest tells runs apart, and a run that is in the results is not done again.

Every peer gets three rates, tried with seed 0. The one that is best on the validation rows is the method's on
that data set; the sweep's run is its seed 0. What decides reads validation figures and nothing else. Methods
of ptuning's have the recipe's rates.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ptuning import TrainConfig
from ptuning.task import ProblemType, Task
from ptuning.training.config import OLD_NAMES, FitConfig
from ptuning.training.metrics import Selection
from ptuning.training.recipe import Facts, Recipe, units_and_queries

Record = Mapping[str, Any]
"""A line of the results: a run, and what it found."""

# ----------------------------------------------------------------------------------------- data sets


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Rows to learn from.

    Attributes:
        source: Its folder below ``PTUNING_DATA``, or in that of ``quality.elsewhere``.
        rows: Training rows.
        tokens: Tokens a row on average, for estimates of time.
        pair: Whether a row has two texts.
        classes: How many there are; 1 for a score.
        metric: What a run is selected and judged by.
        also: The metric that is shown beside it.
        limit: Only the first training rows of the file.
        per_class: Few-shot: so many rows of each class, drawn with the run's seed.
        elsewhere: Whether it is one of ``quality.elsewhere``'s.
        backbone: The model that is trained on it: ``demo``, or one of those that ``make backbones`` makes.
    """

    source: str
    rows: int
    tokens: int
    pair: bool = True
    classes: int = 2
    metric: str = "accuracy"
    also: str = "f1"
    limit: int | None = None
    per_class: int | None = None
    elsewhere: bool = False
    backbone: str = "demo"


_WHOLE: Mapping[str, DataSet] = {
    "mrpc": DataSet(source="mrpc", rows=3672, tokens=54),
    "stsb": DataSet(source="stsb", rows=5749, tokens=33, classes=1, metric="pearson", also="spearman"),
    "sst2": DataSet(source="sst2", rows=10_000, tokens=13, pair=False, limit=10_000),
}


def few_shot(source: str, per_class: int) -> DataSet:
    """So many rows of each of two classes."""
    whole = _WHOLE[source]
    return DataSet(
        source=source, rows=2 * per_class, tokens=whole.tokens, pair=whole.pair, per_class=per_class
    )


STUDIED: Mapping[str, DataSet] = {
    **_WHOLE,
    **{f"{source}-{each}": few_shot(source, each) for source in ("mrpc", "sst2") for each in (16, 100, 1000)},
}
"""Where every method is run."""

ELSEWHERE: Mapping[str, DataSet] = {
    "reuters": DataSet(source="reuters", rows=400, tokens=75, pair=False, classes=8, elsewhere=True),
    "newsgroups": DataSet(source="newsgroups", rows=600, tokens=65, pair=False, classes=20, elsewhere=True),
    "tweets": DataSet(source="tweets", rows=400, tokens=20, pair=False, elsewhere=True),
    "reviews": DataSet(
        source="reviews",
        rows=400,
        tokens=25,
        pair=False,
        classes=1,
        metric="pearson",
        also="spearman",
        elsewhere=True,
    ),
}
"""Where the default recipe stands beside full fine-tuning, frozen embeddings and a constant answer alone."""

BACKBONES: Mapping[str, str] = {"mpnet": "all-mpnet-base-v2", "gemma": "gemma-3-270m"}
"""The folders that ``make backbones`` makes, by the name that their data sets begin with."""

TRAVELLED: Mapping[str, DataSet] = {
    f"{name}/{dataset}": replace(data, backbone=backbone)
    for name, backbone in BACKBONES.items()
    for dataset, data in {
        "sst2-100": few_shot("sst2", 100),
        "newsgroups": ELSEWHERE["newsgroups"],
        "sst2-1000": few_shot("sst2", 1000),
        "stsb-2000": replace(_WHOLE["stsb"], rows=2000, limit=2000),
        "mrpc-1000": few_shot("mrpc", 1000),
    }.items()
}
"""Where the recipe is measured on other backbones than MiniLM (``quality_backbones.py``)."""

DATASETS: Mapping[str, DataSet] = {**STUDIED, **ELSEWHERE, **TRAVELLED}


def data_set(name: str) -> DataSet:
    """One of :data:`DATASETS`, or any ``SOURCE-N``: N rows of each class."""
    source, _, per_class = name.partition("-")
    return DATASETS[name] if name in DATASETS else few_shot(source, int(per_class))


# ------------------------------------------------------------------------------------------- methods

Kind = Literal["majority", "frozen", "ptuning", "peer", "setfit", "default"]

TRAINING: Mapping[str, Any] = {
    "batch_size": 16,
    "least_steps": 300,
    "warmup": 0.06,
    "schedule": "linear",
    "clip": 1.0,
    "weight_decay": 0.0,
}
"""What all methods have in common that are trained by a loop of ours or of ptuning's."""

RECIPES: Mapping[str, int] = {
    "all-mpnet-base-v2": 4,
    "gemma-3-270m": 4,
    "gemma/newsgroups": 5,
    "gemma/stsb-2000": 5,
    "gemma/mrpc-1000": 6,
}
"""Counts the recipes of each backbone, or of a data set: raised when what ``ptuning train`` chooses there
changes. The choices depend on what is measured of the backbone, so a setting cannot spell them out."""

MOST_PAIRS = 8000
"""SetFit's pairs grow with the square of the rows: no more than its paper's 20 a row make of 200 rows."""

EVALUATIONS = 8
"""Looks at the validation rows in a run whose epochs are stretched to the least number of steps."""

LAYERS = 6
"""MiniLM's."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to solve the task.

    Attributes:
        title: Its name in tables.
        kind: Who trains it.
        options: What makes it this method, part of the setting.
        rates: Peak learning rates to choose from; none where nothing is trained, and for ptuning's methods.
        seeds: How many seeds, from 0 on.
        datasets: Where it is run.
    """

    title: str
    kind: Kind
    options: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    seeds: int = 3
    datasets: tuple[str, ...] = tuple(STUDIED)


def _peer(
    title: str,
    peer: str,
    rates: tuple[float, ...],
    *,
    seeds: int = 3,
    datasets: tuple[str, ...] = tuple(STUDIED),
    **options: Any,
) -> Method:
    chosen = {"epochs": 8, "peer": peer, "dropout": True, **options}
    return Method(title=title, kind="peer", options=chosen, rates=rates, seeds=seeds, datasets=datasets)


def _deep(title: str, first_layer: int = 0) -> Method:
    # The token that P-tuning v2 reads, and PEFT; what the default recipe reads is the default recipe's row.
    prompt = {"depth": "deep", "num_virtual_tokens": 20, "first_layer": first_layer, "pooling": "native"}
    options = {"epochs": 8, "prompt": prompt, "rate": 2e-2, "head_share": 0.1}
    return Method(title=title, kind="ptuning", options=options)


def _input(title: str, encoder: str = "embedding", placement: str | None = None, **limits: Any) -> Method:
    prompt: dict[str, Any] = {
        "depth": "input",
        "num_virtual_tokens": 20,
        "encoder": {"kind": encoder},
        "init": {"kind": "vocabulary"},
    }
    if placement is not None:
        prompt["placement"] = placement
    rate = 1e-1 if encoder == "embedding" else 1e-2
    options = {"epochs": 8, "prompt": prompt, "rate": rate, "head_share": 0.1}
    return Method(title=title, kind="ptuning", options=options, **limits)


_VARIANT: Mapping[str, Any] = {"seeds": 1, "datasets": ("mrpc", "sst2")}

METHODS: Mapping[str, Method] = {
    "majority": Method(title="a constant answer", kind="majority", seeds=1, datasets=tuple(DATASETS)),
    "frozen": Method(title="frozen embeddings, a regression", kind="frozen", datasets=(*STUDIED, *ELSEWHERE)),
    "default": Method(title="**ptuning, default recipe**", kind="default", seeds=5, datasets=tuple(DATASETS)),
    "full": _peer(
        "full fine-tuning", "full", (2e-5, 5e-5, 1e-4), seeds=5, datasets=tuple(DATASETS), epochs=5
    ),
    "deep": _deep("**ptuning deep**"),
    "peft-prefix": _peer(
        "PEFT `PREFIX_TUNING`",
        "prefix",
        (3e-3, 1e-2, 3e-2),
        # MPNet takes no past keys and values, so PEFT's prefixes cannot reach it.
        datasets=(*STUDIED, *(name for name in TRAVELLED if not name.startswith("mpnet"))),
        num_virtual_tokens=20,
    ),
    "peft-lora": _peer("PEFT `LORA`", "lora", (3e-4, 1e-3, 3e-3), r=8, lora_alpha=16, lora_dropout=0.1),
    "peft-lora-all": _peer(
        "PEFT `LORA`, every linear layer",
        "lora",
        (3e-4, 1e-3, 3e-3),
        datasets=tuple(TRAVELLED),
        r=8,
        lora_alpha=16,
        lora_dropout=0.1,
        target_modules="all-linear",
    ),
    "head": _peer("head alone", "head", (1e-2, 3e-2, 1e-1), dropout=False, features="once"),
    "deep-two-thirds": _deep("**ptuning deep, upper two thirds**", LAYERS // 3),
    "deep-half": _deep("**ptuning deep, upper half**", LAYERS // 2),
    "input": _input("**ptuning input**"),
    "input-default": Method(
        title="**ptuning input**, default recipe",
        kind="default",
        options={"prompt": {"depth": "input"}},
        datasets=tuple(TRAVELLED),
    ),
    "no-units": Method(
        title="**ptuning**, default recipe without virtual units",
        kind="default",
        options={"prompt": {"num_virtual_units": 0}},
        seeds=1,
        datasets=("gemma/newsgroups", "gemma/stsb-2000", "gemma/mrpc-1000"),
    ),
    "peft-p-tuning": _peer(
        "PEFT `P_TUNING`",
        "p-tuning",
        (1e-3, 3e-3, 1e-2),
        datasets=(*STUDIED, *TRAVELLED),
        num_virtual_tokens=20,
        encoder_hidden_size=128,
    ),
    "input-start": _input("**ptuning input**, at the start", placement="start", **_VARIANT),
    "input-start-mlp": _input("**ptuning input**, at the start, MLP", "mlp", "start", **_VARIANT),
    "input-residual": _input("**ptuning input**, residual MLP", "residual", **_VARIANT),
    "input-lstm": _input("**ptuning input**, LSTM", "lstm", **_VARIANT),
    "setfit": Method(
        title="SetFit",
        kind="setfit",
        options={"most_steps": MOST_PAIRS // 16},
        rates=(1e-5, 2e-5, 5e-5),
        datasets=tuple(name for name, each in STUDIED.items() if each.per_class),
    ),
}
"""In the order in which they are run."""


def setfit_python() -> Path:
    """SetFit's interpreter, whether or not it is there; ``SETFIT_PYTHON`` names another."""
    own = Path(__file__).parent.parent.parent / ".venv-setfit" / "bin" / "python"
    return Path(os.environ.get("SETFIT_PYTHON", own))


# ---------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training."""

    dataset: str
    method: str
    setting: Mapping[str, Any]
    seed: int

    @cached_property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it apart."""
        return (self.dataset, self.method, digest(self.setting), self.seed)

    @property
    def name(self) -> str:
        """For people."""
        rate = self.setting.get("rate")
        return f"{self.dataset} {self.method}" + (f" rate {rate:g}" if rate else "") + f" seed {self.seed}"


def key_of(record: Record) -> tuple[str, str, str, int]:
    """The key of the run that a record is of."""
    return (record["dataset"], record["method"], digest(record["setting"]), record["seed"])


def accelerator(record: Record) -> str | None:
    """The GPU that a run was on, whose seconds and memory are no CPU's; ``None`` for most of them."""
    name: str | None = record["machine"].get("accelerator")
    return name


def digest(setting: Mapping[str, Any]) -> str:
    """Some letters that stand for a setting."""
    text = json.dumps(setting, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def setting_of(method: str, dataset: str, rate: float | None = None) -> dict[str, Any]:
    """Every option that decides a run, but the rows and the seed."""
    chosen, data = METHODS[method], data_set(dataset)
    if chosen.kind == "majority":
        return {"kind": "majority"}
    if chosen.kind == "default":
        if dataset in TRAVELLED:
            recipe = RECIPES.get(dataset, RECIPES[data.backbone])
            return {"kind": "default", "backbone": data.backbone, "recipe": recipe, **chosen.options}
        return default_setting(data)
    setting: dict[str, Any] = {"kind": chosen.kind, "backbone": data.backbone, **chosen.options}
    if chosen.kind not in ("setfit", "frozen"):
        setting |= TRAINING
    if (prompt := setting.get("prompt")) and prompt["depth"] == "input":
        # Where a reader of the papers would put it: between the texts of a pair, in front of one text.
        setting["prompt"] = {"placement": "between" if data.pair else "front", **prompt}
    return setting | ({} if rate is None else {"rate": rate})


def default_setting(data: DataSet) -> dict[str, Any]:
    """What ``train`` does where nothing but data and seed is given, as far as it decides what is learned.

    What the recipe chooses is filled in; the worker refuses a run for which it chose otherwise. What is left
    open is left out, so that a new option that is off by default does not make a new recipe.
    """
    config = TrainConfig.checked({"data": {"train": "rows"}})
    kind: ProblemType = "regression" if data.classes == 1 else "single_label_classification"
    labels = tuple(range(data.classes)) if data.classes > 1 else ()
    task = Task(problem_type=kind, labels=labels, pair=data.pair)
    units, queries = (0, 0) if data.pair else units_and_queries(task, data.rows)
    facts = Facts(
        rows=data.rows,
        tokens=data.rows * data.tokens,
        virtual_units=units,
        fitted=data.pair,
    )
    fit = recorded(Recipe.of(config.fit, facts).fit)
    chosen = config.model_dump(mode="json", include={"backbone", "prompt", "precision"})
    chosen["prompt"]["pooling"] = "similarity" if data.pair else "layers"  # as MiniLM says of itself
    chosen["prompt"]["num_virtual_units"] = units or None
    chosen["prompt"]["num_queries"] = queries or None
    return {"kind": "default", **given({**chosen, "fit": fit})}


def recorded(fit: FitConfig) -> dict[str, Any]:
    """The options of a run as the results have them: by the names that they had when these were made.

    Without those that do not decide what is learned.
    """
    names = {now: before for before, now in OLD_NAMES.items()}
    values = fit.model_dump(mode="json", exclude={"seed", "calibrate"})
    return {names.get(name, name): value for name, value in values.items()}


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without those that are ``None``."""
    return {
        name: given(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None
    }


class Schedule(NamedTuple):
    """How long a run is."""

    epochs: int
    steps: int
    evaluate_every: int


def schedule(setting: Mapping[str, Any], rows: int) -> Schedule:
    """As many epochs as the setting says, or as the least number of steps takes; evaluated each epoch, or
    :data:`EVALUATIONS` times where epochs are that short.
    """
    each = math.ceil(rows / setting["batch_size"])
    epochs = max(setting["epochs"], math.ceil(setting["least_steps"] / each))
    steps = epochs * each
    stretched = epochs > setting["epochs"]
    return Schedule(epochs, steps, math.ceil(steps / EVALUATIONS) if stretched else each)


# --------------------------------------------------------------------------------- what is to be done


def sweep(records: Iterable[Record], dataset: str, method: str) -> dict[float, Mapping[str, float]]:
    """The validation figures of each rate that was tried, by rate; none of a run that diverged."""
    wanted = {
        digest(setting_of(method, dataset, rate)): rate for rate in METHODS[method].rates
    }  # of the plan as it is now
    found = {
        wanted[key[2]]: (record["metrics"] or {}).get("validation", {})
        for record in records
        if (key := key_of(record))[:2] == (dataset, method) and key[2] in wanted and key[3] == 0
    }
    return dict(sorted(found.items()))


def pick(validation: Mapping[float, Mapping[str, float]], metric: str) -> float:
    """The best rate on the validation rows: by the metric, of equals by the loss, of equals the lowest."""
    select = Selection(metric=metric)
    return max(sorted(validation), key=lambda rate: select.key(validation[rate]))


def seeds_of(method: str, dataset: str) -> int:
    """How many seeds a method has on a data set: on large backbones, peers have three."""
    chosen = METHODS[method]
    return min(chosen.seeds, 3) if chosen.kind == "peer" and dataset in TRAVELLED else chosen.seeds


def cell(records: Sequence[Record], dataset: str, method: str, seeds: Sequence[int]) -> list[Run]:
    """What a method's runs on a data set are, as far as they are known: the sweep, then the seeds."""
    chosen = METHODS[method]
    if not chosen.rates:
        settings, sweeping = setting_of(method, dataset), []
    else:
        sweeping = [
            Run(dataset=dataset, method=method, setting=setting_of(method, dataset, rate), seed=0)
            for rate in chosen.rates
        ]
        found = sweep(records, dataset, method)
        if len(found) < len(chosen.rates):
            return sweeping
        settings = setting_of(method, dataset, pick(found, data_set(dataset).metric))
    runs = [
        Run(dataset=dataset, method=method, setting=settings, seed=seed)
        for seed in range(seeds_of(method, dataset))
        if seed in seeds
    ]
    return list({run.key: run for run in [*sweeping, *runs]}.values())


def remaining(
    records: Sequence[Record], datasets: Sequence[str], methods: Sequence[str], seeds: Sequence[int]
) -> list[Run]:
    """The runs that can be started now, the most wanted first."""
    done = {key_of(record) for record in records}
    return [
        run
        for method in METHODS
        for dataset in DATASETS
        if method in methods and dataset in datasets and dataset in METHODS[method].datasets
        for run in cell(records, dataset, method, seeds)
        if run.key not in done
    ]


def outstanding(records: Sequence[Record], dataset: str, method: str, seeds: Sequence[int]) -> int:
    """How many runs a cell still needs, those included that wait for its sweep."""
    chosen = METHODS[method]
    done = {key_of(record) for record in records}
    left = sum(run.key not in done for run in cell(records, dataset, method, seeds))
    if chosen.rates and len(sweep(records, dataset, method)) < len(chosen.rates):
        left += sum(seed in seeds for seed in range(1, seeds_of(method, dataset)))
    return left
