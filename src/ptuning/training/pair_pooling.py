"""How a pair of texts is read, if the prompt leaves it open: measured before anything is trained.

``settle_prompt`` knows the backbone and the kind of label. Whether a label of two classes says how alike
two texts are, or something else of them, the rows alone can tell: a head is fitted to what the frozen
model gives of some of them, once by the texts' similarity and once by both texts read together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from accelerate.utils import broadcast_object_list, set_seed
from transformers import PreTrainedTokenizerBase

from ptuning.data import Example, encode_labels
from ptuning.model.backbone import Backbone
from ptuning.model.config import DeepPrompt, Pooling
from ptuning.model.drawing import Draws
from ptuning.model.ptuning import PTuningModel
from ptuning.model.settling import settle_prompt
from ptuning.task import Task
from ptuning.training.config import TrainConfig
from ptuning.training.head_init import FEWEST_OF_A_CLASS, explained
from ptuning.training.run_cache import RunCache

PROBED = 1000
"""Rows that are looked at; more would tell little more."""
FEWEST = 500
"""Rows that it takes to tell anything; with fewer what the kind of label suggests stays."""
NOTHING = 0.01
"""A share that is as good as none. What neither way explains yet, texts that see each other may come to."""


class Measured(NamedTuple):
    """What the rows say; ``message`` is for the user, the first time it is measured."""

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
    """The pooling of ``prompt`` as the training rows say, if it is open and the backbone has a choice.

    Args:
        rows: The training rows.
    """
    if prompt.pooling is not None or len(rows) < FEWEST:
        return Measured()
    if settle_prompt(prompt, backbone, is_pair_similarity=task.is_pair_similarity).pooling != "similarity":
        return Measured()
    # Not of the first layer: it may be what a search tries, and the untrained prompt is nothing to go by.
    prompt = replace(prompt, first_layer=0)
    key = (id(backbone), config.data, config.fit.seed, prompt)
    if key in cache.readings:
        return Measured(pooling=cache.readings[key])
    some = _some(rows, task)

    def share(pooling: Pooling) -> float | None:
        # No offset takes places off the text; what is too long is the run's to refuse.
        trial = replace(prompt, position_offset=0, pooling=pooling, num_virtual_units=0, num_queries=0)
        with Draws(backbone.device).drawing():
            set_seed(config.fit.seed)
            model = PTuningModel(backbone, trial, task, tokenizer=tokenizer)
        return explained(model, cache.split(model, some, "truncate"))

    apart, together = share("similarity"), share("layers")
    if apart is None or together is None:
        cache.readings[key] = None
        return Measured(
            message="pairs: too few rows of one class to measure how they are read: prompt.pooling "
            "similarity (layers reads both texts together)"
        )
    found: list[Pooling] = ["similarity" if apart > max(together, NOTHING) else "layers"]
    broadcast_object_list(found)  # the first process's: all have to build the same model
    cache.readings[key] = found[0]
    return Measured(
        pooling=found[0],
        message=f"pairs: before training, the two texts' similarity explains {apart:.1%} of the labels, and "
        f"both read together {together:.1%}: prompt.pooling {found[0]}",
    )


def _some(rows: Sequence[Example], task: Task) -> list[Example]:
    """At most :data:`PROBED` of the rows, always the same ones; by chance, as rows may stand in turns.

    Of a class of which chance would leave too few to tell anything, as many as make half of them.
    """
    if len(rows) <= PROBED:
        return list(rows)
    draw = np.random.default_rng(0)
    chosen = draw.choice(len(rows), PROBED, replace=False)
    if task.labels:
        labels = np.asarray(encode_labels(rows, task))
        rare = np.bincount(labels[chosen], minlength=task.num_labels).argmin()
        if (labels[chosen] == rare).sum() < FEWEST_OF_A_CLASS:
            mine, others = np.flatnonzero(labels == rare), np.flatnonzero(labels != rare)
            mine = draw.permutation(mine)[: PROBED // 2]
            chosen = np.concatenate((mine, draw.choice(others, PROBED - len(mine), replace=False)))
    return [rows[i] for i in chosen]
