"""Runs that start from a trained adapter: what they begin with, what they refuse, what they record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from conftest import WORDS, sentiment
from ptuning import (
    DeepPrompt,
    FitConfig,
    InputPrompt,
    PTuningError,
    PTuningModel,
    TrainConfig,
    TrainResult,
    adapters,
    fit,
    train,
    train_search,
    train_several,
)
from ptuning.cli import inspect, main
from ptuning.data import Example, Origin
from ptuning.errors import AdapterError, AdapterMismatch, ConfigError
from ptuning.training.callbacks import Callback
from ptuning.training.head_fits import logistic_rows
from ptuning.training.head_init import fit_new_rows, starts_fitted
from ptuning.training.interrupt import Interrupted
from ptuning.training.metrics import Selection
from ptuning.training.prepare import tokenised
from ptuning.training.records import Evaluation
from ptuning.training.selection import BestCheckpoints
from ptuning.training.warm_start import WarmStart
from test_training import StopAfter
from tiny import tiny

Rows = list[dict[str, Any]]
ORIGIN = Origin(name="rows", unit="row")


class First(Callback):
    """Keeps the logits for some texts before the first step, and all messages."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.messages = texts, list[str]()
        self.logits: torch.Tensor | None = None

    def on_evaluate(self, state: Any) -> None:
        if state.step == 0:
            self.logits = logits_of(state.model, self.texts)

    def on_message(self, message: str) -> None:
        self.messages.append(message)


class Undone(Callback):
    """Takes every step back."""

    def on_train_begin(self, state: Any) -> None:
        found = state.model.task_parameters().items()
        self.before = {name: value.detach().clone() for name, value in found}

    def on_step_end(self, state: Any) -> None:
        with torch.no_grad():
            for name, value in state.model.task_parameters().items():
                value.copy_(self.before[name])


def logits_of(model: PTuningModel, texts: tuple[str, ...]) -> torch.Tensor:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = model.twin().eval()(**batch).logits
    return logits


Run = Callable[..., tuple[TrainResult, First, Path]]


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for two labels, trained for a few steps."""
    folder = tmp_path_factory.mktemp("base")
    file = folder / "first.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in sentiment(40)), encoding="utf-8")
    config = {
        "data": {"train": str(file)},
        "backbone": str(tiny_folder),
        "precision": "fp32",  # as from_pretrained loads it, on every machine
        "output": str(folder / "base"),
        "report": False,
        "prompt": {"num_virtual_tokens": 3, "first_layer": 1, "pooling": "layers"},
        "fit": {"num_train_epochs": 2},
    }
    train(TrainConfig.checked(config))
    return folder / "base"


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Run:
    """Train on rows from :func:`base`, one epoch unless said otherwise."""

    def made(rows: Rows, texts: tuple[str, ...] = ("the good film", "a bad bill"), **options: Any) -> Any:
        file = tmp_path / "more.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        first = First(*texts)
        values = {
            "data": {"train": str(file), **options.pop("data", {})},
            "output": str(tmp_path / "next"),
            "init_from": str(base),
            "precision": "fp32",
            "report": False,
            "fit": {"num_train_epochs": 1},
            **options,
        }
        result = train(TrainConfig.checked(values), callbacks=[first])
        return result, first, tmp_path / "next"

    return made


def test_the_same_labels_start_as_the_adapter_on_its_backbone(run: Run, base: Path) -> None:
    result, first, folder = run(sentiment(24, seed=1))
    before = PTuningModel.from_pretrained(base)
    torch.testing.assert_close(first.logits, logits_of(before, first.texts), rtol=0, atol=1e-6)
    assert result.history[0].step == 0
    adapter = adapters.load(folder)
    assert adapter.prompt == adapters.load(base).prompt
    assert adapter.task.labels == ("negative", "positive")
    recorded = adapter.extra["init_from"]
    assert recorded["name"] == "base"
    assert recorded["sha256"] == adapters.details(base)["sha256_self"]
    assert recorded["head"] == "kept"


def labelled(*labels: str, count: int = 24, seed: int = 1) -> Rows:
    """Rows with these labels in turn."""
    return [{**row, "label": labels[at % len(labels)]} for at, row in enumerate(sentiment(count, seed))]


def refused(run: Run, rows: Rows, **options: Any) -> PTuningError:
    with pytest.raises(PTuningError) as caught:
        run(rows, **options)
    assert "\n" not in str(caught.value)
    return caught.value


# ------------------------------------------------------------------------------------------ labels


def test_a_new_label_gets_a_row_and_old_labels_keep_theirs(run: Run, base: Path) -> None:
    _, first, folder = run(labelled("positive", "strange", "negative"))
    assert adapters.load(folder).task.labels == ("negative", "positive", "strange")
    assert first.logits is not None
    before = logits_of(PTuningModel.from_pretrained(base), first.texts)
    torch.testing.assert_close(first.logits[:, :2], before, rtol=0, atol=1e-6)
    assert "1 new label: 'strange'" in first.messages


def test_a_label_without_new_rows_is_kept_and_named(run: Run) -> None:
    _, first, folder = run(labelled("positive", "strange"))
    assert adapters.load(folder).task.labels == ("negative", "positive", "strange")
    assert any("no training row has 'negative'" in message for message in first.messages)


@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 0.5, 0.2]], ids=["plain", "weighted"])
def test_rows_of_new_labels_are_fitted_given_the_others(weights: list[float] | None) -> None:
    """The oracle: the penalised loss, minimised by torch from the same start."""
    draw = np.random.default_rng(0)
    features, weight, bias = draw.normal(size=(40, 5)) * 3 + 1, draw.normal(size=(4, 5)), draw.normal(size=4)
    classes = draw.integers(0, 4, 40)
    found, level = logistic_rows(features, classes, (weight, bias), [1, 3], weights=weights)
    np.testing.assert_array_equal(found[[0, 2]], weight[[0, 2]])
    np.testing.assert_array_equal(level[[0, 2]], bias[[0, 2]])
    size = np.sqrt(((features - features.mean(0)) ** 2).sum(1).mean())
    x, y = torch.from_numpy(features), torch.from_numpy(classes)
    counts = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    moved = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    lift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [moved, lift], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def cost() -> torch.Tensor:
        optimizer.zero_grad()
        own, at = torch.from_numpy(weight).clone(), torch.from_numpy(bias).clone()
        own = own.index_add(0, torch.tensor([1, 3]), moved / size)
        at = at.index_add(0, torch.tensor([1, 3]), lift)
        loss = torch.nn.functional.cross_entropy(x @ own.T + at, y, weight=counts, reduction="sum")
        loss = loss + moved.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(cost)
    np.testing.assert_allclose(found[[1, 3]], weight[[1, 3]] + moved.detach().numpy() / size, atol=1e-3)
    np.testing.assert_allclose(level[[1, 3]], bias[[1, 3]] + lift.detach().numpy(), atol=1e-3)


def test_class_weights_count_when_the_row_of_a_new_label_is_fitted(base: Path) -> None:
    rows = labelled("positive", "strange", "negative", count=30)
    heads = []
    for weights in (None, (1.0, 1.0, 1.0), (1.0, 1.0, 8.0)):
        model = PTuningModel.from_pretrained(base).with_labels(["negative", "positive", "strange"])
        model.set_class_weights(weights)
        examples = [
            Example(text=row["text"], label=row["label"], row=at, origin=ORIGIN)
            for at, row in enumerate(rows)
        ]
        fit_new_rows(model, tokenised(model, examples), [2])
        heads.append({name: value.detach().clone() for name, value in model.head.named().items()})
    plain, even, heavy = (head["classifier.bias"] for head in heads)
    assert torch.equal(plain, even)
    assert heavy[2] > plain[2]
    assert torch.equal(heavy[:2], plain[:2])


def test_another_task_takes_over_the_prompt_and_a_new_head(run: Run, base: Path) -> None:
    refusal = refused(run, labelled("red", "blue", "green"))
    assert "init_head: new" in str(refusal)
    _, first, folder = run(labelled("red", "blue", "green"), init_head="new", fit=NOT_TRAINED)
    made, old = adapters.load(folder), adapters.load(base)
    assert made.task.labels == ("blue", "green", "red")
    assert made.extra["init_from"]["head"] == "new"
    torch.testing.assert_close(made.prompt_tensor, old.prompt_tensor, rtol=0, atol=1e-6)
    torch.testing.assert_close(made.head[adapters.MIX], old.head[adapters.MIX], rtol=0, atol=1e-6)
    assert first.logits is not None
    assert first.logits.shape[1] == 3


def test_a_new_head_is_fitted_if_its_layer_has_a_bias(tiny_folder: Path) -> None:
    new, kept = WarmStart(keeps_head=False), WarmStart(keeps_head=True)
    model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(pooling="mean"), num_labels=2)
    assert (starts_fitted(model), starts_fitted(model, new), starts_fitted(model, kept)) == (
        False,
        True,
        False,
    )
    assert not starts_fitted(PTuningModel.from_backbone(tiny("gpt2"), num_labels=2), new)
    frozen = DeepPrompt(pooling="mean", train_head=False)
    assert not starts_fitted(PTuningModel.from_backbone(str(tiny_folder), frozen, num_labels=2), new)


def test_several_labels_continue(run: Run, base: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": [row["label"]]} for row in sentiment(24)]
    run(rows, init_head="new", output=str(tmp_path / "several"))
    more = [{**row, "label": ["positive", "strange"]} for row in sentiment(24)]
    _, first, folder = run(more, init_from=str(tmp_path / "several"))
    assert adapters.load(folder).task.labels == ("negative", "positive", "strange")
    assert first.logits is not None
    before = logits_of(PTuningModel.from_pretrained(tmp_path / "several"), first.texts)
    torch.testing.assert_close(first.logits[:, :2], before, rtol=0, atol=1e-6)


def test_a_regression_keeps_its_unit(run: Run, tmp_path: Path) -> None:
    def scores(count: int, factor: float, seed: int) -> Rows:
        return [{**row, "label": factor * at / count} for at, row in enumerate(sentiment(count, seed), 1)]

    run(scores(30, 5.0, 0), output=str(tmp_path / "scores"))
    _, first, folder = run(scores(24, 9.0, 1), init_from=str(tmp_path / "scores"))
    made, old = adapters.load(folder).task, adapters.load(tmp_path / "scores").task
    assert (made.mean, made.scale) == (old.mean, old.scale)
    before = logits_of(PTuningModel.from_pretrained(tmp_path / "scores"), first.texts)
    torch.testing.assert_close(first.logits, before, rtol=0, atol=1e-6)
    refusal = refused(
        run, [{**row, "label": at % 2} for at, row in enumerate(sentiment(20))], init_from=str(folder)
    )
    assert "whole numbers" in str(refusal)


def test_the_length_is_the_adapters_unless_it_is_given(run: Run, tmp_path: Path) -> None:
    run(sentiment(24), data={"max_length": 20}, output=str(tmp_path / "short"))
    run(sentiment(24), init_from=str(tmp_path / "short"))
    assert adapters.load(tmp_path / "next").task.max_length == 20
    run(sentiment(24), init_from=str(tmp_path / "short"), data={"max_length": 24})
    assert adapters.load(tmp_path / "next").task.max_length == 24


def test_pairs_are_refused(run: Run) -> None:
    assert "two texts per row" in str(refused(run, [{**row, "text_b": "the film"} for row in sentiment(24)]))


# ------------------------------------------------------------------------------------------ prompt


@pytest.mark.parametrize(
    ("prompt", "option", "expected"),
    [
        ({"depth": "input"}, "prompt.depth", "'deep'"),
        ({"first_layer": 0}, "prompt.first_layer", "1"),
        ({"num_virtual_tokens": 4}, "prompt.num_virtual_tokens", "3"),
        ({"pooling": "mean"}, "prompt.pooling", "'layers'"),
        ({"position_offset": 2}, "prompt.position_offset", "0"),
        ({"encoder": {"kind": "mlp"}}, "prompt.encoder", "'embedding'"),
    ],
)
def test_an_option_that_contradicts_the_adapter_is_named(
    run: Run, prompt: dict[str, Any], option: str, expected: str
) -> None:
    error = refused(run, sentiment(24), prompt=prompt)
    assert error.problem == option
    assert str(error.expected).startswith(expected)


def test_options_that_agree_are_accepted_and_an_instance_leaves_defaults_open(run: Run, base: Path) -> None:
    run(sentiment(24), prompt={"num_virtual_tokens": 3, "first_layer": 1, "pooling": None})
    assert adapters.load(base).prompt["first_layer"] == 1
    _, _, folder = run(sentiment(24), prompt=DeepPrompt(train_head=False), fit=NOT_TRAINED_PROMPT)
    made, old = adapters.load(folder), adapters.load(base)
    assert made.prompt == {**old.prompt, "train_head": False}
    assert refused(run, sentiment(24), prompt=InputPrompt()).problem == "prompt.depth"


def test_more_units_and_queries_start_without_an_effect(run: Run, base: Path, tmp_path: Path) -> None:
    before = logits_of(PTuningModel.from_pretrained(base), ("the good film", "a bad bill"))
    prompt = {"num_virtual_units": 2, "num_queries": 1}
    _, first, folder = run(sentiment(24), prompt=prompt, output=str(tmp_path / "grown"))
    torch.testing.assert_close(first.logits, before, rtol=0, atol=1e-6)
    grown = adapters.load(folder.parent / "grown")
    assert (grown.prompt["num_virtual_units"], grown.prompt["num_queries"]) == (2, 1)
    prompt = {"num_virtual_units": 5, "num_queries": 3}
    _, first, folder = run(sentiment(24), prompt=prompt, init_from=str(tmp_path / "grown"))
    before = logits_of(PTuningModel.from_pretrained(tmp_path / "grown"), first.texts)
    torch.testing.assert_close(first.logits, before, rtol=0, atol=1e-6)
    error = refused(run, sentiment(24), prompt={"num_virtual_units": 1}, init_from=str(tmp_path / "grown"))
    assert error.problem == "prompt.num_virtual_units"
    assert str(error.expected).startswith("at least 2")


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_queries_are_refused_if_the_adapters_pooling_uses_none(
    tiny_folder: Path, tmp_path: Path, jsonl: Any, capsys: pytest.CaptureFixture[str], pooling: str
) -> None:
    prompt = DeepPrompt(num_virtual_tokens=2, pooling=pooling)
    model = PTuningModel.from_backbone(str(tiny_folder), prompt, num_labels=2)
    model.set_task(replace(model.task, labels=("negative", "positive")))
    start = model.save_pretrained(tmp_path / "start")
    words = ["train", str(jsonl("rows.jsonl", sentiment(24))), "--init_from", str(start)]
    assert main([*words, "--output", str(tmp_path / "next"), "--prompt.num_queries", "2"]) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1
    assert "prompt.num_queries: got 2, expected 0" in message[0]
    assert pooling in message[0]


def test_a_head_that_is_not_trained_cannot_get_labels(run: Run) -> None:
    error = refused(run, labelled("positive", "negative", "new"), prompt={"train_head": False})
    assert error.problem.startswith("prompt.train_head")


def test_a_template_with_words_and_an_encoder_continues_without_the_encoder(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    prompt = {
        "depth": "input",
        "placement": "{prompt:2} {text} it is {prompt:1}",
        "encoder": {"kind": "lstm"},
    }
    options = {"prompt": prompt, "backbone": str(tiny_folder), "init_from": None}
    run(sentiment(24), output=str(tmp_path / "template"), **options)
    _, first, folder = run(sentiment(24, seed=1), init_from=str(tmp_path / "template"))
    before = PTuningModel.from_pretrained(tmp_path / "template")
    torch.testing.assert_close(first.logits, logits_of(before, first.texts), rtol=0, atol=1e-6)
    made = adapters.load(folder)
    assert made.anchors == adapters.load(tmp_path / "template").anchors
    assert made.prompt["encoder"] == {"kind": "embedding"}
    assert any("encoder 'lstm'" in message for message in first.messages)


# --------------------------------------------------------------------------------------- backbone


def test_another_backbone_is_refused(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    other = tiny("bert", num_labels=2, vocab_size=len(WORDS) + 5, pad_token_id=0, seed=3)
    shutil.copytree(tiny_folder, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    error = refused(run, sentiment(24), backbone=str(tmp_path / "other"))
    assert isinstance(error, AdapterMismatch)
    assert "fingerprint" in str(error)
    assert not (tmp_path / "next").exists()
    run(sentiment(24), backbone=str(tiny_folder))


def test_a_damaged_adapter_and_a_missing_one_are_refused(run: Run, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "damaged")
    file = tmp_path / "damaged" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    for name in ("damaged", "nowhere/at/all"):
        assert isinstance(refused(run, sentiment(24), init_from=str(tmp_path / name)), AdapterError)
    assert not (tmp_path / "next.run").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_an_adapter_that_peft_wrote_continues(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    backbone = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    peft.get_peft_model(backbone, config).save_pretrained(tmp_path / "theirs")
    before = PTuningModel.from_pretrained(tmp_path / "theirs")
    rows = [{**row, "label": at % 2} for at, row in enumerate(sentiment(24))]
    prompt = {"num_virtual_units": 2}
    _, first, folder = run(rows, init_from=str(tmp_path / "theirs"), prompt=prompt)
    torch.testing.assert_close(first.logits, logits_of(before, first.texts), rtol=0, atol=1e-6)
    assert adapters.load(folder).extra["init_from"]["sha256"]
    assert "int in training" in str(refused(run, labelled("0", "1"), init_from=str(tmp_path / "theirs")))


# --------------------------------------------------------------------------------------- the run


NOT_TRAINED: dict[str, Any] = {"num_train_epochs": 1, "learning_rate": 1e-30, "head_learning_rate": 1e-30}
NOT_TRAINED_PROMPT: dict[str, Any] = {"num_train_epochs": 1, "learning_rate": 1e-30}


def test_a_warm_start_is_never_worse_on_the_validation_rows(run: Run, base: Path) -> None:
    fit = {"num_train_epochs": 2, "learning_rate": 30.0, "head_learning_rate": 10.0}
    result, _, folder = run(sentiment(40, seed=3), fit=fit)
    before, metric = result.history[0], result.metric
    assert result.metrics["validation"][metric] >= before.metrics[metric]
    made, old = adapters.load(folder), adapters.load(base)
    if result.best.step == 0 and len(result.averaged) == 1:
        torch.testing.assert_close(made.prompt_tensor, old.prompt_tensor, rtol=0, atol=0)
        assert set(made.metrics) >= {"validation", "baseline"}


def test_the_mean_of_checkpoints_is_dropped_if_it_is_worse_than_the_start() -> None:
    class Values:
        """A model of one parameter, and its accuracy."""

        def __init__(self) -> None:
            self.value = torch.nn.Parameter(torch.zeros(()))

        def task_parameters(self) -> dict[str, torch.nn.Parameter]:
            return {"value": self.value}

        def eval(self) -> None: ...

    model: Any = Values()
    history = [
        Evaluation(epoch=at, step=at, train_loss=0, metrics={"accuracy": 0.8, "loss": 1}) for at in (0, 1)
    ]
    for at_least, kept in ((None, [0, 1]), (history[0].metrics, [0])):
        best = BestCheckpoints(Selection(metric="accuracy"), limit=3, effective_rows=20)
        for at in (0, 1):
            torch.nn.init.constant_(model.value, at)
            best.offer(at, history, model)
        assert best.restore(model, history, 0, lambda: {"accuracy": 0.79, "loss": 1}, at_least) == kept


def test_a_resumed_run_is_the_same_to_the_bit_and_knows_its_adapter(
    run: Run, base: Path, tmp_path: Path
) -> None:
    rows, fit = (
        labelled("positive", "strange", "negative", count=40),
        {"num_train_epochs": 4, "batch_size": 4},
    )
    run(rows, fit=fit, output=str(tmp_path / "whole"))
    shutil.copytree(base, tmp_path / "start")
    values = {
        "data": {"train": str(tmp_path / "more.jsonl")},
        "output": str(tmp_path / "next"),
        "init_from": str(tmp_path / "start"),
        "precision": "fp32",
        "report": False,
        "fit": fit,
    }
    config = TrainConfig.checked(values)
    with pytest.raises(Interrupted):
        train(config, callbacks=[StopAfter(14)])
    kept = adapters.load(tmp_path / "start")
    adapters.save(
        replace(kept, head={**kept.head, "classifier.bias": kept.head["classifier.bias"] + 1}),
        tmp_path / "start",
    )
    with pytest.raises(ConfigError, match="cannot resume with another init_from"):
        train(config, resume=True)
    shutil.rmtree(tmp_path / "start")
    shutil.copytree(base, tmp_path / "start")
    train(config, resume=True)
    one, other = adapters.load(tmp_path / "whole"), adapters.load(tmp_path / "next")
    assert torch.equal(one.prompt_tensor, other.prompt_tensor)
    assert all(torch.equal(value, other.head[name]) for name, value in one.head.items())
    assert other.extra["init_from"]["sha256"] == one.extra["init_from"]["sha256"]


def test_the_written_configuration_starts_the_same_run(run: Run, base: Path, tmp_path: Path) -> None:
    run(sentiment(24), prompt={"num_virtual_tokens": 3})
    text = (tmp_path / "next.run" / "config.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert values["prompt"] == {"num_virtual_tokens": 3}
    assert "backbone" not in values
    again = TrainConfig.checked({**values, "output": str(tmp_path / "again")})
    train(again)
    one, other = adapters.load(tmp_path / "next"), adapters.load(tmp_path / "again")
    assert torch.equal(one.prompt_tensor, other.prompt_tensor)


def test_several_seeds_and_a_search_start_from_it(run: Run, base: Path, jsonl: Any, tmp_path: Path) -> None:
    file = jsonl("rows.jsonl", labelled("positive", "strange", "negative", count=32))
    values = {
        "data": {"train": str(file)},
        "init_from": str(base),
        "report": False,
        "fit": {"num_train_epochs": 1},
        "device": "cpu",
    }
    config = TrainConfig.checked({**values, "output": str(tmp_path / "seeds")})
    found = train_several(config, seeds=[0, 1])
    assert len(found.runs) == 2
    assert adapters.load(tmp_path / "seeds").extra["init_from"]["name"] == "base"
    assert train_several(config, seeds=[0, 1], resume=True).best.name == found.best.name
    pytest.importorskip("optuna")
    search = {**values, "output": str(tmp_path / "search"), "recipe": "search", "search": {"trials": 2}}
    result = train_search(TrainConfig.checked(search))
    assert all(set(trial.values) == {"learning_rate", "head_learning_rate"} for trial in result.trials)
    assert result.result.history[0].step == 0
    with pytest.raises(ConfigError, match=r"search\.first_layers"):
        TrainConfig.checked({**search, "search": {"trials": 2, "first_layers": [0, 1]}})


def test_the_command_line_has_it_and_a_mistake_is_one_line(
    base: Path, jsonl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl("rows.jsonl", sentiment(24))
    words = [str(file), "--init_from", str(base), "--output", str(tmp_path / "next"), "--report", "false"]
    assert main(["train", *words, "--fit.num_train_epochs", "1", "--device", "cpu"]) == 0
    assert f"warm start from {base}: its prompt and its head" in capsys.readouterr().err
    assert main(["train", *words, "--prompt.num_virtual_tokens", "4"]) == 2
    message = capsys.readouterr().err.strip()
    assert "prompt.num_virtual_tokens" in message
    assert "\n" not in message
    assert main(["train", *words, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["init_from"] == str(base)


def test_options_that_need_init_from_are_refused_without_it(base: Path) -> None:
    data = {"data": {"train": "x.csv"}}
    with pytest.raises(ConfigError, match="init_head"):
        TrainConfig.checked({**data, "init_head": "new"})
    with pytest.raises(ConfigError, match="revision"):
        TrainConfig.checked({**data, "init_from": str(base), "revision": "main"})


def test_a_run_that_improves_nothing_takes_over_no_record(base: Path, tmp_path: Path) -> None:
    """The parameters are the adapter's, but what it recorded is of other rows and another calibration."""
    model = PTuningModel.from_pretrained(base)
    assert model.loaded is not None
    stale = {"calibration": {"rows": 3}, "left_out_for_peft": "a temperature", "note": "old"}
    start = model.save_pretrained(tmp_path / "start", extra={**model.loaded.extra, **stale})
    model = PTuningModel.from_pretrained(start)
    config = FitConfig(num_train_epochs=1, calibrate=False)
    fit(model, sentiment(24, seed=2), config, output=tmp_path / "next", report=False, callbacks=[Undone()])
    made, old = adapters.load(tmp_path / "next"), adapters.load(start)
    assert torch.equal(made.prompt_tensor, old.prompt_tensor)
    assert stale.keys() <= old.extra.keys()
    assert not stale.keys() & made.extra.keys()
    assert made.extra["data"]["train"]["rows"] < 24


# ---------------------------------------------------------------------------------------- Python


def test_a_loaded_model_is_evaluated_before_it_is_trained_further(base: Path) -> None:
    model = PTuningModel.from_pretrained(base)
    before = logits_of(model, ("the good film",))
    first = First("the good film")
    result = fit(model, sentiment(24, seed=2), FitConfig(num_train_epochs=1), callbacks=[first])
    assert result.history[0].step == 0
    torch.testing.assert_close(first.logits, before, rtol=0, atol=1e-6)


def test_a_model_with_other_labels_keeps_the_logits_of_those_that_it_knows(base: Path) -> None:
    model = PTuningModel.from_pretrained(base)
    model.set_task(replace(model.task, temperature=2.0))
    texts = ("the good film", "a bad bill")
    before = logits_of(model, texts)
    made = model.with_labels(["positive", "strange", "negative"])
    found = logits_of(made, texts)
    torch.testing.assert_close(found[:, [2, 0]], before, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, 1], before.mean(1), rtol=0, atol=1e-5)
    assert model.task.labels == ("negative", "positive")
    assert made.task.labels == ("positive", "strange", "negative")
    assert made.task.temperature == 1
    assert fit(made, labelled("positive", "strange"), FitConfig(num_train_epochs=1)).history[0].step == 0
    with pytest.raises(ConfigError, match="at least one that this task has"):
        model.with_labels(["a", "b"])


def test_fit_gives_new_labels_the_rows_of_the_head_that_init_from_gives_them(run: Run, base: Path) -> None:
    rows = labelled("positive", "strange", "negative")
    _, first, _ = run(rows)
    model = PTuningModel.from_pretrained(base).with_labels(["negative", "positive", "strange"])
    assert model.new_rows == (2,)
    assert model.with_labels(["strange", "odd", "negative"]).new_rows == (0, 1)
    second = First(*first.texts)
    fit(model, rows, FitConfig(num_train_epochs=1), callbacks=[second])
    torch.testing.assert_close(second.logits, first.logits, rtol=0, atol=1e-6)
    assert model.new_rows == ()
    third = First(*first.texts)
    trained = logits_of(model, first.texts)
    fit(model, rows, FitConfig(num_train_epochs=1), callbacks=[third])
    torch.testing.assert_close(third.logits, trained, rtol=0, atol=1e-6)


@pytest.mark.parametrize("labels", [["z"], ["a", "b"], [1, True], []], ids=str)
def test_labels_without_a_common_one_are_refused_as_such(base: Path, labels: list[Any]) -> None:
    with pytest.raises(ConfigError, match="at least one that this task has, such as 'negative'"):
        PTuningModel.from_pretrained(base).with_labels(labels)


def test_a_string_is_not_several_labels(base: Path) -> None:
    model = PTuningModel.from_pretrained(base)
    model.set_task(replace(model.task, labels=("a", "b")))
    with pytest.raises(ConfigError, match="got the string 'abc', expected several labels"):
        model.with_labels("abc")


def test_other_labels_keep_the_scales_of_the_learning_rates(base: Path) -> None:
    model = PTuningModel.from_pretrained(base)
    before = logits_of(model, ("the good film",))
    model.scale_learning_rates(3.0, 0.5)
    made = model.with_labels(["negative", "positive", "strange"])
    assert made.learning_rate_scales == (3.0, 0.5)
    assert made.to_adapter().extra["rate_scales"] == [3.0, 0.5]
    found = logits_of(made, ("the good film",))
    torch.testing.assert_close(found[:, :2], before, rtol=0, atol=1e-5)
    made = PTuningModel.from_pretrained(base).with_labels(["negative", "positive", "strange"])
    assert made.learning_rate_scales == (1.0, 1.0)


# ------------------------------------------------------------------------------------ provenance


def test_the_adapter_the_card_and_inspect_name_what_it_started_from(
    run: Run, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, folder = run(sentiment(24, seed=1))
    recorded = adapters.load(folder).extra["init_from"]
    assert recorded["data"] == adapters.load(base).extra["data"]
    assert recorded["metrics"] == {"validation": adapters.load(base).metrics["validation"]}
    words = f"base, version {recorded['sha256'][:12]}"
    assert words in (folder / "README.md").read_text(encoding="utf-8")
    inspect.main([str(folder)])
    assert words in " ".join(capsys.readouterr().out.split())
    inspect.main([str(folder), "--json"])
    assert json.loads(capsys.readouterr().out)["init_from"] == recorded
    inspect.main([str(base)])
    assert "started from" not in capsys.readouterr().out
