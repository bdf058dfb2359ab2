"""What a user writes to train: one file, or dotted options at the command line.

The classes are the configuration's only home: the command line, ``--print_config``, the docs' table
and the checks all read them. Importing this module imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ptuning.errors import ConfigError
from ptuning.model.config import DeepPrompt, Engine, PromptConfig
from ptuning.validation import validated


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Strict):
    """Where the rows are and what is in them."""

    train: str = Field(description="CSV, TSV, JSON lines or Parquet file, or hf:NAME[/CONFIG][:SPLIT]")
    validation: str | None = Field(
        None, description="selects the best checkpoint; split off from train if not given"
    )
    test: str | None = Field(None, description="reported once at the end, never selected on")
    text: str | None = Field(None, description="column of the text, or of a pair's first text; found by name")
    text_b: str | None = Field(None, description="column of a pair's second text; found by name")
    label: str | None = Field(None, description="column of the label; found by name")
    label_separator: str | None = Field(
        None, description="splits a label cell into several labels, such as '|'"
    )
    problem_type: Literal[
        "auto", "single_label_classification", "multi_label_classification", "regression"
    ] = Field("auto", description="what a label is; told from the labels")
    validation_fraction: float = Field(0.1, gt=0, lt=1, description="share split off, stratified and seeded")
    max_length: int | None = Field(
        None, ge=4, description="longest input in tokens, prompt included; the backbone's limit"
    )
    too_long: Literal["truncate", "error"] = Field(
        "truncate", description="cut long texts, longest first, or refuse them"
    )


class FitConfig(_Strict):
    """How the numbers are trained."""

    epochs: int = Field(8, ge=1, description="passes over the training rows")
    batch_size: int = Field(16, ge=1, description="rows a batch, of similar length")
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="most tokens a batch, padding included, so that batches of short rows are larger up to "
        "batch_size; no such limit",
    )
    accumulation: int = Field(1, ge=1, description="batches an optimizer step")
    prompt_rate: float | None = Field(
        None, gt=0, description="AdamW's peak learning rate for the prompt; 0.01, or 0.03 in a short run"
    )
    head_rate: float | None = Field(
        None, gt=0, description="AdamW's peak learning rate for the head; 0.001, or 0.01 in a short run"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, on all that is trained")
    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps in which the rates rise")
    schedule: Literal["linear", "cosine"] = Field("linear", description="how the rates fall")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    backbone_dropout: bool = Field(False, description="the backbone's own dropout while training")
    class_weights: Literal["balanced"] | tuple[float, ...] | None = Field(
        None, description="'balanced', or one weight a class in the order of the labels"
    )
    evaluate_every: Annotated[int, Field(ge=1)] | Literal["epoch"] = Field(
        "epoch", description="evaluate on the validation rows every epoch, or every N steps"
    )
    select_by: str = Field(
        "auto", description="metric that picks the best checkpoint; 'auto' by kind of task"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better one"
    )
    seed: int = Field(0, ge=0, description="of everything that is drawn")


SHORT_RUN = 600
"""Fewer optimizer steps than this do not get a prompt off the ground at the usual rates."""


def rates(config: FitConfig, steps: int) -> tuple[float, float]:
    """The peak rates of prompt and head for a run of ``steps`` optimizer steps, where none are given.

    A choice from single runs on MiniLM, to be studied: the committed MRPC result (1,840 steps) has the lower
    rates; on the demo's rows 288 steps at the higher ones fit the training rows, 360 at the lower do not.
    """
    prompt, head = (3e-2, 1e-2) if steps < SHORT_RUN else (1e-2, 1e-3)
    return config.prompt_rate or prompt, config.head_rate or head


class TrainConfig(_Strict):
    """Train a prompt on a frozen backbone."""

    data: DataConfig
    output: str = Field(
        "adapter",
        min_length=1,
        description="folder of the adapter; the run's own files go beside it, in OUTPUT.run",
    )
    backbone: str = Field("demo", description="Hub id or folder of a model; 'demo' is the embedded MiniLM")
    revision: str | None = Field(None, description="branch, tag or commit of the backbone on the Hub")
    prompt: PromptConfig = Field(default_factory=DeepPrompt, description="what is trained")
    fit: FitConfig = Field(default_factory=FitConfig, description="how it is trained")
    engine: Engine = Field(default_factory=Engine, description="how it is computed")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="of the frozen weights: bf16 where the device computes it fast; prompt and head are fp32",
    )
    device: Literal["auto", "cpu"] = Field(
        "auto", description="'auto' takes an accelerator where there is one"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_depth(cls, values: Any) -> Any:
        """``prompt`` without ``depth`` is deep, the default."""
        if isinstance(values, dict) and isinstance(prompt := values.get("prompt"), dict):
            filled = {"depth": "deep", **prompt}
            for part, kind in (("encoder", "embedding"), ("init", "vocabulary")):
                if isinstance(chosen := prompt.get(part), dict):
                    filled[part] = {"kind": kind, **chosen}
            return {**values, "prompt": filled}
        return values

    @property
    def run_folder(self) -> Path:
        """Where checkpoints, log and result of the run are."""
        return run_folder(self.output)

    @classmethod
    def checked(cls, values: Any) -> TrainConfig:
        """``values`` as a configuration.

        Raises:
            ConfigError: one line that names the first key that is unknown, missing or of the wrong type.
        """
        config: TrainConfig = validated(cls, values)
        return config


def dump(config: BaseModel) -> str:
    """The whole configuration as YAML, defaults included."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def run_folder(output: str | Path) -> Path:
    """Where the files of the run that makes ``output`` are: beside it."""
    path = Path(output).expanduser().resolve()
    if not path.name or path == Path.cwd():
        raise ConfigError(
            f"output: got {str(output)!r}, expected a folder of its own, which is replaced as a whole"
        )
    return path.with_name(path.name + ".run")
