"""A deep prompt on BERT as plain PyTorch, with the switches of the recipe's trials.

It is BERT's forward written out, with the prompt as keys and values in front of each layer's own. Nothing of
ptuning's engine has a part in it; that both compute the same is tested (``tests/test_benchmarks_trials.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptuning.model.backbone import Backbone

METRICS = {"mrpc": "accuracy", "stsb": "pearson", "sst2": "accuracy"}
INITS = ("normal", "words", "sep", "cls", "names")
SCHEDULES = ("linear", "cosine", "constant")
POOLINGS = ("native", "cls", "mean", "meanpool", "both", "layers")
MOST_TOKENS = 128
"""A text's; longer ones are cut."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything that decides a training.

    Attributes:
        data: ``mrpc``, ``stsb`` or ``sst2``, or ``SOURCE-N`` for few rows.
        rate: The prompt's peak rate.
        warmup: The share of the steps in which the rates rise.
        schedule: How they fall: ``linear``, ``cosine``, or not at all: ``constant``.
        init: What the prompt begins as: ``normal:0.5`` with that deviation, or the backbone's own keys and
            values of real ``words``, of ``sep``, of ``cls`` or of the classes' ``names``, with noise if a
            deviation is given.
        values_from_nought: The values begin at 0.
        normalised_keys: The keys keep the length that they begin with; their direction is learned.
        low_rank: The width of a low-rank reparameterisation that is added to the prompt (residual prompt
            tuning, arXiv:2305.03937); 0 for none.
        instance: The width of a network that adds to the first virtual token of every layer what it makes
            of the text's mean in the frozen backbone (instance-dependent prompts, arXiv:2204.04497); 0 for
            none.
        offset_rank: The rank of what is added to the word embeddings by their place (decomposed prompt
            tuning, arXiv:2309.05173); 0 for none.
        added_share: What the last three learn at, as a share of the prompt's rate.
        pooling: What the head reads: [CLS] through BERT's pooler (``native``) or without it (``cls``), the
            mean of the text's tokens through the pooler (``meanpool``; ptuning's ``mean``) or without it
            (``mean``), ``native`` beside that mean (``both``), or ptuning's mix of ``layers``.
        average: The decay of an exponential moving average of the trained numbers; 0 for none.
        dropout: The backbone's.
        prompt_dropout: The share of the virtual tokens that a step leaves out.
        prompt_noise: The deviation of what a step adds to the prompt.
        sharpness: How far a step climbs before it takes the gradient that it goes down by (sharpness-aware
            minimisation, arXiv:2010.01412); 0 for not at all.
        position_offset: Of the text; if left out, P where every layer has a prompt, otherwise 0.
        looks: Evaluations in the run. They and the average leave the training as it is.
    """

    data: str = "mrpc"
    seed: int = 0
    virtual_tokens: int = 20
    first_layer: int = 0
    rate: float = 1e-2
    head_rate: float = 1e-3
    epochs: int = 8
    batch_size: int = 16
    weight_decay: float = 0.0
    warmup: float = 0.06
    schedule: str = "linear"
    init: str = "normal:0.5"
    values_from_nought: bool = False
    normalised_keys: bool = False
    low_rank: int = 0
    instance: int = 0
    offset_rank: int = 0
    added_share: float = 1.0
    pooling: str = "native"
    average: float = 0.0
    label_smoothing: float = 0.0
    dropout: float = 0.0
    prompt_dropout: float = 0.0
    prompt_noise: float = 0.0
    sharpness: float = 0.0
    position_offset: int | None = None
    looks: int = 8

    def __post_init__(self) -> None:
        for name, got, known in (
            ("data", self.source, tuple(METRICS)),
            ("init", self.init.partition(":")[0], INITS),
            ("pooling", self.pooling, POOLINGS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if got not in known:
                raise ValueError(f"{name} is {got!r}; expected one of {', '.join(known)}")

    @property
    def source(self) -> str:
        """The folder of its rows."""
        return self.data.partition("-")[0]

    @property
    def metric(self) -> str:
        """What it is judged by."""
        return METRICS[self.source]


# -------------------------------------------------------------------------------------------- forward

Affine = tuple[Tensor, Tensor]
"""A weight and a bias."""


class Batch(NamedTuple):
    """``ids`` and ``types`` ``[B, T]``, and ``mask`` ``[B, T]`` as floats: 1 where there is text."""

    ids: Tensor
    types: Tensor
    mask: Tensor


class Bert:
    """BERT's weights, cast once to ``dtype``, and its forward."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        base: Any = backbone.base
        self.dtype, self.eps = dtype, base.config.layer_norm_eps
        self.layers, self.heads = base.config.num_hidden_layers, base.config.num_attention_heads
        self.width = base.config.hidden_size
        self.head_width = self.width // self.heads
        tables = base.embeddings
        self.words = self._cast(tables.word_embeddings.weight)
        self.positions = self._cast(tables.position_embeddings.weight)
        self.types = self._cast(tables.token_type_embeddings.weight)
        self.norm = self._affine(tables.LayerNorm)
        self.pooler = self._affine(base.pooler.dense)
        self.weights = [self._layer_weights(layer) for layer in base.encoder.layer]

    def _layer_weights(self, layer: Any) -> dict[str, Affine]:
        own, out = layer.attention.self, layer.attention.output
        parts = (own.query, own.key, own.value)
        modules = {"out": out.dense, "norm1": out.LayerNorm, "up": layer.intermediate.dense}
        modules |= {"down": layer.output.dense, "norm2": layer.output.LayerNorm}
        return {
            "qkv": (
                self._cast(torch.cat([each.weight for each in parts])),
                self._cast(torch.cat([each.bias for each in parts])),
            ),
            **{name: self._affine(module) for name, module in modules.items()},
        }

    def _affine(self, module: Any) -> Affine:
        return self._cast(module.weight), self._cast(module.bias)

    def _cast(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.dtype)

    def hidden_states(
        self,
        batch: Batch,
        prompt: Tensor | None = None,
        *,
        first_layer: int = 0,
        offset: int = 0,
        dropout: float = 0.0,
        first_token_only: bool = False,
        own: list[Affine] | None = None,
        added: Tensor | None = None,
    ) -> list[Tensor]:
        """The embeddings, then each layer's output, ``[B, T, H]``.

        Args:
            prompt: Keys and values ``[layers, 2, 1 or B, heads, P, D]``, from ``first_layer`` on.
            offset: How far the text's positions are moved up.
            first_token_only: The last layer answers for [CLS] alone, ``[B, 1, H]``.
            own: Gets each layer's own keys and values.
            added: ``[T or more, H]``, to the words' embeddings.
        """
        bias = ((1 - batch.mask) * -1e4)[:, None, None].to(self.dtype)
        places = torch.arange(offset, batch.ids.shape[1] + offset)
        x = self.words[batch.ids] + self.positions[places][None] + self.types[batch.types]
        if added is not None:
            x = x + added[: batch.ids.shape[1]].to(self.dtype)
        states = [_drop(F.layer_norm(x, (self.width,), *self.norm, self.eps), dropout)]
        for n, weights in enumerate(self.weights):
            given = None if prompt is None or n < first_layer else prompt[n - first_layer].to(self.dtype)
            one = first_token_only and n == self.layers - 1
            states.append(self._layer(states[-1], weights, bias, given, dropout, one, own))
        return states

    def _layer(
        self,
        x: Tensor,
        weights: Mapping[str, Affine],
        bias: Tensor,
        prompt: Tensor | None,
        dropout: float,
        one: bool,
        own: list[Affine] | None,
    ) -> Tensor:
        rows, tokens, _ = x.shape
        parts = F.linear(x, *weights["qkv"]).view(rows, tokens, 3, self.heads, self.head_width)
        q, k, v = (parts[:, :, i].transpose(1, 2) for i in range(3))
        if own is not None:
            own.append((k, v))
        if one:
            q, x = q[:, :, :1], x[:, :1]
        scale = 1 / math.sqrt(self.head_width)
        scores = q @ k.transpose(-1, -2) * scale + bias
        if prompt is None:
            seen = _drop(torch.softmax(scores, -1), dropout) @ v
        else:
            keys, values = prompt
            of_prompt = q @ keys.transpose(-1, -2) * scale
            count = of_prompt.shape[-1]
            share = _drop(torch.softmax(torch.cat((of_prompt, scores), -1), -1), dropout)
            seen = share[..., :count] @ values + share[..., count:] @ v
        seen = seen.transpose(1, 2).reshape(rows, q.shape[2], self.width)
        x = x + _drop(F.linear(seen, *weights["out"]), dropout)
        x = F.layer_norm(x, (self.width,), *weights["norm1"], self.eps)
        wide = F.gelu(F.linear(x, *weights["up"]))
        x = x + _drop(F.linear(wide, *weights["down"]), dropout)
        return F.layer_norm(x, (self.width,), *weights["norm2"], self.eps)

    def pooled(self, x: Tensor, mask: Tensor, pooling: str) -> Tensor:
        """What the head reads, in fp32: ``[B, H]``, of ``both`` ``[B, 2·H]``."""
        if pooling == "cls":
            return x[:, 0].float()
        if pooling == "native":
            return self.through_pooler(x[:, 0])
        mean = self.mean(x, mask)
        if pooling == "mean":
            return mean.float()
        if pooling == "meanpool":
            return self.through_pooler(mean)
        return torch.cat((self.through_pooler(x[:, 0]), mean.float() * 3), -1)  # halves of like size

    def mean(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[B, H]``, of the text's tokens."""
        return (x * mask.to(self.dtype)[..., None]).sum(1) / mask.sum(1, keepdim=True).to(self.dtype)

    def mixed(self, states: Sequence[Tensor], mask: Tensor, mix: Tensor) -> Tensor:
        """``[B, H]`` in fp32: means and greatest values of ``states``, weighed by ``[len(states), 2, H]``."""
        none = ((1 - mask) * -1e4)[..., None].to(self.dtype)
        parts = [torch.stack((self.mean(x, mask), (x + none).amax(1)), 1).float() for x in states]
        return torch.einsum("lbwh,lwh->bh", torch.stack(parts), mix)

    def through_pooler(self, x: Tensor) -> Tensor:
        """``[B, H]``, in fp32."""
        return torch.tanh(F.linear(x.to(self.dtype), *self.pooler)).float()


class Learner:
    """A prompt and a head on a frozen backbone. The order in which it draws is part of the results."""

    def __init__(self, trial: Trial, bert: Bert, labels: int, start: Tensor) -> None:
        self.trial, self.bert, self.prompt = trial, bert, nn.Parameter(start)
        self.lengths = start[:, :1].norm(dim=-1, keepdim=True)
        own = torch.Generator().manual_seed(trial.seed)  # so that all else begins as it does without

        def factors(rows: int, width: int, columns: int, scale: float = 1.0) -> list[nn.Parameter]:
            """Of a product that begins as 0; none of a width of 0."""
            left = torch.randn(rows, width, generator=own) * scale
            return [nn.Parameter(left), nn.Parameter(torch.zeros(width, columns))] if width else []

        token = start[..., 0, :].numel()
        self.low_rank = factors(trial.virtual_tokens, trial.low_rank, token)
        self.instance = factors(bert.width, trial.instance, token, 1 / math.sqrt(bert.width))
        self.offsets = factors(MOST_TOKENS, trial.offset_rank, bert.width)
        self.mix: list[nn.Parameter] = []
        if trial.pooling == "layers":
            mix = torch.zeros(bert.layers - trial.first_layer + 1, 2, bert.width)
            mix[-1, 0] = 1
            self.mix = [nn.Parameter(mix)]
        features = 2 * bert.width if trial.pooling == "both" else bert.width
        self.weight = nn.Parameter(torch.randn(labels, features) * 0.02)
        self.bias = nn.Parameter(torch.zeros(labels))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [each for group, _ in self.groups for each in group]

    @property
    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """All that is trained, and the peak rate of each part."""
        trial = self.trial
        added = [*self.low_rank, *self.instance, *self.offsets]
        return [
            ([self.prompt, *self.mix], trial.rate),
            (added, trial.rate * trial.added_share),
            ([self.weight, self.bias], trial.head_rate),
        ]

    def made(self, batch: Batch, *, training: bool) -> Tensor:
        """The prompt, ``[layers, 2, 1 or B, heads, P, D]``."""
        trial = self.trial
        prompt: Tensor = self.prompt
        if trial.normalised_keys:
            keys, values = prompt[:, :1], prompt[:, 1:]
            prompt = torch.cat((F.normalize(keys, dim=-1) * self.lengths, values), 1)
        layers, _, heads, count, each = prompt.shape
        if self.low_rank:
            table, up = self.low_rank
            added = (torch.tanh(table) @ up).view(count, layers, 2, heads, each)
            prompt = prompt + added.permute(1, 2, 3, 0, 4)
        prompt = prompt[:, :, None]
        if self.instance:
            down, up = self.instance
            first = (torch.tanh(self._read(batch) @ down) @ up).view(-1, layers, 2, heads, 1, each)
            own = F.pad(first.permute(1, 2, 0, 3, 4, 5), (0, 0, 0, count - 1))
            prompt = prompt + own
        if training and trial.prompt_noise:
            prompt = prompt + torch.randn_like(prompt) * trial.prompt_noise
        if training and trial.prompt_dropout:
            keep = torch.rand(trial.virtual_tokens) >= trial.prompt_dropout
            keep[0] = True
            prompt = prompt[..., keep, :]
        return prompt

    @torch.no_grad()
    def _read(self, batch: Batch) -> Tensor:
        """``[B, H]``, what the frozen backbone makes of the texts, every row with a variance of 1."""
        mean = self.bert.mean(self.bert.hidden_states(batch)[-1], batch.mask).float()
        return F.layer_norm(mean, mean.shape[-1:])

    def logits(self, batch: Batch, *, training: bool = False) -> Tensor:
        """``[B, labels]``, in fp32."""
        trial, offset = self.trial, self.trial.position_offset
        if offset is None:
            offset = trial.virtual_tokens if trial.first_layer == 0 else 0
        states = self.bert.hidden_states(
            batch,
            self.made(batch, training=training),
            first_layer=trial.first_layer,
            offset=offset,
            dropout=trial.dropout if training else 0.0,
            first_token_only=trial.pooling in ("native", "cls"),
            added=self.offsets[0] @ self.offsets[1] if self.offsets else None,
        )
        if self.mix:
            mixed = self.bert.mixed(states[trial.first_layer :], batch.mask, self.mix[0])
            read = self.bert.through_pooler(mixed)
        else:
            read = self.bert.pooled(states[-1], batch.mask, trial.pooling)
        return read @ self.weight.T + self.bias


def _drop(x: Tensor, share: float) -> Tensor:
    return F.dropout(x, share) if share else x
