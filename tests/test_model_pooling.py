"""The mix of layers that a head may read: kept, saved, trained and refused like all that a task owns.

That its numbers are right is shown in ``test_model_oracle_deep.py``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from ptuning import DeepPrompt, Engine, PTuningModel, Task, adapters
from ptuning.adapters import MIX
from ptuning.errors import AdapterError, ConfigError
from ptuning.model.config import DeepMLPEncoder, EmbeddingEncoder
from ptuning.model.pooling import QUERY_SCALE, attention_pool, max_of_tokens, mean_of_tokens
from tiny import ragged, tiny

TASK = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
IDS, MASK = ragged([9, 4, 7])
Q = 2
LAYERS, HIDDEN = tiny("bert").config.num_hidden_layers, tiny("bert").config.hidden_size


def made(*, seed: int | None = 1, **choices: object) -> PTuningModel:
    """A task on a tiny BERT, away from where it began unless there is no seed."""
    config = DeepPrompt(**{"num_virtual_tokens": 4, "pooling": "layers", "num_queries": Q, **choices})  # type: ignore[arg-type]
    model = PTuningModel.from_backbone(tiny("bert", num_labels=3), config, task=TASK)
    if seed is not None:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in model.task_parameters().values():
                value.add_(torch.randn(value.shape, generator=draw) * 0.3)
    return model


def logits(model: PTuningModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("asked", [0, 1, Q])
@pytest.mark.parametrize("first_layer", [0, 1])
def test_it_has_weights_for_every_layer_from_the_first_prompted(first_layer: int, asked: int) -> None:
    model = made(first_layer=first_layer, num_queries=asked, seed=None)
    mix = model.head.named()[MIX]
    assert mix.shape == (LAYERS - first_layer + 1, 2 + 2 * asked, HIDDEN)
    weights, queries = mix[:, : 2 + asked], mix[:, 2 + asked :]
    assert int(weights.count_nonzero()) == HIDDEN
    assert bool((weights[-1, 0] == 1).all())
    if asked:
        assert queries.std().item() == pytest.approx(QUERY_SCALE, rel=0.3)
    assert len(queries.flatten(0, 1).unique(dim=0)) == asked * len(queries)  # no two the same
    others = made(first_layer=first_layer, pooling="mean", num_queries=0, seed=None)
    assert model.num_parameters(only_trainable=True) - others.num_parameters(True) == mix.numel()
    assert model.num_parameters() - others.num_parameters() == mix.numel()


def test_queries_are_asked_by_the_mix_alone() -> None:
    assert made(num_queries=None, seed=None).prompt_config.num_queries == 0
    with pytest.raises(ConfigError, match=r"num_queries is 2, but prompt\.pooling 'mean'"):
        made(pooling="mean")
    with pytest.raises(ConfigError, match="num_queries: got -1, expected greater than or equal to 0"):
        DeepPrompt(num_queries=-1)


def test_padding_is_neither_averaged_nor_the_greatest() -> None:
    states = torch.tensor([[[1.0, -3.0], [3.0, -5.0], [9.0, 9.0]], [[7.0, 7.0]] * 3])
    real = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_of_tokens(states, real).tolist() == [[2.0, -4.0], [0.0, 0.0]]
    assert max_of_tokens(states, real).tolist() == [[3.0, -3.0], [0.0, 0.0]]
    queries = torch.tensor(
        [[0.0, 0.0], [200.0, 0.0], [0.0, 200.0]]
    )  # none in particular, and one token alone
    found = attention_pool(states, real, queries)
    assert found.tolist() == [[[2.0, -4.0], [3.0, -5.0], [1.0, -3.0]], [[0.0, 0.0]] * 3]


@pytest.mark.parametrize("encoder", ["embedding", "mlp"])
def test_it_is_saved_and_opened_with_the_task(encoder: str, tmp_path: Path) -> None:
    model = made(encoder=EmbeddingEncoder() if encoder == "embedding" else DeepMLPEncoder(width=5))
    folder = model.save_pretrained(tmp_path / "task")
    again = PTuningModel.from_pretrained(folder, backbone=tiny("bert", num_labels=3))
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(PTuningModel.from_adapter(model.to_adapter(), model.backbone)), logits(model))
    other = made(seed=2, encoder=model.prompt_config.encoder)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))


def test_a_checkpoint_of_the_trainer_is_a_task_again(tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": n} for n in (0, 1, 2, 0)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, learning_rate=0.1
    )
    model = made()
    before = model.head.named()[MIX].detach().clone()
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert not torch.equal(model.head.named()[MIX], before)
    again = PTuningModel.from_pretrained(tmp_path / "checkpoint-2", backbone=tiny("bert", num_labels=3))
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("scales", [(1.0, 1.0), (20.0, 3.0)])
def test_it_moves_with_the_prompt(scales: tuple[float, float]) -> None:
    """At its rate in our loop; and under PEFT's names, where there is one rate, so many times as far."""
    model = made(seed=None)
    model.scale_learning_rates(*scales)
    prompt, head = model.parameter_groups()
    assert sum(map(len, (prompt, head))) == len(model.task_parameters()) == 4
    own = {name: value.detach().clone() for name, value in model.head.named().items()}
    optimizer = torch.optim.SGD([{"params": prompt, "lr": 1.0}, {"params": head, "lr": 0.0}])
    model(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.head.named().items() if not torch.equal(value, own[name])}
    assert moved == {MIX}


def test_with_a_frozen_head_it_stays_the_mean() -> None:
    model = made(train_head=False, seed=None)
    mean = made(train_head=False, pooling="mean", num_queries=0, seed=None)
    mean.set_prompt(model.prompt_encoder().detach())
    assert list(model.task_parameters()) == ["prompt_encoder.weight"]
    assert torch.equal(logits(model), logits(mean))


def test_it_learns_the_same_from_checkpointed_layers() -> None:
    found = []
    for checkpointed in (False, True):
        model = made()
        model.backbone.engine = Engine(checkpoint_activations=checkpointed)
        model.train()(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 1, 2])).loss.backward()
        found.append([value.grad for value in model.task_parameters().values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_an_adapter_without_its_mix_is_refused() -> None:
    """Or with one where none belongs, or another's: nothing is put in its place."""
    adapter = made().to_adapter()
    layers, mean = dict(adapter.prompt), {**adapter.prompt, "pooling": "mean"}
    fewer = {**adapter.prompt, "num_queries": Q - 1}
    rest = {name: value for name, value in adapter.head.items() if name != MIX}
    cut = {**rest, MIX: adapter.head[MIX][1:]}
    for prompt, head, got in (
        (layers, rest, "None"),
        (mean, adapter.head, str((LAYERS + 1, 2 + 2 * Q, HIDDEN))),
        (fewer, adapter.head, str((LAYERS + 1, 2 + 2 * Q, HIDDEN))),
        (layers, cut, str((LAYERS, 2 + 2 * Q, HIDDEN))),
    ):
        with pytest.raises(AdapterError, match=rf"the shape of {MIX} is {re.escape(got)}, expected"):
            replace(adapter, prompt=prompt, head=head)


def test_peft_is_refused_and_told_why(tmp_path: Path) -> None:
    model = made()
    with pytest.raises(AdapterError, match=r"pooling is 'layers'.*prompt\.pooling 'native'"):
        model.save_pretrained(tmp_path / "no", peft=True)
    assert not (tmp_path / "no").exists()
    assert "pooling" not in adapters.modules_to_save(model.to_adapter())
