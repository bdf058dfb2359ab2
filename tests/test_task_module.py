"""A task's module has the task alone: parameters, state dict, copies, wrappers; the backbone moves with it.

This file is also the program that two processes run.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ptuning.inference.predictor import Predictor
from ptuning.model import (
    Backbone,
    DeepPrompt,
    InputPrompt,
    LSTMEncoder,
    MLPEncoder,
    PromptConfig,
    PTuningModel,
)
from ptuning.model.tasks import plain_task
from ptuning.peft import PeftModel, PrefixTuningConfig
from tiny import ragged, tiny

CONFIGS: dict[str, PromptConfig] = {
    "deep": DeepPrompt(num_virtual_tokens=4, num_virtual_units=3, pooling="layers"),
    "input": InputPrompt(num_virtual_tokens=4, encoder=MLPEncoder(width=8)),
    "lstm": InputPrompt(num_virtual_tokens=4, encoder=LSTMEncoder(width=8)),
}
configs = pytest.mark.parametrize("name", CONFIGS)
LABELS = torch.tensor([0, 1, 2])


def task_on(backbone: Backbone, name: str, **given: Any) -> PTuningModel:
    torch.manual_seed(1)
    return PTuningModel(backbone, CONFIGS[name], plain_task(3, None), **given)


def made(name: str, **given: Any) -> PTuningModel:
    return task_on(Backbone(tiny("bert")), name, **given)


def answer(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(*ragged([5, 9, 3])).logits
    return found


def learn(model: nn.Module) -> float:
    """The loss after two steps."""
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(*ragged([5, 9, 3]), labels=LABELS).loss
        loss.backward()
        optimizer.step()
    return float(loss.detach())


# ------------------------------------------------------------------------------------------ the tree

KEYS = {
    "deep": [
        *("_extra_state", "head.classifier-bias", "head.classifier-weight", "head.pooling-mix"),
        *("prompt_encoder.weight", "units.weight"),
    ],
    "input": [
        *("_extra_state", "head.classifier-bias", "head.classifier-weight"),
        *(f"prompt_encoder.layers.{n}.{kind}" for n in (0, 2, 4) for kind in ("bias", "weight")),
        "prompt_encoder.weight",
    ],
}


@pytest.mark.parametrize("name", KEYS)
def test_the_module_has_the_task_alone(name: str) -> None:
    model = made(name)
    assert sorted(model.state_dict()) == KEYS[name]  # what stored checkpoints are called
    assert model.task_parameters() == dict(model.named_parameters())
    assert "backbone" not in dict(model.named_modules())
    model.requires_grad_(True)
    assert not any(value.requires_grad for value in model.backbone.parameters())
    whole = sum(value.numel() for value in model.backbone.parameters())
    assert model.num_parameters() >= whole > 10 * model.num_parameters(only_trainable=True)


@configs
def test_the_backbone_moves_with_its_task(name: str) -> None:
    backbone = Backbone(tiny("bert"))
    model = task_on(backbone, name, class_weights=[1.0, 2.0, 5.0])
    for each in (model, nn.Sequential(model), nn.ModuleDict({"task": model})):
        each.half()
        assert {value.dtype for value in backbone.parameters()} == {torch.float16}
        assert {value.dtype for value in (*model.parameters(), *model.buffers())} == {torch.float32}
        each.float()
        assert {value.dtype for value in backbone.parameters()} == {torch.float32}
    model.to("meta")
    everything = (*backbone.parameters(), *backbone.buffers(), *model.parameters(), *model.buffers())
    assert {value.device.type for value in everything} == {"meta"}


def test_a_model_of_named_adapters_moves_its_backbone_before_it_has_any() -> None:
    model = PeftModel(tiny("bert"))
    model.half()
    assert {value.dtype for value in model.backbone.parameters()} == {torch.float16}
    model.add_adapter("default", PrefixTuningConfig(num_virtual_tokens=4))
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert "backbone" not in dict(model.named_modules())


@configs
def test_the_backbone_follows_the_mode_where_its_dropout_is_on(name: str) -> None:
    model = made(name)
    outer = nn.Sequential(model)

    def training() -> tuple[bool, bool]:
        return (
            all(each.training for each in model.modules()),
            any(each.training for each in model.backbone.modules()),
        )

    assert training() == (True, False)
    model.backbone.dropout = True
    outer.train()
    assert training() == (True, True)
    outer.eval()
    assert training() == (False, False)
    assert not any(each.training for each in model.modules())
    model.backbone.dropout = False
    model.train()
    assert training() == (True, False)


def test_a_twin_that_shares_the_backbone_leaves_its_mode_alone() -> None:
    model = made("deep")
    model.backbone.dropout = True
    model.train()
    model.plain().eval()
    model.twin(backbone=False).eval()
    assert all(each.training for each in model.backbone.modules())
    answered = model.for_inference()
    assert not any(each.training for each in (*answered.modules(), *answered.backbone.modules()))
    assert all(each.training for each in model.backbone.modules())


# ------------------------------------------------------------------------------- copies and wrappers


def through_torch(model: PTuningModel) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[PTuningModel], Any]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "twin": PTuningModel.twin,
}


@pytest.mark.parametrize("way", WAYS)
@configs
def test_a_copy_gives_the_same_answers_and_learns_the_same(name: str, way: str) -> None:
    model = made(name).eval()
    expected = answer(model)
    again = WAYS[way](model)
    assert torch.equal(answer(again), expected)
    loss = learn(again)
    if way in ("copy", "twin"):  # the same parameters
        assert torch.equal(answer(model), answer(again))
        model = made(name).eval()
    else:
        assert torch.equal(answer(model), expected)
    assert learn(model) == loss
    assert torch.equal(answer(model), answer(again))


@configs
def test_functional_call_takes_the_tasks_parameters(name: str) -> None:
    model, other = made(name).eval(), made(name).eval()
    learn(other)
    values = {name: value.detach() for name, value in other.task_parameters().items()}
    with torch.no_grad():
        found = torch.func.functional_call(model, values, ragged([5, 9, 3]))
    assert torch.equal(found.logits, answer(other))


@pytest.mark.parametrize("name", ["deep", "input"])
def test_a_compiled_model_gives_the_same_answers(name: str) -> None:
    model = made(name).eval()
    expected = answer(model)
    assert torch.equal(answer(torch.compile(model, backend="eager")), expected)


# ----------------------------------------------------------------------------------- values as data


@pytest.mark.parametrize("scales", [(1.0, 1.0), (30.0, 10.0)])
@configs
def test_an_adapter_of_other_values_is_that_of_a_model_with_them(
    name: str, scales: tuple[float, float]
) -> None:
    backbone = Backbone(tiny("bert"))
    model, other = (task_on(backbone, name, learning_rate_scales=scales) for _ in range(2))
    learn(other)
    values = {name: value.detach().clone() for name, value in other.task_parameters().items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected, found = other.to_adapter(), model.to_adapter(values=values)
    assert torch.equal(found.prompt_tensor, expected.prompt_tensor)
    assert not torch.equal(found.prompt_tensor, model.to_adapter().prompt_tensor)
    assert found.head.keys() == expected.head.keys()
    assert all(torch.equal(found.head[key], value) for key, value in expected.head.items())
    if expected.units is not None:
        assert found.units is not None
        assert torch.equal(found.units, expected.units)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


# ------------------------------------------------------------------------------------ plain, outputs


@configs
def test_the_plain_model_is_so_in_any_thread(name: str) -> None:
    model = made(name).eval()
    prompted = answer(model)
    with torch.no_grad():
        expected = model.backbone.model(*ragged([5, 9, 3])).logits
    with model.disabled() as plain:
        assert torch.equal(answer(model), answer(plain))
    torch.testing.assert_close(answer(plain), expected)
    found: list[Tensor] = []
    with model.disabled():
        thread = threading.Thread(target=lambda: found.extend((answer(plain), answer(model))))
        thread.start()
        thread.join(30)
    assert torch.equal(found[0], answer(model.plain()))
    assert torch.equal(found[1], prompted)
    assert torch.equal(answer(model), prompted)


def test_outputs_may_be_a_tuple() -> None:
    model = made("deep").eval()
    batch = ragged([5, 9, 3])
    out = model(*batch, labels=LABELS)
    loss, logits = model(*batch, labels=LABELS, return_dict=False)
    assert torch.equal(loss, out.loss)
    assert torch.equal(logits, out.logits)
    (alone,) = model(*batch, return_dict=False)
    assert torch.equal(alone, out.logits)


def test_a_predictor_takes_its_model_by_position(tiny_folder: Path) -> None:
    model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), num_labels=2)
    assert Predictor(model)(["good film"]) == Predictor(model=model)(["good film"])


# ------------------------------------------------------------------------------------- two processes


def main(folder: Path) -> None:
    """What each process does: train alone, and inside each of torch's wrappers."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    torch.set_num_threads(1)
    init_process_group("gloo")

    def fsdp(model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))

    def of_the_backbone(model: Any) -> nn.Module:
        fully_shard(model.backbone.base)
        found: nn.Module = model
        return found

    ways = {"alone": lambda model: model, "DDP": DistributedDataParallel, "FSDP": fsdp}
    ways |= {"fully_shard": fully_shard, "fully_shard the backbone": of_the_backbone}
    found = {}
    for name in ("deep", "input"):
        for way, wrap in ways.items():
            if (name, way) == ("input", "fully_shard the backbone"):
                continue  # an input prompt looks up word embeddings outside the sharded forward
            model: Any = wrap(made(name))
            found[f"{name}, {way}"] = learn(model), len(model.state_dict())
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # torch's own threads may abort a process that ends by returning, with everything done


@pytest.mark.slow
def test_wrappers_of_two_processes_train_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(__file__, str(tmp_path)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for name in ("deep", "input"):
        losses = {way: loss for way, (loss, _) in first.items() if way.startswith(name)}
        assert all(loss == pytest.approx(losses[f"{name}, alone"], abs=1e-6) for loss in losses.values())
        assert {count for way, (_, count) in first.items() if way.startswith(name)} == {len(KEYS[name])}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
