"""The floor: the matrix products that a prompt method cannot do without, at this machine's own rate.

What is counted are the products of the layers as they are written, those left out whose result nobody reads:

* the head reads one token, so in the last layer all but keys and values is for one token;
* weights are frozen, so backward has input gradients alone (but the output layer's own);
* below the first prompt nothing needs a gradient, and in that layer only the prompt's keys and values do;
* below the first prompt nothing changes between epochs, so those layers are computed once, in the first.

No bias, norm, softmax, activation, mask, copy, optimizer or Python is counted, and no padding: every text is
taken to have the mean length. So the floor is out of reach, and the share of it says what is left to win.

Glossary: B texts, T tokens each, P virtual tokens, L layers, s the first with a prompt, H hidden width, A all
heads' width, K key/value width (smaller where queries are grouped), d a head's width, F intermediate width.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ptuning.model.architectures import ARCHITECTURES

GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"}
"""Architectures whose MLP has three matrices."""

DENSE_HEAD = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "albert"}
"""Architectures with an H × H layer between the pooled token and the output layer."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """``batch`` products of ``[m, k]`` with ``[k, n]``.

    ``kind``: ``linear`` reads a weight ``[n, k]``, ``gradient`` the same weight the other way round,
    ``batched`` has no weight.
    """

    m: int
    k: int
    n: int
    batch: int = 1
    kind: Literal["linear", "gradient", "batched"] = "linear"

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


Products = Counter[Product]
"""How often each product is done. Not whole where a causal mask spares a part of it."""

Gradients = Literal["all", "prompt", "places"]
"""What a layer's backward is for: everything below, this layer's deep prompt, or P places of its input."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a backbone decides the sizes of its products."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    gated: bool = False
    causal: bool = False
    dense_head: bool = False
    labels: int = 2

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From transformers' configuration."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=config.intermediate_size,
            gated=config.model_type in GATED,
            causal=ARCHITECTURES[config.model_type].causal,
            dense_head=config.model_type in DENSE_HEAD,
        )

    @property
    def mlp(self) -> list[tuple[int, int]]:
        """``(from, to)`` of the MLP's matrices."""
        up = (self.hidden, self.intermediate)
        return [up] * (2 if self.gated else 1) + [(self.intermediate, self.hidden)]


# ------------------------------------------------------------------------------------------ a layer


def _linear(rows: int, sizes: Iterable[tuple[int, int]]) -> Products:
    return Counter(Product(m=rows, k=k, n=n) for k, n in sizes)


def _gradient(rows: int, sizes: Iterable[tuple[int, int]]) -> Products:
    return Counter(Product(m=rows, k=n, n=k, kind="gradient") for k, n in sizes)


def _attention(shape: Shape, texts: int, sizes: Iterable[tuple[int, int, int]], share: float = 1) -> Products:
    """Products of every text and head; a group's queries stand in one matrix."""
    found: Products = Counter()
    for m, k, n in sizes:
        product = Product(m=m, k=k, n=n, batch=texts * shape.kv_heads, kind="batched")
        found[product] += share  # type: ignore[assignment]
    return found


def _seen(shape: Shape, tokens: int, prompt: int, queries: int) -> float:
    """Which share of the pairs of query and key a mask leaves: a causal one about half of the text's."""
    if not shape.causal or queries < tokens:
        return 1
    return (prompt + (tokens + 1) / 2) / (prompt + tokens)


def forward(
    shape: Shape, texts: int, tokens: int, prompt: int = 0, *, queries: int | None = None
) -> Products:
    """A layer's forward.

    Args:
        shape: The backbone's.
        texts: B.
        tokens: T, for which keys and values are made.
        prompt: P, further keys and values that are there already.
        queries: For how many tokens a text everything else is; all of them if left out.
    """
    queries = tokens if queries is None else queries
    keys, width = tokens + prompt, shape.head_dim
    grouped = queries * shape.heads // shape.kv_heads
    inner, key_width = shape.heads * width, shape.kv_heads * width
    found = _linear(texts * tokens, [(shape.hidden, key_width)] * 2)
    found += _linear(texts * queries, [(shape.hidden, inner), (inner, shape.hidden), *shape.mlp])
    return found + _attention(
        shape,
        texts,
        [(grouped, width, keys), (grouped, keys, width)],
        _seen(shape, tokens, prompt, queries),
    )


def backward(
    shape: Shape,
    texts: int,
    tokens: int,
    prompt: int = 0,
    *,
    queries: int | None = None,
    to: Gradients = "all",
) -> Products:
    """A frozen layer's backward: input gradients, as far as ``to`` needs them.

    Args:
        shape: The backbone's.
        texts: B.
        tokens: T, all of the layer's own, P among them for ``to="places"``.
        prompt: P.
        queries: As in :func:`forward`: from how many tokens a text a gradient comes.
        to: What for.
    """
    queries = tokens if queries is None else queries
    width, group = shape.head_dim, shape.heads // shape.kv_heads
    inner, key_width = shape.heads * width, shape.kv_heads * width
    rows = queries * group
    found = _gradient(texts * queries, [(inner, shape.hidden), *shape.mlp])
    if to == "all":
        keys = tokens + prompt
        values, weights = (keys, rows, width), (rows, width, keys)
        to_queries, to_keys = (rows, keys, width), (keys, rows, width)
        found += _attention(
            shape,
            texts,
            [values, weights, to_queries, to_keys],
            _seen(shape, tokens, prompt, queries),
        )
        found += _gradient(texts * queries, [(shape.hidden, inner)])
        return found + _gradient(texts * tokens, [(shape.hidden, key_width)] * 2)
    # Only the prompt's columns: softmax's backward needs of the others a sum that the output has already.
    found += _attention(shape, texts, [(prompt, rows, width), (rows, width, prompt), (prompt, rows, width)])
    if to == "places":
        if queries > 1:  # the prompt's own queries; in a single layer only the pooled token asks
            seen = prompt if shape.causal else tokens
            found += _attention(shape, texts, [(prompt * group, width, seen), (prompt * group, seen, width)])
            found += _gradient(texts * prompt, [(shape.hidden, inner)])
        found += _gradient(texts * prompt, [(shape.hidden, key_width)] * 2)
    return found


def _head(shape: Shape) -> list[tuple[int, int]]:
    dense = [(shape.hidden, shape.hidden)] if shape.dense_head else []
    return [*dense, (shape.hidden, shape.labels)]


def head_backward(shape: Shape, texts: int) -> Products:
    """Behind the pooled token: input gradients, and the output layer's own."""
    weight = Product(m=shape.labels, k=texts, n=shape.hidden, kind="batched")
    return _gradient(texts, _head(shape)) + Counter([weight])


# --------------------------------------------------------------------------------------- the method


def _queries(shape: Shape, layer: int, tokens: int) -> int:
    return 1 if layer == shape.layers - 1 else tokens


def deep_forward(shape: Shape, texts: int, tokens: int, prompt: int, first: int, start: int = 0) -> Products:
    """Forward of the layers from ``start`` on, with prompts from ``first`` on, and the head."""
    found = _linear(texts, _head(shape))
    for layer in range(start, shape.layers):
        found += forward(
            shape,
            texts,
            tokens,
            prompt if layer >= first else 0,
            queries=_queries(shape, layer, tokens),
        )
    return found


def deep_training(shape: Shape, texts: int, tokens: int, prompt: int, first: int) -> Products:
    """A step with deep prompts in the layers from ``first`` on, on a stem that is there already."""
    found = deep_forward(shape, texts, tokens, prompt, first, start=first)
    found += head_backward(shape, texts)
    for layer in range(first, shape.layers):
        found += backward(
            shape,
            texts,
            tokens,
            prompt,
            queries=_queries(shape, layer, tokens),
            to="prompt" if layer == first else "all",
        )
    return found


def stem(shape: Shape, texts: int, tokens: int, first: int) -> Products:
    """The layers below the first prompt: the first epoch's, once."""
    found: Products = Counter()
    for _ in range(first):
        found += forward(shape, texts, tokens)
    return found


def input_training(shape: Shape, texts: int, tokens: int, prompt: int) -> Products:
    """A step with a prompt of P further tokens at the input.

    In front of a decoder's text the prompt does not see the text: it is the same in every row, and its own
    tokens are there once a batch. To the text it is keys and values in every layer, as a deep one is.
    """
    if shape.causal:
        found = deep_training(shape, texts, tokens, prompt, 0) + _leading(shape, prompt)
        for _ in range(shape.layers - 1):
            found += backward(shape, 1, prompt)
        return found + _gradient(prompt, _keys_values(shape))
    whole = tokens + prompt
    found = deep_forward(shape, texts, whole, 0, 0)
    found += head_backward(shape, texts)
    for layer in range(shape.layers):
        queries = _queries(shape, layer, whole)
        if layer == 0:
            found += backward(shape, texts, whole, prompt, queries=queries, to="places")
        else:
            found += backward(shape, texts, whole, queries=queries)
    return found


def input_forward(shape: Shape, texts: int, tokens: int, prompt: int) -> Products:
    """The forward of :func:`input_training`."""
    if shape.causal:
        return deep_forward(shape, texts, tokens, prompt, 0) + _leading(shape, prompt)
    return deep_forward(shape, texts, tokens + prompt, 0, 0)


def _leading(shape: Shape, prompt: int) -> Products:
    """A prompt in front of every text of the batch: once through the layers, in the last to be looked at."""
    found = _linear(prompt, _keys_values(shape))
    for _ in range(shape.layers - 1):
        found += forward(shape, 1, prompt)
    return found


def _keys_values(shape: Shape) -> list[tuple[int, int]]:
    return [(shape.hidden, shape.kv_heads * shape.head_dim)] * 2


def flops(products: Products) -> float:
    return sum(count * product.flops for product, count in products.items())


def plan(
    config: Any, prompt: str, texts: int, tokens: int, virtual: int, *, training: bool
) -> dict[str, Products]:
    """What a prompt's steps have to do: ``first`` in the first epoch, ``later`` in the others.

    Args:
        config: transformers' configuration of the backbone.
        prompt: ``deep``, ``upper`` or ``input``.
        texts: B.
        tokens: T.
        virtual: P.
        training: Forward and backward, or forward alone.
    """
    shape = Shape.of(config)
    first = shape.layers // 2 if prompt == "upper" else 0
    if prompt == "input":
        later = (
            input_training(shape, texts, tokens, virtual)
            if training
            else input_forward(shape, texts, tokens, virtual)
        )
        return {"first": later, "later": later}
    if not training:
        both = deep_forward(shape, texts, tokens, virtual, first)
        return {"first": both, "later": both}
    later = deep_training(shape, texts, tokens, virtual, first)
    return {"first": later + stem(shape, texts, tokens, first), "later": later}


# ---------------------------------------------------------------------------------------- the rates


def seconds_of(product: Product, dtype: torch.dtype, device: torch.device, *, spend: float = 0.1) -> float:
    """The shortest time that this product takes here, warmed up: the machine's best is the floor's rate."""
    run = _runner(product, dtype, device)
    for _ in range(2):
        run()
    once = max(_timed(run, 1, device), 1e-7)
    times = max(1, min(200, int(spend / 5 / once)))
    return min(_timed(run, times, device) for _ in range(5)) / times


def _runner(product: Product, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    def made(*size: int) -> Tensor:
        return torch.randn(size, device=device).to(dtype)

    if product.kind == "batched":
        left = made(product.batch, product.m, product.k)
        right = made(product.batch, product.k, product.n)
        return lambda: torch.bmm(left, right)
    left = made(product.m, product.k)
    if product.kind == "linear":
        weight = made(product.n, product.k)
        return lambda: F.linear(left, weight)
    weight = made(product.k, product.n)
    return lambda: left @ weight


def _timed(run: Callable[[], Tensor], times: int, device: torch.device) -> float:
    began = time.perf_counter()
    for _ in range(times):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(
    plans: dict[str, dict[str, Products]], precision: str, texts: int, *, spend: float = 0.1
) -> dict[str, Any]:
    """Seconds an example of every plan, with the rate of every product that is in them."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    distinct = {product for parts in plans.values() for products in parts.values() for product in products}
    with torch.inference_mode():
        taken = {product: seconds_of(product, dtype, device, spend=spend) for product in distinct}
    found: dict[str, Any] = {"examples": {}}
    for name, parts in plans.items():
        found["examples"][name] = {
            part: {
                "seconds": sum(count * taken[product] for product, count in products.items()) / texts,
                "gigaflops": flops(products) / texts / 1e9,
            }
            for part, products in parts.items()
        }
    ordered = sorted(distinct, key=lambda product: -product.flops)
    found["rates"] = [
        {**asdict(product), "gigaflops_per_second": round(product.flops / taken[product] / 1e9, 1)}
        for product in ordered
    ]
    found["median_rate"] = statistics.median(each["gigaflops_per_second"] for each in found["rates"])
    return found
