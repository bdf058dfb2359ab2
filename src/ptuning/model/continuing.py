"""Trained tasks as a start for others: with more labels, a new head, or more virtual units and queries.

Everything here is done on plain data, an :class:`~ptuning.adapters.Adapter`. Labels that are kept have the
same logits as before. More virtual units or queries do not change them, because they start without an effect.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ptuning import adapters
from ptuning.adapters import Adapter
from ptuning.model.config import DeepPrompt, PromptConfig, label_name, prompt_from_dict, prompt_to_dict
from ptuning.model.pooling import initial_mix
from ptuning.model.units import initial_units
from ptuning.task import Task


def kept_rows(old: Task, new: Task) -> list[int | None]:
    """For each row of the output layer of ``new``, the row of ``old`` that it continues, if there is one."""
    if old.problem_type != new.problem_type:
        return [None] * new.num_labels
    if not new.labels:
        return [0]
    at = {(type(label), label): row for row, label in enumerate(old.labels)}  # because 1 == True
    return [at.get((type(label), label)) for label in new.labels]


def relabelled(adapter: Adapter, task: Task, *, head: bool = True) -> Adapter:
    """The adapter for another task, without its metrics: labels that it knows keep their rows of the head.

    Rows of other labels are the mean of the known ones. A verbalizer loses the labels that are gone.

    Args:
        head: Whether the output layer is kept; without it, the adapter has none, and a model gets a new one.
    """
    layer, rows = adapters.output_layer(adapter.head), kept_rows(adapter.task, task)
    values = dict(adapter.head)
    for name in [f"{layer}.weight", f"{layer}.bias"]:
        if name not in values:
            continue
        old = values.pop(name)
        if head:
            kept = old[[row for row in rows if row is not None]].mean(0)
            values[name] = torch.stack([kept if row is None else old[row] for row in rows])
    cloze, prompt = adapter.cloze, adapter.prompt
    if cloze is not None and task.labels != adapter.task.labels:
        cloze = replace(cloze, words=())  # the model makes them of the words of the new labels
        gone = {label_name(label) for label in adapter.task.labels} - set(map(label_name, task.labels))
        words = prompt["head"]["verbalizer"]
        words = {label: its for label, its in words.items() if label not in gone}
        prompt = {**prompt, "head": {**prompt["head"], "verbalizer": words}}
    return replace(adapter, task=task, prompt=prompt, head=values, cloze=cloze, metrics={}, extra={})


def with_prompt(adapter: Adapter, config: PromptConfig) -> Adapter:
    """The adapter with more virtual units and queries, if ``config`` has more; their values are drawn.

    Args:
        config: The adapter's prompt configuration otherwise.
    """
    old = prompt_from_dict(adapter.prompt)
    if adapter.cloze is not None and old.head != config.head:
        adapter = replace(adapter, cloze=replace(adapter.cloze, words=()))
    if not isinstance(old, DeepPrompt) or not isinstance(config, DeepPrompt):
        return replace(adapter, prompt=prompt_to_dict(config))
    layers, width = len(adapter.prompt_tensor), int(adapter.backbone["hidden_size"])
    units, head = adapter.units, dict(adapter.head)
    if more := (config.num_virtual_units or 0) - (old.num_virtual_units or 0):
        drawn = initial_units(layers, more, width)
        units = drawn if units is None else torch.cat((units, drawn), dim=2)
    if more := (config.num_queries or 0) - (old.num_queries or 0):
        head[adapters.MIX] = _more_queries(head[adapters.MIX], more)
    return replace(adapter, prompt=prompt_to_dict(config), units=units, head=head)


def _more_queries(mix: Tensor, more: int) -> Tensor:
    """``[L+1, 2+2Q, H]`` → ``[L+1, 2+2(Q+more), H]``: further queries, whose weights are 0."""
    layers, asked, width = len(mix) - 1, mix.shape[1] // 2 - 1, mix.shape[2]
    drawn = initial_mix(layers, more, width)
    weights, queries = mix[:, : 2 + asked], mix[:, 2 + asked :]
    return torch.cat(
        (weights, torch.zeros_like(drawn[:, 2 : 2 + more]), queries, drawn[:, 2 + more :]), dim=1
    )
