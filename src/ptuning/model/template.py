"""Where the virtual tokens of an input prompt are: named placements and templates become *insertions*.

A tokenised row is ``[CLS] a… [SEP] b… [SEP]`` (or whatever its tokenizer makes of it). An
:class:`Insertion` says what is inserted before which of its *landmarks*. Most named placements are short for
a template, so there is one mechanism:

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
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

from ptuning.errors import ConfigError

NamedPlacement = Literal["start", "front", "between", "middle", "end"]
DEFAULT_VIRTUAL_TOKENS = 20
_SLOT = re.compile(r"\{([^{}]*)\}")
_COUNT = re.compile("0*[1-9][0-9]{0,3}")


class Landmark(Enum):
    """A place in a tokenised row to insert something before."""

    START = "start"  # its first token, special or not
    TEXT_A = "text_a"  # the first token of the first text
    TEXT_B = "text_b"  # the first token of the second text
    MIDDLE = "middle"  # token n // 2 of n
    END = "end"  # after its last token


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """``tokens`` virtual tokens, or the literal words ``anchor``, inserted before ``before``."""

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
    parts = _SLOT.split(template)  # literal, slot, literal, slot, …, literal
    slots = ["text_a" if slot.strip() == "text" else slot.strip() for slot in parts[1::2]]
    texts = [slot for slot in slots if slot in ("text_a", "text_b")]
    if texts not in (["text_a"], ["text_a", "text_b"]):
        raise ConfigError(
            f"template {template!r}",
            got=texts or "neither",
            expected="{text_a} once and then, for pairs, {text_b} once",
        )
    found: list[Insertion] = []
    coming = [*texts, "end"]  # the landmark that the next piece is inserted before
    for literal, slot in zip(parts[0::2], [*slots, ""], strict=True):
        if "{" in literal or "}" in literal:
            raise ConfigError(
                f"template {template!r}",
                got=f"an unmatched brace near {literal.strip()!r}",
                expected="slots such as {prompt:4} and {text_a}",
            )
        if literal.strip():
            found.append(Insertion(before=Landmark(coming[0]), anchor=literal.strip()))
        if slot in ("text_a", "text_b"):
            coming.pop(0)
        elif slot:
            found.append(Insertion(before=Landmark(coming[0]), tokens=_count(slot, template)))
    if not any(piece.tokens for piece in found):
        raise ConfigError(
            f"template {template!r}",
            got="no {prompt:N}",
            expected="at least one",
            remedy="without it nothing is trained",
        )
    return found


def _count(slot: str, template: str) -> int:
    name, _, count = slot.partition(":")
    if name.strip() != "prompt":
        raise ConfigError(
            f"template {template!r}: unknown slot {{{slot}}}", expected="{prompt:N}, {text_a} or {text_b}"
        )
    if not _COUNT.fullmatch(count.strip()):
        raise ConfigError(
            f"template {template!r:.200}: {{{slot:.40}}} has no valid count",
            expected="a number from 1 to 9999, such as {prompt:4}",
        )
    return int(count)
