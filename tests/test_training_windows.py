"""Training on texts that are read in windows, and what uses such an adapter without being asked."""

from __future__ import annotations

import asyncio
import csv
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import WORDS
from ptuning import (
    DeepPrompt,
    FitConfig,
    InputPrompt,
    Predictor,
    PTuningModel,
    Task,
    TrainConfig,
    fit,
    train,
    train_several,
)
from ptuning.cli import main
from ptuning.data import Example
from ptuning.data.tokens import Tokenise, collate, windows_of
from ptuning.errors import ConfigError
from ptuning.inference.evaluate import logits_of
from ptuning.serving.rows import Refusal, Row, RowAnswer
from ptuning.serving.service import Service
from ptuning.serving.settings import Settings
from ptuning.training.callbacks import Callback
from ptuning.training.head_init import fit_head
from ptuning.training.interrupt import Interrupted
from ptuning.training.prepare import tokenised
from served import registry
from test_training import StopAfter, same

LIMIT = 10
READ = {"too_long": "windows", "max_length": LIMIT, "max_windows": 4}
CLASSES = Task(problem_type="single_label_classification", labels=("negative", "positive"))


def long_rows(count: int, seed: int = 0, size: int = 25) -> list[dict[str, Any]]:
    """Texts whose label is one word behind what a cut text has."""
    draw, found = random.Random(seed), []
    for number in range(count):
        words = draw.choices(WORDS[:9] + WORDS[30:], k=size)
        words[draw.randrange(LIMIT - 2, size)] = ("bad", "good")[number % 2]
        found.append({"text": " ".join(words), "label": ("negative", "positive")[number % 2]})
    return found


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path, jsonl: Callable[..., Path]) -> Callable[..., TrainConfig]:
    data = {"train": str(jsonl("train.jsonl", long_rows(40))), "validation_fraction": 0.25, **READ}

    def make(output: str = "out", **options: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "data": data,
            "backbone": str(tiny_folder),
            "output": str(tmp_path / output),
            "report": False,
            "precision": "fp32",
            "device": "cpu",
            "prompt": {"num_virtual_tokens": 4},
            "fit": {"epochs": 2, "batch_size": 8, "prompt_rate": 3e-2, "head_rate": 3e-2},
        }
        for key, value in options.items():
            section, _, name = key.partition("__")
            values[section] = {**values[section], name: value} if name else value
        return TrainConfig.checked(values)

    return make


class Told(Callback):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_message(self, message: str) -> None:
        self.said.append(message)


def test_what_is_behind_the_cut_is_learned_and_recorded_and_used_without_being_asked(
    config: Callable[..., TrainConfig], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    held = long_rows(40, seed=1, size=14)
    data = {"test": held, "train": long_rows(160, seed=2, size=14)}
    files = {f"data__{name}": str(jsonl(f"{name}.jsonl", rows)) for name, rows in data.items()}
    told = Told()
    made = config(fit__epochs=8, prompt__pooling="mean", data__max_length=8, **files)
    result = train(made, callbacks=[told])
    assert result.metrics["test"]["accuracy"] > 0.7
    said = "120 of 120 training rows have more than 8 tokens and are read in windows, 3.0 on average"
    assert said in told.said
    record = json.loads((Path(made.output) / "ptuning.json").read_text())
    assert record["task"]["max_windows"] == 4
    assert "window_overlap" not in record["task"]  # the default
    card = (Path(made.output) / "README.md").read_text()
    assert "longer texts: read in up to 4 overlapping windows (25% overlap)" in card
    model = PTuningModel.from_pretrained(made.output, dtype=torch.float32)
    found = Predictor(model)([row["text"] for row in held])
    right = [each.label == row["label"] for each, row in zip(found, held, strict=True)]
    assert np.mean(right) == pytest.approx(result.metrics["test"]["accuracy"])


def test_a_row_that_needs_more_memory_than_a_batch_is_said(config: Callable[..., TrainConfig]) -> None:
    for size, noted in ((3, True), (4, False)):
        told = Told()
        train(config(f"size-{size}", fit__batch_size=size, fit__epochs=1), callbacks=[told])
        (said,) = (each for each in told.said if "read in windows" in each)
        assert said.endswith("; one of 4 windows needs as much memory as 4 cut rows") == noted


def gradients(model: PTuningModel, rows: list[dict[str, Any]], **options: Any) -> dict[str, torch.Tensor]:
    """Those of the first step of a run."""
    found: dict[str, torch.Tensor] = {}
    names = {id(value): name for name, value in model.task_parameters().items()}

    class Recording(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for value in group["params"]:
                    if not found.get("done"):
                        found[names[id(value)]] = value.grad.clone()
            found["done"] = torch.ones(())

    fit(
        model,
        {"train": rows, "validation": long_rows(4, seed=3)},
        FitConfig(num_train_epochs=1, max_grad_norm=float("inf"), backbone_dropout=False, **options),
        optimizer=lambda groups: Recording([{**group, "lr": 1e-3} for group in groups], lr=1e-3),
        columns={"too_long": "windows", "max_windows": 4},
    )
    del found["done"]
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deep", {"batch_size": 8}),
        ("stem", {"batch_size": 8}),
        ("input", {"batch_size": 8}),
        ("deep", {"batch_size": 8, "class_weights": (10.0, 1.0)}),
        ("stem", {"batch_size": 3, "gradient_accumulation_steps": 3, "class_weights": (10.0, 1.0)}),
    ],
    ids=["deep", "stem", "input", "weights", "weights-accumulation"],
)
@pytest.mark.usefixtures("any_features")
def test_a_steps_gradient_is_that_of_the_mean_of_each_rows_windows(
    tiny_folder: Path, name: str, options: dict[str, Any]
) -> None:
    """Its windows run in several parts: 7 rows have more than 20, and a part has at most 8. The classes'
    weights count in all of them together.
    """
    prompts = {
        "deep": DeepPrompt(num_virtual_tokens=4, position_offset=0),
        "stem": DeepPrompt(num_virtual_tokens=4, position_offset=0, first_layer=1),
        "input": InputPrompt(num_virtual_tokens=2, placement="start"),
    }
    rows = [*long_rows(6), {"text": "a good film", "label": "positive"}]
    task = replace(CLASSES, max_length=LIMIT + 2 * (name == "input"))

    def made() -> PTuningModel:
        torch.manual_seed(0)
        return PTuningModel.from_backbone(str(tiny_folder), prompts[name], task=task, dtype=torch.float32)

    got = gradients(made(), rows, **options)
    model = made()
    model.set_task(replace(task, max_windows=4))
    tokens = Tokenise.for_model(model)([Example(row=i, text=row["text"]) for i, row in enumerate(rows)])
    logits = torch.stack(
        [torch.cat([model(**collate([w], 0)).logits for w in windows_of([row])]).mean(0) for row in tokens]
    )
    labels = torch.tensor([int(row["label"] == "positive") for row in rows])
    weight = torch.tensor(options.get("class_weights", (1.0, 1.0)))
    loss = torch.nn.functional.cross_entropy(logits, labels, weight=weight)
    wanted = dict(
        zip(got, torch.autograd.grad(loss, [model.task_parameters()[key] for key in got]), strict=True)
    )
    assert got.keys() == model.task_parameters().keys()
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fit__gradient_accumulation_steps": 2, "fit__batch_tokens": 60},
        {"prompt__first_layer": 1, "prompt__pooling": "layers"},
        {"prompt": {"depth": "input", "placement": "front", "num_virtual_tokens": 4}},
    ],
    ids=["plain", "batch-tokens", "stem", "input"],
)
def test_a_resumed_run_is_the_straight_run_to_the_bit(
    config: Callable[..., TrainConfig], tmp_path: Path, options: dict[str, Any]
) -> None:
    straight = train(config("straight", **options))
    broken = config("broken", **options)
    with pytest.raises(Interrupted):
        train(broken, callbacks=[StopAfter(3)])
    resumed = train(broken, resume=True)
    assert same(tmp_path / "straight", tmp_path / "broken")
    assert resumed.history == straight.history
    assert resumed.metrics == straight.metrics


def test_resume_refuses_other_windows(config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(Interrupted):
        train(config(), callbacks=[StopAfter(2)])
    with pytest.raises(ConfigError, match="cannot resume: the data has changed"):
        train(config(data__max_windows=3), resume=True)


def test_where_every_row_fits_windows_change_nothing(
    config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    fits = {"data__max_length": 40}
    read = train(config("read", **fits))
    cut = train(config("cut", **fits, data__too_long="truncate", data__max_windows=None))
    assert same(tmp_path / "read", tmp_path / "cut")
    assert read.history == cut.history


def test_several_runs_share_windows(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    alone = train(config("alone"))
    (one, _) = train_several(config("set"), seeds=[0, 1]).runs
    assert one.result is not None
    assert one.result.history == alone.history


KINDS: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "regression": (Task(problem_type="regression", mean=1.0, scale=2.0), lambda i: i % 5 / 2),
    "several": (
        Task(problem_type="multi_label_classification", labels=("x", "y")),
        lambda i: ["x", "y"][: i % 3],
    ),
    "balanced": (CLASSES, lambda i: ("negative", "positive")[i % 4 == 0]),
}


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_is_trained_and_measured_on_windows(
    tiny_folder: Path, kind: str, pair: bool
) -> None:
    """The metrics are those of the predictions, window by window."""
    task, label = KINDS[kind]
    rows = [{**row, "label": label(i)} for i, row in enumerate(long_rows(30))]
    if pair:
        rows = [{**row, "text_b": "a good film"} for row in rows]
    if kind == "several":
        rows = [{**{k: v for k, v in row.items() if k != "label"}, "labels": row["label"]} for row in rows]
    torch.manual_seed(0)
    pooling = "similarity" if pair else "mean"
    model = PTuningModel.from_backbone(
        str(tiny_folder),
        DeepPrompt(num_virtual_tokens=3, position_offset=0, pooling=pooling),
        task=replace(task, pair=pair, max_length=LIMIT),
        dtype=torch.float32,
    )
    weights = "balanced" if kind == "balanced" else None
    result = fit(
        model,
        {"train": rows[:20], "validation": rows[20:]},
        FitConfig(num_train_epochs=1, batch_size=4, class_weights=weights),
        columns={"too_long": "windows", "window_overlap": 0.5, "max_windows": 3},
    )
    assert (model.task.max_windows, model.task.window_overlap) == (3, 0.5)
    examples = [Example(row=i, text=row["text"], text_b=row.get("text_b")) for i, row in enumerate(rows[20:])]
    tokens = Tokenise.for_model(model)(examples)
    assert {len(row.windows) for row in tokens} == {3}
    with torch.no_grad():
        logits = torch.stack(
            [
                torch.cat([model(**collate([w], 0)).logits for w in windows_of([row])]).mean(0)
                for row in tokens
            ]
        )
    model.eval()
    torch.testing.assert_close(logits_of(model, tokens), logits, rtol=1e-4, atol=1e-4)
    answers = [model.task.kind.answer(each.tolist(), model.task)[0] for each in logits]
    found = result.metrics["validation"]
    if kind == "regression":
        wanted = np.array([row["label"] for row in rows[20:]])
        assert found["mse"] == pytest.approx(float(((np.array(answers) - wanted) ** 2).mean()), abs=1e-3)
    elif kind == "balanced":
        right = [answer == row["label"] for answer, row in zip(answers, rows[20:], strict=True)]
        assert found["accuracy"] == pytest.approx(np.mean(right))


def test_a_head_is_fitted_to_the_mean_of_the_windows_features(tiny_folder: Path) -> None:
    """Its last layer is linear: the mean of the windows' logits is its output for their mean features."""
    task = Task(problem_type="regression", pair=True, mean=1.0, scale=2.0, max_length=LIMIT, max_windows=3)
    config = DeepPrompt(num_virtual_tokens=3, pooling="similarity", position_offset=0)
    model = PTuningModel.from_backbone(str(tiny_folder), config, task=task, dtype=torch.float32)
    texts = [" ".join(row["text"].split()[: 3 + i % 9]) for i, row in enumerate(long_rows(32))]
    examples = [
        Example(row=i, text=text, text_b="a good film", label=float(i % 5)) for i, text in enumerate(texts)
    ]
    split = tokenised(model, examples)
    assert len({len(row.windows) for row in split.rows}) > 1
    done: list[tuple[int, int]] = []
    loss = fit_head(model, split, lambda now, total: done.append((now, total)))
    total = sum(len(row.windows) for row in split.rows)
    assert done[-1] == (total, total)
    logits = logits_of(model.eval(), split.rows)
    assert loss == pytest.approx(float(model.loss(logits, torch.tensor(split.targets).float())), abs=1e-4)
    assert loss < 1.0  # of the constant answer, whatever the ridge leaves


# ------------------------------------------------------------------------------------------ commands


@pytest.fixture
def adapter(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    made = config("adapter", fit__epochs=1)
    train(made)
    return Path(made.output)


def test_commands_read_windows_without_being_asked(
    adapter: Path, jsonl: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(jsonl("new.jsonl", long_rows(12, seed=5)))
    model = PTuningModel.from_pretrained(adapter, dtype=torch.float32)
    texts = [row["text"] for row in long_rows(12, seed=5)]
    device = ["--device", "cpu", "--precision", "fp32"]

    def predicted(*options: str) -> list[float]:
        output = tmp_path / "found.csv"
        argv = ["predict", str(adapter), file, "--output", str(output), "--format", "csv", *device, *options]
        assert main(argv) == 0
        with output.open(encoding="utf-8", newline="") as stream:
            return [float(row["p(positive)"]) for row in csv.DictReader(stream)]

    read = [dict(each.probabilities)["positive"] for each in Predictor(model)(texts)]
    cut = [dict(each.probabilities)["positive"] for each in Predictor(model, too_long="truncate")(texts)]
    assert read != pytest.approx(cut, abs=1e-4)
    assert predicted() == pytest.approx(read, abs=1e-4)
    assert predicted("--data.too_long", "truncate") == pytest.approx(cut, abs=1e-4)
    capsys.readouterr()
    assert main(["predict", str(adapter), file, "--too_long", "error", *device]) == 2
    assert "got 27 tokens, expected at most 10" in capsys.readouterr().err
    assert main(["evaluate", str(adapter), file, "--json", *device]) == 0
    right = [
        (chance > 0.5) == (row["label"] == "positive")
        for chance, row in zip(read, long_rows(12, seed=5), strict=True)
    ]
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"] == pytest.approx(np.mean(right))
    assert main(["inspect", str(adapter)]) == 0
    assert "up to 4 windows, overlap 25%" in capsys.readouterr().out
    assert main(["export-peft", str(adapter), str(tmp_path / "peft")]) == 0
    said = capsys.readouterr().err
    assert "no windows, so this is left out" in said
    assert "windows: average the logits of up to 4 windows of a long text" in said
    argv = [
        "check-data",
        file,
        "--max_length",
        "16",
        "--too_long",
        "windows",
        "--backbone",
        str(model.backbone.name),
    ]
    main(argv)
    assert "will be read in windows (the longest has 27)" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value"), [("max_windows", 2), ("window_overlap", 0.5)])
def test_options_of_windows_without_windows_are_refused(
    config: Callable[..., TrainConfig], option: str, value: float
) -> None:
    with pytest.raises(ConfigError, match=f"data.{option}: only used with data.too_long: windows"):
        config(**{"data__too_long": "truncate", "data__max_windows": None, f"data__{option}": value})


def test_fit_takes_what_its_task_says_unless_the_columns_say_it(tiny_folder: Path) -> None:
    for columns, most in (({}, 4), ({"too_long": "truncate"}, 1), ({"too_long": "windows"}, 4)):
        task = replace(CLASSES, max_length=LIMIT, max_windows=4)
        model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=2), task=task)
        data = {"train": long_rows(8), "validation": long_rows(4)}
        fit(model, data, FitConfig(num_train_epochs=1), columns=columns)
        assert model.task.max_windows == most


# -------------------------------------------------------------------------------------------- server


def test_the_server_answers_one_row_per_row(adapter: Path, tiny_folder: Path) -> None:
    """Each window is a row of a batch: a row of 4 windows is answered where a batch has room for two."""
    tasks = registry(tiny_folder)
    tasks.load("long", adapter)
    texts = ["a good film", *(row["text"] for row in long_rows(5, seed=6)), "very " * 200]
    rows = [Row(task="long", text=text) for text in texts]

    async def asked(truncate: bool = True, **settings: Any) -> list[RowAnswer | Refusal]:
        service = Service(tasks, settings=Settings(batch_tokens=2 * LIMIT, **settings))
        await service.start()
        try:
            return (await service.answer(rows, truncate=truncate))[0]
        finally:
            await service.close()

    model = PTuningModel.from_pretrained(adapter, dtype=torch.float32)
    tokens = Tokenise.for_model(model)([Example(row=1, text=text) for text in texts])
    expected = logits_of(model, tokens)
    answers = asyncio.run(asked())
    for answer, row, logits in zip(answers, tokens, expected, strict=True):
        assert isinstance(answer, RowAnswer)
        assert answer.logits == pytest.approx(logits.tolist(), abs=1e-4)
        assert answer.tokens == sum(len(window) for window in row.windows)
        assert answer.truncated == row.cut
    assert [answer.truncated for answer in answers if isinstance(answer, RowAnswer)] == [False] * 6 + [True]
    *_, refused = asyncio.run(asked(truncate=False))
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.kind) == (422, "too_many_tokens")
    assert "202 tokens, and the task long takes at most 4 windows of 10" in refused.message
    with pytest.raises(Refusal, match="the texts of the request have more windows than the server takes"):
        asyncio.run(asked(queue_rows=24, max_rows=24))
    first, *others = asyncio.run(asked(max_windows=3))
    assert isinstance(first, RowAnswer)
    assert {(each.status, each.kind) for each in others if isinstance(each, Refusal)} == {
        (413, "too_many_windows")
    }
    assert len([each for each in others if isinstance(each, Refusal)]) == 6


def test_the_server_makes_no_more_windows_than_it_takes(
    adapter: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is refused after one window too many, and a request after the first rows that are too many."""
    tasks = registry(tiny_folder)
    tasks.load("long", adapter)
    made: list[int] = []
    call = Tokenise.__call__

    def counted(self: Tokenise, *given: Any) -> Any:
        rows = call(self, *given)
        made.extend(len(row.windows) for row in rows)
        return rows

    monkeypatch.setattr(Tokenise, "__call__", counted)

    async def asked(count: int, **settings: Any) -> list[RowAnswer | Refusal]:
        service = Service(tasks, settings=Settings(tokenise_threads=1, warm_up=False, **settings))
        await service.start()
        try:
            rows = [Row(task="long", text="very " * 200)] * count
            return (await service.answer(rows))[0]
        finally:
            await service.close()

    (refused,) = asyncio.run(asked(1, max_windows=2))
    assert isinstance(refused, Refusal)
    assert refused.kind == "too_many_windows"
    assert "202 tokens, which are more than 2 windows" in refused.message
    assert made == [3]  # of the task's 4
    made.clear()
    with pytest.raises(Refusal, match="more windows than the server takes"):
        asyncio.run(asked(256, queue_rows=300, max_rows=256))
    assert len(made) == 64  # the first of four pieces
