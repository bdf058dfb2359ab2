"""``recipe: auto``: chooses the options of ``fit`` that are left out, from the data, backbone and prompt.

:func:`choice` is the only place that sets values. An option that the recipe may choose is optional in
:class:`~ptuning.training.config.FitConfig` and required in :class:`Settled`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ptuning.errors import ConfigError
from ptuning.model.template import template_words
from ptuning.training.config import FitConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ptuning.data.tokens import TokenRow
    from ptuning.model.backbone import Backbone
    from ptuning.model.config import DeepPrompt, Pooling
    from ptuning.model.ptuning import PTuningModel
    from ptuning.task import Task
    from ptuning.training.warm_start import WarmStart


class Settled(FitConfig):
    """Every option of ``fit``, with nothing left to choose."""

    num_train_epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    head_learning_rate: float = Field(gt=0)
    backbone_dropout: bool
    evaluate_every: Annotated[int, Field(ge=1)] | Literal["epoch"]


CHOSEN = tuple(Settled.__annotations__)
"""The options of ``fit`` that the recipe chooses if the user leaves them out."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a recipe's choices depend on.

    Attributes:
        rows: The number of training rows.
        tokens: Their tokens in all, without the prompt.
        depth: Where the prompt is.
        encoder: The kind of prompt encoder.
        virtual_tokens: P.
        first_layer: The first layer with a prompt; 0 at input depth.
        virtual_units: U.
        fitted: Whether the head starts fitted to the rows, or trained.
        warm: Whether the prompt was trained before.
        head_step: How much the first step changes the logits by the head, at a learning rate of 1; 0 if it is
            not known (:mod:`ptuning.training.first_step`).
        prompt_step: By the prompt, likewise.
        scaled: Whether prompt and head have scaled learning rates, as under PEFT's names.
        cloze: Whether the head is a language model's own, which is not trained.
    """

    rows: int
    tokens: int
    depth: Literal["input", "deep"] = "deep"
    encoder: str = "embedding"
    virtual_tokens: int = 20
    first_layer: int = 0
    virtual_units: int = 0
    fitted: bool = False
    scaled: bool = False
    warm: bool = False
    head_step: float = 0.0
    prompt_step: float = 0.0
    cloze: bool = False

    @classmethod
    def of(
        cls,
        model: PTuningModel,
        rows: Sequence[TokenRow],
        start: WarmStart | None = None,
        *,
        measure: bool = True,
    ) -> Facts:
        """The facts of training ``model`` on ``rows``.

        Args:
            measure: Whether to measure the first step, which takes a pass over a few rows.
        """
        from ptuning.training.first_step import first_step
        from ptuning.training.head_init import starts_fitted  # imports scikit-learn: slow

        prompt = model.prompt_config
        step = first_step(model, rows if measure and prompt.head is None else ())
        return cls(
            rows=len(rows),
            tokens=sum(row.places() for row in rows),
            depth=prompt.depth,
            encoder=prompt.encoder.kind,
            virtual_tokens=prompt.virtual_tokens,
            first_layer=prompt.first_layer if prompt.depth == "deep" else 0,
            virtual_units=(prompt.num_virtual_units or 0) if prompt.depth == "deep" else 0,
            fitted=starts_fitted(model, start) or (start is not None and start.keeps_head),
            warm=start is not None,
            head_step=step.head,
            prompt_step=step.prompt,
            scaled=model.learning_rate_scales != (1.0, 1.0),
            cloze=prompt.head is not None,
        )

    def steps(self, fit: FitConfig, epochs: int) -> int:
        """Optimizer steps in ``epochs``; an estimate with ``fit.batch_tokens``."""
        batches = math.ceil(self.rows / fit.batch_size)
        if fit.batch_tokens is not None:
            batches = max(batches, math.ceil(self.tokens / fit.batch_tokens))
        return epochs * math.ceil(batches / fit.gradient_accumulation_steps)


DEEP_RATE = 2e-2
"""A deep prompt's learning rate."""
EPOCHS = 8
"""Epochs of an ordinary run; the learning rates fall to 0 over them."""
MIN_STEPS = 300
"""Minimum optimizer steps: with fewer, small data sets are not learned at all."""
MAX_STEPS = 12_500
"""Maximum optimizer steps: large data sets need fewer epochs, but at least 2."""
MAX_SPEEDUP = 3.0
"""Maximum factor on the prompt's learning rate if the user asks for fewer than :data:`MIN_STEPS`."""
HEAD_RATE_TIMES_STEPS = 2.5
"""The head's learning rate times the number of steps. It is constant, so that a long run does not overfit."""
HEAD_STEP = 0.35
"""Maximum change of a logit by the head's first step. A head that moves faster learns few rows by heart
before the prompt has learned anything."""
PROMPT_STEP = 2.3
"""Maximum change of a logit by the prompt's first step, in standard deviations of the logits."""
FITTED_EPOCHS = 5
"""Epochs if the head starts fitted or trained: less is left to learn."""
FITTED_HEAD = 2e-4
"""The learning rate of a head that starts fitted or trained: it only has to follow the prompt."""
UNITS = 20
"""Virtual units, with enough rows."""
QUERIES = 2
"""Queries, with enough rows."""
MANY_ROWS = 5000
"""Enough rows for both, for every kind of task."""
PAIRS_TOGETHER = 1000
"""Enough pairs with a fine-grained label for a decoder to read both texts together, with units. With fewer
pairs, two classes or no units, it learns more from how similar they are."""
CLOZE_STEPS = 60
"""Minimum optimizer steps with a cloze head, which answers before it has learned."""
WORDS = "{text}\nIn one word:"
"""The template of a decoder that reads single texts (after PromptEOL, arXiv:2307.16645)."""
NO_WORDS = "{text}"
"""The template that inserts nothing."""
EVALUATIONS = 16
"""Maximum number of evaluations: with so many epochs, an epoch is about as cheap as an evaluation."""


def choice(facts: Facts, fit: FitConfig) -> dict[str, Any]:
    """The recipe's value for every option of :data:`CHOSEN`; ``fit`` is what the user gave.

    docs/recipes.md describes how the values were found. An input prompt without an encoder needs a higher
    learning rate than a deep prompt; with an encoder, a lower one, because all weights of the encoder change
    it. If the head starts fitted or trained, less is left to learn, and with few rows the prompt should
    change little. With a cloze head there is no head to learn, so few steps are enough.
    """
    steps = facts.steps(fit, 1)
    minimum, usual = (MIN_STEPS // 2, FITTED_EPOCHS) if facts.fitted else (MIN_STEPS, EPOCHS)
    minimum = CLOZE_STEPS if facts.cloze else minimum
    epochs = fit.num_train_epochs or max(
        math.ceil(minimum / steps), min(usual, max(2, round(MAX_STEPS / steps)))
    )
    gentle = max(2e-3, 1e-2 * math.sqrt(facts.rows / 200))
    if facts.depth == "input":
        prompt = 1e-1 if facts.encoder == "embedding" and not facts.scaled else 1e-2
        prompt *= min(1.0, gentle / DEEP_RATE) if facts.warm and facts.fitted else 1.0
    elif facts.fitted:
        prompt = min(DEEP_RATE if facts.warm else 3e-2, gentle)
    elif facts.cloze:
        prompt = DEEP_RATE
    else:
        prompt = DEEP_RATE * min(MAX_SPEEDUP, max(1.0, MIN_STEPS / (epochs * steps)))
    every: int | str = "epoch"
    if epochs > EVALUATIONS:
        every = math.ceil(epochs * steps / EVALUATIONS)
    elif epochs < usual and steps * usual > MAX_STEPS:  # many rows, so few epochs
        every = math.ceil(epochs * steps / usual)
    head = FITTED_HEAD if facts.fitted else min(1e-2, max(1e-3, HEAD_RATE_TIMES_STEPS / (epochs * steps)))
    if facts.head_step:
        head = min(head, HEAD_STEP / facts.head_step)
    if facts.prompt_step and facts.depth == "deep" and facts.encoder == "embedding":
        prompt *= min(1.0, PROMPT_STEP / (DEEP_RATE * facts.prompt_step))
    return {
        "num_train_epochs": epochs,
        "learning_rate": _rounded(prompt),
        "head_learning_rate": _rounded(head),
        "backbone_dropout": facts.virtual_units > 0 and facts.first_layer == 0,  # a stem has no dropout
        "evaluate_every": every,
    }


def pairs_pooling(
    prompt: DeepPrompt,
    task: Task,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase | None,
    rows: int,
) -> Pooling | None:
    """The pooling of pairs if the prompt leaves it open: ``None`` if the backbone alone decides.

    ``similarity`` is what a sentence embedding model was trained for, and a decoder's last token behind
    :data:`WORDS` tells even more about a text. The rows may say otherwise (``pair_pooling.py``). Of
    :data:`PAIRS_TOGETHER` scores and more, a decoder with virtual units learns more from both texts together
    (``native``).

    Args:
        rows: The number of training rows.
    """
    from ptuning.model.settling import settle_prompt  # imports torch: slow

    if prompt.pooling is not None or prompt.head is not None or not task.is_pair_similarity:
        return None
    if settle_prompt(prompt, backbone, is_pair_similarity=True).pooling == "similarity":
        return "similarity"
    has_words = template_for(replace(prompt, pooling="similarity"), task, backbone, tokenizer) is not None
    if not (has_words and backbone.port.can.layers and prompt.template_texts in (None, 1)):
        return None
    enough = task.kind.is_fine_grained(task) and rows >= PAIRS_TOGETHER
    together = prompt.template is None and enough and prompt.num_virtual_units != 0
    return "native" if together else "similarity"


def template_for(
    prompt: DeepPrompt, task: Task, backbone: Backbone, tokenizer: PreTrainedTokenizerBase | None
) -> str | None:
    """The words behind a text that suit a decoder; ``None`` where none are added.

    A decoder's last token predicts what comes next: behind an ordinary text, whatever may follow its last
    word. Pairs that are read together, where the words gained nothing, have none; nor have prompts of single
    texts that begin above layer 0, because the layers below run on the text alone.
    """
    from ptuning.model.verbalizer import piece_ids  # imports torch: slow

    if tokenizer is None or not backbone.architecture.causal or prompt.head is not None:
        return None
    if prompt.pooling != "similarity" and (task.pair or prompt.first_layer):
        return None
    try:
        piece_ids(tokenizer, template_words(WORDS, mask=False), "prompt.template")
    except ConfigError:
        return None  # a tokenizer of another language
    return WORDS


def units_and_queries(task: Task, rows: int, *, last_token: bool = False) -> tuple[int, int]:
    """The number of virtual units and queries for a task and its rows.

    Both need :data:`MANY_ROWS` rows; with fewer, the model only memorises the rows. There are two exceptions.
    A fine-grained label (a score, or more than two classes) of single texts gets :data:`UNITS`; on a decoder,
    that of :data:`PAIRS_TOGETHER` pairs as well. With fewer pairs, or few rows with several labels per row,
    they gained nothing.

    Args:
        last_token: Whether the head reads a decoder's last token, and not all layers: then it has no queries.
    """
    many = rows >= MANY_ROWS
    enough = not task.pair or (last_token and rows >= PAIRS_TOGETHER)
    has_units = many or (enough and task.kind.is_fine_grained(task))
    return UNITS if has_units else 0, QUERIES if many and not last_token else 0


def _rounded(rate: float) -> float:
    """A learning rate rounded to two digits."""
    return float(f"{rate:.2g}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All options of a run, and which of them the user did not choose.

    Attributes:
        name: ``auto`` or ``search``.
        fit: Every option.
        chose: The options that the recipe chose, and the first layer that a search chose.
    """

    fit: Settled
    name: Literal["auto", "search"] = "auto"
    chose: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: FitConfig, facts: Facts, found: Mapping[str, Any] | None = None) -> Recipe:
        """``given`` with missing options from ``found``, a search's values, or from :func:`choice`."""
        missing = [name for name in CHOSEN if getattr(given, name) is None]
        values = choice(facts, given) | dict(found or {})
        fit = Settled(**{**given.model_dump(), **{name: values[name] for name in missing}})
        others = {name: value for name, value in (found or {}).items() if name not in CHOSEN}
        chose = others | {name: values[name] for name in missing}
        return cls(fit=fit, name="auto" if found is None else "search", chose=chose)

    def record(self) -> dict[str, Any]:
        """What results and adapters record about the recipe, in addition to the options."""
        return {"name": self.name, "chose": dict(self.chose)}

    def __str__(self) -> str:
        fit = self.fit
        source = f"recipe: {self.name}" if self.chose else "as given"
        epochs = f"{fit.num_train_epochs} epoch{'s' if fit.num_train_epochs > 1 else ''}"
        return (
            f"{source}: {epochs}, batch size {fit.batch_size}, learning rates {fit.learning_rate:g} "
            f"(prompt) and {fit.head_learning_rate:g} (head)"
            + (", the backbone's dropout on" if fit.backbone_dropout else "")
        )
