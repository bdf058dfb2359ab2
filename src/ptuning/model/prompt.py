"""Prompt encoders: they compute the prompt during training. Also the initial values of prompts.

References: prompt tuning arXiv:2104.08691 (``embedding``), P-tuning arXiv:2103.10385 (``mlp``,
``lstm``), residual prompt tuning arXiv:2305.03937 (``residual``), prefix tuning arXiv:2101.00190
(deep ``mlp``). See also: ``placement.py`` joins an input prompt to
the text, ``attention.py`` a deep one.

Every encoder is a module whose ``forward()`` takes nothing and returns the prompt: ``[P, E]`` at
input depth, ``[L−s, 2, P, H_kv]`` deep. A trained prompt is stored without its encoder, as
an ``embedding``: the encoder is not needed to use it.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ptuning.errors import ConfigError
from ptuning.model.config import (
    DeepEncoderConfig,
    DeepMLPEncoder,
    EmbeddingEncoder,
    InitConfig,
    InputEncoderConfig,
    LSTMEncoder,
    MLPEncoder,
    RandomInit,
    ResidualEncoder,
    TextInit,
    VocabularyInit,
)

DEEP_INIT_STD = 0.2
"""The standard deviation of the initial deep keys and values; the best of those measured."""


class PromptEncoder(nn.Module):
    """A module that computes a prompt from its own parameters, without an input."""

    def forward(self) -> Tensor:
        """The prompt: ``[P, E]`` at input depth, ``[L−s, 2, P, H_kv]`` deep."""
        raise NotImplementedError  # pragma: no cover - abstract


class Embedding(PromptEncoder):
    """The prompt is the parameter.

    Args:
        start: ``[P, E]`` or ``[L−s, 2, P, H_kv]``, the initial value.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start)

    def forward(self) -> Tensor:
        return self.weight


class ScaledParameter(nn.Module):
    """A parameter with a learning rate of its own: ``start + scale · θ``, with θ trained.

    transformers' Trainer has only one learning rate. θ starts at zero, so weight decay pulls the value
    towards its start. θ gets the value's own gradient, not ``scale`` times it, so clipping sees the same
    norm, and SGD, like Adam, steps ``scale`` times as far. Registered with
    :func:`torch.nn.utils.parametrize.register_parametrization`.

    Args:
        start: The initial value, of any shape.
        scale: The factor on the learning rate.
    """

    start: Tensor

    def __init__(self, start: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("start", start.detach().clone())

    def forward(self, offset: Tensor) -> Tensor:
        return self.start + (self.scale - 1) * offset.detach() + offset

    def right_inverse(self, value: Tensor) -> Tensor:
        """An assigned value becomes the start, so it is exact."""
        self.start.copy_(value.detach())
        return torch.zeros_like(value)


def scale_learning_rate(module: nn.Module, name: str, scale: float) -> None:
    """Multiply the learning rate of the parameter ``name`` of ``module``."""
    if scale != 1:
        parametrize.register_parametrization(module, name, ScaledParameter(getattr(module, name), scale))


class MLP(PromptEncoder):
    """Three linear layers with ReLU between, over a trained table ``[P, E]``; added to it if ``residual``."""

    def __init__(self, start: Tensor, config: MLPEncoder) -> None:
        super().__init__()
        embedding, width = start.shape[1], config.width or start.shape[1]
        self.weight = nn.Parameter(start)
        self.layers = nn.Sequential(
            nn.Linear(embedding, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, embedding),
        ).to(start.device)
        self.residual = config.residual
        if config.residual:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self) -> Tensor:
        table = self.weight
        out: Tensor = self.layers(table)
        return table + out if self.residual else out


class LSTM(PromptEncoder):
    """A bidirectional LSTM and an MLP with one ReLU, over a trained table ``[P, E]``."""

    def __init__(self, start: Tensor, config: LSTMEncoder) -> None:
        super().__init__()
        embedding, width = start.shape[1], config.width or start.shape[1]
        self.weight = nn.Parameter(start)
        self.lstm = nn.LSTM(
            embedding,
            width,
            num_layers=config.num_layers,
            dropout=config.dropout,
            bidirectional=True,
            batch_first=True,
        ).to(start.device)
        self.layers = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, embedding)
        ).to(start.device)

    def forward(self) -> Tensor:
        # cuDNN cannot compute gradients of an LSTM in eval mode; torch's own kernels can.
        needs_gradient = torch.is_grad_enabled() and not self.training
        with torch.backends.cudnn.flags(enabled=False) if needs_gradient else nullcontext():
            states: Tensor = self.lstm(self.weight[None])[0][0]
        out: Tensor = self.layers(states)
        return out


class Residual(PromptEncoder):
    """``p + MLP(p)``. The up-projection is zero-initialised, so the initial prompt is p."""

    def __init__(self, start: Tensor, config: ResidualEncoder) -> None:
        super().__init__()
        self.weight = nn.Parameter(start)
        up = nn.Linear(config.width, start.shape[1])
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.layers = nn.Sequential(
            nn.Linear(start.shape[1], config.width), nn.ReLU(), nn.Dropout(config.dropout), up
        ).to(start.device)

    def forward(self) -> Tensor:
        out: Tensor = self.weight + self.layers(self.weight)
        return out


class DeepMLP(PromptEncoder):
    """Linear, tanh, linear over a trained table ``[P, H]``, giving ``[L−s, 2, P, H_kv]``."""

    def __init__(self, shape: tuple[int, int, int, int], hidden: int, config: DeepMLPEncoder) -> None:
        super().__init__()
        layers, _, tokens, width = shape
        self.shape = shape
        self.weight = nn.Parameter(torch.randn(tokens, hidden))
        self.layers = nn.Sequential(
            nn.Linear(hidden, config.width or hidden),
            nn.Tanh(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width or hidden, layers * 2 * width),
        )

    def forward(self) -> Tensor:
        layers, _, tokens, width = self.shape
        out: Tensor = self.layers(self.weight)
        return out.view(tokens, layers, 2, width).permute(1, 2, 0, 3)


def input_encoder(config: InputEncoderConfig, start: Tensor) -> PromptEncoder:
    """The encoder that ``config`` asks for, over ``start`` ``[P, E]``."""
    match config:
        case EmbeddingEncoder():
            return Embedding(start)
        case MLPEncoder():
            return MLP(start, config)
        case LSTMEncoder():
            return LSTM(start, config)
        case ResidualEncoder():
            return Residual(start, config)
        case _:
            assert_never(config)


def deep_encoder(
    config: DeepEncoderConfig, shape: tuple[int, int, int, int], hidden: int, device: torch.device
) -> PromptEncoder:
    """The encoder that ``config`` asks for.

    Args:
        shape: ``(L−s, 2, P, H_kv)``.
        hidden: H, the width of the ``mlp`` encoder's table.
    """
    match config:
        case EmbeddingEncoder():
            return Embedding(torch.randn(shape, device=device) * DEEP_INIT_STD)
        case DeepMLPEncoder():
            return DeepMLP(shape, hidden, config).to(device)
        case _:
            assert_never(config)


def initial_prompt(
    config: InitConfig, tokens: int, embedding: nn.Module, vocabulary: int, text_ids: list[int] | None
) -> Tensor:
    """The initial value of an input prompt: ``[P, E]`` in fp32.

    Args:
        tokens: P.
        embedding: The backbone's word embedding. It is called, because some scale the rows of their weight.
        vocabulary: The number of its rows.
        text_ids: The token ids of ``TextInit.text``, without special tokens.
    """
    device = next(embedding.parameters()).device
    with torch.no_grad():
        match config:
            case RandomInit():
                # A sample estimates the scale well enough, without a copy of a large table.
                rows = embedding(torch.randperm(vocabulary, device=device)[:4096]).float()
                drawn: Tensor = torch.randn(tokens, rows.shape[1], device=device) * rows.std() + rows.mean()
                return drawn
            case VocabularyInit():
                ids = torch.randint(vocabulary, (tokens,), device=device)
            case TextInit():
                if not text_ids:
                    raise ConfigError(
                        "prompt.init.text",
                        got=f"{config.text!r}, which has no tokens",
                        expected="words that the tokenizer knows",
                        remedy="pass the tokenizer, or give other words",
                    )
                ids = torch.tensor(text_ids, device=device).repeat(-(-tokens // len(text_ids)))[:tokens]
            case _:
                assert_never(config)
        start: Tensor = embedding(ids).float().clone()
        return start
