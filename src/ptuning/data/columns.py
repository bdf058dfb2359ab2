"""Which columns hold the text, the second text and the label.

A column that the user names is taken, or refused with the names there are. Otherwise columns are
found by names that everyone uses, and only where no other reading is possible: two candidates are an
error that asks, never a choice made in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from ptuning.data.places import listing
from ptuning.errors import DataError

#: Names of a first text, and the names that its second text goes by, if it has one.
TEXT_NAMES: Mapping[str, tuple[str, ...]] = {
    "text": ("text_b", "text_pair", "text2", "text_2"),
    "text_a": ("text_b",),
    "text1": ("text2",),
    "text_1": ("text_2",),
    "sentence": ("sentence_b", "sentence_pair"),
    "sentence1": ("sentence2",),
    "sentence_1": ("sentence_2",),
    "sentence_a": ("sentence_b",),
    "premise": ("hypothesis",),
    "question": ("sentence", "passage", "context", "answer"),
    "question1": ("question2",),
    "question_1": ("question_2",),
    "query": ("passage", "document"),
    **dict.fromkeys(
        (
            *("abstract", "body", "comment", "content", "description", "document", "headline", "message"),
            *("post", "review", "review_body", "title", "tweet", "utterance"),
        ),
        (),
    ),
}
LABEL_NAMES: tuple[str, ...] = (
    *("label", "labels", "class", "category", "intent", "score", "target", "rating", "sentiment"),
    *("y", "stars", "topic", "emotion", "emotions"),
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of one task, named as the source names them.

    Args:
        text: The text, or the first of two.
        text_b: The second text of a pair.
        label: The label; ``None`` where none is needed.
        seconds: What a second text would be called, where one was looked for and the first row has none.
    """

    text: str
    text_b: str | None = None
    label: str | None = None
    seconds: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def pair(self) -> bool:
        """Whether a row has two texts."""
        return self.text_b is not None

    def overlooked(self, names: Iterable[str]) -> str | None:
        """A second text among a later row's columns; a writer may leave out what is null."""
        return next(iter(_matching(names, self.seconds)), None) if self.seconds else None


def find_columns(
    names: Sequence[str],
    text: str | None = None,
    text_b: str | None = None,
    label: str | None = None,
    need_label: bool = True,
    *,
    source_name: str = "the rows",
) -> Columns:
    """Find or check the columns of a task.

    Well-known names are compared without case. A ``text_b`` is looked for only when ``text`` was found
    rather than named: who names the one text decides whether there is a second.

    Args:
        names: The columns there are.
        text, text_b, label: Columns that the user named.
        need_label: Whether a label has to be found; without, only a named one is used.
        source_name: What errors call the source.

    Raises:
        DataError: A named column is not there, or one is named twice; none or several could be meant.
    """
    given = [name for name in (text, text_b, label) if name is not None]
    _check_given(names, {"text": text, "text_b": text_b, "label": label}, source_name)
    free = [name for name in names if name not in given]
    seconds: tuple[str, ...] = ()
    if text is None:
        found = _one(_text_candidates(free), "text", names, source_name)
        free.remove(found)
        if text_b is None:
            seconds = TEXT_NAMES[_plain(found)]
            partners = _matching(free, seconds)
            text_b = _one(partners, "text_b", names, source_name) if partners else None
        text = found
    if label is None and need_label:
        candidates = _matching([name for name in free if name != text_b], LABEL_NAMES)
        label = _one(candidates, "label", names, source_name)
    others = (_plain(label),) if label is not None else ()
    missed = tuple(name for name in seconds if name not in others) if text_b is None else ()
    return Columns(text=text, text_b=text_b, label=label, seconds=missed)


def _check_given(names: Sequence[str], given: Mapping[str, str | None], source_name: str) -> None:
    taken: dict[str, str] = {}
    for role, name in given.items():
        if name is None:
            continue
        if name not in names:
            close = get_close_matches(name.lower(), [known.lower() for known in names], n=1)
            near = next((known for known in names if close and known.lower() == close[0]), None)
            hint = f"did you mean {near!r}?" if near is not None else f"name one of these with {role}"
            raise DataError(
                f"{source_name}: no column {name!r} for {role}, expected one of {listing(names, 40)}; {hint}"
            )
        if name in taken:
            raise DataError(
                f"{source_name}: column {name!r} is named both {taken[name]} and {role}, expected two "
                f"different columns; the columns are {listing(names, 40)}"
            )
        taken[name] = role


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _matching(names: Iterable[str], known: Iterable[str]) -> list[str]:
    wanted = set(known)
    return [name for name in names if _plain(name) in wanted]


def _text_candidates(names: Sequence[str]) -> list[str]:
    """Columns that could be the first text: those known as one that are not another's second."""
    found = _matching(names, TEXT_NAMES)
    seconds = {partner for name in found for partner in TEXT_NAMES[_plain(name)]}
    return [name for name in found if _plain(name) not in seconds]


def _one(candidates: Sequence[str], role: str, names: Sequence[str], source_name: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    what = {"text": "the text", "text_b": "the second text", "label": "the label"}[role]
    if candidates:
        raise DataError(
            f"{source_name}: {listing(candidates)} could each be {what}, expected one; name the column "
            f"with {role}" + (" (and text_b, for a pair)" if role == "text" else "")
        )
    raise DataError(
        f"{source_name}: no column is known to be {what}, expected one called "
        f"{listing(TEXT_NAMES if role == 'text' else LABEL_NAMES, 4)}; name it with {role}, one of "
        f"{listing(names, 40)}"
    )
