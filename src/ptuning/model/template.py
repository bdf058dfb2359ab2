"""Where the virtual tokens of an input prompt are: named placements and templates become *insertions*.

A tokenised row is ``[CLS] a… [SEP] b… [SEP]`` (or whatever its tokenizer makes of it). An
:class:`Insertion` says what is inserted before which of its *landmarks*. Most named placements are short for
a template, so there is one mechanism. The template of a cloze head (:func:`cloze_insertions`) has words, the
mask, and the prompt if it is at the input; that of a deep prompt (:func:`template_words`) has words alone.

==========  =====================================  ========================================
placement   as a template                          position
==========  =====================================  ========================================
``start``   (none)                                 before everything, ``[CLS]`` too
``front``   ``"{prompt:20} {text_a} {text_b}"``    before the first token of the text
``between`` ``"{text_a} {prompt:20} {text_b}"``    before the first token of the second text
``middle``  (none)                                 halfway through the row's tokens
``end``     ``"{text_a} {text_b} {prompt:20}"``    after everything, the last ``[SEP]`` too
==========  =====================================  ========================================

Pure Python: nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

from ptuning.errors import ConfigError

NamedPlacement = Literal["start", "front", "between", "middle", "end"]
DEFAULT_VIRTUAL_TOKENS = 20
DEFAULT_PLACEMENT = "front"
MASK = "{mask}"
"""Where a masked language model predicts a word, in a cloze head's template."""
_SLOT = re.compile(r"\{([^{}]*)\}")
_COUNT = re.compile("0*[1-9][0-9]{0,3}")


class Landmark(Enum):
    """A place in a tokenised row to insert something before."""

    START = "start"  # its first token, special or not
    TEXT_A = "text_a"  # the first token of the first text
    TEXT_B = "text_b"  # the first token of the second text
    MIDDLE = "middle"  # token n // 2 of n
    CLOSE = "close"  # after the last token of the last text, before the special tokens that follow
    END = "end"  # after its last token


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """``tokens`` virtual tokens, or the literal words ``anchor``, inserted before ``before``.

    The words of a cloze head may have :data:`MASK` among them.
    """

    before: Landmark
    tokens: int = 0
    anchor: str = ""


_NAMED = {
    "start": Landmark.START,
    "front": Landmark.TEXT_A,
    "between": Landmark.TEXT_B,
    "middle": Landmark.MIDDLE,
    "end": Landmark.END,
}


def is_template(placement: str) -> bool:
    """Whether ``placement`` is a template rather than a name."""
    return "{" in placement or "}" in placement


def insertions(placement: str, num_virtual_tokens: int | None) -> tuple[Insertion, ...]:
    """What ``placement`` inserts where, in the order of the row.

    Args:
        placement: A named placement, or a template such as
            ``"{prompt:4} {text_a} ? {prompt:8} {text_b}"``.
        num_virtual_tokens: P. With a named placement ``None`` means 20; a template counts its own,
            so ``None``, or the same number.

    Raises:
        ConfigError: an unknown name, a malformed template, or a count that disagrees with it.
    """
    if not is_template(placement):
        if placement not in _NAMED:
            raise ConfigError(
                "prompt.placement",
                got=repr(placement),
                expected=f"one of {', '.join(get_args(NamedPlacement))}, or a template such as "
                "'{prompt:4} {text_a} {prompt:8} {text_b}'",
            )
        return (Insertion(before=_NAMED[placement], tokens=num_virtual_tokens or DEFAULT_VIRTUAL_TOKENS),)
    found = tuple(_parse(placement))
    total = sum(piece.tokens for piece in found)
    if num_virtual_tokens not in (None, total):
        raise ConfigError(
            f"num_virtual_tokens is {num_virtual_tokens}, but the template {placement!r} has {total}",
            remedy="leave num_virtual_tokens out; the template has its own count",
        )
    return found


def _parse(template: str) -> list[Insertion]:
    found: list[Insertion] = []
    for before, literal, slot in _pieces(template, Landmark.END, "{prompt:4}"):
        if literal.strip():
            found.append(Insertion(before=before, anchor=literal.strip()))
        if slot:
            found.append(Insertion(before=before, tokens=_count(slot, template)))
    if not any(piece.tokens for piece in found):
        raise ConfigError(
            f"template {template!r}",
            got="no {prompt:N}",
            expected="at least one",
            remedy="without it nothing is trained",
        )
    return found


def _pieces(template: str, end: Landmark, example: str) -> Iterator[tuple[Landmark, str, str]]:
    """The landmark, the literal words and the slot behind them, without those of the texts.

    Args:
        end: What comes after the last text.
        example: A slot that such a template may have.
    """
    parts = _SLOT.split(template)  # literal, slot, literal, slot, …, literal
    slots = ["text_a" if slot.strip() == "text" else slot.strip() for slot in parts[1::2]]
    texts = [slot for slot in slots if slot in ("text_a", "text_b")]
    if texts not in (["text_a"], ["text_a", "text_b"]):
        raise ConfigError(
            f"template {template!r}",
            got=texts or "no {text}",
            expected="{text} once, or for pairs {text_a} once and then {text_b} once",
        )
    coming = [*map(Landmark, texts), end]  # the landmark that the next piece is inserted before
    for literal, slot in zip(parts[0::2], [*slots, ""], strict=True):
        if "{" in literal or "}" in literal:
            raise ConfigError(
                f"template {template!r}",
                got=f"an unmatched brace near {literal.strip()!r}",
                expected=f"slots such as {example} and {{text_a}}",
            )
        is_text = slot in ("text_a", "text_b")
        yield coming[0], literal, "" if is_text else slot
        if is_text:
            coming.pop(0)


def cloze_insertions(template: str, placement: str, num_virtual_tokens: int | None) -> tuple[Insertion, ...]:
    """What a cloze head's template inserts where, in the order of the row, with a prompt at the input.

    Args:
        template: Such as ``"{text} It was {mask}."``; with slots such as ``{prompt:4}`` or without.
        placement: Where the prompt is, if the template does not say it.
        num_virtual_tokens: P, if the template does not say it; ``None`` for 20.

    Raises:
        ConfigError: a malformed template, or one that contradicts the other arguments.
    """
    found = _cloze(template)
    total = sum(piece.tokens for piece in found)
    if total == 0:
        if is_template(placement):
            raise ConfigError(
                f"prompt.placement is the template {placement!r}, and the cloze head has one too",
                remedy="put the {prompt:N} slots into prompt.head.template, and leave prompt.placement out",
            )
        (prompt,) = insertions(placement, num_virtual_tokens)
        return (*found, prompt) if prompt.before is Landmark.END else (prompt, *found)
    if placement != DEFAULT_PLACEMENT:
        raise ConfigError(
            f"prompt.placement is {placement!r}, but prompt.head.template says where the prompt is",
            remedy="leave one of them out",
        )
    if num_virtual_tokens not in (None, total):
        raise ConfigError(
            f"num_virtual_tokens is {num_virtual_tokens}, but the template {template!r} has {total}",
            remedy="leave num_virtual_tokens out; the template has its own count",
        )
    return found


def template_words(template: str, *, mask: bool) -> tuple[Insertion, ...]:
    """The words that a template inserts where, in the order of the row, with a deep prompt.

    Args:
        mask: Whether it may have a mask: a cloze head's.

    Raises:
        ConfigError: a malformed template, or one with a prompt.
    """
    found = _cloze(template)
    if any(piece.tokens for piece in found):
        raise ConfigError(
            f"template {template!r}",
            got="{prompt:N}",
            expected="words and texts alone, because a deep prompt is in the layers",
            remedy="leave it out, or set prompt.depth to input",
        )
    if not mask and any(MASK in piece.anchor for piece in found):
        raise ConfigError(
            f"template {template!r}",
            got=MASK,
            expected="words and texts alone, because a classification head predicts no word",
            remedy="leave it out, or use a cloze head (prompt.head.template)",
        )
    return found


def template_texts(template: str) -> int:
    """The number of texts in a template of words: 1 or 2."""
    return 2 if any(slot.strip() == "text_b" for slot in _SLOT.findall(template)) else 1


def _cloze(template: str) -> tuple[Insertion, ...]:
    """The pieces of a template of words. Words between two slots are one piece, the mask among them, with
    the spaces in front of them: they decide how the words are tokenised.
    """
    found: list[Insertion] = []
    for before, literal, slot in _pieces(template, Landmark.CLOSE, MASK):
        words = literal + (MASK if slot == "mask" else "")
        if found and found[-1].anchor and found[-1].before is before and not found[-1].tokens:
            found[-1] = Insertion(before=before, anchor=found[-1].anchor + words)
        elif words:
            found.append(Insertion(before=before, anchor=words))
        if slot not in ("", "mask"):
            found.append(Insertion(before=before, tokens=_count(slot, template)))
    if (masks := sum(piece.anchor.count(MASK) for piece in found)) > 1:
        raise ConfigError(f"template {template!r}", got=f"{masks} masks", expected="one {mask}")
    return tuple(piece for piece in found if piece.tokens or piece.anchor.strip(" "))


def _count(slot: str, template: str) -> int:
    name, _, count = slot.partition(":")
    if name.strip() != "prompt":
        raise ConfigError(
            f"template {template!r}: unknown slot {{{slot}}}",
            expected="{prompt:N}, {text_a}, {text_b}, or for a cloze head {mask}",
        )
    if not _COUNT.fullmatch(count.strip()):
        raise ConfigError(
            f"template {template!r:.200}: {{{slot:.40}}} has no valid count",
            expected="a number from 1 to 9999, such as {prompt:4}",
        )
    return int(count)
