"""The head before training: fitted to the features of the frozen model, or made small, where a random start
would be harmful.

The similarity of two texts often solves most of a task before the first step. With a random head, the first
gradients would make the prompt distort the mean and scale of the similarity. Fitting the last layer first
keeps what the backbone knows (arXiv:2202.10054).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ptuning.data.tokens import TokenRow, sorted_batches, windows_of
from ptuning.inference.evaluate import BATCH_TOKENS, logits_of
from ptuning.model.config import DeepPrompt, trains_head
from ptuning.model.ptuning import PTuningModel
from ptuning.model.windows import mean_of_windows
from ptuning.training.extensions import NO_EXTENSIONS, Extensions
from ptuning.training.head_fits import HEAD_FITS, Floats, logistic_rows
from ptuning.training.prepare import Split
from ptuning.training.warm_start import WarmStart

MAX_ROWS = 20_000
"""Maximum rows that the head is fitted to; more add nothing for so few parameters."""
FEW = 64
"""Rows that a new head is measured on."""
FIRST_LOGITS = 0.3
"""Maximum root mean square of the logits that an untrained head begins with. Those of MiniLM, MPNet and BERT
begin below it; those of Gemma 3, whose features are large, at 1.7, and have to be unlearned first."""


def starts_fitted(model: PTuningModel, start: WarmStart | None = None) -> bool:
    """Whether the head of ``model`` is fitted before training.

    Args:
        start: How the run starts, if the model was trained before.
    """
    config, task = model.prompt_config, model.task
    can_fit = config.train_head and task.kind.head_fit is not None and len(model.head.names) > 0
    if start is not None:  # a layer without a bias, as decoders have, cannot be fitted
        return can_fit and not start.keeps_head and f"{_output(model)}.bias" in model.head.names
    return can_fit and isinstance(config, DeepPrompt) and config.pooling == "similarity"


def fit_head(
    model: PTuningModel,
    split: Split,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    extensions: Extensions = NO_EXTENSIONS,
) -> float:
    """Fit the head's last layer to the features of the untrained model; returns the loss after the fit.

    Regressions use ridge regression, classes logistic regression (:data:`HEAD_FITS`). If features are not
    finite, the head is unchanged and the loss is NaN; the training loop then reports it.

    Args:
        on_rows: Called with the number of rows done and in all. If it raises, the head is unchanged.
        extensions: With a user's own loss, that is returned; the fit does not use it.
    """
    assert model.task.kind.head_fit is not None  # as starts_fitted checks
    fit, output = HEAD_FITS[model.task.kind.head_fit], _output(model)
    split = some(split)
    features = _features(model, split, on_rows)
    if not np.isfinite(features).all():
        return math.nan
    weights = None if model.class_weights is None else model.class_weights.tolist()
    free_bias = f"{output}.bias" in model.head.names  # decoders' have none
    weight, bias = fit.layer(features, split.targets, model.task, weights, free_bias=free_bias)
    _copy_last_layer(model, weight, bias)
    raw, kind = torch.from_numpy(features @ weight.T + bias), model.task.kind
    if extensions.loss is None:
        return fit.loss(model, raw, split.targets)
    logits = kind.logits(raw, model.task).float()
    return float(extensions.loss_of(logits, kind.as_labels(split.targets), model.task))


def fit_new_rows(
    model: PTuningModel,
    split: Split,
    rows: Sequence[int],
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fit some rows of the head's last layer, those of labels that a trained model lacked; others stay.

    With several labels per row, nothing is fitted. Nor is the row of a label without training rows, nor any
    row if features are not finite. Rows count with the weights of their classes.

    Args:
        rows: Their classes.
        on_rows: As :func:`fit_head` takes it.
    """
    split = some(split)
    classes = split.targets.astype(int)
    rows = [row for row in rows if model.task.kind.head_fit == "logistic" and (classes == row).any()]
    if not rows:
        return
    output, values = _output(model), model.head.named()
    layer = {
        name: values[f"{output}.{name}"].detach()
        for name in ("weight", "bias")
        if f"{output}.{name}" in values
    }
    features = _features(model, split, on_rows)
    if not np.isfinite(features).all():
        return
    weight = layer["weight"].double().cpu().numpy()
    bias = layer["bias"].double().cpu().numpy() if "bias" in layer else np.zeros(len(weight))
    weights = None if model.class_weights is None else model.class_weights.tolist()
    weight, bias = logistic_rows(
        features, classes, (weight, bias), rows, weights=weights, free_bias="bias" in layer
    )
    _copy_last_layer(model, weight, bias)


def soften_head(
    model: PTuningModel, split: Split, losses: Callable[[Split, Tensor], tuple[float, float]]
) -> None:
    """Make the last layer of an untrained head smaller if its first logits are large.

    The layer is scaled so that the logits have a root mean square of :data:`FIRST_LOGITS` on the first
    :data:`FEW` rows. A head that is better than a constant answer has been trained, and is not changed.

    Args:
        losses: For rows and the model's logits, the model's loss and that of a constant answer.
    """
    if not trains_head(model.prompt_config) or not model.head.names:
        return
    few = Split(rows=split.rows[:FEW], targets=split.targets[:FEW])
    output, values = _output(model), model.head.named()
    layer = {name: values[name] for name in values if name.rpartition(".")[0] == output}
    weight, bias = layer[f"{output}.weight"], layer.get(f"{output}.bias")
    seen, logits = _inputs(model, output, few.rows)
    features = torch.cat([each.flatten(0, -2) for each in seen]).to(weight)
    size = float(torch.nn.functional.linear(features, weight, bias).detach().square().mean().sqrt())
    if not math.isfinite(size) or size <= FIRST_LOGITS:
        return
    found, constant = losses(few, logits)
    if found > constant:
        scaled = {name: value.detach() * (FIRST_LOGITS / size) for name, value in layer.items()}
        model.head.copy_({**{name: value.detach() for name, value in values.items()}, **scaled})


def some(split: Split) -> Split:
    """At most :data:`MAX_ROWS` of the rows, always the same sample."""
    if len(split.rows) <= MAX_ROWS:
        return split
    chosen = np.random.default_rng(0).choice(len(split.rows), MAX_ROWS, replace=False)
    return replace(split, rows=[split.rows[i] for i in chosen], targets=split.targets[chosen])


def explained(model: PTuningModel, split: Split) -> float | None:
    """The share of a constant answer's loss that a fitted head removes on the untrained model, at least 0.

    By cross-validation; ``None`` if it cannot be estimated.
    """
    if model.task.kind.head_fit is None:
        return None
    fit, targets = HEAD_FITS[model.task.kind.head_fit], split.targets
    if not fit.can_estimate(targets):
        return None
    features = _features(model, split, lambda done, total: None)
    centred = features - features.mean(0)
    size = math.sqrt((centred**2).sum(1).mean())
    if not np.isfinite(size) or not size:
        return None
    return max(0.0, fit.explained(centred / size, targets))


def _output(model: PTuningModel) -> str:
    """The name of the head's last layer."""
    return model.backbone.head_names[-1].rpartition(".")[0]


def _copy_last_layer(model: PTuningModel, weight: Floats, bias: Floats) -> None:
    """Set the head's last layer to ``weight`` ``[C, H]`` and, if it has one, its bias to ``bias`` ``[C]``."""
    output = _output(model)
    fitted = {f"{output}.weight": weight, f"{output}.bias": bias}
    model.head.copy_(
        {
            name: torch.from_numpy(fitted[name]).to(value) if name in fitted else value.detach()
            for name, value in model.head.named().items()
        }
    )


def _features(model: PTuningModel, split: Split, on_rows: Callable[[int, int], None]) -> Floats:
    """``[N, H]``: the input of the head's last layer for each row, the mean over its windows."""
    counts = [len(row.windows) for row in split.rows]
    done = 0

    def on_batch(rows: int) -> None:
        nonlocal done
        done += rows
        on_rows(done, sum(counts))

    seen, _ = _inputs(model, _output(model), split.rows, on_batch)
    lengths = list(map(len, windows_of(split.rows)))
    order = [row for batch in sorted_batches(lengths, None, BATCH_TOKENS) for row in batch]
    found = torch.empty(len(order), seen[0].shape[-1])
    found[order] = torch.cat(seen)
    return mean_of_windows(found, counts).numpy().astype(np.float64)


def _inputs(
    model: PTuningModel,
    layer: str,
    rows: Sequence[TokenRow],
    on_batch: Callable[[int], None] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The inputs of a layer of the head, in fp32 on the CPU, a tensor per batch; and the logits."""
    model = model.twin().eval()  # a copy, so that the hook does not see another thread's batches
    seen: list[Tensor] = []
    module = model.backbone.model.get_submodule(layer)
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        logits = logits_of(model, rows, on_batch=on_batch)
    finally:
        hook.remove()
    return seen, logits
