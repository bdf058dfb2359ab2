"""Creates the parts of a task for a backbone: prompt encoder, virtual units, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ptuning import adapters
from ptuning.errors import AdapterError, ConfigError
from ptuning.model.backbone import Backbone
from ptuning.model.config import DeepPrompt, InputPrompt, PromptConfig, TextInit
from ptuning.model.head import Head, first_mix
from ptuning.model.prompt import Embedding, PromptEncoder, deep_encoder, initial_prompt, input_encoder
from ptuning.model.template import Insertion, Landmark
from ptuning.model.units import initial_units
from ptuning.model.verbalizer import Verbalizer, check_cloze, piece_ids, template_ids, words_of
from ptuning.task import Task
from ptuning.threads import TOKENIZER

PASS_TOKENIZER = "pass tokenizer=…"
"""The remedy where words have to be encoded without a tokenizer."""


def make_head(
    backbone: Backbone, config: PromptConfig, num_labels: int, given: Mapping[str, Tensor] | None
) -> Head:
    """The task's head: a copy of the backbone's with ``num_labels`` outputs. A cloze head has no parameters.

    Args:
        given: Values that replace the backbone's, by name, or further parameters that the task gets.
    """
    if config.head is not None:
        return Head({}, trained=False)
    head = Head(
        {
            **backbone.head_parameters(num_labels),
            **first_mix(config, backbone),
            **backbone.siblings(given or ()),
            **(given or {}),
        },
        trained=config.train_head,
    ).to(backbone.device)
    backbone.cast_at([name for name in head.names if name != adapters.MIX])
    return head


def make_deep(backbone: Backbone, config: DeepPrompt) -> tuple[PromptEncoder, Embedding | None]:
    """The encoder of a deep prompt, and its virtual units if it has any.

    The random values are generated on the CPU, so they do not depend on the device.
    """
    layers = backbone.num_layers - config.first_layer
    shape = (layers, 2, config.num_virtual_tokens, backbone.key_value_size)
    encoder = deep_encoder(config.encoder, shape, backbone.hidden_size, torch.device("cpu"))
    encoder = encoder.to(backbone.device)
    if not config.num_virtual_units:
        return encoder, None
    units = Embedding(initial_units(layers, config.num_virtual_units, backbone.hidden_size))
    return encoder, units.to(backbone.device)


def make_input(
    backbone: Backbone, config: InputPrompt, tokenizer: PreTrainedTokenizerBase | None
) -> PromptEncoder:
    """The encoder of an input prompt, with its initial values.

    The head of most encoders reads the first token only. If that is a virtual token, it starts as the token
    that was there before (``[CLS]``, ``<s>``), which the head can read already. Given words are not
    replaced.
    """
    init = config.init
    text_ids = token_ids(tokenizer, init.text, "init.text") if isinstance(init, TextInit) else None
    start = initial_prompt(init, config.virtual_tokens, backbone.embedding, backbone.vocab_size, text_ids)
    first = first_token(tokenizer, backbone.config)
    if text_ids is None and first is not None and reads_virtual_token(backbone, config):
        with torch.no_grad():
            start[:1] = backbone.embedding(torch.tensor([first], device=start.device)).float()
    return input_encoder(config.encoder, start)


def reads_virtual_token(backbone: Backbone, config: PromptConfig) -> bool:
    """Whether the head reads the first virtual token: an encoder's, with the placement ``start``."""
    if config.depth == "deep" or config.head is not None or not backbone.reads_first_token:
        return False
    piece = config.insertions[0]
    return piece.before is Landmark.START and piece.tokens > 0


def first_token(*sources: object) -> int | None:
    """The id of the token that every text starts with, from a tokenizer or a configuration that knows it."""
    for source in sources:
        for name in ("cls_token_id", "bos_token_id"):
            if (found := getattr(source, name, None)) is not None:
                return int(found)
    return None


def anchors_of(
    config: PromptConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    given: Sequence[Sequence[int]] | None,
) -> tuple[tuple[int, ...], ...]:
    """The token ids of a template's literal words, one tuple per place.

    Args:
        given: The ids, if they are known already.

    Raises:
        ConfigError: their number differs from the template's.
    """
    pieces: list[Insertion] = [piece for piece in config.insertions if piece.anchor]
    if given is not None and len(given) != len(pieces):
        raise ConfigError(
            "anchors",
            got=f"token ids for {len(given)} literal texts",
            expected=f"{len(pieces)}, as the template {config.written!r} has",
        )
    if given is not None:
        return tuple(tuple(ids) for ids in given)
    if config.depth == "input":
        return tuple(tuple(token_ids(tokenizer, piece.anchor, "prompt.placement")) for piece in pieces)
    if tokenizer is None and pieces:
        raise no_tokenizer("prompt.template", config.written)
    return () if tokenizer is None else piece_ids(tokenizer, pieces, "prompt.template")


def make_cloze(
    backbone: Backbone,
    config: PromptConfig,
    task: Task,
    tokenizer: PreTrainedTokenizerBase | None,
    anchors: Sequence[Sequence[int]] | None,
    given: adapters.ClozeTokens | None,
) -> tuple[tuple[tuple[int, ...], ...], adapters.ClozeTokens]:
    """The template's and the labels' words in tokens.

    Args:
        anchors, given: The tokens, as far as they are known already.

    Raises:
        ConfigError: a template or words that the task, the backbone or its tokenizer cannot have.
        UnsupportedBackbone: the checkpoint has no language model head.
    """
    head, causal = config.head, backbone.architecture.causal
    assert head is not None
    check_cloze(config, task, backbone)
    digest = backbone.language_head.digest
    if given is not None and given.words:
        return tuple(tuple(ids) for ids in anchors or ()), given
    if tokenizer is None:
        raise ConfigError(
            "prompt.head",
            got="a cloze head",
            expected="a tokenizer to encode its words with",
            remedy=PASS_TOKENIZER,
        )
    words = words_of(head, task, tokenizer, config.insertions)
    if given is not None:
        return tuple(tuple(ids) for ids in anchors or ()), replace(given, words=words)
    ids, mask = template_ids(tokenizer, config.insertions, causal=causal)
    return ids, adapters.ClozeTokens(words=words, mask=mask, head=digest)


def verbalizer_of(
    backbone: Backbone, cloze: adapters.ClozeTokens, anchors: Sequence[Sequence[int]]
) -> Verbalizer:
    """The rows of the backbone's language model head for the words of a task.

    Args:
        anchors: The token ids of the template's words.

    Raises:
        AdapterError: a token that the backbone does not have.
    """
    words = (word for label in cloze.words for word in label)
    for name, pieces in (("cloze.words", words), ("anchors", anchors)):
        for each in (each for piece in pieces for each in piece if each >= backbone.vocab_size):
            raise AdapterError(
                f"{name}: got the token id {each}, and {backbone.name} has {backbone.vocab_size} tokens",
                remedy="the adapter was altered, or was trained on another backbone",
            )
    table: Any = backbone.embedding.weight
    return Verbalizer(backbone.language_head, cloze.words, table)


def token_ids(tokenizer: PreTrainedTokenizerBase | None, text: str, option: str) -> list[int]:
    """The ids of ``text`` without special tokens; ``option`` is for the error message."""
    if tokenizer is None:
        raise no_tokenizer(option, text)
    with TOKENIZER:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def no_tokenizer(option: str, text: str) -> ConfigError:
    """The error for words that have to be encoded without a tokenizer."""
    return ConfigError(
        option, got=f"the words {text!r}", expected="a tokenizer to encode them with", remedy=PASS_TOKENIZER
    )
