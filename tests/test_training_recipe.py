"""``recipe: auto``: what is left out is chosen from facts, what is given is kept, both are recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ptuning import (
    DeepPrompt,
    FitConfig,
    InputPrompt,
    MLPEncoder,
    PTuningModel,
    Task,
    TrainConfig,
    adapters,
    fit,
    train,
)
from ptuning.errors import ConfigError
from ptuning.training.callbacks import Callback
from ptuning.training.recipe import (
    CHOSEN,
    CLOZE_STEPS,
    EPOCHS,
    EVALUATIONS,
    MAX_STEPS,
    MIN_STEPS,
    Facts,
    Recipe,
    Settled,
    choice,
)

FACTS = Facts(rows=3301, tokens=150_000)
SHORT = choice(replace(FACTS, rows=36), FitConfig(epochs=2, batch_size=12))
"""What the small run below is to find; the numbers themselves are the first tests' business."""

Rows = Callable[..., list[dict[str, Any]]]


class Told(Callback):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_message(self, message: str) -> None:
        self.said.append(message)


def rates(facts: Facts, **given: Any) -> tuple[float, float]:
    found = Recipe.of(FitConfig(**given), facts).fit
    return found.learning_rate, found.head_learning_rate


# ---------------------------------------------------------------------------------------- the rules


def test_it_chooses_everything_that_may_be_left_out_and_nothing_else() -> None:
    assert set(choice(FACTS, FitConfig())) == set(CHOSEN)
    optional = {name for name in CHOSEN if getattr(FitConfig(), name) is None}
    assert optional == set(CHOSEN)
    assert set(Settled.model_fields) == set(FitConfig.model_fields)


def epochs(rows: int, **given: Any) -> int:
    return Recipe.of(FitConfig(**given), replace(FACTS, rows=rows)).fit.num_train_epochs


def test_few_rows_get_more_epochs_and_many_fewer() -> None:
    assert epochs(FACTS.rows) == EPOCHS
    assert epochs(32) == MIN_STEPS / 2
    assert epochs(200) == 24  # 13 steps an epoch
    assert epochs(200, batch_size=8) == 12
    assert epochs(200, accumulation=2) == 43
    assert epochs(16 * MAX_STEPS // EPOCHS) == EPOCHS
    assert epochs(16 * MAX_STEPS // 4) == 4
    assert epochs(16 * MAX_STEPS * 10) == 2
    assert epochs(16 * MAX_STEPS * 10, epochs=7) == 7


def test_a_deep_prompt_has_one_rate_however_many_rows_there_are() -> None:
    assert {rates(replace(FACTS, rows=rows))[0] for rows in (32, 300, 2500, 10**5)} == {2e-2}


def test_a_prompt_hurries_where_the_user_wants_few_steps() -> None:
    few = replace(FACTS, rows=200)
    assert rates(few)[0] == rates(few, epochs=100)[0] == 2e-2
    assert rates(few, epochs=12)[0] == 3.8e-2  # 156 steps
    assert rates(few, epochs=2)[0] == 6e-2


def test_the_head_goes_as_far_in_a_short_run_as_in_a_long_one() -> None:
    assert rates(FACTS)[1] == 1.5e-3  # 207 steps an epoch, 8 epochs
    assert rates(replace(FACTS, rows=1600))[1] == 3.1e-3
    assert rates(replace(FACTS, rows=1600), epochs=4)[1] == 6.3e-3
    assert rates(replace(FACTS, rows=200))[1] == 8e-3
    assert rates(replace(FACTS, rows=200), epochs=2)[1] == 1e-2  # and no faster
    assert rates(replace(FACTS, rows=100_000))[1] == 1e-3  # and no slower


def test_a_fitted_head_stays_about_where_it_is_and_few_rows_move_the_prompt_less() -> None:
    fitted = replace(FACTS, fitted=True)
    assert {rates(replace(fitted, rows=rows))[1] for rows in (32, 200, 3000, 10**6)} == {2e-4}
    assert [rates(replace(fitted, rows=rows))[0] for rows in (4, 32, 200, 800, 3000, 10**6)] == [
        2e-3, 4e-3, 1e-2, 2e-2, 3e-2, 3e-2,
    ]  # fmt: skip
    given = FitConfig()
    found = [
        Recipe.of(given, replace(fitted, rows=rows)).fit.num_train_epochs for rows in (32, 200, 3000, 10**6)
    ]
    assert found == [75, 12, 5, 2]


def test_a_run_of_many_epochs_is_not_evaluated_in_each() -> None:
    few = replace(FACTS, rows=32)
    assert Recipe.of(FitConfig(epochs=EVALUATIONS), few).fit.evaluate_every == "epoch"
    assert Recipe.of(FitConfig(epochs=2 * EVALUATIONS), few).fit.evaluate_every == 4
    assert Recipe.of(FitConfig(epochs=2), few).fit.evaluate_every == "epoch"
    # Where an epoch is long, a run looks, and saves, as often as one of the usual number of them.
    many = replace(FACTS, rows=16 * MAX_STEPS // 2)
    assert Recipe.of(FitConfig(), many).fit.evaluate_every == MAX_STEPS // EPOCHS + 1
    assert Recipe.of(FitConfig(), replace(many, fitted=True)).fit.evaluate_every == MAX_STEPS // 5
    assert Recipe.of(FitConfig(), replace(FACTS, rows=16 * MAX_STEPS // EPOCHS)).fit.evaluate_every == "epoch"
    assert Recipe.of(FitConfig(epochs=150), few).fit.evaluate_every == 19
    assert Recipe.of(FitConfig(epochs=150, evaluate_every="epoch"), few).fit.evaluate_every == "epoch"


def test_a_budget_of_tokens_makes_more_steps() -> None:
    facts = replace(FACTS, rows=600, tokens=60_000)
    assert facts.steps(FitConfig(), 2) == 2 * 38
    assert facts.steps(FitConfig(batch_tokens=600), 2) == 2 * 100
    assert facts.steps(FitConfig(batch_tokens=60_000), 2) == 2 * 38
    assert facts.steps(FitConfig(accumulation=4), 2) == 2 * 10


def test_an_input_prompt_has_rates_of_its_own() -> None:
    plain = replace(FACTS, depth="input")
    assert rates(plain)[0] == 1e-1
    assert rates(replace(plain, encoder="lstm"))[0] == 1e-2
    assert rates(replace(plain, scaled=True))[0] == 1e-2  # it moves thirty times as far as the rate says


def test_a_cloze_head_needs_few_steps() -> None:
    """It answers before it has learned."""
    few = Facts(rows=32, tokens=700, cloze=True)
    assert choice(few, FitConfig())["num_train_epochs"] * few.steps(FitConfig(), 1) == CLOZE_STEPS
    many = replace(FACTS, cloze=True)
    assert choice(many, FitConfig())["num_train_epochs"] == EPOCHS
    assert rates(few)[0] == rates(many)[0]  # few steps are not hurried


def test_what_is_given_wins() -> None:
    given = {
        "epochs": 3, "learning_rate": 0.5, "head_learning_rate": 0.25,
        "backbone_dropout": True, "evaluate_every": 7,
    }  # fmt: skip
    recipe = Recipe.of(FitConfig(**given, batch_size=4), FACTS)
    fit = recipe.fit
    assert (fit.num_train_epochs, fit.learning_rate, fit.head_learning_rate, fit.batch_size) == (
        3,
        0.5,
        0.25,
        4,
    )
    assert recipe.chose == {}
    rates = "learning rates 0.5 (prompt) and 0.25 (head)"
    assert str(recipe) == f"as given: 3 epochs, batch size 4, {rates}, the backbone's dropout on"
    half = Recipe.of(FitConfig(learning_rate=0.5), FACTS)
    assert half.chose == {
        "num_train_epochs": EPOCHS, "head_learning_rate": 1.5e-3,
        "backbone_dropout": False, "evaluate_every": "epoch",
    }  # fmt: skip
    assert half.fit.learning_rate == 0.5


def test_what_a_search_found_fills_what_is_open_alone() -> None:
    found = {"first_layer": 3, "learning_rate": 0.02, "head_learning_rate": 0.004}
    recipe = Recipe.of(FitConfig(head_learning_rate=0.25), FACTS, found)
    assert recipe.name == "search"
    assert (recipe.fit.learning_rate, recipe.fit.head_learning_rate) == (0.02, 0.25)
    assert recipe.chose == {
        "first_layer": 3, "num_train_epochs": EPOCHS, "learning_rate": 0.02, "backbone_dropout": False,
        "evaluate_every": "epoch",
    }  # fmt: skip


def test_a_warm_start_is_gentler_than_a_cold_one_and_stays_so_with_many_rows() -> None:
    for rows in (32, 200, 2000, 100_000):
        cold = replace(FACTS, rows=rows)
        warm = replace(cold, fitted=True, warm=True)
        for depth, at_most in (("deep", 0.02), ("input", 0.1)):
            (one, one_head), (other, other_head) = (
                rates(replace(facts, depth=depth)) for facts in (warm, cold)
            )
            assert one <= min(other, at_most)
            assert one_head < other_head
        assert choice(warm, FitConfig())["num_train_epochs"] <= choice(cold, FitConfig())["num_train_epochs"]
    assert rates(replace(FACTS, rows=200, warm=True, fitted=True)) == (0.01, 0.0002)
    assert rates(replace(FACTS, warm=True)) == rates(FACTS)  # a head that starts random learns as usual


def test_whether_the_head_starts_fitted_is_a_fact(tiny_folder: Path) -> None:
    task = Task(problem_type="regression", pair=True)
    for pooling in ("similarity", "native"):
        model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(pooling=pooling), task=task)
        assert Facts.of(model, []).fitted is (pooling == "similarity")


@pytest.mark.parametrize(
    ("prompt", "depth", "encoder", "tokens", "first"),
    [
        (DeepPrompt(num_virtual_tokens=4, first_layer=1), "deep", "embedding", 4, 1),
        (InputPrompt(num_virtual_tokens=3, encoder=MLPEncoder()), "input", "mlp", 3, 0),
    ],
)
def test_the_facts_are_the_models_and_the_rows(
    tiny_folder: Path, prompt: Any, depth: str, encoder: str, tokens: int, first: int
) -> None:
    from ptuning.data.tokens import TokenRow

    model = PTuningModel.from_backbone(str(tiny_folder), prompt, num_labels=2)
    rows = [
        TokenRow(input_ids=ids, token_type_ids=None, segment_ids=None) for ids in ([1, 5, 2], [1, 5, 6, 2])
    ]
    facts = Facts.of(model, rows)
    assert facts == Facts(
        rows=2,
        tokens=7,
        depth=depth,
        encoder=encoder,
        virtual_tokens=tokens,
        first_layer=first,
        head_step=facts.head_step,
        prompt_step=facts.prompt_step,
    )
    outputs = [  # BERT's head reads the pooler's output
        model.encode(input_ids=torch.tensor([row.input_ids]))[:, 0] for row in rows
    ]
    pooled = model.backbone.model.bert.pooler(torch.cat(outputs)[:, None])
    biased = float(pooled.detach().abs().sum(1).mean()) + 1  # a linear head: its weights' slopes, its bias's
    assert facts.head_step == pytest.approx(biased, rel=1e-4)


def test_a_head_learns_slowly_where_its_steps_change_the_logits_much() -> None:
    slow, usual = replace(FACTS, head_step=1250), rates(FACTS)
    assert rates(slow) == (usual[0], pytest.approx(2.8e-4))
    assert rates(replace(FACTS, head_step=17)) == usual  # MiniLM's
    assert (
        rates(replace(slow, fitted=True))[1]
        == choice(replace(FACTS, fitted=True), FitConfig())["head_learning_rate"]
    )
    assert rates(slow, head_learning_rate=0.01)[1] == 0.01  # what is given is kept


def test_a_deep_prompt_learns_slowly_where_its_steps_change_the_logits_much() -> None:
    usual = rates(FACTS)
    assert rates(replace(FACTS, prompt_step=93)) == usual  # MiniLM's
    assert rates(replace(FACTS, prompt_step=230)) == (pytest.approx(usual[0] / 2), usual[1])  # MPNet's
    for others in ({"depth": "input"}, {"encoder": "mlp"}):
        assert rates(replace(FACTS, prompt_step=250, **others)) == rates(replace(FACTS, **others))
    fitted = replace(FACTS, fitted=True)
    assert rates(replace(fitted, prompt_step=230))[0] == pytest.approx(rates(fitted)[0] / 2, rel=0.05)
    assert rates(replace(FACTS, prompt_step=250), learning_rate=0.05)[0] == 0.05  # what is given is kept


# -------------------------------------------------------------------------------- what a run does with it


@pytest.fixture
def config(
    tiny_folder: Path, tmp_path: Path, rows: Rows, jsonl: Callable[..., Path]
) -> Callable[..., TrainConfig]:
    train_file = str(jsonl("train.jsonl", rows(48)))

    def make(**fit: Any) -> TrainConfig:
        return TrainConfig.checked(
            {
                "data": {"train": train_file, "validation_fraction": 0.25},
                "backbone": str(tiny_folder),
                "output": str(tmp_path / "out"),
                "report": False,
                "precision": "fp32",
                "device": "cpu",
                "prompt": {"num_virtual_tokens": 4},
                "fit": {"batch_size": 12, **fit},
            }
        )

    return make


@pytest.mark.usefixtures("any_features")
def test_a_run_says_and_keeps_what_was_chosen(config: Callable[..., TrainConfig]) -> None:
    made, told = config(epochs=2), Told()
    result = train(made, callbacks=[told])
    prompt, head = SHORT["learning_rate"], SHORT["head_learning_rate"]
    assert told.said[0].endswith("(in Python: duplicates='drop')")  # what was found in the rows
    assert (
        told.said[1]
        == f"recipe: auto: 2 epochs, batch size 12, learning rates {prompt:g} (prompt) and {head:g} (head)"
    )
    expected = {
        "name": "auto",
        "chose": {
            "learning_rate": prompt,
            "head_learning_rate": head,
            "backbone_dropout": False,
            "evaluate_every": "epoch",
        },
    }
    assert result.setting["recipe"] == expected
    assert json.loads((made.run_folder / "result.json").read_text())["setting"]["recipe"] == expected
    extra = adapters.load(made.output).extra
    assert extra["recipe"] == expected
    assert {name: extra["fit"][name] for name in CHOSEN} == SHORT
    assert f"- learning rate: `{prompt}`" in (Path(made.output) / "README.md").read_text()


@pytest.mark.usefixtures("any_features")
def test_fit_chooses_as_well(tiny_folder: Path, rows: Rows) -> None:
    model = PTuningModel.from_backbone(str(tiny_folder), InputPrompt(num_virtual_tokens=4), num_labels=2)
    numbered = [{"text": row["text"], "label": int(row["label"] == "positive")} for row in rows(24)]
    result = fit(model, {"train": numbered})
    assert (result.history[-1].step, len(result.history)) == (MIN_STEPS, EVALUATIONS)
    assert result.setting["rates"] == {"prompt": 1e-1, "head": 8.3e-3}  # an input prompt's


def test_a_resumed_run_is_held_to_what_was_chosen(config: Callable[..., TrainConfig]) -> None:
    first = train(config(epochs=2))
    again = train(
        config(epochs=2, learning_rate=SHORT["learning_rate"]), resume=True
    )  # the same, now in words
    assert again.history == first.history
    with pytest.raises(
        ConfigError, match=r"cannot resume with another fit.head_learning_rate: got 0.123, expected"
    ):
        train(config(epochs=2, head_learning_rate=0.123), resume=True)
    with pytest.raises(
        ConfigError, match=r"cannot resume with another fit.num_train_epochs: got \d+, expected 2"
    ):
        train(config(), resume=True)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "name", "expected"),
    [
        (True, True, "Intel Xeon", torch.bfloat16),
        (False, True, "Intel Xeon", torch.float32),
        (False, True, "AMD EPYC", torch.bfloat16),
        (False, True, "", torch.bfloat16),
        (False, False, "AMD EPYC", torch.float32),
    ],
)
def test_the_precision_of_a_cpu(
    amx: bool, avx512_bf16: bool, name: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptuning.training.job import precision

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name}, raising=False)
    assert precision("auto", torch.device("cpu")) == expected
    assert precision("bf16", torch.device("cpu")) == torch.bfloat16
