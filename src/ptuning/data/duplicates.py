"""Rows with the same text: with the same label, or with contradicting labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ptuning.data.examples import Example
from ptuning.data.places import Note, Origin, counted, option

_DROP = option("duplicates", "drop")
_Example = TypeVar("_Example", bound=Example)


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Rows with the same text as others.

    Attributes:
        again: The rows that repeat the text and label of an earlier row.
        contradicting: All rows of texts that have different labels.
        texts: The number of such texts.
    """

    again: tuple[int, ...]
    contradicting: tuple[int, ...]
    texts: int

    @property
    def contradiction(self) -> str:
        """A message about the contradicting rows."""
        texts = "1 text is" if self.texts == 1 else f"{self.texts} texts are"
        return (
            f"{texts} in several rows with different labels, {counted(len(self.contradicting))} in all; "
            f"nothing can be learnt from them: correct them, or leave them out with {_DROP}"
        )

    @property
    def difference(self) -> str:
        """A message about the same rows if labels are scores."""
        texts = "1 text is" if self.texts == 1 else f"{self.texts} texts are"
        return f"{texts} in several rows with different scores; the model learns their mean"

    @property
    def repetition(self) -> str:
        """A message about the repeated rows."""
        what = "row repeats" if len(self.again) == 1 else "rows repeat"
        return (
            f"{len(self.again)} {what} an earlier one, text and label; unless they should count more, leave "
            f"them out with {_DROP}"
        )


def repeats(examples: Sequence[Example]) -> Repeats:
    """Find the repeated rows. Both texts of a pair are compared, exactly."""
    found = _Groups(examples)
    return Repeats(
        again=tuple(sorted(examples[place].row for place in found.again)),
        contradicting=tuple(sorted(examples[place].row for place in found.contradicting)),
        texts=found.texts,
    )


def without_repeats(
    examples: Sequence[_Example], origin: Origin, *, scores: bool
) -> tuple[list[_Example], Note | None]:
    """Keep the first of the rows with the same text and label, and drop texts with different labels.

    Args:
        scores: Whether labels are scores: these may differ without contradicting each other, so only rows
            with equal scores are dropped.
    """
    found = _Groups(examples, scores=scores)
    dropped = found.again | found.contradicting
    kept = [example for place, example in enumerate(examples) if place not in dropped]
    if not dropped:
        return kept, None
    parts = []
    if found.again:
        parts.append(f"{counted(len(found.again))} that repeat an earlier one")
    if found.contradicting:
        parts.append(
            f"all {counted(len(found.contradicting))} of {found.texts} "
            f"{'text' if found.texts == 1 else 'texts'} with different labels"
        )
    rows = tuple(sorted(examples[place].row for place in dropped))
    return kept, Note(
        message=f"{origin.name}: dropped {' and '.join(parts)} (data.duplicates: drop)", rows=rows
    )


class _Groups:
    """Indices of repeated and contradicting rows; ``scores`` never contradict each other."""

    def __init__(self, examples: Sequence[Example], *, scores: bool = False) -> None:
        by_text: dict[tuple[str, str | None], list[int]] = defaultdict(list)
        for place, example in enumerate(examples):
            by_text[example.text, example.text_b].append(place)
        self.again: set[int] = set()
        self.contradicting: set[int] = set()
        self.texts = 0
        for places in by_text.values():
            if len(places) == 1:
                continue
            first: dict[str, int] = {}
            again = {place for place in places if first.setdefault(_answer(examples[place]), place) != place}
            if len(first) > 1 and not scores:
                self.contradicting.update(places)
            else:
                self.again.update(again)
            self.texts += len(first) > 1


def _answer(example: Example) -> str:
    """A row's label, or its labels in a fixed order."""
    label = example.label
    return repr(sorted(label, key=str) if isinstance(label, tuple) else label)
