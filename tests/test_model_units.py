"""Virtual units: kept, saved, trained and refused like all that a task owns.

That their numbers are right is shown in ``test_model_oracle_deep.py``.
"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainingArguments

from ptuning import DeepPrompt, Engine, FitConfig, PTuningModel, Task, TrainConfig, adapters, fit, train
from ptuning.errors import AdapterError, ConfigError, UnsupportedBackbone
from ptuning.model import Backbone, InputPrompt, state
from ptuning.model.settling import settle_prompt
from ptuning.model.units import REACH, initial_units, scaled_units
from ptuning.peft import (
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from ptuning.training import recipe
from ptuning.training.interrupt import Interrupted
from ptuning.training.plan import plan_prompt
from test_training import StopAfter
from test_training_pair_pooling import Told
from tiny import HIDDEN, LAYERS, ragged, tiny, tiny_case

TASK = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
IDS, MASK = ragged([9, 4, 7])
LABELS = torch.tensor([0, 1, 2])
U = 5


def made(*, seed: int | None = 1, kind: str = "bert", **choices: Any) -> PTuningModel:
    """A task on a tiny model, away from where it began unless there is no seed."""
    config = DeepPrompt(**{"num_virtual_tokens": 4, "num_virtual_units": U, **choices})
    model = PTuningModel.from_backbone(tiny(kind, num_labels=3), config, task=TASK)
    if seed is not None:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in model.task_parameters().values():
                value.add_(torch.randn(value.shape, generator=draw) * 0.3)
    return model


def logits(model: PTuningModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=MASK).logits


def weight(model: PTuningModel) -> torch.Tensor:
    assert model.units is not None
    return model.units.weight


# --------------------------------------------------------------------------------------- what they are


@pytest.mark.parametrize("first_layer", [0, 1])
def test_every_prompted_layer_has_some(first_layer: int) -> None:
    model, plain = (
        made(first_layer=first_layer, seed=None),
        made(num_virtual_units=0, first_layer=first_layer),
    )
    assert weight(model).shape == (LAYERS - first_layer, 2, U, HIDDEN)
    assert plain.units is None
    assert model.num_parameters(only_trainable=True) - plain.num_parameters(True) == weight(model).numel()
    assert model.num_parameters() - plain.num_parameters() == weight(model).numel()


def test_left_out_there_are_none() -> None:
    assert made(num_virtual_units=None).prompt_config.num_virtual_units == 0
    with pytest.raises(ConfigError, match="num_virtual_units: got -1, expected greater than or equal to 0"):
        DeepPrompt(num_virtual_units=-1)


def test_keys_begin_at_one_over_the_root_of_the_width_and_values_at_nought() -> None:
    torch.manual_seed(0)
    keys, values = scaled_units(initial_units(6, 50, 144)).unbind(1)
    assert float(keys.std()) == pytest.approx(1 / 12, rel=0.02)
    assert not values.any()
    assert float(scaled_units(torch.ones(1, 2, 1, 144)).max()) == pytest.approx(REACH / 12)


def test_the_prompts_first_values_do_not_depend_on_them() -> None:
    """They are drawn last, so that a recipe with them and one without begin alike."""
    found = []
    for units in (0, U):
        torch.manual_seed(3)
        model = made(seed=None, num_virtual_units=units)
        found.append((model.prompt_encoder().detach(), *model.head.named().values()))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_two_tasks_on_one_backbone_have_their_own() -> None:
    one = made()
    held = one.backbone
    other = PTuningModel(held, DeepPrompt(num_virtual_tokens=4, num_virtual_units=2), TASK)
    plain = PTuningModel(held, DeepPrompt(num_virtual_tokens=4), TASK)
    before = logits(one)
    alone = logits(plain)
    logits(other)
    assert torch.equal(logits(one), before)
    assert torch.equal(logits(plain), alone)
    with one.disabled():
        bare = logits(one)
    own = tiny("bert", num_labels=3).eval()(input_ids=IDS, attention_mask=MASK).logits.detach()
    torch.testing.assert_close(bare, own)


@pytest.mark.parametrize(("pooling", "queries"), [("native", 0), ("layers", 2), ("similarity", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_learn_in_either_precision(pooling: Any, queries: int, dtype: torch.dtype) -> None:
    model = made(seed=None, pooling=pooling, num_queries=queries)
    model.backbone.to(dtype)
    segments = torch.tensor([[-1, *[0] * 3, *[1] * (IDS.shape[1] - 4)]] * len(IDS))
    given = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS, "segment_ids": segments}
    optimizer = torch.optim.SGD(model.task_parameters().values(), lr=0.5)
    first = model(**given).loss
    for _ in range(3):
        loss = model(**given).loss
        optimizer.zero_grad()
        loss.backward()
        assert weight(model).grad is not None
        optimizer.step()
    assert weight(model).dtype == torch.float32
    assert bool(weight(model)[:, 1].abs().sum((-1, -2)).gt(0).all())
    assert float(model(**given).loss.detach()) < float(first.detach())


@pytest.mark.parametrize("kind", ["bert", "albert", "deberta-v2", "llama"])
def test_they_learn_the_same_from_checkpointed_layers(kind: str) -> None:
    found = []
    for checkpointed in (False, True):
        model = made(kind=kind)
        model.backbone.engine = Engine(checkpoint_activations=checkpointed)
        model.train()(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss.backward()
        found.append([value.grad for value in model.task_parameters().values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_units_of_its_own(way: Callable[[PTuningModel], PTuningModel]) -> None:
    model = made()
    before, again = logits(model), way(model)
    with torch.no_grad():
        weight(again).zero_()
    changed = logits(again)
    assert not torch.equal(changed, before)
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(again), changed)


def test_a_network_that_goes_another_way_is_refused() -> None:
    """Its answers would be those without the units."""
    model = made()
    output: Any = model.backbone.base.encoder.layer[1].output
    output.dense = copy.deepcopy(output.dense)
    output.dense._forward_hooks.clear()
    with pytest.raises(UnsupportedBackbone, match=r"did not read its virtual units; set .*num_virtual_units"):
        logits(model)


# --------------------------------------------------------------------------------------- kept and opened


def test_they_are_saved_and_opened_with_the_task(tmp_path: Path) -> None:
    model = made()
    folder = model.save_pretrained(tmp_path / "task")
    again = PTuningModel.from_pretrained(folder, backbone=tiny("bert", num_labels=3))
    assert torch.equal(weight(again), weight(model))
    assert torch.equal(logits(again), logits(model))
    assert adapters.load(folder).prompt_parameters == LAYERS * 2 * (4 + U) * HIDDEN
    card = (folder / "README.md").read_text()
    assert f"shape of the virtual units: `[{LAYERS}, 2, {U}, {HIDDEN}]`" in card
    other = made(seed=2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))


def test_what_was_measured_is_of_the_units_too() -> None:
    """A loaded task that is trained on has lost its metrics, whatever of it has changed."""
    adapter = made().to_adapter(metrics={"test": {"accuracy": 0.5}})
    model = PTuningModel.from_adapter(adapter, Backbone(tiny("bert", num_labels=3)))
    assert model.to_adapter().metrics == adapter.metrics
    with torch.no_grad():
        weight(model).add_(1)
    assert model.to_adapter().metrics == {}


def test_a_checkpoint_of_the_trainer_is_a_task_again(tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": n} for n in (0, 1, 2, 0)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, learning_rate=0.1
    )
    model = made()
    before = weight(model).detach().clone()
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert not torch.equal(weight(model), before)
    again = PTuningModel.from_pretrained(tmp_path / "checkpoint-2", backbone=tiny("bert", num_labels=3))
    assert torch.equal(logits(again), logits(model))
    state = {**model.state_dict(), "units.weight": weight(model) + 1}
    with pytest.raises(AdapterError, match="altered or cut short"):
        again.load_state_dict(state)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (20.0, 3.0)])
def test_they_move_with_the_prompt(scales: tuple[float, float]) -> None:
    """At its rate in our loop; and under PEFT's names, where there is one rate, so many times as far."""
    model = made(seed=None, train_head=False)
    model.scale_learning_rates(*scales)
    before = weight(model).detach().clone()
    assert [list(map(id, group)) for group in model.parameter_groups()] == [
        list(map(id, model.task_parameters().values())),
        [],
    ]
    rate = 1e-3
    optimizer = torch.optim.AdamW(model.task_parameters().values(), lr=rate, weight_decay=0)
    model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss.backward()
    optimizer.step()
    moved = (weight(model).detach() - before)[:, 1].abs()  # the keys' gradients are 0 before the values move
    assert float(moved.median()) == pytest.approx(rate * scales[0], rel=1e-2)


def test_an_adapter_without_its_units_is_refused() -> None:
    """Or with some where none belong, or another's: nothing is put in their place."""
    adapter = made().to_adapter()
    none = {**adapter.prompt, "num_virtual_units": 0}
    assert adapter.units is not None
    shape = (LAYERS, 2, U, HIDDEN)
    for prompt, units, got in (
        (adapter.prompt, None, "None"),
        (none, adapter.units, str(shape)),
        (adapter.prompt, adapter.units[1:], str((LAYERS - 1, 2, U, HIDDEN))),
    ):
        with pytest.raises(AdapterError, match=rf"the shape of units: got {re.escape(got)}, expected"):
            replace(adapter, prompt=prompt, units=units)


def test_units_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = made()
    with torch.no_grad():
        weight(model)[0, 0, 0, 0] = torch.nan
    with pytest.raises(AdapterError, match="virtual units"):
        model.save_pretrained(tmp_path / "task")
    assert not (tmp_path / "task").exists()


def test_an_adapter_from_before_there_were_units_has_none(tmp_path: Path) -> None:
    adapter = made(num_virtual_units=0).to_adapter()
    old = {name: value for name, value in adapter.prompt.items() if name != "num_virtual_units"}
    model = PTuningModel.from_adapter(replace(adapter, prompt=old), Backbone(tiny("bert", num_labels=3)))
    assert model.units is None


def test_a_state_from_before_there_were_units_is_opened(tmp_path: Path) -> None:
    """Its record lacks the word."""
    model = made(num_virtual_units=0)
    record = model.record()
    del record["prompt"]["num_virtual_units"]
    tensors = {name: value for name, value in model.state_dict().items() if name != state.KEY}
    tensors[state.KEY] = state.write(record, tensors)
    again = made(num_virtual_units=0, seed=2)
    again.load_state_dict(tensors)
    assert torch.equal(logits(again), logits(model))
    save_file(tensors, tmp_path / state.FILE)
    opened = PTuningModel.from_pretrained(tmp_path, backbone=tiny("bert", num_labels=3))
    assert torch.equal(logits(opened), logits(model))


def test_peft_is_refused_and_told_why(tmp_path: Path) -> None:
    model = made(pooling="native")
    with pytest.raises(AdapterError, match=r"5 virtual units.*prompt\.num_virtual_units 0"):
        model.save_pretrained(tmp_path / "no", peft=True)
    assert not (tmp_path / "no").exists()


def named(**choices: Any) -> PeftModel:
    config = PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=4, num_virtual_units=U, pooling="native", **choices
    )
    return get_peft_model(tiny("bert", num_labels=3), config)


def test_pefts_names_keep_and_set_them() -> None:
    one, other = named(), named()
    with torch.no_grad():
        for value in one.active.task_parameters().values():
            value.normal_()
    state_dict = get_peft_model_state_dict(one)
    assert state_dict["units.weight"].shape == (LAYERS, 2, U, HIDDEN)
    set_peft_model_state_dict(other, state_dict)
    assert torch.equal(logits(other.active), logits(one.active))
    rest = {name: value for name, value in state_dict.items() if not name.startswith("units.")}
    with pytest.raises(AdapterError, match=r"lacks 'units\.weight'"):
        set_peft_model_state_dict(other, rest)


def test_pefts_names_freeze_them_with_the_rest() -> None:
    model = named()
    model.add_adapter(
        "second", PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4, num_virtual_units=2)
    )
    assert not [name for name, value in model.named_parameters() if value.requires_grad and "second" in name]
    assert [name for name, value in model.named_parameters() if value.requires_grad and "units" in name]
    still = named(inference_mode=True)
    assert not [name for name, value in still.named_parameters() if value.requires_grad]


def test_a_prompt_a_row_is_refused() -> None:
    """Its rows would be read with this task's units."""
    model = made()
    each = model.prompt_encoder().detach().expand(len(IDS), -1, -1, -1, -1)
    with pytest.raises(ConfigError, match="one per row, but this task has virtual units"):
        model(input_ids=IDS, attention_mask=MASK, prompt=each)


def test_a_head_that_holds_the_last_matrix_goes_with_a_bf16_backbone() -> None:
    config = PrefixTuningConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=4,
        num_virtual_units=U,
        modules_to_save=["bert.encoder.layer.1.output.dense"],
    )
    model = get_peft_model(tiny("bert", num_labels=3).bfloat16(), config)
    assert bool(logits(model.active).isfinite().all())


# ------------------------------------------------------------------------------------------ the recipe


def averaged(kind: str = "bert") -> Backbone:
    return Backbone(tiny_case(kind), pooling="mean")


def test_all_but_few_pairs_and_rows_of_two_classes_get_some_if_read_by_layers() -> None:
    many, open_ = recipe.MANY_ROWS, DeepPrompt()
    pairs, likeness = replace(TASK, pair=True), replace(TASK, pair=True, labels=("a", "b"))
    two, several = replace(likeness, pair=False), replace(TASK, problem_type="multi_label_classification")
    score = replace(TASK, problem_type="regression", labels=())
    given = DeepPrompt(num_virtual_units=3)
    chosen = (recipe.UNITS, recipe.QUERIES)
    for backbone, prompt, task, rows, expected in (
        (averaged(), open_, TASK, many, chosen),
        (averaged(), open_, TASK, many - 1, (recipe.UNITS, 0)),
        (averaged(), open_, two, many - 1, (0, 0)),
        (averaged(), open_, two, many, chosen),
        (averaged(), DeepPrompt(pooling="layers"), likeness, many - 1, (0, 0)),
        (averaged(), open_, several, many - 1, (0, 0)),
        (averaged(), open_, pairs, many, chosen),
        (averaged(), open_, likeness, many, (0, 0)),
        (averaged(), open_, score, 10, (recipe.UNITS, 0)),
        (averaged(), open_, score, many, chosen),
        (averaged(), open_, replace(score, pair=True), many, (0, 0)),
        (averaged(), DeepPrompt(pooling="layers"), replace(score, pair=True), many - 1, (0, 0)),
        (averaged(), open_, pairs, many - 1, (0, 0)),
        (Backbone(tiny_case("bert")), open_, score, 10, (0, 0)),
        (averaged("bloom"), open_, score, 10, (0, 0)),
        (averaged("bloom"), open_, TASK, many, (0, 0)),
        (Backbone(tiny_case("bert")), open_, TASK, many, (0, 0)),
        (averaged(), DeepPrompt(pooling="mean"), TASK, many, (0, 0)),
        (averaged(), given, TASK, 10, (3, 0)),
        (averaged(), given, pairs, many, (3, recipe.QUERIES)),
        (averaged(), replace(open_, num_queries=0), TASK, many, (recipe.UNITS, 0)),
    ):
        found = plan_prompt(prompt, backbone, task, rows).config
        assert isinstance(found, DeepPrompt)
        assert (found.num_virtual_units, found.num_queries) == expected
        assert found == settle_prompt(found, backbone)
    plain = InputPrompt()
    assert plan_prompt(plain, averaged(), TASK, many).config is plain


@pytest.fixture
def many(
    tiny_folder: Path,
    tmp_path: Path,
    rows: Callable[[int], Any],
    jsonl: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., TrainConfig]:
    """A run of rows that count as many, with what is given of prompt and fit."""
    monkeypatch.setattr(recipe, "MANY_ROWS", 24)
    file = jsonl("train.jsonl", rows(40))

    def configured(name: str, prompt: dict[str, Any], **fitting: Any) -> TrainConfig:
        return TrainConfig.checked(
            {
                "data": {"train": str(file), "validation_fraction": 0.25},
                "backbone": str(tiny_folder),
                "output": str(tmp_path / name),
                "report": False,
                "device": "cpu",
                "prompt": {"num_virtual_tokens": 4, "pooling": "layers", **prompt},
                "fit": fitting,
            }
        )

    return configured


def test_a_run_of_many_rows_has_them_and_the_backbones_dropout(
    many: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []
    original = nn.functional.dropout

    def dropped(states: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        heard.append(training)
        return original(states, p, training, inplace)

    monkeypatch.setattr(nn.functional, "dropout", dropped)
    for prompt, units, queries in (
        ({}, recipe.UNITS, recipe.QUERIES),
        ({"num_virtual_units": 0, "num_queries": 0}, 0, 0),
    ):
        heard.clear()
        config = many(f"out{units}", prompt, epochs=1)
        told = Told()
        result = train(config, callbacks=[told])
        borne = (
            f"30 rows of 2 classes: {units} virtual units (prompt.num_virtual_units; 0 switches them off) "
            f"and {queries} queries (prompt.num_queries; 0 switches them off)"
        )
        assert (borne in told.said) is bool(units)
        adapter = adapters.load(config.output)
        assert adapter.prompt["num_virtual_units"] == units
        assert adapter.prompt["num_queries"] == queries
        assert (adapter.units is not None) == bool(units)
        assert result.setting["recipe"]["chose"]["backbone_dropout"] is bool(units)
        assert any(heard) is bool(units)


def test_a_resumed_run_has_those_that_it_began_with(
    many: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the recipe of a later version would give it."""
    config = many("out", {}, epochs=3, prompt_rate=0.01, head_rate=0.001)
    for name, number in (("UNITS", 3), ("QUERIES", 1)):
        monkeypatch.setattr(recipe, name, number)
    with pytest.raises(Interrupted):
        train(config, callbacks=[StopAfter(3)])
    for name in ("UNITS", "QUERIES"):
        monkeypatch.setattr(recipe, name, 5)
    train(config, resume=True)
    kept = adapters.load(config.output).prompt
    assert (kept["num_virtual_units"], kept["num_queries"]) == (3, 1)


def test_a_stem_goes_without_dropout() -> None:
    facts = recipe.Facts(rows=9000, tokens=90_000, virtual_units=20)
    for layer, dropped in ((0, True), (1, False)):
        found = recipe.Recipe.of(FitConfig(), replace(facts, first_layer=layer)).fit
        assert found.backbone_dropout is dropped


def test_a_run_with_dropout_leaves_it_off_for_other_tasks() -> None:
    model = made(seed=None)
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": n % 3} for n in range(12)]
    config = FitConfig(epochs=1, backbone_dropout=True)
    fit(model, {"train": rows, "validation": rows}, config)
    assert not model.backbone.dropout
