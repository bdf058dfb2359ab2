"""One trained task as plain data: the contents of an adapter folder, independent of its layout.

``peft_format.py`` turns an :class:`Adapter` into tensors, ``folder.py`` saves and loads it, ``card.py``
describes it, ``ptuning.model`` creates and uses it. This module imports none of them.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ptuning.errors import AdapterError
from ptuning.task import Task

MIX = "pooling.mix"
"""The name of the weights of the mix of layers, next to the backbone's parameter names in the head."""


OUTPUT_LAYERS = ("classifier.out_proj", "classifier", "score")
"""Names of the output layer, which has one row per label, in the supported architectures."""


def output_layer(head: Mapping[str, Tensor]) -> str | None:
    """The name of the output layer of a head, by its parameters' names; ``None`` if it has none."""
    return next((layer for layer in OUTPUT_LAYERS if f"{layer}.weight" in head), None)


@dataclass(frozen=True, kw_only=True)
class ClozeTokens:
    """What a cloze head's words are in the backbone's tokens.

    Args:
        words: For each label its words, each as token ids; empty after a change of labels, until a model is
            made.
        mask: The id of the mask among the adapter's ``anchors``; ``None`` for a decoder.
        head: The digest of the backbone's language model head.
    """

    words: tuple[tuple[tuple[int, ...], ...], ...]
    mask: int | None
    head: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        words = [[list(word) for word in label] for label in self.words]
        return {"words": words, "mask": self.mask, "head": self.head}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClozeTokens:
        """The inverse of :meth:`to_dict`."""
        words = tuple(tuple(tuple(word) for word in label) for label in values["words"])
        return cls(words=words, mask=values["mask"], head=values["head"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A trained task: prompt, head, labels, and facts of the backbone that it fits.

    Args:
        prompt: The prompt configuration, from ``prompt_to_dict``.
        task: Kind, labels, scale.
        backbone: ``BackboneFacts`` as a dict.
        prompt_tensor: fp32; input depth ``[P, E]``, deep ``[L−s, 2, P, H_kv]``, keys then values.
        units: fp32 ``[L−s, 2, U, H]``, virtual units of the feed-forward networks, keys then values; ``None``
            if there are none.
        head: The parameters of the head by the backbone's own names (``classifier.weight``,
            ``bert.pooler.dense.weight``); empty if the backbone's own head is used. With pooling ``layers``
            also :data:`MIX` ``[L−s+1, 2+2Q, H]``, the weights of the mix of layers.
        anchors: Token ids of the literal words in a template, one tuple per piece of text.
        cloze: The words of a cloze head in tokens; ``None`` for a classification head.
        metrics: Metrics by split (``{"test": {"accuracy": 0.9}}``), and ``"baseline"``.
        extra: Any other JSON data, such as a summary of the training.

    Raises:
        AdapterError: tensors that do not match the prompt configuration or the facts of the backbone.
    """

    prompt: Mapping[str, Any]
    task: Task
    backbone: Mapping[str, Any]
    prompt_tensor: Tensor
    head: Mapping[str, Tensor]
    units: Tensor | None = None
    anchors: tuple[tuple[int, ...], ...] = ()
    cloze: ClozeTokens | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.tensors().items():
            if value.dtype != torch.float32:
                raise AdapterError(
                    f"{name} is {value.dtype}", expected="torch.float32", remedy="convert it with .float()"
                )
        tensor = self.prompt_tensor
        shape, expected = tuple(tensor.shape), self._expected_shape()
        if len(shape) != len(expected) or any(
            e not in (None, s) for s, e in zip(shape, expected, strict=True)
        ):
            wanted = ", ".join("P" if e is None else str(e) for e in expected)
            raise AdapterError(
                f"the prompt has the shape {list(shape)}",
                expected=f"[{wanted}] for depth {self.prompt.get('depth')!r} on {self.backbone.get('name')}",
            )
        pooling, units = self.prompt.get("pooling"), self.prompt.get("num_virtual_units") or 0
        mix_shape = unit_shape = None
        if self.deep and pooling == "layers":
            queries = self.prompt.get("num_queries") or 0
            mix_shape = (self._layers + 1, 2 + 2 * queries, self.backbone["hidden_size"])
        if self.deep and units:
            unit_shape = (self._layers, 2, units, self.backbone["hidden_size"])
        _check_shape(MIX, self.head.get(MIX), mix_shape, f"the pooling {pooling!r}")
        _check_shape("units", self.units, unit_shape, f"{units} virtual units")
        is_cloze = self.cloze is not None
        if is_cloze != (self.prompt.get("head") is not None) or (is_cloze and self.head):
            raise AdapterError(
                "the head",
                got=f"{len(self.head)} tensors, and {'' if is_cloze else 'no '}words in tokens",
                expected="no tensors, and words in tokens, with a cloze head alone",
                remedy="the adapter was altered",
            )
        for layer in OUTPUT_LAYERS:
            self._check_rows(f"{layer}.weight", dimensions=2)
            self._check_rows(f"{layer}.bias", dimensions=1)

    def tensors(self) -> dict[str, Tensor]:
        """Prompt, virtual units and head, by their names in messages."""
        units = {} if self.units is None else {"the prompt's virtual units": self.units}
        return {"the prompt": self.prompt_tensor, **units, **self.head}

    def _check_rows(self, name: str, dimensions: int) -> None:
        """Check that the output layer has one row per label."""
        value = self.head.get(name)
        if value is not None and (value.dim() != dimensions or value.shape[0] != self.task.num_labels):
            rest = ", H" * (dimensions - 1)
            raise AdapterError(
                f"the head's {name} has the shape {list(value.shape)}",
                expected=f"[{self.task.num_labels}{rest}]: one row for each of the {self.task.num_labels} "
                "logits of the task",
            )

    def _expected_shape(self) -> tuple[int | None, ...]:
        """The shape of the prompt by configuration and facts; ``None`` if unknown (P of a template)."""
        tokens = self.prompt.get("num_virtual_tokens")
        if self.deep:
            return self._layers, 2, tokens, self.backbone["key_value_size"]
        return tokens, self.backbone["embedding_size"]

    @property
    def _layers(self) -> int:
        if (layers := self.backbone.get("num_layers")) is None:
            raise AdapterError("backbone.num_layers is unknown, and a deep prompt needs it")
        return int(layers) - int(self.prompt.get("first_layer", 0))

    @property
    def deep(self) -> bool:
        """Whether every layer from ``first_layer`` on has its own prompt."""
        return bool(self.prompt.get("depth") == "deep")

    @property
    def virtual_tokens(self) -> int:
        """P."""
        return int(self.prompt_tensor.shape[-2])

    @property
    def prompt_parameters(self) -> int:
        """The number of parameters of the prompt, including virtual units."""
        return self.prompt_tensor.numel() + (0 if self.units is None else self.units.numel())

    @property
    def head_parameters(self) -> int:
        """The number of trained parameters of the head; 0 if it was frozen."""
        return (
            sum(value.numel() for value in self.head.values()) if self.prompt.get("train_head", True) else 0
        )


def _check_shape(name: str, tensor: Tensor | None, expected: tuple[int, ...] | None, why: str) -> None:
    got = None if tensor is None else tuple(tensor.shape)
    if got != expected:
        raise AdapterError(
            f"the shape of {name}",
            got=str(got),
            expected=f"{expected} (None: no such tensor) for {why}",
            remedy="the adapter was altered",
        )


def installed_versions() -> dict[str, str]:
    """The installed versions by package; ``"unknown"`` for a package that is not installed."""
    packages = ("ptuning", "torch", "transformers", "safetensors")
    return {**{name: _version(name) for name in packages}, "python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
