"""What a prompt leaves to the text: how many tokens it may have, and what must be known about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptuning.model.backbone import Backbone
from ptuning.model.config import DeepPrompt, PromptConfig
from ptuning.model.sequence import Joined
from ptuning.model.wording import Wording
from ptuning.task import Task


@dataclass(frozen=True, kw_only=True)
class TextLimits:
    """What a task asks of its texts.

    Attributes:
        max_text_tokens: The maximum number of tokens of a text, or pair, special tokens included; ``None``
            for no limit.
        inserted_tokens: A, or P + A at input depth: tokens added to the text's own.
        position_offset: How far a deep prompt moves the text's positions; 0 at input depth.
        needs_segments: Whether it matters where a text starts; then batches should have ``segment_ids``.
        wanted_texts: The texts, 0 for the first and 1 for the second, that the prompt is put in front of, or
            that a template has.
    """

    max_text_tokens: int | None
    inserted_tokens: int
    position_offset: int
    needs_segments: bool
    wanted_texts: tuple[int, ...]


def text_limits(
    backbone: Backbone, config: PromptConfig, task: Task, anchors: Sequence[Sequence[int]]
) -> TextLimits:
    """The limits of ``task`` with a prompt on a backbone.

    Args:
        config: The prompt's configuration, settled.
        anchors: Token ids of a template's literal words.
    """
    joined = joined_of(backbone, config, anchors)
    deep = isinstance(config, DeepPrompt)
    offset = config.position_offset or 0 if isinstance(config, DeepPrompt) else 0
    inserted = sum(map(len, anchors)) + (0 if deep else config.virtual_tokens)
    limits = [] if task.max_length is None else [task.max_length]
    if (places := backbone.max_positions) is not None:
        limits.append(places - offset)  # the offset takes up positions, not tokens
    wanted = () if joined is None else joined.wanted_texts
    if (texts := config.template_texts) is not None:
        wanted = tuple(range(texts))
    apart = isinstance(config, DeepPrompt) and config.pooling == "similarity"
    return TextLimits(
        max_text_tokens=min(limits) - inserted if limits else None,
        inserted_tokens=inserted,
        position_offset=offset,
        needs_segments=apart or bool(wanted),
        wanted_texts=wanted,
    )


def joined_of(
    backbone: Backbone,
    config: PromptConfig,
    anchors: Sequence[Sequence[int]],
    wording: Wording | None = None,
) -> Joined | None:
    """How an input prompt and the text become one sequence; ``None`` for a deep prompt."""
    if isinstance(config, DeepPrompt):
        return None
    return Joined(backbone=backbone, config=config, anchors=anchors, wording=wording)
