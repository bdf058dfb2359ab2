"""The plan of a run: every decision before the first step, and who made it.

The prompt is decided first, because the model is created from it. The rest is decided when the rows are
tokenised for that model. Options that the user gives are never changed. Options that are left open are
decided by, in this order: a search, the checkpoint of a run that is resumed, a measurement on the training
rows, the recipe, the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ptuning import adapters
from ptuning.model.config import DeepPrompt, Pooling, PromptConfig, prompt_from_dict, prompt_to_dict
from ptuning.model.settling import settle_prompt
from ptuning.task import Task
from ptuning.training import checkpoint
from ptuning.training.class_weights import class_weights
from ptuning.training.config import FitConfig
from ptuning.training.diagnosis import Reference
from ptuning.training.evaluation import (
    Scored,
    baseline_metrics,
    constant_losses,
    metrics_of,
    own_metrics,
)
from ptuning.training.extensions import NO_EXTENSIONS, Extensions, name_of
from ptuning.training.metrics import Baseline, Selection, effective_rows
from ptuning.training.recipe import (
    NO_WORDS,
    Facts,
    Recipe,
    Settled,
    pairs_pooling,
    template_for,
    units_and_queries,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ptuning.model.backbone import Backbone
    from ptuning.model.ptuning import PTuningModel
    from ptuning.training.prepare import Split, TrainingData
    from ptuning.training.warm_start import WarmStart

Source = Literal["search", "checkpoint", "rows", "recipe", "backbone"]
"""What decided an option that the user left open."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Earlier decisions that this run takes over.

    Attributes:
        found: The values that a search chose, by name.
        resumed: The prompt in the checkpoint of the run that is resumed.
    """

    found: Mapping[str, Any] | None = None
    resumed: DeepPrompt | None = None

    @classmethod
    def read(cls, folder: Path | None, found: Mapping[str, Any] | None = None) -> Earlier:
        """Read the prompt of the checkpoint in ``folder``, if there is one.

        If the checkpoint is missing, that is reported later, when it is loaded.
        """
        if folder is None or not adapters.is_adapter(folder):
            return cls(found=found)
        prompt = prompt_from_dict(adapters.details(folder)["prompt"])
        return cls(found=found, resumed=prompt if isinstance(prompt, DeepPrompt) else None)


@dataclass(frozen=True, kw_only=True)
class SettledPrompt:
    """A prompt configuration without open options.

    Attributes:
        config: The configuration; every option of a deep prompt has a value, but a template and a cloze head.
        chosen_by: What chose each option that the user left open, by name.
    """

    config: PromptConfig
    chosen_by: Mapping[str, Source] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.config, DeepPrompt):
            options = {
                name: value for name, value in vars(self.config).items() if name not in ("head", "template")
            }
            assert None not in options.values(), f"not settled: {self.config}"

    @property
    def recipe_says(self) -> list[str]:
        """What the recipe added for these rows, and how to switch it off."""
        what = {"num_virtual_units": "virtual units", "num_queries": "queries"}
        said = [
            f"{count} {words} (prompt.{name}; 0 switches them off)"
            for name, words in what.items()
            if self.chosen_by.get(name) == "recipe" and (count := getattr(self.config, name))
        ]
        if self.chosen_by.get("pooling") == "recipe" and vars(self.config)["pooling"] == "native":
            said.insert(0, "both texts read together (prompt.pooling similarity compares them)")
        if self.chosen_by.get("template") == "recipe":
            said.append(
                f"the template {self.config.written!r} (prompt.template; '{NO_WORDS}' switches it off)"
            )
        return said


def plan_prompt(
    given: PromptConfig,
    backbone: Backbone,
    task: Task,
    rows: int,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    earlier: Earlier | None = None,
    measure: Callable[[DeepPrompt], Pooling | None] = lambda prompt: None,
) -> SettledPrompt:
    """``given`` with all open options decided.

    Args:
        rows: The number of training rows.
        tokenizer: The backbone's; without it, no template is chosen.
        earlier: What a search or the resumed run decided.
        measure: Measures the best pooling on the training rows, if the prompt leaves it open; it returns
            ``None`` if that is not possible.
    """
    if not isinstance(given, DeepPrompt):
        return SettledPrompt(config=given)
    earlier, prompt = earlier or Earlier(), given
    chosen_by: dict[str, Source] = {}

    def choose(source: Source, **values: Any) -> None:
        nonlocal prompt
        chosen = {name: value for name, value in values.items() if getattr(prompt, name) is None}
        prompt = replace(prompt, **chosen)
        chosen_by.update(dict.fromkeys(chosen, source))

    if earlier.found and "first_layer" in earlier.found:
        prompt = replace(prompt, first_layer=earlier.found["first_layer"])
        chosen_by["first_layer"] = "search"
    if (resumed := earlier.resumed) is not None:
        names = ("pooling", "num_virtual_units", "num_queries", *(["template"] if resumed.template else []))
        choose("checkpoint", **{name: getattr(resumed, name) for name in names})
    is_open = prompt.pooling is None  # with a pooling, the prompt is a resumed run's, PEFT's or a user's own
    if prompt.head is None and is_open and (pooling := measure(prompt)) is not None:
        choose("rows", pooling=pooling)
    elif (pooling := pairs_pooling(prompt, task, backbone, tokenizer, rows)) is not None:
        choose("recipe", pooling=pooling)
    pooling = settle_prompt(prompt, backbone, is_pair_similarity=task.is_pair_similarity).pooling
    last_token = pooling == "native" and backbone.architecture.causal and backbone.port.can.layers
    # PEFT can load neither units nor queries: not with a native pooling that was given.
    may_have = pooling == "layers" or (last_token and is_open and prompt.head is None)
    units, queries = units_and_queries(task, rows, last_token=last_token) if may_have else (0, 0)
    choose("recipe", num_virtual_units=units, num_queries=queries)
    may_have_words = is_open or prompt.pooling == "similarity"
    if may_have_words and (words := template_for(prompt, task, backbone, tokenizer)) is not None:
        choose("recipe", template=words)
    choose("backbone", **vars(settle_prompt(prompt, backbone, is_pair_similarity=task.is_pair_similarity)))
    return SettledPrompt(config=prompt, chosen_by=chosen_by)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All decisions for a run.

    Attributes:
        prompt: The settled prompt of the model.
        recipe: Every option of ``fit``, and which of them the recipe chose.
        select: Decides which of two evaluations is better.
        class_weights: The class weights of the loss.
        baseline: The constant answer that a model has to beat.
        floor: The metrics of the constant answer, by split.
        effective_rows: The number of validation rows that the metric depends on.
        reference: What a diagnosis compares the run with.
        setting: What must be the same when the run is resumed, by name.
        start: How the run starts, if the model was trained before.
    """

    prompt: SettledPrompt
    recipe: Recipe
    select: Selection
    class_weights: list[float] | None
    baseline: Baseline
    floor: Mapping[str, Mapping[str, float]]
    effective_rows: float
    reference: Reference
    setting: Mapping[str, Any]
    start: WarmStart | None = None

    @property
    def fit(self) -> Settled:
        """Every option of ``fit``."""
        return self.recipe.fit


def plan_run(
    model: PTuningModel,
    prompt: SettledPrompt,
    data: TrainingData,
    config: FitConfig,
    *,
    found: Mapping[str, Any] | None = None,
    extensions: Extensions = NO_EXTENSIONS,
    start: WarmStart | None = None,
) -> Plan:
    """Decide everything else, for a model that was created from ``prompt``; sets its class weights, and
    makes the first logits of an untrained head small (:func:`~ptuning.training.head_init.soften_head`).

    Args:
        start: How the run starts, if the model was trained before.

    Raises:
        ConfigError: options that contradict each other, the task or the rows.
    """
    from ptuning.training.head_init import soften_head  # imports scikit-learn: slow

    task, train, validation = model.task, data.train, data.validation
    chosen = None in (config.learning_rate, config.head_learning_rate)
    facts = Facts.of(model, train.rows, start, measure=chosen)
    recipe = Recipe.of(config, facts, found)
    if config.class_weights is not None:  # otherwise the model keeps its own
        model.set_class_weights(class_weights(config, train.targets, task))
    weights = None if model.class_weights is None else model.class_weights.tolist()
    extensions.check(config, weights)
    baseline = Baseline.of(train.targets, task)
    floor = {
        name: baseline_metrics(baseline, split.targets, task, weights, extensions)
        for name, split in data.evaluated.items()
    }

    def losses(split: Split, logits: Tensor) -> tuple[float, float]:
        found = metrics_of(model, Scored(split=split, logits=logits))["loss"]
        return found, baseline.measure(split.targets, task, weights)["loss"]

    if start is None:
        soften_head(model, train, losses)
    select = Selection.for_task(
        config.select_by,
        task,
        floor["validation"],
        greater_is_better=config.greater_is_better,
        own=own_metrics(baseline, validation.targets, task, extensions),
    )
    return Plan(
        prompt=prompt,
        recipe=recipe,
        select=select,
        class_weights=weights,
        baseline=baseline,
        floor=floor,
        effective_rows=effective_rows(select.metric, validation.targets, task),
        reference=Reference.of(
            config,
            facts,
            constant_losses(train.targets, task, weights, extensions),
            weighted=weights is not None,
        ),
        setting={
            "init_from": None if start is None else start.version,
            **_model_setting(model),  # first, because the recipe's choices depend on it
            **{f"fit.{name}": value for name, value in recipe.fit.model_dump(mode="json").items()},
            "loss": name_of(extensions.loss),
            "optimizer": name_of(extensions.optimizer),
            "lr_scheduler": name_of(extensions.lr_scheduler),
            "data": checkpoint.data_digest(train.rows, validation.rows),
            "class_weights": weights,  # last, because they may depend on the data
        },
        start=start,
    )


def _model_setting(model: PTuningModel) -> dict[str, Any]:
    """What must be the same for the model in a checkpoint and the model that resumes from it."""
    return {
        **{f"prompt.{name}": value for name, value in prompt_to_dict(model.prompt_config).items()},
        "backbone": model.backbone.fingerprint(),
        "precision": str(model.backbone.dtype),
        "rate_scales": model.learning_rate_scales,
    }
