"""``ptuning.peft`` inside ``transformers.Trainer``: a PeftModel's checkpoints are as good as our model's.

Its default P-tuning moves prompt and head faster than the Trainer's rate says; that is looked at here, too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from ptuning import FitConfig, PTuningModel, fit, pipeline
from ptuning.errors import AdapterError, ConfigError
from ptuning.model import EmbeddingEncoder, InputPrompt
from ptuning.model.prompt import ScaledParameter
from ptuning.peft import (
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptLearningConfig,
    get_peft_model,
)
from tiny import ragged, tiny
from trainers import CLASSES, CONFIGS, losses, make, same, steps, trainer, watch

KINDS: dict[str, PromptLearningConfig] = {
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=8),
    "lstm": PromptEncoderConfig(
        num_virtual_tokens=4,
        encoder_hidden_size=4,
        encoder_reparameterization_type="LSTM",
        encoder_dropout=0.3,
    ),
    "prefix": PrefixTuningConfig(num_virtual_tokens=4),
}
kinds = pytest.mark.parametrize("kind", KINDS)
UNUSED = CONFIGS["deep"]
"""The Trainer's helper asks for a prompt, and is given a whole model."""


def peft_model(kind: str) -> PeftModel:
    return get_peft_model(tiny("bert"), KINDS[kind])


def logits(model: torch.nn.Module) -> Tensor:
    ids, mask = ragged([9, 4])
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids, attention_mask=mask).logits
    return found


@kinds
def test_the_best_model_at_the_end_is_the_best_to_the_bit(kind: str, tmp_path: Path) -> None:
    made = trainer(
        tmp_path,
        UNUSED,
        scores=[0.1, 0.9, 0.2],
        model=peft_model(kind),
        load_best_model_at_end=True,
        learning_rate=1e-3,
    )
    made.train()
    first, best, last = watch(made).seen
    now = dict(made.model.state_dict())
    assert same(now, best)
    assert not same(now, first)
    assert not same(now, last)


@kinds
def test_a_resumed_run_is_the_straight_one(kind: str, tmp_path: Path) -> None:
    how = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 5}
    straight = trainer(tmp_path / "straight", UNUSED, model=peft_model(kind), **how)
    straight.train()
    resumed = trainer(tmp_path / "resumed", UNUSED, model=peft_model(kind), **how)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-5"))
    assert steps(resumed, after=5) == steps(straight, after=5)
    assert len(steps(resumed, after=5)) == 7
    assert same(dict(resumed.model.state_dict()), dict(straight.model.state_dict()))


@kinds
def test_what_the_trainer_saved_opens_under_both_names(kind: str, tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", UNUSED, model=peft_model(kind), learning_rate=1e-3)
    made.train()
    made.save_model(str(tmp_path / "saved"))
    expected = logits(made.model)
    task = PTuningModel.from_pretrained(tmp_path / "saved", backbone=tiny("bert"))
    assert torch.equal(logits(task), expected)
    assert type(task.prompt_encoder).__mro__[-4:] == type(made.model.active.prompt_encoder).__mro__[-4:]
    again = PeftModel.from_pretrained(tiny("bert"), tmp_path / "saved", is_trainable=True)
    assert torch.equal(logits(again), expected)
    # Training goes on with the whole encoder, as fast as before.
    assert again.get_nb_trainable_parameters() == made.model.get_nb_trainable_parameters()
    going_on = trainer(tmp_path / "more", UNUSED, model=again, learning_rate=1e-3)
    going_on.train()
    assert losses(going_on)[-1] < losses(made)[0]


def test_several_adapters_are_in_one_checkpoint(tmp_path: Path) -> None:
    model = peft_model("p-tuning")
    model.add_adapter("other", KINDS["prefix"])
    before = logits(model)
    made = trainer(tmp_path, UNUSED, model=model, save_strategy="steps", save_steps=12, learning_rate=1e-3)
    made.train()
    after = logits(made.model)
    assert not torch.equal(after, before)
    fresh = peft_model("p-tuning")
    fresh.add_adapter("other", KINDS["prefix"])
    resumed = trainer(tmp_path, UNUSED, model=fresh, learning_rate=1e-3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))  # nothing is left to do
    assert torch.equal(logits(resumed.model), after)
    with pytest.raises(AdapterError, match="has 2 tasks"):
        PTuningModel.from_pretrained(tmp_path / "checkpoint-12", backbone=tiny("bert"))


# ------------------------------------------------------------------------------------------- faster


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_a_faster_parameter_takes_longer_steps(kind: str) -> None:
    """Thirty times as far as without, whatever the optimizer makes of the gradient."""
    config = InputPrompt(num_virtual_tokens=4, encoder=EmbeddingEncoder())
    moved = {}
    for scales in ((1.0, 1.0), (30.0, 10.0)):
        plain = make(config)
        model = PTuningModel(plain.backbone, config, CLASSES, learning_rate_scales=scales)
        before = (
            model.prompt_encoder().detach().clone(),
            model.head.named()["classifier.weight"].detach().clone(),
        )
        optimizer = getattr(torch.optim, kind)(model.task_parameters().values(), lr=1e-3)
        ids, mask = ragged([9, 4, 7])
        model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
        after = (model.prompt_encoder().detach(), model.head.named()["classifier.weight"].detach())
        moved[scales] = [(b - a).abs().median().item() for a, b in zip(before, after, strict=True)]
    slow, fast = moved.values()
    assert [f / s for f, s in zip(fast, slow, strict=True)] == pytest.approx([30, 10], rel=0.01)
    if kind == "Adam":  # its first step is as long as its rate
        assert slow == pytest.approx([1e-3, 1e-3], rel=0.01)


def test_scaled_learning_rates_change_neither_the_start_nor_the_count() -> None:
    config = KINDS["p-tuning"].prompt()
    slow = make(config)
    torch.manual_seed(0)
    fast = PTuningModel(slow.backbone, config, CLASSES, learning_rate_scales=(30.0, 10.0))
    torch.manual_seed(0)
    again = PTuningModel(slow.backbone, config, CLASSES)
    assert torch.equal(fast.prompt_encoder(), again.prompt_encoder())
    assert torch.equal(logits(fast), logits(again))
    assert fast.num_parameters(only_trainable=True) == slow.num_parameters(only_trainable=True)
    assert fast.num_parameters() == slow.num_parameters()


def test_what_is_assigned_is_met_to_the_bit() -> None:
    scaled = ScaledParameter(torch.randn(3), 30.0)
    value = torch.randn(3)
    assert torch.equal(scaled(scaled.right_inverse(value)), value)


def test_a_residual_encoder_begins_as_what_it_starts_from() -> None:
    model = peft_model("p-tuning")
    words = model.base_model.get_input_embeddings().weight
    prompt = model.active.prompt_encoder()
    assert all(any(torch.equal(token, word) for word in words) for token in prompt)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["prompt_rate_scale", "head_rate_scale"])
def test_scales_that_are_none(name: str, scale: float) -> None:
    with pytest.raises(ConfigError, match=f"{name}: got .*expected a number above 0"):
        PromptEncoderConfig(num_virtual_tokens=4, **{name: scale})


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # it is to be called otherwise
def test_gradient_checkpointing_learns_the_same(tmp_path: Path) -> None:
    learned = []
    for wanted in (False, True):
        set_seed(0)
        made = trainer(tmp_path, UNUSED, model=peft_model("prefix"), gradient_checkpointing=wanted)
        made.train()
        assert made.model.active.backbone.engine.checkpoint_activations is wanted
        learned.append(made.model.active.prompt_encoder().detach())
    assert torch.equal(*learned)


def test_our_own_loop_and_pipeline_take_a_peft_model(tiny_folder: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    model = get_peft_model(base, KINDS["prefix"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    texts = [("good film", 1), ("bad film", 0), ("good food", 1), ("bad food", 0)] * 4
    rows = [{**tokenizer(text), "labels": label} for text, label in texts]
    before = model.active.prompt_encoder().detach().clone()
    fit(model, {"train": rows, "validation": rows}, FitConfig(epochs=2, batch_size=4))
    assert not torch.equal(model.active.prompt_encoder(), before)
    (found,) = pipeline(model, tokenizer=tokenizer)("good film")
    assert found["label"] in ("LABEL_0", "LABEL_1")
