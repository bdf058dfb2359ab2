"""On a GPU everything is what it is on a CPU; skipped where there is none."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ptuning import (
    DeepPrompt,
    Engine,
    InputPrompt,
    Predictor,
    PTuningModel,
    TrainConfig,
    adapters,
    train,
)
from ptuning.errors import DataError
from ptuning.model import Backbone, LSTMEncoder
from ptuning.model.config import PromptConfig
from ptuning.training.interrupt import Interrupted
from test_training import StopAfter
from tiny import CASES, ragged, tiny_case
from trainers import losses, make, trainer

DEVICE = "cuda"

if not torch.cuda.is_available():
    pytest.skip("there is no GPU here", allow_module_level=True)

PROMPTS: Mapping[str, PromptConfig] = {
    "deep": DeepPrompt(num_virtual_tokens=4),
    "upper layers": DeepPrompt(num_virtual_tokens=4, first_layer=2),
    "input": InputPrompt(num_virtual_tokens=4, placement="start"),
    "input, LSTM": InputPrompt(num_virtual_tokens=4, placement="start", encoder=LSTMEncoder()),
}


@pytest.fixture
def config(
    tiny_folder: Path,
    tmp_path: Path,
    rows: Callable[..., list[dict[str, Any]]],
    jsonl: Callable[..., Path],
) -> Callable[..., TrainConfig]:
    """A small run that learns, with the device and the precision left to ptuning."""
    data = {"train": str(jsonl("train.jsonl", rows(96))), "test": str(jsonl("test.jsonl", rows(40, seed=1)))}

    def make_config(output: str = "out", **options: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "data": {**data, "validation_fraction": 0.25},
            "backbone": str(tiny_folder),
            "output": str(tmp_path / output),
            "report": False,
            "prompt": {"num_virtual_tokens": 4},
            "fit": {"epochs": 8, "batch_size": 8, "prompt_rate": 3e-2, "head_rate": 3e-2},
        }
        return TrainConfig.checked({**values, **options})

    return make_config


def made_on(device: str, case: str, prompt: PromptConfig, dtype: torch.dtype, **how: Any) -> PTuningModel:
    """The same model whatever the device, with a prompt that is large enough to matter."""
    backbone = Backbone(tiny_case(case).to(dtype=dtype))
    torch.manual_seed(0)
    model = PTuningModel.from_backbone(backbone, prompt, num_labels=3, **how).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.startswith("prompt_encoder"):
                value.add_(torch.randn_like(value))
    return model.to(device)


def logits_of(model: PTuningModel) -> torch.Tensor:
    """Of some ragged rows."""
    ids, mask = (each.to(model.device) for each in ragged([9, 3, 6, 2]))
    found: torch.Tensor = model(ids, mask).logits
    return found


def answered(device: str, case: str, prompt: PromptConfig, engine: Engine) -> dict[str, torch.Tensor]:
    """Logits, and the gradients of what is trained; back on the CPU."""
    model = made_on(device, case, prompt, torch.float32, engine=engine)
    logits = logits_of(model)
    logits.square().sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert any(name.startswith("prompt_encoder") for name in gradients)
    return {name: value.detach().cpu() for name, value in {"logits": logits, **gradients}.items()}


@pytest.mark.parametrize("attention", ["auto", "plain"])
@pytest.mark.parametrize(
    ("case", "prompt"),
    [
        (case, prompt)
        for case in CASES
        for prompt in PROMPTS
        if (case, prompt) != ("bloom", "upper layers")  # refused: its prompt is a cache, of every layer
    ],
)
def test_logits_and_gradients_are_those_of_the_cpu(case: str, prompt: str, attention: Any) -> None:
    engine = Engine(attention=attention)
    here, there = (answered(device, case, PROMPTS[prompt], engine) for device in ("cpu", DEVICE))
    assert here.keys() == there.keys()
    for name, value in here.items():
        scale = max(1.0, float(value.abs().max()))
        assert float((there[name] - value).abs().max()) < 1e-4 * scale, name


@pytest.mark.parametrize("prompt", PROMPTS)
@torch.no_grad()
def test_bf16_is_as_near_as_on_a_cpu(prompt: str) -> None:
    exact = logits_of(made_on("cpu", "bert", PROMPTS[prompt], torch.float32))
    here, there = (
        logits_of(made_on(device, "bert", PROMPTS[prompt], torch.bfloat16)).float().cpu()
        for device in ("cpu", DEVICE)
    )
    assert (there - exact).norm() < 2 * (here - exact).norm() + 1e-3 * exact.norm()


def test_the_default_run_is_on_the_gpu_in_bf16_and_its_adapter_is_the_cpus_too(
    config: Callable[..., TrainConfig], rows: Callable[..., list[dict[str, Any]]]
) -> None:
    made = config()
    result = train(made)
    assert result.metrics["test"]["accuracy"] > 0.9
    assert result.beats_baseline
    held = [row["text"] for row in rows(40, seed=1)]
    on_cpu = PTuningModel.from_pretrained(made.output)
    there = PTuningModel.from_pretrained(made.output).to(DEVICE)
    said = [[each.label for each in Predictor(model=model)(held)] for model in (on_cpu, there)]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": {"num_virtual_tokens": 4, "first_layer": 1}},
        {"prompt": {"num_virtual_tokens": 4, "encoder": {"kind": "mlp", "dropout": 0.3}}},
    ],
    ids=["deep", "upper", "dropout"],
)
def test_a_resumed_run_is_the_straight_run(
    config: Callable[..., TrainConfig], tmp_path: Path, options: dict[str, Any]
) -> None:
    """The generator of the GPU goes on where it was, too."""
    straight = train(config("straight", **options))
    broken = config("broken", **options)
    with pytest.raises(Interrupted):
        train(broken, callbacks=[StopAfter(21)])
    torch.manual_seed(12345)  # whatever happened in between, on the GPU too
    resumed = train(broken, resume=True)
    assert [each.metrics for each in resumed.history] == [
        pytest.approx(each.metrics, abs=1e-3) for each in straight.history
    ]
    one, two = (adapters.load(tmp_path / name).prompt_tensor for name in ("straight", "broken"))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-3)


def test_reusing_the_stem_changes_nothing(config: Callable[..., TrainConfig]) -> None:
    prompt = {"num_virtual_tokens": 4, "first_layer": 2}
    reused = train(config("reused", prompt=prompt, precision="fp32"))
    whole = train(config("whole", prompt=prompt, precision="fp32", engine={"reuse_stem": False}))
    assert [each.metrics["loss"] for each in reused.history] == pytest.approx(
        [each.metrics["loss"] for each in whole.history], abs=1e-3
    )


@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=["fp32", "bf16"])
def test_the_trainer_trains_there(tmp_path: Path, options: dict[str, Any]) -> None:
    prompt = PROMPTS["deep"]
    one = trainer(tmp_path / "cpu", prompt, model=make(prompt))
    one.train()
    other = trainer(tmp_path / "gpu", prompt, model=make(prompt), use_cpu=False, **options)
    other.train()
    assert isinstance(other.model, PTuningModel)
    assert other.model.device.type == DEVICE
    assert losses(other) == pytest.approx(losses(one), abs=0.1 if options else 1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_labels_out_of_range_are_said_and_the_device_goes_on(training: bool) -> None:
    """Where torch ends the process's use of the device with an assert of the kernel's."""
    model = make(PROMPTS["deep"]).to(DEVICE).train(training)
    ids, mask = (each.to(DEVICE) for each in ragged([5, 6]))
    with pytest.raises(DataError, match="labels: got 7 in row 1 of the batch, expected 0 to 2"):
        model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 7], device=DEVICE))
    found = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, -100], device=DEVICE))
    assert bool(found.loss.isfinite())


def test_memory_is_given_back_between_runs(config: Callable[..., TrainConfig]) -> None:
    train(config("one"))
    gc.collect()
    before = torch.cuda.memory_allocated()
    train(config("two"))
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20
