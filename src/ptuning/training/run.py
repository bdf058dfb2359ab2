"""``train(config)``: from a configuration to a trained, evaluated and saved adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ptuning import adapters
from ptuning.errors import ConfigError, OutputError
from ptuning.model.ptuning import PTuningModel
from ptuning.training import checkpoint
from ptuning.training.config import TrainConfig, dump
from ptuning.training.console import Reporter, Silent
from ptuning.training.loop import run
from ptuning.training.result import TrainResult
from ptuning.training.shared import Shared

CONFIG = "config.yaml"
RESULT = "result.json"
"""What a finished run leaves, and an unfinished one lacks."""


def train(
    config: TrainConfig, *, resume: bool = False, anew: bool = False, reporter: Reporter | None = None
) -> TrainResult:
    """Train a prompt as ``config`` says and write the adapter to ``config.output``.

    The run's own files (``config.yaml``, ``checkpoint/``, ``result.json``) stand beside it in
    ``OUTPUT.run``. The test set, if there is one, is looked at once, when everything is decided.

    Args:
        resume: Go on from the run's checkpoint.
        anew: Begin again where a run was not finished; without it, that is refused.
        reporter: Told of every step; silent by default.
    """
    return train_on(Shared(), config, resume=resume, anew=anew, reporter=reporter or Silent())


def train_on(
    shared: Shared,
    config: TrainConfig,
    *,
    resume: bool,
    anew: bool,
    reporter: Reporter,
    began: Callable[[], None] = lambda: None,
) -> TrainResult:
    """:func:`train`, with what other runs have read, loaded and tokenised.

    Args:
        began: Called before the first step, when nothing can be refused any more.
    """
    folder = config.run_folder
    output = adapters.check_destination(Path(config.output))  # before an hour of training, not after
    if not (resume or anew) and (folder / checkpoint.FOLDER).exists() and not (folder / RESULT).exists():
        raise ConfigError(
            f"{folder} holds a run that was not finished; go on from it with --resume, or delete that folder "
            "to begin anew"
        )
    examples, task = shared.examples(config.data, seed=config.fit.seed)
    accelerator = Accelerator(cpu=config.device == "cpu")
    device = accelerator.device
    backbone, tokenizer = shared.backbone(
        config, task, dtype=precision(config.precision, device), device=device
    )
    backbone.engine = config.engine
    set_seed(config.fit.seed)  # the prompt's and the head's first values
    model = PTuningModel(backbone, config.prompt, task, tokenizer=tokenizer)

    def beginning() -> None:
        began()
        if not resume:  # a resumed run's configuration is there, and has to be the same
            if accelerator.is_main_process:
                with suppress(OSError):  # what is wrong with the folder is said below
                    (folder / RESULT).unlink()  # that of the run before this one
            write(folder / CONFIG, dump(config), accelerator)

    result = run(
        model,
        examples,
        config.fit,
        too_long=config.data.too_long,
        output=output,
        resume=resume,
        reporter=reporter,
        accelerator=accelerator,
        began=beginning,
        shared=shared,
        setting={
            **{f"prompt.{name}": value for name, value in config.model_dump(mode="json")["prompt"].items()},
            "backbone": model.backbone.fingerprint(),
            "precision": str(model.backbone.dtype),
        },
    )
    write(folder / RESULT, json.dumps(result.to_dict(), indent=1) + "\n", accelerator)
    return result


def write(file: Path, text: str, accelerator: Accelerator) -> None:
    """Write one of a run's own files, in the main process alone."""
    if accelerator.is_main_process:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{file} could not be written: {error.strerror}") from error


def precision(choice: str, device: torch.device) -> torch.dtype | None:
    """What to hold frozen weights in: bf16 where the device multiplies it fast, told by capability.

    On CPUs that is AMX or AVX512-BF16, whose bf16 products run at a multiple of fp32's speed.
    """
    if choice != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[choice]
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32
