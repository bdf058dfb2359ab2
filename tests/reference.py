"""Slow, plain oracles: one unpadded row at a time, written from the papers, with nothing of ptuning in them.

``spliced`` puts input virtual tokens among a row's tokens with a Python list. ``SlowReference`` runs
a transformers model in float64 with deep prompts as more keys and values in front of each layer's,
through an attention of its own, counting layers by the order in which they call it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.pytorch_utils import Conv1D

Piece = tuple[str, int]
"""``("text", i)``, ``("prompt", j)`` or ``("anchor", token id)``."""


# ------------------------------------------------------------------------------------ input depth


def landmark(where: str, segments: Sequence[int]) -> int:
    """The place in a row that ``where`` names; ``segments`` has an entry a token: 0, 1, -1 for special."""
    return {
        "start": lambda: 0,
        "front": lambda: segments.index(0),
        "between": lambda: segments.index(1),
        "middle": lambda: len(segments) // 2,
        "end": lambda: len(segments),
    }[where]()


def spliced(segments: Sequence[int], inserted: Sequence[tuple[str, Sequence[Piece]]]) -> list[Piece]:
    """A row's pieces in order; ``inserted`` says in front of which place which pieces go."""
    row: list[Piece] = []
    for place in range(len(segments) + 1):
        for where, pieces in inserted:
            if landmark(where, segments) == place:
                row += pieces
        if place < len(segments):
            row.append(("text", place))
    return row


def token_types(row: Sequence[Piece], types: Sequence[int]) -> list[int]:
    """What is inserted belongs to the text in front of it, and to the first text at the start."""
    found: list[int] = []
    for kind, index in row:
        found.append(types[index] if kind == "text" else found[-1] if found else 0)
    return found


# ------------------------------------------------------------------------------------------- deep


class SlowReference:
    """``model`` in float64, one row at a time, prompts in front of every layer's keys and values."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = deepcopy(model).double().eval()
        self.kind: str = model.config.model_type
        self.prompts: dict[int, Tensor] = {}
        self.calls = 0
        if self.kind == "deberta-v2":
            for layer, block in enumerate(self.model.deberta.encoder.layer):
                block.attention.self.forward = self._disentangled(block.attention.self, layer)
        elif self.kind == "mpnet":
            for layer, block in enumerate(self.model.mpnet.encoder.layer):
                block.attention.attn.forward = self._biased(block.attention.attn, layer)
        elif self.kind in ("gptj", "gpt_neo"):
            for layer, block in enumerate(self.model.transformer.h):
                module = block.attn if self.kind == "gptj" else block.attn.attention
                module._attn = self._plain(module, layer)
        elif self.kind != "bloom":
            if "expert" in str(self.model):  # grouped products are for fp32 and less
                self.model.set_experts_implementation("eager")
            self.model.set_attn_implementation(_NAME)

    @torch.no_grad()
    def logits(
        self,
        ids: Sequence[int],
        prompt: Tensor | None,
        *,
        first_layer: int = 0,
        position_offset: int = 0,
        token_type_ids: Sequence[int] | None = None,
        mean: bool = False,
        beside: Tensor | None = None,
        mix: Tensor | None = None,
        units: Tensor | None = None,
    ) -> Tensor:
        """``[C]``. ``prompt`` is ``[L−s, 2, P, H_kv]``; positions are transformers' own unless moved.

        With ``mean`` every token leaves the last layer as the mean of all of them, ``[T, H]``, which are kept
        in :attr:`left`; and with ``beside``, another text's, as how both agree; or with ``mix``
        ``[L−s+1, 2+2Q, H]`` as the weighed sum of means, greatest values and what queries find, of what
        enters each layer from s on, and of what the last one gives. ``units`` ``[L−s, 2, U, H]`` are hidden
        units more, one at a time.
        """
        layers = [] if prompt is None else list(prompt.double())
        self.prompts = {first_layer + n: layer for n, layer in enumerate(layers)}
        self.calls = 0
        row = torch.tensor([list(ids)])
        if self.kind == "bloom":
            return self._bloom(row)
        inputs: dict[str, Any] = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        if token_type_ids is not None:
            inputs["token_type_ids"] = torch.tensor([list(token_type_ids)])
        if position_offset:
            first = (
                self.model.config.pad_token_id + 1
                if "roberta" in self.kind or self.kind in ("camembert", "mpnet", "data2vec-text")
                else 0
            )
            inputs["position_ids"] = torch.arange(len(ids))[None] + first + position_offset
        global _running
        _running = self
        with self._averaged(beside, mix) if mean else nullcontext(), self._widened(units, first_layer):
            logits: Tensor = self.model(**inputs).logits[0]
        if self.kind not in ("deberta-v2", "mpnet", "gptj", "gpt_neo"):
            assert self.calls == self.model.config.num_hidden_layers, "a layer went round the attention"
        return logits

    @contextmanager
    def _averaged(self, beside: Tensor | None, mix: Tensor | None) -> Iterator[None]:
        left = [self.model.config.num_hidden_layers]  # counted, because ALBERT's layers are one module
        passed: list[Tensor] = []  # what enters each layer, then what the last gives

        def average(_: nn.Module, inputs: Any, out: Any) -> Any:
            left[0] -= 1
            passed.append(inputs[0][0])
            if left[0]:
                return out
            states = out[0] if isinstance(out, tuple) else out
            self.left = states[0]
            read = states[0].mean(0) if beside is None else _agreement(beside, states[0])
            if mix is not None:
                read = torch.zeros_like(read)
                for tokens, (of_mean, of_greatest, *asked) in zip(
                    [*passed, states[0]][-len(mix) :], mix.double(), strict=True
                ):
                    read += of_mean * tokens.mean(0)
                    read += of_greatest * torch.stack([max(each) for each in tokens.T])
                    half = len(asked) // 2
                    for of_found, query in zip(asked[:half], asked[half:], strict=True):
                        powers = [math.exp(float(token @ query) / math.sqrt(len(token))) for token in tokens]
                        for token, power in zip(tokens, powers, strict=True):
                            read += of_found * token * power / sum(powers)
            states = read.expand_as(states)
            return (states, *out[1:]) if isinstance(out, tuple) else states

        layers = next(each for each in self.model.modules() if isinstance(each, nn.ModuleList))
        hooks = [layer.register_forward_hook(average) for layer in layers]
        yield
        assert left == [0]
        for hook in hooks:
            hook.remove()

    @contextmanager
    def _widened(self, units: Tensor | None, first_layer: int) -> Iterator[None]:
        """Every feed-forward network from ``first_layer`` on with its ``units``, after arXiv:2012.14913."""
        entered: list[
            Tensor
        ] = []  # a network's input after the other, because ALBERT's layers are one module

        def enter(_: nn.Module, inputs: Any) -> None:
            entered.append(inputs[0])

        def leave(_: nn.Module, inputs: Any, out: Tensor) -> Tensor:
            layer = len(entered) - 1 - first_layer
            if units is None or layer < 0:
                return out
            tokens, more = entered[-1].reshape(-1, entered[-1].shape[-1]), torch.zeros_like(out)
            read = units[layer].double() * 2 / math.sqrt(tokens.shape[1])
            for key, value in zip(*read, strict=True):
                for place, token in enumerate(tokens):
                    strength = float(key @ token)
                    normal = (1 + math.erf(strength / math.sqrt(2))) / 2
                    more.view_as(tokens)[place] += strength * normal * value
            return out + more

        hooks = []
        layers = next(each for each in self.model.modules() if isinstance(each, nn.ModuleList))
        for each in layers:
            first, last = _feed_forward(each)
            hooks += [first.register_forward_pre_hook(enter), last.register_forward_hook(leave)]
        yield
        for hook in hooks:
            hook.remove()

    def keys_values(self, layer: int, head: int, width: int) -> tuple[Tensor, Tensor]:
        """One head's prompt, ``[P, d]`` twice; no rows where the layer has none."""
        if layer not in self.prompts:
            return torch.zeros(0, width).double(), torch.zeros(0, width).double()
        keys, values = self.prompts[layer]
        return keys[:, head * width : (head + 1) * width], values[:, head * width : (head + 1) * width]

    def _bloom(self, row: Tensor) -> Tensor:
        """BLOOM by hand: ALiBi counts the prompt as the row's first tokens."""
        base, heads = self.model.transformer, self.model.config.n_head
        assert heads & (heads - 1) == 0, "the plain slopes hold for powers of two"
        hidden = base.word_embeddings_layernorm(base.word_embeddings(row[0]))
        length = hidden.shape[0]
        for layer, block in enumerate(base.h):
            attention = block.self_attention
            fused = attention.query_key_value(block.input_layernorm(hidden)).view(length, heads, 3, -1)
            mixed = []
            for head in range(heads):
                query, key, value = fused[:, head].unbind(1)
                more_keys, more_values = self.keys_values(layer, head, query.shape[1])
                keys, values = torch.cat((more_keys, key)), torch.cat((more_values, value))
                place = torch.arange(len(keys)).double()
                now = torch.arange(length)[:, None] + len(more_keys)
                scores = query @ keys.T / math.sqrt(query.shape[1]) + 2.0 ** (-8 * (head + 1) / heads) * place
                scores = scores.masked_fill(place > now, -math.inf)
                mixed.append(scores.softmax(-1) @ values)
            hidden = hidden + attention.dense(torch.cat(mixed, dim=1))
            wide = block.mlp.dense_h_to_4h(block.post_attention_layernorm(hidden))
            hidden = hidden + block.mlp.dense_4h_to_h(nn.functional.gelu(wide, approximate="tanh"))
        logits: Tensor = self.model.score(base.ln_f(hidden)[-1])
        return logits

    def _biased(self, module: Any, layer: int) -> Callable[..., tuple[Tensor]]:
        """MPNet's attention for one row, head by head: its bias depends on the distance between two tokens,
        and a prompt is at no distance.
        """

        def forward(hidden: Tensor, mask: Tensor | None, bias: Tensor, **_: Any) -> tuple[Tensor]:
            assert hidden.shape[0] == 1
            heads, mixed = self.model.config.num_attention_heads, []
            query, key, value = (
                part(hidden)[0].chunk(heads, dim=1) for part in (module.q, module.k, module.v)
            )
            for head, (q, k, v) in enumerate(zip(query, key, value, strict=True)):
                more_keys, more_values = self.keys_values(layer, head, q.shape[1])
                root = math.sqrt(q.shape[1])
                scores = torch.cat((q @ more_keys.T / root, q @ k.T / root + bias[0, head]), dim=1)
                mixed.append(scores.softmax(-1) @ torch.cat((more_values, v)))
            return (module.o(torch.cat(mixed, dim=1))[None],)

        return forward

    def _plain(self, module: Any, layer: int) -> Callable[..., tuple[Tensor, None]]:
        """GPT-J's and GPT-Neo's attention for one row, head by head; GPT-Neo's local layers have a window."""
        local = getattr(module, "attention_type", "") == "local"

        def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, None]:
            assert query.shape[0] == 1
            mixed = []
            for head, (q, k, v) in enumerate(zip(query[0], key[0], value[0], strict=True)):
                more_keys, more_values = self.keys_values(layer, head, q.shape[1])
                root = math.sqrt(q.shape[1]) if self.kind == "gptj" else 1.0
                scores = q @ torch.cat((more_keys, k)).T / root
                for now in range(len(q)):
                    for place in range(len(k)):
                        if place > now or (local and place <= now - self.model.config.window_size):
                            scores[now, len(more_keys) + place] = -math.inf
                mixed.append(scores.softmax(-1) @ torch.cat((more_values, v)))
            return torch.stack(mixed)[None], None

        return attend

    def _disentangled(self, module: Any, layer: int) -> Callable[..., tuple[Tensor, None]]:
        """DeBERTa's equation 4 for each pair of places; a prompt has content alone."""
        config = self.model.config
        span = config.position_buckets

        def forward(
            hidden: Tensor, *_: Any, rel_embeddings: Tensor | None = None, **__: Any
        ) -> tuple[Tensor, None]:
            assert hidden.shape[0] == 1
            assert rel_embeddings is not None
            length = hidden.shape[1]
            share = getattr(config, "share_att_key", False)
            place_keys = (module.key_proj if share else module.pos_key_proj)(rel_embeddings)
            place_queries = (module.query_proj if share else module.pos_query_proj)(rel_embeddings)
            apart = torch.tensor(
                [
                    [min(max(_bucket(i - j, config) + span, 0), 2 * span - 1) for j in range(length)]
                    for i in range(length)
                ]
            )
            query, key, value = (
                p(hidden)[0] for p in (module.query_proj, module.key_proj, module.value_proj)
            )
            heads = config.num_attention_heads
            mixed = []
            for head, (q, k, v, pk, pq) in enumerate(
                zip(
                    *(x.chunk(heads, dim=1) for x in (query, key, value, place_keys, place_queries)),
                    strict=True,
                )
            ):
                more_keys, more_values = self.keys_values(layer, head, q.shape[1])
                content_to_place = torch.einsum("id,ijd->ij", q, pk[apart])
                place_to_content = torch.einsum("jd,ijd->ij", k, pq[apart])
                scores = torch.cat((q @ more_keys.T, q @ k.T + content_to_place + place_to_content), dim=1)
                mixed.append((scores / math.sqrt(3 * q.shape[1])).softmax(-1) @ torch.cat((more_values, v)))
            return torch.cat(mixed, dim=1)[None], None

        return forward


def _feed_forward(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A layer's first and last matrix outside its attention, or its experts."""
    found = [module for name, module in layer.named_modules() if name.endswith("mlp.experts")] or [
        module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "attention" not in name and "attn" not in name
    ]
    return found[0], found[-1]


def _bucket(distance: int, config: Any) -> int:
    """Near distances are buckets of their own, far ones share them logarithmically (arXiv:2006.03654)."""
    middle = config.position_buckets // 2
    if abs(distance) <= middle:
        return distance
    far = math.log(abs(distance) / middle) / math.log((config.max_relative_positions - 1) / middle)
    return int(math.copysign(math.ceil(far * (middle - 1)) + middle, distance))


def _agreement(one: Tensor, other: Tensor) -> Tensor:
    """Of two texts ``[T, H]``, ``[T', H]``: in each dimension, and in all five times their average."""
    means = _agree(one.mean(0), other.mean(0))
    forth, back = (
        torch.stack(
            [_agree(token, max(there, key=lambda each, of=token: _cosine(of, each))) for token in here]
        ).mean(0)
        for here, there in ((one, other), (other, one))
    )
    each = torch.stack([(a + min(b, c)) / 2 for a, b, c in zip(means, forth, back, strict=True)])
    return each + 5 * each.sum() / len(each)


def _agree(one: Tensor, other: Tensor) -> Tensor:
    """In each dimension, both at length √H."""
    one, other = (each * math.sqrt(len(each)) / each.norm() for each in (one, other))
    return torch.stack([a * b - abs(a - b) for a, b in zip(one, other, strict=True)])


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / one.norm() / other.norm())


_NAME = "slow_reference"
_running: SlowReference | None = None


def _slow_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """``[1, T, h, d]``, a head at a time. The text's mask is transformers'; every query sees the prompt."""
    assert _running is not None
    assert query.shape[0] == 1
    layer, _running.calls = _running.calls, _running.calls + 1
    heads, group, width = query.shape[1], query.shape[1] // key.shape[1], query.shape[3]
    mixed = []
    for head in range(heads):
        q, k, v = query[0, head], key[0, head // group], value[0, head // group]
        more_keys, more_values = _running.keys_values(layer, head // group, width)
        scores = q @ torch.cat((more_keys, k)).T * (scaling if scaling is not None else 1 / math.sqrt(width))
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if attention_mask is not None:
            scores[:, len(more_keys) :] += attention_mask[0, 0, :, : len(k)]
        powers = (scores - scores.max()).exp()
        sink = 0 if s_aux is None else (s_aux[head] - scores.max()).exp()
        mixed.append(powers / (powers.sum(1, keepdim=True) + sink) @ torch.cat((more_values, v)))
    return torch.stack(mixed, dim=1)[None], None


AttentionInterface.register(_NAME, _slow_attention)
AttentionMaskInterface.register(_NAME, eager_mask)
