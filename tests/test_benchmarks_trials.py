"""The recipe's trials: the prototype computes what transformers and ptuning do, and the results are whole."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ptuning import PTuningModel
from ptuning.adapters import MIX
from ptuning.model import DeepPrompt
from ptuning.model.backbone import Backbone
from tiny import HEADS, HIDDEN, LAYERS, ragged, tiny_case

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import quality_records
import recipe_tables
import recipe_trials
from recipe_prototype import POOLINGS, Batch, Bert, Learner, Trial
from test_docs import table

P, LENGTHS = 5, [9, 4, 1, 7]
RESULTS = quality_records.read(recipe_trials.RESULTS)


def batch() -> tuple[Batch, Tensor]:
    """Ragged rows of two segments, as the prototype and as transformers take them."""
    ids, mask = ragged(LENGTHS)
    types = ((torch.arange(ids.shape[1]) > 2) & mask.bool()).long()
    return Batch(ids, types, mask.float()), mask


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        got, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.detach().abs().max()))
    )


# ------------------------------------------------------------------------------------ the mathematics


def test_without_a_prompt_the_hidden_states_are_those_of_transformers() -> None:
    model: Any = tiny_case("bert")
    rows, mask = batch()
    with torch.no_grad():
        expected = model.bert(rows.ids, mask, rows.types, output_hidden_states=True).hidden_states
        got = Bert(Backbone(model), torch.float32).hidden_states(rows)
        alone = Bert(Backbone(model), torch.float32).hidden_states(rows, first_token_only=True)[-1]
    assert len(got) == len(expected) == LAYERS + 1
    for ours, theirs in zip(got, expected, strict=True):
        close(ours[mask.bool()], theirs[mask.bool()])
    close(alone, got[-1][:, :1])


@pytest.mark.parametrize("first_layer", [0, 1])
@pytest.mark.parametrize("offset", [None, 0, 3])
@pytest.mark.parametrize(
    ("pooling", "ours"), [("native", "native"), ("mean", "meanpool"), ("layers", "layers")]
)
def test_with_a_prompt_the_logits_are_those_of_ptuning(
    pooling: Any, ours: str, offset: int | None, first_layer: int
) -> None:
    config = DeepPrompt(
        num_virtual_tokens=P, first_layer=first_layer, position_offset=offset, pooling=pooling
    )
    model = PTuningModel.from_backbone(tiny_case("bert"), config, num_labels=3).eval()
    with torch.no_grad():
        prompt = model.prompt_encoder.weight.normal_()  # [layers, 2, P, H]
    head: Any = model.backbone.model.classifier
    mix = model.head.named().get(MIX)
    trial = Trial(virtual_tokens=P, first_layer=first_layer, position_offset=offset, pooling=ours)
    shape = (LAYERS - first_layer, 2, P, HEADS, HIDDEN // HEADS)
    start = prompt.detach().reshape(shape).transpose(2, 3).clone()
    learner = Learner(trial, Bert(model.backbone, torch.float32), 3, start)
    rows, mask = batch()
    with torch.no_grad():
        learner.weight.copy_(head.weight)
        learner.bias.copy_(head.bias)
        if mix is not None:
            learner.mix[0].copy_(mix.normal_())
        close(learner.logits(rows), model(rows.ids, mask, rows.types).logits)


def test_a_prompt_that_is_the_texts_own_keys_and_values_is_seen() -> None:
    """``own``: what a layer computes of its text is what a prompt of it would be."""
    bert = Bert(Backbone(tiny_case("bert")), torch.float32)
    rows = Batch(*(part[:1] for part in batch()[0]))
    own: list[Any] = []
    states = bert.hidden_states(rows, own=own)
    twice = torch.stack([torch.stack(layer) for layer in own])
    for got, expected in zip(bert.hidden_states(rows, twice), states, strict=True):
        close(got, expected)  # every token twice: the attention is the same


ADDED: dict[str, Any] = {"low_rank": 3, "instance": 3, "offset_rank": 2}


def made(**switches: Any) -> Learner:
    """A learner whose prompt is not 0; the same one each time, but for the switches."""
    torch.manual_seed(0)
    bert = Bert(Backbone(tiny_case("bert")), torch.float32)
    start = torch.randn(LAYERS, 2, HEADS, P, HIDDEN // HEADS)
    return Learner(Trial(virtual_tokens=P, init="normal:1", **switches), bert, 3, start)


@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_begins_as_nothing_and_can_learn(name: str) -> None:
    rows, plain, learner = batch()[0], made(), made(**{name: ADDED[name]})
    close(learner.logits(rows), plain.logits(rows))
    added = learner.groups[1][0]
    assert len(added) == 2
    learner.logits(rows).square().sum().backward()
    assert added[1].grad is not None
    assert added[1].grad.abs().max() > 0
    with torch.no_grad():
        added[1].normal_()
    assert (learner.logits(rows) - plain.logits(rows)).abs().max() > 1e-4


def test_what_is_made_of_a_text_is_its_own() -> None:
    """A row's first virtual token is the same whatever stands beside it in the batch."""
    rows, learner = batch()[0], made(instance=3)
    with torch.no_grad():
        learner.instance[1].normal_()
    prompt = learner.made(rows, training=False)
    alone = learner.made(Batch(*(part[:1] for part in rows)), training=False)
    close(prompt[:, :, :1], alone)
    assert (prompt[:, :, 0, :, 0] - prompt[:, :, 1, :, 0]).abs().max() > 1e-3
    assert torch.equal(prompt[:, :, 0, :, 1:], prompt[:, :, 1, :, 1:])


def test_normalised_keys_keep_their_length() -> None:
    rows, learner = batch()[0], made(normalised_keys=True)
    close(learner.logits(rows), made().logits(rows))
    with torch.no_grad():
        learner.prompt.mul_(3)
    prompt = learner.made(rows, training=False)[:, :, 0]
    close(prompt[:, 0].norm(dim=-1), learner.lengths[:, 0, ..., 0])
    close(prompt[:, 1], learner.prompt[:, 1])


def test_a_step_climbs_as_far_as_it_should_and_comes_back() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    with recipe_trials._climbed([first, second], 0.5):
        close(first, torch.tensor([1.3, 1.0]))
        close(second, torch.tensor([1.4]))
        assert first.grad is None
    assert torch.equal(first, torch.ones(2))
    assert torch.equal(second, torch.ones(1))


# ----------------------------------------------------------------------------------------- training


@pytest.fixture
def data(tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data sets without test rows: a trial that looked for them would fail."""
    root = tmp_path / "data"
    for source in ("sst2", "stsb"):
        (root / source).mkdir(parents=True)
        for split, count in (("train", 80), ("validation", 20)):
            made = [
                {"sentence": row["text"], "label": int(row["label"] == "positive")}
                if source == "sst2"
                else {"sentence1": row["text"], "sentence2": "the film", "label": n % 6 - 0.5}
                for n, row in enumerate(rows(count, seed=count))
            ]
            text = "".join(json.dumps(row) + "\n" for row in made)
            (root / source / f"{split}.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PTUNING_DATA", str(root))
    recipe_trials._whole.cache_clear()
    return root


SMALL = Trial(data="sst2-16", virtual_tokens=2, epochs=2, looks=1)


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    "switches",
    [
        {"average": 0.9, "looks": 2},
        {"init": "words", "weight_decay": 0.1, "schedule": "cosine"},
        {"init": "cls:0.1", "low_rank": 3, "label_smoothing": 0.1, "schedule": "constant"},
        {"init": "sep", "values_from_nought": True, "prompt_noise": 0.1, "prompt_dropout": 0.5},
        {"data": "stsb-8", "dropout": 0.1, "first_layer": 1},
        {"init": "names:0.1", "normalised_keys": True, "sharpness": 0.05},
        {"instance": 3, "offset_rank": 2, "added_share": 0.1, "pooling": "layers", "first_layer": 1},
        *({"pooling": pooling} for pooling in POOLINGS),
    ],
    ids=str,
)
def test_a_trial_runs_without_test_rows_and_runs_the_same_again(
    switches: dict[str, Any], tiny_folder: Path
) -> None:
    trial = replace(SMALL, **switches)
    first, second = (recipe_trials.run(trial, str(tiny_folder)) for _ in range(2))
    assert first["last"] == second["last"]
    assert first["history"] == second["history"]
    assert len(first["history"]) == trial.looks
    assert (first["average"] is None) == (trial.average == 0)
    assert all(np.isfinite(value) for value in first["last"].values())
    assert Trial(**json.loads(json.dumps(first))["trial"]) == trial


@pytest.mark.usefixtures("data")
def test_looks_and_an_average_leave_the_training_as_it_is(tiny_folder: Path) -> None:
    seen = replace(SMALL, average=0.9, looks=2)
    assert (
        recipe_trials.run(SMALL, str(tiny_folder))["last"]
        == recipe_trials.run(seen, str(tiny_folder))["last"]
    )


def test_what_is_in_the_results_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Trial] = []

    def run(trial: Trial) -> dict[str, Any]:
        ran.append(trial)
        return {**RESULTS[0], "trial": asdict(trial)}

    monkeypatch.setattr(recipe_trials, "run", run)
    words = ["--results", str(tmp_path / "results.jsonl")]
    recipe_trials.main([*words, "--set", "data=sst2-100", "seed=0,1", "init=normal:0.2,words"])
    assert [(each.seed, each.init) for each in ran] == [
        *((0, "normal:0.2"), (0, "words"), (1, "normal:0.2"), (1, "words"))
    ]
    recipe_trials.main([*words, "--set", "data=sst2-100", "seed=1,2", "init=words"])
    assert [each.seed for each in ran[4:]] == [2]
    recipe_trials.main([*words, "--again", "5"])
    assert ran[5] == ran[4]
    assert "every figure the same: yes" in capsys.readouterr().out
    recipe_trials.main(words)
    assert "5 data=sst2-100 seed=2 init=words" in capsys.readouterr().out
    for wrong, told in (
        (["--again", "6"], "expected 1 to 5"),
        (["--set", "pooling=max"], "expected one of native, cls, mean"),
        (["--set", "pool=mean"], "pool"),
    ):
        with pytest.raises(SystemExit):
            recipe_trials.main([*words, *wrong])
        assert told in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ results


def test_every_line_of_the_results_is_a_trial_and_what_it_found() -> None:
    assert RESULTS
    trials = [Trial(**record["trial"]) for record in RESULTS]
    assert len(set(trials)) == len(trials)
    for trial, record in zip(trials, RESULTS, strict=True):
        assert asdict(trial) == asdict(Trial()) | record["trial"]
        last = record["history"][-1]
        assert last["epoch"] == trial.epochs
        assert record["last"] == {name: last[name] for name in (trial.metric, "loss")}
        assert record["average"] == last.get("average")
        assert (record["average"] is None) == (trial.average == 0)
        assert record["machine"]["threads"] == 1


def test_tables_tell_every_training_once() -> None:
    record = {**RESULTS[0], "average": None, "last": {"accuracy": 0.8, "loss": 0.5}}
    base = Trial(data="sst2-100")

    def line(accuracy: float, **switches: Any) -> dict[str, Any]:
        trial = replace(base, **switches)
        average = {"accuracy": 0.9, "loss": 0.4} if trial.average else None
        last = {"accuracy": accuracy, "loss": 0.5}
        return {**record, "trial": asdict(trial), "last": last, "average": average}

    records = [
        *(line(0.7), line(0.7, looks=1, average=0.9), line(0.75, rate=0.02), line(0.6, seed=1)),
        line(0.65, seed=1, rate=0.02),
    ]
    shown = recipe_tables.tables(table, records)
    assert "| nothing | 0 | 0.7000 |  | 0.500 | 0.9000 | 0.400 |" in shown
    assert "| rate 0.02 | 0 | 0.7500 | +0.0500 | 0.500 |  |  |" in shown
    assert "| rate 0.02 | 1 | 0.6500 | +0.0500 | 0.500 |  |  |" in shown
    assert shown.count("| 0.500 |") == 4
    for each in fields(Trial):  # every switch can be told
        value = {"init": "words", "pooling": "mean", "schedule": "cosine"}.get(each.name, 3)
        if each.name not in ("data", "seed", "looks"):
            assert len(recipe_tables.changes(replace(base, **{each.name: value}), base)) == 1, each.name
