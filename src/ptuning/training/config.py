"""The training configuration: one file, or dotted options at the command line.

These classes are the only definition of the options: the command line, ``--print_config``, the table in the
docs and the checks all read them. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from ptuning.data.options import WINDOWS, BadRows, Duplicates, ReadOptions, TooLong
from ptuning.errors import ConfigError
from ptuning.kinds import KINDS
from ptuning.model.config import Count, DeepPrompt, Engine, PromptConfig, trains_head
from ptuning.paths import local_path
from ptuning.task import MAX_OVERLAP, MAX_WINDOWS, OVERLAP
from ptuning.validation import Checked, Float, Int, OneOf, current_names, shortened, validated

_FRACTION = 0.1
"""The default share of the training rows that is split off for validation."""
OLD_NAMES: Mapping[str, str] = {
    "epochs": "num_train_epochs",
    "accumulation": "gradient_accumulation_steps",
    "clip": "max_grad_norm",
    "prompt_rate": "learning_rate",
    "head_rate": "head_learning_rate",
    "warmup": "warmup_ratio",
    "schedule": "lr_scheduler_type",
}
"""Earlier names of options of ``fit``, and the current ones."""

# Bounds that no sensible run reaches: a value beyond them is a mistake, and is reported here.
Epochs = Annotated[Int, Field(ge=1, le=100_000)]
Steps = Annotated[Int, Field(ge=1, le=1_000_000_000)]
Rate = Annotated[Float, Field(gt=0, le=1e30)]
"""The bound is what fp32 can multiply. Below it, a learning rate that is too high diverges with an error."""
Seed = Annotated[Int, Field(ge=0, lt=2**32)]
"""The seeds that numpy accepts."""


def _as_text(value: Any) -> Any:
    """Turn a number into text, because YAML reads ``-1`` as a number; also inside a list."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_text, value))
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""The experiment trackers that can be named."""


def tracker_names(value: Any) -> Any:
    """One tracker's name, several separated by commas, or a list, as a tuple without repetitions.

    Raises:
        ConfigError: an unknown tracker.
    """
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        return given
    found = [each.strip() if isinstance(each, str) else each for each in given]
    for name in found:
        if name not in TRACKERS:
            close = get_close_matches(str(name).lower(), TRACKERS, n=1)
            raise ConfigError(
                "track",
                got=shortened(name),
                expected=f"one or several of {', '.join(TRACKERS)}",
                remedy=f"did you mean {close[0]}?" if close else None,
            )
    return tuple(dict.fromkeys(found))


Names = Annotated[str | tuple[str, ...] | None, BeforeValidator(_as_text)]
"""One name, several separated by commas, or a list."""


class DataConfig(Checked):
    """Where the rows are and what is in them."""

    train: str = Field(
        description="CSV, TSV, JSON, Parquet or Excel file, a folder, or hf:NAME[/CONFIG][:SPLIT]"
    )
    validation: str | None = Field(
        None, description="rows that select the best checkpoint; split off from train"
    )
    test: str | None = Field(None, description="rows that are evaluated once at the end, never selected on")
    text: str | None = Field(None, description="column of the text, or of a pair's first text; found by name")
    text_b: str | None = Field(None, description="column of a pair's second text; found by name")
    label: Names = Field(
        None,
        description="column of the label; or columns of 0 and 1, one per label, with commas between or as a "
        "pattern such as 'label_*'; found by name",
    )
    label_separator: str | None = Field(
        None, description="splits a label cell into several labels, such as '|'"
    )
    no_label: Names = Field(
        None,
        description="label values that mean 'unlabelled', such as -1, separated by commas, whose rows are "
        "left out",
    )
    bad_rows: BadRows = Field(
        "error",
        description="'error' refuses a file with rows that cannot be used, 'skip' leaves them out",
    )
    duplicates: Duplicates = Field(
        "keep",
        description="'drop' keeps the first of rows with the same text and label, and none where labels "
        "contradict each other",
    )
    separator: str | None = Field(
        None, description="character between the cells of CSV and TSV, such as ';' or 'tab'; detected"
    )
    encoding: str | None = Field(None, description="encoding of text files, such as 'cp1252'; detected")
    header: Literal["auto", "first", "none"] = Field(
        "auto",
        description="whether the first row of CSV, TSV and Excel names the columns; else they are 1, 2, 3 …",
    )
    quoting: Literal["auto", "csv", "none"] = Field(
        "auto",
        description="whether double quotes in CSV and TSV enclose cells ('csv') or are ordinary "
        "characters ('none')",
    )
    problem_type: Annotated[str, OneOf(lambda: ("auto", *KINDS))] = Field(
        "auto", description="kind of task; 'auto' infers it from the labels"
    )
    validation_fraction: Float = Field(
        _FRACTION,
        gt=0,
        lt=1,
        description="share of the training rows split off for validation, stratified and seeded",
    )
    max_length: Annotated[Int, Field(ge=4, le=10_000_000)] | None = Field(
        None, description="maximum input length in tokens, prompt included; the backbone's limit"
    )
    too_long: TooLong | None = Field(
        None,
        description="'truncate' cuts long texts, longest first, 'error' refuses them, 'windows' reads them "
        "in overlapping windows and averages their logits; as the adapter was trained, else 'truncate'",
    )
    max_windows: Annotated[Int, Field(ge=2, le=MAX_WINDOWS)] | None = Field(
        None, description=f"maximum windows per row; what is behind them is cut; {WINDOWS}"
    )
    window_overlap: Annotated[Float, Field(ge=0, le=MAX_OVERLAP)] | None = Field(
        None, description=f"share of a window's text that is also in the window before it; {OVERLAP}"
    )

    def reading(self) -> ReadOptions:
        """The options of :func:`ptuning.data.load_examples`, the same for every source."""
        return cast(ReadOptions, {name: getattr(self, name) for name in ReadOptions.__annotations__})

    @model_validator(mode="after")
    def _windows_are_used(self) -> DataConfig:
        """Refuse options of windows that would have no effect."""
        for name in ("max_windows", "window_overlap"):
            if getattr(self, name) is not None and self.too_long != "windows":
                raise ConfigError(
                    f"data.{name}: only used with data.too_long: windows",
                    got=f"data.too_long: {self.too_long or 'truncate'}",
                    remedy="set data.too_long to windows, or leave it out",
                )
        return self


class FitConfig(Checked):
    """How prompt and head are trained. The recipe (``training/recipe.py``) chooses what is left out.

    Options have the names of transformers' ``TrainingArguments`` if they mean the same. (``warmup_ratio`` is
    the name before transformers 5, where ``warmup_steps`` takes the same share.) The names in
    :data:`OLD_NAMES` are still accepted.
    """

    OLD_NAMES: ClassVar[Mapping[str, str]] = OLD_NAMES

    num_train_epochs: Epochs | None = Field(
        None, description="passes over the training rows; the recipe's choice"
    )
    batch_size: Int = Field(16, ge=1, le=1_000_000, description="rows per batch, of similar length")
    batch_tokens: Annotated[Int, Field(ge=1, le=1_000_000_000)] | None = Field(
        None,
        description="maximum tokens per batch, padding included, so that batches of short rows are larger, "
        "up to batch_size; no such limit",
    )
    gradient_accumulation_steps: Int = Field(1, ge=1, le=1_000_000, description="batches per optimizer step")
    learning_rate: Rate | None = Field(
        None, description="AdamW's peak learning rate for the prompt; the recipe's choice"
    )
    head_learning_rate: Rate | None = Field(
        None, description="AdamW's peak learning rate for the head; the recipe's choice"
    )
    weight_decay: Float = Field(0.0, ge=0, le=1e30, description="weight decay of AdamW, for prompt and head")
    warmup_ratio: Float = Field(
        0.06, ge=0, lt=1, description="share of the steps in which the learning rates rise"
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "linear", description="how the learning rates fall after the warmup"
    )
    max_grad_norm: Float = Field(
        1.0, gt=0, allow_inf_nan=True, description="maximum norm of the gradient; .inf for no clipping"
    )
    backbone_dropout: bool | None = Field(
        None, description="whether the backbone's own dropout is on while training; the recipe's choice"
    )
    class_weights: Literal["balanced"] | tuple[Float, ...] | None = Field(
        None, description="'balanced', or one weight per class in the order of the labels"
    )
    evaluate_every: Steps | Literal["epoch"] | None = Field(
        None,
        description="evaluate on the validation rows every 'epoch', or every N steps; the recipe's choice",
    )
    select_by: str = Field(
        "auto", description="metric that selects the best checkpoint; 'auto' by kind of task"
    )
    greater_is_better: bool | None = Field(
        None,
        description="whether a larger value of select_by is better, for a metric of your own; false if its "
        "name ends in loss, else true",
    )
    average_checkpoints: Int = Field(
        3,
        ge=1,
        le=1000,
        description="average the parameters of up to this many of the best checkpoints",
    )
    calibrate: bool = Field(
        True,
        description="after training, fit a temperature, and for several labels a threshold each, to the "
        "validation rows, so that probabilities can be trusted",
    )
    patience: Annotated[Int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="stop early after this many evaluations without improvement"
    )
    seed: Seed = Field(0, description="random seed of the data split, initialisation, shuffling and dropout")

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, values: Any) -> Any:
        return current_names(values, OLD_NAMES)


class SearchConfig(Checked):
    """The budget of ``recipe: search``, and what it tries."""

    trials: Int = Field(
        12,
        ge=2,
        le=10_000,
        description="short runs that are compared; the first has the auto recipe's choices",
    )
    minutes: Annotated[Float, Field(gt=0, le=1_000_000)] | None = Field(
        None, description="start no further trial after this many minutes of trials; no such limit"
    )
    epochs: Epochs | None = Field(
        None,
        description="epochs per trial; a third of the run's, but at least 300 steps, and no more than the "
        "run's",
    )
    first_layers: tuple[Count, ...] | None = Field(
        None,
        min_length=1,
        description="values of prompt.first_layer to try; 0, a third and half of the layers, unless "
        "prompt.first_layer is given",
    )


class TrainConfig(Checked):
    """Train a prompt on a frozen backbone."""

    data: DataConfig
    output: str = Field(
        "adapter",
        min_length=1,
        description="folder of the adapter; the run's own files go next to it, in OUTPUT.run",
    )
    backbone: str = Field("demo", description="Hub id or folder of a model; 'demo' is the embedded MiniLM")
    revision: str | None = Field(None, description="branch, tag or commit of the backbone on the Hub")
    init_from: str | None = Field(
        None,
        min_length=1,
        description="folder or Hub id of a trained adapter that training starts from; it decides backbone "
        "and prompt if they are left out",
    )
    init_head: Literal["auto", "new"] = Field(
        "auto",
        description="with init_from, 'auto' keeps the adapter's head and labels for the same kind of task, "
        "'new' takes over the prompt alone, for another task",
    )
    prompt: PromptConfig = Field(
        default_factory=DeepPrompt,
        description="where the virtual tokens are: 'deep', keys and values in every layer (P-tuning v2), or "
        "'input', embeddings before the first layer (P-tuning)",
    )
    recipe: Literal["auto", "search"] = Field(
        "auto",
        description="how the options of fit that are left out are chosen: from facts of data and backbone, "
        "or by short runs that try several learning rates and first layers",
    )
    fit: FitConfig = Field(default_factory=FitConfig, description="how it is trained")
    search: SearchConfig = Field(default_factory=SearchConfig, description="options of recipe: search")
    engine: Engine = Field(default_factory=Engine, description="how it is computed")
    track: Annotated[tuple[str, ...], BeforeValidator(tracker_names)] = Field(
        (),
        description="log the run to tensorboard, wandb, mlflow or trackio; several separated by commas; "
        "no tracker",
    )
    track_project: str | None = Field(
        None, description="project of the trackers (MLflow: experiment); 'ptuning'"
    )
    track_folder: str | None = Field(
        None, description="folder that TensorBoard, MLflow and wandb write to; OUTPUT.run/tracking"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="data type of the frozen weights; 'auto' is bf16 where the device computes it fast; "
        "prompt and head are always fp32",
    )
    device: Literal["auto", "cpu"] = Field(
        "auto", description="'auto' uses a GPU or another accelerator if there is one"
    )
    report: bool = Field(
        True, description="write OUTPUT.run/report.html, a page about what the adapter has learned"
    )
    no_texts: bool = Field(False, description="leave the texts of the rows out of the report")

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

    _left_open: frozenset[str] = PrivateAttr(frozenset())

    @model_validator(mode="wrap")
    @classmethod
    def _remember_left_open(cls, values: Any, handler: ModelWrapValidatorHandler[TrainConfig]) -> TrainConfig:
        """With ``init_from`` it matters which options of backbone and prompt are left out."""
        made = handler(values)
        if made.init_from is None or not isinstance(values, Mapping):
            return made
        prompt = values.get("prompt", {})
        # Of an instance, an option at its default counts as left out, but not the depth.
        given = set(prompt) if isinstance(prompt, Mapping) else {"depth", *_changed(prompt)}
        left = {f"prompt.{name}" for name in vars(made.prompt) if name not in given}
        made._left_open = frozenset(left | {"backbone", "revision"} - made.model_fields_set)
        return made

    @property
    def left_open(self) -> frozenset[str]:
        """The options, by dotted name, that the adapter of ``init_from`` decides."""
        return self._left_open

    @model_validator(mode="after")
    def _start_fits(self) -> TrainConfig:
        """Refuse options that contradict ``init_from``, as far as that is known without the adapter."""
        if self.init_from is None and self.init_head != "auto":
            raise ConfigError(
                "init_head", got=repr(self.init_head), expected="init_from with it", remedy="leave it out"
            )
        named = "backbone" in self.model_fields_set
        if self.init_from is not None and not named and self.revision is not None:
            raise ConfigError(
                "revision",
                got=repr(self.revision),
                expected="backbone with it, because with init_from the adapter decides both",
                remedy="name the backbone too, or leave it out",
            )
        if self.init_from is not None and self.search.first_layers is not None:
            raise ConfigError(
                "search.first_layers: with init_from the adapter decides the first layer",
                remedy="leave it out",
            )
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> TrainConfig:
        """Refuse options of the search that would have no effect."""
        layers = self.search.first_layers
        if self.recipe == "auto" and self.search != SearchConfig():
            raise ConfigError(
                "search: these options need recipe: search",
                got="recipe: auto",
                remedy="set recipe: search, or leave them out",
            )
        if layers is not None and self.prompt.depth == "input":
            raise ConfigError(
                "search.first_layers: an input prompt has no first layer", remedy="leave it out"
            )
        if layers is not None and self.prompt.depth == "deep" and self.prompt.first_layer > 0:
            raise ConfigError(
                "search.first_layers and prompt.first_layer",
                got="both",
                expected="one of them",
                remedy="leave one out",
            )
        if layers is not None and len(set(layers)) != len(layers):
            raise ConfigError("search.first_layers", got=list(layers), expected="each layer once")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> TrainConfig:
        """Refuse options that would have no effect because of another option."""
        for name in ("track_project", "track_folder"):
            if getattr(self, name) is not None and not self.track:
                raise ConfigError(
                    f"{name}: there is no tracker", remedy="name one with track, or leave it out"
                )
        if self.data.validation is not None and self.data.validation_fraction != _FRACTION:
            raise ConfigError(
                "data.validation_fraction: with data.validation nothing is split off",
                remedy="leave one of them out",
            )
        if self.no_texts and not self.report:
            raise ConfigError(
                "no_texts: no report is written (report: false)", remedy="leave one of them out"
            )
        if not trains_head(self.prompt) and self.fit.head_learning_rate is not None:
            why = "prompt.train_head: false" if self.prompt.head is None else "prompt.head is a cloze head"
            raise ConfigError(
                f"fit.head_learning_rate: the head is not trained ({why})",
                remedy="leave one of them out",
            )
        if self.backbone == "demo" and self.revision is not None:
            raise ConfigError(
                "revision",
                got=repr(self.revision),
                expected="no revision for 'demo', which has only one",
                remedy="leave it out",
            )
        return self

    @property
    def run_folder(self) -> Path:
        """The folder with the run's configuration, checkpoint and result."""
        return run_folder(self.output)

    @classmethod
    def checked(cls, values: Any) -> TrainConfig:
        """``values`` as a configuration.

        Raises:
            ConfigError: names the first key that is unknown, missing or of the wrong type, in one line.
        """
        config: TrainConfig = validated(cls, values)
        return config


def dump(config: BaseModel) -> str:
    """The configuration as YAML, defaults included, except for options that ``init_from`` decides."""
    values = config.model_dump(mode="json")
    for option in config.left_open if isinstance(config, TrainConfig) else ():
        section, dot, name = option.rpartition(".")
        del (values[section] if dot else values)[name]
    if not values.get("prompt", True):
        del values["prompt"]
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def _changed(prompt: Any) -> list[str]:
    """The options of a prompt that differ from the defaults."""
    default = type(prompt)()
    return [name for name, value in vars(prompt).items() if value != getattr(default, name)]


def run_folder(output: str | Path) -> Path:
    """The folder next to ``output`` with the files of its run."""
    path = local_path(output, "output").resolve()
    if not path.name or path == Path.cwd():
        raise ConfigError(
            "output",
            got=repr(str(output)),
            expected="a folder for the adapter alone, because it is replaced",
            remedy="name a new folder",
        )
    return path.with_name(path.name + ".run")
