"""Chooses the pooling of pairs from the training rows, if the prompt leaves it open.

Whether there is a choice depends on backbone, kind of label and number of rows (``recipe.pairs_pooling``).
But whether two classes mean that two texts are similar, or something else, only the rows show. So before
training, a head is fitted to the frozen model's features of some rows: once to the similarity of the two
texts, and once to both texts read together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase

from ptuning.data import Example, encode_labels
from ptuning.model.backbone import Backbone
from ptuning.model.config import DeepPrompt, Pooling
from ptuning.model.drawing import Draws
from ptuning.model.ptuning import PTuningModel
from ptuning.task import Task
from ptuning.training.config import TrainConfig
from ptuning.training.head_fits import MIN_PER_CLASS
from ptuning.training.head_init import explained
from ptuning.training.recipe import pairs_pooling, template_for
from ptuning.training.run_cache import RunCache

SAMPLE = 1000
"""Rows that are used; more would change little."""
MIN_ROWS = 500
"""With fewer rows nothing is measured, and the kind of label decides."""
NEGLIGIBLE = 0.01
"""A share of explained loss that counts as zero. If neither way explains more, texts are read together."""


class Measured(NamedTuple):
    """The measured pooling; ``message`` is for the user, only the first time it is measured."""

    pooling: Pooling | None = None
    message: str | None = None


def measured_pooling(
    prompt: DeepPrompt,
    cache: RunCache,
    config: TrainConfig,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase | None,
    task: Task,
    rows: Sequence[Example],
) -> Measured:
    """The best pooling of ``prompt`` for the training rows, if it is left open and there is a choice.

    Args:
        rows: The training rows.
    """
    if prompt.pooling is not None or len(rows) < MIN_ROWS:
        return Measured()
    if pairs_pooling(prompt, task, backbone, tokenizer, len(rows)) != "similarity":
        return Measured()
    together: Pooling = "native" if backbone.architecture.causal else "layers"
    # The first layer has no effect on the choice: a search may vary it, and the prompt is untrained.
    prompt = replace(prompt, first_layer=0)
    key = (id(backbone), config.data, config.fit.seed, prompt)
    if key in cache.poolings:
        return Measured(pooling=cache.poolings[key])
    sample = _sample(rows, task)

    def share(pooling: Pooling) -> float | None:
        # Without an offset, all positions are for the text. Texts that are too long are refused later.
        trial = replace(prompt, position_offset=0, pooling=pooling, num_virtual_units=0, num_queries=0)
        if trial.template is None:
            trial = replace(trial, template=template_for(trial, task, backbone, tokenizer))
        with Draws(backbone.device).drawing():
            torch.manual_seed(config.fit.seed)
            model = PTuningModel(backbone, trial, task, tokenizer=tokenizer)
        return explained(model, cache.split(model, sample, None))

    apart, joined = share("similarity"), share(together)
    if apart is None or joined is None:
        cache.poolings[key] = None
        return Measured(
            message="pairs: too few rows of one class to measure the pooling: prompt.pooling similarity "
            f"({together} reads both texts together)"
        )
    found: list[Pooling] = ["similarity" if apart > max(joined, NEGLIGIBLE) else together]
    broadcast_object_list(found)  # from the main process: all must build the same model
    cache.poolings[key] = found[0]
    return Measured(
        pooling=found[0],
        message=f"pairs: before training, the two texts' similarity explains {apart:.1%} of the labels, and "
        f"both read together {joined:.1%}: prompt.pooling {found[0]}",
    )


def _sample(rows: Sequence[Example], task: Task) -> list[Example]:
    """A random sample of :data:`SAMPLE` rows, always the same one.

    If it would have too few rows of a class, that class gets up to half of the sample.
    """
    if len(rows) <= SAMPLE:
        return list(rows)
    draw = np.random.default_rng(0)
    chosen = draw.choice(len(rows), SAMPLE, replace=False)
    if task.labels:
        labels = np.asarray(encode_labels(rows, task))
        rare = np.bincount(labels[chosen], minlength=task.num_labels).argmin()
        if (labels[chosen] == rare).sum() < MIN_PER_CLASS:
            of_class, others = np.flatnonzero(labels == rare), np.flatnonzero(labels != rare)
            of_class = draw.permutation(of_class)[: SAMPLE // 2]
            rest = draw.choice(others, SAMPLE - len(of_class), replace=False)
            chosen = np.concatenate((of_class, rest))
    return [rows[i] for i in chosen]
