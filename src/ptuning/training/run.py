"""``train(config)``: from a configuration to a trained, evaluated and saved adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ptuning import adapters
from ptuning.config_file import read_config
from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.model.config import DeepPrompt, PromptConfig, prompt_from_dict
from ptuning.model.drawing import Draws
from ptuning.model.ptuning import PTuningModel
from ptuning.training import reading, run_files
from ptuning.training.config import TrainConfig, dump
from ptuning.training.console import Reporter, Silent
from ptuning.training.interrupt import Interrupted
from ptuning.training.loop import run
from ptuning.training.prepare import Examples
from ptuning.training.recipe import prompt_of
from ptuning.training.result import TrainResult
from ptuning.training.run_files import CHECKPOINT, CONFIG, RESULT, refuse_unfinished, write
from ptuning.training.shared import Shared, new_accelerator

_DECIDES = ("data", "backbone", "revision", "prompt", "recipe", "fit", "search", "precision")
"""The parts of a configuration that decide what a run finds."""


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

    Raises:
        ConfigError: ``recipe: search``, which is :func:`~ptuning.training.search.train_search`'s.
        TrainingDiverged: a loss or gradient that is not finite; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the run is saved where it was.
    """
    if config.recipe == "search":
        raise ConfigError("recipe: got 'search', expected 'auto'; a search is run by ptuning.train_search")
    return train_on(Shared(), config, resume=resume, anew=anew, reporter=reporter or Silent())


def train_on(
    shared: Shared,
    config: TrainConfig,
    *,
    resume: bool,
    anew: bool,
    reporter: Reporter,
    began: Callable[[], None] = lambda: None,
    found: Mapping[str, Any] | None = None,
) -> TrainResult:
    """:func:`train`, with what other runs have read, loaded and tokenised.

    Args:
        began: Called before the first step, when nothing can be refused any more.
        found: What a search chose, by name.
    """
    folder = config.run_folder
    output = run_files.prepared(config.output)  # before an hour of training, not after
    if not (resume or anew):
        refuse_unfinished(folder)
    accelerator = new_accelerator(cpu=config.device == "cpu")
    own = with_found(config, found)
    if resume:
        own = with_begun(own, folder / CHECKPOINT)
    model, examples = task_model(shared, own, accelerator, reporter.say)

    begun = resume

    def beginning() -> None:
        nonlocal begun
        began()
        begun = True
        if accelerator.is_main_process and resume:
            run_files.remove(folder / RESULT)  # of this run, as far as it came
        elif accelerator.is_main_process:
            run_files.clear(folder, search=found is None)
        if not resume:  # a resumed run's configuration is there, and has to be the same
            write(folder / CONFIG, dump(config), accelerator)
        shared.say_notes(config.data, reporter.say)

    with (
        over_if_diverged(folder, accelerator),
        saying_how_to_go_on(lambda: begun and run_files.has_checkpoint(folder)),
    ):
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
            found=found,
        )
    write(folder / RESULT, json.dumps(result.to_dict(), indent=1) + "\n", accelerator)
    return result


def task_model(
    shared: Shared,
    config: TrainConfig,
    accelerator: Accelerator,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[PTuningModel, Examples]:
    """A model at its first values, and the examples to train it on.

    Args:
        say: Told what the rows decided, in a sentence each.
    """
    examples, task = shared.examples(config.data, seed=config.fit.seed)
    device = accelerator.device
    backbone, tokenizer = shared.backbone(
        config, task, dtype=precision(config.precision, device), device=device
    )
    backbone.engine = config.engine
    config = reading.read(shared, config, backbone, tokenizer, task, examples.train, say)
    rows = len(examples.train)
    prompt = prompt_of(config.prompt, backbone, task, rows)
    if prompt.depth == "deep" and (chosen := _chosen(config.prompt, prompt)):
        say(f"{rows:,} rows of {task.kind.summary(task)}: {' and '.join(chosen)}")
    with Draws(device).drawing():
        set_seed(config.fit.seed)  # the prompt's and the head's first values
        return PTuningModel(backbone, prompt, task, tokenizer=tokenizer), examples


def _chosen(given: PromptConfig, prompt: DeepPrompt) -> list[str]:
    """What of the prompt the rows decided, and how to go without; none of what there are none of."""
    assert given.depth == "deep"
    what = {"num_virtual_units": "virtual units", "num_queries": "queries"}
    found = {name: getattr(prompt, name) for name in what if getattr(given, name) is None}
    return [f"{number} {what[name]} (prompt.{name}; 0 for none)" for name, number in found.items() if number]


def with_found(config: TrainConfig, found: Mapping[str, Any] | None) -> TrainConfig:
    """``config`` with the first layer that a search has ``found``, if it looked for one."""
    if not found or "first_layer" not in found or config.prompt.depth == "input":
        return config
    return config.model_copy(update={"prompt": replace(config.prompt, first_layer=found["first_layer"])})


def with_begun(config: TrainConfig, folder: Path) -> TrainConfig:
    """``config`` with what was measured of the rows when the run began, as its checkpoint has it."""
    if config.prompt.depth == "input" or not adapters.is_adapter(folder):
        return config  # without a checkpoint there is nothing to resume, and that is said elsewhere
    prompt, begun = config.prompt, prompt_from_dict(adapters.details(folder)["prompt"])
    if not isinstance(begun, DeepPrompt):
        return config
    if prompt.pooling is None:
        prompt = replace(prompt, pooling=begun.pooling)
    if prompt.num_virtual_units is None:
        prompt = replace(prompt, num_virtual_units=begun.num_virtual_units)
    if prompt.num_queries is None:
        prompt = replace(prompt, num_queries=begun.num_queries)
    return config.model_copy(update={"prompt": prompt})


@contextmanager
def over_if_diverged(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """A run, or a search, that diverges in here is over and says so, and another may take its place."""
    try:
        yield
    except TrainingDiverged as error:
        write(folder / RESULT, json.dumps({"diverged": str(error)}, indent=1) + "\n", accelerator)
        raise


@contextmanager
def saying_how_to_go_on(saved: Callable[[], bool]) -> Iterator[None]:
    """Where Ctrl-C comes between the steps' end and the run's, and there is something to go on from."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        if not saved():
            raise
        raise Interrupted(
            "interrupted; what was saved before is kept; to go on, run the same command with --resume"
        ) from None


def check_same(config: TrainConfig, what: str) -> None:
    """Refuse to go on from a run, ``what``, with other choices than it was begun with."""
    file = config.run_folder / CONFIG
    try:
        begun = TrainConfig.checked(read_config(file, "the run's"))
    except ConfigError as error:
        raise ConfigError(f"cannot resume: {error}; start again without --resume") from None
    then, now = (_leaves(each.model_dump(mode="json", include={*_DECIDES})) for each in (begun, config))
    for key in (*then, *(key for key in now if key not in then)):
        if then.get(key) != now.get(key):
            raise ConfigError(
                f"cannot resume: {key}: {what} began with {then.get(key)!r}, got {now.get(key)!r}; "
                "use the same configuration, or start again without --resume"
            )


def _leaves(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return found


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
