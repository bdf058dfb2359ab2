"""``train(config)``: from a configuration to a trained, evaluated and saved adapter."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed

from ptuning import adapters
from ptuning.model.ptuning import PTuningModel
from ptuning.training.config import TrainConfig
from ptuning.training.console import Reporter, Silent
from ptuning.training.loop import run
from ptuning.training.prepare import read
from ptuning.training.result import TrainResult


def train(config: TrainConfig, *, resume: bool = False, reporter: Reporter | None = None) -> TrainResult:
    """Train a prompt as ``config`` says and write the adapter to ``config.output``.

    The run's own files (``config.yaml``, ``checkpoint/``, ``result.json``) stand beside it in
    ``OUTPUT.run``. The test set, if there is one, is looked at once, when everything is decided.

    Args:
        resume: Go on from the run's checkpoint.
        reporter: Told of every step; silent by default.
    """
    output = adapters.check_destination(Path(config.output))  # before an hour of training, not after
    examples, task = read(config.data, seed=config.fit.seed)
    accelerator = Accelerator(cpu=config.device == "cpu")
    set_seed(config.fit.seed)  # the prompt's and the head's first values
    model = PTuningModel.from_backbone(
        config.backbone,
        config.prompt,
        task=task,
        revision=config.revision,
        dtype=precision(config.precision, accelerator.device),
    )
    config.run_folder.mkdir(parents=True, exist_ok=True)
    written = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (config.run_folder / "config.yaml").write_text(written, encoding="utf-8")
    result = run(
        model,
        examples,
        config.fit,
        too_long=config.data.too_long,
        output=output,
        resume=resume,
        reporter=reporter or Silent(),
        accelerator=accelerator,
        setting={
            "prompt": config.model_dump(mode="json")["prompt"],
            "backbone": model.backbone.fingerprint(),
            "precision": str(model.backbone.dtype),
        },
    )
    found = json.dumps(result.to_dict(), indent=1)
    (config.run_folder / "result.json").write_text(found + "\n", encoding="utf-8")
    return result


def precision(choice: str, device: torch.device) -> torch.dtype | None:
    """What to hold frozen weights in: bf16 where the device multiplies it fast, told by capability.

    On CPUs that is AMX or AVX512-BF16, where bf16 products run two to six times as fast as fp32's.
    """
    if choice != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[choice]
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32
