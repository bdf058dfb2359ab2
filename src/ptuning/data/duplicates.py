"""Rows that have the same text: those that agree in their label, and those that contradict each other."""

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
    """What stands more than once.

    Attributes:
        again: The rows that repeat an earlier one, text and label.
        contradicting: All rows of texts that stand with different labels.
        texts: How many such texts there are.
    """

    again: tuple[int, ...]
    contradicting: tuple[int, ...]
    texts: int

    @property
    def contradiction(self) -> str:
        """What to say of the contradicting rows."""
        texts = "1 text stands" if self.texts == 1 else f"{self.texts} texts stand"
        return (
            f"{texts} in several rows with different labels, {counted(len(self.contradicting))} in all; "
            f"nothing can be learnt from them: correct them, or leave them out with {_DROP}"
        )

    @property
    def difference(self) -> str:
        """What to say of the same rows where labels are scores."""
        texts = "1 text stands" if self.texts == 1 else f"{self.texts} texts stand"
        return f"{texts} in several rows with different scores; what is learnt is their mean"

    @property
    def repetition(self) -> str:
        """What to say of the rows that repeat another."""
        what = "row repeats" if len(self.again) == 1 else "rows repeat"
        return (
            f"{len(self.again)} {what} an earlier one, text and label; unless they should count more, leave "
            f"them out with {_DROP}"
        )


def repeats(examples: Sequence[Example]) -> Repeats:
    """Find the repeated rows; both texts of a pair are compared, to the character."""
    found = _Groups(examples)
    return Repeats(
        again=tuple(sorted(examples[place].row for place in found.again)),
        contradicting=tuple(sorted(examples[place].row for place in found.contradicting)),
        texts=found.texts,
    )


def without_repeats(
    examples: Sequence[_Example], origin: Origin, *, scores: bool
) -> tuple[list[_Example], Note | None]:
    """The first of the rows with the same text and label; of texts with different labels, no row at all.

    Which of several labels is right nobody can tell from the rows, so none of them is kept.

    Args:
        scores: Whether labels are scores, which may differ without contradicting each other: then only equal
            ones are dropped.
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
    """Places of the rows, by what they repeat; ``scores`` never contradict each other."""

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
    """A row's label, or labels in whichever order."""
    label = example.label
    return repr(sorted(label, key=str) if isinstance(label, tuple) else label)
