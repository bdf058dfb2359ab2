"""The input of a run: an untrained model, and the rows to train it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ptuning.data.options import TooLong
from ptuning.model.config import DeepPrompt, Pooling
from ptuning.model.drawing import Draws
from ptuning.model.ptuning import PTuningModel
from ptuning.training.config import FitConfig, TrainConfig
from ptuning.training.pair_pooling import measured_pooling
from ptuning.training.plan import Earlier, SettledPrompt, plan_prompt
from ptuning.training.prepare import Examples
from ptuning.training.run_cache import RunCache
from ptuning.training.warm_start import WarmStart


@dataclass(frozen=True, kw_only=True)
class Job:
    """The input of a run.

    Attributes:
        model: Untrained, or trained before by the user.
        prompt: The settled configuration of its prompt.
        examples: The rows of every split, read and checked.
        config: How to train.
        too_long: What happens to long texts; ``None`` for what the task says.
        output: The adapter's folder, if one is written.
        report: Whether a report is written next to it.
        no_texts: Whether the report leaves the texts out.
        found: What a search chose, by name.
        start: How it starts, if the model was trained before.
    """

    model: PTuningModel
    prompt: SettledPrompt
    examples: Examples
    config: FitConfig
    too_long: TooLong | None
    output: Path | None = None
    report: bool = False
    no_texts: bool = False
    found: Mapping[str, Any] | None = None
    start: WarmStart | None = None


def make_job(
    cache: RunCache,
    config: TrainConfig,
    accelerator: Accelerator,
    earlier: Earlier | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Job:
    """An untrained model, and the examples to train it on.

    Args:
        say: Called with each choice that was made from the rows, in a sentence.
    """
    earlier = earlier or Earlier()
    source, gathered = cache.source(config), cache.gathered(config)
    if source is not None:
        config = source.settled(config, say)
    fraction, task = config.data.validation_fraction, gathered.task
    examples = gathered.examples(fraction=fraction, seed=config.fit.seed)
    device, rows = accelerator.device, len(examples.train)
    backbone, tokenizer = cache.backbone(
        config, task, dtype=precision(config.precision, device), device=device
    )
    backbone.engine = config.engine

    def measure(prompt: DeepPrompt) -> Pooling | None:
        found = measured_pooling(prompt, cache, config, backbone, tokenizer, task, examples.train)
        if found.message is not None:
            say(found.message)
        return found.pooling

    prompt = plan_prompt(
        config.prompt, backbone, task, rows, tokenizer=tokenizer, earlier=earlier, measure=measure
    )
    if chosen := prompt.recipe_says:
        kind = task.kind.summary(task)
        say(f"{rows:,} rows of {kind}: {' and '.join(chosen)}")
    if source is not None:
        say(source.summary(continues=gathered.continues))
    with Draws(device).drawing():
        torch.manual_seed(config.fit.seed)  # initialises prompt and head
        if source is None:
            model = PTuningModel(backbone, prompt.config, task, tokenizer=tokenizer)
        else:
            continues = gathered.continues
            model = source.model(backbone, prompt.config, task, continues=continues, tokenizer=tokenizer)
    return Job(
        model=model,
        prompt=prompt,
        examples=examples,
        config=config.fit,
        too_long=config.data.too_long,
        report=config.report,
        no_texts=config.no_texts,
        found=earlier.found,
        start=None if source is None else source.start(task, continues=gathered.continues),
    )


def precision(choice: str, device: torch.device) -> torch.dtype | None:
    """The dtype of the frozen weights: with ``auto``, bf16 if the device computes it fast.

    CPUs do with AMX, and those of AMD with AVX512-BF16. On Intel's without AMX, bf16 products take half as
    long again as fp32 ones, or more.
    """
    if choice != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[choice]
    if device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported() or (
            torch.cpu._is_avx512_bf16_supported() and "Intel" not in _processor()
        )
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def _processor() -> str:
    """Whose CPU it is, as far as torch can tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # torch 2.7 has none
    return "" if capabilities is None else str(capabilities().get("cpu_name", ""))
