"""A task as plain tensors, ready to be gathered with those of other tasks for one forward pass.

Shapes: L layers, s the first prompted layer, P virtual tokens, U virtual units, Q queries, H hidden size,
E embedding size, C classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ptuning import adapters
from ptuning.model.backbone import Backbone
from ptuning.model.config import DeepPrompt, PromptConfig, prompt_from_dict
from ptuning.model.encoder import Encoder
from ptuning.model.limits import joined_of, text_limits
from ptuning.model.ptuning import PTuningModel
from ptuning.model.settling import settle_prompt
from ptuning.model.task_parts import verbalizer_of
from ptuning.model.units import scaled_units
from ptuning.model.wording import Wording, wording_of
from ptuning.task import Task

DEEP = "deep"
"""The key of tasks whose prompts are keys and values in the layers."""

TENSORS = ("prompts", "units", "mix", "embeddings")
"""The attributes of a task that are one tensor, or ``None``."""

HEAD_LAYERS = (nn.Linear, nn.LayerNorm)
"""The layers of a head that rows of different tasks can go through together (``row_heads.py``)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedTask:
    """A trained task's tensors on its backbone's device. They are never written to.

    Prompt and units have the backbone's dtype, as its layers use them; head and mix are fp32.

    Attributes:
        name: In the table.
        digest: Of the adapter; empty if unknown.
        task: What the logits mean.
        config: The prompt's configuration, settled.
        key: Rows of tasks with the same key share a forward pass.
        prompts: ``[L−s, 2, P, H_kv]``; ``None`` at input depth.
        units: ``[L−s, 2, U, H]``, scaled, or ``None``.
        mix: ``[L−s+1, 2+2Q, H]``, with pooling ``layers``.
        embeddings: ``[P, E]`` at input depth.
        front: With a decoder's prompt in front of the text, the tokens before it; ``prompts`` are then keys
            and values of these tokens and the prompt.
        head: By the backbone's names.
        anchors: Token ids of a template's literal words.
        wording: The words that are inserted into the text first, a cloze head's or a deep prompt's, without
            those that are in ``prompts``; ``None`` without any.
        words: The tensors of a cloze head's words (``verbalizer.py``), by name.
        max_text_tokens: As the model's; ``None`` for no limit.
        inserted_tokens: As the model's.
        needs_segments: As the model's.
        wanted_texts: As the model's.
        alone: The model, if its rows cannot share a pass with those of other tasks.
    """

    name: str
    digest: str
    task: Task
    config: PromptConfig
    key: Hashable
    prompts: Tensor | None
    units: Tensor | None
    mix: Tensor | None
    embeddings: Tensor | None
    front: tuple[int, ...]
    head: Mapping[str, Tensor]
    anchors: tuple[tuple[int, ...], ...]
    wording: Wording | None
    words: Mapping[str, Tensor]
    max_text_tokens: int | None
    inserted_tokens: int
    needs_segments: bool
    wanted_texts: tuple[int, ...]
    alone: PTuningModel | None = None

    @property
    def first_layer(self) -> int:
        """S."""
        return self.config.first_layer if isinstance(self.config, DeepPrompt) else 0

    @property
    def is_cloze(self) -> bool:
        """Whether it has a cloze head."""
        return self.config.head is not None

    @property
    def pooling(self) -> str:
        """What the head reads."""
        if self.wording is not None and self.wording.mask is not None:
            return "mask"
        return self.config.pooling or "native" if isinstance(self.config, DeepPrompt) else "native"

    @property
    def position_offset(self) -> int:
        """How far the prompt moves the text's positions."""
        if isinstance(self.config, DeepPrompt):
            return self.config.position_offset or 0
        return 0 if self.prompts is None else self.prompts.shape[-2]

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        return sum(value.nbytes for _, value in self.tensors())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its tensors, each with a name of its own."""
        for name in TENSORS:
            if (value := getattr(self, name)) is not None:
                yield name, value
        for part, values in (("head", self.head), ("words", self.words)):
            for name, value in values.items():
                yield f"{part}.{name}", value

    def with_tensors(self, tensors: Mapping[str, Tensor | None]) -> PackedTask:
        """The same task with other tensors under the names of :meth:`tensors`."""
        own = {name: tensors.get(name) for name in TENSORS}
        head, words = (
            {key.removeprefix(part): value for key, value in tensors.items() if key.startswith(part)}
            for part in ("head.", "words.")
        )
        return replace(self, **own, head=head, words=words)  # type: ignore[arg-type]


def pack(model: PTuningModel, name: str = "", digest: str = "") -> PackedTask:
    """``model``'s task as tensors. They do not follow later changes of the model.

    Args:
        name, digest: For the result.
    """
    model = model.for_inference()
    with torch.no_grad():
        parts = _Parts(
            backbone=model.backbone,
            config=model.prompt_config,
            task=model.task,
            prompt=model.prompt_encoder(),
            units=None if model.units is None else model.units(),
            head=model.head.named(),
            anchors=model.anchors,
            cloze=model.cloze,
            tokenizer=model.tokenizer,
        )
        if model.is_plain or not parts.can_share:
            return parts.packed(name, digest, alone=model.twin(backbone=False))
        return parts.packed(name, digest)


def pack_adapter(
    adapter: adapters.Adapter,
    backbone: Backbone,
    name: str = "",
    digest: str = "",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PackedTask:
    """An adapter's task as tensors, on a backbone that :func:`~ptuning.model.loading.check_backbone` has
    accepted.

    Args:
        name, digest: For the result.
        tokenizer: The backbone's, for what is computed once of a decoder's prompt in front of the text.
    """
    config = prompt_from_dict(adapter.prompt)
    if isinstance(config, DeepPrompt):
        config = settle_prompt(config, backbone, is_pair_similarity=adapter.task.is_pair_similarity)
    to = backbone.device
    parts = _Parts(
        backbone=backbone,
        config=config,
        task=adapter.task,
        prompt=adapter.prompt_tensor.to(to),
        units=None if adapter.units is None else adapter.units.to(to),
        head={key: value.to(to) for key, value in adapter.head.items()},
        anchors=adapter.anchors,
        cloze=adapter.cloze,
        tokenizer=tokenizer,
    )
    if not parts.can_share:
        return pack(PTuningModel.from_adapter(adapter, backbone, tokenizer=tokenizer), name, digest)
    with torch.no_grad():
        return parts.packed(name, digest)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """A task's parameters in fp32, and what they are for."""

    backbone: Backbone
    config: PromptConfig
    task: Task
    prompt: Tensor
    units: Tensor | None
    head: Mapping[str, Tensor]
    anchors: tuple[tuple[int, ...], ...]
    cloze: adapters.ClozeTokens | None
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def can_share(self) -> bool:
        """Whether its rows can go through the backbone with those of other tasks."""
        names = (name for name in self.head if name != adapters.MIX)
        return all(_has_row_layer(self.backbone, name) for name in names)

    def packed(self, name: str, digest: str, alone: PTuningModel | None = None) -> PackedTask:
        backbone, config, dtype = self.backbone, self.config, self.backbone.dtype
        limits = text_limits(backbone, config, self.task, self.anchors)
        head = {key: value.detach().clone() for key, value in self.head.items()}
        mix = head.pop(adapters.MIX, None)
        prompts = embeddings = None
        front: tuple[int, ...] = ()
        key: Hashable = DEEP
        wording = wording_of(config, self.anchors, self.cloze)
        words: Mapping[str, Tensor] = {}
        if self.cloze is not None:
            words = dict(verbalizer_of(backbone, self.cloze, self.anchors).named_buffers())
        if (joined := joined_of(backbone, config, self.anchors, wording)) is None:
            prompts = self.prompt.to(dtype, copy=True)
        else:
            embeddings, key = self.prompt.to(dtype, copy=True), input_key(config, self.anchors)
            prepared = joined.prepared(Encoder(backbone), self.prompt, self.tokenizer)
            if prepared.leading is not None:
                prompts, front, key = prepared.leading, prepared.tokens, DEEP
                if wording is not None and not joined.leads_words:  # the words are in the keys and values
                    wording = replace(wording, pieces=(), anchors=())
        return PackedTask(
            name=name,
            digest=digest,
            task=self.task,
            config=config,
            key=key if alone is None else ("alone", object()),
            prompts=prompts,
            units=None if self.units is None else scaled_units(self.units).to(dtype),
            mix=mix,
            embeddings=embeddings,
            front=front,
            head=head,
            anchors=self.anchors,
            wording=wording,
            words=words,
            max_text_tokens=limits.max_text_tokens,
            inserted_tokens=limits.inserted_tokens,
            needs_segments=limits.needs_segments,
            wanted_texts=limits.wanted_texts,
            alone=alone,
        )


def input_key(config: PromptConfig, anchors: tuple[tuple[int, ...], ...]) -> Hashable:
    """The key of tasks whose prompts are among the text's embeddings: the same places, the same words."""
    assert not isinstance(config, DeepPrompt)
    return ("input", tuple(config.insertions), anchors, config.head is not None)


def _has_row_layer(backbone: Backbone, parameter: str) -> bool:
    """Whether rows of different tasks can have this parameter each: a head's, of a layer that is known."""
    if parameter not in backbone.head_names:
        return False
    return type(backbone.model.get_submodule(parameter.rpartition(".")[0])) in HEAD_LAYERS
