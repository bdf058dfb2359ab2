"""What a head begins as where chance would be the wrong thing: fitted to the features of the frozen model.

A head that reads how similar two texts are has most of its task solved before the first step, and a random
one makes the prompt undo that: the first gradients go into the mean and scale of the similarity. Fitting
the last layer first keeps what the backbone knows (arXiv:2202.10054).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptuning.data.tokens import sorted_batches
from ptuning.inference.evaluate import BATCH_TOKENS, logits_of
from ptuning.model.config import DeepPrompt
from ptuning.model.ptuning import PTuningModel
from ptuning.training.prepare import Split

STRENGTHS = np.logspace(-4, 4, 25)
"""Of the ridge, in shares of what a feature's variance adds up to over the rows."""


def begins_fitted(model: PTuningModel) -> bool:
    """Whether the head of ``model`` is to be fitted before anything is trained."""
    config, task = model.prompt_config, model.task
    compares = isinstance(config, DeepPrompt) and config.pooling == "similarity"
    return compares and config.train_head and task.is_regression and len(model.head.names) > 0


def fit_head(model: PTuningModel, split: Split) -> None:
    """Fit the head's last layer to the rows, as the untrained prompt leaves them, by ridge regression."""
    output = model.backbone.head_names[-1].rpartition(".")[0]
    features = _features(model, split, model.backbone.model.get_submodule(output)).numpy().astype(np.float64)
    if not np.isfinite(features).all():
        return  # the loop says so, at the first loss
    targets = (split.targets - model.task.mean) / model.task.scale
    weight, bias = ridge(features, targets)
    values = model.head.named()
    fitted = {f"{output}.weight": weight[None], f"{output}.bias": np.array([bias])}
    model.head.copy_(
        {
            name: torch.from_numpy(fitted[name]).to(value) if name in fitted else value.detach()
            for name, value in values.items()
        }
    )


def _features(model: PTuningModel, split: Split, output: nn.Module) -> Tensor:
    """``[N, H]``: what the head's last layer reads of each row."""
    seen: list[Tensor] = []
    hook = output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        logits_of(model, split.rows)
    finally:
        hook.remove()
    places = [row for batch in sorted_batches(split.lengths, None, BATCH_TOKENS) for row in batch]
    found = torch.empty(len(places), seen[0].shape[-1])
    found[places] = torch.cat(seen)
    return found


def ridge(features: NDArray[np.float64], targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Weights ``[H]`` and bias; the strength is the best of :data:`STRENGTHS` by generalised
    cross-validation (Golub, Heath and Wahba, 1979).
    """
    centre, mean = features.mean(0), targets.mean()
    u, sizes, basis = np.linalg.svd(features - centre, full_matrices=False)
    rotated = u.T @ (targets - mean)
    squares = sizes**2
    outside = ((targets - mean) ** 2).sum() - (rotated**2).sum()
    best, fewest = np.zeros_like(sizes), np.inf
    if not squares.any():  # every row has the same features
        return centre * 0, float(mean)
    for strength in STRENGTHS * squares.mean():
        kept = squares / (squares + strength)
        rest = outside + (((1 - kept) * rotated) ** 2).sum()
        error = rest / (len(targets) - 1 - kept.sum()) ** 2 if len(targets) - 1 > kept.sum() else np.inf
        if error < fewest:
            best, fewest = sizes / (squares + strength), error
    weight = basis.T @ (best * rotated)
    return weight, float(mean - centre @ weight)
