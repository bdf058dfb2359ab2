"""How much the first step of training changes the logits: what the recipe's learning rates follow from.

Adam's first step moves every parameter by the learning rate, whatever the size of its gradient. So it changes
a logit by up to the learning rate times the L1 norm of the logit's gradient. How large that is depends on the
backbone: its depth and width, the scale of its keys, values and features, the layers of its head. A pass over
a few rows measures all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptuning.data.tokens import TokenRow, windows_of
from ptuning.inference.evaluate import batch_of, pad_id
from ptuning.model.ptuning import PTuningModel

ROWS = 32
"""Rows that are measured."""


@dataclass(frozen=True)
class FirstStep:
    """Changes of a logit in Adam's first step at a learning rate of 1, at most; means over some rows.

    0 where nothing is trained, or nothing can be measured.

    Attributes:
        head: By the head. A linear one has 17 on MiniLM, 1,200 on Gemma 3; MPNet's, with a hidden layer, 700.
        prompt: By the prompt, in standard deviations of the logits over the rows, because an untrained head
            may have any size. 90 on MiniLM, 270 on MPNet, 60 on Gemma 3.
    """

    head: float = 0.0
    prompt: float = 0.0


def first_step(model: PTuningModel, rows: Sequence[TokenRow]) -> FirstStep:
    """Measure an untrained model on up to :data:`ROWS` rows, evenly spaced, because files may be sorted.

    Row i of these is measured by the logit of class i modulo C. The model's mode and gradients stay as they
    are.
    """
    count = min(ROWS, len(rows))
    few = windows_of([rows[i * len(rows) // count] for i in range(count)])[:ROWS]
    model = model.for_inference()
    parts = [list(part.parameters()) for part in (model.head, model.prompt_encoder)]
    head, prompt = ([each for each in part if each.requires_grad] for part in parts)
    logits, norms = [], []
    for number, row in enumerate(few):  # one by one: the gradient of a batch is that of all its rows together
        inputs = batch_of([row], pad_id(model), None)
        inputs.pop("labels", None)
        with torch.enable_grad():
            found = model(**{name: value.to(model.device) for name, value in inputs.items()}).logits[0]
        slopes = torch.autograd.grad(found[number % len(found)], [*head, *prompt], allow_unused=True)
        sizes = [0.0 if each is None else float(each.abs().sum()) for each in slopes]
        norms.append((math.fsum(sizes[: len(head)]), math.fsum(sizes[len(head) :])))
        logits.append(found.detach())
    if len(few) < 2:
        return FirstStep()
    by_head, by_prompt = (math.fsum(each) / len(few) for each in zip(*norms, strict=True))
    spread = float(torch.stack(logits).std(dim=0).mean())
    if not math.isfinite(by_head + by_prompt + spread) or not spread:
        return FirstStep()
    return FirstStep(head=by_head, prompt=by_prompt / spread)
